"""The two passes over the cells of a batch, and what pass 1 leaves for pass 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..batch import Batch
from ..ops import Lattice
from ..ops.types import DeviceArray, Tile
from ..options import Options
from ..results import reportable
from .plan import Group, Plan
from .selection import Selected, selection_of
from .sources import Kept, Source, Sums
from .work import Work


class Part(NamedTuple):
    """Samples whose pass 2 follows their pass 1 at once, and the cells selected for pass 1."""

    group: Group
    selected: Selected | None = None  # None: all cells


@dataclass
class Solved:
    """The lattices of a part after pass 1."""

    passes: Passes
    group: Group
    lattice: Lattice
    lse: DeviceArray  # float64, (G, cells)
    costs: DeviceArray  # float64, (n,); finite where they are in the dtype that is reported
    certificate: DeviceArray  # float64, (n,)
    computed: int
    rounds: int

    def kept(self) -> Kept:
        """The cells whose occupancy is at least ``(tolerance - certificate) * share * A / (T S)``.

        A path has at least A arcs, so A / (T S) is at most the mean occupancy of a cell. All cells
        left out hold together at most the share ``tolerance - certificate`` of the occupancy of
        their sample. The gradient of a cell is at most 1 + charged heads times its occupancy:
        `share` is 1 for one head and smaller for more. A sample whose cost is not finite keeps no
        cell.
        """
        source, options = self.passes.source, self.passes.options
        xp, lengths = source.ops.xp, self.passes.lengths(self.group)
        charges = max((len(charged) for charged in source.row.charged), default=1)
        share = 2 / (1 + max(charges, 1))
        means = source.ops.asarray(share * lengths.fewest_arcs / lengths.cells)
        least = (options.tolerance - self.certificate) * means
        cells = self.lattice.keep(xp.where(xp.isfinite(self.costs), least, np.inf))
        of_labels = 1 + options.fastemit_lambda
        occupancies = self.lattice.occupancies(cells, of_labels, source.dtype)
        # The occupancies of a frame add up to 1, so an occupancy below eps**2 does not matter. Its
        # product with a small softmax value would be a denormal number, and a single denormal
        # number in a row slows products of the row as much as many.
        occupancies[occupancies < np.finfo(source.dtype).eps ** 2] = 0
        first = int(self.passes.batch.offsets[self.group.start])
        return Kept(cells + first, self.lse[:, cells], occupancies)


class Stored:
    """Logits that pass 1 leaves for pass 2: those of the first cells of its first round."""

    def __init__(self, source: Source, rows: int) -> None:
        self._ops = source.ops
        self.rows = source.ops.empty((rows, source.width), source.dtype)
        self._cells = source.ops.empty((0,), np.int64)
        self._complete = False

    def begin(self, packed: DeviceArray) -> int:
        """Pass 1 computes cells next: return how many of the first go to :attr:`rows`."""
        self._cells = packed[: len(self.rows)]
        return len(self._cells)

    def end(self, computed: int, rounds: int) -> None:
        """Pass 1 is over and has computed so many cells in so many rounds."""
        self._complete = rounds == 1 and len(self._cells) == computed

    def in_front(self, kept: Kept) -> tuple[Kept, Any, int]:
        """The kept cells, with the stored ones moved to the front; their rows of :attr:`rows`; how
        many are stored."""
        cells, ops = self._cells, self._ops
        if len(cells) == 0:
            return kept, cells, 0
        rows = ops.xp.searchsorted(cells, kept.packed)
        if self._complete:
            return kept, rows, len(rows)
        rows[rows == len(cells)] = 0
        stored = cells[rows] == kept.packed
        count = int(ops.host(stored.sum())[0])
        if 0 < count < len(rows):
            parts = ops.indices(stored, count), ops.indices(~stored, len(rows) - count)
            order = ops.xp.concatenate(parts)
            rows, kept = rows[order], kept.part(order)
        return kept, rows, count


class Passes(Work):
    """The passes of one call, `count` in all."""

    def __init__(
        self,
        source: Source,
        batch: Batch,
        options: Options,
        plan: Plan,
        count: int,
    ) -> None:
        super().__init__(source, batch, options, plan)
        self._count = count
        self._stored = Stored(source, plan.stored)
        self._selection = selection_of(self)

    def parts(self) -> Iterator[Part]:
        """Select the cells of one group after the other, and cut each group into parts whose logits
        fit the store."""
        most = self.plan.stored if self.source.ops.sizes.cuts_groups else 0
        for group in self.plan.groups:
            selected = self._selection.first(self, group)
            sizes = self.lengths(group).cells
            ends = sizes.cumsum()
            counts = sizes if selected is None else selected.counts
            for start, stop in _runs(counts.tolist(), most):
                part, samples = Group(group.start + start, group.start + stop), slice(start, stop)
                if selected is None or (counts[samples] == sizes[samples]).all():
                    yield Part(part)
                else:
                    cells = slice(ends[start] - sizes[start], ends[stop - 1])
                    yield Part(part, selected.part(samples, cells))

    def first(self, part: Part, gradient: bool) -> Solved:
        """Pass 1 over a part. Occupancies can be read from its lattices only with `gradient`."""
        group, ops = part.group, self.source.ops
        lengths = self.lengths(group)
        count = int(lengths.cells.sum())
        lse = ops.empty((len(self.source.row.heads), count), np.float64)
        make = ops.exact_lattice if part.selected is None else ops.bounded_lattice
        lattice = self.lattice(make, group, gradient)

        def compute(cells: DeviceArray, first: bool) -> None:
            self._compute(group, cells, lattice, lse, first)

        if part.selected is None:
            compute(ops.xp.arange(count), True)
            computed, rounds, certificate = count, 1, ops.zeros((len(lengths.frames),), np.float64)
        else:
            computed, rounds, certificate = part.selected.certify(lattice, lengths, compute)
        self._stored.end(computed, rounds)
        costs = reportable(lattice.solve(), self.source.dtype)
        return Solved(self, group, lattice, lse, costs, certificate, computed, rounds)

    def _compute(
        self, group: Group, cells: DeviceArray, lattice: Lattice, lse: DeviceArray, first: bool
    ) -> None:
        """Write scores of cells, numbered within the group, into the lattice. The `first` round
        stores logits and reports progress."""
        source = self.source
        packed = cells + int(self.batch.offsets[group.start])
        stored = self._stored.begin(packed) if first else 0

        def tile(worker: int, part: Tile) -> None:
            start, stop = part
            coordinates = source.coordinates.of(packed[start:stop])
            logits = self._stored.rows[start:stop] if stop <= stored else None
            sums, scores = source.scores(coordinates, self.scratch[worker], logits)
            lse[:, cells[start:stop]] = sums
            within = coordinates._replace(sample=coordinates.sample - group.start)
            lattice.write(within, scores)

        def report(part: Tile) -> None:
            self._report(group, part[1] / len(cells), 0)

        self.run(tile, len(cells), stored, report=report if first else None)

    def sums(self, weights: DeviceArray) -> AbstractContextManager[Sums]:
        """A context that sums gradients, each cost multiplied by its weight."""
        # An element of d cost / d logits is at most 1 + lambda in magnitude, before its weight.
        largest = abs(weights).max() * (1 + self.options.fastemit_lambda)
        return self.source.sums(self.plan.workers, weights, largest)

    def second(self, sums: Sums, group: Group, kept: Kept) -> None:
        """Pass 2: add the gradient of the kept cells of a group."""
        source, clamp = self.source, self.options.clamp
        kept, rows, stored = self._stored.in_front(kept)
        with sums.of_group(group, kept.packed) as of_group:

            def tile(worker: int, part: Tile) -> None:
                start, stop = part
                of_tile = kept.part(slice(start, stop))
                cells = source.coordinates.of(of_tile.packed)
                posteriors = of_tile.posteriors(sums.weights[cells.sample], clamp)
                logits = (self._stored.rows, rows[start:stop]) if stop <= stored else None
                of_group.add(worker, cells, posteriors, logits, self.scratch[worker])

            def report(part: Tile) -> None:
                self._report(group, part[1] / len(kept.packed), self._count - 1)

            self.run(tile, len(kept.packed), stored, fixed=True, report=report)

    def _report(self, group: Group, share: float, passes_before: int) -> None:
        """Tell the caller that a share of a pass over a group is done."""
        if self.options.progress is not None:
            start, stop = self.batch.offsets[[group.start, group.stop]].tolist()
            done = start + int((stop - start) * (passes_before + share) / self._count)
            self.options.progress(done, self.batch.cell_count)


def _runs(counts: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut a list into runs of sum at most `most`, or of one larger entry; `most` 0 is no limit."""
    start = total = 0
    for i, count in enumerate(counts):
        if most and i > start and total + count > most:
            yield start, i
            start, total = i, 0
        total += count
    yield start, len(counts)
