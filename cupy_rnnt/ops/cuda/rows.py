"""The operations of :mod:`cupy_rnnt.ops` on the rows of CuPy arrays.

What has an entry for each row is on the device, too: indices and labels int64, log-sum-exps
float64. Arrays are C-contiguous, except those that rows are gathered from or scattered to.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ...transducer import LABEL_COLUMN, Row, RowHead
from ..numpy.activations import ACTIVATIONS
from ..types import Cells, DeviceArray, JointInputs, LogitRows, RowPosteriors, compute_dtype
from .launch import BLOCK, FLOATS, WARP, Kernel, cupy

__all__ = [
    "activate",
    "add_column_sum",
    "add_rows",
    "device_row",
    "gather",
    "hidden",
    "hidden_grad",
    "logits_grad",
    "row_scores",
    "scatter",
    "scratch_rows",
]

_COMPUTE = (("float",), ("double",))
_FUNCTORS = {name: name.capitalize() for name in ACTIVATIONS}
_ACTIVATED = tuple((*c, name) for c, name in product(_COMPUTE, _FUNCTORS.values()))
_GRADS = tuple(("double" if t == "double" else "float", t) for (t,) in FLOATS)

_GATHER = Kernel("gather", "gather.cu", threads=WARP)
_SCATTER = Kernel("scatter", "gather.cu", threads=WARP)
_HIDDEN = Kernel(
    "hidden",
    "hidden.cu",
    threads=WARP,
    variants=tuple((*t, name) for t, name in product(FLOATS, _FUNCTORS.values())),
)
_ACTIVATE = Kernel("activate", "activate.cu", variants=_ACTIVATED)
_HIDDEN_GRAD = Kernel("hidden_grad", "hidden_grad.cu", variants=_ACTIVATED)
_SHORT_ROW_SCORES = Kernel(
    "row_scores", "row_scores.cu", threads=WARP, variants=tuple((*t, "32") for t in FLOATS)
)
_LONG_ROW_SCORES = Kernel(
    "row_scores", "row_scores.cu", threads=BLOCK, variants=tuple((*t, "256") for t in FLOATS)
)
_LOGITS_GRAD = Kernel("logits_grad", "logits_grad.cu", threads=WARP, variants=_GRADS)
_COLUMN_SUM = Kernel("column_sum", "column_sum.cu", threads=WARP)
_ADD_ROWS = Kernel("add_rows", "add_rows.cu", threads=BLOCK, block=128, variants=_COMPUTE)
_ADD_LONG_RUNS = Kernel("add_long_runs", "add_rows.cu", threads=BLOCK, block=128, variants=_COMPUTE)

_WARP_ELEMENTS = 1024  # of a row; more are shared by several warps
_LONG_ROW = 2048  # elements from which on a row is summed by a block
_CHUNK = 32  # rows, as in add_rows.cu

# As on the CPU: softmax values below are 0, so that no product of the others is denormal.
_EXPONENT_FLOOR = {"float32": -45.0, "float64": -300.0}


def _shares(shape: tuple[int, int]) -> tuple[int, tuple[int, int, int]]:
    """Items of a launch whose warps share rows: the number, and (rows, width, warps of a row)."""
    rows, width = shape
    warps = max(1, -(-width // _WARP_ELEMENTS))
    return rows * warps, (rows, width, warps)


def _strides(array: DeviceArray) -> tuple[int, ...]:
    """In elements."""
    return tuple(stride // array.itemsize for stride in array.strides)


def _entries(array: DeviceArray, dtype: Any = np.int64) -> Any:
    """One entry a row, as kernels read them."""
    return cupy().ascontiguousarray(array, dtype)


def _index(
    array: DeviceArray, index: tuple[DeviceArray, ...]
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Three arrays of indices, and the strides of three axes and of the last one."""
    *strides, last = _strides(array)
    missing = 3 - len(index)
    indices = tuple(map(_entries, index))
    return (*indices, *indices[:1] * missing), (*strides, *(0,) * missing, last)


def gather(source: DeviceArray, index: tuple[DeviceArray, ...], out: DeviceArray) -> None:
    indices, strides = _index(source, index)
    items, shares = _shares(out.shape)
    _GATHER[source.dtype](items, source, *strides, *indices, *shares, out)


def scatter(tile: DeviceArray, index: tuple[DeviceArray, ...], out: DeviceArray) -> None:
    indices, strides = _index(out, index)
    items, shares = _shares(tile.shape)
    _SCATTER[out.dtype](items, tile, *indices, *shares, out, *strides)


def hidden(
    inputs: JointInputs, cells: Cells, activation: str, pre: DeviceArray, out: DeviceArray
) -> None:
    encoder, predictor, *_ = inputs
    items, shares = _shares(pre.shape)
    indices = map(_entries, (cells.sample, cells.frame, cells.position))
    arrays = encoder, *_strides(encoder), predictor, *_strides(predictor)
    _HIDDEN[encoder.dtype, _FUNCTORS[activation]](items, *arrays, *indices, *shares, pre, out)


