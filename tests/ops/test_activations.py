"""Activations far from 0: their limits, and what they make of infinity and NaN."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cupy_rnnt import reference

from ..device_calls import joint_rnnt_loss_and_grad, operations, to_device, to_host
from ..tolerances import assert_costs_close, assert_gradients_close
from .row_cases import applied, slopes

LIMITS = {  # value and derivative of a large x, and of -x
    "tanh": lambda x: ((1, 0), (-1, 0)),
    "relu": lambda x: ((x, 1), (0, 0)),
    "leaky_relu": lambda x: ((x, 1), (-0.01 * x, 0.01)),
    "sigmoid": lambda x: ((1, 0), (0, 0)),
    "gelu": lambda x: ((x, 1), (0, 0)),
    "silu": lambda x: ((x, 1), (0, 0)),
    "softsign": lambda x: ((x / (1 + x), (1 / (1 + x)) ** 2), (-x / (1 + x), (1 / (1 + x)) ** 2)),
    "identity": lambda x: ((x, 1), (-x, 1)),
}
ROUNDED = "leaky_relu", "softsign"
"""Those whose values far from 0 are rounded: by 4 units at most, or to a denormal."""
every_activation = pytest.mark.parametrize("activation", LIMITS)
every_arithmetic = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def library(activation, x):
    """Value and derivative, on the device of the running test."""
    ops = operations()

    def array(values, dtype=None):
        return to_device(np.asarray(values, dtype))

    on = SimpleNamespace(ops=ops, array=array, empty=ops.empty)
    with np.errstate(all="ignore"):  # as of the workers
        return to_host((applied(on, activation, x), slopes(on, activation, x)))


def assert_limits(activation, found, expected, dtype):
    if activation in ROUNDED:
        bound = {"rtol": 2 * np.finfo(dtype).eps, "atol": np.finfo(dtype).tiny}
        np.testing.assert_allclose(found, expected, **bound)
    else:
        np.testing.assert_array_equal(found, expected)


def large(dtype):
    """Beyond the float32 range of a square and a cube, and of those of float64."""
    most = float(np.finfo(dtype).max)
    return [x for x in (1e3, 1e12, 1e14, 1e20, 1e30, 1e104, 1e160, most) if x <= most]


@every_activation
@every_arithmetic
def test_large_values_have_the_limits(device, dtype, activation):
    for x in large(dtype):
        for sign, expected in zip((1, -1), LIMITS[activation](x), strict=True):
            found = library(activation, np.full(5, sign * x, dtype))
            for one, limit in zip(found, expected, strict=True):
                assert_limits(activation, one, np.full(5, limit, dtype), dtype)


@every_activation
def test_large_values_have_the_limits_in_the_textbook(activation):
    for x in large(np.float64):
        for sign, expected in zip((1, -1), LIMITS[activation](x), strict=True):
            found = reference.ACTIVATIONS[activation](np.array([sign * x]))
            assert_limits(activation, np.concatenate(found), expected, np.float64)


@every_activation
@every_arithmetic
def test_infinity_and_nan_are_what_they_are_in_the_textbook(device, dtype, activation):
    x = np.array([np.nan, np.inf, -np.inf], dtype)
    with np.errstate(invalid="ignore"):
        expected = reference.ACTIVATIONS[activation](x.astype(np.float64))
    for one, other in zip(library(activation, x), expected, strict=True):
        np.testing.assert_array_equal(one, other.astype(dtype))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "identity"])
@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e14), (np.float64, 1e104)])
def test_a_joint_with_large_hidden_values(device, dtype, scale, activation):
    """One of two samples has them, and weights as small."""
    rng = np.random.default_rng(0)
    encoder_out = rng.standard_normal((2, 4, 3))
    encoder_out[0] *= scale
    weight = rng.standard_normal((5, 3)) / scale
    inputs = (x.astype(dtype) for x in (encoder_out, np.zeros((2, 3, 3)), weight))
    case = *inputs, None, np.array([[1, 2], [0, 1]]), np.array([4, 4]), np.array([2, 2])
    options = {"activation": activation, "reduction": "none"}
    costs, gradients = joint_rnnt_loss_and_grad(*case, **options)
    expected_costs, expected = reference.joint_rnnt_loss_and_grad(*case, **options)
    assert all(np.isfinite(one).all() for one in expected if one is not None)
    assert_costs_close(costs, expected_costs, dtype, 6)
    assert_gradients_close(gradients, expected, dtype, 6)
