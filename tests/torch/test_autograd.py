"""The losses as nodes of autograd's graph: what they keep, and how often it may be walked."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from cupy_rnnt.engine.sources import Kept

from ..tolerances import assert_gradient_close
from .cases import (
    WEIGHTS,
    adapter,
    assert_equal_bits,
    every_kind,
    every_reduction,
    gradients,
    loss_of,
    made,
    operators,
    torch,
)


@every_kind
def test_forward_alone_keeps_nothing(kind):
    batch = made(kind)
    loss, info = loss_of(kind)(*batch.leaves, *batch.rest, return_info=True)
    assert loss.requires_grad
    assert 0 < info.kept <= info.cells
    with torch.no_grad():
        alone, info = loss_of(kind)(*batch.leaves, *batch.rest, return_info=True)
    assert info.kept == 0
    assert not alone.requires_grad
    detached = [leaf.detach() for leaf in batch.leaves]
    alone, info = loss_of(kind)(*detached, *batch.rest, return_info=True)
    assert info.kept == 0
    assert_equal_bits([alone], [loss.detach()])
    with torch.inference_mode():
        assert_equal_bits([loss_of(kind)(*batch.leaves, *batch.rest)], [loss.detach()])


@every_kind
@every_reduction
def test_a_retained_graph_may_be_walked_twice(kind, reduction):
    batch = made(kind)
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction).sum()
    first = gradients(loss, batch.leaves, retain_graph=True)
    for gradient in first:
        gradient.mul_(1.0)  # it is nobody else's
    assert_equal_bits(gradients(loss, batch.leaves, retain_graph=True), first)
    upstream = torch.tensor(-2.0, dtype=torch.float64)
    other = gradients(loss, batch.leaves, retain_graph=True, grad_outputs=upstream)
    assert_equal_bits([-2 * grad for grad in first], other)
    assert_equal_bits(gradients(loss, batch.leaves), first)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, batch.leaves)


@every_kind
@every_reduction
def test_gradients_of_several_numbers_at_once_are_refused(kind, reduction):
    """In the words for vmap, which is what PyTorch does with them."""
    batch = made(kind)
    costs = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction).reshape(-1)
    rows = torch.eye(len(costs), dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="cannot be mapped by vmap"):
        gradients(costs, batch.leaves, grad_outputs=rows, is_grads_batched=True)


@every_kind
@every_reduction
@pytest.mark.parametrize("differentiable", [False, True])
def test_there_is_no_second_derivative(kind, reduction, differentiable):
    """Whether or not there is one of what comes from above."""
    batch = made(kind)
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction)
    weights = torch.from_numpy(WEIGHTS).requires_grad_(differentiable)
    first = gradients((loss * weights).sum(), batch.leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        first[0].sum().backward()


@every_kind
@every_reduction
def test_inputs_must_stay_until_the_backward_pass(kind, reduction):
    count = 4 if kind == "joint" else 1
    for i in range(count):
        batch = made(kind)
        loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction).sum()
        with torch.no_grad():
            batch.leaves[i] += 1.0  # as an optimiser does
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@every_kind
@every_reduction
def test_targets_and_lengths_may_change_after_the_forward_pass(kind, reduction):
    batch = made(kind)
    arguments, option = (*batch.leaves, *batch.rest), {"reduction": reduction}
    wanted = gradients(loss_of(kind)(*arguments, **option).sum(), batch.leaves)
    loss = loss_of(kind)(*arguments, **option).sum()
    for integers in batch.rest[:-1]:
        integers.fill_(1)
    assert_equal_bits(gradients(loss, batch.leaves), wanted)


@every_kind
def test_inputs_of_a_graph_and_several_losses(kind):
    batch = made(kind)
    doubled = [2 * leaf for leaf in batch.leaves]
    loss = loss_of(kind)(*doubled, *batch.rest) + 3 * loss_of(kind)(*batch.leaves, *batch.rest)
    loss.backward()
    parts = [
        gradients(loss_of(kind)(*inputs, *batch.rest), inputs) for inputs in (doubled, batch.leaves)
    ]
    for leaf, one, other in zip(batch.leaves, *parts, strict=True):
        assert_gradient_close(leaf.grad, 2 * one + 3 * other, np.float64, 1)


@pytest.mark.parametrize("trained", range(4))
def test_frozen_parameters(trained):
    batch = made("joint")
    wanted = gradients(adapter.joint_rnnt_loss(*batch.leaves, *batch.rest), batch.leaves)
    inputs = [leaf if i == trained else leaf.detach() for i, leaf in enumerate(batch.leaves)]
    adapter.joint_rnnt_loss(*inputs, *batch.rest).backward()
    assert_equal_bits([inputs[trained].grad], [wanted[trained]])
    assert all(leaf.grad is None for i, leaf in enumerate(inputs) if i != trained)


@every_kind
@every_reduction
@pytest.mark.parametrize("walked", [False, True])
@pytest.mark.slow
@pytest.mark.usefixtures("collector")
def test_what_was_kept_is_let_go_with_the_graph(kind, reduction, walked, monkeypatch):
    """At once, without the garbage collector."""
    batch, made_here = made(kind), []
    for name in "empty", "from_numpy":
        original = getattr(torch, name)

        def recorded(*args, original=original, **kwargs):
            tensor = original(*args, **kwargs)
            made_here.append(weakref.ref(tensor.untyped_storage()))
            return tensor

        monkeypatch.setattr(operators.torch, name, recorded)
    gc.collect()
    gc.disable()
    try:
        loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction).sum()
        held = sum(storage() is not None for storage in made_here)
        if walked:
            loss.backward()
            for leaf in batch.leaves:
                leaf.grad = None
        del loss
        assert held >= (
            len(Kept._fields) if kind == "logits" or reduction == "none" else len(batch.leaves)
        )
        assert not any(storage() for storage in made_here)
    finally:
        gc.enable()
