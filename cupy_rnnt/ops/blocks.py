"""Several arrays in one block of memory.

On a GPU, fewer arrays are asked of the allocator, which may be another library's. On a CPU, the
kernel of the operating system hands out memory a page at a time, when it is first written to.
Inside a large block it can hand out huge pages. When every array of a call had memory of its own,
ordinary pages took up to a tenth of the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from .types import DeviceArray, Shape

_ALIGNMENT = 256  # bytes


def carved(
    empty: Callable[[int, DTypeLike], DeviceArray], shapes: Sequence[tuple[Shape, np.dtype]]
) -> Sequence[DeviceArray]:
    """Arrays behind each other in an array of bytes that `empty` makes."""
    arrays, start = [], 0
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in shapes]
    memory = empty(sum(map(_aligned, sizes)), np.uint8)
    for size, (shape, dtype) in zip(sizes, shapes, strict=True):
        arrays.append(memory[start : start + size].view(dtype).reshape(shape))
        start += _aligned(size)
    return arrays


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
