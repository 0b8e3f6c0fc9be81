"""The operations of :mod:`cupy_rnnt.ops` on NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from ..batch import Cells
from . import Shape, Sizes, float16
from .activations import ACTIVATIONS
from .bounded import BoundedLattice
from .bounds import bounds, label_softmax, largest_row_sum, magnitudes, means, row_dots
from .lattice import Lattice, lattice_nbytes
from .workers import threads, workers

__all__ = [
    "activate",
    "add_column_sum",
    "add_rows",
    "add_weight_grad",
    "asarray",
    "assign",
    "block_rows",
    "bounded_lattice",
    "bounds",
    "device_of",
    "empty",
    "factor_dtype",
    "gather",
    "hidden",
    "hidden_grad",
    "host",
    "indices",
    "label_softmax",
    "largest_row_sum",
    "lattice",
    "lattice_nbytes",
    "log_probs_grad",
    "logits_grad",
    "magnitudes",
    "matmul",
    "means",
    "pick_log_probs",
    "repeat",
    "row_dots",
    "row_log_probs",
    "scatter",
    "scratch_rows",
    "sizes",
    "slow_denormals",
    "threads",
    "workers",
    "xp",
    "zeros",
]

xp: Any = np
empty = np.empty
repeat = np.repeat
slow_denormals = True
lattice = Lattice
bounded_lattice = BoundedLattice

sizes = Sizes(
    # A tile of 4 MiB in float32, and at least 1024 rows: a GEMM of 512 is a twentieth slower.
    tile_elements=2**20,
    full_rows=1024,
    most_rows=2**13,
    tile_share=1.0,
    # Tiles below both of these lose more to overhead than a second worker gains.
    small_elements=2**16,
    small_rows=64,
    # A group is large enough when every worker is kept busy and a diagonal is a vector operation
    # that costs more than calling it.
    group_cells=2**16,
    group_width=1024,
    slab_elements=2**18,  # stay in the cache
    # More logits fall out of the caches, and their pages have to be faulted in anew in every call:
    # with 256 MiB a call took up to a fifth longer than with 64.
    stored_bytes=2**26,
    cuts_groups=True,
)

_BLOCK_ELEMENTS = 2**17  # of logits: the passes over so many find them in the inner caches

# Softmax values below exp(-45) = 3e-20 are flushed to 0. The occupancy that multiplies the others
# is 0 or at least 1e-14 (eps**2), so that no product comes near the denormals below 1e-38.
_EXPONENT_FLOOR = {"float32": -45.0, "float64": -300.0}


def device_of(array: np.ndarray) -> AbstractContextManager[None]:
    return nullcontext()


def asarray(array: np.ndarray) -> np.ndarray:
    return array


def host(*arrays: Any) -> list[np.ndarray]:
    return list(map(np.asarray, arrays))


def zeros(shape: Shape, dtype: Any) -> np.ndarray:
    """Aligned to 64 bytes, without which XLA copies what it takes over."""
    dtype = np.dtype(dtype)
    memory = np.zeros(math.prod(shape) * dtype.itemsize + 63, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % 64)


def indices(mask: np.ndarray, count: int | None = None) -> np.ndarray:
    return np.flatnonzero(mask)


def block_rows(rows: int, width: int) -> int:
    return min(rows, max(1, _BLOCK_ELEMENTS // width))


scratch_rows = block_rows


def gather(source: np.ndarray, index: tuple[np.ndarray, ...], out: np.ndarray) -> None:
    if source.dtype == out.dtype and source.flags.c_contiguous:
        extents = source.shape[:-1]
        rows = np.ravel_multi_index(index, extents)
        flat = source.reshape(-1, source.shape[-1])
        np.take(flat, rows, axis=0, out=out, mode="clip")  # "raise" would buffer `out`
    elif source.dtype == np.float16:
        float16.widen(source[index], out)
    else:
        out[...] = source[index]


def scatter(tile: np.ndarray, index: tuple[np.ndarray, ...], out: np.ndarray) -> None:
    for rows, values in _cast(tile, out.dtype):
        out[tuple(entries[rows] for entries in index)] = values


def assign(values: np.ndarray, out: np.ndarray) -> None:
    for rows, cast in _cast(values, out.dtype):
        out[rows] = cast


def _cast(values: np.ndarray, dtype: np.dtype) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows after the other, as far as they need a cast that NumPy makes slowly."""
    if dtype != np.float16:
        yield slice(None), values
        return
    count = len(values)
    block = block_rows(count, values.size // count)
    halves = np.empty((block, *values.shape[1:]), np.float16)
    for start in range(0, count, block):
        rows = values[start : start + block]
        float16.narrow(rows, halves[: len(rows)])
        yield slice(start, start + block), halves[: len(rows)]


def hidden(
    encoder: np.ndarray,
    predictor: np.ndarray,
    cells: Cells,
    activation: str,
    pre: np.ndarray,
    out: np.ndarray,
) -> None:
    gather(encoder, (cells.sample, cells.frame), pre)
    gather(predictor, (cells.sample, cells.position), out)
    pre += out
    activate(activation, pre, out)


def activate(activation: str, pre: np.ndarray, out: np.ndarray) -> None:
    ACTIVATIONS[activation].apply(pre, out)


def row_log_probs(
    logits: np.ndarray,
    bias: np.ndarray | None,
    blank: int,
    labels: np.ndarray,
    scratch: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, block = len(logits), len(scratch)
    sums = np.empty(n, logits.dtype)
    ones = np.ones(logits.shape[1], logits.dtype)
    for start in range(0, n, block):
        x = logits[start : start + block]
        work = scratch[: len(x)]
        if bias is not None:
            x = np.add(x, bias, out=work)
        np.exp(x, out=work)
        np.dot(work, ones, out=sums[start : start + block])
    lse = np.log(sums, dtype=np.float64)
    # Few rows need their maximum taken out first, and that costs as much as all the rest.
    limits = np.finfo(logits.dtype)
    safe = (sums > limits.tiny / limits.eps) & (sums < limits.max * limits.eps)
    unsafe = np.flatnonzero(~safe)
    for start in range(0, len(unsafe), block):
        rows = unsafe[start : start + block]
        work = np.take(logits, rows, axis=0, out=scratch[: len(rows)], mode="clip")
        if bias is not None:
            work += bias
        top = work.max(axis=1)
        work -= top[:, None]
        np.exp(work, out=work)
        lse[rows] = np.log(work.sum(axis=1), dtype=np.float64) + top
    of_blank, of_label = logits[:, blank], logits[np.arange(n), labels]
    if bias is not None:  # rounded as in the sum, so that a softmax near 1 has a log near 0
        of_blank, of_label = of_blank + bias[blank], of_label + bias[labels]
    return lse, of_blank - lse, of_label - lse


def pick_log_probs(
    log_probs: np.ndarray, blank: int, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = len(log_probs)
    of_blank, of_label = log_probs[:, blank], log_probs[np.arange(n), labels]
    return np.zeros(n), of_blank.astype(np.float64), of_label.astype(np.float64)


def logits_grad(
    logits: np.ndarray,
    bias: np.ndarray | None,
    lse: np.ndarray,
    blank_occupancy: np.ndarray,
    label_occupancy: np.ndarray,
    blank: int,
    labels: np.ndarray,
    clamp: float,
    weights: np.ndarray | None,
    scratch: np.ndarray,
    out: None = None,
) -> None:
    occupancy = blank_occupancy + label_occupancy
    block = len(scratch)
    for start in range(0, len(logits), block):
        rows = slice(start, start + block)
        x = logits[rows]
        if bias is not None:
            x += bias
        _softmax_times(x, lse[rows], occupancy[rows], scratch)
    _finish_grad(logits, blank_occupancy, label_occupancy, blank, labels, clamp, weights)


def _softmax_times(x: np.ndarray, lse: np.ndarray, factor: np.ndarray, floor: np.ndarray) -> None:
    """Overwrite some rows of logits by their softmax times a factor a row."""
    dtype = x.dtype
    least = _EXPONENT_FLOOR[dtype.name]
    if abs(lse).max() < -least and x.min() > lse.max() + least:
        np.exp(x, out=x)  # nothing overflows, and nothing is small enough to be flushed
        x *= (np.exp(-lse) * factor).astype(dtype)[:, None]
        return
    # exp(x - lse) with lse split into what the dtype holds and the rest: the difference is exact
    # where the softmax is large, whatever the offset of the row.
    shift = lse.astype(dtype)
    x -= shift[:, None]
    # Whole rows of the floor, not a scalar: np.maximum is three times faster so.
    floor.fill(least)
    np.maximum(x, floor[: len(x)], out=x)
    np.exp(x, out=x)
    x -= np.exp(floor[:1, :1])
    x *= (np.exp(shift - lse) * factor).astype(dtype)[:, None]


def log_probs_grad(
    log_probs: np.ndarray,
    blank_occupancy: np.ndarray,
    label_occupancy: np.ndarray,
    blank: int,
    labels: np.ndarray,
    clamp: float,
    weights: np.ndarray | None,
) -> None:
    log_probs.fill(0)
    _finish_grad(log_probs, blank_occupancy, label_occupancy, blank, labels, clamp, weights)


def _finish_grad(
    grad: np.ndarray,
    blank_occupancy: np.ndarray,
    label_occupancy: np.ndarray,
    blank: int,
    labels: np.ndarray,
    clamp: float,
    weights: np.ndarray | None,
) -> None:
    grad[:, blank] -= blank_occupancy
    grad[np.arange(len(grad)), labels] -= label_occupancy
    if clamp > 0:
        np.clip(grad, -clamp, clamp, out=grad)
    if weights is not None:
        grad *= weights.astype(grad.dtype)[:, None]


def factor_dtype(dtype: np.dtype) -> None:
    """None: no NumPy multiplies half types fast."""


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    np.matmul(a, b, out=out)


def add_weight_grad(
    d_logits: np.ndarray, hidden: np.ndarray, out: np.ndarray, scratch: np.ndarray
) -> None:
    slab = len(scratch)
    for start in range(0, len(out), slab):
        rows = slice(start, min(start + slab, len(out)))
        product = scratch[: rows.stop - start]
        np.matmul(d_logits[:, rows].T, hidden, out=product)
        out[rows] += product


def add_column_sum(d_logits: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
    out += d_logits.sum(axis=0)


def hidden_grad(d_hidden: np.ndarray, hidden: np.ndarray, pre: np.ndarray, activation: str) -> None:
    ACTIVATIONS[activation].derivative(pre, hidden)
    d_hidden *= pre


def add_rows(tile: np.ndarray, rows: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
    # A sparse matrix of ones times the tile: 13 times faster than np.add.reduceat, and it needs no
    # sorted copy of the tile.
    order = np.argsort(rows, kind="stable")
    targets, starts = np.unique(rows[order], return_index=True)
    ends = np.append(starts, len(rows))
    ones = np.ones(len(rows), tile.dtype)
    sums = csr_array((ones, order, ends), shape=(len(targets), len(rows))) @ tile
    held = scratch[: len(targets)]
    np.take(out, targets, axis=0, out=held, mode="clip")
    held += sums
    out[targets] = held
