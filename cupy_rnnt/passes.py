"""The two passes over the cells of a batch, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from .batch import Batch, Cells
from .ops import Lattice, Operations, Tile, Workers
from .schedule import Group, Needs, Plan, Tiles
from .selection import next_cells, worth_selecting
from .tangents import Tangents

if TYPE_CHECKING:
    from .engine import Options

# Where bounds may cost more than they save, one sample is tried if the batch is _PILOTS times as
# large; the others follow if no more than _GAINING of its cells are left.
_PILOTS, _GAINING = 8, 0.3
_KEEP_CHUNK = 2**14  # cells; bounds what choosing the kept cells allocates


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
    selects: bool
    """Whether bounds of the log-probs can be had, and may save more than they cost."""
    gains_surely: bool
    """Whether they do so even if they leave out few cells."""

    def scratch(self, rows: int) -> Any:
        """Buffers of one worker."""

    def log_probs(
        self, cells: Cells, scratch: Any, stored: Any | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-sum-exp, blank and label log-probs of some cells, float64.

        Their logits are left in `stored`, (cells, V), if it is given.
        """

    def tangents(self, samples: np.ndarray) -> Tangents:
        """What bounds the log-probs of some samples; only called if `selects` is set."""

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


class Part(NamedTuple):
    """Samples of a group whose passes follow each other, and what was selected of them."""

    group: Group
    chosen: np.ndarray | None = None  # bool, (cells,), packed: to compute first; None for all
    bounds: np.ndarray | None = None  # float64, (2, cells): of blank and label log-probs


