"""Programs (one entry and what it calls) and kernel launches."""

import copy
import time

import numpy as np

from .chains import Chains
from .decode import TERMINATORS, Decoder
from .machine import Machine, Report, Segment, StepLimit
from .numerics import u1
from .ptx import WIDTH, Addr, Instr, Sym, Var, Vec

SMEM_LIMIT = {
    "sm_75": 65536,
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_87": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
}
SHARED_GAP = 256  # unallocated bytes between shared variables (guard zones)


def _align(n, a):
    return -(-n // a) * a


def _vars_in(args):
    for a in args:
        if isinstance(a, (list, tuple)):
            yield from _vars_in(a)
        elif isinstance(a, Vec):
            yield from _vars_in(a.items)
        elif isinstance(a, Sym) and isinstance(a.target, Var):
            yield a.target
        elif isinstance(a, Addr) and isinstance(a.base, Var):
            yield a.base


CLASSES = (
    "fp32",
    "fp64",
    "fp16",
    "special",
    "int",
    "cvt",
    "mov",
    "ld.global",
    "st.global",
    "ld.shared",
    "st.shared",
    "ld.other",
    "st.other",
    "atomic",
    "warp",
    "barrier",
    "control",
    "tensor",
    "other",
)


def classify(ins):
    op, mods = ins.op, ins.mods
    t = mods[-1] if mods else ""
    if op in ("ld", "ldu", "st"):
        sp = next(
            (
                m.split("::")[0]
                for m in mods
                if m.split("::")[0] in ("global", "shared", "local", "const", "param")
            ),
            "global",
        )
        return (
            ("st" if op == "st" else "ld") + "." + (sp if sp in ("global", "shared") else "other")
        )
    if op in ("atom", "red"):
        return "atomic"
    if op in ("shfl", "vote", "match", "redux", "elect", "activemask"):
        return "warp"
    if op in ("bar", "barrier"):
        return "warp" if "warp" in mods else "barrier"
    if op in ("bra", "brx", "call", "ret", "exit", "trap"):
        return "control"
    if op in ("mma", "ldmatrix"):
        return "tensor"
    if op in ("ex2", "lg2", "sin", "cos", "rcp", "rsqrt", "sqrt", "tanh"):
        return "special"
    if op in ("cvt", "cvta"):
        return "cvt"
    if op == "mov":
        return "mov"
    if op == "cp":
        return "ld.global"
    if t in ("f32",):
        return "fp32"
    if t == "f64":
        return "fp64"
    if t in ("f16", "f16x2", "bf16", "bf16x2"):
        return "fp16"
    if t in WIDTH:
        return "int"
    return "other"


class Block:
    __slots__ = ("classes", "fns", "lanes", "n", "term", "warps")

    def __init__(self):
        self.fns, self.term, self.lanes, self.warps, self.classes, self.n = [], None, 0, 0, {}, 0


# Those used last, of all programs: each takes some 15 MB.
_MACHINES, _MOST_MACHINES = {}, 100


class Program:
    """An entry function laid out with its callees (callees first, so that they run first)."""

    def __init__(self, module, name):
        self.module, self.mod, self.name = module, module.ptx_module, name
        self.files = self.mod.files
        entry = self.mod.functions[name]
        order, state = [], {}

        def visit(f, chain):
            if state.get(f.name) == 1:
                raise NotImplementedError(f"recursion: {' -> '.join(chain + [f.name])}")
            if f.name in state:
                return
            state[f.name] = 1
            for c in sorted(f.calls):
                g = self.mod.functions.get(c)
                if g is not None and not g.extern:
                    visit(g, chain + [f.name])
            state[f.name] = 2
            order.append(f)

        visit(entry, [])
        self.code, self.start, self.owner = [], {}, []
        for f in order:
            self.start[f.name] = len(self.code)
            for ins in list(f.body) + [
                Instr("ret", (), [], line=f.body[-1].line if f.body else 0, text="(end)")
            ]:
                c = copy.copy(ins)
                c.pc = len(self.code)
                self.code.append(c)
                self.owner.append(f)
        self.entry = entry
        self.functions = order
        self._layout()

    def target(self, ins, k):
        return self.start[self.owner[ins.pc].name] + ins.targets[k]

    def table(self, ins):
        f = self.owner[ins.pc]
        return [self.start[f.name] + t for t in f.tables[ins.args[1].name]]

    def _layout(self):
        used = []
        for ins in self.code:
            for v in _vars_in(ins.args):
                if v not in used:
                    used.append(v)
        for f in self.functions:
            used += [v for v in f.vars if v.space in ("local", "shared") and v not in used]
        self.addr = {}
        off = 0
        self.shared_vars = []
        for v in used:
            if v.space == "shared" and not v.extern:
                off = _align(off, max(v.align, 16))
                self.addr[v] = off
                self.shared_vars.append((off, v.size))
                off += _align(v.size, 16) + SHARED_GAP
        self.smem_size = sum(_align(s, 16) for _, s in self.shared_vars)
        self.dyn_start = _align(off, 128)
        for v in used:
            if v.space == "shared" and v.extern:
                self.addr[v] = self.dyn_start
        off = 0
        for v in used:
            if v.space == "local":
                off = _align(off, v.align)
                self.addr[v] = off
                off += v.size
        self.local_size = _align(off, 16)
        self.entry_params = {}
        off = 0
        for p in self.entry.params:
            off = _align(off, p.align)
            self.entry_params[p] = off
            self.addr[p] = off
            off += p.size
        self.param_size = off
        for v in used:
            if v.space in ("global", "const"):
                self.addr[v] = self.module.var_address(v)
        # cell widths of the race check, and whether blocks may synchronise with each other
        sh = gl = 16
        self.uses_sync = self.may_spin = False
        for ins in self.code:
            if ins.op in ("ld", "atom") and set(ins.mods) & {
                "volatile",
                "relaxed",
                "acquire",
                "mmio",
                "cas",
                "exch",
            }:
                self.may_spin = True
            spaces = {m.split("::")[0] for m in ins.mods}
            if ins.op in ("ld", "ldu", "st", "atom", "red") and ins.mods:
                w = WIDTH.get(ins.mods[-1], 1)
                if not spaces & {"local", "const", "param", "global"}:
                    sh = min(sh, w)
                if not spaces & {"local", "const", "param", "shared"}:
                    gl = min(gl, w)
            elif ins.op == "cp" and len(ins.args) >= 3:
                sh = gl = 1 if len(ins.args) > 3 else min(sh, gl, ins.args[2].value)
            if ins.op in ("atom", "red") and "shared" not in spaces:
                self.uses_sync = True
            if ins.op in ("membar", "fence") and spaces & {"gl", "gpu", "sys"}:
                self.uses_sync = True
            if (
                ins.op in ("ld", "st")
                and "shared" not in spaces
                and spaces & {"relaxed", "acquire", "release", "volatile", "mmio"}
                and not spaces & {"cta"}
            ):
                self.uses_sync = True
        self.shared_cell = sh.bit_length() - 1
        self.global_cell = gl.bit_length() - 1

    def address(self, v):
        if v not in self.addr:
            raise NotImplementedError(f"address of {v.space} variable {v.name}")
        return self.addr[v]

    def machine(self, cap, latencies=None):
        key = self, cap, repr(latencies)
        m = _MACHINES.pop(key, None)
        if m is None:
            m = Machine(self, cap)
            m.chains = latencies and Chains(m, latencies)
            self._decode(m)
            while len(_MACHINES) >= _MOST_MACHINES:
                _MACHINES.pop(next(iter(_MACHINES)))
        _MACHINES[key] = m
        return m

    def _decode(self, m):
        dec = m.decoder = Decoder(m)
        leaders = set(self.start.values())
        for ins in self.code:
            if ins.op == "brx":
                leaders.update(self.table(ins))
            elif ins.targets:
                leaders.update(self.target(ins, k) for k in range(len(ins.targets)))
            if ins.op in TERMINATORS or ins.op == "barrier":
                leaders.add(ins.pc + 1)
        m.bbs = [None] * (len(self.code) + 1)
        bb = None
        for ins in self.code:
            if ins.pc in leaders or bb is None:
                if bb is not None:
                    bb.term = _go(ins.pc)
                bb = m.bbs[ins.pc] = Block()
            if ins.text != "(end)":
                k = classify(ins)
                bb.classes[k] = bb.classes.get(k, 0) + 1
                bb.n += 1
            if ins.op in TERMINATORS or ins.op == "barrier":
                bb.term = dec.term(ins)
                bb = None
            else:
                bb.fns.append(dec.decode(ins))


def _go(pc):
    return lambda L: [(pc, L)]


class _MemStats(dict):
    def __missing__(self, pc):
        s = self[pc] = [0, 0, 0, 0]
        return s


class Launch:
    """Launch-wide state handed to the machine."""


def launch(
    prog,
    grid,
    block,
    params,
    dyn,
    memory,
    const_seg,
    max_lanes=16384,
    check_race=True,
    count=True,
    step_limit=20_000_000,
    allow_exited_barrier=False,
    num_sms=108,
    smem_limit=None,
    smem_opt_in=0,
    block_order=None,
    latencies=None,
):
    t0 = time.perf_counter()
    T = block[0] * block[1] * block[2]
    nblocks = grid[0] * grid[1] * grid[2]
    rep = Report(prog.name)
    if not 0 < T <= 1024 or block[2] > 64 or min(block) < 1:
        raise ValueError(f"invalid block shape {block}")
    if min(grid) < 1 or grid[1] > 65535 or grid[2] > 65535 or grid[0] > 2**31 - 1:
        raise ValueError(f"invalid grid shape {grid}")
    req = prog.entry.directives.get(".reqntid")
    if req and int(np.prod(req)) != T:
        raise ValueError(f"block of {T} threads, but the kernel requires {req}")
    mx = prog.entry.directives.get(".maxntid")
    if mx and int(np.prod(mx)) < T:
        raise ValueError(f"block of {T} threads exceeds __launch_bounds__ {mx}")
    total = prog.smem_size + dyn
    limit = smem_limit or SMEM_LIMIT.get(prog.mod.target.rstrip("af"), 232448)
    if total > limit:
        raise ValueError(
            f"{total} bytes of shared memory per block exceed {limit} ({prog.mod.target})"
        )
    P = _align(T, 32)
    st = Launch()
    st.mem, st.report, st.findings = memory, rep, {}
    st.grid, st.block, st.dyn, st.num_sms = grid, block, dyn, num_sms
    st.check_race, st.count, st.allow_exited_barrier = check_race, count, allow_exited_barrier
    st.raced, st.mem_stats = [], _MemStats()
    st.shared_size = prog.dyn_start + dyn
    tmpl = np.zeros(_align(st.shared_size, 128) + 128, u1)
    for off, size in prog.shared_vars:
        tmpl[off : off + size] = 1
    tmpl[prog.dyn_start : prog.dyn_start + dyn] = 1
    st.shared_template = tmpl
    per = max(1, max_lanes // P)
    per = max(1, min(per, nblocks, (256 << 20) // (len(tmpl) * 40)))
    # Of few sizes, as the code is decoded anew for each.
    room = 1
    while room < per:
        room *= 4
    m = prog.machine(max(per, min(room, max_lanes // P)) * P, latencies)
    m.setup(st)
    if m.chains is not None:
        m.chains.start_launch()
    m.param = Segment(
        "param",
        "param",
        np.frombuffer(bytearray(params.ljust(prog.param_size + 16, b"\0")), u1),
        0,
        nbytes=prog.param_size,
    )
    m.const = const_seg
    for bb in m.bbs:
        if bb is not None:
            bb.lanes = bb.warps = 0
    m.steps, m.step_limit = 0, step_limit
    if total > 49152 and smem_opt_in < dyn:
        m.find(
            "smem-opt-in",
            None,
            (),
            f"{total} bytes of shared memory per block need the attribute "
            "max_dynamic_shared_size_bytes on hardware",
            "warning",
        )
    order = None if block_order is None else np.random.default_rng(block_order).permutation(nblocks)
    try:
        with np.errstate(all="ignore"):
            for first in range(0, nblocks, per):
                numbers = np.arange(first, min(first + per, nblocks))
                L0 = m.start_chunk(numbers if order is None else order[numbers])
                m.run_chunk(L0, prog.start[prog.name])
    except StepLimit as e:
        m.find(
            "step-limit",
            prog.code[e.pc],
            e.lanes.idx,
            f"more than {step_limit} scheduler steps: an endless loop?",
        )
    finally:
        for seg in st.raced:
            seg.race = None
    _counters(rep, prog, m, st)
    if m.chains is not None:
        rep.counters.update(m.chains.finish())
    m.shared = m.local = m.const = m.param = None
    rep.seconds = time.perf_counter() - t0
    return rep


def _counters(rep, prog, m, st):
    lane, warp = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for bb in m.bbs:
        if bb is not None and bb.lanes:
            for k, n in bb.classes.items():
                lane[k] += n * bb.lanes
                warp[k] += n * bb.warps
    c = rep.counters
    c["lane_instructions"] = {k: v for k, v in lane.items() if v}
    c["warp_instructions"] = {k: v for k, v in warp.items() if v}
    c["lane_instructions_total"] = sum(lane.values())
    c["warp_instructions_total"] = sum(warp.values())
    c["shared_bytes_per_block"] = prog.smem_size + st.dyn
    tot = {}
    for pc, (req, nbytes, units, ideal) in sorted(st.mem_stats.items()):
        ins = prog.code[pc]
        kind = "atomic" if ins.op in ("atom", "red") else "store" if ins.op == "st" else "load"
        loc = f"{prog.files.get(ins.loc[0], '?')}:{ins.loc[1]}" if ins.loc else ""
        row = {
            "ptx_line": ins.line,
            "text": ins.text,
            "source": loc,
            "kind": kind,
            "requests": req,
            "bytes": nbytes,
        }
        if ideal:
            row.update(space="shared", wavefronts=units, ideal=ideal, conflicts=units - ideal)
            for k in ("wavefronts", "conflicts"):
                tot["shared_" + k] = tot.get("shared_" + k, 0) + row[k]
            tot[f"shared_{kind}_bytes"] = tot.get(f"shared_{kind}_bytes", 0) + nbytes
        else:
            row.update(
                space="global",
                sectors=units,
                efficiency=round(nbytes / (32 * units), 4) if units else 0,
            )
            for k, v in (("bytes", nbytes), ("sectors", units), ("requests", req)):
                tot[f"global_{kind}_{k}"] = tot.get(f"global_{kind}_{k}", 0) + v
        rep.memory.append(row)
    for kind in ("load", "store"):
        s = tot.get(f"global_{kind}_sectors")
        if s:
            tot[f"global_{kind}_efficiency"] = round(tot[f"global_{kind}_bytes"] / (32 * s), 4)
    c.update(tot)
