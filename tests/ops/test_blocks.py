"""Arrays in one block of memory do not overlap, and begin where a kernel may load whole vectors."""

from __future__ import annotations

import numpy as np

from cupy_rnnt.ops.blocks import carved


def test_arrays_of_a_block_are_apart():
    shapes = [((3, 5), np.dtype(np.float32)), ((0, 7), np.dtype(np.float32))]
    shapes += [((2, 3, 1), np.dtype(np.float64)), ((129,), np.dtype(np.float16))]
    arrays = carved(np.empty, shapes)
    for value, array in enumerate(arrays):
        array.fill(value)
    for value, (array, (shape, dtype)) in enumerate(zip(arrays, shapes, strict=True)):
        assert (array.shape, array.dtype) == (shape, dtype)
        assert (array == value).all()
    starts = [array.__array_interface__["data"][0] for array in arrays if array.size]
    assert [start - starts[0] for start in starts] == [0, 256, 512]
    assert arrays[0].base.nbytes == 256 + 0 + 256 + 512
