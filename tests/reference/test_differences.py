"""Gradients of the specification, held against finite differences and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from cupy_rnnt.reference import (
    joint_rnnt_loss,
    joint_rnnt_loss_and_grad,
    rnnt_loss,
    rnnt_loss_and_grad,
)

from .cases import EXACT, random_batch, random_joint

# Central differences with step h err by about h**2 and by round-off / h: 1e-10 each at this step.
STEP = 1e-5
DIFFERENCES = {"rtol": 1e-7, "atol": 1e-8}

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: x * (x > 0),
    "leaky_relu": lambda x: np.maximum(x, x / 100),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    # (1 + tanh(y)) / 2 = sigmoid(2 y) gives the tanh approximation another face.
    "gelu": lambda x: x * expit(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softsign": lambda x: np.sign(x) * (1 - 1 / (1 + np.abs(x))),
    "identity": lambda x: x,
}


def central_differences(function, array):
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[index] += STEP
        down[index] -= STEP
        gradient[index] = (function(up) - function(down)) / (2 * STEP)
    return gradient


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("blank", [0, 2, -1])
def test_gradient_of_logits_by_finite_differences(fused, blank):
    logits, *rest = random_batch(blank=blank)
    weights = np.array([0.5, -2.0, 3.0])

    def weighted(logits):
        return weights @ rnnt_loss(logits, *rest, blank, -1.0, "none", fused)

    _, grad = rnnt_loss_and_grad(logits, *rest, blank, -1.0, "mean", fused, cost_weights=weights)
    np.testing.assert_allclose(grad, central_differences(weighted, logits), **DIFFERENCES)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_joint_by_finite_differences(activation, with_bias):
    inputs, rest = random_joint(B=2, T=3, U=2, V=4, H=7)
    inputs = inputs if with_bias else (*inputs[:3], None)
    weights = np.array([0.5, -2.0])
    _, grads = joint_rnnt_loss_and_grad(*inputs, *rest, activation=activation, cost_weights=weights)
    assert grads._fields == ("encoder_out", "predictor_out", "weight", "bias")
    assert (grads.bias is None) == (not with_bias)

    # Without a bias nothing differs but its absence: one input is enough.
    for i in range(4) if with_bias else [2]:

        def weighted(array, i=i):
            changed = (*inputs[:i], array, *inputs[i + 1 :])
            costs = joint_rnnt_loss(*changed, *rest, reduction="none", activation=activation)
            return weights @ costs

        differences = central_differences(weighted, inputs[i])
        np.testing.assert_allclose(grads[i], differences, **DIFFERENCES, err_msg=grads._fields[i])


@pytest.mark.parametrize("clamp", [-1.0, 0.05])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_joint_is_the_loss_of_its_logits(activation, clamp):
    (encoder_out, predictor_out, weight, bias), rest = random_joint(seed=7, blank=1)
    pre_activation = encoder_out[:, :, None] + predictor_out[:, None]
    hidden = ACTIVATIONS[activation](pre_activation)
    common = {"fastemit_lambda": 0.2, "cost_weights": [1.0, 0.0, -3.0]}
    loss, d_logits = rnnt_loss_and_grad(hidden @ weight.T + bias, *rest, 1, clamp, **common)

    inputs = encoder_out, predictor_out, weight, bias
    joint_loss, grads = joint_rnnt_loss_and_grad(
        *inputs, *rest, 1, clamp, activation=activation, **common
    )
    np.testing.assert_allclose(joint_loss, loss, **EXACT)
    np.testing.assert_allclose(
        joint_rnnt_loss(*inputs, *rest, 1, clamp, activation=activation), loss, **EXACT
    )
    slope = (
        ACTIVATIONS[activation](pre_activation + STEP)
        - ACTIVATIONS[activation](pre_activation - STEP)
    ) / (2 * STEP)
    d_sum = d_logits @ weight * slope
    np.testing.assert_allclose(grads.bias, d_logits.sum(axis=(0, 1, 2)), **EXACT)
    np.testing.assert_allclose(
        grads.weight, np.einsum("btuv,btuh->vh", d_logits, hidden), rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(grads.encoder_out, d_sum.sum(axis=2), **DIFFERENCES)
    np.testing.assert_allclose(grads.predictor_out, d_sum.sum(axis=1), **DIFFERENCES)
