"""Where the cells of some samples lie in memory, on NumPy: by anti-diagonals.

Cell ``(t, u)`` is in row ``d = t + u``. Within a row a sample takes one column per ``u`` (or, if
*flipped*, per ``t``: whichever there are fewer of) and `spare` columns behind them. The samples lie
side by side, longest first, so that those still alive on a diagonal are a prefix of the row.

An arc of so many frames and labels leads ``frames + labels`` rows down and, as columns are
positions or frames, ``labels`` or ``frames`` columns to the right. Entries that are no cell hold
log-probs of -inf, so nothing flows through them, and the recursion needs no masks: at most `spare`
columns are crossed, those behind each sample and behind the last one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...transducer import Arc
from ..types import HostArray


class Grid:
    """The geometry of samples of one orientation.

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
        Of each row, up to which column there are samples alive.
    first, exit : numpy.ndarray, shape (n,)
        Of each sample, where ``(0, 0)`` and where ``(T, U)`` is, which is no cell, in an array of
        ``width`` columns that is laid out flat.
    frame_stride, position_stride : int
        In such an array.
    starts : range
        Where each row, and any further one, begins in the memory of :meth:`full`.
    """

    def __init__(self, frames: HostArray, positions: HostArray, flipped: bool, spare: int) -> None:
        self.frames, self.positions, self.flipped, self._spare = frames, positions, flipped, spare
        self.diagonals = frames + positions - 1
        self.order = np.argsort(-self.diagonals, kind="stable")
        self._widths = (np.minimum(frames, positions) + spare)[self.order]
        ends = np.cumsum(self._widths)
        self.first = np.empty_like(ends)
        self.first[self.order] = ends - self._widths
        self.rows, self.width = int(self.diagonals.max()), int(ends[-1]) + spare
        # Of the samples in stored order, how many have more than so many diagonals.
        longer = np.searchsorted(-self.diagonals[self.order], -np.arange(self.rows + 1))
        self._longer = longer.tolist()
        self.ends = np.concatenate(([0], ends))[longer].tolist()
        self.starts = range(spare, 2**62, self.width)
        self.frame_stride = self.width + flipped
        self.position_stride = self.width + (not flipped)
        self.exit = self.first + self.offset(frames, positions - 1)

    def offset(self, frames: Any, labels: Any) -> Any:
        """How far ``(t + frames, u + labels)`` is behind ``(t, u)`` in a flat array."""
        return frames * self.frame_stride + labels * self.position_stride

    def shift(self, arc: Arc) -> int:
        """How many columns an arc leads to the right."""
        return arc.frames if self.flipped else arc.labels

    def full(self, rows: int, arrays: int | None = None) -> tuple[HostArray, HostArray]:
        """So many rows of -inf, or several arrays of them: flat, with `spare` entries in front of
        the first row and a row behind the last one, and the rows alone."""
        extents = () if arrays is None else (arrays,)
        memory = np.full((*extents, self._spare + (rows + 1) * self.width), -np.inf)
        of_rows = memory[..., self._spare : self._spare + rows * self.width]
        return memory, of_rows.reshape(*extents, rows, self.width)

    def with_diagonals(self, count: int) -> HostArray:
        """The samples that have so many."""
        inside = 0 < count <= self.rows
        return self.order[self._longer[count] : self._longer[count - 1]] if inside else _NONE

    def places(self, sample: HostArray, frame: HostArray, position: HostArray) -> HostArray:
        """Where cells are in a flat array; `sample` counts among those of the grid."""
        places: HostArray = self.first[sample] + self.offset(frame, position)
        return places

    def view(self, array: HostArray, sample: int) -> HostArray:
        """The cells of a sample, (T, S), in an array of rows."""
        strides = self.frame_stride * array.itemsize, self.position_stride * array.itemsize
        extents = int(self.frames[sample]), int(self.positions[sample])
        return as_strided(array.reshape(-1)[self.first[sample] :], extents, strides)

    def repeat(self, values: HostArray, behind: Any) -> HostArray:
        """A row with the value of each sample in all its columns, and another one behind them."""
        row = np.full(self.width, behind, values.dtype)
        row[: self.ends[0]] = np.repeat(values[self.order], self._widths)
        return row

    def sums(self, row: HostArray) -> HostArray:
        """Of the columns of each sample."""
        sums = np.empty(len(self.first), row.dtype)
        sums[self.order] = np.add.reduceat(row[: self.ends[0]], self.first[self.order])
        return sums


_NONE = np.empty(0, np.intp)
