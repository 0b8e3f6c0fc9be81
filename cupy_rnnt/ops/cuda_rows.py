"""The operations of :mod:`cupy_rnnt.ops` on the rows of CuPy arrays.

What has an entry for each row is on the device, too: indices and labels int64, log-sum-exps
float64. Arrays are C-contiguous, except those that rows are gathered from or scattered to.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from ..batch import Cells
from ..defaults import compute_dtype
from .activations import ACTIVATIONS
from .launch import BLOCK, FLOATS, WARP, Kernel, cupy

__all__ = [
    "activate",
    "add_column_sum",
    "add_rows",
    "gather",
    "hidden",
    "hidden_grad",
    "keep",
    "log_probs_grad",
    "logits_grad",
    "pick_log_probs",
    "row_log_probs",
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
_SHORT_ROW_LOG_PROBS = Kernel(
    "row_log_probs", "row_log_probs.cu", threads=WARP, variants=tuple((*t, "32") for t in FLOATS)
)
_LONG_ROW_LOG_PROBS = Kernel(
    "row_log_probs", "row_log_probs.cu", threads=BLOCK, variants=tuple((*t, "256") for t in FLOATS)
)
_LOGITS_GRAD = Kernel("logits_grad", "logits_grad.cu", threads=WARP, variants=_GRADS)
_LOG_PROBS_GRAD = Kernel("log_probs_grad", "log_probs_grad.cu", threads=WARP, variants=_GRADS)
_COLUMN_SUM = Kernel("column_sum", "column_sum.cu", threads=WARP)
_ADD_ROWS = Kernel("add_rows", "add_rows.cu", threads=BLOCK, block=128, variants=_COMPUTE)
_ADD_LONG_RUNS = Kernel("add_long_runs", "add_rows.cu", threads=BLOCK, block=128, variants=_COMPUTE)
_KEEP = Kernel("keep", "keep.cu", variants=((),))

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


def _strides(array: Any) -> tuple[int, ...]:
    """In elements."""
    return tuple(stride // array.itemsize for stride in array.strides)


def _entries(array: Any, dtype: Any = np.int64) -> Any:
    """One entry a row, as kernels read them."""
    return cupy().ascontiguousarray(array, dtype)


def _index(array: Any, index: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Three arrays of indices, and the strides of three axes and of the last one."""
    *strides, last = _strides(array)
    missing = 3 - len(index)
    indices = tuple(map(_entries, index))
    return (*indices, *indices[:1] * missing), (*strides, *(0,) * missing, last)


def gather(source: Any, index: tuple[Any, ...], out: Any) -> None:
    indices, strides = _index(source, index)
    items, shares = _shares(out.shape)
    _GATHER[source.dtype](items, source, *strides, *indices, *shares, out)


def scatter(tile: Any, index: tuple[Any, ...], out: Any) -> None:
    indices, strides = _index(out, index)
    items, shares = _shares(tile.shape)
    _SCATTER[out.dtype](items, tile, *indices, *shares, out, *strides)


def hidden(encoder: Any, predictor: Any, cells: Cells, activation: str, pre: Any, out: Any) -> None:
    items, shares = _shares(pre.shape)
    indices = map(_entries, (cells.sample, cells.frame, cells.position))
    inputs = encoder, *_strides(encoder), predictor, *_strides(predictor)
    _HIDDEN[encoder.dtype, _FUNCTORS[activation]](items, *inputs, *indices, *shares, pre, out)


def activate(activation: str, pre: Any, out: Any) -> None:
    _ACTIVATE[pre.dtype, _FUNCTORS[activation]](_packs(pre), pre, pre.size, out)


def hidden_grad(d_hidden: Any, hidden: Any, pre: Any, activation: str) -> None:
    """As the contract says, but `hidden` is not used, and `pre` left as it is."""
    _HIDDEN_GRAD[pre.dtype, _FUNCTORS[activation]](_packs(pre), pre, pre.size, d_hidden)


