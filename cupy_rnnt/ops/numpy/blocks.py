"""Several arrays in one block of memory.

The kernel of an operating system hands out memory a page at a time, when it is first written to.
Inside a large block it can hand out huge pages. When every array of a call had memory of its own,
ordinary pages took up to a tenth of the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..types import HostArray, Shape

_ALIGNMENT = 256  # bytes


def empties(*shapes: tuple[Shape, np.dtype]) -> Sequence[HostArray]:
    arrays, start = [], 0
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in shapes]
    memory = np.empty(sum(map(_aligned, sizes)), np.uint8)
    for size, (shape, dtype) in zip(sizes, shapes, strict=True):
        arrays.append(memory[start : start + size].view(dtype).reshape(shape))
        start += _aligned(size)
    return arrays


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
