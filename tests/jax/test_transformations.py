"""The losses under the transformations of JAX, and what they compute there."""

from __future__ import annotations

import numpy as np
import pytest

from ..tolerances import assert_costs_close, assert_gradient_close
from .cases import (
    WEIGHTS,
    adapter,
    assert_equal_bits,
    assert_gradients_match,
    engine_calls,
    every_kind,
    every_reduction,
    gradient,
    jax,
    jnp,
    made,
    reference_of,
)

pytestmark = pytest.mark.usefixtures("jax_on_cpu")
PASSES = {
    "mean": ["forward_backward"],
    "mean_volume": ["forward_backward"],
    "none": ["forward", "forward_backward"],
}


# What is computed


@every_kind
def test_without_a_derivative_there_is_no_gradient(kind):
    batch = made(kind)
    with engine_calls() as calls:
        jax.jit(batch.loss)(*batch.inputs)
        still = tuple(map(jax.lax.stop_gradient, batch.inputs))
        jax.grad(lambda x: x * batch.loss(*still))(2.0)
    assert calls == [("forward", 4)] * 2


@every_kind
@pytest.mark.parametrize("reduction", PASSES)
@pytest.mark.parametrize("jit", [False, True])
def test_each_pass_runs_once(kind, reduction, jit):
    batch = made(kind)

    def found(*inputs):
        return jax.value_and_grad(lambda i: batch.loss(*i, reduction=reduction).sum())(inputs)

    with engine_calls() as calls:
        jax.block_until_ready((jax.jit(found) if jit else found)(*batch.inputs))
    assert calls == [(name, 4) for name in PASSES[reduction]]


@every_kind
def test_equal_calls_are_compiled_once(kind, caplog):
    """Without jit, too: options are compared by value."""
    batch = made(kind, frames=8)

    def compilations():
        caplog.clear()
        with jax.log_compiles():
            gradient(batch.loss, batch.inputs, clamp=0.5)
        return [r for r in caplog.messages if r.startswith("Compiling jit(buffer_callback)")]

    assert len(compilations()) == 1
    assert not compilations()


@every_kind
@pytest.mark.parametrize("reduction", PASSES)
def test_the_pullback_may_be_used_twice(kind, reduction):
    batch = made(kind)
    loss, pullback = jax.vjp(lambda *i: batch.loss(*i, reduction=reduction), *batch.inputs)
    one = jnp.ones_like(loss)
    first = pullback(one)
    assert_equal_bits(pullback(one), first)
    assert_equal_bits(pullback(-2.0 * one), [-2.0 * x for x in first])


@every_kind
def test_there_is_no_other_derivative(kind):
    batch = made(kind)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(batch.loss, batch.inputs, batch.inputs)
    for reduction in "none", "mean":

        def first(*inputs, reduction=reduction):
            return gradient(lambda *i: batch.loss(*i, reduction=reduction).sum(), inputs)[0].sum()

        with pytest.raises(ValueError, match="do not support JVP"):
            gradient(first, batch.inputs)


# Control flow and checkpoints


@every_kind
@every_reduction
def test_checkpoint(kind, reduction):
    batch = made(kind)

    def loss(*inputs):
        doubled = [2 * x for x in inputs]
        return (WEIGHTS * batch.loss(*doubled, reduction=reduction)).sum()

    wanted = gradient(loss, batch.inputs)
    assert_equal_bits(gradient(jax.checkpoint(loss), batch.inputs), wanted)
    again = jax.jit(lambda *inputs: gradient(jax.checkpoint(loss), inputs))(*batch.inputs)
    for one, other in zip(again, wanted, strict=True):
        assert_gradient_close(one, other, batch.dtype, 1)


@every_kind
def test_scan(kind):
    """Accumulation over parts of a batch, as one program."""
    batch = made(kind)
    count = len(batch.inputs)
    rows = 2 if kind == "joint" else 1

    def parts(*inputs):
        def body(total, part):
            function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss
            arguments = (*part[:rows], *inputs[rows:], *part[rows:])
            return total + function(*arguments, batch.case.blank, reduction="sum"), None

        halves = [x.reshape(2, 2, *x.shape[1:]) for x in (*inputs[:rows], *batch.integers)]
        return jax.lax.scan(body, 0.0, tuple(halves))[0] / 4

    _, wanted = reference_of(kind)(*batch.case)
    found = jax.jit(lambda *inputs: gradient(parts, inputs))(*batch.inputs)
    assert len(found) == count
    assert_gradients_match(kind, found, wanted, batch)


# vmap


def of_samples(kind, batch, reduction="mean", **options):
    """A loss of one sample, given its inputs, the parameters and its integers."""
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss
    rows = 2 if kind == "joint" else 1

    def loss(own, parameters, integers):
        arguments = *(x[None] for x in own), *parameters, *(x[None] for x in integers)
        return function(*arguments, batch.case.blank, reduction=reduction, **options)

    return loss, batch.inputs[:rows], batch.inputs[rows:], batch.integers


