"""Where a mask on the device is true."""

from __future__ import annotations

import numpy as np

from ..types import DeviceArray
from .launch import BLOCK, Kernel, cupy

__all__ = ["indices"]

_CHUNK = 4096  # entries, as in indices.cu

_COUNT_MARKS = Kernel("count_marks", "indices.cu", threads=BLOCK, variants=((),))
_WRITE_INDICES = Kernel("write_indices", "indices.cu", threads=BLOCK, variants=((),))


def indices(mask: DeviceArray, count: int, first: int = 0) -> DeviceArray:
    entries = len(mask)
    chunks = -(-entries // _CHUNK)
    counts, result = cupy().empty(chunks, np.int64), cupy().empty(count, np.int64)
    _COUNT_MARKS[()](chunks, chunks, mask, entries, counts)
    _WRITE_INDICES[()](chunks, chunks, mask, entries, counts, first, result)
    return result
