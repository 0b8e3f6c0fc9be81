"""Costs and logits that are not finite, in the specification."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt.reference import joint_rnnt_loss_and_grad, rnnt_loss, rnnt_loss_and_grad

from .reference_cases import EXACT, assert_all_close, random_batch, random_joint


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


@pytest.mark.filterwarnings("ignore:invalid value")
def test_logit_of_plus_infinity_closes_the_cells_of_other_symbols():
    logits = np.random.default_rng(6).normal(size=(1, 4, 2, 5))
    logits[0, 2, 0, 3] = np.inf
    loss, grad = rnnt_loss_and_grad(logits, [[1]], [4], [1])
    closed = logits.copy()
    closed[0, 2, 0] = [0.0, -np.inf, 0.0, 0.0, -np.inf]
    expected_loss, expected_grad = rnnt_loss_and_grad(closed, [[1]], [4], [1])
    np.testing.assert_allclose(loss, expected_loss, **EXACT)
    np.testing.assert_allclose(grad, expected_grad, **EXACT)
    assert np.all(grad[0, 2, 0] == 0)
