"""Which cells to compute, and the proof that the rest do not matter.

Upper bounds of all scores (:mod:`cupy_rnnt.engine.tangents`) bound the posterior of every cell. The
softmax of a cell is computed where that bound could matter; these cells are C. The *certificate*
bounds what the paths that leave C could add to the probability of those that stay inside, as a
share of it. As long as it is above the tolerance, C grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..ops import BoundedLattice, operations_for
from ..ops.types import DeviceArray, HostArray, Tile
from .plan import Group
from .work import Lengths, Work

_WORTH_REFERENCES = 16.0  # cells for each reference; with fewer, a sample is computed whole
_MOST = 0.8  # of a sample's cells: where more are needed, all are computed
# Where bounds may cost more than they save, they are tried on the smallest sample, provided the
# batch has _PILOTS times its cells. Cells are selected if at most _GAINING of the sample's are.
_PILOTS, _GAINING = 8, 0.3


class Selected(NamedTuple):
    """The cells of some samples to compute first."""

    tolerance: float  # the largest certificate that is accepted
    chosen: DeviceArray  # bool, (cells,), packed
    counts: HostArray  # of each sample
    bounds: DeviceArray  # float64, (K, cells): of the scores

    def part(self, samples: slice, cells: slice) -> Selected:
        """The same for a run of the samples, whose cells are `cells` in packed order."""
        chosen, bounds = self.chosen[cells], self.bounds[:, cells]
        return Selected(self.tolerance, chosen, self.counts[samples], bounds)

    def certify(
        self, lattice: BoundedLattice, lengths: Lengths, compute: Callable[[Any, bool], None]
    ) -> tuple[int, int, Any]:
        """Compute cells until all samples are certified; return the counts of cells and of rounds,
        and the certificates.

        ``compute(cells, first)`` writes the scores of cells, numbered as in the lattice.
        """
        ops = operations_for(self.chosen)
        lattice.bound(self.bounds)
        chosen = ops.xp.zeros_like(self.chosen)
        cells = ops.indices(self.chosen, int(self.counts.sum()))
        computed = rounds = 0
        while True:
            compute(cells, rounds == 0)
            chosen[cells] = True
            computed += len(cells)
            rounds += 1
            new, certificate = next_cells(lattice, lengths, chosen, rounds, self.tolerance)
            cells = ops.indices(new) if new is not None else ()
            if len(cells) == 0:
                return computed, rounds, certificate


class Everything:
    """Every cell is computed."""

    def first(self, work: Work, group: Group) -> None:
        """No cells of a group come before the others."""


class Certified:
    """Selects cells by bounds, and more of them until the rest are proven not to matter."""

    def first(self, work: Work, group: Group) -> Selected | None:
        """The cells of a group to compute first; None if selecting pays in none of its samples."""
        ops = work.source.ops
        # The certificate may use half of the tolerance; the choice of kept cells has the rest.
        tolerance = work.options.tolerance / 2
        lengths = work.lengths(group)
        worth = _worth_selecting(lengths)
        if len(worth) == 0:
            return None
        bounds = _bounds(work, group, worth)
        lattice = work.lattice(ops.bounded_lattice, group, False)
        lattice.bound(bounds)
        computed = ops.zeros(bounds.shape[1:], bool)
        chosen, _ = next_cells(lattice, lengths, computed, 0, tolerance)
        counts = ops.host(counts_of(chosen, lengths.cells))[0]
        return Selected(tolerance, chosen, counts, bounds)


def _bounds(work: Work, group: Group, worth: HostArray) -> Any:
    """Upper bounds of the scores of a group, (K, cells); -inf in samples not listed in `worth`,
    which are computed whole."""
    scratch = work.scratch
    tangents = work.source.tangents(group.start + worth)
    for side, count in enumerate(tangents.references):

        def linearize(worker: int, tile: Tile, side: int = side) -> None:
            tangents.linearize(side, *tile, scratch[worker])

        work.run(linearize, count)
    run = work.batch.run(group.start, group.stop)
    scores = len(work.options.transducer.topology.scores)
    bounds = work.source.ops.empty((scores, len(run)), np.float64)
    bounds.fill(-np.inf)

    def bound(worker: int, tile: Tile) -> None:
        tangents.upper_bounds(*tile, scratch[worker], run.start, bounds)

    work.run(bound, tangents.references[0])
    return bounds


def selection_of(work: Work) -> Everything | Certified:
    """Every cell is computed if the plan does not select, or if bounds leave out too few cells of
    the smallest sample, where they are tried."""
    if not work.plan.selecting:
        return Everything()
    certified, batch = Certified(), work.batch
    lengths = work.lengths(Group(0, batch.size))
    worth = _worth_selecting(lengths)
    if work.source.gains_surely or len(worth) == 0:
        return certified
    least = int(worth[lengths.cells[worth].argmin()])
    if lengths.cells[least] * _PILOTS > batch.cell_count:
        return Everything()
    pilot = certified.first(work, Group(least, least + 1))
    gains = pilot is not None and pilot.counts[0] <= _GAINING * lengths.cells[least]
    return certified if gains else Everything()


def _worth_selecting(lengths: Lengths) -> HostArray:
    """The samples that have at least 16 cells for each reference."""
    references = lengths.frames + lengths.positions
    return np.flatnonzero(lengths.cells >= _WORTH_REFERENCES * references)


def counts_of(mask: DeviceArray, cells: HostArray) -> Any:
    """Marks in each sample's part of a mask (cells,), int64, (n,); `cells` (n,) is the length of
    the parts."""
    ops = operations_for(mask)
    ends = ops.xp.zeros(len(cells) + 1, np.int64)
    ends[1:] = ops.xp.cumsum(mask, dtype=np.int64)[ops.asarray(cells.cumsum() - 1)]
    return ends[1:] - ends[:-1]


def next_cells(
    lattice: BoundedLattice,
    lengths: Lengths,
    chosen: DeviceArray,
    rounds: int,
    tolerance: float,
) -> tuple[DeviceArray, DeviceArray]:
    """The cells to compute next, and the certificates so far.

    The first round knows only an upper bound of P. It leaves out cells below ``tolerance /
    (A + 1)`` of the bound, for paths of at most A arcs, and nearly always that is proof enough. The
    second round knows P(C) and compares with it; where bounds are so loose that more could leave C
    than stays, it compares with the geometric mean of both. The third round leaves out cells below
    ``tolerance / (T S)`` of P(C): all of them together are below the tolerance, so there is no
    fourth round. A sample that needs most of its cells is computed whole.

    Parameters
    ----------
    lattice : BoundedLattice
    lengths : Lengths
        Of its samples.
    chosen : shape (cells,), bool
        The cells computed so far, in packed order, on the device of the lattice.
    rounds : int
        Rounds so far.
    tolerance : float
        Largest certificate that is accepted.

    Returns
    -------
    new : shape (cells,), bool, or None
        Cells of every sample whose certificate is too large, and of no other sample; None if every
        certificate is small enough.
    certificate : shape (n,), float64
    """
    ops = operations_for(chosen)
    xp, cells = ops.xp, lengths.cells
    log_inside, log_outside = lattice.certify()
    counts, sizes = counts_of(chosen, cells), ops.asarray(cells)
    with np.errstate(all="ignore"):
        certificate = xp.where(counts == sizes, 0.0, xp.exp(log_outside - log_inside))
    failing = ~(certificate <= tolerance)
    if rounds and not ops.host(failing.any())[0]:
        return None, certificate
    with np.errstate(all="ignore"):  # nothing reaches NaN, so that such a sample is done whole
        share_each = ops.asarray(np.log(tolerance / (lengths.most_arcs + 1)))
        if rounds == 0:
            thresholds = log_outside + share_each
        elif rounds == 1:
            half_way = xp.maximum(log_outside - log_inside, 0.0) / 2
            thresholds = log_inside + half_way + share_each
        else:
            thresholds = log_inside + ops.asarray(np.log(0.999 * tolerance / cells))
    new = lattice.candidates(xp.where(failing, thresholds, np.inf))
    added = counts_of(new, cells)
    whole = (added == 0) | (counts + added > _MOST * sizes) | (rounds > 2)
    new |= ops.repeat(failing & whole, cells) & ~chosen
    return new, certificate
