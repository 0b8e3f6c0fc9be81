"""Lattices on NumPy.

Samples with more labels than frames lie the other way round in memory, in a grid of their own
(:mod:`cupy_rnnt.ops.numpy.grid`), so a group has one or two :class:`Sweeps`.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any

import numpy as np

from ...topology import Topology
from ...transducer import Transducer
from ..types import Cells, HostArray, LogitRows
from .rows import row_scores
from .samples import Samples
from .sweeps import KEEP_CHUNK, NO_CELLS, ROWS, Sweeps


def lattice_nbytes(
    topology: Topology, diagonals: int, width: int, cells: int, gradient: bool, bounded: bool
) -> int:
    """A diagonal has a place for each column, whether or not there is a cell."""
    scores, arcs, reach = len(topology.scores), len(topology.arcs), topology.reach
    arrays = scores + 2 if gradient or bounded else scores
    masks = 2 * bounded
    vectors = 32 + ROWS + (ROWS + 2) * arcs + (reach + 1) * (arrays + 2)
    return (width + reach) * ((8 * arrays + masks) * diagonals + 8 * vectors)


class Lattice:
    """See :class:`cupy_rnnt.ops.lattices.Lattice`."""

    sweeps: type[Sweeps] = Sweeps

    def __init__(
        self,
        transducer: Transducer,
        samples: Samples,
        gradient: bool,
        delay_penalty: float,
        dtype: np.dtype,
    ) -> None:
        self._scores = len(transducer.topology.scores)
        self._dtype, self._start, self._first_cell = dtype, samples.numbers[0], samples.cells[0]
        frames, positions = samples.counts
        self._cells = frames * positions
        self._first = samples.cells - self._first_cell
        self._lse: HostArray | None = None
        self._allocating = Lock()  # tiles are written by several threads
        self._positions = positions
        flipped = positions > frames
        self._side = flipped.astype(np.intp)
        self._samples = [np.flatnonzero(flipped == side) for side in (False, True)]
        self._number = np.empty(len(frames), np.intp)  # of a sample within its side
        self._sides: list[Any] = []
        for side, numbers in enumerate(self._samples):
            self._number[numbers] = np.arange(len(numbers))
            lengths = frames[numbers], positions[numbers]
            self._sides.append(
                self.sweeps(transducer, *lengths, bool(side), gradient, delay_penalty)
                if len(numbers)
                else None
            )

    def _used(self) -> Iterator[tuple[Any, HostArray]]:
        """The sides that have samples, and their samples."""
        pairs = zip(self._sides, self._samples, strict=True)
        return (pair for pair in pairs if pair[0] is not None)

    def _split(self, sample: HostArray) -> Iterator[tuple[Any, Any]]:
        """The sides that have some of the cells, and which cells."""
        side = self._side[sample]
        if side.any() and not side.all():
            yield from ((self._sides[i], np.flatnonzero(side == i)) for i in (0, 1))
        elif len(side):
            yield self._sides[side[0]], slice(None)

    def write(self, cells: Cells, lse: HostArray, scores: HostArray) -> None:
        with self._allocating:
            if self._lse is None:
                self._lse = np.empty((len(lse), int(self._cells.sum())))
        self._lse[:, cells.packed - self._first_cell] = lse
        sample = cells.sample - self._start
        for sweeps, part in self._split(sample):
            coordinates = cells.frame[part], cells.position[part], cells.has_label[part]
            sweeps.write(self._number[sample[part]], *coordinates, scores[:, part])

    def write_rows(self, rows: LogitRows) -> None:
        assert rows.cells is not None
        self.write(rows.cells, *row_scores(rows))

    def leave_out(self, first: HostArray, stop: HostArray) -> None:
        for sweeps, samples in self._used():
            for number, sample in enumerate(samples.tolist()):
                sweeps.leave_out(number, first[sample], stop[sample])

    def solve(self) -> HostArray:
        costs = np.empty(len(self._cells))
        for sweeps, samples in self._used():
            costs[samples] = sweeps.solve()
        with np.errstate(over="ignore"):
            reported = costs.astype(self._dtype)
        self._costs = np.where(np.isfinite(reported), costs, reported)
        return self._costs

    def keep(self, least: HostArray) -> HostArray:
        least = np.where(np.isfinite(self._costs), least, np.inf)
        cells: list[HostArray] = [NO_CELLS] * len(self._cells)
        for sweeps, samples in self._used():
            for sample, numbers in zip(samples.tolist(), sweeps.keep(least[samples]), strict=True):
                cells[sample] = self._first_cell + self._first[sample] + numbers
        return np.concatenate(cells)

    def posteriors(
        self, packed: HostArray, of_labels: float, dtype: np.dtype, least: float
    ) -> tuple[HostArray, HostArray]:
        occupancies, cells = np.empty((self._scores, len(packed)), dtype), packed - self._first_cell
        for start in range(0, len(cells), KEEP_CHUNK):
            chunk = cells[start : start + KEEP_CHUNK]
            sample = np.searchsorted(self._first, chunk, side="right") - 1
            frame, position = np.divmod(chunk - self._first[sample], self._positions[sample])
            out = occupancies[:, start : start + len(chunk)]
            for sweeps, part in self._split(sample):
                coordinates = self._number[sample[part]], frame[part], position[part]
                out[:, part] = sweeps.occupancies(*coordinates, of_labels)
        occupancies[occupancies < least] = 0
        assert self._lse is not None
        return self._lse[:, cells], occupancies
