"""The two passes over the cells of a batch, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from .batch import Batch, Cells, Coordinates
from .ops import BoundedLattice, Lattice, Operations, Tile, Workers
from .options import Options
from .results import reportable
from .schedule import Group, Needs, Plan, Tiles
from .selection import counts_of, next_cells, worth_selecting
from .tangents import Tangents
from .transducer import Row

# Where bounds may cost more than they save, one sample is tried if the batch is _PILOTS times as
# large; the others follow if no more than _GAINING of its cells are left.
_PILOTS, _GAINING = 8, 0.3


class Kept(NamedTuple):
    """The cells of one group whose gradient is computed, one entry each, in packed order."""

    packed: Any  # int64, (n,)
    lse: Any  # float64, (G, n): of each head
    occupancies: Any  # compute dtype, as the gradient uses it, (K, n): of each score

    def part(self, some: Any) -> Kept:
        """Some of the cells."""
        return Kept(*(values[..., some] for values in self))

    def weighted(self, weights: Any, clamp: float) -> tuple[Kept, Any | None]:
        """Cost weights go into the occupancies, as gradients are linear in them, or are left to be
        applied behind the bounds that `clamp` sets."""
        if clamp > 0:
            return self, weights
        weights = weights.astype(self.occupancies.dtype)
        return self._replace(occupancies=weights * self.occupancies), None


class Source(Needs, Protocol):
    """Where logits come from and their gradient goes."""

    ops: Operations
    coordinates: Coordinates
    row: Row
    dtype: np.dtype
    """The compute dtype."""
    selects: bool
    """Whether bounds of the log-probs can be had, and may save more than they cost."""
    gains_surely: bool
    """Whether they do so even if they leave out few cells."""

    def scratch(self, rows: int) -> Any:
        """Buffers of one worker."""

    def scores(self, cells: Cells, scratch: Any, stored: Any | None) -> tuple[Any, Any]:
        """Log-sum-exps (G, n) and scores (K, n) of some cells, float64.

        Their logits are left in `stored`, (cells, V), if it is given.
        """

    def tangents(self, samples: np.ndarray) -> Tangents:
        """What bounds the log-probs of some samples; only called if `selects` is set."""

    def begin_gradient(self, workers: int, weights: Any, largest: Any) -> Any:
        """The cost weights that :meth:`add_gradient` is to be given, for those of the call, (B,).

        `largest` bounds the magnitude of what each logit gets as its gradient.
        """

    def begin_group(self, group: Group, kept: Any) -> None:
        """A group's gradient comes next; `kept` are the packed indices of its cells."""

    def add_gradient(
        self,
        worker: int,
        cells: Cells,
        kept: Kept,
        stored: tuple[Any, Any] | None,
        clamp: float,
        weights: Any | None,
        scratch: Any,
    ) -> None:
        """Add the gradient of some cells.

        `stored` are logits that pass 1 has left and the rows that belong to the cells. Calls of
        different workers overlap; those of one worker come in the same order in every run.
        """

    def end_group(self, group: Group) -> None: ...

    def end_gradient(self) -> None: ...


class Selected(NamedTuple):
    """The cells of some samples to compute first."""

    chosen: Any  # bool, (cells,), packed
    counts: np.ndarray  # of each sample
    bounds: Any  # float64, (K, cells): of the scores


class Part(NamedTuple):
    """Samples of a group whose passes follow each other, and what was selected of them."""

    group: Group
    selected: Selected | None = None  # None for all cells


class FirstPass(NamedTuple):
    """What pass 1 over a part has found."""

    costs: Any  # float64, (n,); finite where they are in the dtype that is reported
    certificate: Any  # float64, (n,)
    computed: int
    rounds: int
    kept: Kept | None


