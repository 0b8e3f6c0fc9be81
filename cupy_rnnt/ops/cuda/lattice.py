"""The lattices of a group on CUDA: costs, occupancies, and a bound of what was not computed.

Arrays with an entry for each cell are on the device.
"""

from __future__ import annotations

import numpy as np

from ...topology import LABEL, Topology
from ...transducer import NAMED, Transducer
from ..types import Cells, DeviceArray, HostArray, LogitRows, PathMass
from .indices import indices
from .launch import BLOCK, COMPUTE, MOST_SHARED_BYTES, WARP, Kernel, cupy, host
from .rows import write_row_scores
from .samples import Samples

__all__ = ["BoundedLattice", "Lattice", "lattice_nbytes"]

_BLOCKS = 128, 512  # threads of a block that sweeps; each has a column of the lattice, or several
_DIAGONALS_BYTES = MOST_SHARED_BYTES - 256  # of a block, for the diagonals that it looks back to
_STATE_BYTES = 12  # of a cell there: a mantissa and an exponent
_PARTS = 16  # of a sample, each of which a block adds up
_PACKING = 2.0**-40  # relative error of a sum in memory
TOPOLOGIES = (*dict.fromkeys((transducer.topology.cpp,) for transducer in NAMED.values()),)

_ROUNDING_UP = 8 * 512  # bytes: CuPy's pool gives multiples of 512, to eight small arrays here

_WRITE = Kernel("lattice_write", "lattice.cu", variants=((),))
_BOUND = Kernel("lattice_bound", "lattice.cu", variants=((),))
_LEAVE_OUT = Kernel("lattice_leave_out", "lattice.cu", variants=((),))
_COMPLETE = Kernel("lattice_complete", "cells.cu", variants=((),))
_SWEEPS = {
    block: Kernel(
        "lattice_sweep",
        "lattice.cu",
        BLOCK,
        block,
        tuple((*topology, str(block)) for topology in TOPOLOGIES),
        _DIAGONALS_BYTES,
        any_first=True,
    )
    for block in _BLOCKS
}
_MARK = Kernel("lattice_mark", "cells.cu", variants=TOPOLOGIES, any_first=True)
_KEEP = Kernel("lattice_keep", "cells.cu", WARP, variants=TOPOLOGIES, any_first=True)
_LEAVING = Kernel("lattice_leaving", "cells.cu", BLOCK, variants=TOPOLOGIES, any_first=True)
_POSTERIORS = Kernel(
    "lattice_posteriors",
    "cells.cu",
    variants=tuple((*topology, *c) for topology in TOPOLOGIES for c in COMPUTE),
    any_first=True,
)

# The ways to sweep, and their bits, as in lattice.cu.
_BETA, _UPPER_ALPHA, _ALPHA, _UPPER_BETA = range(4)


