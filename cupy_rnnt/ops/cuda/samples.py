"""Means and magnitudes over all rows of a sample, on CuPy arrays."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..types import DeviceArray, HostArray, compute_dtype
from .launch import BLOCK, COMPUTE, FLOATS, WARP, Kernel, cupy, element_strides

__all__ = ["largest_row_sum", "magnitudes", "means"]

_FOLDS = tuple(
    (*t, fold)
    for t, fold in product(FLOATS, ("Mean", "Largest", "AbsoluteSum"))
    if fold != "AbsoluteSum" or t in COMPUTE  # the weights, of which it is, come in no other type
)
_FOLD_ROWS = Kernel("fold_rows", "fold_rows.cu", threads=BLOCK, variants=_FOLDS)
_CHUNK_ELEMENTS = 2**16


def means(array: DeviceArray, samples: HostArray, counts: HostArray, out: DeviceArray) -> None:
    _fold_rows("Mean", array, samples, counts, out)


def magnitudes(array: DeviceArray, counts: HostArray) -> DeviceArray:
    size, _, width = array.shape
    largest = cupy().empty(size)
    chunk = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, size, chunk):
        samples = np.arange(start, min(start + chunk, size))
        of_columns = cupy().empty((len(samples), width), compute_dtype(array.dtype))
        _fold_rows("Largest", array, samples, counts[samples], of_columns)
        largest[start : start + len(samples)] = of_columns.max(axis=1)
    return largest


def largest_row_sum(weight: DeviceArray) -> DeviceArray:
    sums = cupy().empty((1, len(weight)), weight.dtype)
    counts = np.array(weight.shape[1:])
    _fold_rows("AbsoluteSum", weight.T[None], np.zeros(1, np.int64), counts, sums)
    return sums.max()


def _fold_rows(
    fold: str, array: DeviceArray, samples: HostArray, counts: HostArray, out: DeviceArray
) -> None:
    """Fold the first ``counts[i]`` rows of ``array[samples[i]]`` into ``out[i]``."""
    size, width = out.shape
    inputs = array, *element_strides(array), *map(cupy().asarray, (samples, counts))
    strips = -(-width // WARP)
    _FOLD_ROWS[array.dtype, fold](size * strips, *inputs, size, width, out)
