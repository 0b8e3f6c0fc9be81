"""Powers of two that are taken out of the cost weights of a batch, and put back into its gradients.

Many CPUs take a hundred times as long for numbers below 1e-38 (float32), so that with weights of
1e-30 a product of matrices took 15 to 40 times as long. A gradient is linear in the weight of its
sample: all products are formed as if weights were around 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..ops.types import HostArray

# Weights of this many powers of two share one. The least element of a gradient of logits, 4e-34 or
# 2**-111, stays a normal float32 by them, and weights as people use them, below 1 or above, have
# nothing taken out.
_STEP = 14
_LARGE = 32
_NOTHING = -(2**20)  # the exponent of a weight of 0, and of a sum without terms
_ELEMENTS = 2**15  # of a gradient, looked at together


class WeightExponents:
    """An exponent for each sample, and one for each worker's sums over samples.

    What belongs to one sample is computed on the scale of that sample. Sums over samples are block
    floating point: numbers around 1 with an exponent in common, that of their largest term so far.

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
        """Bring rows, each of a sample, and the sums to which they are added to one exponent."""
        exponents, of_sums = self._of_samples[samples], self._of_sums[worker]
        top = self._of_sums[worker] = max(of_sums, int(exponents.max()))
        if _NOTHING < of_sums < top:
            for total in sums:
                _shrink(total, np.full(len(total), of_sums - top))
        if (exponents < top).any():
            _shrink(rows, exponents - top)

    def put_back(self, gradient: HostArray, samples: HostArray) -> None:
        """Into the gradient of what belongs to samples, a row each."""
        _ldexp(gradient, self._of_samples[samples])

    def put_back_into_sums(self, parts: HostArray) -> None:
        """Into each worker's part of a sum."""
        for part, exponent in zip(parts, self._of_sums, strict=True):
            _ldexp(part, np.full(len(part), exponent))


def _shrink(rows: HostArray, exponents: HostArray) -> None:
    """Multiply rows by powers of two, at most 1.

    What would be too small to be multiplied again becomes 0. It is far below rounding of the terms
    on whose scale it is brought.
    """
    limits = np.finfo(rows.dtype)
    scales = np.exp2(np.maximum(exponents, limits.minexp)).astype(rows.dtype)
    least = limits.tiny / limits.eps / scales
    for part in _parts(rows):
        some = rows[part].T  # the last axis is that of the rows
        np.copyto(some, 0, where=np.abs(some) < least[part])
        some *= scales[part]


def _ldexp(rows: HostArray, exponents: HostArray) -> None:
    """Multiply rows by powers of two, rounding what becomes a denormal number, in the same time."""
    with np.errstate(over="ignore"):
        if (exponents > 0).any():
            raised = np.maximum(exponents, 0)
            for some in raised // 2, raised - raised // 2:  # as one number they may overflow
                rows.T[...] *= np.exp2(some, dtype=rows.dtype)
        if (exponents < 0).any():
            _lower(rows, np.minimum(exponents, 0))


def _lower(rows: HostArray, exponents: HostArray) -> None:
    """That of finite numbers and powers below 1, by integer operations."""
    limits = np.finfo(rows.dtype)
    integer = np.dtype(f"int{limits.bits}")
    one = limits.dtype.type(1).view(integer)  # as bits
    # From the unit of the least normal number to that of 1, where it is added.
    scales = np.exp2(np.maximum(exponents - limits.minexp, limits.minexp)).astype(rows.dtype)
    least = limits.minexp - limits.maxexp
    fields = np.maximum(exponents, least).astype(integer) << limits.nmant
    shape = rows[next(_parts(rows), slice(0))].shape
    scratch = np.empty(shape, rows.dtype), np.empty(shape, rows.dtype)
    for part in _parts(rows):
        bits = rows[part].view(integer).T
        magnitude, denormal = (array[: bits.shape[-1]].T for array in scratch)
        shifted, rounded = magnitude.view(integer), denormal.view(integer)
        np.bitwise_and(bits, np.iinfo(integer).max, out=shifted)
        # With y in the unit of the least normal number, 1 + y is rounded in the right place if y
        # is below 1, and above 2 y, which is the number shifted; otherwise it is not above.
        np.multiply(magnitude, scales[part], out=denormal)
        denormal += 1
        rounded -= one
        shifted += fields[part]
        np.maximum(shifted, rounded, out=shifted)
        bits &= np.iinfo(integer).min
        bits |= shifted


def _parts(rows: HostArray) -> Iterator[slice]:
    count = max(1, _ELEMENTS * len(rows) // max(1, rows.size))
    for start in range(0, len(rows), count):
        yield slice(start, start + count)