@every_kind
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_samples_are_mapped_onto_the_batch(kind, reduction):
    batch = made(kind)
    loss, own, parameters, integers = of_samples(kind, batch, reduction)
    with engine_calls() as calls:
        costs = jax.vmap(loss, in_axes=(0, None, 0))(own, parameters, integers)
    assert calls == [("forward", 4)]
    wanted = batch.loss(*batch.inputs, reduction="none")
    assert_equal_bits([costs.reshape(4)], [wanted])


@every_kind
def test_gradient_of_mapped_samples(kind):
    """Of their mean, and of each: with parameters, one after the other."""
    batch = made(kind)
    loss, own, parameters, integers = of_samples(kind, batch)
    mapped = jax.vmap(loss, in_axes=(0, None, 0))

    def mean(*inputs):
        return mapped(inputs[: len(own)], inputs[len(own) :], integers).mean()

    with engine_calls() as calls:
        found = jax.jit(lambda *inputs: gradient(mean, inputs))(*batch.inputs)
        jax.block_until_ready(found)
    assert calls == [("forward_backward", 4)] * (1 if kind == "logits" else 0) + [
        ("forward_backward", 1)
    ] * (0 if kind == "logits" else 4)
    assert_gradients_match(kind, found, reference_of(kind)(*batch.case)[1], batch)

    each = jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(0, None, 0))
    per_sample = jax.tree.leaves(each(own, parameters, integers))
    for b in range(4):
        weights = np.zeros(4)
        weights[b] = 1.0
        _, wanted = reference_of(kind)(*batch.case, cost_weights=weights)
        wanted = list(wanted) if kind == "joint" else [wanted]
        for i, (one, other) in enumerate(zip(per_sample, wanted, strict=True)):
            assert_gradient_close(
                one[b], other[b] if i < len(own) else other, batch.dtype, batch.length
            )


@every_kind
@every_reduction
def test_mapped_batches(kind, reduction):
    """Two batches, with an axis in the middle; integers of their own or shared."""
    batches = [made(kind, seed) for seed in (1, 2)]
    count = len(batches[0].inputs)
    rows = 2 if kind == "joint" else 1
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss
    blank = batches[0].case.blank

    def loss(*arguments):
        return function(*arguments, blank, reduction=reduction)

    for shared in False, True:
        integers = [batches[0 if shared else i].integers for i in range(2)]
        inputs = [(*b.inputs[:rows], *batches[0].inputs[rows:]) for b in batches]
        stacked = [jnp.stack(pair, 1) for pair in zip(*(i[:rows] for i in inputs), strict=True)]
        given = batches[0].integers if shared else map(jnp.stack, zip(*integers, strict=True))
        axes = *[1] * rows, *[None] * (count - rows), *[None if shared else 0] * 3
        with engine_calls() as calls:
            found = jax.vmap(loss, axes)(*stacked, *inputs[0][rows:], *given)
        assert calls == [("forward", 8)]
        wanted = [loss(*one, *numbers) for one, numbers in zip(inputs, integers, strict=True)]
        assert found.shape == jnp.stack(wanted).shape
        assert_costs_close(found, jnp.stack(wanted), batches[0].dtype, batches[0].length)


@every_reduction
def test_mapped_parameters(reduction):
    batch = made("joint")
    weight = jnp.stack([batch.inputs[2], -batch.inputs[2]])

    def loss(weight):
        inputs = *batch.inputs[:2], weight, batch.inputs[3]
        return batch.loss(*inputs, reduction=reduction).sum()

    found = jax.vmap(jax.value_and_grad(loss))(weight)
    wanted = [jax.value_and_grad(loss)(one) for one in weight]
    for i in range(2):
        assert_equal_bits([found[0][i], found[1][i]], wanted[i])
    assert_equal_bits([jax.vmap(loss)(weight)], [jnp.stack([one for one, _ in wanted])])


@every_kind
def test_nested_maps(kind):
    batch = made(kind)
    loss, own, parameters, integers = of_samples(kind, batch)
    inner = jax.vmap(loss, in_axes=(0, None, 0))
    pairs = [x.reshape(2, 2, *x.shape[1:]) for x in own]
    numbers = [x.reshape(2, 2, *x.shape[1:]) for x in integers]
    with engine_calls() as calls:
        found = jax.jit(jax.vmap(inner, in_axes=(0, None, 0)))(pairs, parameters, numbers)
    assert calls == [("forward", 4)]
    assert_equal_bits([found.reshape(4)], [batch.loss(*batch.inputs, reduction="none")])


@every_kind
def test_mapped_cotangents(kind):
    """The whole Jacobian of the costs."""
    batch = made(kind)
    jacobian = jax.jacrev(lambda x: batch.loss(x, *batch.inputs[1:], reduction="none"))
    found = np.asarray(jacobian(batch.inputs[0]))
    assert found.shape == (4, *batch.inputs[0].shape)
    wanted = gradient(lambda *inputs: batch.loss(*inputs, reduction="sum"), batch.inputs)[0]
    for b in range(4):
        assert (found[b, np.arange(4) != b] == 0).all()
        assert_gradient_close(found[b, b], wanted[b], batch.dtype, batch.length)
