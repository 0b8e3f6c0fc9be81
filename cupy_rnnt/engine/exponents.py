"""Cost weights without their powers of two, which the gradients get back at the end.

Many CPUs take a hundred times as long for numbers below 1e-38 (float32): with cost weights of
1e-30, a product of matrices took 15 to 40 times as long. A gradient is linear in the weight of its
sample, so all products are formed as if weights were around 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..ops.types import HostArray

# Exponents differ from the largest by multiples of this, so a weight keeps at least 2**-14.
# The least element of a gradient of logits, 4e-34 or 2**-111, times 2**-14 is a normal float32.
# Batches whose largest weight is from 2**-14 to 2**32 keep their largest weights unchanged.
_STEP = 14
_LARGE = 32
_NOTHING = -(2**20)  # the exponent of a weight of 0, and of a sum without terms
_ELEMENTS = 2**15  # of a gradient, processed together


class WeightExponents:
    """An exponent for each sample, and one for each worker's sums over samples.

    What belongs to a single sample is computed on the scale of that sample. Sums over samples are
    block floating point: numbers around 1 that share the exponent of their largest term so far.

    Parameters
    ----------
    weights : ndarray, shape (B,)
    workers : int
    """

    def __init__(self, weights: HostArray, workers: int = 0) -> None:
        _, exponents = np.frexp(weights)
        usable = np.isfinite(weights) & (weights != 0)
        top = int(exponents.max(initial=_NOTHING, where=usable))
        if -_STEP < top <= _LARGE:
            top = 0
        below = np.maximum(top - exponents, 0) // _STEP * _STEP
        self._of_samples = np.where(usable, top - below, np.where(weights == 0, _NOTHING, 0))
        self.fractions = np.ldexp(weights, -self._of_samples)
        self._of_sums = [_NOTHING] * workers

    def align(
        self, worker: int, samples: HostArray, rows: HostArray, sums: Iterable[HostArray]
    ) -> None:
        """Bring rows, each of a sample, and the sums they are added to to the same exponent."""
        exponents, of_sums = self._of_samples[samples], self._of_sums[worker]
        top = self._of_sums[worker] = max(of_sums, int(exponents.max()))
        if _NOTHING < of_sums < top:
            for total in sums:
                _shrink(total, np.full(len(total), of_sums - top))
        if (exponents < top).any():
            _shrink(rows, exponents - top)

    def put_back(self, gradient: HostArray, samples: HostArray) -> None:
        """Multiply each row of a gradient, in place, by the power of two of its sample."""
        _ldexp(gradient, self._of_samples[samples])

    def put_back_into_sums(self, parts: HostArray) -> None:
        """Multiply each worker's part of a sum, in place, by the power of two of the part."""
        for part, exponent in zip(parts, self._of_sums, strict=True):
            _ldexp(part, np.full(len(part), exponent))


def _shrink(rows: HostArray, exponents: HostArray) -> None:
    """Multiply rows by powers of two, at most 1.

    A product below ``tiny / eps`` becomes 0, or it might be denormal once it is multiplied again.
    It is far below the rounding of the terms whose scale it is brought to.
    """
    limits = np.finfo(rows.dtype)
    scales = np.exp2(np.maximum(exponents, limits.minexp)).astype(rows.dtype)
    least = limits.tiny / limits.eps / scales
    for part in _parts(rows):
        columns = rows[part].T  # so that scales broadcast over the rows
        np.copyto(columns, 0, where=np.abs(columns) < least[part])
        columns *= scales[part]


def _ldexp(rows: HostArray, exponents: HostArray) -> None:
    """Multiply rows by powers of two; denormal results are rounded, and take no more time."""
    with np.errstate(over="ignore"):
        if (exponents > 0).any():
            raised = np.maximum(exponents, 0)
            for half in raised // 2, raised - raised // 2:  # the whole power may overflow
                rows.T[...] *= np.exp2(half, dtype=rows.dtype)
        if (exponents < 0).any():
            _lower(rows, np.minimum(exponents, 0))


def _lower(rows: HostArray, exponents: HostArray) -> None:
    """:func:`_ldexp` with exponents of at most 0, by integer operations."""
    limits = np.finfo(rows.dtype)
    integer = np.dtype(f"int{limits.bits}")
    bits_of_1 = limits.dtype.type(1).view(integer)
    # A result is ``magnitude * scale`` in units of the least normal number.
    scales = np.exp2(np.maximum(exponents - limits.minexp, limits.minexp)).astype(rows.dtype)
    least = limits.minexp - limits.maxexp
    fields = np.maximum(exponents, least).astype(integer) << limits.nmant
    shape = rows[next(_parts(rows), slice(0))].shape
    scratch = np.empty(shape, rows.dtype), np.empty(shape, rows.dtype)
    for part in _parts(rows):
        bits = rows[part].view(integer).T
        is_finite = np.isfinite(rows[part].T)
        magnitude, denormal = (array[: bits.shape[-1]].T for array in scratch)
        shifted, rounded = magnitude.view(integer), denormal.view(integer)
        np.bitwise_and(bits, np.iinfo(integer).max, out=shifted)
        # Let y be the result in units of the least normal number. As bits, 1 + y less 1 is y
        # rounded as a denormal number is. If y < 1, these bits are the larger ones, and the result;
        # otherwise the bits of y with a shifted exponent are at least as large, and the result.
        np.multiply(magnitude, scales[part], out=denormal)
        denormal += 1
        rounded -= bits_of_1
        shifted += fields[part]
        np.maximum(shifted, rounded, out=shifted)
        shifted |= bits & np.iinfo(integer).min
        np.copyto(bits, shifted, where=is_finite)


def _parts(rows: HostArray) -> Iterator[slice]:
    count = max(1, _ELEMENTS * len(rows) // max(1, rows.size))
    for start in range(0, len(rows), count):
        yield slice(start, start + count)
