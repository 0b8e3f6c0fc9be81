"""Lattices that hold exact log-probs in some cells, the set C, and upper bounds in the others.

With both, sweeps over the anti-diagonals bound the true alpha and beta of every cell from above.
The alpha of paths that never leave C needs exact log-probs only; where such a path first steps out
of C, alpha times the bound of beta is a bound of all its continuations. Their sum over the edge of
C bounds the probability of all paths that are not inside: positive terms, nothing cancels.
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
        with np.errstate(all="ignore"):
            self._bound_beta()
            total = self._upper_beta[0, self._first]
            if not self._exact.any():
                return np.full_like(total, -np.inf), total
            # Shares of the bound of all paths: linear, as none is above 1. Those that vanish in
            # float64 are made up for by the least number for every cell.
            base = np.repeat(np.where(total > -np.inf, total, 0.0)[self._order], self._sizes)
            shares = np.full(self._width, np.finfo(np.float64).tiny * self._rows)

            def leave(d: int, alpha: np.ndarray) -> None:
                n, exact = len(alpha), self._exact[d, : len(alpha)]
                share = alpha + self._upper_beta[d, :n]
                share -= base[:n]
                np.exp(share, out=share)
                np.add(shares[:n], share, out=shares[:n], where=~exact)
                np.copyto(alpha, -np.inf, where=~exact)

            self._inside = self._forward(self._gradient, leave)
            sums = np.add.reduceat(shares, np.cumsum(self._sizes) - self._sizes)
            leaving = np.empty_like(total)
            leaving[self._order] = np.log(sums) + base[np.cumsum(self._sizes) - 1]
            return self._inside[0] + self._last_blank(), leaving

    def _bound_beta(self) -> None:
        """Sweep the bounds of log beta backward, into ``_upper_beta``."""
        self._upper_beta = np.empty((self._rows, self._width))
        beta = np.full(self._width + 1, -np.inf)
        spare = np.empty((4, self._width))
        exit_column = self._last_column + self._flipped
        for d in range(self._rows - 1, -1, -1):
            beta[exit_column[self._order[self._alive[d + 1] : self._alive[d]]]] = 0.0
            n = self._ends[d]
            stay, step, most, work = spare[:, :n]
            np.maximum(beta[:n], beta[1 : n + 1], out=most)  # b + l <= 1
            np.add(self._stay[d, :n], beta[:n], out=stay)
            np.add(self._step[d, :n], beta[1 : n + 1], out=step)
            logaddexp(stay, step, beta[:n], work)
            np.minimum(beta[:n], most, out=beta[:n])
            self._upper_beta[d, :n] = beta[:n]

    def likely(self, thresholds: np.ndarray) -> np.ndarray:
        chosen = np.zeros((self._rows, self._width), bool)
        least = np.repeat(thresholds[self._order], self._sizes)

        def compare(d: int, alpha: np.ndarray) -> None:
            n = len(alpha)
            np.minimum(alpha, 0.0, out=alpha)
            np.greater_equal(alpha + self._upper_beta[d, :n], least[:n], out=chosen[d, :n])

        with np.errstate(all="ignore"):
            self._forward(False, compare)
        chosen &= ~self._exact
        return np.concatenate([self._view(chosen, b).ravel() for b in range(len(self._extents))])

    def solve(self) -> np.ndarray:
        np.copyto(self._both, -np.inf, where=~self._exact)
        return super().solve()

    def _alpha(self) -> tuple[np.ndarray, np.ndarray]:
        return self._inside
