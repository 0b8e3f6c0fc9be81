"""The PyTorch adapter's values, held against the reference and autograd through the textbook."""

from __future__ import annotations

import numpy as np
import pytest

from ..helpers import divisor
from ..tolerances import assert_costs_close, assert_gradient_close
from .cases import (
    ACTIVATIONS,
    DTYPES,
    WEIGHTS,
    F,
    adapter,
    assert_equal_bits,
    assert_gradients_match,
    every_activation,
    every_dtype,
    every_kind,
    every_reduction,
    gradients,
    loss_of,
    made,
    numpy,
    reduced,
    reference_of,
    torch,
)

# The textbook, for autograd to differentiate


def textbook_costs(log_probs, targets, logit_lengths, target_lengths, blank):
    """Costs (B,) by the alpha recursion, cell by cell."""
    costs = []
    lengths = logit_lengths.tolist(), target_lengths.tolist()
    for b, (frames, labels) in enumerate(zip(*lengths, strict=True)):
        alpha = {}
        for t in range(frames):
            for u in range(labels + 1):
                ways = []
                if t > 0:
                    ways.append(alpha[t - 1, u] + log_probs[b, t - 1, u, blank])
                if u > 0:
                    ways.append(alpha[t, u - 1] + log_probs[b, t, u - 1, targets[b, u - 1]])
                alpha[t, u] = torch.logsumexp(torch.stack(ways), 0) if ways else torch.tensor(0.0)
        costs.append(-alpha[frames - 1, labels] - log_probs[b, frames - 1, labels, blank])
    return torch.stack(costs)


def textbook_logits(encoder_out, predictor_out, weight, bias, activation):
    hidden = ACTIVATIONS[activation](encoder_out[:, :, None] + predictor_out[:, None])
    return F.linear(hidden, weight, bias)


def textbook(kind, leaves, rest, activation="tanh", fused=True):
    logits = textbook_logits(*leaves, activation) if kind == "joint" else leaves[0]
    return textbook_costs(logits.log_softmax(-1) if fused else logits, *rest)


# Values


@every_kind
@every_reduction
def test_batches_without_labels(kind, reduction):
    """Their sum is divided by 1 if it is to be divided by the number of labels."""
    batch = made(kind, labels=0)
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction)
    wanted = reference_of(kind)(*batch.case, reduction=reduction)
    assert_costs_close(numpy(loss), wanted[0], np.float64, batch.length)
    found = gradients(loss.sum(), batch.leaves)
    assert_gradients_match(kind, found, wanted[1], np.float64, batch.length)


@every_reduction
@pytest.mark.parametrize("fused", [True, False])
def test_logits_against_autograd(fused, reduction):
    batch = made("logits")
    if not fused:
        with torch.no_grad():
            batch.leaves[0].copy_(batch.leaves[0].log_softmax(-1))
    loss = adapter.rnnt_loss(
        *batch.leaves, *batch.rest, reduction=reduction, fused_log_softmax=fused
    )
    expected = reduced(
        textbook("logits", batch.leaves, batch.rest, fused=fused), reduction, batch.case
    )
    assert loss.shape == expected.shape
    assert_costs_close(numpy(loss), numpy(expected), np.float64, batch.length)
    upstream = torch.from_numpy(WEIGHTS) if reduction == "none" else torch.tensor(-2.5)
    (grad,) = gradients(loss, batch.leaves, grad_outputs=upstream.to(loss.dtype))
    (wanted,) = gradients(expected, batch.leaves, grad_outputs=upstream.to(loss.dtype))
    assert_gradient_close(grad, wanted, np.float64, batch.length)


@every_activation
@pytest.mark.parametrize("bias", [True, False])
def test_joint_against_autograd(activation, bias):
    batch = made("joint", bias=bias)
    loss = adapter.joint_rnnt_loss(
        *batch.leaves, *batch.rest, reduction="none", activation=activation
    )
    expected = textbook("joint", batch.leaves, batch.rest, activation)
    assert_costs_close(numpy(loss), numpy(expected), np.float64, batch.length)
    upstream = torch.from_numpy(WEIGHTS)
    actual = gradients(loss, batch.leaves, grad_outputs=upstream)
    desired = gradients(expected, batch.leaves, grad_outputs=upstream)
    for one, other in zip(actual, desired, strict=True):
        assert_gradient_close(one, other, np.float64, batch.length)


@every_kind
@every_dtype
@every_reduction
def test_against_the_reference(kind, dtype, reduction):
    batch = made(kind, seed=3, dtype=dtype, blank=2)
    numpy_dtype = DTYPES[dtype]
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction)
    share = -2.5 / divisor(reduction, batch.case.target_lengths)
    scale = WEIGHTS if reduction == "none" else np.full(4, share)
    wanted = reference_of(kind)(*batch.case, reduction=reduction, cost_weights=scale)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_costs_close(numpy(loss), wanted[0], numpy_dtype, batch.length)
    upstream = torch.from_numpy(WEIGHTS) if reduction == "none" else torch.tensor(-2.5)
    actual = gradients(loss, batch.leaves, grad_outputs=upstream.to(loss.dtype))
    assert all(grad.dtype == dtype for grad in actual)
    assert_gradients_match(kind, actual, wanted[1], numpy_dtype, batch.length)


@every_kind
@pytest.mark.parametrize(
    "options",
    [{"clamp": 0.05}, {"fastemit_lambda": 0.5}, {"clamp": 0.1, "fastemit_lambda": 0.1}],
    ids=str,
)
def test_options_that_only_gradients_feel(kind, options):
    batch = made(kind, seed=5)
    costs = loss_of(kind)(*batch.leaves, *batch.rest, reduction="none", **options)
    plain = loss_of(kind)(*batch.leaves, *batch.rest, reduction="none")
    assert_equal_bits([costs], [plain])
    wanted = reference_of(kind)(*batch.case, cost_weights=WEIGHTS, **options)[1]
    actual = gradients(costs @ torch.from_numpy(WEIGHTS), batch.leaves)
    assert_gradients_match(kind, actual, wanted, np.float64, batch.length)
    # The bound holds before the gradient from above: a loss scale is none of its business.
    scaled = gradients(1024 * loss_of(kind)(*batch.leaves, *batch.rest, **options), batch.leaves)
    plain = gradients(loss_of(kind)(*batch.leaves, *batch.rest, **options), batch.leaves)
    for one, other in zip(scaled, plain, strict=True):
        assert_gradient_close(one / 1024, other, np.float64, 1)


@every_kind
@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_gradcheck(kind, activation):
    batch = made(kind, size=2, frames=4, labels=3, vocabulary=5)
    options = {"activation": activation} if kind == "joint" else {}
    count = len(batch.leaves)
    rest = batch.rest

    def costs(*leaves):
        assert len(leaves) == count
        return loss_of(kind)(*leaves, *rest, reduction="none", tolerance=0, **options)

    assert torch.autograd.gradcheck(costs, batch.leaves)


@every_kind
def test_small_workspace_gives_the_same(kind):
    batch = made(kind, frames=40, labels=23)
    plain = loss_of(kind)(*batch.leaves, *batch.rest)
    with pytest.raises(ValueError, match="at least") as caught:
        loss_of(kind)(*batch.leaves, *batch.rest, max_workspace_bytes=0)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    loss = loss_of(kind)(*batch.leaves, *batch.rest, max_workspace_bytes=least)
    assert_costs_close(numpy(loss), numpy(plain), np.float64, batch.length)
    for one, other in zip(
        gradients(loss, batch.leaves), gradients(plain, batch.leaves), strict=True
    ):
        assert_gradient_close(one, other, np.float64, batch.length)
