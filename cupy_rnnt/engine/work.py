"""What the passes and the selection share: the batch of a call, its plan, workers and buffers, and
its goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ..batch import Batch
from ..ops import Operations
from ..ops.types import DeviceArray, HostArray, Tile
from ..options import Options
from .plan import Group, Plan, Tiles
from .sources import Source


class Lengths(NamedTuple):
    """Lengths of consecutive samples, (n,) each, on the host."""

    first: int  # the packed index of their first cell
    frames: HostArray
    positions: HostArray  # S = U + 1
    fewest_arcs: HostArray  # of a path
    most_arcs: HostArray
    cells: HostArray  # those that exist

    @property
    def extents(self) -> HostArray:
        """Cells with those outside the band, (n,)."""
        extents: HostArray = self.frames * self.positions
        return extents


class Goal(Protocol):
    """What is to be proven of the cells that are not computed."""

    def lattice(self, ops: Operations, bounded: bool) -> Callable[..., Any]:
        """The operation that makes a lattice, exact or bounded."""

    def first(self, lengths: Lengths) -> HostArray:
        """The least share of the upper bound of all paths that a cell must hold to be computed in
        the first round: logarithms, (n,)."""

    def proof(
        self, lattice: Any, computed: HostArray, lengths: Lengths, rounds: int
    ) -> tuple[HostArray, HostArray]:
        """Certificates, (n,), when so many cells of each sample are exact; and the least share for
        the next round, inf where no round is needed."""


class Work:
    """The batch of one call, its plan, its workers and their buffers."""

    def __init__(self, source: Source, batch: Batch, options: Options, plan: Plan) -> None:
        self.source, self.batch, self.options, self.plan = source, batch, options, plan
        self._workers = source.ops.start_workers(plan.workers)
        self.scratch = [source.scratch(plan.rows) for _ in range(plan.workers)]
        self._last: tuple[Group, Lengths] | None = None

    def lengths(self, group: Group) -> Lengths:
        last = self._last  # each step of a group asks for them
        if last is None or last[0] != group:
            last = self._last = group, self._lengths_of(group)
        return last[1]

    def _lengths_of(self, group: Group) -> Lengths:
        samples = slice(group.start, group.stop)
        frames, positions = self.batch.frames[samples], self.batch.positions[samples]
        arcs = self.plan.transducer.topology.path_arcs(frames, positions - 1)
        cells = self.batch.counts(group.start, group.stop)
        return Lengths(int(self.batch.offsets[group.start]), frames, positions, *arcs, cells)

    def cells(self, group: Group) -> DeviceArray:
        """Packed indices of the cells of a group."""
        ops, band = self.source.ops, self.batch.band
        if band is None:
            run = self.batch.run(group.start, group.stop)
            return ops.xp.arange(run.start, run.stop)
        samples = slice(group.start, group.stop)
        first, positions = self.batch.offsets[:-1][samples], self.batch.positions[samples]
        return ops.asarray(band.packed(samples, first, positions))

    def run(
        self,
        tile: Callable[[int, Tile], None],
        count: int,
        stored: int = 0,
        fixed: bool = False,
        report: Callable[[Tile], None] | None = None,
    ) -> None:
        """Run tiles over `count` entries. Logits of the first `stored` are in memory; no tile mixes
        them with the rest."""
        rows, workers = self.plan.rows, self.plan.workers
        self._workers.run(tile, Tiles(stored, rows, workers), fixed, report)
        self._workers.run(tile, Tiles(count - stored, rows, workers, stored), fixed, report)


class LatticeWork(Work):
    """Work whose lattices are solved, with a goal."""

    def __init__(
        self, source: Source, batch: Batch, options: Options, plan: Plan, goal: Goal
    ) -> None:
        super().__init__(source, batch, options, plan)
        self.goal = goal

    def lattice(self, group: Group, bounded: bool = False) -> Any:
        """The lattice of a group."""
        source = self.source
        samples = source.samples.run(group.start, group.stop)
        form = self.plan.gradient, self.options.delay_penalty, source.dtype
        make = self.goal.lattice(source.ops, bounded)
        return make(self.plan.transducer, samples, *form)

    def leave_out(self, lattice: Any, group: Group) -> None:
        """Tell the lattice of a group which cells are outside the band."""
        band, samples = self.batch.band, slice(group.start, group.stop)
        if band is not None:
            lattice.leave_out(band.first[samples], band.stop[samples])
