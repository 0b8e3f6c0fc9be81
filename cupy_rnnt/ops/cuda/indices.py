"""Where a mask on the device is true, and where numbers are among others."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import DeviceArray
from .launch import BLOCK, Kernel, cupy, host

__all__ = ["found_first", "indices", "places"]

CHUNK = 4096  # entries, as in indices.cu

_COUNT_MARKS = Kernel("count_marks", "indices.cu", threads=BLOCK, variants=((),))
_WRITE_INDICES = Kernel("write_indices", "indices.cu", threads=BLOCK, variants=((),))
_WRITE_MARKED_FIRST = Kernel("write_marked_first", "indices.cu", threads=BLOCK, variants=((),))
_PLACES = Kernel("places", "indices.cu", variants=((),))


def indices(mask: DeviceArray, count: int, first: int = 0) -> DeviceArray:
    chunks = _chunks(mask)
    memory = cupy().empty(count + chunks, np.int64)
    result, counts = memory[:count], memory[count:]
    _COUNT_MARKS[()](chunks, chunks, mask, len(mask), counts)
    _WRITE_INDICES[()](chunks, chunks, mask, len(mask), counts, first, result)
    return result


def places(numbers: DeviceArray, values: DeviceArray) -> DeviceArray:
    results = cupy().empty(len(values), np.int64)
    _find(numbers, values, results, None)
    return results


def found_first(numbers: DeviceArray, values: DeviceArray) -> tuple[DeviceArray, DeviceArray, int]:
    library, entries = cupy(), len(values)
    places, found = library.empty(entries, np.int64), library.empty(entries, np.bool_)
    _find(numbers, values, places, found)
    chunks = _chunks(found)
    counts = library.empty(chunks, np.int64)
    _COUNT_MARKS[()](chunks, chunks, found, entries, counts)
    count = int(host(counts)[0].sum())
    if not 0 < count < entries:
        return values, places, count
    moved = library.empty((2, entries), np.int64)
    inputs = found, entries, counts, count, values, places
    _WRITE_MARKED_FIRST[()](chunks, chunks, *inputs, *moved)
    return *moved, count


def _find(numbers: DeviceArray, values: DeviceArray, places: DeviceArray, found: Any) -> None:
    count = len(values)
    _PLACES[()](count, count, values, numbers, len(numbers), places, found)


def _chunks(mask: DeviceArray) -> int:
    return -(-len(mask) // CHUNK)
