"""Options of the specification: what each of them means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from cupy_rnnt.options import REDUCTIONS
from cupy_rnnt.reference import joint_rnnt_loss_and_grad, rnnt_loss, rnnt_loss_and_grad

from .. import device_calls
from .cases import EXACT, assert_all_close, random_batch, random_joint


def test_blank_counts_from_the_end_when_negative():
    logits, *rest = random_batch(V=5, blank=1)
    positive = rnnt_loss_and_grad(logits, *rest, 1)
    negative = rnnt_loss_and_grad(logits, *rest, -4)
    assert_all_close(negative, positive, rtol=0, atol=0)
    assert positive[0] != rnnt_loss(logits, *rest, 2)


def test_moving_the_blank_moves_the_gradient():
    logits, targets, *lengths = random_batch(V=5, blank=0)
    loss, grad = rnnt_loss_and_grad(logits, targets, *lengths, 0)
    moved = np.roll(logits, -1, axis=-1), targets - 1
    moved_loss, moved_grad = rnnt_loss_and_grad(*moved, *lengths)
    np.testing.assert_allclose(moved_loss, loss, **EXACT)
    np.testing.assert_allclose(np.roll(moved_grad, 1, axis=-1), grad, **EXACT)


def test_clamp_bounds_the_gradient_at_unit_scale():
    logits, *rest = random_batch()
    weights = np.array([5.0, 0.1, -2.0])
    loss, grad = rnnt_loss_and_grad(logits, *rest, reduction="sum", fastemit_lambda=0.5)
    bound = np.median(np.abs(grad[grad != 0]))
    clamped_loss, clamped = rnnt_loss_and_grad(
        logits, *rest, clamp=bound, fastemit_lambda=0.5, reduction="sum", cost_weights=weights
    )
    assert clamped_loss == loss
    expected = weights[:, None, None, None] * np.clip(grad, -bound, bound)
    np.testing.assert_allclose(clamped, expected, **EXACT)
    # Zero is no bound.
    np.testing.assert_array_equal(
        rnnt_loss_and_grad(logits, *rest, clamp=0.0, reduction="sum", fastemit_lambda=0.5)[1], grad
    )


def test_fastemit_scales_labels_in_the_gradient_only():
    logits, *rest = random_batch()
    log_probs = log_softmax(logits, axis=-1)
    loss, plain = rnnt_loss_and_grad(log_probs, *rest, fused_log_softmax=False)
    fast_loss, fast = rnnt_loss_and_grad(
        log_probs, *rest, fused_log_softmax=False, fastemit_lambda=0.25
    )
    assert fast_loss == loss
    np.testing.assert_array_equal(fast[..., -1], plain[..., -1])
    np.testing.assert_allclose(fast[..., :-1], 1.25 * plain[..., :-1], **EXACT)
    assert np.any(plain[..., :-1] != 0)


def test_log_probs_as_given_cost_the_same_as_logits():
    logits, *rest = random_batch()
    log_probs = log_softmax(logits, axis=-1)
    loss, grad = rnnt_loss_and_grad(log_probs, *rest, fused_log_softmax=False)
    fused_loss, fused_grad = rnnt_loss_and_grad(logits, *rest)
    np.testing.assert_allclose(loss, fused_loss, **EXACT)
    # The chain rule of log_softmax leads from one gradient to the other.
    chained = grad - np.exp(log_probs) * grad.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(chained, fused_grad, **EXACT)
    # Nothing normalises what is given: a constant adds up along the T + U transitions.
    _, logit_lengths, target_lengths = rest
    moved = rnnt_loss(log_probs + 0.5, *rest, reduction="none", fused_log_softmax=False)
    expected = rnnt_loss(logits, *rest, reduction="none") - 0.5 * (logit_lengths + target_lengths)
    np.testing.assert_allclose(moved, expected, **EXACT)


def test_reductions_and_cost_weights():
    logits, *rest = random_batch()
    costs, each = rnnt_loss_and_grad(logits, *rest, reduction="none")
    assert costs.shape == (3,)
    assert len(set(costs)) == 3
    labels = rest[-1].sum()
    assert labels > 1
    for reduction, weight in (("mean", 1 / 3), ("mean_volume", 1 / labels), ("sum", 1.0)):
        loss, grad = rnnt_loss_and_grad(logits, *rest, reduction=reduction)
        np.testing.assert_allclose(loss, weight * costs.sum(), **EXACT)
        np.testing.assert_allclose(grad, weight * each, **EXACT)
        assert loss.dtype == grad.dtype == np.float64
    weights = np.array([2.0, 0.0, -0.5])
    for reduction in REDUCTIONS:
        loss, grad = rnnt_loss_and_grad(logits, *rest, reduction=reduction, cost_weights=weights)
        np.testing.assert_array_equal(loss, rnnt_loss(logits, *rest, reduction=reduction))
        np.testing.assert_allclose(grad, weights[:, None, None, None] * each, **EXACT)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_without_labels(device, reduction):
    """A sum over the number of labels is a sum over 1 then; padding has none."""
    logits, targets, logit_lengths, target_lengths = random_batch()
    arguments = logits, targets, logit_lengths, 0 * target_lengths
    costs, each = rnnt_loss_and_grad(*arguments, reduction="none")
    share = 1 / 3 if reduction == "mean" else 1.0
    whole = costs if reduction == "none" else share * costs.sum()
    for function in rnnt_loss_and_grad, device_calls.rnnt_loss_and_grad:
        loss, grad = function(*arguments, reduction=reduction)
        np.testing.assert_allclose(loss, whole, **EXACT)
        np.testing.assert_allclose(grad, share * each, **EXACT)


def test_joint_reduces_like_the_loss():
    inputs, rest = random_joint()
    costs, each = joint_rnnt_loss_and_grad(*inputs, *rest, reduction="none")
    total, summed = joint_rnnt_loss_and_grad(*inputs, *rest, reduction="sum")
    mean, averaged = joint_rnnt_loss_and_grad(*inputs, *rest)
    np.testing.assert_allclose([total, mean], [costs.sum(), costs.mean()], **EXACT)
    assert_all_close(summed, each, **EXACT)
    assert_all_close(averaged, [grad / 3 for grad in each], **EXACT)


def test_unknown_reduction_is_refused():
    with pytest.raises(KeyError, match="average"):
        rnnt_loss(*random_batch(), reduction="average")
