"""Losses and gradients of the JAX adapter against the textbook."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt.ops.numpy.activations import ACTIVATIONS
from cupy_rnnt.options import REDUCTIONS
from cupy_rnnt.results import JointGradients

from ..helpers import divisor
from ..tolerances import assert_costs_close
from .cases import (
    WEIGHTS,
    adapter,
    assert_equal_bits,
    assert_gradients_match,
    every_dtype,
    every_kind,
    every_reduction,
    gradient,
    jax,
    jnp,
    made,
    numpy_of,
    reference_of,
    wide,
)

PLATFORMS = dict.fromkeys(["cpu", jax.default_backend()])


@pytest.fixture(autouse=True, params=PLATFORMS)
def platform(request):
    """The CPU, and what JAX would take itself: a GPU, if it can use one."""
    with jax.default_device(jax.devices(request.param)[0]):
        yield request.param


@every_kind
@every_dtype
@every_reduction
def test_loss_and_gradient(kind, dtype, reduction):
    with wide(dtype):
        batch = made(kind, dtype=dtype)
        weights = jnp.asarray(WEIGHTS)

        def scalar(*inputs):
            loss = batch.loss(*inputs, reduction=reduction)
            return (weights * loss).sum() if reduction == "none" else -2.0 * loss

        loss = jax.jit(batch.loss, static_argnames="reduction")(*batch.inputs, reduction=reduction)
        found = jax.jit(lambda *inputs: gradient(scalar, inputs))(*batch.inputs)
    wanted_loss, _ = reference_of(kind)(*batch.case, reduction=reduction)
    assert loss.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert loss.shape == wanted_loss.shape
    assert_costs_close(loss, wanted_loss, dtype, batch.length)
    share = -2.0 / divisor(reduction, batch.case.target_lengths)
    above = WEIGHTS if reduction == "none" else np.full(4, share)
    _, wanted = reference_of(kind)(*batch.case, cost_weights=above)
    assert all(one.dtype == dtype for one in found)
    assert_gradients_match(kind, found, wanted, batch)


@every_kind
@every_reduction
def test_the_numbers_are_those_of_the_array_functions(kind, reduction):
    """To the bit, given arrays on the same device: NumPy's on the CPU. With and without jit: what
    comes from above is 1, so that nothing is rounded again."""
    batch = made(kind)
    arrays = *batch.inputs, *batch.integers, batch.case.blank
    loss, wanted = numpy_of(kind)(*arrays, reduction=reduction)
    wanted = wanted if kind == "joint" else (wanted,)

    def both(*inputs):
        value = batch.loss(*inputs, reduction=reduction)
        return value.sum(), value

    def found(*inputs):
        return jax.grad(lambda inputs: both(*inputs), has_aux=True)(inputs)

    for function in found, jax.jit(found):
        gradients, value = function(*batch.inputs)
        assert_equal_bits([value], [loss])
        assert_equal_bits(gradients, wanted)
    assert_equal_bits([batch.loss(*batch.inputs, reduction=reduction)], [loss])


@every_kind
@pytest.mark.parametrize(
    "options",
    [
        {"clamp": 0.05},
        {"fastemit_lambda": 0.3},
        {"clamp": 0.1, "fastemit_lambda": 0.1, "tolerance": 0.0},
        {"max_workspace_bytes": 3 << 20},
    ],
    ids=str,
)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_options(kind, options, reduction):
    batch = made(kind)
    found = gradient(
        lambda *inputs: (WEIGHTS * batch.loss(*inputs, reduction=reduction, **options)).sum(),
        batch.inputs,
    )
    above = WEIGHTS if reduction == "none" else np.full(4, WEIGHTS.sum())
    options = {k: v for k, v in options.items() if k in ("clamp", "fastemit_lambda")}
    _, wanted = reference_of(kind)(*batch.case, cost_weights=above, **options)
    assert_gradients_match(kind, found, wanted, batch)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_joints(activation, bias):
    batch = made("joint", bias=bias)
    loss, wanted = reference_of("joint")(*batch.case, activation=activation)
    found = gradient(batch.loss, batch.inputs, activation=activation)
    assert_gradients_match("joint", found, wanted, batch)
    assert_costs_close(
        batch.loss(*batch.inputs, activation=activation), loss, batch.dtype, batch.length
    )


def test_log_probs():
    batch = made("logits")
    log_probs = jax.nn.log_softmax(batch.inputs[0])
    loss = batch.loss(log_probs, fused_log_softmax=False)
    assert_costs_close(loss, reference_of("logits")(*batch.case)[0], batch.dtype, batch.length)

    def through(logits):
        return batch.loss(jax.nn.log_softmax(logits), fused_log_softmax=False)

    wanted = reference_of("logits")(*batch.case)[1]
    assert_gradients_match("logits", [jax.grad(through)(batch.inputs[0])], wanted, batch)


@pytest.mark.parametrize("jit", [False, True])
def test_log_probs_that_cannot_be_are_noticed(jit):
    batch = made("logits")

    def loss(logits):
        return batch.loss(logits, fused_log_softmax=False)

    with pytest.warns(UserWarning, match="blank and label add up to more than 1"):
        jax.block_until_ready((jax.jit(loss) if jit else loss)(batch.inputs[0]))


@every_kind
@every_dtype
@every_reduction
def test_strict_promotion_of_dtypes(kind, dtype, reduction):
    """The same bits as with JAX's own promotion, which no operation needs."""
    with wide(dtype):
        batch = made(kind, dtype=dtype)

        def loss(*inputs):
            return batch.loss(*inputs, reduction=reduction).sum()

        wanted = gradient(loss, batch.inputs)
        with jax.numpy_dtype_promotion("strict"):
            found = gradient(loss, batch.inputs)
    assert_equal_bits(found, wanted)
    assert {x.dtype for x in found} == {np.dtype(dtype)}


