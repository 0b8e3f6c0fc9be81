"""Lanes, memory segments, checkers, barriers and the scheduler of the PTX interpreter."""

import collections
import weakref

import numpy as np

from .numerics import i4, i8, u1, u2, u4, u8

WINDOW = 37  # one generic-address window per segment: 2**37 bytes
SHARED_BASE, LOCAL_BASE, CONST_BASE, PARAM_BASE = (k << WINDOW for k in (1, 2, 3, 4))
FIRST_GLOBAL = 8
GARBAGE = 0xFFFFDEAD  # what an undefined read yields (a NaN as float)
LANE = np.arange(32, dtype=i8)
BIT = (u4(1) << np.arange(32, dtype=u4)).astype(u4)
_AR = [np.arange(1 << 15, dtype=i8)]


def arange(n):
    if len(_AR[0]) < n:
        _AR[0] = np.arange(max(n, 2 * len(_AR[0])), dtype=i8)
    return _AR[0][:n]


class Lanes:
    """A set of lanes that execute together: `ix` indexes register arrays (slice or int array)."""

    __slots__ = ("_idx", "_nw", "ix", "n")

    def __init__(self, ix, n, idx=None):
        self.ix, self.n, self._idx, self._nw = ix, n, idx, None

    @staticmethod
    def of(idx):
        n = len(idx)
        a = int(idx[0])
        if int(idx[-1]) - a + 1 == n:
            return Lanes(slice(a, a + n), n, idx)
        return Lanes(idx, n, idx)

    @property
    def idx(self):
        if self._idx is None:
            self._idx = arange(self.ix.stop)[self.ix.start :]
        return self._idx

    @property
    def nw(self):
        """How many warps have a lane here."""
        if self._nw is None:
            if type(self.ix) is slice:
                self._nw = (self.ix.stop - 1 >> 5) - (self.ix.start >> 5) + 1
            else:
                w = self.ix >> 5
                self._nw = 1 + int(np.count_nonzero(w[1:] != w[:-1]))
        return self._nw

    def sub(self, mask):
        return Lanes.of(self.idx[mask])


def merge(ls):
    if len(ls) == 1:
        return ls[0]
    return Lanes.of(np.sort(np.concatenate([l.idx for l in ls])))


