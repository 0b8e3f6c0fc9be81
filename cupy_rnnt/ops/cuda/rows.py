"""The operations of :mod:`cupy_rnnt.ops` on the rows of CuPy arrays.

Arrays with an entry for each row are on the device, too: indices and labels int64, log-sum-exps
float64. Arrays are C-contiguous, except those that rows are gathered from or scattered to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import chain, product
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ...transducer import LABEL_COLUMN, Row, RowHead
from ..numpy.rows import EXPONENT_FLOOR
from ..types import DeviceArray, HostArray, LogitRows, OutputSums, RowPosteriors, compute_dtype
from .launch import BLOCK, FLOATS, WARP, Kernel, Launch, cupy, element_strides
from .products import factor_dtype

__all__ = [
    "DeviceRow",
    "bias_rows",
    "by_width",
    "gather",
    "logits_grad",
    "row_scores",
    "row_words",
    "scaled_weights",
    "scatter",
    "scratch_rows",
    "write_output_grads",
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


# The last is the pack of columns of a thread; packs of doubles would take too many registers.
_GRADS = ("double", "double", "1"), *product(["float"], ["float", "__half", "__nv_bfloat16"], "14")

_GATHER = Kernel("gather", "gather.cu", threads=WARP)
_SCATTER = Kernel("scatter", "gather.cu", threads=WARP)
_row_scores = by_width("row_scores", "row_scores.cu", FLOATS)
_LOGITS_GRAD = Kernel("logits_grad", "logits_grad.cu", threads=WARP, variants=_GRADS)
_WRITE_OUTPUT_GRADS = Kernel("write_output_grads", "output_grads.cu", threads=BLOCK)
_SCALED_WEIGHTS = Kernel("scaled_weights", "scaled_weights.cu", threads=BLOCK, variants=((),))


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


class RowWords(NamedTuple):
    """A row on the host."""

    host: HostArray  # int64: the table of the row, and the columns of no label
    size: int  # of the table
    counts: tuple[np.int32, np.int32, np.int32]  # heads, scores, ranges
    label: int

    def on_device(self, words: DeviceArray) -> DeviceRow:
        """The row, from the same words on the device."""
        heads, scores, _ = map(int, self.counts)
        others = words[self.size :].reshape(-1, 2)
        return DeviceRow(heads, scores, self.label, (words, *self.counts), others)


@functools.lru_cache
def row_words(row: Row) -> RowWords:
    """The words of a row. Making them takes the host 30 us."""
    ranges = [(*columns, g) for g, head in enumerate(row.heads) for columns in head.ranges]
    ranges += [(*columns, -1) for columns in row.under_no_head]
    charges = [sum(1 << g for g in charged) for charged in row.charged]
    shifts = np.array(row.shifts, np.float64).view(np.int64).tolist()
    scores = zip(row.columns, charges, shifts, strict=True)
    of_heads = tuple(_held(head, row.columns) for head in row.heads)
    table = [*chain(*ranges, of_heads, *scores)]
    words = np.array([*table, *chain(*row.others)], np.int64)
    counts = np.int32(len(row.heads)), np.int32(len(row.columns)), np.int32(len(ranges))
    label = (*row.columns, LABEL_COLUMN).index(LABEL_COLUMN)
    return RowWords(words, len(table), counts, label)


def _held(head: RowHead, columns: tuple[int, ...]) -> int:
    """The bits of what the sum of a head holds: the column of each score, the labels, a zero."""
    bits = [any(start <= column < stop for start, stop in head.ranges) for column in columns]
    return sum(bit << k for k, bit in enumerate((*bits, head.labels, head.zero)))


_NO_LATTICE = 0, 0, np.int32(0), np.int32(0), 0.0, None, None, None


def row_scores(rows: LogitRows) -> tuple[DeviceArray, DeviceArray]:
    """See the contract; logits may be of any type."""
    count, layout = len(rows.logits), rows.layout
    lse = cupy().empty((layout.heads, count), np.float64)
    scores = cupy().empty((layout.scores, count), np.float64)
    write_row_scores(rows, lse, scores, *_NO_LATTICE)
    return lse, scores


def write_row_scores(
    rows: LogitRows, lse: DeviceArray, scores: DeviceArray, *lattice: object
) -> None:
    """Write log-sum-exps and scores of rows to arrays, or to the arrays of a lattice."""
    logits, bias, layout, cells, _ = rows
    count, width = logits.shape
    assert cells is not None
    inputs = logits, bias, *layout.table, cells.packed, *cells.samples.batch, count, width
    _row_scores(logits.dtype, width)(count, *inputs, lse, lse.shape[1], scores, *lattice)


def logits_grad(
    rows: LogitRows,
    posteriors: RowPosteriors,
    out: DeviceArray | None = None,
    stored: DeviceArray | None = None,
    sums: OutputSums | None = None,
) -> None:
    """See the contract; rows without heads may be of half types, too."""
    logits, bias, layout, cells, _ = rows
    assert cells is not None
    lse, occupancies, weights, clamp = posteriors
    out = logits if out is None else out
    of_bias = sums.bias if sums is not None and len(sums.bias) else None
    dtype, count, width = compute_dtype(logits.dtype), len(cells), logits.shape[1]
    read = logits, out, *(array for array in (bias, of_bias) if array is not None)
    pack = 4 if dtype == np.float32 else 1
    if width % pack or any(a.data.ptr % (pack * a.itemsize) for a in read):
        pack = 1
    softmax = _by_column(lse, np.dtype(np.float64)), EXPONENT_FLOOR[dtype.name]
    bound = float(clamp) if clamp > 0 else math.inf
    of_rows = *_by_column(occupancies, dtype), bound, cells.packed, *cells.samples.batch
    _LOGITS_GRAD[dtype, out.dtype, pack](
        -(-count // WARP) * -(-width // (WARP * pack)),
        *(logits, stored, bias, *layout.table, *softmax[0], softmax[1], *of_rows),
        *(weights, count, width, of_bias, out),
    )


def _by_column(array: DeviceArray, dtype: np.dtype) -> tuple[DeviceArray, int]:
    """A matrix of a dtype with columns next to each other, and its elements from row to row."""
    if array.dtype != dtype or array.strides[1] != array.itemsize:
        array = cupy().ascontiguousarray(array, dtype)
    return array, array.strides[0] // array.itemsize


def scratch_rows(rows: int, width: int) -> int:
    """None: kernels keep rows in registers."""
    return 0


def bias_rows(rows: int) -> int:
    """One for each warp of rows, which :func:`logits_grad` adds up."""
    return -(-rows // WARP)


def scaled_weights(
    weights: DeviceArray, largest: float, dtype: np.dtype
) -> tuple[DeviceArray, DeviceArray | None]:
    weights = entries_of(weights, np.float64)
    if factor_dtype(dtype) is None:
        return weights, None
    count = len(weights)
    scaled = cupy().empty(count + 1)
    _SCALED_WEIGHTS[()](1, weights, count, largest, scaled)
    return scaled[:count], scaled[count:]


def write_output_grads(
    weight_sums: DeviceArray,
    bias_sums: DeviceArray,
    scale: DeviceArray | None,
    weight: DeviceArray,
    bias: DeviceArray | None,
) -> None:
    (rows, width), parts = weight.shape, len(bias_sums)
    step, _ = element_strides(bias_sums)
    blocks = -(-rows // 8) + (0 if bias is None else -(-rows // WARP))
    strides = (0,) if bias is None else element_strides(bias)
    _WRITE_OUTPUT_GRADS[weight.dtype](
        *(blocks, weight_sums, bias_sums, scale, rows, width, parts, step),
        *(weight, *element_strides(weight), bias, *strides),
    )