@every_kind
@every_reduction
def test_gradients_that_overflow_float16_are_inf(kind, reduction):
    """As under a loss scale that is too large: no warning, and no error."""
    batch = made(kind, dtype=np.float16)
    scale = 2.0**24

    def loss(*inputs):
        return (batch.loss(*inputs, reduction=reduction) * scale).sum()

    with np.errstate(all="raise"):
        found = jax.block_until_ready(gradient(loss, batch.inputs))
    weights = np.full(4, scale / divisor(reduction, batch.case.target_lengths))
    _, wanted = reference_of(kind)(*batch.case, cost_weights=weights)
    for one, other in zip(found, [wanted] if kind == "logits" else wanted, strict=True):
        too_large = abs(other) > 1.01 * float(np.finfo(np.float16).max)
        assert too_large.any()
        assert np.isinf(np.asarray(one)[too_large]).all()
        assert not np.isnan(np.asarray(one)).any()


@every_kind
def test_no_labels_and_one_sample(kind):
    batch = made(kind, size=2, labels=0)
    assert batch.integers[0].shape == (2, 0)
    for reduction in REDUCTIONS[1:]:
        _, wanted = reference_of(kind)(*batch.case, reduction=reduction)
        found = gradient(batch.loss, batch.inputs, reduction=reduction)
        assert_gradients_match(kind, found, wanted, batch)
    batch = made(kind, size=1)
    _, wanted = reference_of(kind)(*batch.case)
    assert_gradients_match(kind, gradient(batch.loss, batch.inputs), wanted, batch)


@every_kind
def test_half_types_under_a_loss_scale(kind):
    """Products with the scale stay in float32 up to the one rounding at the end."""
    batch = made(kind, dtype=np.float16)
    found = gradient(lambda *inputs: 64.0 * batch.loss(*inputs), batch.inputs)
    _, wanted = reference_of(kind)(*batch.case, cost_weights=np.full(4, 16.0))
    assert_gradients_match(kind, found, wanted, batch)


@every_kind
def test_gradients_that_would_underflow_without_the_scale(kind):
    batch = made(kind, dtype=np.float16)
    scale = 2.0**10
    found = gradient(lambda *inputs: scale * batch.loss(*inputs, reduction="sum"), batch.inputs)[0]
    _, wanted = reference_of(kind)(*batch.case, reduction="sum")
    wanted = np.asarray(wanted if kind == "logits" else wanted.encoder_out)
    least = float(np.finfo(np.float16).smallest_subnormal)
    some = (abs(wanted) < least / 2) & (abs(wanted) * scale > 4 * least)
    if kind == "logits":
        assert some.any()
    assert (np.asarray(found)[some] != 0).all()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("logits", np.nan),
        ("logits", -np.inf),
        ("logits", np.finfo(np.float32).min),  # whose sum float32 cannot hold
        ("joint", np.nan),
    ],
)
@pytest.mark.parametrize("zero_infinity", [False, True])
@every_reduction
def test_a_cost_that_is_not_finite_stays_alone(kind, value, zero_infinity, reduction):
    batch = made(kind)
    spoiled = np.array(batch.inputs[0])
    last = int(batch.integers[1][0]) - 1
    if np.isnan(value):
        spoiled[0, last], cost = np.nan, np.nan
    else:
        spoiled[0, last - 1 : last + 1, :, batch.case.blank], cost = value, np.inf
    inputs = jnp.asarray(spoiled), *batch.inputs[1:]
    costs = batch.loss(*inputs, reduction="none", zero_infinity=zero_infinity)
    np.testing.assert_equal(float(costs[0]), 0.0 if zero_infinity else cost)
    assert jnp.isfinite(costs[1:]).all()
    found = gradient(
        lambda *inputs: batch.loss(*inputs, reduction=reduction, zero_infinity=zero_infinity).sum(),
        inputs,
    )
    others = np.array([0.0, 1.0, 1.0, 1.0]) / divisor(reduction, batch.case.target_lengths)
    _, wanted = reference_of(kind)(*batch.case, cost_weights=others)
    assert_gradients_match(kind, found, wanted, batch)


@every_kind
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_padding_never_matters(kind, value):
    batch = made(kind)
    _, frames, columns = (np.asarray(x) for x in batch.integers)
    late = np.arange(7) >= frames[:, None]
    beyond = np.arange(6) > columns[:, None]
    padded = [np.array(x) for x in batch.inputs]
    if kind == "joint":
        padded[0][late], padded[1][beyond] = value, value
    else:
        padded[0][late[:, :, None] | beyond[:, None]] = value
    assert_equal_bits(
        gradient(batch.loss, map(jnp.asarray, padded)), gradient(batch.loss, batch.inputs)
    )


def test_a_joint_equals_its_logits():
    """The derivative of logits that JAX computes, through the loss of given logits."""
    batch = made("joint")

    def dense(encoder_out, predictor_out, weight, bias):
        hidden = jnp.tanh(encoder_out[:, :, None] + predictor_out[:, None])
        logits = hidden @ weight.T + bias
        return adapter.rnnt_loss(logits, *batch.integers, batch.case.blank)

    wanted = JointGradients(*gradient(dense, batch.inputs))
    assert_gradients_match("joint", gradient(batch.loss, batch.inputs), wanted, batch)
