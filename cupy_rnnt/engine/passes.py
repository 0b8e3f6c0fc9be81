"""The two passes over the cells of a batch, and what pass 1 leaves for pass 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..batch import Batch
from ..ops.lattices import Lattice
from ..ops.types import DeviceArray, HostArray, RowPosteriors, Tile
from ..options import Options
from .plan import Group, Plan
from .selection import Selected, bounded_lattice, selection_of
from .sources import Kept, Source, Sums
from .work import Goal, LatticeWork


class InFront(NamedTuple):
    """Cells of which those with stored logits come first, in packed order, and then the others."""

    packed: DeviceArray  # int64, (n,)
    rows: DeviceArray  # int64, (n,): of the stored logits, if the cell has any
    stored: int  # cells with stored logits


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
    costs: DeviceArray  # float64, (n,); finite where they are in the dtype that is reported
    certificate: HostArray  # float64, (n,)
    computed: int
    rounds: int

    def kept(self) -> Kept:
        """The cells that matter to the gradient, in packed order."""
        return self.posteriors(self.kept_cells())

    def kept_cells(self) -> DeviceArray:
        """The packed indices of the cells that matter to the gradient. Those left out of a frame
        hold together less than ``(tolerance - certificate) * share * A / T``.

        A path has at least A arcs, so A / T is at most the mean occupancy of a frame. All cells
        left out hold together at most the share ``tolerance - certificate`` of the occupancy of
        their sample. The gradient of a cell is at most 1 + charged heads times its occupancy:
        `share` is 1 for one head and smaller for more. A sample whose cost is not finite keeps no
        cell.
        """
        source, options = self.passes.source, self.passes.options
        lengths = self.passes.lengths(self.group)
        charges = max((len(charged) for charged in source.row.charged), default=1)
        means = 2 / (1 + max(charges, 1)) * lengths.fewest_arcs / lengths.cells
        return self.lattice.keep((options.tolerance - self.certificate) * means)

    def posteriors(self, packed: DeviceArray) -> Kept:
        """What pass 2 needs of some cells, given by their packed indices in any order."""
        source, options = self.passes.source, self.passes.options
        # The occupancies of a frame add up to 1, so an occupancy below eps**2 does not matter. Its
        # product with a small softmax value would be a denormal number, and a single denormal
        # number in a row slows products of the row as much as many.
        least = float(np.finfo(source.dtype).eps) ** 2
        of_labels = 1 + options.fastemit_lambda
        return Kept(packed, *self.lattice.posteriors(packed, of_labels, source.dtype, least))

    def path(self) -> tuple[DeviceArray, DeviceArray]:
        """See :meth:`cupy_rnnt.ops.lattices.BestLattice.path`."""
        lattice: Any = self.lattice  # of the goal
        frames, durations = lattice.path()
        return frames, durations


class Stored:
    """Logits that pass 1 leaves for pass 2: those of the first cells of its first round."""

    def __init__(self, source: Source, rows: int) -> None:
        self._ops = source.ops
        self.rows = source.ops.empty((rows, source.width), source.dtype)
        self._cells: DeviceArray = ()
        self._complete = False

    def begin(self, packed: DeviceArray) -> int:
        """Pass 1 computes cells next: return how many of the first go to :attr:`rows`."""
        self._cells = packed[: len(self.rows)]
        return len(self._cells)

    def end(self, computed: int, rounds: int) -> None:
        """Pass 1 is over and has computed so many cells in so many rounds."""
        self._complete = rounds == 1 and len(self._cells) == computed

    def in_front(self, packed: DeviceArray) -> InFront:
        """Cells, given by their ascending packed indices, in the order in which pass 2 takes
        them."""
        cells, ops = self._cells, self._ops
        if len(cells) == 0:
            return InFront(packed, None, 0)
        if self._complete:
            return InFront(packed, ops.places(cells, packed), len(packed))
        return InFront(*ops.found_first(cells, packed))


class Passes(LatticeWork):
    """The passes of one call, `count` in all."""

    def __init__(
        self,
        source: Source,
        batch: Batch,
        options: Options,
        plan: Plan,
        count: int,
        goal: Goal,
    ) -> None:
        super().__init__(source, batch, options, plan, goal)
        self._count = count
        self.stored = Stored(source, plan.stored)
        self._selection = selection_of(self)

    def parts(self) -> Iterator[Part]:
        """Select the cells of one group after the other, and cut each group into parts whose logits
        fit the store."""
        for group in self.plan.groups:
            yield from self._cut(group, self._selection.first(self, group))

    def _cut(self, group: Group, selected: Selected | None) -> Iterator[Part]:
        """The parts of a group, each with the cells selected in it."""
        most = self.plan.stored if self.source.ops.sizes.cuts_groups else 0
        lengths = self.lengths(group)
        sizes, ends = lengths.cells, lengths.extents.cumsum()
        counts = sizes if selected is None else selected.counts
        runs = list(_runs(counts.tolist(), most))
        if selected is not None and (len(runs) > 1 or (counts == sizes).all()):
            selected = selected._replace(lattice=None)  # each part has a lattice of its own
        for start, stop in runs:
            part, samples = Group(group.start + start, group.start + stop), slice(start, stop)
            if selected is None or (counts[samples] == sizes[samples]).all():
                yield Part(part)
            elif selected.lattice is not None:
                yield Part(part, selected)
            else:
                cells = slice(ends[start] - lengths.extents[start], ends[stop - 1])
                yield Part(part, selected.part(samples, cells))

    def first(self, part: Part) -> Solved:
        """Pass 1 over a part."""
        group, selected = part.group, part.selected
        lengths = self.lengths(group)
        if selected is None:
            lattice: Any = self.lattice(group)
            self.leave_out(lattice, group)
        else:
            lattice = selected.lattice or bounded_lattice(self, group, selected.bounds)

        def compute(packed: DeviceArray, first: bool) -> None:
            self._compute(group, packed, lattice, first)

        if selected is None:
            packed = self.cells(group)
            compute(packed, True)
            computed, rounds, certificate = len(packed), 1, np.zeros(len(lengths.frames))
        else:
            computed, rounds, certificate = selected.certify(lattice, lengths, compute)
        self.stored.end(computed, rounds)
        return Solved(self, group, lattice, lattice.solve(), certificate, computed, rounds)

    def _compute(self, group: Group, packed: DeviceArray, lattice: Lattice, first: bool) -> None:
        """Write scores of cells, given by their packed indices, into the lattice. The `first` round
        stores logits and reports progress."""
        source = self.source
        stored = self.stored.begin(packed) if first else 0
        cells = source.cells_of(packed)

        def tile(worker: int, part: Tile) -> None:
            start, stop = part
            logits = self.stored.rows[start:stop] if stop <= stored else None
            of_tile = cells.part(slice(start, stop)), self.scratch[worker], logits
            source.write_scores(lattice, *of_tile)

        def report(part: Tile) -> None:
            self._report(group, part[1] / len(packed), 0)

        self.run(tile, len(packed), stored, report=report if first else None)

    def sums(self, weights: DeviceArray) -> AbstractContextManager[Sums]:
        """A context that sums gradients, each cost multiplied by its weight."""
        # The occupancies of a cell are at most 1 in sum, and labels count 1 + lambda times.
        return self.source.sums(self.plan, weights, 1 + self.options.fastemit_lambda)

    def second(
        self, sums: Sums, group: Group, kept: Kept, rows: DeviceArray = None, stored: int = 0
    ) -> None:
        """Pass 2: add the gradient of the kept cells of a group, of which the first have stored
        logits, in some `rows`, as :class:`InFront` has them."""
        source, clamp = self.source, self.options.clamp
        # Each of the lists is in packed order.
        of_stored, of_rest = map(source.cells_of, (kept.packed[:stored], kept.packed[stored:]))
        with sums.of_group(group, kept.packed) as of_group:

            def tile(worker: int, part: Tile) -> None:
                start, stop = part
                of_tile = slice(start, stop)
                of_rows = kept.lse[:, of_tile], kept.occupancies[:, of_tile]
                posteriors = RowPosteriors(*of_rows, sums.weights, clamp)
                if stop <= stored:
                    cells, logits = of_stored.part(of_tile), (self.stored.rows, rows[of_tile])
                else:
                    cells, logits = of_rest.part(slice(start - stored, stop - stored)), None
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
