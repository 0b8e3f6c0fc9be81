"""The place of the cells of a group of samples in memory, on NumPy: by anti-diagonals.

Cell ``(t, u)`` is in row ``d = t + u``. Within a row a sample takes one column per ``u`` (or, if
*flipped*, per ``t``: whichever has fewer) and `spare` columns behind them. The samples lie side by
side, longest first, so that the samples that have cells on a diagonal are a prefix of the row.

An arc leads ``frames + labels`` rows down and ``labels`` columns (or, if flipped, ``frames``) to
the right. Entries that are no cell hold log-probs of -inf, so nothing flows through them, and the
recursion needs no masks. An arc crosses at most `spare` columns, so it never reaches the next
sample from the last column of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...topology import Arc
from ..types import HostArray


class Grid:
    """The geometry of the samples that lie one way round.

    Parameters
    ----------
    frames, positions : numpy.ndarray, shape (n,), int64
        T and S = U + 1 of each sample.
    flipped : bool
        Whether columns are frames.
    spare : int
        The most columns that an arc crosses.

    Attributes
    ----------
    rows, width : int
    ends : list of int
        The column behind the last sample that has cells in the row, for each row.
    first, exit : numpy.ndarray, shape (n,)
        The places of ``(0, 0)`` and of ``(T, U)``, which is no cell, of each sample in a flat array
        of rows.
    frame_stride, position_stride : int
        From a cell to that of the next frame, or position, in such an array.
    starts : range
        Where each row, and any further one, begins in the flat memory of :meth:`full`.
    """

    def __init__(self, frames: HostArray, positions: HostArray, flipped: bool, spare: int) -> None:
        self.frames, self.positions, self.flipped, self._spare = frames, positions, flipped, spare
        diagonals = frames + positions - 1
        self.order = np.argsort(-diagonals, kind="stable")
        self._widths = (np.minimum(frames, positions) + spare)[self.order]
        ends = np.cumsum(self._widths)
        self.first = np.empty_like(ends)
        self.first[self.order] = ends - self._widths
        self.rows, self.width = int(diagonals.max()), int(ends[-1]) + spare
        # longer[d] samples, the first in stored order, have more than d diagonals.
        longer = np.searchsorted(-diagonals[self.order], -np.arange(self.rows))
        self.ends = np.concatenate(([0], ends))[longer].tolist()
        self.starts = range(spare, 2**62, self.width)
        self.frame_stride = self.width + flipped
        self.position_stride = self.width + (not flipped)
        self.exit = self.first + self.offset(frames, positions - 1)

    def offset(self, frames: Any, labels: Any) -> Any:
        """From the place of ``(t, u)`` to that of ``(t + frames, u + labels)`` in a flat array."""
        return frames * self.frame_stride + labels * self.position_stride

    def shift(self, arc: Arc) -> int:
        """Columns that an arc leads to the right."""
        return arc.frames if self.flipped else arc.labels

    def full(self, rows: int, arrays: int | None = None) -> tuple[HostArray, HostArray]:
        """Memory of -inf for one array of rows, or for several: flat, with `spare` entries in front
        of the first row and one row behind the last, and a view of the rows alone."""
        extents = () if arrays is None else (arrays,)
        memory = np.full((*extents, self._spare + (rows + 1) * self.width), -np.inf)
        of_rows = memory[..., self._spare : self._spare + rows * self.width]
        return memory, of_rows.reshape(*extents, rows, self.width)

    def block(self, memory: HostArray, place: int, extents: tuple[int, int]) -> HostArray:
        """So many rows and columns of flat memory, from a place on, as a view."""
        count, n = extents
        return memory[place : place + count * self.width].reshape(count, self.width)[:, :n]

    def places(self, sample: HostArray, frame: HostArray, position: HostArray) -> HostArray:
        """The places of cells in a flat array; `sample` counts within the grid."""
        places: HostArray = self.first[sample] + self.offset(frame, position)
        return places

    def view(self, array: HostArray, sample: int) -> HostArray:
        """The cells of a sample, (T, S), as a view of an array of rows."""
        strides = self.frame_stride * array.itemsize, self.position_stride * array.itemsize
        extents = int(self.frames[sample]), int(self.positions[sample])
        return as_strided(array.reshape(-1)[self.first[sample] :], extents, strides)

    def repeat(self, values: HostArray, behind: float) -> HostArray:
        """A row with the value of each sample in all its columns, and `behind` in the columns
        behind the last sample."""
        row = np.full(self.width, behind, values.dtype)
        row[: self.ends[0]] = np.repeat(values[self.order], self._widths)
        return row

    def sums(self, row: HostArray) -> HostArray:
        """The sum of a row over the columns of each sample."""
        sums = np.empty(len(self.first), row.dtype)
        sums[self.order] = np.add.reduceat(row[: self.ends[0]], self.first[self.order])
        return sums
