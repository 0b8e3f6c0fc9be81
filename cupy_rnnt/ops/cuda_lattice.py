"""The lattices of a group on CUDA: costs, occupancies, and the bounds of what was not computed.

What has an entry for each cell or sample is on the device, but for the lengths of the samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..batch import Cells
from .cuda_rows import keep
from .launch import BLOCK, MOST_SHARED_BYTES, Kernel, cupy

__all__ = ["BoundedLattice", "Lattice", "lattice_nbytes"]

_BLOCKS = 128, 512  # threads that sweep: each has a column, or walks over several
_ROOM = (MOST_SHARED_BYTES - 256) // 16  # columns of which a block holds two diagonals

_SAMPLE = np.dtype([("first", "i8"), ("T", "i4"), ("S", "i4")])  # as in lattice.cuh

_WRITE = Kernel("lattice_write", "lattice.cu", variants=((),))
_OCCUPANCIES = Kernel("lattice_occupancies", "lattice.cu", variants=((),))
_UNWRAP = Kernel("lattice_unwrap", "lattice.cu", variants=((),))
_WRAP = Kernel("bounded_wrap", "bounded.cu", variants=((),))


def _by_block(name: str, source: str) -> dict[int, Kernel]:
    """A kernel that sweeps over diagonals, by the threads of its block."""
    return {
        block: Kernel(name, source, BLOCK, block, ((str(block),),), 16 * _ROOM) for block in _BLOCKS
    }


_SWEEP = _by_block("lattice_sweep", "lattice.cu")
_BETA = _by_block("bounded_beta", "bounded.cu")
_LEAVING = _by_block("bounded_leaving", "bounded.cu")
_LIKELY = _by_block("bounded_likely", "bounded.cu")


def lattice_nbytes(diagonals: int, width: int, gradient: bool, bounded: bool) -> int:
    """Bytes of a lattice of so many rows and columns while it is solved."""
    widest = min(width, (diagonals + 1) // 2)  # of its samples
    arrays = 4 if gradient else 2 + bounded + (widest > _ROOM)
    return width * ((8 * arrays + 2 * bounded) * diagonals + 8 * 32)


class Lattice:
    """See :class:`cupy_rnnt.ops.Lattice`.

    Parameters
    ----------
    frames, columns : numpy.ndarray, shape (n,), int64
        T and S = U + 1 of each sample, on the host.
    gradient : bool
        Whether occupancies are wanted. If not, there is no beta, and alpha is kept for two
        diagonals only.
    """

    def __init__(self, frames: np.ndarray, columns: np.ndarray, gradient: bool) -> None:
        self._gradient = gradient
        cells = frames * columns
        self._cells = int(cells.sum())
        table = np.empty(len(frames), _SAMPLE)
        table["first"], table["T"], table["S"] = np.cumsum(cells) - cells, frames, columns
        self._table = cupy().asarray(table.view("i8").reshape(-1, 2))
        self._widest = int(np.minimum(frames, columns).max())
        self._both = cupy().full((2, self._cells), -np.inf)
        self._poisoned = cupy().zeros(len(frames), np.int32)
        self._exact: Any = None

    def write(self, cells: Cells, blank: Any, label: Any) -> None:
        count = len(blank)
        coordinates = cells.sample, cells.frame, cells.position
        written = *self._both, self._exact, self._poisoned
        _WRITE[()](count, count, self._table, *coordinates, blank, label, *written)

    def solve(self) -> Any:
        samples = len(self._table)
        costs = cupy().empty(samples)
        alpha, beta = self._spare_diagonals(), None
        if self._gradient:
            alpha, beta = cupy().empty((2, self._cells))
        sweeps = samples * (1 + self._gradient)
        self._sweep(_SWEEP, sweeps, samples, self._exact, self._poisoned, alpha, beta, costs)
        if self._gradient:
            sizes = self._cells, self._cells, samples, self._table
            _OCCUPANCIES[()](*sizes, alpha, beta, costs, *self._both)
            _UNWRAP[()](*sizes, *self._both, alpha, beta)
            self._both = alpha, beta
        return costs

    def keep(self, least: Any) -> tuple[Any, Any, Any]:
        blank, label = self._both
        cells = keep(blank, label, self._table[:, 0].copy(), least)
        return cells, blank[cells], label[cells]

    def _sweep(self, kernels: dict[int, Kernel], sweeps: int, *arguments: Any) -> None:
        block = next((threads for threads in _BLOCKS if threads >= self._widest), _BLOCKS[-1])
        room = min(self._widest, _ROOM)
        inputs = sweeps, self._table, *self._both, np.int32(room)
        kernels[block][str(block)](sweeps, *inputs, *arguments, shared_bytes=16 * room)

    def _spare_diagonals(self) -> Any:
        """Where a sweep keeps what does not fit into shared memory."""
        return cupy().empty(self._cells) if self._widest > _ROOM else None


class BoundedLattice(Lattice):
    """See :class:`cupy_rnnt.ops.BoundedLattice`; parameters are those of :class:`Lattice`."""

    def __init__(self, frames: np.ndarray, columns: np.ndarray, gradient: bool) -> None:
        super().__init__(frames, columns, gradient)
        self._exact = cupy().zeros(self._cells, np.bool_)
        self._upper_beta = cupy().empty(self._cells)
        self._written = False

    def bound(self, bounds: Any) -> None:
        sizes = self._cells, self._cells, len(self._table), self._table
        _WRAP[()](*sizes, *bounds, *self._both)

    def write(self, cells: Cells, blank: Any, label: Any) -> None:
        super().write(cells, blank, label)
        self._written = True

    def certify(self) -> tuple[Any, Any]:
        xp, samples = cupy(), len(self._table)
        self._sweep(_BETA, samples, self._upper_beta)
        if not self._written:
            return xp.full(samples, -np.inf), self._upper_beta[self._table[:, 0]]
        inside, leaving = xp.empty((2, samples))
        alpha = self._spare_diagonals()
        self._sweep(_LEAVING, samples, self._exact, self._upper_beta, alpha, inside, leaving)
        return inside, leaving

    def likely(self, thresholds: Any) -> Any:
        chosen = cupy().empty(self._cells, np.bool_)
        bounds = self._exact, self._upper_beta, thresholds
        self._sweep(_LIKELY, len(self._table), *bounds, self._spare_diagonals(), chosen)
        return chosen

    def solve(self) -> Any:
        self._upper_beta = None  # makes room for beta
        return super().solve()
