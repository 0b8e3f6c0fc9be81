"""What is not finite, in tensors: in the padding, and in the cost of one sample."""

from __future__ import annotations

import numpy as np
import pytest

from ..helpers import divisor
from ..tolerances import assert_gradient_close
from .cases import (
    assert_equal_bits,
    every_kind,
    every_reduction,
    gradients,
    loss_of,
    made,
    reduced,
    torch,
)


def padded_with(kind, batch, value):
    """Leaves with `value` at all padding, and such targets."""
    case = batch.case
    frames = torch.arange(7) >= batch.rest[1][:, None]
    columns = torch.arange(6) > batch.rest[2][:, None]
    assert frames.any()
    assert columns.any()
    leaves = [leaf.detach().clone() for leaf in batch.leaves]
    if kind == "joint":
        leaves[0][frames] = value
        leaves[1][columns] = value
    else:
        leaves[0][frames[:, :, None] | columns[:, None]] = value
    targets = batch.rest[0].clone()
    targets[columns[:, 1:]] = case.blank
    return [leaf.requires_grad_() for leaf in leaves], targets


@every_kind
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_padding_never_matters(kind, value):
    batch = made(kind)
    loss = loss_of(kind)(*batch.leaves, *batch.rest)
    leaves, targets = padded_with(kind, batch, value)
    other = loss_of(kind)(*leaves, targets, *batch.rest[1:])
    assert_equal_bits([other], [loss])
    assert_equal_bits(gradients(other, leaves), gradients(loss, batch.leaves))


def spoiled(kind, batch, cost):
    """Leaves in which sample 0, and no other, has the given cost: NaN, or inf for P = 0."""
    leaves = [leaf.detach().clone() for leaf in batch.leaves]
    last = int(batch.rest[1][0]) - 1
    if np.isnan(cost):
        leaves[0][0, last] = torch.nan
    elif kind == "logits":
        leaves[0][0, last, :, batch.case.blank] = -torch.inf
    else:  # a label of this sample alone has no chance
        label = int(batch.rest[0][0, 0])
        batch.rest[0][batch.rest[0] == label] = (label + 1) % 8
        batch.rest[0][0, 0] = label
        leaves[3][label] = -torch.inf
    return [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("zero_infinity", [False, True])
@every_kind
@every_reduction
def test_a_cost_beyond_float32_has_no_gradient(kind, zero_infinity, reduction):
    """A label that a path must take twice, masked by the least finite number."""
    batch = made(kind, dtype=torch.float32)
    batch.rest[0][batch.rest[0] == 3] = 4
    batch.rest[0][0, :2] = 3
    leaves = [leaf.detach().clone() for leaf in batch.leaves]
    if kind == "logits":
        leaves[0][0, ..., 3] = torch.finfo(torch.float32).min
    else:
        leaves[3][3] = torch.finfo(torch.float32).min
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss = loss_of(kind)(*leaves, *batch.rest, reduction=reduction, zero_infinity=zero_infinity)
    reported = loss[0] if reduction == "none" else loss
    if zero_infinity:
        assert torch.isfinite(reported)
    else:
        assert reported == torch.inf
    found = gradients(loss, leaves, grad_outputs=torch.ones_like(loss))
    assert all(torch.isfinite(one).all() for one in found)
    assert not found[0][0].any()
    assert found[0][1].any()


@every_kind
@pytest.mark.parametrize("cost", [np.nan, np.inf])
@pytest.mark.parametrize("zero_infinity", [False, True])
@every_reduction
def test_a_cost_that_is_not_finite_stays_alone(kind, cost, zero_infinity, reduction):
    batch = made(kind)
    leaves = spoiled(kind, batch, cost)
    costs = loss_of(kind)(*leaves, *batch.rest, reduction="none", zero_infinity=zero_infinity)
    np.testing.assert_equal(costs[0].item(), 0.0 if zero_infinity else cost)
    assert torch.isfinite(costs[1:]).all()

    loss = loss_of(kind)(*leaves, *batch.rest, reduction=reduction, zero_infinity=zero_infinity)
    if reduction != "none":
        np.testing.assert_equal(loss.item(), reduced(costs, reduction, batch.case).item())
    actual = gradients(loss, leaves, grad_outputs=torch.ones_like(loss))

    # The gradient is that of the other samples, computed without this one.
    few = [x[1:].detach().requires_grad_() if i < 2 else x for i, x in enumerate(leaves)]
    rest = [x[1:] for x in batch.rest[:-1]]
    alone = loss_of(kind)(*few, *rest, batch.case.blank, reduction="sum")
    alone = alone / divisor(reduction, batch.case.target_lengths)
    wanted = gradients(alone, few)
    for i, (one, other) in enumerate(zip(actual, wanted, strict=True)):
        if i < 2:
            assert (one[0] == 0).all()
            one = one[1:]
        assert torch.isfinite(other).all()
        assert_gradient_close(one, other, np.float64, 1)
