"""The lattice recursion on NumPy: all samples of a group, one anti-diagonal at a time, in float64.

A sample's lattice is stored by anti-diagonals ``d = t + u``, one row each. Within a row it takes
one column per ``u`` (or per ``t``, whichever there are fewer of) and one spare column behind them;
the samples of a group lie side by side, longest first, so that the samples still alive on a
diagonal are a prefix of the row. A transition leads from row d to row d + 1 and either *stays* in
its column or *steps* to the next:

                         column = u            column = t
    blank (t + 1)        stay                  step
    label (u + 1)        step                  stay

Entries that are no cell hold log-probs of -inf, so nothing flows through them, and the recursion
needs no masks.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..batch import Cells

_KEEP_CHUNK = 2**14  # cells; bounds what choosing the kept cells allocates
_VECTOR_LOGADDEXP = 300  # from this length on, NumPy's vector exp and log1p beat its logaddexp


def lattice_nbytes(diagonals: int, width: int, gradient: bool, bounded: bool) -> int:
    """Bytes of a lattice of so many rows and columns while it is solved."""
    arrays = 4 if bounded else 2 + gradient
    masks = 2 * bounded
    return width * ((8 * arrays + masks) * diagonals + 8 * 32)


class Lattice:
    """See :class:`cupy_rnnt.ops.Lattice`.

    Parameters
    ----------
    frames, columns : numpy.ndarray, shape (n,), int64
        T and S = U + 1 of each sample.
    gradient : bool
        Whether occupancies are wanted. If not, alpha is kept for two diagonals only.
    """

    def __init__(self, frames: np.ndarray, columns: np.ndarray, gradient: bool) -> None:
        self._gradient = gradient
        self._extents = list(zip(frames.tolist(), columns.tolist(), strict=True))
        self._flipped = columns > frames
        diagonals = frames + columns - 1
        self._order = np.argsort(-diagonals, kind="stable")
        sizes = (np.minimum(frames, columns) + 1)[self._order]
        ends = np.cumsum(sizes)
        self._sizes = sizes
        self._first = np.empty_like(ends)
        self._first[self._order] = ends - sizes
        self._rows, self._width = int(diagonals.max()), int(ends[-1])
        # Of the samples in stored order, how many are alive on each diagonal, and up to where.
        self._alive = np.searchsorted(-diagonals[self._order], -np.arange(self._rows + 1))
        self._ends = np.concatenate(([0], ends))[self._alive].tolist()
        # Cell (t, u) is at first + t * frame_stride + u * column_stride.
        self._frame_stride = self._width + self._flipped
        self._column_stride = self._width + ~self._flipped
        last = (frames - 1) * self._frame_stride + (columns - 1) * self._column_stride
        self._last = self._first + last
        self._last_column = self._last - (diagonals - 1) * self._width
        self._poisoned = np.zeros(len(frames), bool)
        self._stay, self._step = self._both = np.full((2, self._rows, self._width), -np.inf)

    def write(self, cells: Cells, blank: np.ndarray, label: np.ndarray) -> None:
        label = np.where(cells.has_label, label, -np.inf)
        bad = ~((blank < np.inf) & (label < np.inf))
        if bad.any():
            self._poisoned[cells.sample[bad]] = True
            blank = np.where(bad, -np.inf, blank)
            label = np.where(bad, -np.inf, label)
        where = self._places(cells)
        of_blank = where + self._flipped[cells.sample] * self._stay.size  # a step if flipped
        of_label = where + ~self._flipped[cells.sample] * self._stay.size
        both = self._both.reshape(-1)
        both[of_blank] = blank
        both[of_label] = label

    def _places(self, cells: Cells) -> np.ndarray:
        where: np.ndarray = self._first[cells.sample]
        where += cells.frame * self._frame_stride[cells.sample]
        where += cells.position * self._column_stride[cells.sample]
        return where

    def _view(self, array: np.ndarray, sample: int) -> np.ndarray:
        """The cells of a sample, (T, S), in an array of diagonals."""
        strides = self._frame_stride[sample], self._column_stride[sample]
        return as_strided(
            array.reshape(-1)[self._first[sample] :],
            self._extents[sample],
            [int(stride) * array.itemsize for stride in strides],
        )

    def _views(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """Blank and label transitions of a sample, (T, S)."""
        stay, step = self._view(self._stay, sample), self._view(self._step, sample)
        return (step, stay) if self._flipped[sample] else (stay, step)

    def solve(self) -> np.ndarray:
        with np.errstate(all="ignore"):
            last_alpha, alpha = self._alpha()
            log_prob = last_alpha + self._last_blank()
            costs: np.ndarray = np.where(self._poisoned, np.nan, -log_prob)
            if self._gradient:
                # Subtracting +inf makes every occupancy of the sample exp(-inf) = 0.
                self._backward(alpha, np.where(np.isfinite(costs), log_prob, np.inf))
        return costs

    def keep(self, least: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kept = [(np.empty(0, np.int64), np.empty(0), np.empty(0))]
        first = 0
        for i, (frames, columns) in enumerate(self._extents):
            of_blank, of_label = self._views(i)
            rows = max(1, _KEEP_CHUNK // columns)
            for start in range(0, frames, rows) if least[i] < np.inf else ():
                blank, label = of_blank[start : start + rows], of_label[start : start + rows]
                mask = blank + label >= least[i]
                cells = first + start * columns + np.flatnonzero(mask)
                kept.append((cells, blank[mask], label[mask]))
            first += frames * columns
        cells, blank, label = map(np.concatenate, zip(*kept, strict=True))
        return cells, blank, label

    def _last_blank(self) -> np.ndarray:
        """Log-prob of the blank that leaves each sample's last cell."""
        blank: np.ndarray = self._both.reshape(-1)[self._last + self._flipped * self._stay.size]
        return blank

    def _alpha(self) -> tuple[np.ndarray, np.ndarray]:
        """log alpha of each sample's last cell; of all cells if there is to be a gradient, else of
        the last two diagonals."""
        return self._forward(self._gradient)

    def _forward(
        self, keep: bool, passing: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sweep log alpha forward, on all diagonals or (without `keep`) two in turn.

        Cells that are not `passing`, (rows, width), pass nothing on.
        """
        alpha = np.full((self._rows if keep else 2, self._width), -np.inf)
        last = np.empty(len(self._first))
        spare = np.empty((3, self._width))
        alpha[0, self._first] = 0.0
        for d in range(self._rows):
            current = alpha[d % len(alpha)]
            if passing is not None:
                current = np.where(passing[d], current, -np.inf)
            if self._alive[d + 1] < self._alive[d]:
                ending = self._order[self._alive[d + 1] : self._alive[d]]
                last[ending] = current[self._last_column[ending]]
            n = self._ends[d + 1]
            if n:
                stay, step, work = spare[:, :n]
                np.add(current[:n], self._stay[d, :n], out=stay)
                np.add(current[: n - 1], self._step[d, : n - 1], out=step[1:])
                step[0] = -np.inf
                logaddexp(stay, step, alpha[(d + 1) % len(alpha), :n], work)
        return last, alpha

    def _backward(self, alpha: np.ndarray, log_prob: np.ndarray) -> None:
        """Sweep log beta back and put the occupancies where the log-probs are."""
        log_probs = np.repeat(log_prob[self._order], self._sizes)
        beta = np.full(self._width + 1, -np.inf)
        spare = np.empty((3, self._width))
        exit_column = self._last_column + self._flipped  # where the blank of the last cell leads
        for d in range(self._rows - 1, -1, -1):
            ending = self._order[self._alive[d + 1] : self._alive[d]]
            beta[exit_column[ending]] = 0.0
            n = self._ends[d]
            stay, step, work = spare[:, :n]
            np.add(self._stay[d, :n], beta[:n], out=stay)
            np.add(self._step[d, :n], beta[1 : n + 1], out=step)
            logaddexp(stay, step, beta[:n], work)
            before = alpha[d, :n]
            before -= log_probs[:n]
            stay += before
            step += before
            np.exp(stay, out=self._stay[d, :n])
            np.exp(step, out=self._step[d, :n])


def logaddexp(a: np.ndarray, b: np.ndarray, out: np.ndarray, work: np.ndarray) -> None:
    """``out = log(exp(a) + exp(b))`` for values below +inf; `out` may hold neither argument."""
    if a.size < _VECTOR_LOGADDEXP:
        np.logaddexp(a, b, out=out)
        return
    np.maximum(a, b, out=out)
    np.minimum(a, b, out=work)
    work -= out
    np.fmax(work, -800.0, out=work)  # also turns the NaN of -inf - -inf into "nothing to add"
    np.exp(work, out=work)
    np.log1p(work, out=work)
    out += work
