"""Lattices that hold exact log-probs in some cells and upper bounds of them in the others.

With b and l the log-probs where they were computed (the set C) and upper bounds elsewhere, sweeps
over the anti-diagonals give

- *upper* alpha and beta, bounds of the true ones at every cell;
- *inside*, the beta of paths that never leave C;
- *leaving*, a bound of the beta of paths that leave C somewhere: at a cell of C the sum over both
  transitions of *leaving* where they end in C and of upper beta where they end outside it.

Upper beta in C is the sum of the latter two, and every term is positive: nothing cancels. At the
first cell they bound the probability of all paths by that of the paths inside, times
``1 + exp(leaving - inside)``.
"""

from __future__ import annotations

import numpy as np

from ..batch import Cells
from .lattice import Lattice, logaddexp


class BoundedLattice(Lattice):
    """See :class:`cupy_rnnt.ops.BoundedLattice`; parameters are those of :class:`Lattice`."""

    def __init__(self, frames: np.ndarray, columns: np.ndarray, gradient: bool) -> None:
        super().__init__(frames, columns, gradient)
        self._exact = np.zeros((self._rows, self._width), bool)

    def bound(self, sample: int, blank: np.ndarray, label: np.ndarray) -> None:
        of_blank, of_label = self._views(sample)
        of_blank[...] = blank
        of_label[...] = label

    def write(self, cells: Cells, blank: np.ndarray, label: np.ndarray) -> None:
        super().write(cells, blank, label)
        self._exact.reshape(-1)[self._places(cells)] = True

    def certify(self) -> tuple[np.ndarray, np.ndarray]:
        width = self._width + 1
        inside, leaving, upper = np.full((3, width), -np.inf)
        self._upper_beta = np.empty((self._rows, self._width))
        spare = np.empty((5, 2, self._width))
        exits = self._last_column + self._flipped
        with np.errstate(all="ignore"):
            for d in range(self._rows - 1, -1, -1):
                ending = exits[self._order[self._alive[d + 1] : self._alive[d]]]
                inside[ending] = upper[ending] = 0.0
                n = self._ends[d]
                exact = self._exact[d, :n]
                after, stay, step, sums, work = spare[:, :, :n]
                # Where each transition ends: inside paths go on inside, the others anywhere.
                for out, first in (stay, 0), (step, 1):
                    ends = slice(first, first + n)
                    out[0] = inside[ends]
                    np.copyto(out[1], upper[ends])
                    np.copyto(out[1], leaving[ends], where=exact)
                np.maximum(stay[1], step[1], out=after[0])
                stay += self._stay[d, :n]
                step += self._step[d, :n]
                logaddexp(stay, step, sums, work)
                np.minimum(sums[1], after[0], out=leaving[:n])  # no cell passes on more than it got
                inside[:n] = -np.inf
                np.copyto(inside[:n], sums[0], where=exact)
                logaddexp(inside[:n], leaving[:n], upper[:n], work[0])
                self._upper_beta[d, :n] = upper[:n]
        return inside[self._first], leaving[self._first]

    def likely(self, thresholds: np.ndarray) -> np.ndarray:
        chosen = np.zeros((self._rows, self._width), bool)
        least = np.repeat(thresholds[self._order], self._sizes)
        alpha = np.full(self._width, -np.inf)
        alpha[self._first] = 0.0
        spare = np.empty((3, self._width))
        with np.errstate(all="ignore"):
            for d in range(self._rows):
                n = self._ends[d]
                stay, step, work = spare[:, :n]
                np.add(alpha[:n], self._upper_beta[d, :n], out=work)
                np.greater_equal(work, least[:n], out=chosen[d, :n])
                np.add(alpha[:n], self._stay[d, :n], out=stay)
                np.add(alpha[: n - 1], self._step[d, : n - 1], out=step[1:])
                step[0] = -np.inf
                logaddexp(stay, step, alpha[:n], work)
                np.minimum(alpha[:n], 0.0, out=alpha[:n])
        chosen &= ~self._exact
        return np.concatenate([self._view(chosen, b).ravel() for b in range(len(self._extents))])

    def solve(self) -> np.ndarray:
        """Over the paths inside the cells that were written."""
        np.copyto(self._both, -np.inf, where=~self._exact)
        self._upper_beta = np.empty((0, 0))  # its memory is taken by alpha now
        return super().solve()
