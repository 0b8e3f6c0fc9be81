"""Casts between float32 and float16 by integer operations.

NumPy casts a normal number in 1.5 ns, but takes 60 ns to a subnormal float16 and 8 ns from one, and
nearly all elements of a softmax are subnormal. Here every element takes the same time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..types import HostArray

_BLOCK = 2**15  # so many elements stay in the inner caches from one pass to the next

# Bits of a float32.
_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000
_HALF = 0x3F000000  # 0.5, whose last place is 2**-24, as that of a subnormal float16
_LEAST_NORMAL = 0x38800000  # 2**-14, the least float16 that is not subnormal
_REBIAS = np.int32(112 << 23)  # float32 has the exponent bias 127, float16 has 15

# Bits of a float16, and the distance from their place to their place in a float32.
_FRACTION = 13
_INFINITE = 0x7C00
_NAN = 0x7E00
_NORMAL = 0x400  # the least that is not subnormal


def narrow(values: HostArray, out: HostArray) -> None:
    """``out[...] = values``, float16 of float32, rounded to the nearest, ties to even. Numbers too
    large become infinite, without a warning. `out` is C-contiguous."""
    scratch = np.empty((4, min(values.size, _BLOCK)), np.int32)
    # np.minimum with an array is four times faster than with one number.
    scratch[2:] = np.array([_INFINITE, _LEAST_NORMAL])[:, None]
    for bits, target in _blocks(values.view(np.int32), out.view(np.uint16)):
        magnitude, rounded, most, least = scratch[:, : len(bits)]
        np.bitwise_and(bits, _MAGNITUDE, out=magnitude)
        is_nan = magnitude > _INFINITY if magnitude.max() > _INFINITY else None
        # A normal result: add half a unit in the last place, less one bit if the last bit is even.
        np.right_shift(magnitude, _FRACTION, out=rounded)
        rounded &= 1
        rounded += magnitude
        rounded += (1 << _FRACTION - 1) - 1 - _REBIAS
        rounded >>= _FRACTION
        np.minimum(rounded, most, out=rounded)
        # A subnormal result: the sum with 0.5 is rounded in the right place. The larger of the two
        # results is the right one.
        np.minimum(magnitude, least, out=magnitude)
        as_floats = magnitude.view(np.float32)
        as_floats += np.float32(0.5)
        magnitude -= _HALF
        np.maximum(rounded, magnitude, out=rounded)
        if is_nan is not None:
            np.copyto(rounded, _NAN, where=is_nan)
        np.right_shift(bits, 16, out=magnitude)
        magnitude &= 0x8000
        rounded |= magnitude
        np.copyto(target, rounded, casting="unsafe")


def widen(values: HostArray, out: HostArray) -> None:
    """``out[...] = values``, float32 of float16, exactly; `out` is C-contiguous."""
    scratch = np.empty((3, min(values.size, _BLOCK)), np.int32)
    scratch[2] = _NORMAL << _FRACTION
    for bits, target in _blocks(values.view(np.int16), out.view(np.int32)):
        sign, small, least = scratch[:, : len(bits)]
        np.copyto(sign, bits)
        np.left_shift(sign, _FRACTION, out=target)
        target &= 0x7FFF << _FRACTION
        sign &= -0x80000000
        if target.max() >= _INFINITE << _FRACTION:  # the largest exponent stays the largest
            np.multiply(target >= _INFINITE << _FRACTION, _REBIAS, out=small)
            target += small
        # A subnormal number is the difference of two normal numbers; a normal one is shifted.
        np.minimum(target, least, out=small)
        small += _LEAST_NORMAL
        floats = small.view(np.float32)
        floats -= np.float32(2.0**-14)
        target += _REBIAS
        np.copyto(target, small, where=target < _LEAST_NORMAL)
        target |= sign


def _blocks(*arrays: HostArray) -> Iterator[tuple[HostArray, ...]]:
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield tuple(array[start : start + _BLOCK] for array in flat)
