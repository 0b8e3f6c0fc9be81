"""Costs and logits that are not finite, in the specification."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from cupy_rnnt.reference import (
    joint_rnnt_loss,
    joint_rnnt_loss_and_grad,
    rnnt_loss,
    rnnt_loss_and_grad,
)

from .cases import EXACT, assert_all_close, random_batch, random_joint


def impossible(logits):
    """The last blank of the first sample of `random_batch` can no longer be taken."""
    changed = logits.copy()
    changed[0, 3, 1, -1] = -np.inf
    return changed


def undefined(logits):
    changed = logits.copy()
    changed[0, 1, 0, 2] = np.nan
    return changed


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize(("spoil", "cost"), [(impossible, np.inf), (undefined, np.nan)])
def test_cost_that_is_not_finite_has_no_gradient_and_stays_alone(spoil, cost, zero_infinity):
    logits, *rest = random_batch()
    losses, grad = rnnt_loss_and_grad(logits, *rest, reduction="none")
    # The weight of such a sample must not matter either.
    spoiled_losses, spoiled_grad = rnnt_loss_and_grad(
        spoil(logits),
        *rest,
        reduction="none",
        zero_infinity=zero_infinity,
        cost_weights=[np.inf, 1.0, 1.0],
    )
    np.testing.assert_array_equal(spoiled_losses, [0.0 if zero_infinity else cost, *losses[1:]])
    np.testing.assert_array_equal(spoiled_grad[0], 0.0)
    np.testing.assert_array_equal(spoiled_grad[1:], grad[1:])
    mean = rnnt_loss(spoil(logits), *rest, zero_infinity=zero_infinity)
    # A sample counted as 0 is still counted.
    np.testing.assert_allclose(mean, losses[1:].sum() / 3 if zero_infinity else cost, **EXACT)


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_undefined_sample_of_the_joint_stays_alone(zero_infinity):
    inputs, rest = random_joint()
    encoder_out, *others = inputs
    spoiled = encoder_out.copy()
    spoiled[0, 1, 2] = np.nan
    common = {"reduction": "none", "zero_infinity": zero_infinity}
    losses, _ = joint_rnnt_loss_and_grad(*inputs, *rest, **common)
    _, without_first = joint_rnnt_loss_and_grad(
        *inputs, *rest, **common, cost_weights=[0.0, 1.0, 1.0]
    )
    spoiled_losses, grads = joint_rnnt_loss_and_grad(spoiled, *others, *rest, **common)
    np.testing.assert_array_equal(spoiled_losses, [0.0 if zero_infinity else np.nan, *losses[1:]])
    assert_all_close(grads, without_first, **EXACT)


def test_logits_of_minus_infinity_off_every_path_are_harmless():
    logits, targets, *lengths = random_batch(V=7)
    targets = targets % 3
    logits[..., 4] = -np.inf
    loss, grad = rnnt_loss_and_grad(logits, targets, *lengths)
    smaller_loss, smaller_grad = rnnt_loss_and_grad(np.delete(logits, 4, -1), targets, *lengths)
    np.testing.assert_allclose(loss, smaller_loss, **EXACT)
    np.testing.assert_allclose(np.delete(grad, 4, -1), smaller_grad, **EXACT)
    assert np.all(grad[..., 4] == 0)


@pytest.mark.parametrize("entry", range(5))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logit_without_a_softmax_leaves_the_sample_undefined(entry, value):
    """Whether it is that of the blank (4), of a label (1), or of neither."""
    logits, *rest = random_batch()
    logits[0, 2, 0, entry] = value
    costs, grad = rnnt_loss_and_grad(logits, *rest, reduction="none")
    np.testing.assert_array_equal(np.isnan(costs), [True, False, False])
    np.testing.assert_array_equal(grad.any(axis=(1, 2, 3)), [False, True, True])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_log_prob_that_is_no_probability_leaves_the_sample_undefined(value):
    """Of blank and label of a cell; no other is looked at."""
    logits, targets, *lengths = random_batch()
    log_probs = log_softmax(logits, axis=-1)
    options = {"reduction": "none", "fused_log_softmax": False}
    costs = rnnt_loss(log_probs, targets, *lengths, **options)
    for entry in range(5):
        spoiled = log_probs.copy()
        spoiled[0, 2, 0, entry] = value
        found = rnnt_loss(spoiled, targets, *lengths, **options)
        undefined = entry in (4, targets[0, 0])
        np.testing.assert_array_equal(found, [np.nan if undefined else costs[0], *costs[1:]])


def test_input_of_a_joint_without_a_softmax_leaves_the_sample_undefined():
    """Although the lattice reads other symbols alone."""
    (encoder_out, predictor_out, weight, bias), (targets, *lengths) = random_joint()
    rest = np.where(targets == 2, 1, targets), *lengths
    symbol = np.arange(5) == 2
    infinite = np.where(symbol, np.inf, bias)
    assert np.isnan(joint_rnnt_loss(encoder_out, predictor_out, weight, infinite, *rest))
    encoder_out[0, 1, 3] = np.inf
    weight[:, 3] = np.where(symbol, 1.0, -1.0)
    options = {"activation": "relu", "reduction": "none"}
    costs = joint_rnnt_loss(encoder_out, predictor_out, weight, bias, *rest, **options)
    np.testing.assert_array_equal(np.isnan(costs), [True, False, False])