class Passes:
    """The passes of one call: its plan, its workers and their buffers."""

    def __init__(
        self,
        source: Source,
        batch: Batch,
        options: Options,
        plan: Plan,
        workers: Workers,
        count: int,
    ) -> None:
        self._source, self._batch, self._options = source, batch, options
        self._plan, self._workers, self._count = plan, workers, count
        self._scratch = [source.scratch(plan.rows) for _ in range(plan.workers)]
        self._stored = source.ops.empty((plan.stored, source.width), source.dtype)
        self._stored_cells = source.ops.empty((0,), np.int64)
        self._stores_all = False
        # The certificate may use up one half of the tolerance, the filter has what that leaves.
        self._most_leaving = options.tolerance / 2
        self._scores = len(options.transducer.topology.scores)

    def _lattice(self, make: Callable[..., Any], samples: slice, gradient: bool) -> Any:
        """That of some samples, by an operation of the device."""
        lengths = self._batch.frames[samples], self._batch.columns[samples]
        options = self._options
        return make(options.transducer, *lengths, gradient, options.delay_penalty)

    def _most_arcs(self, samples: slice) -> np.ndarray:
        """Of a path of each sample."""
        frames, labels = self._batch.frames[samples], self._batch.columns[samples] - 1
        most: np.ndarray = self._options.transducer.topology.path_arcs(frames, labels)[1]
        return most

    def parts(self) -> Iterator[Part]:
        """Select in one group after the other; cut it so that logits can be stored for pass 2."""
        gains = self._gains()
        most = self._plan.stored if self._source.ops.sizes.cuts_groups else 0
        for group in self._plan.groups:
            selected = self._select(group) if gains else None
            sizes = np.diff(self._batch.offsets[group.start : group.stop + 1])
            ends = sizes.cumsum()
            counts = sizes if selected is None else selected.counts
            for start, stop in _runs(counts.tolist(), most):
                part = Group(group.start + start, group.start + stop)
                mine, cells = slice(start, stop), slice(ends[start] - sizes[start], ends[stop - 1])
                if selected is None or (counts[mine] == sizes[mine]).all():
                    yield Part(part)
                else:
                    chosen, _, bounds = selected
                    yield Part(part, Selected(chosen[cells], counts[mine], bounds[:, cells]))

    def _gains(self) -> bool:
        """Whether to select at all: where bounds may cost more than they save, they are tried on
        the smallest sample."""
        batch = self._batch
        worth = worth_selecting(batch.frames, batch.columns)
        if not self._plan.selecting or len(worth) == 0 or self._source.gains_surely:
            return self._plan.selecting
        cells = batch.frames * batch.columns
        least = int(worth[cells[worth].argmin()])
        if cells[least] * _PILOTS > batch.cell_count:
            return False
        selected = self._select(Group(least, least + 1))
        return selected is not None and int(selected.counts[0]) <= _GAINING * int(cells[least])

    def _select(self, group: Group) -> Selected | None:
        """The cells of a group to begin with; None if no sample is worth it."""
        batch, ops = self._batch, self._source.ops
        samples = slice(group.start, group.stop)
        frames, columns = batch.frames[samples], batch.columns[samples]
        worth = worth_selecting(frames, columns)
        if len(worth) == 0:
            return None
        tangents = self._source.tangents(group.start + worth)
        for side, count in enumerate(tangents.references):

            def refer(worker: int, tile: Tile, side: int = side) -> None:
                tangents.refer(side, *tile, self._scratch[worker])

            self._workers.run(refer, Tiles(count, self._plan.rows, self._plan.workers))
        run = batch.run(group.start, group.stop)
        bounds = ops.empty((self._scores, len(run)), np.float64)
        bounds.fill(-np.inf)

        def bound(worker: int, tile: Tile) -> None:
            tangents.bound(*tile, self._scratch[worker], run.start, bounds)

        count = tangents.references[0]
        self._workers.run(bound, Tiles(count, self._plan.rows, self._plan.workers))
        lattice = self._lattice(ops.bounded_lattice, samples, False)
        lattice.bound(bounds)
        none = ops.zeros((len(run),), bool)
        lengths = frames, columns, self._most_arcs(samples)
        chosen, _ = next_cells(lattice, *lengths, none, 0, self._most_leaving)
        return Selected(chosen, ops.host(counts_of(chosen, frames * columns))[0], bounds)

    def first(self, part: Part, keep: bool) -> FirstPass:
        """Costs of a part and, if asked for, the cells that matter to a gradient."""
        batch, group, ops = self._batch, part.group, self._source.ops
        samples = slice(group.start, group.stop)
        frames, columns = batch.frames[samples], batch.columns[samples]
        count = int((frames * columns).sum())
        lse = ops.empty((len(self._source.row.heads), count), np.float64)
        if part.selected is None:
            lattice: Lattice = self._lattice(ops.lattice, samples, keep)
            computed, rounds, certificate = count, 1, ops.zeros((len(frames),), np.float64)
            self._compute(group, ops.xp.arange(computed), lattice, lse)
        else:
            lattice = bounded = self._lattice(ops.bounded_lattice, samples, keep)
            computed, rounds, certificate = self._certify(group, part.selected, bounded, lse)
        self._stores_all = rounds == 1 and len(self._stored_cells) == computed
        costs = reportable(lattice.solve(), self._source.dtype)
        kept = self._keep(group, lattice, lse, costs, certificate) if keep else None
        return FirstPass(costs, certificate, computed, rounds, kept)

    def _certify(
        self, group: Group, selected: Selected, lattice: BoundedLattice, lse: Any
    ) -> tuple[int, int, Any]:
        """Compute cells until all samples are certified: the number of cells and of rounds, and
        the certificates."""
        batch, ops = self._batch, self._source.ops
        samples = slice(group.start, group.stop)
        lengths = batch.frames[samples], batch.columns[samples], self._most_arcs(samples)
        lattice.bound(selected.bounds)
        chosen = ops.xp.zeros_like(selected.chosen)
        cells = ops.indices(selected.chosen, int(selected.counts.sum()))
        computed = rounds = 0
        while True:
            self._compute(group, cells, lattice, lse, rounds == 0)
            chosen[cells] = True
            computed += len(cells)
            rounds += 1
            new, certificate = next_cells(lattice, *lengths, chosen, rounds, self._most_leaving)
            cells = ops.indices(new) if new is not None else ()
            if len(cells) == 0:
                return computed, rounds, certificate

    def _compute(
        self, group: Group, cells: Any, lattice: Lattice, lse: Any, first: bool = True
    ) -> None:
        """Pass 1 over some cells of a group, given by their numbers in it.

        Those of the `first` round have their logits stored.
        """
        source = self._source
        packed = cells + int(self._batch.offsets[group.start])
        count = self._plan.stored if first else 0
        if first:
            self._stored_cells = packed[:count]

        def tile(worker: int, part: Tile) -> None:
            start, stop = part
            mine = source.coordinates.of(packed[start:stop])
            stored = self._stored[start:stop] if stop <= count else None
            lse[:, cells[start:stop]], scores = source.scores(mine, self._scratch[worker], stored)
            lattice.write(mine._replace(sample=mine.sample - group.start), scores)

        def report(part: Tile) -> None:
            self._report(group, part[1] / len(cells), 0)

        stored_cells = min(count, len(cells))
        self._run_stored_first(tile, len(cells), stored_cells, report=report if first else None)

    def _keep(
        self,
        group: Group,
        lattice: Lattice,
        lse: Any,
        costs: Any,
        certificate: Any,
    ) -> Kept:
        """The cells that hold at least a share of the mean occupancy of their sample.

        The mean is at least that of a path of the fewest arcs, over T S cells, and the cells left
        out hold at most the share of `tolerance` that the certificate has left, of the sample's
        occupancy; a smaller one where the gradient of a cell may be more than twice its occupancy,
        as a score is charged several heads. Where the cost is not finite, none is kept.
        """
        batch, ops = self._batch, self._source.ops
        samples = slice(group.start, group.stop)
        frames, columns = batch.frames[samples], batch.columns[samples]
        fewest, _ = self._options.transducer.topology.path_arcs(frames, columns - 1)
        charges = max((len(charged) for charged in self._source.row.charged), default=1)
        means = ops.asarray(2 / (1 + max(charges, 1)) * fewest / (frames * columns))
        least = (self._options.tolerance - certificate) * means
        cells = lattice.keep(ops.xp.where(ops.xp.isfinite(costs), least, np.inf))
        dtype = self._source.dtype
        occupancies = lattice.occupancies(cells, 1 + self._options.fastemit_lambda, dtype)
        # Those of a frame add up to 1. A product of much smaller ones and the least softmax values
        # would be a denormal number, and one in a row slows its products as much as many.
        occupancies[occupancies < np.finfo(dtype).eps ** 2] = 0
        return Kept(cells + int(batch.offsets[group.start]), lse[:, cells], occupancies)

    def second(self, group: Group, kept: Kept, weights: Any) -> None:
        """Gradient of the kept cells of a group, given weights of the costs of all samples."""
        source = self._source
        kept, rows, count = self._stored_first(kept)
        source.begin_group(group, kept.packed)

        def tile(worker: int, part: Tile) -> None:
            start, stop = part
            mine = kept.part(slice(start, stop))
            cells = source.coordinates.of(mine.packed)
            mine, cell_weights = mine.weighted(weights[cells.sample], self._options.clamp)
            source.add_gradient(
                worker,
                cells,
                mine,
                (self._stored, rows[start:stop]) if stop <= count else None,
                self._options.clamp,
                cell_weights,
                self._scratch[worker],
            )

        def report(part: Tile) -> None:
            self._report(group, part[1] / len(kept.packed), self._count - 1)

        self._run_stored_first(tile, len(kept.packed), count, fixed=True, report=report)
        source.end_group(group)

    def _stored_first(self, kept: Kept) -> tuple[Kept, Any, int]:
        """Kept cells with those in front whose logits are stored, the rows of these, and how many
        there are."""
        there, ops = self._stored_cells, self._source.ops
        if len(there) == 0:
            return kept, there, 0
        rows = ops.xp.searchsorted(there, kept.packed)
        if self._stores_all:
            return kept, rows, len(rows)
        rows[rows == len(there)] = 0
        stored = there[rows] == kept.packed
        count = int(ops.host(stored.sum())[0])
        if 0 < count < len(rows):
            parts = ops.indices(stored, count), ops.indices(~stored, len(rows) - count)
            order = ops.xp.concatenate(parts)
            rows, kept = rows[order], kept.part(order)
        return kept, rows, count

    def _run_stored_first(
        self,
        tile: Callable[[int, Tile], None],
        count: int,
        stored: int,
        fixed: bool = False,
        report: Callable[[Tile], None] | None = None,
    ) -> None:
        """Run tiles of the entries whose logits are stored, then of the others."""
        rows, workers = self._plan.rows, self._plan.workers
        self._workers.run(tile, Tiles(stored, rows, workers), fixed, report)
        self._workers.run(tile, Tiles(count - stored, rows, workers, stored), fixed, report)

    def _report(self, group: Group, share: float, passes_before: int) -> None:
        """Tell the caller that a share of a pass over a group is done."""
        if self._options.progress is not None:
            start, stop = self._batch.offsets[[group.start, group.stop]].tolist()
            done = start + int((stop - start) * (passes_before + share) / self._count)
            self._options.progress(done, self._batch.cell_count)


def _runs(counts: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut a list into runs that add up to at most `most` each, or hold one entry; 0 is no limit."""
    start = total = 0
    for i, count in enumerate(counts):
        if most and i > start and total + count > most:
            yield start, i
            start, total = i, 0
        total += count
    yield start, len(counts)
