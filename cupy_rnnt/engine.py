"""The sample-wise engine: two passes over lists of cells, a tile at a time, in a fixed workspace.

    for group in plan:
        for tile of cells:         # pass 1: the log-probs of blank and label of each cell
        lattice                    # costs and occupancies of all samples of the group
        keep                       # the cells whose gradient matters
        for tile of kept cells:    # pass 2: their gradient

It goes beyond Braun, McDermott and Hsiao (arXiv 2211.16270) in that a tile is a run of cells, not
a sample, so that nothing is padded, and in that pass 2 leaves out cells without posterior mass.

Where logits come from, and where their gradient goes, is the business of a *source*: given logits
(:mod:`cupy_rnnt.loss`) or a joint network (:mod:`cupy_rnnt.joint`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import checks, defaults
from .batch import Batch, Cells
from .ops import Lattice, Operations, Tile, Workers
from .results import Info
from .schedule import Group, Needs, Plan, Tiles, plan

_KEEP_CHUNK = 2**14  # cells; bounds what choosing the kept cells allocates

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Options:
    """Options of a call that the engine needs; the public functions document them."""

    clamp: float
    fastemit_lambda: float
    zero_infinity: bool
    tolerance: float
    max_workspace_bytes: int
    progress: Progress | None

    @staticmethod
    def checked(
        dtype: np.dtype,
        clamp: Any,
        fastemit_lambda: Any,
        zero_infinity: Any,
        tolerance: Any,
        max_workspace_bytes: Any,
        progress: Progress | None,
    ) -> Options:
        """Validated, with the defaults for `dtype` where None was given."""
        if tolerance is None:
            tolerance = defaults.tolerance(dtype)
        return Options(
            clamp=checks.number("clamp", clamp),
            fastemit_lambda=checks.number("fastemit_lambda", fastemit_lambda, 0.0, 1e6),
            zero_infinity=bool(zero_infinity),
            tolerance=checks.number("tolerance", tolerance, 0.0, 1.0),
            max_workspace_bytes=checks.workspace(max_workspace_bytes, defaults.MAX_WORKSPACE_BYTES),
            progress=checks.callback("progress", progress),
        )


class Kept(NamedTuple):
    """The cells of one group whose gradient is computed, one entry each, in packed order."""

    packed: np.ndarray  # int64
    lse: np.ndarray  # float64
    blank_occupancy: np.ndarray  # compute dtype, as the gradient uses it
    label_occupancy: np.ndarray

    def part(self, start: int, stop: int) -> Kept:
        return Kept(*(values[start:stop] for values in self))

    def weighted(self, weights: np.ndarray, clamp: float) -> tuple[Kept, np.ndarray | None]:
        """Cost weights go into the occupancies, as gradients are linear in them, or are left to be
        applied behind the bounds that `clamp` sets."""
        if clamp > 0:
            return self, weights
        dtype = self.blank_occupancy.dtype
        weights = weights.astype(dtype)
        blank, label = weights * self.blank_occupancy, weights * self.label_occupancy
        return self._replace(blank_occupancy=blank, label_occupancy=label), None


class Source(Needs, Protocol):
    """Where logits come from and their gradient goes."""

    ops: Operations
    dtype: np.dtype
    """The compute dtype."""

    def scratch(self, rows: int) -> Any:
        """Buffers of one worker."""

    def log_probs(
        self, cells: Cells, scratch: Any, stored: Any | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-sum-exp, blank and label log-probs of some cells, float64.

        Their logits are left in `stored`, (cells, V), if it is given.
        """

    def begin_gradient(self, workers: int) -> None: ...

    def begin_group(self, group: Group, kept: np.ndarray) -> None:
        """A group's gradient comes next; `kept` are the packed indices of its cells."""

    def add_gradient(
        self,
        worker: int,
        cells: Cells,
        kept: Kept,
        stored: tuple[Any, np.ndarray] | None,
        clamp: float,
        weights: np.ndarray | None,
        scratch: Any,
    ) -> None:
        """Add the gradient of some cells.

        `stored` are logits that pass 1 has left and the rows that belong to the cells. Calls of
        different workers overlap; those of one worker come in the same order in every run.
        """

    def end_group(self, group: Group) -> None: ...

    def end_gradient(self) -> None: ...


