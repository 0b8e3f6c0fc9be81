"""Lattices that hold exact log-probs in some cells, the set C, and upper bounds in the others.

With both, sweeps over the anti-diagonals bound the true alpha and beta of every cell from above.
The alpha of paths that never leave C needs exact log-probs only; where such a path first steps out
of C, alpha times the bound of beta is a bound of all its continuations. Their sum over the edge of
C bounds the probability of all paths that are not inside: positive terms, nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..batch import Cells
from .lattice import Lattice, logaddexp

_BLOCK = 2**15  # entries of some diagonals


class BoundedLattice(Lattice):
    """See :class:`cupy_rnnt.ops.BoundedLattice`; parameters are those of :class:`Lattice`."""

    def __init__(self, frames: np.ndarray, columns: np.ndarray, gradient: bool) -> None:
        super().__init__(frames, columns, gradient)
        self._exact = np.zeros((self._rows, self._width), bool)
        self._inside: tuple[np.ndarray, np.ndarray] | None = None

    def bound(self, bounds: np.ndarray) -> None:
        first = 0
        for i, extents in enumerate(self._extents):
            mine = slice(first, first + math.prod(extents))
            for view, values in zip(self._views(i), bounds[:, mine], strict=True):
                view[...] = values.reshape(extents)
            first = mine.stop

    def write(self, cells: Cells, blank: np.ndarray, label: np.ndarray) -> None:
        super().write(cells, blank, label)
        self._exact.reshape(-1)[self._places(cells)] = True

    def certify(self) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            self._bound_beta()
            total = self._upper_beta[0, self._first]
            if not self._exact.any():
                return np.full_like(total, -np.inf), total
            last, alpha = self._inside = self._forward(True, self._exact)
            # Shares of the bound of all paths: linear, as none is above 1. Those that vanish in
            # float64 are made up for by the least number for every cell.
            base = np.repeat(np.where(total > -np.inf, total, 0.0)[self._order], self._sizes)
            shares = np.full(self._width, np.finfo(np.float64).tiny * self._rows)
            for rows in self._blocks():
                exact = self._exact[rows]
                share = alpha[rows] + self._upper_beta[rows]
                share -= base
                np.exp(share, out=share)
                np.copyto(share, 0.0, where=exact)
                shares += share.sum(axis=0)
                np.copyto(alpha[rows], -np.inf, where=~exact)
            starts = np.cumsum(self._sizes) - self._sizes
            leaving = np.empty_like(total)
            leaving[self._order] = np.log(np.add.reduceat(shares, starts)) + base[starts]
            return last + self._last_blank(), leaving

    def _blocks(self) -> Iterator[slice]:
        """Some diagonals at a time: what is worked on stays small."""
        rows = max(1, _BLOCK // self._width)
        return (slice(start, start + rows) for start in range(0, self._rows, rows))

    def _bound_beta(self) -> None:
        """Sweep the bounds of log beta backward, into ``_upper_beta``."""
        self._upper_beta = np.full((self._rows, self._width), -np.inf)
        beta = np.full(self._width + 1, -np.inf)
        spare = np.empty((4, self._width))
        exit_column = self._last_column + self._flipped
        for d in range(self._rows - 1, -1, -1):
            if self._alive[d + 1] < self._alive[d]:
                beta[exit_column[self._order[self._alive[d + 1] : self._alive[d]]]] = 0.0
            n = self._ends[d]
            stay, step, most, work = spare[:, :n]
            here, there = beta[:n], beta[1 : n + 1]
            np.maximum(here, there, out=most)  # as b + l <= 1
            np.add(self._stay[d, :n], here, out=stay)
            np.add(self._step[d, :n], there, out=step)
            logaddexp(stay, step, here, work)
            np.minimum(here, most, out=here)
            self._upper_beta[d, :n] = here

    def likely(self, thresholds: np.ndarray) -> np.ndarray:
        self._inside = None  # cells will be added, and its memory is needed
        least = np.repeat(thresholds[self._order], self._sizes)
        chosen = np.empty((self._rows, self._width), bool)
        with np.errstate(all="ignore"):
            _, alpha = self._forward(True)
            for rows in self._blocks():
                np.greater_equal(alpha[rows] + self._upper_beta[rows], least, out=chosen[rows])
        chosen &= ~self._exact
        return np.concatenate([self._view(chosen, b).ravel() for b in range(len(self._extents))])

    def solve(self) -> np.ndarray:
        np.copyto(self._both, -np.inf, where=~self._exact)
        return super().solve()

    def _alpha(self) -> tuple[np.ndarray, np.ndarray]:
        assert self._inside is not None  # of the last certify()
        return self._inside
