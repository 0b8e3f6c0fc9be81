"""The contract of lattices, and of what makes them on a device."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np

from ..transducer import Transducer
from .types import BestPaths, Cells, DeviceArray, HostArray, LogitRows, PathMass, Samples


class Lattice(Protocol):
    """The lattices of a group of samples, in float64, for the K scores of a topology. Cells are
    numbered as in the batch."""

    def write(self, cells: Cells, lse: DeviceArray, scores: DeviceArray) -> None:
        """Store log-sum-exps (G, n) and scores (K, n) of cells. The score of a label gets the delay
        penalty added, and is not read in cells that no label leaves."""

    def write_rows(self, rows: LogitRows) -> None:
        """As :meth:`write`, with what :meth:`cupy_rnnt.ops.Operations.row_scores` gives of the
        rows."""

    def leave_out(self, first: HostArray, stop: HostArray) -> None:
        """Leave out all cells but those at positions ``first[i, t]`` to ``stop[i, t] - 1`` of frame
        t of the i-th sample, int64 (n, at least T). Their scores are -inf, and they are not kept,
        nor candidates. Call it before :meth:`write`, and behind :meth:`BoundedLattice.bound`."""

    def solve(self) -> DeviceArray:
        """Costs of the samples, float64, in nats (section 3.1 of Graves 2012), which are not
        rounded, but inf where the dtype in which they are reported cannot hold them. A sample with
        a NaN or +inf score costs NaN."""

    def keep(self, least: HostArray) -> DeviceArray:
        """Packed indices, ascending, int64, of all cells but the least likely of each frame, which
        paths lead through with posterior probabilities that add up to less than `least` for each
        cell of the frame. The limit of a cell is `least` times their number, halved until that
        holds. `least`, (n,), has an entry for each sample. A sample whose cost is not finite keeps
        no cell.

        If arcs read a second cell, half of `least` is enough, and the cells that these arcs read
        are kept, too. Call :meth:`solve` first, on a lattice made with ``gradient=True``.
        """

    def posteriors(
        self, packed: DeviceArray, of_labels: float, dtype: np.dtype, least: float
    ) -> tuple[DeviceArray, DeviceArray]:
        """Log-sum-exps (G, n) and occupancies (K, n) of the scores of cells, given by their packed
        indices: the posterior probability of all arcs that add up the score, 0 if it is below
        `least`. An arc that emits a label counts `of_labels` times. Call :meth:`keep` first; costs
        of the samples must be finite."""


class BoundedLattice(Lattice, Protocol):
    """Lattices that hold exact scores in the cells that were written, the set C, and upper bounds
    of scores in other cells. A cell that has neither is not passed: its probability is 0. A cell
    that is left out counts as exact.

    :meth:`solve`, :meth:`keep` and :meth:`posteriors` count the paths inside C only. Where an arc
    reads a second cell, both cells must be in C.
    """

    def bound(self, bounds: DeviceArray) -> None:
        """Store upper bounds of the scores, float64 (K, cells), in packed order; -inf for a score
        that has none."""

    def certify(self) -> PathMass:
        """The mass of the paths inside C, and bounds of the mass that leaves C and of all paths."""

    def candidates(self, least: HostArray) -> tuple[DeviceArray, DeviceArray]:
        """Mask of the cells outside C where the upper bound of alpha + beta reaches that of all
        paths plus `least` of the sample, (n,), and of the cells that arcs from there read: bool
        (cells,), in packed order. And how many marks each sample has, (n,), int64."""

    def complete(self, marks: DeviceArray, samples: HostArray) -> None:
        """Mark all cells outside C of some `samples`, (n,) bool, too."""


class BestLattice(Protocol):
    """Lattices with the likeliest path in the place of the sum over paths. Cells hold exact scores,
    the set C, or upper bounds, as in a :class:`BoundedLattice`; without :meth:`bound`, all cells
    must be written.

    Sums of log-probabilities are formed from the end to the beginning of a path: of the scores of
    an arc in their order, then the score that it reads aside, then what the rest of the path has.
    Of equal sums the first arc of the topology counts. So the same scores have the same path on
    every device.
    """

    def write(self, cells: Cells, lse: DeviceArray, scores: DeviceArray) -> None:
        """As :meth:`Lattice.write`; log-sum-exps are not used."""

    def write_rows(self, rows: LogitRows) -> None:
        """As :meth:`Lattice.write_rows`."""

    def bound(self, bounds: DeviceArray) -> None:
        """As :meth:`BoundedLattice.bound`."""

    def certify(self) -> BestPaths:
        """The likeliest path inside C, and a bound of all paths. If the likeliest path by scores
        and bounds is inside C, it is proven to be that of all cells, ties included."""

    def candidates(self, least: HostArray) -> tuple[DeviceArray, DeviceArray]:
        """As :meth:`BoundedLattice.candidates`, with the likeliest path through a cell in the place
        of the sum of all, and the likeliest of all in the place of all paths."""

    def complete(self, marks: DeviceArray, samples: HostArray) -> None:
        """As :meth:`BoundedLattice.complete`."""

    def solve(self) -> DeviceArray:
        """Minus the log-probabilities of the likeliest paths, (n,), in the form of
        :meth:`Lattice.solve`: inf of a sample without a path, NaN of one with a bad score."""

    def path(self) -> tuple[DeviceArray, DeviceArray]:
        """Of the likeliest path of each sample, the frame at which each label is emitted, and the
        frames that its arc takes: int64 (n, most labels), -1 behind the last label, and of a sample
        whose cost is not finite before it is rounded."""


_Made = TypeVar("_Made", covariant=True)


class MakeLattice(Protocol[_Made]):
    """Makes the lattices of consecutive samples. Costs are reported in `dtype`. Occupancies may be
    read only with `gradient`."""

    def __call__(
        self,
        transducer: Transducer,
        samples: Samples,
        gradient: bool,
        delay_penalty: float,
        dtype: np.dtype,
    ) -> _Made: ...