def activate(activation: str, pre: DeviceArray, out: DeviceArray) -> None:
    _ACTIVATE[pre.dtype, _FUNCTORS[activation]](_packs(pre), pre, pre.size, out)


def hidden_grad(
    d_hidden: DeviceArray, hidden: DeviceArray, pre: DeviceArray, activation: str
) -> None:
    """As the contract says, but `hidden` is not used, and `pre` left as it is."""
    _HIDDEN_GRAD[pre.dtype, _FUNCTORS[activation]](_packs(pre), pre, pre.size, d_hidden)


def _packs(array: DeviceArray) -> int:
    """Packs of 16 bytes."""
    return -(-int(array.nbytes) // 16)


class DeviceRow(NamedTuple):
    """A row as kernels read it."""

    heads: int
    scores: int
    label: int  # which of the scores is that of the label; as many as there are if none is
    table: tuple[Any, ...]  # a RowTable of kernels/row.cuh
    others: Any  # int64, (ranges, 2)


def device_row(row: Row) -> DeviceRow:
    ranges = [(*one, g) for g, head in enumerate(row.heads) for one in head.ranges]
    ranges += [(*one, -1) for one in row.under_no_head]
    label = (*row.columns, LABEL_COLUMN).index(LABEL_COLUMN)
    charges = [sum(1 << g for g in charged) for charged in row.charged]
    shifts = np.array(row.shifts, np.float64).view(np.int64).tolist()
    scores = zip(row.columns, charges, shifts, strict=True)
    counts = len(row.heads), len(row.columns)
    words: list[int] = []
    of_heads = tuple(_held(head, row.columns) for head in row.heads)
    for entry in (*ranges, of_heads, *scores):
        words.extend(entry)
    others = [bound for one in row.others for bound in one]
    both = cupy().asarray(np.array(words + others, np.int64))
    in_pairs = both[len(words) :].reshape(-1, 2)
    table = both, *map(np.int32, (*counts, len(ranges)))
    return DeviceRow(*counts, label, table, in_pairs)


def _held(head: RowHead, columns: tuple[int, ...]) -> int:
    """What is in the sum of a head, a bit each: the columns of the scores, labels, a zero."""
    bits = [any(start <= column < stop for start, stop in head.ranges) for column in columns]
    return sum(bit << k for k, bit in enumerate((*bits, head.labels, head.zero)))


def row_scores(rows: LogitRows) -> tuple[DeviceArray, DeviceArray]:
    """As the contract says, of logits of any type."""
    logits, bias, layout, labels, _ = rows
    count, width = logits.shape
    lse = cupy().empty((layout.heads, count), np.float64)
    scores = cupy().empty((layout.scores, count), np.float64)
    kernel, threads = _SHORT_ROW_SCORES, 32
    if width >= _LONG_ROW:
        kernel, threads = _LONG_ROW_SCORES, 256
    inputs = logits, bias, *layout.table, _entries(labels), count, width
    kernel[logits.dtype, threads](count, *inputs, lse, scores)
    return lse, scores


def logits_grad(rows: LogitRows, posteriors: RowPosteriors, out: DeviceArray | None = None) -> None:
    """As the contract says. Without heads also of rows of half types."""
    logits, bias, layout, labels, _ = rows
    lse, occupancies, clamp, weights = posteriors
    out = logits if out is None else out
    dtype = compute_dtype(logits.dtype)
    items, shares = _shares(logits.shape)
    softmax = _entries(lse, np.float64), _EXPONENT_FLOOR[dtype.name]
    bound = float(clamp) if clamp > 0 else math.inf
    weights = None if weights is None else _entries(weights, dtype)
    grads = _entries(occupancies, dtype), _entries(labels), bound, weights
    inputs = logits, bias, *layout.table, *softmax, *grads
    _LOGITS_GRAD[dtype, out.dtype](items, *inputs, *shares, out)


def scratch_rows(rows: int, width: int) -> int:
    """As the contract says: :func:`add_column_sum` has a use for that many."""
    return math.isqrt(rows) + 1


def add_column_sum(d_logits: DeviceArray, out: DeviceArray, scratch: Any) -> None:
    """``out += d_logits.sum(axis=0)``, of a matrix of any type."""
    rows, width = d_logits.shape
    chunk = math.isqrt(rows) + 1
    chunks, strips = -(-rows // chunk), -(-width // WARP)
    first, second = _COLUMN_SUM[d_logits.dtype], _COLUMN_SUM[out.dtype]
    first(chunks * strips, d_logits, rows, width, chunk, False, scratch)
    second(strips, scratch, chunks, width, max(1, chunks), True, out)


def add_rows(tile: DeviceArray, rows: DeviceArray, out: DeviceArray, scratch: Any) -> None:
    """As the contract says; `scratch` is as large as `tile`."""
    order = cupy().argsort(rows, kind="stable")
    targets = rows[order]
    count, width = tile.shape
    chunks = -(-count // _CHUNK)
    _ADD_ROWS[tile.dtype](chunks, tile, order, targets, count, width, out, scratch)
    _ADD_LONG_RUNS[tile.dtype](chunks, scratch, targets, count, width, out)
