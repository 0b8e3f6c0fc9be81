"""Which cells to compute, and the proof that the rest do not matter.

Upper bounds of all scores (:mod:`cupy_rnnt.engine.tangents`) bound the posterior of every cell. The
softmax of a cell is computed where that bound could matter; these cells are C. The *certificate*
bounds what the paths that leave C could add to the probability of those that stay inside, as a
share of it. As long as it is above the tolerance, C grows.

What is proven is a *goal*: for a loss, that the paths outside have little mass (:class:`Mass`); for
an alignment, that none of them is above the likeliest one inside (:class:`LikeliestPath`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..ops import Operations, operations_for
from ..ops.lattices import BestLattice, BoundedLattice
from ..ops.types import DeviceArray, HostArray, PathMass, Tile
from .plan import Group
from .work import Goal, LatticeWork, Lengths

_WORTH_REFERENCES = 16.0  # cells for each reference; with fewer, a sample is computed whole
_MOST = 0.8  # of a sample's cells: where more are needed, all are computed
# Where bounds may cost more than they save, they are tried on the smallest sample, provided the
# batch has _PILOTS times its cells. Cells are selected if at most _GAINING of the sample's are.
_PILOTS, _GAINING = 8, 0.3
# For the likeliest path, the first round computes the cells on any path whose bound is at most so
# many nats below that of all paths. Of a trained model that was 2 % of the cells, and enough; with
# 8 nats 4 %. One half trained took 6 % in two rounds, and with 8 nats 17 % in one.
_LIKELY = 2.0
_ROUNDING = 2.0**-40  # of sums in another order, relative


class Mass(NamedTuple):
    """Paths outside C hold at most the share `tolerance` of what those inside hold."""

    tolerance: float

    def lattice(self, ops: Operations, bounded: bool) -> Callable[..., Any]:
        return ops.bounded_lattice if bounded else ops.exact_lattice

    def first(self, lengths: Lengths) -> HostArray:
        return _log_shares(lengths, self.tolerance)

    def proof(
        self, lattice: BoundedLattice, computed: HostArray, lengths: Lengths, rounds: int
    ) -> tuple[HostArray, HostArray]:
        mass = lattice.certify()
        certificate = certificates(mass, computed, lengths)
        failing = ~(certificate <= self.tolerance)
        if not failing.any():
            return certificate, np.full(len(certificate), np.inf)
        least = thresholds(mass, lengths, rounds, self.tolerance)
        return certificate, np.where(failing, least, np.inf)


class LikeliestPath:
    """No path outside C is above the likeliest one inside.

    All cells of a path that is above it are cells where the bound of the likeliest path reaches it:
    the second round computes them, and there is no third.
    """

    def lattice(self, ops: Operations, bounded: bool) -> Callable[..., Any]:
        return ops.best_lattice

    def first(self, lengths: Lengths) -> HostArray:
        return np.full(len(lengths.cells), -_LIKELY)

    def proof(
        self, lattice: BestLattice, computed: HostArray, lengths: Lengths, rounds: int
    ) -> tuple[HostArray, HostArray]:
        inside, upper, proven = lattice.certify()
        with np.errstate(all="ignore"):  # where no path is inside, a sample is done whole
            apart = upper - inside
            certificate = np.where(proven, 0.0, apart)
            least = -apart - _ROUNDING * (1 + abs(upper))
        return certificate, np.where(proven, np.inf, least)


class Selected(NamedTuple):
    """The cells of some samples to compute first."""

    goal: Goal
    packed: DeviceArray  # int64, their packed indices
    counts: HostArray  # of each sample
    bounds: DeviceArray  # float64, (K, cells): of the scores
    lattice: BoundedLattice | None = None  # that holds them, if it was made

    def part(self, samples: slice, cells: slice) -> Selected:
        """The same for a run of the samples, whose cells are `cells` in packed order."""
        before, count = self.counts[: samples.start].sum(), self.counts[samples].sum()
        packed = self.packed[before : before + count]
        return Selected(self.goal, packed, self.counts[samples], self.bounds[:, cells])

    def certify(
        self, lattice: BoundedLattice, lengths: Lengths, compute: Callable[[Any, bool], None]
    ) -> tuple[int, int, HostArray]:
        """Compute cells until all samples are certified; return the counts of cells and of rounds,
        and the certificates.

        ``compute(packed, first)`` writes the scores of cells, given by their packed indices.
        """
        computed, packed = self.counts, self.packed
        for rounds in itertools.count(1):
            compute(packed, rounds == 1)
            certificate, least = self.goal.proof(lattice, computed, lengths, rounds)
            if (least == np.inf).all():
                break
            packed, added = next_cells(lattice, lengths, computed, least, rounds)
            computed = computed + added
        return int(computed.sum()), rounds, certificate


class Everything:
    """Every cell is computed."""

    def first(self, work: LatticeWork, group: Group) -> None:
        """No cells of a group come before the others."""


class Certified:
    """Selects cells by bounds, and more of them until the rest are proven not to matter."""

    def first(self, work: LatticeWork, group: Group) -> Selected | None:
        """The cells of a group to compute first; None if selecting pays in none of its samples."""
        lengths = work.lengths(group)
        worth = _worth_selecting(lengths)
        if len(worth) == 0:
            return None
        bounds = _bounds(work, group, worth)
        lattice = bounded_lattice(work, group, bounds)
        none = np.zeros(len(lengths.frames), np.int64)
        packed, counts = next_cells(lattice, lengths, none, work.goal.first(lengths), 0)
        return Selected(work.goal, packed, counts, bounds, lattice)


def bounded_lattice(work: LatticeWork, group: Group, bounds: DeviceArray) -> BoundedLattice:
    """The lattice of a group, with upper bounds of all scores, (K, cells)."""
    lattice: BoundedLattice = work.lattice(group, bounded=True)
    lattice.bound(bounds)
    work.leave_out(lattice, group)
    return lattice


def _bounds(work: LatticeWork, group: Group, worth: HostArray) -> Any:
    """Upper bounds of the scores of a group, (K, cells); -inf in samples not listed in `worth`,
    which are computed whole."""
    scratch = work.scratch
    tangents = work.source.tangents(group.start + worth)

    def linearize(worker: int, tile: Tile) -> None:
        tangents.linearize(*tile, scratch[worker])

    work.run(linearize, tangents.frames + tangents.positions)
    run = work.batch.run(group.start, group.stop)
    scores = len(work.options.transducer.topology.scores)
    bounds = work.source.ops.empty((scores, len(run)), np.float64)
    if len(worth) < group.stop - group.start:
        bounds.fill(-np.inf)

    def bound(worker: int, tile: Tile) -> None:
        tangents.upper_bounds(*tile, scratch[worker], run.start, bounds)

    work.run(bound, tangents.frames)
    return bounds


def selection_of(work: LatticeWork) -> Everything | Certified:
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


def certificates(mass: PathMass, computed: HostArray, lengths: Lengths) -> HostArray:
    """What the paths that leave C hold, as a share of what those inside hold, (n,); 0 where all
    cells are `computed`, (n,)."""
    with np.errstate(all="ignore"):
        share = np.exp(mass.leaving - mass.inside)
    return np.where(computed == lengths.cells, 0.0, share)


def _log_shares(lengths: Lengths, tolerance: float) -> HostArray:
    """The logarithm of ``tolerance / (A + 1)`` for paths of at most A arcs, (n,)."""
    shares: HostArray = np.log(tolerance / (lengths.most_arcs + 1))
    return shares


def thresholds(mass: PathMass, lengths: Lengths, rounds: int, tolerance: float) -> HostArray:
    """The least share of the upper bound of all paths that a cell must hold to be computed after so
    many rounds: logarithms, (n,).

    The first round knows only that bound. It leaves out cells below ``tolerance / (A + 1)`` of it,
    for paths of at most A arcs, and nearly always that is proof enough. The second round knows
    P(C) and compares with it; where bounds are so loose that more could leave C than stays, it
    compares with the geometric mean of both. The third round leaves out cells below ``tolerance /
    (T S)`` of P(C): all of them together are below the tolerance, so there is no fourth round.
    """
    with np.errstate(all="ignore"):  # nothing reaches NaN, so that such a sample is done whole
        least: HostArray = mass.inside - mass.upper
        if rounds == 1:
            half_way = np.maximum(mass.leaving - mass.inside, 0.0) / 2
            least += half_way + _log_shares(lengths, tolerance)
        else:
            least += np.log(0.999 * tolerance / lengths.cells)
    return least


def next_cells(
    lattice: BoundedLattice, lengths: Lengths, computed: HostArray, least: HostArray, rounds: int
) -> tuple[DeviceArray, HostArray]:
    """The cells to compute next, of samples whose `least` is below inf.

    A sample that needs most of its cells, or more than three rounds, is computed whole.

    Parameters
    ----------
    lattice : BoundedLattice
    lengths : Lengths
        Of its samples.
    computed : shape (n,)
        How many cells of each sample were computed so far.
    least : shape (n,)
        As :meth:`cupy_rnnt.ops.lattices.BoundedLattice.candidates` takes it.
    rounds : int
        Rounds so far.

    Returns
    -------
    packed : int64
        Packed indices.
    counts : shape (n,)
        Of each sample.
    """
    marks, on_device = lattice.candidates(least)
    ops = operations_for(marks)
    (added,) = ops.host(on_device)
    rest = lengths.cells - computed
    whole = (added == 0) | (computed + added > _MOST * lengths.cells) | (rounds > 2)
    whole &= least < np.inf
    whole |= np.isnan(least)
    if (added[whole] < rest[whole]).any():
        lattice.complete(marks, whole)
        added = np.where(whole, rest, added)
    return ops.indices(marks, int(added.sum()), lengths.first), added
