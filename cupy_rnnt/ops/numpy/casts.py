"""Rows out of arrays and back into them, cast on the way, on NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..types import HostArray
from . import float16
from .rows import block_rows


def gather(source: HostArray, index: tuple[HostArray, ...], out: HostArray) -> None:
    if source.dtype == out.dtype and source.flags.c_contiguous:
        extents = source.shape[:-1]
        rows = np.ravel_multi_index(index, extents)
        flat = source.reshape(-1, source.shape[-1])
        np.take(flat, rows, axis=0, out=out, mode="clip")  # mode="raise" would buffer `out`
    elif source.dtype == np.float16:
        float16.widen(source[index], out)
    else:
        out[...] = source[index]


def scatter(tile: HostArray, index: tuple[HostArray, ...], out: HostArray) -> None:
    for rows, cast in _cast(tile, out.dtype):
        out[tuple(entries[rows] for entries in index)] = cast


def assign(values: HostArray, out: HostArray) -> None:
    for rows, cast in _cast(values, out.dtype):
        out[rows] = cast


def _cast(values: HostArray, dtype: np.dtype) -> Iterator[tuple[slice, HostArray]]:
    """Slices of the rows, and the rows: cast if the dtype is float16, which NumPy casts slowly."""
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