# ---------------------------------------------------------------- memory
class Segment:
    """Bytes with a virtual base address; `state` (optional) has, per byte: 1 allocated,
    2 initialised, 4 awaiting a cp.async."""

    def __init__(
        self, name, space, data, base, nbytes=None, state=None, guard=False, readonly=False
    ):
        self.name, self.space, self.data, self.base = name, space, data, base
        self.nbytes = len(data) if nbytes is None else nbytes
        self.state, self.guard, self.readonly = state, guard, readonly
        self._v, self._s = {}, {}
        self.race = self.chains = None

    def view(self, dt):
        v = self._v.get(dt)
        if v is None:
            k = np.dtype(dt).itemsize
            v = self._v[dt] = self.data[: len(self.data) // k * k].view(dt)
        return v

    def sview(self, dt):
        v = self._s.get(dt)
        if v is None:
            k = np.dtype(dt).itemsize
            v = self._s[dt] = self.state[: len(self.state) // k * k].view(dt)
        return v


SU = {1: u1, 2: u2, 4: u4, 8: u8, 16: u8}


def _pattern(byte, size):
    dt = SU[size]
    return dt(int.from_bytes(bytes([byte]) * np.dtype(dt).itemsize, "little"))


class DeviceMemory:
    """Registry of device buffers: every NumPy base array seen is one guarded allocation."""

    def __init__(self):
        self.segs = {}  # window -> Segment
        self.by_id = {}  # id(root array) -> (weakref, window)
        self.next = FIRST_GLOBAL

    @staticmethod
    def root_of(arr):
        r = arr
        while isinstance(r.base, np.ndarray):
            r = r.base
        return r

    def _new(self, name, data, readonly=False, state=None):
        w = self.next
        self.next += 1
        seg = Segment(
            name, "global", data, (w << WINDOW) + (1 << WINDOW - 1), readonly=readonly, state=state
        )
        self.segs[w] = seg
        return w, seg

    def add_raw(self, name, nbytes):
        """A module-scope .global variable."""
        buf = np.zeros(-(-max(nbytes, 1) // 8), u8).view(u1)[: max(nbytes, 1)]
        return self._new(name, buf)[1]

    def segment(self, arr):
        """-> (segment of arr's base allocation, byte offset of arr in it)"""
        root = self.root_of(arr)
        ent = self.by_id.get(id(root))
        if ent is None or ent[0]() is not root:
            flags = root.flags
            if not (flags.c_contiguous or flags.f_contiguous):
                raise ValueError("the base allocation of a device array must be contiguous")
            flat = np.asarray(root if flags.c_contiguous else root.T).reshape(-1)
            data = flat.view(u1) if root.size else np.zeros(0, u1)
            w, seg = self._new(
                f"{root.dtype}{list(root.shape)}", data, readonly=not flags.writeable
            )
            key = id(root)

            memory = weakref.ref(self)

            def drop(_, w=w, key=key):
                m = memory()
                if m is not None:
                    m.segs.pop(w, None)
                    if m.by_id.get(key, (None, None))[1] == w:
                        del m.by_id[key]

            # the segment must not keep root alive: remember memory through a weak handle
            seg.data = None
            seg.root = weakref.ref(root, drop)
            self.by_id[key] = (seg.root, w)
        else:
            seg = self.segs[ent[1]]
        off = (
            (arr.__array_interface__["data"][0] - root.__array_interface__["data"][0])
            if root.size
            else 0
        )
        return seg, off

    def bind(self, seg, root):
        """Make the bytes of root accessible for the length of one launch."""
        flat = np.asarray(root if root.flags.c_contiguous else root.T).reshape(-1)
        seg.data = flat.view(u1) if root.size else np.zeros(0, u1)
        seg.nbytes = len(seg.data)
        seg.readonly = not root.flags.writeable
        seg._v = {}

    def unbind(self, seg):
        seg.data, seg._v, seg.race = None, {}, None

    def poison(self, arr, fill=True):
        """Mark arr's bytes as never written (and fill them with 0xFF: NaN / -1)."""
        seg, off = self.segment(arr)
        root = self.root_of(arr)
        n = root.nbytes
        if seg.state is None:
            seg.state = np.full(n, 3, u1)
            seg._s = {}
        _states(seg, arr, off)[...] = 1
        if fill:
            arr[...] = np.frombuffer(b"\xff" * arr.itemsize, arr.dtype)[0]

    def mark_written(self, arr, where=...):
        seg, off = self.segment(arr)
        if seg.state is not None:
            _states(seg, arr, off)[where] = 3

    def written(self, arr):
        """Boolean array: which elements of arr have been written (all True if not poisoned)."""
        seg, off = self.segment(arr)
        if seg.state is None:
            return np.ones(arr.shape, bool)
        return (_states(seg, arr, off) & 2).all(-1)


def _states(seg, arr, off):
    """The states of the bytes of each element of arr, a view."""
    shape, strides = (*arr.shape, arr.itemsize), (*arr.strides, 1)
    return np.lib.stride_tricks.as_strided(seg.state[off:], shape, strides)


# ---------------------------------------------------------------- reports
class Finding:
    def __init__(self, kind, severity, kernel, ins, source, detail, where, n):
        self.kind, self.severity, self.kernel = kind, severity, kernel
        self.ins, self.source, self.detail, self.where, self.count = ins, source, detail, where, n

    def __str__(self):
        s = f"{self.severity.upper()} {self.kind}: {self.detail}\n    in {self.kernel}"
        if self.ins is not None:
            s += f", PTX line {self.ins.line}: {self.ins.text}"
        if self.source:
            s += f"\n    source {self.source}"
        return s + f"\n    first at {self.where}; {self.count} lane(s)"

    __repr__ = __str__


class KernelError(RuntimeError):
    def __init__(self, report):
        super().__init__("\n" + "\n".join(map(str, report.errors)))
        self.report = report


class Report:
    """What one launch did: errors, warnings, counters."""

    def __init__(self, kernel=""):
        self.kernel = kernel
        self.errors, self.warnings = [], []
        self.counters = {}
        self.memory = []  # per memory instruction: dicts
        self.printf_calls = 0
        self.seconds = 0.0

    @property
    def ok(self):
        return not self.errors

    def kinds(self):
        return sorted({e.kind for e in self.errors})

    def __str__(self):
        out = [
            f"{self.kernel}: {len(self.errors)} error(s), {len(self.warnings)} warning(s), {self.seconds:.3f} s"
        ]
        out += [str(e) for e in self.errors + self.warnings]
        out += [f"  {k}: {v}" for k, v in self.counters.items()]
        return "\n".join(out)


# ---------------------------------------------------------------- races
GID_BITS, TID_BITS = 40, 10
GID_MASK = (1 << GID_BITS) - 1
CLK_SHIFT = GID_BITS + 1  # record: clock | atomic bit | (block + 1) << 10 | tid


class RaceCells:
    """Last writer and three readers (largest / smallest thread since the last barrier, latest)
    of each cell of 2**shift bytes."""

    def __init__(self, nbytes, shift):
        n = (nbytes >> shift) + 1
        self.shift = shift
        self.w, self.rmax, self.rmin, self.rlast = (np.zeros(n, i8) for _ in range(4))


# ---------------------------------------------------------------- the machine
class Machine:
    """State for `cap` lanes of one kernel (a chunk of whole blocks), and the scheduler."""

    def __init__(self, prog, cap):
        self.prog, self.cap = prog, cap
        self.shared = self.local = self.const = self.param = None
        z = lambda dt: np.zeros(cap, dt)
        self.dead = np.ones(cap, bool)
        self.park_kind, self.park_pc, self.park_mask = z(np.int8), z(i4), z(u4)
        self.park_bar = z(np.int8)
        self.gid, self.clk, self.kb, self.kw = z(i8), z(i8), z(i8), z(i8)
        self.S = None
        self.sbase, self.lbase = z(i8), z(i8)
        self.scratch, self.stamp, self.stamp_no = z(u8), z(i8), 0
        self.specials = {}
        self.cp_commit = z(i4)
        self.cp_pending = []
        self.check_race = self.check_mem = self.count = True
        self.steps = 0
        self.step_limit = 0
        self.chains = None  # see chains.py; if it is not, closures are made for it

    # -- launch-time set-up
    def setup(self, launch):
        """launch: see interp.launch (memory, params, block, grid, dynamic shared, options)."""
        self.L = launch
        self.mem = launch.mem
        self.report = launch.report
        self.findings = launch.findings
        self.check_race, self.count = launch.check_race, launch.count
        bx, by, bz = launch.block
        self.T = bx * by * bz
        self.P = -(-self.T // 32) * 32
        self.nblk = self.cap // self.P
        t = np.arange(self.P)
        tid = np.tile(t, self.nblk)
        self.tid = tid
        self.exists = tid < self.T
        sp = self.specials
        per = {
            "%tid.x": t % bx,
            "%tid.y": t // bx % by,
            "%tid.z": t // (bx * by),
            "%laneid": t & 31,
            "%warpid": t >> 5,
            "%lanemask_eq": 1 << (t & 31),
            "%lanemask_lt": (1 << (t & 31)) - 1,
            "%lanemask_le": (2 << (t & 31)) - 1,
            "%lanemask_gt": ~((2 << (t & 31)) - 1) & 0xFFFFFFFF,
            "%lanemask_ge": ~((1 << (t & 31)) - 1) & 0xFFFFFFFF,
        }
        gx, gy, gz = launch.grid
        const = {
            "%ntid.x": bx,
            "%ntid.y": by,
            "%ntid.z": bz,
            "%nctaid.x": gx,
            "%nctaid.y": gy,
            "%nctaid.z": gz,
            "%nwarpid": self.P // 32,
            "%nsmid": launch.num_sms,
            "%gridid": 1,
            "%dynamic_smem_size": launch.dyn,
            "%total_smem_size": self.prog.smem_size + launch.dyn,
            "%aggr_smem_size": self.prog.smem_size + launch.dyn,
            "%nclusterid.x": gx,
            "%nclusterid.y": gy,
            "%nclusterid.z": gz,
            "%cluster_nctaid.x": 1,
            "%cluster_nctaid.y": 1,
            "%cluster_nctaid.z": 1,
            "%cluster_nctarank": 1,
        }
        for name, arr in sp.items():
            if name in per:
                arr[:] = np.tile(per[name], self.nblk).astype(arr.dtype)
            else:
                arr[:] = const.get(name, 0)

    def start_chunk(self, blocks):
        """Blocks of the grid, by number, into slots 0 .. nb - 1."""
        P, gx, gy = self.P, self.L.grid[0], self.L.grid[1]
        nb = self.nb = len(blocks)
        slots = np.full(self.nblk, self.L.grid[0] * self.L.grid[1] * self.L.grid[2])
        slots[:nb] = blocks
        blk = self.blk = np.repeat(slots, P)
        sp = self.specials
        for name, v in (("x", blk % gx), ("y", blk // gx % gy), ("z", blk // (gx * gy))):
            for pre in ("%ctaid.", "%clusterid."):
                if pre + name in sp:
                    sp[pre + name][:] = v
        if "%smid" in sp:
            sp["%smid"][:] = blk % self.L.num_sms
        n = nb * P
        self.dead[:] = True
        self.dead[:n] = ~self.exists[:n]
        self.live_b = np.zeros(self.nblk, i8)
        self.live_b[:nb] = self.T
        self.live_w = (~self.dead).reshape(-1, 32).sum(1)
        self.total_live = nb * self.T
        self.park_kind[:] = 0
        self.arrived = np.zeros((self.nblk, 16), i8)
        self.needed = np.zeros((self.nblk, 16), i8)
        self.any_parked = 0
        self.clk[:] = 1
        self.kb[:] = 0
        self.kw[:] = 0
        self.S = None
        self.gid[:] = (blk + 1 << TID_BITS) | np.minimum(self.tid, 1023)
        self.cp_commit[:] = 0
        self.cp_pending = []
        for arr in self.reg_blocks:
            arr[:, :n] = 0 if arr.dtype == bool else _pattern(0xA5, arr.itemsize)
        for arr in self.param_arrays:
            arr[:n] = 0xA5
        # shared / local memory
        S = self.L.shared_template
        stride = len(S)
        self.sbase[:] = np.arange(self.cap) // P * stride
        self.shared_size = self.L.shared_size
        data = np.full(stride * nb, 0xFF, u1)
        self.shared = Segment("shared", "shared", data, 0, state=np.tile(S, nb), guard=True)
        ls = self.prog.local_size
        self.lbase[:] = np.arange(self.cap) * ls
        if ls:
            self.local = Segment(
                "local", "local", np.full(ls * n, 0xFF, u1), 0, state=np.full(ls * n, 1, u1)
            )
        self.local_size = ls
        if self.chains is not None:
            self.chains.start_chunk()
        return Lanes.of(np.nonzero(~self.dead)[0])

    # -- findings
    def where(self, lane):
        b = int(self.blk[lane])
        t = int(self.tid[lane])
        gx, gy, _ = self.L.grid
        bx, by, _ = self.L.block
        return (
            f"block ({b % gx},{b // gx % gy},{b // (gx * gy)}) "
            f"thread ({t % bx},{t // bx % by},{t // (bx * by)})"
        )

    def find(self, kind, ins, lanes, detail, severity="error"):
        """Record a finding; lanes: lane ids concerned; detail: text or callable(first position)."""
        key = (kind, severity, ins.pc if ins is not None else -1)
        f = self.findings.get(key)
        if f is not None:
            f.count += len(lanes)
            return
        src = ""
        if ins is not None and ins.loc:
            src = f"{self.prog.files.get(ins.loc[0], '?')}:{ins.loc[1]}"
        d = detail(0) if callable(detail) else detail
        f = Finding(
            kind,
            severity,
            self.prog.name,
            ins,
            src,
            d,
            self.where(int(lanes[0])) if len(lanes) else "?",
            len(lanes),
        )
        self.findings[key] = f
        (self.report.errors if severity == "error" else self.report.warnings).append(f)

    # -- address resolution: -> list of (selector or None, segment, byte offsets)
    def resolve(self, space, L, a, size, ins, write):
        if space == "shared":
            return self._flat(L, a, size, ins, self.shared, self.shared_size, self.sbase, "shared")
        if space == "global":
            return self._global(L, a, size, ins, write)
        if space == "local":
            return self._flat(L, a, size, ins, self.local, self.local_size, self.lbase, "local")
        if space in ("const", "param"):
            seg = self.const if space == "const" else self.param
            return self._flat(L, a, size, ins, seg, seg.nbytes if seg else 0, None, space)
        # generic
        w = a >> WINDOW
        k = int(w[0])
        if k >= FIRST_GLOBAL and (w >= FIRST_GLOBAL).all():
            return self._global(L, a, size, ins, write)
        out = []
        for k, name, base in (
            (1, "shared", SHARED_BASE),
            (2, "local", LOCAL_BASE),
            (3, "const", CONST_BASE),
            (4, "param", PARAM_BASE),
        ):
            m = w == k
            if m.any():
                if m.all():
                    return self.resolve(name, L, a - base, size, ins, write)
                out += self._nest(m, self.resolve(name, L.sub(m), a[m] - base, size, ins, write))
        m = (w == 0) | (w >= FIRST_GLOBAL) | (w < 0) | ((w > 4) & (w < FIRST_GLOBAL))
        if m.any():
            out += self._nest(m, self._global(L.sub(m), a[m], size, ins, write))
        return out

    @staticmethod
    def _nest(m, parts):
        out = []
        for sel, seg, off in parts:
            full = m.copy()
            if sel is not None:
                full[m] = sel
            out.append((full, seg, off))
        return out

    def _misaligned(self, L, a, size, ins, bad, what):
        self.find(
            "misaligned",
            ins,
            L.idx[bad],
            lambda _: f"{what} address {int(a[bad][0]):#x} is not a multiple of {size}",
        )

    def _flat(self, L, a, size, ins, seg, limit, lane_base, space):
        bases = None if lane_base is None else lane_base[L.ix]
        if int(a.view(u8).max()) + size <= limit and not (
            size > 1 and int(np.bitwise_or.reduce(a)) & (size - 1)
        ):
            return [(None, seg, a if bases is None else a + bases)]
        inb = (a >= 0) & (a + size <= limit)
        if not inb.all():
            bad = ~inb
            self.find(
                "out-of-bounds",
                ins,
                L.idx[bad],
                lambda _: (
                    f"{space} address {int(a[bad][0])} + {size} bytes lies outside the {limit} bytes"
                    f" of {space} memory"
                ),
            )
        mis = inb & ((a & (size - 1)) != 0)
        if mis.any():
            self._misaligned(L, a, size, ins, mis, space)
        ok = inb & ~mis
        if not ok.any():
            return []
        off = a[ok] if bases is None else a[ok] + bases[ok]
        return [(ok, seg, off)]

    def _global(self, L, a, size, ins, write):
        seg = self.mem.segs.get(int(a[0]) >> WINDOW)
        if seg is not None and seg.data is not None and not (write and seg.readonly):
            off = a - seg.base
            if int(off.view(u8).max()) + size <= seg.nbytes and not (
                size > 1 and int(np.bitwise_or.reduce(off)) & (size - 1)
            ):
                return [(None, seg, off)]
        out = []
        win = a >> WINDOW
        for w in np.unique(win):
            m = win == w
            seg = self.mem.segs.get(int(w))
            if seg is None or seg.data is None:
                what = (
                    "a null or invalid pointer"
                    if w < FIRST_GLOBAL
                    else "a buffer that is not an argument (or is freed)"
                )
                self.find(
                    "invalid-address",
                    ins,
                    L.idx[m],
                    lambda _: (
                        f"{'store to' if write else 'load from'} {what}, address {int(a[m][0]):#x}"
                    ),
                )
                continue
            if write and seg.readonly:
                self.find(
                    "write-to-readonly", ins, L.idx[m], f"store into read-only buffer {seg.name}"
                )
                continue
            off = a - seg.base
            inb = m & (off >= 0) & (off + size <= seg.nbytes)
            bad = m & ~inb
            if bad.any():
                self.find(
                    "out-of-bounds",
                    ins,
                    L.idx[bad],
                    lambda _: (
                        f"{'store' if write else 'load'} of {size} bytes at byte offset "
                        f"{int(off[bad][0])} of buffer {seg.name} ({seg.nbytes} bytes)"
                    ),
                )
            mis = inb & ((off & (size - 1)) != 0)
            if mis.any():
                self._misaligned(L, off, size, ins, mis, f"buffer {seg.name} offset")
            ok = inb & ~mis
            if ok.any():
                out.append((ok, seg, off[ok]))
        return out

    # -- per-byte state
    def check_read_state(self, seg, off, size, L, ins):
        sv = seg.sview(SU[size])
        pat = _pattern(3, size)
        ix = off >> {1: 0, 2: 1, 4: 2, 8: 3, 16: 3}[size]
        v = sv[ix]
        bad = v != pat
        if size == 16:
            v2 = sv[ix + 1]
            bad |= v2 != pat
            v = v | v2
        if bad.any():
            lanes = L.idx[bad]
            vb = v[bad]
            pending = (vb & _pattern(4, size)) != 0
            guard = (sv[ix[bad]] & _pattern(1, size)) != _pattern(1, size)
            if seg.guard and guard.any():
                self.find(
                    "out-of-bounds",
                    ins,
                    lanes[guard],
                    f"load from the guard zone between {seg.space} variables"
                    f" (offset {self._local_off(seg, off[bad][guard][0])})",
                )
            if pending.any():
                self.find(
                    "async-not-waited",
                    ins,
                    lanes[pending],
                    "read of shared memory with an outstanding cp.async",
                )
            rest = ~pending & ~(guard & seg.guard)
            if rest.any():
                o = off[bad][rest][0]
                self.find(
                    "uninitialised-read",
                    ins,
                    lanes[rest],
                    f"{size}-byte read of {seg.space} memory never written: {seg.name} offset "
                    f"{self._local_off(seg, o)}",
                )

    def _local_off(self, seg, o):
        if seg is self.shared:
            return int(o) % len(self.L.shared_template)
        if seg is self.local:
            return int(o) % self.local_size
        return int(o)

    def write_state(self, seg, off, size, L, ins):
        """Marks bytes as written; -> mask of lanes that hit a guard zone, or None."""
        sv = seg.sview(SU[size])
        ix = off >> {1: 0, 2: 1, 4: 2, 8: 3, 16: 3}[size]
        bad = None
        if seg.guard:
            one = _pattern(1, size)
            g = (sv[ix] & one) != one
            if size == 16:
                g |= (sv[ix + 1] & one) != one
            if g.any():
                self.find(
                    "out-of-bounds",
                    ins,
                    L.idx[g],
                    f"store into the guard zone between {seg.space} variables"
                    f" (offset {self._local_off(seg, off[g][0])})",
                )
                bad = g
                ix = ix[~g]
        sv[ix] = _pattern(3, size)
        if size == 16:
            sv[ix + 1] = _pattern(3, size)
        return bad

    # -- race check
    def race_cells(self, seg):
        if seg.race is None:
            sh = self.prog.shared_cell if seg.space == "shared" else self.prog.global_cell
            seg.race = RaceCells(seg.nbytes, sh)
            if seg.space == "global":
                self.L.raced.append(seg)
        return seg.race

    def _unordered(self, rec, mine, L, kb, atomic):
        """Mask: records by another thread that no barrier orders before this access."""
        g = rec & GID_MASK
        c = rec >> CLK_SHIFT
        m = (g != mine) & (rec != 0) & ~(((g >> TID_BITS) == (mine >> TID_BITS)) & (c < kb))
        if atomic:
            m &= (rec >> GID_BITS & 1) == 0
        if m.any():
            k = np.nonzero(m)[0]
            gm, cm, mm = g[k], c[k], mine[k]
            same_w = (gm >> 5) == (mm >> 5)  # same block and warp (blocks are 1024-aligned)
            if same_w.any():
                kk = k[same_w]
                t = L.idx[kk]
                u = (t & ~31) + (gm[same_w] & 31)
                ordered = cm[same_w] < self.kw[u]
                if self.S is not None:
                    ordered |= cm[same_w] < self.S[t, u & 31]
                m[kk[ordered]] = False
        return m

    def race(self, seg, off, size, L, ins, write, atomic, same_value):
        """Check and record an access by every lane of L; same_value(within): lanes whose store does
        not change memory (within: agrees with the other lanes of the same store)."""
        rc = self.race_cells(seg)
        mine, kb = self.gid[L.ix], self.kb[L.ix]
        rec = (self.clk[L.ix] << CLK_SHIFT) | (int(atomic) << GID_BITS) | mine
        first = off >> rc.shift
        for k in range(max(1, size >> rc.shift)):
            cell = first + k if k else first
            w = rc.w[cell]
            m = self._unordered(w, mine, L, kb, atomic)
            if m.any():
                self._report_race(
                    "write-write" if write else "read-after-write",
                    seg,
                    off,
                    m,
                    w,
                    mine,
                    L,
                    ins,
                    same_value if write else None,
                )
            if write:
                for r in (rc.rmax, rc.rmin, rc.rlast):
                    old = r[cell]
                    m = self._unordered(old, mine, L, kb, atomic)
                    if m.any():
                        self._report_race(
                            "write-after-read", seg, off, m, old, mine, L, ins, same_value
                        )
                        break
                rc.w[cell] = rec
                if not atomic and L.n > 1:
                    now = rc.w[cell]
                    m = now != rec
                    if m.any():
                        self._report_race(
                            "write-write", seg, off, m, now, mine, L, ins, same_value, True
                        )
            else:
                if "nc" in ins.mods and w.any():
                    self.find(
                        "nc-stale-read",
                        ins,
                        L.idx[w != 0],
                        "ld.global.nc (const __restrict__ / __ldg) of memory "
                        "that this launch also writes",
                    )
                # reads of one block since its last barrier: keep the extreme threads and the latest
                for r, sign in ((rc.rmax, 1), (rc.rmin, -1)):
                    old = r[cell]
                    g = old & GID_MASK
                    keep = (
                        ((g >> TID_BITS) == (mine >> TID_BITS))
                        & ((old >> CLK_SHIFT) >= kb)
                        & ((g > mine) if sign > 0 else (g < mine))
                    )
                    new = np.where(keep, old, rec)
                    if sign > 0:
                        r[cell] = new
                    else:
                        r[cell[::-1]] = new[::-1]
                rc.rlast[cell] = rec

    def _report_race(self, kind, seg, off, m, old, mine, L, ins, same_value, within=False):
        g = old & GID_MASK
        inter = (g >> TID_BITS) != (mine >> TID_BITS)
        same = same_value(within)[m] if same_value is not None else np.zeros(int(m.sum()), bool)
        lanes, gm, om, im = L.idx[m], g[m], off[m], inter[m]
        for is_inter in (False, True):
            for is_same in (False, True):
                s = (im == is_inter) & (same == is_same)
                if not s.any():
                    continue
                j = int(np.nonzero(s)[0][0])
                other = int(gm[j])
                soft = is_same or (is_inter and self.prog.uses_sync)
                name = "inter-block-race" if is_inter else "race"
                note = " (same value)" if is_same else ""
                if is_inter and self.prog.uses_sync:
                    note += " (unless a fence/atomic protocol of this kernel orders the blocks)"
                self.find(
                    name,
                    ins,
                    lanes[s],
                    f"{kind} conflict{note} on {seg.space} {seg.name} byte offset "
                    f"{self._local_off(seg, om[j])} with linear block {(other >> TID_BITS) - 1} thread {other & 1023}",
                    "warning" if soft else "error",
                )

    def warp_clock(self, L, full, masks=None):
        """All lanes of L passed a warp-level synchronisation."""
        if not self.check_race:
            return
        ix = L.ix
        self.clk[ix] += 1
        if full:
            self.kw[ix] = self.clk[ix]
            return
        idx = L.idx
        base = idx & ~31
        fresh = self.S is None
        if fresh:
            self.S, self.pm = np.zeros((self.cap, 32), i8), np.zeros(self.cap, u4)
        self.stamp_no += 1
        self.stamp[idx] = self.stamp_no
        all32 = base[:, None] + LANE
        member = ((masks[:, None] & BIT) != 0) & (self.stamp[all32] == self.stamp_no)
        new = np.where(member, self.clk[all32], self.S[idx])
        if not fresh and not ((self.pm[idx] == masks) | (self.pm[idx] == 0)).all():
            for u in range(32):  # other masks than last time: what the members know carries over
                ok = member[:, u]
                if ok.any():
                    new[ok] = np.maximum(new[ok], self.S[base[ok] + u])
        self.pm[idx] = masks
        self.S[idx] = new

    # -- traffic counters
    def count_global(self, L, a, size, ins, write):
        st = self.L.mem_stats[ins.pc]
        nw = L.nw
        st[0] += nw
        st[1] += L.n * size
        sec = a >> 5
        if L.n == 1:
            st[2] += 1
            return
        w = L.idx >> 5
        ws = w[1:] != w[:-1]
        d = sec[1:] - sec[:-1]
        if ((d >= 0) | ws).all():
            st[2] += 1 + int(np.count_nonzero((d != 0) | ws))
        else:
            st[2] += len(np.unique((w << 40) + (sec - int(sec.min()))))

    def count_shared(self, L, a, size, ins):
        st = self.L.mem_stats[ins.pc]
        st[0] += L.nw
        st[1] += L.n * size
        idx = L.idx
        word = a >> 2
        ph = max(1, size // 4)
        grp = idx >> 5 if ph == 1 else (idx >> 5) * ph + (idx & 31) // (32 // ph)
        gs = grp[1:] != grp[:-1]
        ng = 1 + int(np.count_nonzero(gs))
        st[3] += ng
        d = word[1:] - word[:-1]
        if (gs | (d == ph) | (d == 0)).all():
            st[2] += ng
            return
        g = np.concatenate([[0], np.cumsum(gs)])
        if ph > 1:
            word = (word[:, None] + np.arange(ph)).reshape(-1)
            g = np.repeat(g, ph)
        uq = np.unique((g << 40) + word)
        cnt = np.bincount((uq >> 40) * 32 + (uq & 31), minlength=ng * 32).reshape(ng, 32)
        st[2] += int(cnt.max(1).sum())

    # -- loads and stores
    def load(self, space, L, a, dts, size, ins, plain, quiet=False):
        """a: int64 addresses; dts: dtypes of the components -> list of arrays."""
        parts = self.resolve(space, L, a, size, ins, False)
        esz = np.dtype(dts[0]).itemsize
        sh = esz.bit_length() - 1
        out = None
        for sel, seg, off in parts:
            Ls = L if sel is None else L.sub(sel)
            if seg.state is not None:
                self.check_read_state(seg, off, size, Ls, ins)
            if seg.space in ("shared", "global"):
                if self.check_race:
                    self.race(seg, off, size, Ls, ins, False, not plain, None)
                if self.count:
                    if seg.space == "global":
                        self.count_global(Ls, off, size, ins, False)
                    else:
                        self.count_shared(Ls, off, size, ins)
            if self.chains is not None:
                self.chains.load(seg, off, size, Ls)
            i0 = off >> sh
            if sel is None and len(parts) == 1:
                v = seg.view(dts[0])
                return [v[i0 + k] if k else v[i0] for k in range(len(dts))]
            if out is None:
                out = [np.zeros(L.n, dt) for dt in dts]
            for k, dt in enumerate(dts):
                out[k][sel] = seg.view(dt)[i0 + k]
        if out is None:
            out = [np.zeros(L.n, dt) for dt in dts]
        return out

    def store(self, space, L, a, vals, size, ins, plain):
        esz = vals[0].dtype.itemsize
        sh = esz.bit_length() - 1
        for sel, seg, off in self.resolve(space, L, a, size, ins, True):
            Ls = L if sel is None else L.sub(sel)
            v = vals if sel is None else [x[sel] for x in vals]
            if seg.state is not None:
                bad = self.write_state(seg, off, size, Ls, ins)
                if bad is not None:
                    if bad.all():
                        continue
                    Ls, off, v = Ls.sub(~bad), off[~bad], [x[~bad] for x in v]
            if seg.readonly:
                self.find("write-to-readonly", ins, Ls.idx, f"store into {seg.name}")
                continue
            if self.chains is not None:
                self.chains.store(seg, off, size, Ls)
            mem = seg.view(vals[0].dtype.type)
            i0 = off >> sh
            if seg.space in ("shared", "global"):
                old = [mem[i0 + k] for k in range(len(v))] if self.check_race else None
                for k, x in enumerate(v):
                    mem[i0 + k if k else i0] = x
                if self.check_race:

                    def same(within, old=old, v=v, mem=mem, i0=i0):
                        # lanes whose value is what memory held before (or, within one store, holds after)
                        s = np.ones(len(i0), bool)
                        for k, x in enumerate(v):
                            ref = mem[i0 + k] if within else old[k]
                            s &= np.ascontiguousarray(x).view(SU[esz]) == np.ascontiguousarray(
                                ref
                            ).view(SU[esz])
                        return s

                    self.race(seg, off, size, Ls, ins, True, not plain, same)
                if self.count:
                    if seg.space == "global":
                        self.count_global(Ls, off, size, ins, True)
                    else:
                        self.count_shared(Ls, off, size, ins)
            else:
                for k, x in enumerate(v):
                    mem[i0 + k if k else i0] = x

    # -- barriers
    def blocks_of(self, L):
        return L.idx // self.P

    def block_clock(self, blocks):
        if self.chains is not None:
            self.chains.meet(blocks)
        if not self.check_race:
            return
        P = self.P
        if len(blocks) * P >= self.nb * P:
            v = self.clk[: self.nb * P].reshape(-1, P)
            m = v.max(1) + 1
            v[:] = m[:, None]
            self.kb[: self.nb * P] = v.reshape(-1)
            return
        for b in blocks:
            s = slice(b * P, b * P + P)
            m = self.clk[s].max() + 1
            self.clk[s] = m
            self.kb[s] = m

    def barrier(self, L, ins, bar, count, kind, finish):
        """bar.sync / bar.arrive on barrier `bar` -> list of (pc, Lanes) that may go on."""
        pc = ins.pc
        if (
            kind == "sync"
            and L.n == self.total_live
            and count is None
            and not self.arrived[:, bar].any()
        ):
            self._exited_check(ins, np.arange(self.nb)[self.live_b[: self.nb] > 0], L)
            if finish:
                finish(L)
            self.block_clock(np.arange(self.nb))
            return [(pc + 1, L)]
        blk = self.blocks_of(L)
        cnt = np.bincount(blk, minlength=self.nblk)
        touched = np.nonzero(cnt)[0]
        self.arrived[:, bar] += cnt
        self.needed[touched, bar] = -1 if count is None else count
        out = []
        if kind == "arrive":
            out.append((pc + 1, L))
        else:
            idx = L.idx
            self.park_kind[idx] = 1
            self.park_bar[idx] = bar
            self.park_pc[idx] = pc
            self.any_parked += L.n
        return out + self.bar_release(touched)

    def _exited_check(self, ins, blocks, L):
        gone = blocks[self.live_b[blocks] < self.T]
        if len(gone) and not self.L.allow_exited_barrier:
            b = int(gone[0])
            self.find(
                "barrier-divergence",
                ins,
                L.idx[self.blocks_of(L) == b],
                f"{self.T - int(self.live_b[b])} of {self.T} threads of the block exited without reaching this barrier",
            )

    def bar_release(self, blocks):
        out = []
        P = self.P
        for bar in np.nonzero(self.arrived[blocks].any(0))[0]:
            need = np.where(
                self.needed[blocks, bar] < 0, self.live_b[blocks], self.needed[blocks, bar]
            )
            done = blocks[(self.arrived[blocks, bar] >= need) & (self.arrived[blocks, bar] > 0)]
            if not len(done):
                continue
            flag = np.zeros(self.nblk, bool)
            flag[done] = True
            lanes = np.nonzero(
                (self.park_kind == 1) & (self.park_bar == bar) & np.repeat(flag, P)[: self.cap]
            )[0]
            self.arrived[done, bar] = 0
            if not len(lanes):
                continue
            pcs = self.park_pc[lanes]
            uniq = np.unique(pcs)
            if len(uniq) > 1:
                w = lanes >> 5
                b = lanes // P
                if len(np.unique(w)) != len(np.unique(w * (1 << 24) + pcs)):
                    self.find(
                        "barrier-divergence",
                        self.prog.code[uniq[0]],
                        lanes,
                        "lanes of one warp wait at different barrier instructions",
                    )
                elif (
                    len(np.unique(b)) != len(np.unique(b * (1 << 24) + pcs))
                    and (self.needed[done, bar] < 0).any()
                ):
                    self.find(
                        "barrier-divergence",
                        self.prog.code[uniq[0]],
                        lanes,
                        "threads of one block wait at different barrier instructions",
                        "warning",
                    )
            self.park_kind[lanes] = 0
            self.any_parked -= len(lanes)
            for pc in uniq:
                L = Lanes.of(lanes[pcs == pc])
                ins = self.prog.code[pc]
                if (self.needed[done, bar] < 0).any():
                    self._exited_check(ins, done, L)
                fin = self.finishers.get(int(pc))
                if fin:
                    if len(uniq) > 1:
                        raise NotImplementedError(f"{ins.full} reached at different instructions")
                    fin(L)
                out.append((int(pc) + 1, L))
            self.block_clock(done)
        return out

    # -- warp-synchronous instructions
    def warp_full(self, L):
        """Does L hold every live lane of every warp it touches?"""
        if L.n == self.total_live:
            return True
        w = L.idx >> 5
        cnt = np.bincount(w, minlength=len(self.live_w))
        return bool(((cnt == self.live_w) | (cnt == 0)).all())

    def warp_sync(self, L, ins, masks, finish):
        """masks: member mask per lane, or None for the full warp; finish(L, masks)."""
        if masks is not None and (masks == u4(0xFFFFFFFF)).all():
            masks = None
        if masks is None and self.warp_full(L):
            finish(L, None)
            self.warp_clock(L, True)
            return [(ins.pc + 1, L)]
        idx = L.idx
        if masks is None:
            masks = np.full(L.n, 0xFFFFFFFF, u4)
        own = (masks >> (idx & 31).astype(u4)) & u4(1)
        if not own.all():
            bad = own == 0
            self.find(
                "warp-mask",
                ins,
                idx[bad],
                lambda _: (
                    f"lane {int(idx[bad][0]) & 31} executes with member mask "
                    f"{int(masks[bad][0]):#x}, which does not name it"
                ),
            )
            masks = masks | BIT[idx & 31]
        if self.warp_full(L) and self._partition(idx, masks):
            finish(L, masks)
            self.warp_clock(L, False, masks)
            return [(ins.pc + 1, L)]
        self.park_kind[idx] = 2
        self.park_pc[idx] = ins.pc
        self.park_mask[idx] = masks
        self.any_parked += L.n
        return self.warp_release(np.unique(idx >> 5))

    def _partition(self, idx, masks):
        """Do the masks (each naming its own lane) split the live lanes into groups that agree?"""
        low = masks & (~masks + u4(1))
        key = (idx & ~31) + np.bitwise_count(low - u4(1)).astype(i8)  # group leader
        n = np.bincount(key, minlength=self.cap)
        live = (
            np.where(self.dead, u4(0), BIT[np.arange(self.cap) & 31])
            .reshape(-1, 32)
            .sum(1, dtype=u4)
        )
        self.scratch[key] = masks
        return bool(
            (self.scratch[key] == masks).all()
            and (n[key] == np.bitwise_count(masks & live[idx >> 5])).all()
        )

    def warp_release(self, warps):
        lanes = warps[:, None] * 32 + LANE
        kind = self.park_kind[lanes] == 2
        if not kind.any():
            return []
        pcs = np.where(kind, self.park_pc[lanes], -1)
        bw = self.is_barwarp[pcs] & kind
        pcs_eq = np.where(bw, -2, pcs)
        masks = np.where(kind, self.park_mask[lanes], u4(0))
        livebits = np.where(self.dead[lanes], u4(0), BIT).sum(1, dtype=u4)
        need = masks & livebits[:, None]
        eq = (
            (masks[:, :, None] == masks[:, None, :])
            & (pcs_eq[:, :, None] == pcs_eq[:, None, :])
            & kind[:, None, :]
        )
        have = np.where(eq, BIT, u4(0)).sum(2, dtype=u4)
        done = kind & ((need & ~have) == 0)
        rel = lanes[done]
        if not len(rel):
            return []
        self.park_kind[rel] = 0
        self.any_parked -= len(rel)
        rpcs, rmasks = self.park_pc[rel], self.park_mask[rel]
        out = []
        for pc in np.unique(rpcs):
            m = rpcs == pc
            L = Lanes.of(rel[m])
            mk = rmasks[m]
            fin = self.finishers.get(int(pc))
            if fin:
                fin(L, mk)
            out.append((int(pc) + 1, L))
        full = bool((rmasks == u4(0xFFFFFFFF)).all())
        self.warp_clock(Lanes.of(rel), full, rmasks)
        return out

    # -- leaving
    def exit(self, L):
        idx = L.idx
        self.dead[idx] = True
        blk = idx // self.P
        self.live_b -= np.bincount(blk, minlength=self.nblk)
        self.live_w -= np.bincount(idx >> 5, minlength=len(self.live_w))
        self.total_live -= L.n
        out = []
        if self.any_parked:
            out += self.warp_release(np.unique(idx >> 5))
            out += self.bar_release(np.unique(blk))
        return out

    def deadlock(self):
        """Nothing can run, yet lanes wait: report, then drop them."""
        lanes = np.nonzero(self.park_kind > 0)[0]
        blk = lanes // self.P
        for b in np.unique(blk)[:4]:
            mine = lanes[blk == b]
            groups = collections.Counter(
                (int(self.park_kind[l]), int(self.park_pc[l])) for l in mine
            )
            desc = "; ".join(
                f"{n} thread(s) at PTX line {self.prog.code[pc].line} ({self.prog.code[pc].text})"
                for (k, pc), n in sorted(groups.items(), key=lambda x: x[0][1])
            )
            kinds = {k for k, _ in groups}
            kind = "barrier-deadlock" if 1 in kinds else "warp-sync-deadlock"
            pc = min(pc for k, pc in groups if k == min(kinds))
            self.find(
                kind,
                self.prog.code[pc],
                mine,
                f"block can never proceed: {desc}; {self.T - int(self.live_b[b])} thread(s) exited",
            )
        self.park_kind[lanes] = 0
        self.any_parked = 0

    # -- scheduler: always the group at the lowest pc, so that lanes reconverge
    def run_chunk(self, L0, entry):
        groups = {entry: [L0]}
        bbs = self.bbs
        fair_at, rr = 0, 0
        patience = 300 if self.prog.may_spin else 20000
        while True:
            if not groups:
                if self.any_parked:
                    self.deadlock()
                return
            if len(groups) == 1:
                fair_at = self.steps
                pc = next(iter(groups))
            elif rr > 0:
                rr -= 1
                pc = next(iter(groups))  # oldest group first
            else:
                pc = min(groups)
                if (
                    self.steps - fair_at > patience
                ):  # somebody may be spinning: let the others go on
                    fair_at, rr = self.steps, 100
            L = merge(groups.pop(pc))
            while True:
                self.steps += 1
                if self.steps > self.step_limit:
                    raise StepLimit(pc, L)
                bb = bbs[pc]
                bb.lanes += L.n
                bb.warps += L.nw
                if self.chains is not None:
                    self.chains.executed(L, bb.n)
                for f in bb.fns:
                    f(L)
                out = bb.term(L)
                if len(out) == 1:
                    pc, L = out[0]
                    if not groups or (
                        rr == 0 and pc < min(groups) and self.steps - fair_at <= patience
                    ):
                        continue
                    g = groups.get(pc)
                    if g is None:
                        groups[pc] = [L]
                    else:
                        g.append(L)
                else:
                    for pc, L in out:
                        groups.setdefault(pc, []).append(L)
                break


class StepLimit(Exception):
    def __init__(self, pc, L):
        self.pc, self.lanes = pc, L
