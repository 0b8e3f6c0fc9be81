"""Mixed precision: autocast, half types, and loss scaling."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt.results import JointGradients

from ..tolerances import assert_costs_close, unit_roundoff
from .cases import (
    DTYPES,
    F,
    adapter,
    assert_equal_bits,
    assert_gradients_match,
    every_kind,
    every_reduction,
    gradients,
    loss_of,
    made,
    numpy,
    reference_of,
    torch,
)

every_half = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)


# Autocast


@every_half
def test_autocast_casts_what_enters_a_joint_network(half):
    """As ``torch.nn.functional.linear`` does: whatever is not float64 already."""
    batch = made("joint", dtype=torch.float32)
    cast = [leaf.detach().to(half).requires_grad_() for leaf in batch.leaves]
    expected = adapter.joint_rnnt_loss(*cast, *batch.rest)
    mixed = [cast[0].detach().requires_grad_(), *batch.leaves[1:]]
    with torch.autocast("cpu", half):
        loss = adapter.joint_rnnt_loss(*mixed, *batch.rest)
        assert F.linear(mixed[0], mixed[2]).dtype == half
    assert loss.dtype == torch.float32
    assert_equal_bits([loss], [expected])
    wanted = gradients(expected, cast)
    for leaf, one, other in zip(mixed, gradients(loss, mixed), wanted, strict=True):
        assert one.dtype == leaf.dtype
        assert torch.equal(one, other.to(leaf.dtype))


def test_autocast_does_not_touch_what_it_would_not_elsewhere():
    batch = made("joint")  # float64
    plain = adapter.joint_rnnt_loss(*batch.leaves, *batch.rest)
    single = made("joint", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal_bits([adapter.joint_rnnt_loss(*batch.leaves, *batch.rest)], [plain])
        with pytest.raises(TypeError, match="weight has dtype float64, but bfloat16 is needed"):
            adapter.joint_rnnt_loss(*single.leaves[:2], *batch.leaves[2:], *batch.rest)
        with torch.autocast("cpu", enabled=False):
            loss = adapter.joint_rnnt_loss(*single.leaves, *single.rest)
    assert_equal_bits([loss], [adapter.joint_rnnt_loss(*single.leaves, *single.rest)])


@every_half
def test_logits_are_not_cast(half):
    batch = made("logits", dtype=torch.float32)
    with torch.autocast("cpu", half):
        loss = adapter.rnnt_loss(*batch.leaves, *batch.rest)
    assert_equal_bits([loss], [adapter.rnnt_loss(*batch.leaves, *batch.rest)])


def test_an_output_layer_of_its_own_under_autocast():
    batch = made("joint", dtype=torch.float32)
    output = torch.nn.Linear(11, 9)
    criterion = adapter.JointRNNTLoss(batch.case.blank, output=output)
    with torch.autocast("cpu", torch.bfloat16):
        criterion(*batch.leaves[:2], *batch.rest[:-1]).backward()
    assert output.weight.grad.dtype == torch.float32
    assert output.weight.grad.abs().max() > 0


# Loss scaling


@every_kind
@every_half
@every_reduction
@pytest.mark.parametrize("clamp", [-1.0, 0.05])
def test_a_loss_scale_goes_in_before_the_rounding(kind, half, reduction, clamp):
    """Gradients too small for a half type are there under a scale, and the bounds of `clamp` mean
    what they mean without."""
    batch = made(kind, dtype=half)
    case, tiny = batch.case, 2.0**-26
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction, clamp=clamp)
    value, plain = reference_of(kind)(*case, reduction=reduction, clamp=clamp)
    assert_costs_close(numpy(loss), value, DTYPES[half], batch.length)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    small = (loss * tiny).sum()
    found = gradients(scaler.scale(small), batch.leaves, retain_graph=True)
    desired = plain / 4 if kind == "logits" else JointGradients(*(g / 4 for g in plain))
    assert_gradients_match(kind, found, desired, DTYPES[half], batch.length)
    unscaled = gradients(small, batch.leaves)
    pairs = zip(unscaled, found, strict=True)
    lost = [one.count_nonzero() < other.count_nonzero() for one, other in pairs]
    assert all(lost) == (half == torch.float16)


@every_kind
def test_a_training_step_with_a_scaler(kind):
    """Parameters end up where they do without a scale."""
    batch = made(kind, dtype=torch.float32)
    ended = []
    for enabled in False, True:
        leaves = [leaf.detach().clone().requires_grad_() for leaf in batch.leaves]
        optimizer = torch.optim.SGD(leaves, 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(kind)(*leaves, *batch.rest, clamp=0.05)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        ended.append(leaves)
    for one, other, start in zip(*ended, batch.leaves, strict=True):
        assert not torch.equal(one, start)
        torch.testing.assert_close(one, other, rtol=0, atol=20 * unit_roundoff(np.float32))


def test_a_scaler_skips_a_step_whose_gradients_overflow():
    batch = made("joint", dtype=torch.float32)
    before = [leaf.detach().clone() for leaf in batch.leaves]
    optimizer = torch.optim.SGD(batch.leaves, 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    with torch.autocast("cpu", torch.float16):
        loss = adapter.joint_rnnt_loss(*batch.leaves, *batch.rest)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert_equal_bits(batch.leaves, before)
    scaler.update()
    assert scaler.get_scale() < 2.0**24


@every_kind
@every_reduction
def test_gradients_that_overflow_float16_are_inf(kind, reduction):
    """As in the first steps of a GradScaler. Whatever is made of floating point errors elsewhere,
    no warning, and no error."""
    batch = made(kind, dtype=torch.float16)
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction).sum()
    with np.errstate(all="raise"):
        found = gradients(loss * 2.0**24, batch.leaves)
    with torch.no_grad():
        wide = [leaf.float() for leaf in batch.leaves]
    of_wide = [leaf.requires_grad_() for leaf in wide]
    wanted = gradients(loss_of(kind)(*of_wide, *batch.rest, reduction=reduction).sum(), of_wide)
    for one, other in zip(found, wanted, strict=True):
        too_large = abs(other * 2.0**24) > 1.01 * torch.finfo(torch.float16).max
        assert too_large.any()
        assert torch.isinf(one[too_large]).all()
        assert not one.isnan().any()
