"""The likeliest path of each sample: sweeps with the maximum in the place of the sum over paths.

Upper bounds of scores where there are no exact ones bound every path from above. If the likeliest
path by these numbers has exact scores only, no other path can be above it.
"""

from __future__ import annotations

import numpy as np

from ..types import BestPaths, HostArray
from .bounded import BoundedLattice, BoundedSweeps
from .log_space import largest


class BestSweeps(BoundedSweeps):
    """Parameters are those of :class:`Sweeps`. Alpha and beta are those of the likeliest path."""

    _together = staticmethod(largest)

    def _upper(self) -> HostArray:
        return self._backward()  # no score is above 0, so that no cap would lower it

    def _totals(self) -> HostArray:
        """Upper bounds of the log-probs of all paths."""
        with np.errstate(all="ignore"):
            if self._upper_beta is None:
                self._upper_beta = self._upper()
        totals: HostArray = self._upper_beta.reshape(-1)[self.grid.first]
        return totals

    def solve(self) -> HostArray:
        costs: HostArray = np.where(self._poisoned, np.nan, -self._totals())
        return costs

    def best(self) -> BestPaths:
        """See :meth:`cupy_rnnt.ops.lattices.BestLattice.certify`."""
        upper, (*_, proven) = self._totals(), self.path()
        if proven.all():
            return BestPaths(upper, upper, proven)
        with np.errstate(all="ignore"):
            beta = self._backward(passing=self._is_inside())
        return BestPaths(beta.reshape(-1)[self.grid.first], upper, proven)

    def path(self) -> tuple[HostArray, HostArray, HostArray]:
        """The frame of each label and the frames of its arc, (n, most labels), and whether the path
        is inside C, (n,): true of a sample without a path."""
        grid, arcs = self.grid, self._topology.arcs
        frames, durations = np.full((2, len(grid.first), int(grid.positions.max()) - 1), -1)
        proven, inside = np.ones(len(grid.first), bool), self._is_inside().reshape(-1)
        sample = np.flatnonzero((self._totals() > -np.inf) & ~self._poisoned)
        place, frame, position = grid.first[sample], np.zeros_like(sample), np.zeros_like(sample)
        taken_frames = np.array([arc.frames for arc in arcs])
        taken_labels = np.array([arc.labels for arc in arcs])
        while len(sample):
            assert self._upper_beta is not None
            proven[sample] &= inside[place]
            sums = [self._onward(arc, sample, place, self._upper_beta) for arc in arcs]
            taken = np.argmax(sums, axis=0)  # the first of the largest
            emits = np.flatnonzero(taken_labels[taken])
            labels = sample[emits], position[emits]
            frames[labels], durations[labels] = frame[emits], taken_frames[taken[emits]]
            frame += taken_frames[taken]
            position += taken_labels[taken]
            place = grid.places(sample, frame, position)
            going = np.flatnonzero(place != grid.exit[sample])
            sample, place, frame, position = (
                values[going] for values in (sample, place, frame, position)
            )
        return frames, durations, proven


class BestLattice(BoundedLattice):
    """See :class:`cupy_rnnt.ops.lattices.BestLattice`."""

    sweeps = BestSweeps

    def certify(self) -> BestPaths:  # type: ignore[override]
        inside, upper = np.empty((2, len(self._cells)))
        found = BestPaths(inside, upper, np.empty(len(self._cells), bool))
        for sweeps, samples in self._used():
            for array, values in zip(found, sweeps.best(), strict=True):
                array[samples] = values
        return found

    def path(self) -> tuple[HostArray, HostArray]:
        """See :meth:`cupy_rnnt.ops.lattices.BestLattice.path`."""
        frames, durations = np.full((2, len(self._cells), int(self._positions.max()) - 1), -1)
        for sweeps, samples in self._used():
            of_frames, of_durations, _ = sweeps.path()
            columns = slice(of_frames.shape[1])
            frames[samples, columns], durations[samples, columns] = of_frames, of_durations
        return frames, durations
