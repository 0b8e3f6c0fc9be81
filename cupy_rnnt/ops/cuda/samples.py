"""What is found from all rows of a sample at once, on CuPy arrays."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from ..types import DeviceArray, HostArray, compute_dtype
from .launch import BLOCK, FLOATS, WARP, Kernel, cupy

__all__ = ["largest_row_sum", "magnitudes", "means"]

_COMPUTE = ("float",), ("double",)  # the weights, whose magnitudes are summed up, come in them
_FOLDS = tuple(
    (*t, fold)
    for t, fold in product(FLOATS, ("Mean", "Largest", "AbsoluteSum"))
    if fold != "AbsoluteSum" or t in _COMPUTE
)
_FOLD_ROWS = Kernel("fold_rows", "fold_rows.cu", threads=BLOCK, variants=_FOLDS)
_CHUNK_ELEMENTS = 2**16


def means(array: DeviceArray, samples: HostArray, counts: HostArray, out: DeviceArray) -> None:
    _fold_rows("Mean", array, samples, counts, out)


def magnitudes(array: DeviceArray, counts: HostArray) -> Any:
    size, _, width = array.shape
    found = cupy().empty(size)
    chunk = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, size, chunk):
        some = np.arange(start, min(start + chunk, size))
        of_columns = cupy().empty((len(some), width), compute_dtype(array.dtype))
        _fold_rows("Largest", array, some, counts[some], of_columns)
        found[start : start + len(some)] = of_columns.max(axis=1)
    return found


def largest_row_sum(weight: DeviceArray) -> Any:
    sums = cupy().empty((1, len(weight)), weight.dtype)
    counts = np.array(weight.shape[1:])
    _fold_rows("AbsoluteSum", weight.T[None], np.zeros(1, np.int64), counts, sums)
    return sums.max()


def _fold_rows(
    fold: str, array: DeviceArray, samples: HostArray, counts: HostArray, out: DeviceArray
) -> None:
    """Fold the first ``counts[i]`` rows of ``array[samples[i]]`` into ``out[i]``."""
    size, width = out.shape
    strides = (stride // array.itemsize for stride in array.strides)
    where = map(cupy().asarray, (samples, counts))
    strips = -(-width // WARP)
    _FOLD_ROWS[array.dtype, fold](size * strips, array, *strides, *where, size, width, out)
