"""Scores of cells as nodes of autograd's graph: the numbers of NumPy, with a derivative."""

from __future__ import annotations

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.options import DEFAULTS

from ..tolerances import assert_costs_close, assert_gradient_close
from ..transducers.cases import OPTIONS
from .cases import (
    DTYPES,
    adapter,
    assert_equal_bits,
    every_dtype,
    gradients,
    made,
    numpy,
    operators,
    torch,
)
from .guest import PLACES, guest
from .test_cuda import SIZES, assert_left_alone

log_probs = adapter.joint_rnnt_log_probs


def of_function(scores):
    """One that is not linear, and differs from cell to cell."""
    numbers = torch.arange(scores.numel()).reshape(scores.shape)
    return (torch.sin(numbers) * torch.exp(scores)).sum()


@every_dtype
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_those_of_numpy(dtype, bias):
    batch = made("joint", dtype=dtype, bias=bias)
    scores = log_probs(*batch.leaves, *batch.rest)
    np.testing.assert_array_equal(scores.detach(), cupy_rnnt.joint_rnnt_log_probs(*batch.case))
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    weights = torch.randn(scores.shape, dtype=scores.dtype)
    found = gradients((weights * scores).sum(), batch.leaves)
    expected = cupy_rnnt.joint_rnnt_log_probs_grad(*batch.case, grad=weights.numpy())
    for one, other in zip(found, expected, strict=bias):
        assert one.dtype == dtype
        np.testing.assert_array_equal(numpy(one), other.astype(np.float64))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_derivatives_are_those_of_finite_differences(options):
    options = {name: value for name, value in options.items() if name != "delay_penalty"}
    options |= {"activation": "silu", "dropout": 0.3, "seed": 5}
    batch = made("joint", size=2, frames=4, labels=2, vocabulary=8, hidden=3)
    *lattice, _ = batch.rest
    lattice[0].zero_()  # no blank and no duration, whatever the transducer

    def function(*inputs):
        return log_probs(*inputs, *lattice, 3, **options)

    assert torch.autograd.gradcheck(function, batch.leaves)


def test_sums_have_gradients_without_memory_of_their_own():
    batch = made("joint")
    scores = log_probs(*batch.leaves, *batch.rest)
    found = gradients(scores.sum(), batch.leaves)
    expected = cupy_rnnt.joint_rnnt_log_probs_grad(*batch.case, grad=np.ones(scores.shape))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_retained_graph_may_be_walked_twice():
    batch = made("joint")
    loss = of_function(log_probs(*batch.leaves, *batch.rest))
    first = gradients(loss, batch.leaves, retain_graph=True)
    assert_equal_bits(gradients(loss, batch.leaves), first)


@pytest.mark.parametrize("trained", range(4))
def test_frozen_parameters(trained):
    batch = made("joint")
    wanted = gradients(of_function(log_probs(*batch.leaves, *batch.rest)), batch.leaves)
    inputs = [leaf if i == trained else leaf.detach() for i, leaf in enumerate(batch.leaves)]
    of_function(log_probs(*inputs, *batch.rest)).backward()
    assert_equal_bits([inputs[trained].grad], [wanted[trained]])


def test_inputs_must_stay_and_lengths_may_change_until_the_backward_pass():
    batch = made("joint")
    wanted = gradients(of_function(log_probs(*batch.leaves, *batch.rest)), batch.leaves)
    loss = of_function(log_probs(*batch.leaves, *batch.rest))
    for integers in batch.rest[:-1]:
        integers.fill_(1)
    assert_equal_bits(gradients(loss, batch.leaves, retain_graph=True), wanted)
    with torch.no_grad():
        batch.leaves[0] += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(half):
    batch = made("joint", dtype=torch.float32)
    cast = [leaf.detach().to(half).requires_grad_() for leaf in batch.leaves]
    expected = log_probs(*cast, *batch.rest)
    with torch.autocast("cpu", half):
        scores = log_probs(*batch.leaves, *batch.rest)
    assert scores.dtype == torch.float32
    assert_equal_bits([scores], [expected])
    wanted = gradients(of_function(expected), cast)
    for one, other in zip(gradients(of_function(scores), batch.leaves), wanted, strict=True):
        assert torch.equal(one, other.float())


