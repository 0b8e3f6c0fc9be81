"""How far a result may be from the float64 reference: one table for all tests.

Let u be the unit round-off of the arithmetic (2**-53 for float64, 2**-24 for everything narrower)
and n = T + U the number of transitions on a path of the longest sample.

*Costs.* A cost is a sum of n log-probabilities, each the difference of a logit and a log-sum-exp
and so off by a few u times the size of the logits, at least 1. These errors are independent and add
up like a random walk, to ``c u sqrt(n)`` times that size; rounding the result adds u of its value.
The bound is relative to the cost or to 1, whichever is larger, since no cost is known better than
the logits that cancel in it.

*Products.* A logit of a joint network is a sum of H products. Its partial sums are of its own size,
and are rounded, too. A processor has at least 16 partial sums side by side, each of which is
rounded H / 16 times. Hence a logit is off ``sqrt(1 + H / 16)`` times as much.

*Gradients.* An occupancy is the exponential of a difference of such sums, so its relative error is
their absolute error, ``c u sqrt(n)``. To this the float64 lattice, and that of the reference, adds
its own: n roundings of numbers that grow to the size of the cost, itself of order n, make
``c 2**-53 n**1.5``, which matters to float64 only. Sums over cells
(gradients of a joint network) average such errors and cancel values, so the bound is relative to
the largest entry of the array and not entry by entry; and every entry is made of differences of
probabilities, so it is relative to 1 where the largest entry is smaller. Cells that occupancy
filtering leaves out hold at most u of the occupancy, which is within the same bound.

*Narrow types.* Both sides start from the same rounded inputs, and arithmetic is float32, so costs,
which are float32, are as above. Gradients are rounded once more, to the type they are stored in:
by at most half a unit of its last place of each entry, and so of the largest. Let s be the unit
round-off of that type. A device with tensor cores is given a hidden vector as two of the type,
which leave s**2 of it, and so of every logit. For the gradients it is given the first one, and the
gradient of the logits, rounded: each term of their sums is off by 2 s, independently of the others.
The squares of terms add up to n at most, as the occupancies of a path do: ``2 s sqrt(n)``.

The three constants c are about four times the worst that was measured over shapes from T + U = 4
to 600 with logits of standard deviation 1 to 5.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from .device_calls import operations

DTYPES = tuple(np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))
COST = 8.0
GRADIENT = 10.0
LATTICE = 40.0


def unit_roundoff(dtype) -> float:
    """Of rounding to the nearest value of `dtype`."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def _arithmetic(dtype) -> float:
    return min(unit_roundoff(dtype), unit_roundoff(np.float32))


def _of_factors(dtype) -> float:
    """Unit round-off of the factors of products on the device of the running test; 0 if it has no
    narrower ones."""
    factor = operations().factor_dtype(np.dtype(dtype))
    return 0.0 if factor is None else unit_roundoff(factor)


def cost_tolerance(dtype, length: int, hidden: int = 0) -> float:
    """Error of a cost relative to ``max(1, cost)``; `dtype` is that of the inputs, ``length = T +
    U``, and `hidden` the terms of the products that logits are."""
    steps = float(np.sqrt(length * (1 + hidden / 16)))
    return COST * (_arithmetic(dtype) + _of_factors(dtype) ** 2) * steps


def gradient_tolerance(dtype, length: int) -> float:
    """Error of any entry of a gradient relative to the largest entry, or to 1 if that is larger."""
    storage = unit_roundoff(dtype) if unit_roundoff(dtype) > _arithmetic(dtype) else 0.0
    lattice = LATTICE * unit_roundoff(np.float64) * length**1.5
    factors = _of_factors(dtype)
    steps = float(np.sqrt(length))
    return (
        GRADIENT * (_arithmetic(dtype) + factors**2) * steps
        + lattice
        + storage
        + 2 * factors * steps
    )


def assert_costs_close(actual, desired, dtype, length: int, hidden: int = 0) -> None:
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    scale = np.maximum(1.0, np.abs(desired, where=np.isfinite(desired), out=np.ones_like(desired)))
    tolerance = cost_tolerance(dtype, length, hidden)
    np.testing.assert_allclose(actual / scale, desired / scale, rtol=0, atol=tolerance)


def assert_gradient_close(actual, desired, dtype, length: int, name: str = "") -> None:
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    tolerance = gradient_tolerance(dtype, length) * np.abs(desired).max(initial=1.0)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=tolerance, err_msg=name)


def assert_gradients_close(actual, desired, dtype, length: int) -> None:
    """For the four gradients of a joint network; there may be none for the bias."""
    for name, one, other in zip(desired._fields, actual, desired, strict=True):
        assert (one is None) == (other is None), name
        if other is not None:
            assert_gradient_close(one, other, dtype, length, name)
