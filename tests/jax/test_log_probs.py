"""Scores of cells in JAX: the numbers of NumPy, with a derivative."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.options import Options
from cupy_rnnt.results import JointGradients

from ..tolerances import assert_costs_close, assert_gradient_close, assert_gradients_close
from ..transducers.cases import OPTIONS
from .cases import adapter, assert_equal_bits, callbacks, every_dtype, gradient, jax, jnp, wide
from .cases import made as made_loss
from .test_cuda import assert_on_stream, call
from .test_cuda import made as made_on_cuda

pytestmark = pytest.mark.usefixtures("jax_on_cpu")


def made(**options):
    """A batch, and the scores as a function of its inputs."""
    batch = made_loss("joint", **options)

    def scores(*inputs, **keywords):
        return adapter.joint_rnnt_log_probs(*inputs, *batch.integers, batch.case.blank, **keywords)

    return SimpleNamespace(
        case=batch.case,
        inputs=batch.inputs,
        integers=batch.integers,
        scores=scores,
        length=batch.length,
    )


def of_function(scores):
    """One that is not linear, and differs from cell to cell."""
    numbers = jnp.arange(scores.size).reshape(scores.shape)
    return (jnp.sin(numbers) * jnp.exp(scores)).sum()


@every_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("jit", [True, False])
def test_results_are_those_of_numpy(dtype, bias, jit):
    with wide(dtype):
        batch = made(dtype=dtype, bias=bias)
        scores = (jax.jit(batch.scores) if jit else batch.scores)(*batch.inputs)
        expected = cupy_rnnt.joint_rnnt_log_probs(*batch.case)
        assert_equal_bits([scores], [expected])
        weights = np.random.default_rng(0).normal(size=expected.shape).astype(expected.dtype)

        def weighted(*inputs):
            return (weights * batch.scores(*inputs)).sum()

        found = gradient(jax.jit(weighted) if jit else weighted, batch.inputs)
        wanted = cupy_rnnt.joint_rnnt_log_probs_grad(*batch.case, grad=weights)
        assert_equal_bits(found, wanted)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_derivatives_are_those_of_finite_differences(options):
    options = {name: value for name, value in options.items() if name != "delay_penalty"}
    options |= {"activation": "silu", "dropout": 0.3, "seed": 5}
    with wide(np.float64):
        sizes = {"size": 2, "frames": 4, "labels": 2, "vocabulary": 8, "hidden": 3}
        batch = made(dtype=np.float64, **sizes)
        targets, *lengths = batch.integers

        def function(*inputs):
            lattice = jnp.zeros_like(targets), *lengths  # no blank and no duration
            return of_function(adapter.joint_rnnt_log_probs(*inputs, *lattice, 3, **options))

        rng = np.random.default_rng(0)
        directions = [rng.normal(size=x.shape) for x in batch.inputs]
        found = gradient(function, batch.inputs)
        slope = sum((g * d).sum() for g, d in zip(found, directions, strict=True))
        ahead, back = (
            function(*(x + h * d for x, d in zip(batch.inputs, directions, strict=True)))
            for h in (1e-5, -1e-5)
        )
        np.testing.assert_allclose((ahead - back) / 2e-5, slope, rtol=1e-6, atol=1e-6)


def test_the_pullback_may_be_used_twice():
    batch = made()
    scores, pullback = jax.vjp(batch.scores, *batch.inputs)
    first = pullback(jnp.ones_like(scores))
    assert_equal_bits(pullback(jnp.ones_like(scores)), first)


def test_samples_are_mapped_onto_the_batch():
    batch = made()
    own, parameters = batch.inputs[:2], batch.inputs[2:]

    def of_sample(own, integers):
        arguments = *(x[None] for x in own), *parameters, *(x[None] for x in integers)
        return adapter.joint_rnnt_log_probs(*arguments, batch.case.blank)[0]

    mapped = jax.vmap(of_sample)
    assert_equal_bits([mapped(own, batch.integers)], [batch.scores(*batch.inputs)])
    found = jax.grad(lambda own: of_function(mapped(own, batch.integers)))(own)
    wanted = gradient(lambda *inputs: of_function(batch.scores(*inputs)), batch.inputs)
    for one, other in zip(found, wanted[:2], strict=True):
        assert_gradient_close(one, other, np.float32, batch.length)


def test_checkpoint():
    batch = made()

    def function(*inputs):
        return of_function(batch.scores(*(2 * x for x in inputs)))

    wanted = gradient(function, batch.inputs)
    assert_equal_bits(gradient(jax.checkpoint(function), batch.inputs), wanted)


def test_mapped_cotangents_and_parameters():
    """A Jacobian, whose instances share all inputs, and scores of two weights."""
    batch = made(size=1, frames=2, labels=1)
    found = jax.jacrev(lambda x: batch.scores(x, *batch.inputs[1:]))(batch.inputs[0])
    scores, pullback = jax.vjp(batch.scores, *batch.inputs)
    for index in np.ndindex(scores.shape):
        unit = jnp.zeros_like(scores).at[index].set(1)
        assert_gradient_close(found[index], pullback(unit)[0], np.float32, batch.length)
    weights = jnp.stack([batch.inputs[2], -batch.inputs[2]])
    both = jax.vmap(lambda w: batch.scores(*batch.inputs[:2], w, batch.inputs[3]))(weights)
    for one, weight in zip(both, weights, strict=True):
        expected = batch.scores(*batch.inputs[:2], weight, batch.inputs[3])
        assert_equal_bits([one], [expected])


def test_there_is_no_second_derivative():
    batch = made()

    def first(*inputs):
        return gradient(lambda *i: of_function(batch.scores(*i)), inputs)[0].sum()

    with pytest.raises(ValueError, match="do not support JVP"):
        gradient(first, batch.inputs)


def test_bad_input():
    batch = made()
    with pytest.raises(TypeError, match="unexpected keyword argument 'clamp'"):
        batch.scores(*batch.inputs, clamp=1.0)
    with pytest.raises(TypeError, match="weight has dtype bfloat16, but float32 is needed"):
        batch.scores(*batch.inputs[:2], batch.inputs[2].astype(jnp.bfloat16), None)
    targets, _, label_counts = batch.integers
    with pytest.raises(Exception, match=r"logit_lengths\[0\] is 0"):
        jax.block_until_ready(
            adapter.joint_rnnt_log_probs(*batch.inputs, targets, label_counts * 0, label_counts)
        )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_on_cuda(emulator, dtype):
    """On the stream of the computation, with stand-ins for its buffers."""
    given = made_on_cuda(emulator, "joint", dtype, gradient=False)
    given.loss = callbacks.JointScores(Options.checked(np.dtype(dtype), blank=given.case.blank))
    expected = cupy_rnnt.joint_rnnt_log_probs(*given.case)
    given.result = emulator.empty(expected.shape, np.float32)
    call(given)
    assert_on_stream(emulator)
    assert_costs_close(given.result.get(), expected, dtype, given.case.length, hidden=11)
    given.result = None
    given.gradients = [emulator.empty(x.shape, x.dtype) for x in given.inputs]
    upstream = np.exp(expected)
    call(given, emulator.asarray(upstream))
    found = JointGradients(*(x.get() for x in given.gradients))
    wanted = cupy_rnnt.joint_rnnt_log_probs_grad(*given.case, grad=upstream)
    assert_gradients_close(found, wanted, dtype, given.case.length)
