"""The sample-wise engine: two passes over lists of cells, a tile at a time, in a fixed workspace.

    for group in plan:
        select                       # the cells that can matter: by bounds, or all
        for tile of selected cells:  # pass 1: the scores of each cell
        certify                      # that the other cells do not matter, or select more
        lattice                      # costs and occupancies of all samples of the group
        keep                         # the cells whose gradient matters
        for tile of kept cells:      # pass 2: their gradient

It differs from Braun, McDermott and Hsiao (arXiv 2211.16270) in two ways. A tile is a run of cells,
not a sample, so nothing is padded. Both passes leave out cells without posterior mass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..batch import Batch
from ..dlpack import exported
from ..ops import operations_for
from ..ops.types import DeviceArray, HostArray, Tile
from ..options import Options
from ..quiet import quiet
from ..results import Info, reduced
from .passes import Passes, Solved
from .plan import Plan, make_plan
from .selection import LikeliestPath, Mass
from .sources import Kept, Source
from .work import Goal


@dataclass
class Result:
    """What :func:`scan` returns."""

    batch: Batch
    options: Options
    dtype: np.dtype  # of the arithmetic and of the loss
    plan: Plan
    costs: DeviceArray  # float64, (B,)
    certificate: HostArray  # float64, (B,)
    computed_count: int = 0
    kept_count: int = 0
    rounds: int = 1

    def add(self, solved: Solved) -> None:
        """Copy the costs and certificates of a part, and count its cells and rounds."""
        samples = slice(solved.group.start, solved.group.stop)
        costs = self.costs[samples]
        costs[...] = solved.costs
        if self.options.zero_infinity:
            costs[~(abs(costs) < np.inf)] = 0.0
        self.certificate[samples] = solved.certificate
        self.computed_count += solved.computed
        self.rounds = max(self.rounds, solved.rounds)

    def loss(self) -> Any:
        labels = self.batch.label_counts
        return reduced(self.costs, self.options.reduction, labels, self.dtype)

    def info(self) -> Info:
        return Info(
            cells=self.batch.cell_count,
            computed=self.computed_count,
            kept=self.kept_count,
            certificate=operations_for(self.costs).asarray(self.certificate),
            rounds=self.rounds,
            workspace_bytes=self.plan.workspace_bytes,
        )


class ReadOut(Protocol):
    """What :func:`scan` reads from the lattices it solves."""

    gradient: bool
    """Whether it reads occupancies, and not only costs."""
    store: bool
    """Whether it can use logits that pass 1 stored."""
    passes: int
    """Passes over the cells, which progress counts."""

    def reading(self, passes: Passes) -> AbstractContextManager[Callable[[Solved], int]]:
        """A function that reads the lattices of a part and returns how many cells it kept."""


class Costs:
    """Nothing but the costs."""

    gradient, store, passes = False, False, 1

    @contextmanager
    def reading(self, passes: Passes) -> Iterator[Callable[[Solved], int]]:
        yield lambda solved: 0


class KeptCells:
    """Collects the kept cells of the batch, for a later :func:`backward`."""

    gradient, store, passes = True, False, 1

    def __init__(self) -> None:
        self.parts: list[Kept] = []  # in packed order

    @contextmanager
    def reading(self, passes: Passes) -> Iterator[Callable[[Solved], int]]:
        def read(solved: Solved) -> int:
            self.parts.append(solved.kept())
            return len(self.parts[-1].packed)

        yield read


class Gradients:
    """Runs pass 2 on each part at once, with weights of the costs, and reuses logits of pass 1 as
    far as the workspace holds them."""

    gradient, store, passes = True, True, 2

    def __init__(self, weights: HostArray) -> None:
        self._weights = weights

    @contextmanager
    def reading(self, passes: Passes) -> Iterator[Callable[[Solved], int]]:
        with passes.sums(passes.source.ops.asarray(self._weights)) as sums:

            def read(solved: Solved) -> int:
                packed, rows, stored = passes.stored.in_front(solved.kept_cells())
                kept = solved.posteriors(packed)
                passes.second(sums, solved.group, kept, rows, stored)
                return len(packed)

            yield read


class DenseOccupancies:
    """Writes occupancies of all scores to an array (B, T, U + 1, K), 0 where no cell is kept."""

    gradient, store, passes = True, False, 1

    def __init__(self, extents: tuple[int, int, int]) -> None:
        self._extents = extents

    @contextmanager
    def reading(self, passes: Passes) -> Iterator[Callable[[Solved], int]]:
        source, ops = passes.source, passes.source.ops
        self.dense = ops.zeros((*self._extents, len(source.row.columns)), source.dtype)

        def read(solved: Solved) -> int:
            kept = solved.kept()

            def tile(worker: int, part: Tile) -> None:
                rows = kept.part(slice(*part))
                cells = source.cells_of(rows.packed)
                index = cells.sample, cells.frame, cells.position
                ops.scatter(ops.xp.ascontiguousarray(rows.occupancies.T), index, self.dense)

            passes.run(tile, len(kept.packed))
            return len(kept.packed)

        yield read


class LikeliestPaths:
    """Collects the likeliest path of each sample: the frame of each label, and the frames of its
    arc, int64 (B, U), -1 where there is none. The costs are those of these paths."""

    gradient, store, passes = True, False, 1  # their lattices take as much memory as with gradients

    @contextmanager
    def reading(self, passes: Passes) -> Iterator[Callable[[Solved], int]]:
        shape = passes.batch.size, passes.batch.most_labels
        self.frames, self.durations = (passes.source.ops.result(shape, np.int64) for _ in range(2))
        self.frames.fill(-1)
        self.durations.fill(-1)

        def read(solved: Solved) -> int:
            frames, durations = solved.path()
            index = slice(solved.group.start, solved.group.stop), slice(frames.shape[1])
            self.frames[index], self.durations[index] = frames, durations
            return 0

        yield read


@quiet
def scan(
    source: Source, batch: Batch, options: Options, read_out: ReadOut, goal: Goal | None = None
) -> Result:
    """Solve the lattices of a batch, part by part, and let `read_out` read each part."""
    plan = make_plan(source, batch, options, read_out.gradient, read_out.store)
    costs, certificate = source.ops.empty((batch.size,), np.float64), np.empty(batch.size)
    result = Result(batch, options, source.dtype, plan, costs, certificate)
    with (
        _running(source, batch, options, plan, read_out.passes, goal) as passes,
        read_out.reading(passes) as read,
    ):
        for part in passes.parts():
            solved = passes.first(part)
            result.add(solved)
            result.kept_count += read(solved)
    return result


def run(source: Source, batch: Batch, options: Options, weights: HostArray | None = None) -> Result:
    """Compute the costs and, if their weights are not None, the gradient too."""
    return scan(source, batch, options, Costs() if weights is None else Gradients(weights))


def likeliest_paths(
    source: Source, batch: Batch, options: Options
) -> tuple[Result, LikeliestPaths]:
    """The likeliest path of each sample."""
    read_out = LikeliestPaths()
    return scan(source, batch, options, read_out, LikeliestPath()), read_out


@quiet
def backward(
    source: Source, batch: Batch, options: Options, kept: Kept, weights: DeviceArray
) -> None:
    """Run pass 2 over the kept cells of a batch, once the cost weights (B,) are known."""
    ops = source.ops
    plan = make_plan(source, batch, options, gradient=True, store=False)
    stops = ops.asarray(batch.offsets[[group.stop for group in plan.groups]])
    ends = ops.host(ops.xp.searchsorted(kept.packed, stops))[0].tolist()
    with (
        _running(source, batch, options, plan, 1) as passes,
        passes.sums(ops.asarray(weights)) as sums,
    ):
        for group, start, end in zip(plan.groups, [0, *ends], ends, strict=False):
            passes.second(sums, group, kept.part(slice(start, end)))


def returned(result: Result, like: Any, *gradients: Any) -> Any:
    """What a public function returns; the loss is an array of the kind of its argument `like`."""
    info = [result.info()] if result.options.return_info else []
    results = exported(result.loss(), like), *gradients, *info
    return results if len(results) > 1 else results[0]


@contextmanager
def _running(
    source: Source,
    batch: Batch,
    options: Options,
    plan: Plan,
    count: int,
    goal: Goal | None = None,
) -> Iterator[Passes]:
    """A context in which `count` passes run over the batch, with the goal of a loss unless there is
    another."""
    # The certificate may use half of the tolerance; the choice of kept cells has the rest.
    goal = goal or Mass(options.tolerance / 2)
    yield Passes(source, batch, options, plan, count, goal)
    if options.progress is not None:
        options.progress(batch.cell_count, batch.cell_count)
