"""Facts about the specification: rows, padding and samples, and its corners."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from cupy_rnnt.reference import joint_rnnt_loss_and_grad, rnnt_loss, rnnt_loss_and_grad

from .cases import EXACT, assert_all_close, enumerated, random_batch, random_joint


def padding(logits, logit_lengths, target_lengths):
    """True where a cell (b, t, u) is padding."""
    _, t, u = np.indices(logits.shape[:3])
    outside_time = t >= np.asarray(logit_lengths)[:, None, None]
    return outside_time | (u > np.asarray(target_lengths)[:, None, None])


@pytest.mark.parametrize("fastemit", [0.0, 0.4])
def test_gradient_rows_sum_to_zero_and_row_constants_change_nothing(fastemit):
    logits, *rest = random_batch(seed=2, B=4, T=6, U=3, V=7)
    shifted = logits + np.random.default_rng(9).normal(size=(*logits.shape[:3], 1))
    loss, grad = rnnt_loss_and_grad(logits, *rest, fastemit_lambda=fastemit)
    np.testing.assert_allclose(grad.sum(axis=-1), 0.0, atol=1e-14)
    assert np.abs(grad).max() > 0.01
    assert_all_close(
        rnnt_loss_and_grad(shifted, *rest, fastemit_lambda=fastemit), (loss, grad), **EXACT
    )


@pytest.mark.parametrize("fused", [True, False])
def test_padding_is_never_read(fused):
    logits, targets, logit_lengths, target_lengths = random_batch()
    is_padding = padding(logits, logit_lengths, target_lengths)
    assert is_padding.any(axis=(1, 2)).all()
    spoiled = np.where(is_padding[..., None], np.nan, logits)
    beyond = np.arange(targets.shape[1]) >= target_lengths[:, None]
    spoiled_targets = np.where(beyond, -(2**30), targets)
    lengths = logit_lengths, target_lengths, -1, -1.0, "none", fused
    loss, grad = rnnt_loss_and_grad(logits, targets, *lengths)
    spoiled_loss, spoiled_grad = rnnt_loss_and_grad(spoiled, spoiled_targets, *lengths)
    np.testing.assert_array_equal(spoiled_loss, loss)
    np.testing.assert_array_equal(spoiled_grad, grad)
    assert np.all(grad[is_padding] == 0)
    assert np.isfinite(loss).all()


def test_padding_of_the_joint_is_never_read():
    inputs, (targets, logit_lengths, target_lengths) = random_joint()
    encoder_out, predictor_out, weight, bias = inputs
    frames = np.arange(encoder_out.shape[1]) >= logit_lengths[:, None]
    columns = np.arange(predictor_out.shape[1]) > target_lengths[:, None]
    spoiled = (
        np.where(frames[..., None], np.nan, encoder_out),
        np.where(columns[..., None], np.inf, predictor_out),
    )
    rest = targets, logit_lengths, target_lengths
    loss, grads = joint_rnnt_loss_and_grad(*inputs, *rest)
    spoiled_loss, spoiled_grads = joint_rnnt_loss_and_grad(*spoiled, weight, bias, *rest)
    assert spoiled_loss == loss
    for spoiled_grad, grad in zip(spoiled_grads, grads, strict=True):
        np.testing.assert_array_equal(spoiled_grad, grad)
    assert np.all(grads.encoder_out[frames] == 0)
    assert np.all(grads.predictor_out[columns] == 0)


def test_samples_do_not_depend_on_their_batch():
    logits, targets, logit_lengths, target_lengths = random_batch()
    losses, grad = rnnt_loss_and_grad(
        logits, targets, logit_lengths, target_lengths, reduction="none"
    )
    for b, (T, U) in enumerate(zip(logit_lengths, target_lengths, strict=True)):
        cost, sample_grad = rnnt_loss_and_grad(
            logits[b : b + 1, :T, : U + 1], targets[b : b + 1, :U], [T], [U], reduction="sum"
        )
        assert cost == losses[b]
        np.testing.assert_array_equal(sample_grad[0], grad[b, :T, : U + 1])


# Corners


def test_no_labels_is_a_chain_of_blanks():
    logits = np.random.default_rng(1).normal(size=(1, 4, 1, 3))
    loss, grad = rnnt_loss_and_grad(logits, np.zeros((1, 0), int), [4], [0], 1)
    np.testing.assert_allclose(loss, -log_softmax(logits, -1)[..., 1].sum(), **EXACT)
    np.testing.assert_allclose(grad, softmax(logits, -1) - np.eye(3)[1], **EXACT)


def test_one_frame_is_a_chain_of_labels():
    logits = np.random.default_rng(1).normal(size=(1, 1, 4, 5))
    chain = [2, 0, 2, 4]  # three labels, then the blank
    loss, grad = rnnt_loss_and_grad(logits, [chain[:3]], [1], [3])
    np.testing.assert_allclose(loss, -log_softmax(logits[0, 0], -1)[range(4), chain].sum(), **EXACT)
    np.testing.assert_allclose(grad, softmax(logits, -1) - np.eye(5)[chain], **EXACT)


def test_more_labels_than_frames():
    logits = np.random.default_rng(4).normal(size=(1, 2, 7, 4))
    labels = [0, 1, 2, 0, 0, 1]
    cost, grad = enumerated(logits[0], labels, -1)
    assert_all_close(
        rnnt_loss_and_grad(logits, [labels], [2], [6]), (cost, grad[None]), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_inputs_are_widened_and_left_alone(dtype):
    (*inputs, bias), rest = random_joint()
    narrow = [array.astype(dtype) for array in (*inputs, bias)]
    wide = [array.astype(np.float64) for array in narrow]
    loss, grads = joint_rnnt_loss_and_grad(*narrow, *rest)
    wide_loss, wide_grads = joint_rnnt_loss_and_grad(*wide, *rest)
    assert loss == wide_loss
    assert_all_close(grads, wide_grads, rtol=0, atol=0)
    assert all(grad.dtype == np.float64 for grad in grads)
    assert all(map(np.array_equal, narrow, wide))

    logits, *rest = random_batch()
    logits = logits.astype(dtype)
    assert rnnt_loss(logits, *rest) == rnnt_loss(logits.astype(np.float64), *rest)


def test_long_and_improbable():
    # exp(-cost) underflows by far, occupancies must not.
    T, U, V = 150, 40, 3
    logits = 20 * np.random.default_rng(0).normal(size=(1, T, U + 1, V))
    loss, grad = rnnt_loss_and_grad(
        logits, np.arange(U)[None] % 2, [T], [U], fused_log_softmax=False
    )
    assert np.isfinite(loss)
    blank_occupancy, label_occupancy = -grad[0, ..., 2], -grad[0, :, :-1, :2].sum(axis=-1)
    np.testing.assert_allclose(blank_occupancy.sum(axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(label_occupancy.sum(axis=0), 1.0, rtol=1e-9)
