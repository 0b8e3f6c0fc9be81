"""The operations of :mod:`cupy_rnnt.ops` on the rows of CuPy arrays.

Arrays with an entry for each row are on the device, too: indices and labels int64, log-sum-exps
float64. Arrays are C-contiguous, except those that rows are gathered from or scattered to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ...transducer import LABEL_COLUMN, Row, RowHead
from ..numpy.rows import EXPONENT_FLOOR
from ..types import DeviceArray, LogitRows, RowPosteriors, compute_dtype
from .launch import BLOCK, FLOATS, WARP, Kernel, Launch, cupy, element_strides

__all__ = [
    "DeviceRow",
    "add_column_sum",
    "by_width",
    "device_row",
    "gather",
    "logits_grad",
    "row_scores",
    "scatter",
    "scratch_rows",
]

_LONG_ROW = 2048  # elements from which on a block shares a row, not a warp
_WARP_ELEMENTS = 1024  # of a row; several warps share a longer one


def by_width(
    name: str, source: str, types: tuple[tuple[str, ...], ...]
) -> Callable[[np.dtype, int], Launch]:
    """Declare a kernel whose rows a warp or a block shares, which its last template argument says;
    return the function that picks one of them for a dtype and the width of the rows."""
    short, long = (
        Kernel(name, source, shared_by, variants=tuple((*t, threads) for t in types))
        for shared_by, threads in ((WARP, "32"), (BLOCK, "256"))
    )
    return lambda dtype, width: long[dtype, 256] if width >= _LONG_ROW else short[dtype, 32]


_GRADS = tuple(("double" if t == "double" else "float", t) for (t,) in FLOATS)

_GATHER = Kernel("gather", "gather.cu", threads=WARP)
_SCATTER = Kernel("scatter", "gather.cu", threads=WARP)
_row_scores = by_width("row_scores", "row_scores.cu", FLOATS)
_LOGITS_GRAD = Kernel("logits_grad", "logits_grad.cu", threads=WARP, variants=_GRADS)
_COLUMN_SUM = Kernel("column_sum", "column_sum.cu", threads=WARP)


def shares_of(shape: tuple[int, int]) -> tuple[int, tuple[int, int, int]]:
    """The items of a launch whose warps share rows, and (rows, width, warps of a row)."""
    rows, width = shape
    warps = max(1, -(-width // _WARP_ELEMENTS))
    return rows * warps, (rows, width, warps)


def entries_of(array: DeviceArray, dtype: DTypeLike = np.int64) -> DeviceArray:
    """An array with an entry for each row, as kernels read it."""
    return cupy().ascontiguousarray(array, dtype)


def _index(
    array: DeviceArray, index: tuple[DeviceArray, ...]
) -> tuple[tuple[DeviceArray, ...], tuple[int, ...]]:
    """Three arrays of indices, and the strides of their axes and of the last axis."""
    *strides, last = element_strides(array)
    missing = 3 - len(index)
    indices = tuple(map(entries_of, index))
    return (*indices, *indices[:1] * missing), (*strides, *(0,) * missing, last)


def gather(source: DeviceArray, index: tuple[DeviceArray, ...], out: DeviceArray) -> None:
    indices, strides = _index(source, index)
    items, shares = shares_of(out.shape)
    _GATHER[source.dtype](items, source, *strides, *indices, *shares, out)


def scatter(tile: DeviceArray, index: tuple[DeviceArray, ...], out: DeviceArray) -> None:
    indices, strides = _index(out, index)
    items, shares = shares_of(tile.shape)
    _SCATTER[out.dtype](items, tile, *indices, *shares, out, *strides)


class DeviceRow(NamedTuple):
    """A row as kernels read it."""

    heads: int
    scores: int
    label: int  # the number of the label's score, or that of all scores if no score is a label's
    table: tuple[DeviceArray, np.int32, np.int32, np.int32]  # a RowTable of kernels/row.cuh
    others: DeviceArray  # int64, (ranges, 2), the columns of no label


def device_row(row: Row) -> DeviceRow:
    ranges = [(*columns, g) for g, head in enumerate(row.heads) for columns in head.ranges]
    ranges += [(*columns, -1) for columns in row.under_no_head]
    label = (*row.columns, LABEL_COLUMN).index(LABEL_COLUMN)
    charges = [sum(1 << g for g in charged) for charged in row.charged]
    shifts = np.array(row.shifts, np.float64).view(np.int64).tolist()
    scores = zip(row.columns, charges, shifts, strict=True)
    heads, columns = len(row.heads), len(row.columns)
    of_heads = tuple(_held(head, row.columns) for head in row.heads)
    table = [*chain(*ranges, of_heads, *scores)]
    words = cupy().asarray(np.array([*table, *chain(*row.others)], np.int64))
    others = words[len(table) :].reshape(-1, 2)
    counts = np.int32(heads), np.int32(columns), np.int32(len(ranges))
    return DeviceRow(heads, columns, label, (words, *counts), others)


def _held(head: RowHead, columns: tuple[int, ...]) -> int:
    """The bits of what the sum of a head holds: the column of each score, the labels, a zero."""
    bits = [any(start <= column < stop for start, stop in head.ranges) for column in columns]
    return sum(bit << k for k, bit in enumerate((*bits, head.labels, head.zero)))


def row_scores(rows: LogitRows) -> tuple[DeviceArray, DeviceArray]:
    """See the contract; logits may be of any type."""
    logits, bias, layout, labels, _ = rows
    count, width = logits.shape
    lse = cupy().empty((layout.heads, count), np.float64)
    scores = cupy().empty((layout.scores, count), np.float64)
    inputs = logits, bias, *layout.table, entries_of(labels), count, width
    _row_scores(logits.dtype, width)(count, *inputs, lse, scores)
    return lse, scores


def logits_grad(rows: LogitRows, posteriors: RowPosteriors, out: DeviceArray | None = None) -> None:
    """See the contract; rows without heads may be of half types, too."""
    logits, bias, layout, labels, _ = rows
    lse, occupancies, clamp, weights = posteriors
    out = logits if out is None else out
    dtype = compute_dtype(logits.dtype)
    items, shares = shares_of(logits.shape)
    softmax = entries_of(lse, np.float64), EXPONENT_FLOOR[dtype.name]
    bound = float(clamp) if clamp > 0 else math.inf
    weights = None if weights is None else entries_of(weights, dtype)
    grads = entries_of(occupancies, dtype), entries_of(labels), bound, weights
    inputs = logits, bias, *layout.table, *softmax, *grads
    _LOGITS_GRAD[dtype, out.dtype](items, *inputs, *shares, out)


def scratch_rows(rows: int, width: int) -> int:
    """The chunks of :func:`add_column_sum`, each of which sums up as many rows."""
    return math.isqrt(rows) + 1


def add_column_sum(d_logits: DeviceArray, out: DeviceArray, scratch: DeviceArray) -> None:
    """``out += d_logits.sum(axis=0)`` for a matrix of any type."""
    rows, width = d_logits.shape
    chunk = scratch_rows(rows, width)
    chunks, strips = -(-rows // chunk), -(-width // WARP)
    first, second = _COLUMN_SUM[d_logits.dtype], _COLUMN_SUM[out.dtype]
    first(chunks * strips, d_logits, rows, width, chunk, False, scratch)
    second(strips, scratch, chunks, width, max(1, chunks), True, out)