def _most_columns(topology: Topology) -> int:
    """The most columns of a lattice that has a thread for each of them and whose last diagonals fit
    into shared memory."""
    return min(_DIAGONALS_BYTES // (_STATE_BYTES * (topology.reach + 1)), _BLOCKS[-1])


def lattice_nbytes(
    topology: Topology, diagonals: int, width: int, cells: int, gradient: bool, bounded: bool
) -> int:
    arrays = len(topology.scores) + (2 + gradient if bounded else 2 * gradient)
    widest = min(width, (diagonals + 1) // 2)  # of its samples
    spare = 3 * _spare_words(topology) if widest > _most_columns(topology) else 0
    of_samples = 64 + 8 * (_PARTS if bounded else 0)  # which have two columns at least
    of_cells = (8 * arrays + 2 * bounded) * cells
    return of_cells + width * (of_samples // 2 + 8 * spare) + _ROUNDING_UP


def _spare_words(topology: Topology) -> int:
    """Words of 8 bytes that a column takes for the last diagonals of a sweep, if a sample does not
    have a thread for each column, or these do not fit into shared memory."""
    return 2 * (topology.reach + 1)


class Lattice:
    """See :class:`cupy_rnnt.ops.lattices.Lattice`.

    Parameters
    ----------
    transducer : Transducer
    samples : Samples
    gradient : bool
        Whether occupancies are wanted. If not, no sum over paths is kept but the last.
    delay_penalty : float
    dtype : numpy.dtype
        In which the costs are reported.
    """

    _bounded = False

    def __init__(
        self,
        transducer: Transducer,
        samples: Samples,
        gradient: bool,
        delay_penalty: float,
        dtype: np.dtype,
    ) -> None:
        self._topology = topology = transducer.topology
        self._most_mass = float(transducer.most_mass)
        self._gradient, self._delay_penalty = gradient, float(delay_penalty)
        self._narrow, self._of = dtype != np.float64, samples
        frames, positions, columns = samples.lengths
        label = topology.scores.index(LABEL) if LABEL in topology.scores else -1
        factors = max(len(topology.read_by(arc)) for arc in topology.arcs)
        # On each diagonal, words are rounded twice, and products and sums once. As a logarithm, the
        # sum is rounded in proportion to its size. The mass inside C is rounded likewise.
        unit, each = np.finfo(np.float64).eps / 2, len(topology.arcs) + 3 * factors
        self._rounding = 2 * each * unit * (frames + positions)
        # Sums of exponents have 40 bits in memory, which are not enough for gradients of float64.
        counts = len(topology.scores), label, factors if self._narrow else 0
        self._kinds = *map(np.int32, counts), self._delay_penalty
        self._cells, self._samples, self._longest = samples.cells, samples.size, int(frames.max())
        widest, fitting = int(columns.max()), _most_columns(topology)
        self._swept = *samples.table, np.int32(fitting)
        self._block = next((block for block in _BLOCKS if block >= widest), _BLOCKS[-1])
        self._spare = _spare_words(topology) * samples.columns if widest > fitting else 0
        self._shared_bytes = _STATE_BYTES * (topology.reach + 1) * min(widest, fitting)
        library = cupy()
        self._words = library.empty((len(topology.scores), self._cells))
        marks, flags = 16 * self._samples, 20 * self._samples
        zeros = library.zeros(flags + (self._cells if self._bounded else 0), np.uint8)
        self._counts = [*zeros[:marks].view(np.int64).reshape(2, -1)]  # of marks: candidates, kept
        self._flags = zeros[marks:flags].view(np.int32)
        self._exact = zeros[flags:].view(np.bool_) if self._bounded else None
        self._left_out: DeviceArray = None
        self._lse: DeviceArray = None
        self._sums: dict[int, DeviceArray] = {}  # of paths, since the last score, by the way
        # Costs; logarithms of the sums, by the way; and shares of the paths that leave C.
        self._results = library.empty((5 + _PARTS if self._bounded else 5, self._samples))
        self._totals = self._results[1:5]
        self._costs: DeviceArray = None

    def write(self, cells: Cells, lse: DeviceArray, scores: DeviceArray) -> None:
        self._begin_writing(len(lse))
        count = len(cells)
        inputs = *self._of.table, cells.packed, lse, np.int32(len(lse)), scores
        outputs = self._cells, self._lse, self._words, self._exact, self._flags
        _WRITE[()](count, count, *inputs, *self._kinds, *outputs)

    def write_rows(self, rows: LogitRows) -> None:
        self._begin_writing(rows.layout.heads)
        of_group = self._of.first_cell, self._of.start, *self._kinds[1:]
        to = *of_group, self._words, self._exact, self._flags
        write_row_scores(rows, self._lse, None, *to)

    def _begin_writing(self, heads: int) -> None:
        if self._lse is None:
            self._lse = cupy().empty((heads, self._cells))
        self._costs = None
        self._sums.clear()

    def leave_out(self, first: HostArray, stop: HostArray) -> None:
        library = cupy()
        self._left_out = library.empty(self._cells, np.bool_)
        sizes = self._cells, self._cells, *self._of.table
        band = *map(library.asarray, (first, stop)), first.shape[1]
        outputs = self._words, len(self._words), self._left_out, self._exact
        _LEAVE_OUT[()](*sizes, *band, *outputs)

    def solve(self) -> DeviceArray:
        if self._costs is None:
            self._sweep(_ALPHA, _BETA)
        return self._costs

    def keep(self, least: HostArray) -> DeviceArray:
        if self._topology.looks_aside:
            least = least / 2  # half for paths through a cell, half for arcs that read it
        sums = self._sums[_ALPHA], self._sums[_BETA]
        limits = cupy().asarray(least), self._costs, self._left_out
        marks, counts = self._marks()
        lattices = self._longest, *self._swept, self._flags, *sums
        _KEEP[self._topology.cpp](self._samples * self._longest, *lattices, *limits, marks, counts)
        return indices(marks, int(host(counts)[0].sum()), self._of.first_cell)

    def _marks(self) -> tuple[DeviceArray, DeviceArray]:
        """Memory for marks of cells, and zeros, to count them in each sample."""
        library = cupy()
        counts = self._counts.pop() if self._counts else library.zeros(self._samples, np.int64)
        return library.empty(self._cells, np.bool_), counts

    def posteriors(
        self, packed: DeviceArray, of_labels: float, dtype: np.dtype, least: float
    ) -> tuple[DeviceArray, DeviceArray]:
        count, heads = len(packed), len(self._lse)
        lse = cupy().empty((heads, count))
        occupancies = cupy().empty((len(self._words), count), dtype)
        topology = self._topology
        read = {score for arc in topology.arcs for score in topology.read_by(arc)}
        written = 1 + max(map(topology.scores.index, read))
        if written < len(occupancies):  # see `Topology.within`
            occupancies[written:].fill(0)
        _POSTERIORS[topology.cpp, dtype](
            count,
            *(count, packed, *self._swept, self._flags),
            *(self._words, self._cells, self._sums[_ALPHA], self._sums[_BETA], self._costs),
            *(float(of_labels), float(least), self._lse, np.int32(heads), lse, occupancies),
        )
        return lse, occupancies

    def _sweep(self, *ways: int) -> None:
        """Sweep in some ways at once; beta is needed for the gradient only."""
        library, topology = cupy(), self._topology
        ways = tuple(way for way in ways if way != _BETA or self._gradient)
        if _ALPHA in ways:
            self._costs = self._results[0]
        for pair in (_ALPHA, _BETA), (_UPPER_ALPHA, _UPPER_BETA):  # which are dropped together
            swept = [way for way in pair if way in ways]
            if swept and (self._gradient or self._bounded):
                sums = library.empty((len(swept), self._cells), np.int64)
                self._sums.update(zip(swept, sums, strict=True))
        sweeps = self._samples * len(ways)
        spare = library.empty(len(ways) * self._spare) if self._spare else None
        _SWEEPS[self._block][topology.cpp, self._block](
            sweeps,
            *(sweeps, np.int32(sum(1 << way for way in ways)), *self._swept),
            *(self._words, self._cells, self._exact, self._flags, self._delay_penalty),
            *(self._most_mass, spare, self._spare, *map(self._sums.get, range(4))),
            *(self._totals, self._costs, self._narrow),
            shared_bytes=self._shared_bytes,
        )


class BoundedLattice(Lattice):
    """See :class:`cupy_rnnt.ops.lattices.BoundedLattice`, and for parameters :class:`Lattice`."""

    _bounded = True

    def bound(self, bounds: DeviceArray) -> None:
        sizes = self._cells, self._cells, *self._of.table
        _BOUND[()](*sizes, bounds, *self._kinds, self._words, self._flags)
        self._sums.clear()

    def certify(self) -> PathMass:
        self._sweep(_ALPHA, _BETA, _UPPER_BETA)
        samples, upper_beta = self._samples, self._sums[_UPPER_BETA]
        _LEAVING[self._topology.cpp](
            samples * _PARTS,
            *(_PARTS, *self._swept, self._flags, self._exact, self._sums[_ALPHA]),
            *(upper_beta, self._totals[_UPPER_BETA], self._results[5:]),
        )
        inside, upper, *rest = host(self._results[3:])[0]
        shares = np.concatenate(rest).reshape(samples, _PARTS)
        with np.errstate(all="ignore"):
            # A share that underflows is below the least double.
            share = shares.sum(axis=1) + self._cells * np.finfo(np.float64).tiny
            base = np.where(upper > -np.inf, upper, 0)
            share *= 1 + 2 * _PACKING + self._rounding * (1 + abs(base))
            return PathMass(inside, np.log(share) + base, upper)

    def candidates(self, least: HostArray) -> tuple[DeviceArray, DeviceArray]:
        for way in _ALPHA, _BETA:
            self._sums.pop(way, None)  # C will grow
        self._costs = None
        ways = [way for way in (_UPPER_ALPHA, _UPPER_BETA) if way not in self._sums]
        if ways:
            self._sweep(*ways)
        sizes = self._cells, self._cells, *self._swept, self._flags
        sums = self._sums[_UPPER_ALPHA], self._sums[_UPPER_BETA]
        limits = cupy().asarray(least), self._totals[_UPPER_BETA], self._exact
        marks, counts = self._marks()
        _MARK[self._topology.cpp](*sizes, *sums, *limits, marks, counts)
        return marks, counts

    def complete(self, marks: DeviceArray, samples: HostArray) -> None:
        sizes = self._cells, self._cells, *self._of.table
        _COMPLETE[()](*sizes, cupy().asarray(samples), self._exact, marks)

    def solve(self) -> DeviceArray:
        costs = super().solve()
        for way in _UPPER_ALPHA, _UPPER_BETA:
            self._sums.pop(way, None)
        return costs
