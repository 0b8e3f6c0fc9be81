"""Module / Function: compile, launch with cupy.RawKernel's call shape, check."""

import struct

import numpy as np

from . import ptx as _ptx
from .compile import compile_cuda
from .interp import Program, launch
from .machine import CONST_BASE, WINDOW, DeviceMemory, KernelError, Report, Segment  # noqa: F401
from .numerics import u1

memory = DeviceMemory()  # one "device" per process


def poison(arr, fill=True):
    """Mark a buffer as never written (filled with 0xFF bytes): reading it in a kernel is an error
    until a kernel wrote it. Returns arr."""
    memory.poison(arr, fill)
    return arr


def empty(shape, dtype=np.float32):
    """A fresh poisoned device buffer."""
    return poison(np.empty(shape, dtype))


def mark_written(arr, where=...):
    memory.mark_written(arr, where)
    return arr


def written(arr):
    """Which elements of a poisoned buffer some kernel has written."""
    return memory.written(arr)


class Offset:
    """Pass the address of `array` moved by nbytes (may point outside: for index arithmetic tests)."""

    def __init__(self, array, nbytes):
        self.array, self.nbytes = array, nbytes


class Module:
    def __init__(
        self,
        source=None,
        arch="compute_80",
        include_dirs=(),
        name_expressions=(),
        options=(),
        defines=None,
        ptx=None,
        filename="kernel.cu",
    ):
        self.lowered, self.log = {}, ""
        if ptx is None:
            ptx, self.lowered, self.log = compile_cuda(
                source, arch, include_dirs, options, name_expressions, defines, filename
            )
        self.ptx = ptx
        self.ptx_module = _ptx.parse(ptx)
        self._programs = {}
        self._const_off, self._globals = {}, {}
        self._setup_vars()

    # -- module variables
    def _setup_vars(self):
        vs = dict(self.ptx_module.vars)
        for f in self.ptx_module.functions.values():
            for v in f.vars:
                if v.space in ("const", "global"):
                    vs.setdefault(v.name, v)
        off = 0
        for v in vs.values():
            if v.space == "const":
                off = -(-off // max(v.align, 16)) * max(v.align, 16)
                self._const_off[v] = off
                off += v.size
            elif v.space == "global":
                seg = memory.add_raw(v.name, v.size)
                self._globals[v] = seg
        self._const = np.zeros(-(-max(off, 1) // 8), np.uint64).view(u1)
        self.const_seg = Segment("const", "const", self._const, 0, nbytes=off, readonly=True)
        byname = {v.name: v for v in vs.values()}
        for v in vs.values():
            if v.init is not None:
                b = bytearray(v.init)
                for o, sym, add, generic in v.relocs:
                    t = byname[sym]
                    a = (
                        self.var_address(t)
                        + add
                        + (CONST_BASE if generic and t.space == "const" else 0)
                    )
                    b[o : o + 8] = struct.pack("<Q", a)
                self._bytes(v)[:] = np.frombuffer(bytes(b), u1)[: v.size]
        self._vars = byname

    def __del__(self):
        for seg in getattr(self, "_globals", {}).values():
            memory.segs.pop(seg.base >> WINDOW, None)

    def _bytes(self, v):
        if v.space == "const":
            o = self._const_off[v]
            return self._const[o : o + v.size]
        return self._globals[v].data

    def var_address(self, v):
        return self._const_off[v] if v.space == "const" else self._globals[v].base

    def get_global(self, name, dtype=np.uint8):
        """Writable view of a __device__ or __constant__ variable."""
        return self._bytes(self._vars[self.lowered.get(name, name)]).view(dtype)

    # -- functions
    def get_function(self, name):
        low = self.lowered.get(name, name)
        fns = self.ptx_module.functions
        if low not in fns or not fns[low].entry:
            cand = [
                n for n, f in fns.items() if f.entry and (n == low or f"{len(name)}{name}" in n)
            ]
            if len(cand) != 1:
                raise KeyError(
                    f"no kernel {name!r}; entries: {[n for n, f in fns.items() if f.entry]}"
                )
            low = cand[0]
        return Function(self, low)


class Function:
    def __init__(self, module, name):
        self.module, self.name = module, name
        if name not in module._programs:
            module._programs[name] = Program(module, name)
        self.prog = module._programs[name]
        self.max_dynamic_shared_size_bytes = 0  # as cupy.RawKernel: needed above 48 KiB

    def _pack(self, args):
        prog = self.prog
        if len(args) != len(prog.entry.params):
            raise TypeError(
                f"{self.name} takes {len(prog.entry.params)} arguments, got {len(args)}"
            )
        out = bytearray(prog.param_size)
        bound = {}
        for k, (p, a) in enumerate(zip(prog.entry.params, args)):
            off = prog.entry_params[p]
            if isinstance(a, Offset):
                arr, extra = a.array, a.nbytes
            else:
                arr, extra = a, 0
            if isinstance(arr, np.ndarray):
                seg, o = memory.segment(arr)
                bound[seg] = memory.root_of(arr)
                raw = struct.pack("<Q", seg.base + o + extra)
            elif a is None:
                raw = bytes(p.size)
            elif isinstance(a, (bytes, bytearray, np.void)):
                raw = a.tobytes() if isinstance(a, np.void) else bytes(a)
            elif isinstance(a, np.generic):
                raw = a.tobytes()
            elif isinstance(a, bool):
                raw = struct.pack("<B", a)
            elif isinstance(a, int):
                if p.type in ("f32", "f64"):
                    raise TypeError(
                        f"argument {k} of {self.name} is a {p.type}: pass a float, not an int"
                    )
                raw = (a & ((1 << 8 * p.size) - 1)).to_bytes(p.size, "little")
                if not -(1 << 8 * p.size - 1) <= a < 1 << 8 * p.size:
                    raise OverflowError(
                        f"argument {k} of {self.name}: {a} does not fit {p.size} bytes"
                    )
            elif isinstance(a, float):
                raw = struct.pack("<d" if p.size == 8 else "<f", a)
            else:
                raise TypeError(f"argument {k} of {self.name}: cannot pass {type(a).__name__}")
            if len(raw) != p.size:
                raise TypeError(
                    f"argument {k} of {self.name} has {len(raw)} bytes, the parameter has {p.size}"
                )
            out[off : off + p.size] = raw
        return bytes(out), bound

    def __call__(
        self,
        grid,
        block,
        args,
        shared_mem=0,
        check="raise",
        races=True,
        counters=True,
        keep=(),
        **opts,
    ):
        """Run the kernel; returns a Report. check: 'raise' or 'report'. keep: further arrays
        the kernel may reach through pointers stored in memory. opts: see interp.launch."""
        three = lambda x: (
            tuple(int(v) for v in ((x,) if np.isscalar(x) else tuple(x)))
            + (1,) * (3 - (1 if np.isscalar(x) else len(x)))
        )
        params, bound = self._pack(args)
        for arr in keep:
            bound[memory.segment(arr)[0]] = memory.root_of(arr)
        for seg, root in bound.items():
            memory.bind(seg, root)
        try:
            rep = launch(
                self.prog,
                three(grid),
                three(block),
                params,
                int(shared_mem),
                memory,
                self.module.const_seg,
                check_race=races,
                count=counters,
                smem_opt_in=self.max_dynamic_shared_size_bytes,
                **opts,
            )
        finally:
            for seg in bound:
                memory.unbind(seg)
        if check == "raise" and rep.errors:
            raise KernelError(rep)
        return rep


def address_of(arr):
    """Virtual device address of an array (to build structs or pointer tables); pass the array in `keep` too."""
    seg, o = memory.segment(arr)
    return seg.base + o


def allocation_at(address):
    """The whole allocation that holds a virtual device address, and the offset in bytes there."""
    seg = memory.segs[address >> WINDOW]
    return seg.root(), address - seg.base


def array_at(address, shape, dtype, strides):
    """The array at a virtual device address; its base is that of the allocation."""
    root, offset = allocation_at(address)
    flat = (root if root.flags.c_contiguous else root.T).reshape(-1).view(u1)
    return np.ndarray(shape, dtype, flat, offset, strides)