def _packs(array: Any) -> int:
    """Packs of 16 bytes."""
    return -(-int(array.nbytes) // 16)


def row_log_probs(
    logits: Any, bias: Any | None, blank: int, labels: Any, scratch: Any
) -> tuple[Any, Any, Any]:
    """As the contract says, of logits of any type; `scratch` is not used."""
    rows, width = logits.shape
    lse, of_blank, of_label = cupy().empty((3, rows), np.float64)
    kernel, threads = _SHORT_ROW_LOG_PROBS, 32
    if width >= _LONG_ROW:
        kernel, threads = _LONG_ROW_LOG_PROBS, 256
    kernel[logits.dtype, threads](
        rows, logits, bias, blank, _entries(labels), rows, width, lse, of_blank, of_label
    )
    return lse, of_blank, of_label


def pick_log_probs(log_probs: Any, blank: int, labels: Any) -> tuple[Any, Any, Any]:
    library = cupy()
    rows = len(log_probs)
    of_blank, of_label = log_probs[:, blank], log_probs[library.arange(rows), labels]
    return library.zeros(rows), of_blank.astype(np.float64), of_label.astype(np.float64)


def logits_grad(
    logits: Any,
    bias: Any | None,
    lse: Any,
    blank_occupancy: Any,
    label_occupancy: Any,
    blank: int,
    labels: Any,
    clamp: float,
    weights: Any | None,
    scratch: Any,
    out: Any | None = None,
) -> None:
    """As the contract says; `scratch` is not used."""
    out = logits if out is None else out
    dtype = logits.dtype
    items, shares = _shares(logits.shape)
    softmax = logits, bias, _entries(lse, np.float64), _EXPONENT_FLOOR[dtype.name]
    finish = _finish(dtype, blank_occupancy, label_occupancy, blank, labels, clamp, weights)
    _LOGITS_GRAD[dtype, out.dtype](items, *softmax, *finish, *shares, out)


def log_probs_grad(
    log_probs: Any,
    blank_occupancy: Any,
    label_occupancy: Any,
    blank: int,
    labels: Any,
    clamp: float,
    weights: Any | None,
) -> None:
    """As the contract says, of log-probs of any type."""
    dtype = compute_dtype(log_probs.dtype)
    items, shares = _shares(log_probs.shape)
    finish = _finish(dtype, blank_occupancy, label_occupancy, blank, labels, clamp, weights)
    _LOG_PROBS_GRAD[dtype, log_probs.dtype](items, *finish, *shares, log_probs)


def _finish(
    dtype: np.dtype,
    blank_occupancy: Any,
    label_occupancy: Any,
    blank: int,
    labels: Any,
    clamp: float,
    weights: Any | None,
) -> tuple[Any, ...]:
    """The arguments of the kernels' ``RowGrad``."""
    occupancies = _entries(blank_occupancy, dtype), _entries(label_occupancy, dtype)
    bound = float(clamp) if clamp > 0 else math.inf
    weights = None if weights is None else _entries(weights, dtype)
    return *occupancies, blank, _entries(labels), bound, weights


def scratch_rows(rows: int, width: int) -> int:
    """As the contract says: :func:`add_column_sum` has a use for that many."""
    return math.isqrt(rows) + 1


def add_column_sum(d_logits: Any, out: Any, scratch: Any) -> None:
    """As the contract says, of a matrix of any type."""
    rows, width = d_logits.shape
    chunk = math.isqrt(rows) + 1
    chunks, strips = -(-rows // chunk), -(-width // WARP)
    first, second = _COLUMN_SUM[d_logits.dtype], _COLUMN_SUM[out.dtype]
    first(chunks * strips, d_logits, rows, width, chunk, False, scratch)
    second(strips, scratch, chunks, width, max(1, chunks), True, out)


def add_rows(tile: Any, rows: Any, out: Any, scratch: Any) -> None:
    """As the contract says; `scratch` is as large as `tile`."""
    order = cupy().argsort(rows, kind="stable")
    targets = rows[order]
    count, width = tile.shape
    chunks = -(-count // _CHUNK)
    _ADD_ROWS[tile.dtype](chunks, tile, order, targets, count, width, out, scratch)
    _ADD_LONG_RUNS[tile.dtype](chunks, scratch, targets, count, width, out)


def keep(blank_occupancy: Any, label_occupancy: Any, offsets: Any, least: Any) -> Any:
    """Which cells of a group hold at least a given occupancy, blank and label together.

    Parameters
    ----------
    blank_occupancy, label_occupancy : cupy.ndarray, shape (cells,), float64
        In packed order.
    offsets : cupy.ndarray, shape (samples + 1,), int64
        Where the cells of each sample begin and end.
    least : cupy.ndarray, shape (samples,), float64
        No cell of a sample is kept if that is NaN.

    Returns
    -------
    cupy.ndarray, shape (kept,), int64
        Indices of these cells, ascending. Their number has to come to the host.
    """
    cells = len(blank_occupancy)
    mask = cupy().empty(cells, np.bool_)
    _KEEP[()](cells, blank_occupancy, label_occupancy, offsets, least, len(least), cells, mask)
    return cupy().flatnonzero(mask)