# The compiler


@every_dtype
@pytest.mark.slow
def test_operators_keep_what_they_promise(dtype):
    from cupy_rnnt.torch.log_probs import BACKWARD, FORWARD

    batch = made("joint", dtype=dtype, frames=4, labels=3)
    *lattice, blank = batch.rest
    values = DEFAULTS | {"blank": blank, "max_workspace_bytes": 2**24}
    torch.library.opcheck(FORWARD, operators.Arguments(batch.leaves, lattice, values).flat())
    leaves = [leaf.detach() for leaf in batch.leaves]
    constant = operators.Arguments(leaves, lattice, values).flat()
    torch.library.opcheck(FORWARD, constant)
    torch.library.opcheck(BACKWARD, (*constant, torch.randn_like(FORWARD(*constant))))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_functions_do_the_same(dynamic):
    torch.compiler.reset()

    def function(*tensors):
        inputs = (torch.sin(x) for x in tensors[:4])
        return of_function(log_probs(*inputs, *tensors[4:], transducer="modified"))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for frames in 7, 9:
        batch = made("joint", dtype=torch.float32, frames=frames)
        tensors = *batch.leaves, *batch.rest[:-1]
        loss, expected = compiled(*tensors), function(*tensors)
        assert_costs_close(loss.item(), expected.item(), np.float32, batch.length)
        for one, other in zip(
            gradients(loss, batch.leaves), gradients(expected, batch.leaves), strict=True
        ):
            assert_gradient_close(numpy(one), numpy(other), np.float32, batch.length)


# What there is not


def test_there_is_no_second_derivative():
    batch = made("joint")
    loss = of_function(log_probs(*batch.leaves, *batch.rest))
    first = gradients(loss, batch.leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        first[0].sum().backward()


def test_there_is_no_map():
    batch = made("joint")
    twice = batch.leaves[0].detach().expand(2, *batch.leaves[0].shape)
    with pytest.raises(NotImplementedError, match="cannot be mapped by vmap"):
        torch.func.vmap(lambda x: log_probs(x, *batch.leaves[1:], *batch.rest))(twice)


def test_bad_input():
    batch = made("joint")
    *lattice, blank = batch.rest
    with pytest.raises(TypeError, match="weight has dtype float32, but float64 is needed"):
        log_probs(*batch.leaves[:2], batch.leaves[2].float(), None, *batch.rest)
    with pytest.raises(TypeError, match=r"encoder_out is a numpy\.ndarray"):
        log_probs(batch.case.encoder_out, *batch.leaves[1:], *batch.rest)
    with pytest.raises(ValueError, match=r"logit_lengths\[0\] is 0"):
        log_probs(*batch.leaves, lattice[0], lattice[1] * 0, lattice[2], blank)
    with pytest.raises(TypeError, match="unexpected keyword argument 'clamp'"):
        log_probs(*batch.leaves, *batch.rest, clamp=1.0)


# CUDA


@pytest.mark.parametrize("place", PLACES)
@every_dtype
def test_results_are_those_of_the_cpu(place, dtype):
    batch = made("joint", dtype=dtype, **SIZES)
    expected = log_probs(*batch.leaves, *batch.rest)
    wanted = gradients(of_function(expected), batch.leaves)
    with place() as there:
        leaves = [there.moved(leaf) for leaf in batch.leaves]
        rest = *map(there.moved, batch.rest[:-1]), batch.rest[-1]
        scores = log_probs(*leaves, *rest)
        found = gradients(of_function(scores), leaves)
        assert_costs_close(
            numpy(scores.cpu()), numpy(expected), DTYPES[dtype], batch.length, hidden=11
        )
        for one, other in zip(found, wanted, strict=True):
            assert_gradient_close(numpy(one.cpu()), numpy(other), DTYPES[dtype], batch.length)


def test_a_guest_leaves_nothing_behind():
    with guest() as host:
        batch = made("joint", **SIZES)
        scores = log_probs(*batch.leaves, *batch.rest)
        assert_left_alone(host)
        of_function(scores).backward()
        assert_left_alone(host)
