"""Random batches as JAX arrays, and what the tests of the JAX adapter do with its results."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import reference
from cupy_rnnt.options import REDUCTIONS

from ..helpers import random_joint_case, random_logits_case
from ..tolerances import assert_gradient_close, assert_gradients_close

jax = pytest.importorskip("jax")
jnp = jax.numpy

import cupy_rnnt.jax as adapter  # noqa: E402
from cupy_rnnt.jax import callbacks  # noqa: E402

DTYPES = np.float64, np.float32, np.float16, ml_dtypes.bfloat16
WEIGHTS = np.array([0.75, -2.0, 0.0, 3.0])  # what comes from above: of any sign, or nothing

every_kind = pytest.mark.parametrize("kind", ["logits", "joint"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def wide(dtype):
    """Whether JAX is asked for 64 bits."""
    return jax.enable_x64(dtype == np.float64)


def made(kind, seed=0, *, dtype=np.float32, **options):
    """A batch as NumPy arguments, and its loss as a function of its inputs in JAX."""
    make = random_joint_case if kind == "joint" else random_logits_case
    case = make(np.random.default_rng(seed), dtype=dtype, **options)
    count = 4 if kind == "joint" else 1
    inputs = tuple(None if x is None else jnp.asarray(x) for x in case[:count])
    integers = tuple(map(jnp.asarray, case[count:-1]))
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss

    def loss(*inputs, **options):
        return function(*inputs, *integers, case.blank, **options)

    return SimpleNamespace(
        case=case, inputs=inputs, integers=integers, loss=loss, length=case.length, dtype=dtype
    )


def gradient(loss, inputs, **options):
    """Of a scalar with respect to all inputs; None where there is none."""
    return jax.grad(lambda inputs: loss(*inputs, **options))(tuple(inputs))


def numpy_of(kind):
    """Loss and gradient of arrays of NumPy, or of any kind: it has tests of its own."""
    return cupy_rnnt.joint_rnnt_loss_and_grad if kind == "joint" else cupy_rnnt.rnnt_loss_and_grad


def reference_of(kind):
    if kind == "joint":
        return reference.joint_rnnt_loss_and_grad
    return reference.rnnt_loss_and_grad


def assert_gradients_match(kind, actual, desired, batch):
    if kind == "logits":
        assert_gradient_close(actual[0], desired, batch.dtype, batch.length)
    else:
        assert_gradients_close(actual, desired, batch.dtype, batch.length)


def assert_equal_bits(actual, desired):
    for one, other in zip(actual, desired, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@contextmanager
def engine_calls():
    """What the callbacks ask the engine for: names, and numbers of samples."""
    calls = []
    run = callbacks.run

    def counted(source, batch, options, weights=None):
        calls.append(("forward" if weights is None else "forward_backward", batch.size))
        return run(source, batch, options, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "run", counted)
        yield calls