@dataclass
class Result:
    """Costs, and what a later backward pass needs."""

    plan: Plan
    costs: np.ndarray  # float64, (B,)
    kept: list[Kept] = field(default_factory=list)
    kept_count: int = 0

    def info(self, batch: Batch) -> Info:
        return Info(
            cells=batch.cell_count,
            computed=batch.cell_count,
            kept=self.kept_count,
            certificate=np.zeros(batch.size),
            rounds=1,
            workspace_bytes=self.plan.workspace_bytes,
        )


def forward(source: Source, batch: Batch, options: Options, keep: bool) -> Result:
    """Costs alone, or (`keep`) also the kept cells for :func:`backward`."""
    chosen = make_plan(source, batch, options, gradient=keep, store=False)
    with _running(source, batch, options, chosen, passes=1) as run:
        for group in run.plan.groups:
            kept = run.first_pass(group, keep)
            if kept is not None:
                run.result.kept.append(kept)
    return run.result


def backward(
    source: Source, batch: Batch, options: Options, result: Result, weights: np.ndarray
) -> None:
    """Pass 2 over the cells that :func:`forward` kept, with cost weights known only now."""
    source.begin_gradient(result.plan.workers)
    with _running(source, batch, options, result.plan, passes=1) as run:
        for group, kept in zip(run.plan.groups, result.kept, strict=True):
            run.second_pass(group, kept, weights)
    source.end_gradient()


def forward_backward(source: Source, batch: Batch, options: Options, weights: np.ndarray) -> Result:
    """Both passes, group by group; logits of pass 1 serve pass 2 as far as the workspace goes."""
    chosen = make_plan(source, batch, options, gradient=True, store=True)
    source.begin_gradient(chosen.workers)
    with _running(source, batch, options, chosen, passes=2) as run:
        for group in run.plan.groups:
            kept = run.first_pass(group, keep=True)
            assert kept is not None
            run.second_pass(group, kept, weights)
    source.end_gradient()
    return run.result


def make_plan(source: Source, batch: Batch, options: Options, gradient: bool, store: bool) -> Plan:
    ops, budget = source.ops, options.max_workspace_bytes
    return plan(batch, source, budget, ops.threads(), ops.lattice_nbytes, gradient, store)


@contextmanager
def _running(
    source: Source, batch: Batch, options: Options, plan: Plan, passes: int
) -> Iterator[_Run]:
    with source.ops.workers(plan.workers) as workers:
        yield _Run(source, batch, options, plan, workers, passes)
    if options.progress is not None:
        options.progress(batch.cell_count, batch.cell_count)


