"""Chains of instructions of which each needs the one before: what no number of threads shortens.

A register carries the length of the longest chain that made it, in instructions and in cycles of
some machines, a cell of memory that of the store that filled it. A chain goes on

- from the operands of an instruction to its results, and from a store to the loads of its cells;
- from a branch to all behind it: a GPU does not guess where a branch goes;
- from the lanes of a warp that shuffle or vote to all of them;
- through a barrier, from whatever a thread of the block has branched on or stored to all behind.
  A load that is under way does not hold up a barrier.

Nothing else is waited for: each unit is free, lanes of a warp run on their own, caches do not miss.
The order is that of the PTX, though an assembler may move instructions over branches and barriers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from .ptx import Addr, Instr, Not, Pair, Reg, Var, Vec

LATENCIES = (
    *("integer", "float32", "float64", "special", "shared", "global", "store", "shuffle"),
    *("barrier", "barrier_warp"),
)
"""What cycles are given for. A barrier takes `barrier`, and `barrier_warp` for each warp."""

_FREE = {"mov", "cvta"}  # an assembler renames registers
_BITS = {"selp", "neg", "abs", "copysign", "testp", "and", "or", "xor", "not"}
_SPECIAL = {"ex2", "lg2", "sin", "cos", "rcp", "rsqrt", "sqrt", "tanh", "div"}
_WARP = {"shfl", "vote", "match", "redux", "elect", "activemask"}
_NO_RESULT = {"st", "red", "membar", "fence", "prefetch", "prefetchu"}
_CELL = 2  # the binary logarithm of the bytes of a cell
_STEPS_OF_DIVISION = 10  # multiply-adds of float64 in a row, of a quotient and a root


def cycles(ins: Instr, of: Mapping[str, float]) -> float:
    """From an instruction to one that needs its result."""
    op, mods = ins.op, ins.mods
    spaces = {mod.split("::")[0] for mod in mods}
    double = "f64" in mods
    if op in _FREE:
        return 0
    if op in ("st", "red"):
        return of["store"]
    if op in ("ld", "ldu", "atom"):
        if spaces & {"param", "const"}:
            return of["integer"]
        return of["shared" if "shared" in spaces else "global"]
    if op in _WARP:
        return of["shuffle"]
    if op in ("mma", "ldmatrix", "cp"):
        raise NotImplementedError(f"no latency of {ins.text}")
    if op in _BITS:
        return of["integer"]
    if op in _SPECIAL:
        if double and "approx" not in mods:
            return _STEPS_OF_DIVISION * of["float64"]
        return of["special"] + (of["float32"] if op == "div" else 0)
    if double:
        return of["float64"] + (of["integer"] if op in ("min", "max") else 0)
    if mods and mods[-1] in ("f32", "f16", "bf16", "f16x2", "bf16x2"):
        return of["float32"]
    wide = bool(mods) and mods[-1] in ("s64", "u64", "b64")  # halves, one behind the other
    return of["integer"] * (2 if wide else 1)


def _registers(operand: Any) -> Iterator[Any]:
    """In it; variables of the space of parameters are registers, too."""
    if isinstance(operand, Reg):
        yield operand
    elif isinstance(operand, Not):
        yield operand.reg
    elif isinstance(operand, Addr):
        if isinstance(operand.base, Reg) or getattr(operand.base, "space", "") == "param":
            yield operand.base
    elif isinstance(operand, Vec):
        for item in operand.items:
            yield from _registers(item)
    elif isinstance(operand, Pair):
        yield from _registers(operand.a)
        yield from _registers(operand.b)
    elif isinstance(operand, Var) and operand.space == "param":
        yield operand


def _operands(ins: Instr) -> tuple[list[Any], list[Any]]:
    """Registers that an instruction reads, its guard apart, and those that it writes."""
    to_parameter = ins.op == "st" and "param" in ins.mods
    first = 0 if ins.op in _NO_RESULT and not to_parameter else 1
    written = [each for operand in ins.args[:first] for each in _registers(operand)]
    read = [each for operand in ins.args[first:] for each in _registers(operand)]
    written += ["carry"] * ("cc" in ins.mods)
    read += ["carry"] * (ins.op in ("addc", "subc", "madc"))
    return read, written


class Chains:
    """Of the lanes of a machine, by tables of latencies with names. Arrays have a row for
    instructions, and a row for the cycles of each table."""

    def __init__(self, machine: Any, latencies: Mapping[str, Mapping[str, float]]) -> None:
        self._machine, self._latencies = machine, latencies
        self._rows = 1 + len(latencies)
        self._lengths: dict[Any, np.ndarray] = {}  # by register
        self._front, self._stored = self._length("front"), self._length("stored")
        self._passing = self._length("passing")  # of the instruction that runs
        self._executed = np.zeros(machine.cap, np.int64)
        self._memory: list[Any] = []

    def start_launch(self) -> None:
        self._most, self._longest = 0, np.zeros(self._rows)
        self._executed[:] = 0

    def start_chunk(self) -> None:
        self._end_chunk()
        for length in self._lengths.values():
            length[:] = 0
        self._executed[:] = 0

    def finish(self) -> dict[str, Any]:
        """Counters of the launch."""
        self._end_chunk()
        for segment in self._memory:
            segment.chains = None
        self._memory.clear()
        instructions, *cycles_of = self._longest.tolist()
        return {
            "thread_instructions": self._most,
            "chain_instructions": int(instructions),
            "chain_cycles": dict(zip(self._latencies, cycles_of, strict=True)),
        }

    def _end_chunk(self) -> None:
        self._most = max(self._most, int(self._executed.max()))

    def _length(self, register: Any) -> np.ndarray:
        return self._lengths.setdefault(register, np.zeros((self._rows, self._machine.cap)))

    def _step(self, cycles_of: Callable[[Mapping[str, float]], float]) -> np.ndarray:
        """What an instruction adds."""
        return np.array([[1.0], *([cycles_of(table)] for table in self._latencies.values())])

    def _latest(self, ix: Any, lengths: list[np.ndarray]) -> np.ndarray:
        latest = np.array(self._front[:, ix])
        for length in lengths:
            np.maximum(latest, length[:, ix], out=latest)
        return latest

    def _write(self, ix: Any, lengths: list[np.ndarray], value: np.ndarray) -> None:
        for length in lengths:
            length[:, ix] = value
        np.maximum(self._longest, value.max(axis=1, initial=0), out=self._longest)

    def executed(self, lanes: Any, instructions: int) -> None:
        self._executed[lanes.ix] += instructions

    # Memory, while an instruction runs

    def load(self, segment: Any, offsets: np.ndarray, size: int, lanes: Any) -> None:
        if segment.chains is not None:
            for cell in self._cells(offsets, size):
                np.maximum.at(self._passing, (slice(None), lanes.idx), segment.chains[:, cell])

    def store(self, segment: Any, offsets: np.ndarray, size: int, lanes: Any) -> None:
        if segment.chains is None:
            segment.chains = np.zeros((self._rows, (len(segment.data) >> _CELL) + 1))
            self._memory.append(segment)
        step = self._step(itemgetter("store"))
        for cell in self._cells(offsets, size):
            segment.chains[:, cell] = self._passing[:, lanes.ix] + step

    @staticmethod
    def _cells(offsets: np.ndarray, size: int) -> Iterator[np.ndarray]:
        for byte in range(0, size, 1 << _CELL):
            yield (offsets + byte) >> _CELL

    # Instructions, as functions of lanes, with the chains that they lengthen

    def tracking(self, ins: Instr, run: Callable[[Any], None]) -> Callable[[Any], None]:
        """Of any that neither ends a block nor waits for other lanes, behind its guard."""
        read, written = _operands(ins)
        sources, targets = ([self._length(each) for each in some] for some in (read, written))
        if ins.pred is not None:
            sources.append(self._length(ins.pred))
        if ins.op in ("st", "red") and not targets:
            targets.append(self._stored)
        step, passing = self._step(partial(cycles, ins)), self._passing

        def tracked(lanes: Any) -> None:
            ix = lanes.ix
            passing[:, ix] = self._latest(ix, sources)
            run(lanes)
            self._write(ix, targets, passing[:, ix] + step)

        return tracked

    def branching(self, ins: Instr, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Of one that ends a block: what is behind it waits for its guard and operands."""
        registers = [] if ins.pred is None else [ins.pred]
        if ins.op == "brx":
            registers += _registers(ins.args[0])
        elif ins.op == "call":
            registers += ins.args[2]
        elif ins.op == "ret":
            registers += self._machine.prog.owner[ins.pc].rets
        elif ins.op in ("bar", "barrier"):
            registers += [each for operand in ins.args for each in _registers(operand)]
        if not registers:
            return run
        sources = [self._length(register) for register in registers]
        step = self._step(itemgetter("integer"))

        def tracked(lanes: Any) -> Any:
            self._write(lanes.ix, [self._front], self._latest(lanes.ix, sources) + step)
            return run(lanes)

        return tracked

    def joining(self, ins: Instr, run: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """Of one for which the lanes of a warp wait for each other."""
        if ins.op in ("bar", "barrier"):
            sources, targets = [self._stored], [self._front]
            step = self._step(itemgetter("integer"))
        else:
            read, written = _operands(ins)
            sources, targets = ([self._length(each) for each in some] for some in (read, written))
            step = self._step(partial(cycles, ins))

        def tracked(lanes: Any, masks: Any) -> None:
            run(lanes, masks)
            latest, warp = self._latest(lanes.ix, sources), lanes.idx >> 5
            longest = np.zeros((self._rows, (self._machine.cap >> 5) + 1))
            np.maximum.at(longest, (slice(None), warp), latest)
            self._write(lanes.ix, targets, longest[:, warp] + step)

        return tracked

    def meet(self, blocks: np.ndarray) -> None:
        """At a barrier that all threads of these blocks have reached."""
        machine, shape = self._machine, (self._rows, -1, self._machine.P)
        latest = np.where(machine.dead, 0, np.maximum(self._front, self._stored))
        latest = latest.reshape(shape)[:, blocks].max(axis=2)
        warps = machine.P // 32
        latest += self._step(lambda of: of["barrier"] + warps * of["barrier_warp"])
        self._front.reshape(shape)[:, blocks] = latest[:, :, None]
        np.maximum(self._longest, latest.max(axis=1), out=self._longest)