class FirstPass(NamedTuple):
    """What pass 1 over a part has found."""

    costs: np.ndarray  # float64, (n,)
    certificate: np.ndarray  # float64, (n,)
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
        self._stored_cells = np.empty(0, np.int64)
        # The certificate may use up one half of the tolerance, the filter has what that leaves.
        self._most_leaving = options.tolerance / 2

    def parts(self) -> Iterator[Part]:
        """Select in one group after the other; cut it so that logits can be stored for pass 2."""
        gains = self._gains()
        for group in self._plan.groups:
            chosen, bounds = self._select(group) if gains else (None, None)
            first = self._batch.offsets[group.start]
            ends = self._batch.offsets[group.start + 1 : group.stop + 1] - first
            counts = np.diff(ends, prepend=0)
            if chosen is not None:
                counts = np.add.reduceat(chosen, ends - counts, dtype=np.int64)
            for start, stop in _runs(counts.tolist(), self._plan.stored):
                part = Group(group.start + start, group.start + stop)
                cells = slice(ends[start - 1] if start else 0, ends[stop - 1])
                if chosen is None or bounds is None or chosen[cells].all():
                    yield Part(part)
                else:
                    yield Part(part, chosen[cells], bounds[:, cells])

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
        chosen, _ = self._select(Group(least, least + 1))
        return chosen is not None and chosen.mean() <= _GAINING

    def _select(self, group: Group) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The cells of a group to begin with, and bounds of all log-probs; None if no sample is
        worth it."""
        batch, ops = self._batch, self._source.ops
        samples = slice(group.start, group.stop)
        frames, columns = batch.frames[samples], batch.columns[samples]
        worth = worth_selecting(frames, columns)
        if len(worth) == 0:
            return None, None
        tangents = self._source.tangents(group.start + worth)
        for side, count in enumerate(tangents.references):

            def refer(worker: int, tile: Tile, side: int = side) -> None:
                tangents.refer(side, *tile, self._scratch[worker])

            self._workers.run(refer, Tiles(count, self._plan.rows, self._plan.workers))
        first = int(batch.offsets[group.start])
        bounds = np.empty((2, int(batch.offsets[group.stop]) - first))

        def bound(worker: int, tile: Tile) -> None:
            tangents.bound(*tile, self._scratch[worker], first, bounds)

        rows = max(1, self._plan.rows // int(columns.max()))
        self._workers.run(bound, Tiles(tangents.references[0], rows, self._plan.workers))
        lattice = ops.bounded_lattice(frames, columns, False)
        for i in worth:
            mine = bounds[:, slice(*(batch.offsets[group.start + i :][:2] - first))]
            lattice.bound(i, *mine.reshape(2, frames[i], columns[i]))
        none = np.zeros(bounds.shape[1], bool)
        chosen, _ = next_cells(lattice, frames, columns, none, 0, self._most_leaving)
        return chosen, bounds

    def first(self, part: Part, keep: bool) -> FirstPass:
        """Costs of a part and, if asked for, the cells that matter to a gradient."""
        batch, group, ops = self._batch, part.group, self._source.ops
        samples = slice(group.start, group.stop)
        frames, columns = batch.frames[samples], batch.columns[samples]
        lse = np.empty(int(batch.offsets[group.stop] - batch.offsets[group.start]))
        certificate, rounds = np.zeros(len(frames)), 1
        if part.chosen is None:
            lattice: Lattice = ops.lattice(frames, columns, keep)
            computed = len(lse)
            self._log_probs(group, np.arange(computed), lattice, lse)
        else:
            lattice, chosen, certificate, rounds = self._certified(part, keep, lse)
            computed = int(chosen.sum())
        costs = lattice.solve()
        kept = self._keep(group, lattice, lse, costs, certificate) if keep else None
        return FirstPass(costs, certificate, computed, rounds, kept)

    def _certified(
        self, part: Part, keep: bool, lse: np.ndarray
    ) -> tuple[Lattice, np.ndarray, np.ndarray, int]:
        """Compute cells until all samples are certified: the lattice, which cells, certificates
        and the number of rounds."""
        group, batch = part.group, self._batch
        assert part.chosen is not None
        assert part.bounds is not None
        samples = slice(group.start, group.stop)
        frames, columns = batch.frames[samples], batch.columns[samples]
        lattice = self._source.ops.bounded_lattice(frames, columns, keep)
        offsets = batch.offsets[group.start : group.stop + 1] - batch.offsets[group.start]
        for i, (start, stop) in enumerate(pairwise(offsets.tolist())):
            if not part.chosen[start:stop].all():
                lattice.bound(i, *part.bounds[:, start:stop].reshape(2, frames[i], columns[i]))
        chosen, new = np.zeros_like(part.chosen), part.chosen
        rounds = 0
        while new.any():
            self._log_probs(group, np.flatnonzero(new), lattice, lse, rounds == 0)
            chosen |= new
            rounds += 1
            new, certificate = next_cells(
                lattice, frames, columns, chosen, rounds, self._most_leaving
            )
        return lattice, chosen, certificate, rounds

    def _log_probs(
        self, group: Group, cells: np.ndarray, lattice: Lattice, lse: np.ndarray, first: bool = True
    ) -> None:
        """Pass 1 over some cells of a group, given by their numbers in it.

        Those of the `first` round have their logits stored.
        """
        source, batch = self._source, self._batch
        packed = cells + batch.offsets[group.start]
        count = self._plan.stored if first else 0
        if first:
            self._stored_cells = packed[:count]

        def tile(worker: int, part: Tile) -> None:
            start, stop = part
            mine = batch.cells(packed[start:stop])
            stored = self._stored[start:stop] if stop <= count else None
            lse[cells[start:stop]], blank, label = source.log_probs(
                mine, self._scratch[worker], stored
            )
            lattice.write(mine._replace(sample=mine.sample - group.start), blank, label)
            if worker == 0 and first:
                self._report(group, stop / len(cells), 0)

        self._run_stored_first(tile, len(cells), min(count, len(cells)))

    def _keep(
        self,
        group: Group,
        lattice: Lattice,
        lse: np.ndarray,
        costs: np.ndarray,
        certificate: np.ndarray,
    ) -> Kept:
        """The cells that hold at least a share of the mean occupancy of their sample.

        A path has T + U transitions, so the mean is (T + U) / (T S), and the cells left out hold
        at most the share of `tolerance` that the certificate has left, of the sample's occupancy.
        Where the cost is not finite, none is kept.
        """
        batch, kept = self._batch, []
        shares = self._options.tolerance - certificate
        for i in np.flatnonzero(np.isfinite(costs)).tolist():
            b = group.start + i
            frames, columns = int(batch.frames[b]), int(batch.columns[b])
            least = shares[i] * (frames + columns - 1) / (frames * columns)
            of_blank, of_label = lattice.occupancies(i)
            rows = max(1, _KEEP_CHUNK // columns)
            for start in range(0, frames, rows):
                blank, label = of_blank[start : start + rows], of_label[start : start + rows]
                mask = blank + label >= least
                first = batch.offsets[b] + start * columns
                kept.append((first + np.flatnonzero(mask), blank[mask], label[mask]))
        if not kept:
            kept.append((np.empty(0, np.int64), np.empty(0), np.empty(0)))
        packed, *both = map(np.concatenate, zip(*kept, strict=True))
        occupancies = np.array(both, self._source.dtype)
        # One denormal number in a row would slow its products as much as many.
        limits = np.finfo(self._source.dtype)
        occupancies[occupancies < limits.tiny / limits.eps] = 0
        occupancies[1] *= 1 + self._options.fastemit_lambda
        return Kept(packed, lse[packed - batch.offsets[group.start]], *occupancies)

    def second(self, group: Group, kept: Kept, weights: np.ndarray) -> None:
        """Gradient of the kept cells of a group."""
        source, batch = self._source, self._batch
        rows = np.searchsorted(self._stored_cells, kept.packed)
        stored = np.zeros(len(rows), bool)
        inside = rows < len(self._stored_cells)
        stored[inside] = self._stored_cells[rows[inside]] == kept.packed[inside]
        count = int(stored.sum())
        if 0 < count < len(rows):
            order = np.argsort(~stored, kind="stable")
            rows, kept = rows[order], Kept(*(values[order] for values in kept))
        source.begin_group(group, kept.packed)

        def tile(worker: int, part: Tile) -> None:
            start, stop = part
            mine = kept.part(start, stop)
            cells = batch.cells(mine.packed)
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
            if worker == 0:
                self._report(group, stop / len(kept.packed), self._count - 1)

        self._run_stored_first(tile, len(kept.packed), count, fixed=True)
        source.end_group(group)

    def _run_stored_first(
        self, tile: Callable[[int, Tile], None], count: int, stored: int, fixed: bool = False
    ) -> None:
        """Run tiles of the entries whose logits are stored, then of the others."""
        rows, workers = self._plan.rows, self._plan.workers
        self._workers.run(tile, Tiles(stored, rows, workers), fixed)
        self._workers.run(tile, Tiles(count - stored, rows, workers, stored), fixed)

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