class _Run:
    """One call: its plan, its workers and their buffers."""

    def __init__(
        self,
        source: Source,
        batch: Batch,
        options: Options,
        plan: Plan,
        workers: Workers,
        passes: int,
    ) -> None:
        self.source, self.batch, self.options = source, batch, options
        self.plan, self.workers, self.passes = plan, workers, passes
        self.scratch = [source.scratch(plan.rows) for _ in range(plan.workers)]
        self.stored = source.ops.empty((plan.stored, source.width), source.dtype)
        self.result = Result(plan, np.empty(batch.size))

    def first_pass(self, group: Group, keep: bool) -> Kept | None:
        """Costs of a group and, if asked for, the cells that matter to a gradient."""
        source, batch = self.source, self.batch
        samples = slice(group.start, group.stop)
        computed = batch.run(group.start, group.stop)
        lattice = source.ops.lattice(batch.frames[samples], batch.columns[samples], keep)
        lse = np.empty(len(computed))
        places = np.empty(len(computed), np.int64)

        def tile(worker: int, part: Tile) -> None:
            start, stop = part
            cells = batch.cells(np.arange(computed[start], computed[stop - 1] + 1))
            stored = self.stored[start:stop] if stop <= group.stored else None
            lse[start:stop], blank, label = source.log_probs(cells, self.scratch[worker], stored)
            cells = cells._replace(sample=cells.sample - group.start)
            places[start:stop] = lattice.write(cells, blank, label)
            if worker == 0:
                self._report(computed, stop / len(computed), passes_before=0)

        self._run_tiles(tile, len(computed), group.stored)
        costs = lattice.solve()
        finite = np.isfinite(costs)
        lost = 0.0 if self.options.zero_infinity else costs
        self.result.costs[samples] = np.where(finite, costs, lost)
        if not keep:
            return None
        kept = self._keep(group, lattice, lse, places, finite)
        self.result.kept_count += len(kept.packed)
        return kept

    def _keep(
        self,
        group: Group,
        lattice: Lattice,
        lse: np.ndarray,
        places: np.ndarray,
        finite: np.ndarray,
    ) -> Kept:
        """The cells that hold at least ``tolerance`` times the mean occupancy of their sample.

        A path has T + U transitions, so the mean is (T + U) / (T S), and the cells left out hold
        at most `tolerance` of the sample's occupancy. Where the cost is not finite, none is kept.
        """
        batch, offset = self.batch, self.batch.offsets[group.start]
        kept = []
        for b in group.start + np.flatnonzero(finite):
            cells = batch.offsets[b + 1] - batch.offsets[b]
            least = self.options.tolerance * (batch.frames[b] + batch.columns[b] - 1) / cells
            for start in range(batch.offsets[b], batch.offsets[b + 1], _KEEP_CHUNK):
                stop = min(start + _KEEP_CHUNK, batch.offsets[b + 1])
                blank, label = lattice.occupancies(places[start - offset : stop - offset])
                kept.append(start + np.flatnonzero(blank + label >= least))
        packed = np.concatenate(kept) if kept else np.empty(0, np.int64)
        lse = lse[packed - offset]
        occupancies = np.empty((2, len(packed)), self.source.dtype)
        for start in range(0, len(packed), _KEEP_CHUNK):
            part = slice(start, start + _KEEP_CHUNK)
            occupancies[:, part] = lattice.occupancies(places[packed[part] - offset])
        # One denormal number in a row would slow its products as much as many.
        limits = np.finfo(self.source.dtype)
        occupancies[occupancies < limits.tiny / limits.eps] = 0
        occupancies[1] *= 1 + self.options.fastemit_lambda
        return Kept(packed, lse, *occupancies)

    def second_pass(self, group: Group, kept: Kept, weights: np.ndarray) -> None:
        """Gradient of the kept cells of a group."""
        source, batch = self.source, self.batch
        computed = batch.run(group.start, group.stop)
        stored = int(np.searchsorted(kept.packed, computed.start + group.stored))
        source.begin_group(group, kept.packed)

        def tile(worker: int, part: Tile) -> None:
            start, stop = part
            mine = kept.part(start, stop)
            cells = batch.cells(mine.packed)
            mine, cell_weights = mine.weighted(weights[cells.sample], self.options.clamp)
            source.add_gradient(
                worker,
                cells,
                mine,
                (self.stored, mine.packed - computed.start) if stop <= stored else None,
                self.options.clamp,
                cell_weights,
                self.scratch[worker],
            )
            if worker == 0:
                self._report(computed, stop / len(kept.packed), self.passes - 1)

        self._run_tiles(tile, len(kept.packed), stored, fixed=True)
        source.end_group(group)

    def _run_tiles(
        self, tile: Callable[[int, Tile], None], count: int, stored: int, fixed: bool = False
    ) -> None:
        """Run tiles of the entries whose logits are stored, then of the others."""
        rows, workers = self.plan.rows, self.plan.workers
        self.workers.run(tile, Tiles(stored, rows, workers), fixed)
        self.workers.run(tile, Tiles(count - stored, rows, workers, stored), fixed)

    def _report(self, cells: range, share: float, passes_before: int) -> None:
        """Tell the caller that a share of a pass over some cells is done."""
        if self.options.progress is not None:
            done = cells.start + int(len(cells) * (passes_before + share) / self.passes)
            self.options.progress(done, self.batch.cell_count)
