"""The lattices of a group on CUDA: costs, occupancies, and a bound of what was not computed.

Arrays with an entry for each cell or sample are on the device, except the lengths of the samples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...topology import LABEL, Topology
from ...transducer import NAMED, Transducer
from ..types import Cells, DeviceArray, HostArray
from .launch import BLOCK, MOST_SHARED_BYTES, Kernel, cupy

__all__ = ["BoundedLattice", "Lattice", "lattice_nbytes"]

_BLOCKS = 128, 512  # threads of a block that sweeps; each has a column of the lattice, or several
_DIAGONALS_BYTES = MOST_SHARED_BYTES - 256  # of a block, for the diagonals that it looks back to
_TOPOLOGIES = tuple((transducer.topology.cpp,) for transducer in NAMED.values())

_SAMPLE = np.dtype([("first", "i8"), ("T", "i4"), ("S", "i4")])  # as in lattice.cuh

_WRITE = Kernel("lattice_write", "lattice.cu", variants=((),))
_KEEP = Kernel("lattice_keep", "lattice.cu", variants=_TOPOLOGIES, any_first=True)
_OCCUPANCIES = Kernel("lattice_occupancies", "lattice.cu", variants=_TOPOLOGIES, any_first=True)
_WRAP = Kernel("bounded_wrap", "bounded.cu", variants=((),))


def _by_block(name: str, source: str) -> dict[int, Kernel]:
    """A kernel that sweeps over diagonals, by the threads of its block."""
    return {
        block: Kernel(
            name,
            source,
            BLOCK,
            block,
            tuple((*topology, str(block)) for topology in _TOPOLOGIES),
            _DIAGONALS_BYTES,
            any_first=True,
        )
        for block in _BLOCKS
    }


_SWEEP = _by_block("lattice_sweep", "lattice.cu")
_BETA = _by_block("bounded_beta", "bounded.cu")
_LEAVING = _by_block("bounded_leaving", "bounded.cu")
_LIKELY = _by_block("bounded_likely", "bounded.cu")


def _room(topology: Topology) -> int:
    """The most columns of a lattice whose last diagonals fit into the shared memory of a block."""
    return _DIAGONALS_BYTES // (8 * (topology.reach + 1))


def lattice_nbytes(
    topology: Topology, diagonals: int, width: int, gradient: bool, bounded: bool
) -> int:
    widest = min(width, (diagonals + 1) // 2)  # of its samples
    spare = widest > _room(topology)
    arrays = len(topology.scores) + (2 if gradient else bounded + spare)
    return width * ((8 * arrays + 2 * bounded) * diagonals + 8 * 32)


class Lattice:
    """See :class:`cupy_rnnt.ops.Lattice`.

    Parameters
    ----------
    transducer : Transducer
    frames, positions : numpy.ndarray, shape (n,), int64
        T and S = U + 1 of each sample, on the host.
    gradient : bool
        Whether occupancies are wanted. If not, beta is not computed, and alpha is kept for a few
        diagonals only.
    delay_penalty : float
    """

    def __init__(
        self,
        transducer: Transducer,
        frames: HostArray,
        positions: HostArray,
        gradient: bool,
        delay_penalty: float,
    ) -> None:
        self._topology = transducer.topology
        self._most_mass = math.log(transducer.most_mass)
        self._gradient, self._delay_penalty = gradient, delay_penalty
        scores = self._topology.scores
        label = scores.index(LABEL) if LABEL in scores else -1
        self._kinds = np.int32(len(scores)), np.int32(label), float(delay_penalty)
        cells = frames * positions
        self._cells = int(cells.sum())
        table = np.empty(len(frames), _SAMPLE)
        table["first"], table["T"], table["S"] = np.cumsum(cells) - cells, frames, positions
        self._table = cupy().asarray(table.view("i8").reshape(-1, 2))
        self._widest = int(np.minimum(frames, positions).max())
        self._scores = cupy().full((len(scores), self._cells), -np.inf)
        self._poisoned = cupy().zeros(len(frames), np.int32)
        self._exact: DeviceArray | None = None

    def write(self, cells: Cells, scores: DeviceArray) -> None:
        count = len(cells.sample)
        inputs = cells.sample, cells.frame, cells.position, scores, *self._kinds
        written = self._cells, self._scores, self._exact, self._poisoned
        _WRITE[()](count, count, self._table, *inputs, *written)

    def solve(self) -> DeviceArray:
        samples = len(self._table)
        self._costs = cupy().empty(samples)
        alpha, beta = self._spare_diagonals(), None
        if self._gradient:
            alpha, beta = self._alpha, self._beta = cupy().empty((2, self._cells))
        sweeps = samples * (1 + self._gradient)
        results = alpha, beta, self._costs
        self._sweep(_SWEEP, sweeps, samples, self._exact, self._poisoned, *results)
        return self._costs

    def keep(self, least: DeviceArray) -> DeviceArray:
        xp = cupy()
        keeps = xp.empty(self._cells, np.bool_)
        least = xp.log(least)
        if self._topology.looks_aside:
            least -= math.log(2)  # half for paths through a cell, half for arcs that read it
        sizes = self._cells, self._cells, len(self._table), self._table
        inputs = self._alpha, self._beta, self._costs, least
        _KEEP[self._topology.cpp](*sizes, *inputs, keeps)
        return xp.flatnonzero(keeps)

    def occupancies(self, cells: DeviceArray, of_labels: float, dtype: np.dtype) -> DeviceArray:
        count, kinds = len(cells), self._kinds[0]
        occupancies = cupy().empty((int(kinds), count))
        _OCCUPANCIES[self._topology.cpp](
            count,
            count,
            cells,
            len(self._table),
            self._table,
            self._scores,
            self._cells,
            self._alpha,
            self._beta,
            self._costs,
            kinds,
            float(of_labels),
            occupancies,
        )
        return occupancies.astype(dtype, copy=False)

    def _sweep(self, kernels: dict[int, Kernel], sweeps: int, *arguments: Any) -> None:
        block = next((threads for threads in _BLOCKS if threads >= self._widest), _BLOCKS[-1])
        room = min(self._widest, _room(self._topology))
        inputs = sweeps, self._table, self._scores, self._cells, np.int32(room)
        shared_bytes = 8 * (self._topology.reach + 1) * room
        kernel = kernels[block][self._topology.cpp, str(block)]
        kernel(sweeps, *inputs, *arguments, shared_bytes=shared_bytes)

    def _spare_diagonals(self) -> DeviceArray | None:
        """Memory for the diagonals of a sweep if they do not fit into shared memory."""
        return cupy().empty(self._cells) if self._widest > _room(self._topology) else None


class BoundedLattice(Lattice):
    """See :class:`cupy_rnnt.ops.BoundedLattice`; parameters are those of :class:`Lattice`."""

    def __init__(self, *parameters: Any) -> None:
        super().__init__(*parameters)
        self._exact = cupy().zeros(self._cells, np.bool_)
        self._upper_beta = cupy().empty(self._cells)
        self._written = False

    def bound(self, bounds: DeviceArray) -> None:
        sizes = self._cells, self._cells, len(self._table), self._table
        _WRAP[()](*sizes, bounds, *self._kinds, self._scores)

    def write(self, cells: Cells, scores: DeviceArray) -> None:
        super().write(cells, scores)
        self._written = True

    def certify(self) -> tuple[DeviceArray, DeviceArray]:
        xp, samples = cupy(), len(self._table)
        limits = float(self._delay_penalty), self._most_mass
        self._sweep(_BETA, samples, *limits, self._upper_beta)
        if not self._written:
            return xp.full(samples, -np.inf), self._upper_beta[self._table[:, 0]]
        log_inside, log_outside = xp.empty((2, samples))
        alpha = self._spare_diagonals()
        self._sweep(
            _LEAVING, samples, self._exact, self._upper_beta, alpha, log_inside, log_outside
        )
        return log_inside, log_outside

    def candidates(self, thresholds: DeviceArray) -> DeviceArray:
        chosen = cupy().empty(self._cells, np.bool_)
        bounds = self._exact, self._upper_beta, thresholds
        self._sweep(_LIKELY, len(self._table), *bounds, self._spare_diagonals(), chosen)
        return chosen

    def solve(self) -> DeviceArray:
        self._upper_beta = None  # makes room for beta
        return super().solve()
