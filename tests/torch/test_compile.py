"""The losses under ``torch.compile``, as operators, and where PyTorch's transformations end."""

from __future__ import annotations

import re

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.options import DEFAULTS

from ..tolerances import assert_gradient_close
from .cases import (
    adapter,
    assert_equal_bits,
    every_dtype,
    every_kind,
    every_reduction,
    gradients,
    loss_of,
    made,
    operators,
    torch,
)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def arguments(kind, batch, reduction, *, leaves=None):
    """Of the operators of a loss."""
    *lattice, blank = batch.rest
    values = DEFAULTS | {"blank": blank, "reduction": reduction, "activation": "silu"}
    values |= {"clamp": 0.3, "fastemit_lambda": 0.1, "max_workspace_bytes": 2**24}
    return operators.Arguments(leaves or batch.leaves, lattice, values).flat()


@every_kind
@every_reduction
@every_dtype
@pytest.mark.slow
def test_operators_keep_what_they_promise(kind, reduction, dtype):
    """Their schemas, fakes and derivatives agree with what they do; traced, they do the same."""
    batch = made(kind, dtype=dtype, frames=4, labels=3)
    of_kind = operators.JOINT if kind == "joint" else operators.LOGITS
    given = arguments(kind, batch, reduction)
    leaves = [leaf.detach() for leaf in batch.leaves]
    constant = arguments(kind, batch, reduction, leaves=leaves)
    torch.library.opcheck(of_kind.forward, (*given, True))
    torch.library.opcheck(of_kind.forward, (*constant, False))
    loss, kept, *_ = of_kind.forward(*constant, True)
    torch.library.opcheck(of_kind.backward, (*constant, kept, torch.ones_like(loss)))
    if kind == "joint" and reduction != "none":
        torch.library.opcheck(operators.JOINT_AND_GRAD, given)


class Model(torch.nn.Module):
    """Something to compile before and behind a loss."""

    def __init__(self, kind, batch, **options):
        super().__init__()
        module = adapter.JointRNNTLoss if kind == "joint" else adapter.RNNTLoss
        self.loss = module(batch.case.blank, **options)

    def forward(self, *tensors):
        *inputs, targets, logit_lengths, target_lengths = tensors
        inputs = [torch.sin(x) * 1.5 for x in inputs]
        return (self.loss(*inputs, targets, logit_lengths, target_lengths) * 2).sum()


@every_kind
@every_reduction
def test_compiled_models_do_the_same(kind, reduction):
    batch = made(kind)
    model = Model(kind, batch, reduction=reduction, fastemit_lambda=0.1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tensors = *batch.leaves, *batch.rest[:-1]
    for _ in range(2):
        loss, expected = compiled(*tensors), model(*tensors)
        assert_equal_bits([loss], [expected])
        assert_equal_bits(gradients(loss, batch.leaves), gradients(expected, batch.leaves))
    with torch.no_grad():
        assert_equal_bits([compiled(*tensors)], [expected.detach()])


@every_kind
@pytest.mark.slow
def test_compiled_to_machine_code(kind):
    batch = made(kind)
    model = Model(kind, batch)
    tensors = *batch.leaves, *batch.rest[:-1]
    compiled = torch.compile(model, fullgraph=True)
    found = gradients(compiled(*tensors), batch.leaves)
    wanted = gradients(model(*tensors), batch.leaves)
    for one, other in zip(found, wanted, strict=True):
        assert_gradient_close(one, other, np.float64, batch.length)


@every_kind
def test_batches_of_any_size_share_a_compiled_model(kind):
    made_of = [made(kind, size=n, frames=5 + n, labels=2 + n) for n in (2, 3, 4, 5)]
    model = Model(kind, made_of[0], reduction="sum")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in made_of:
        tensors = *batch.leaves, *batch.rest[:-1]
        with torch.compiler.set_stance("default" if batch is made_of[0] else "fail_on_recompile"):
            assert_equal_bits([compiled(*tensors)], [model(*tensors)])


def test_a_joint_loss_that_is_one_number_breaks_no_graph():
    batch = made("joint")
    tensors = *batch.leaves, *batch.rest[:-1]
    explained = torch._dynamo.explain(Model("joint", batch))(*tensors)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@every_kind
def test_information_of_compiled_calls(kind):
    batch = made(kind)

    def call(*leaves):
        return loss_of(kind)(*leaves, *batch.rest, return_info=True)

    _, expected = call(*batch.leaves)
    _, info = torch.compile(call, fullgraph=True, backend="aot_eager")(*batch.leaves)
    assert_equal_bits([info.certificate], [expected.certificate])
    assert re.sub(r"tensor.*?\)", "", repr(info)) == re.sub(r"tensor.*?\)", "", repr(expected))


@every_kind
def test_bad_values_are_found_in_compiled_calls(kind):
    batch = made(kind)
    compiled = torch.compile(Model(kind, batch), fullgraph=True, backend="aot_eager")
    tensors = *batch.leaves, *batch.rest[:-1]
    compiled(*tensors)
    tensors[-2][1] = 8
    with pytest.raises(ValueError, match=r"logit_lengths\[1\] is 8, but it must be between 1 and"):
        compiled(*tensors)


def test_autocast_is_compiled():
    batch = made("joint", dtype=torch.float32)
    model = Model("joint", batch)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tensors = *batch.leaves, *batch.rest[:-1]
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = compiled(*tensors), model(*tensors)
    assert_equal_bits([loss], [expected])
    assert not torch.equal(expected, model(*tensors))  # it has been cast


# torch.jit


@every_kind
@every_reduction
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of PyTorch's own
def test_traces_of_torch_jit_are_the_functions(kind, reduction):
    """With its check, which runs the module without gradients; for any batch, with or without."""
    if kind == "joint":
        output = torch.nn.Linear(11, 9, dtype=torch.float64)
        module = adapter.JointRNNTLoss(reduction=reduction, output=output)
    else:
        output = torch.nn.Linear(9, 9, dtype=torch.float64)
        module = Scored(output, adapter.RNNTLoss(reduction=reduction))
    inputs = {"joint": 2, "logits": 1}[kind]

    def tensors(seed, **sizes):
        batch = made(kind, seed, **sizes)
        return *(leaf.detach() for leaf in batch.leaves[:inputs]), *batch.rest[:-1]

    traced = torch.jit.trace(module, tensors(0))
    other = tensors(1, size=3, frames=9, labels=4)
    loss, expected = traced(*other), module(*other)
    assert_equal_bits([loss], [expected])
    leaves = list(module.parameters())
    assert_equal_bits(gradients(loss.sum(), leaves), gradients(expected.sum(), leaves))
    with torch.no_grad():
        assert_equal_bits([traced(*other)], [module(*other)])


class Scored(torch.nn.Module):
    """A layer and the loss of its outputs."""

    def __init__(self, layer, loss):
        super().__init__()
        self.layer, self.loss = layer, loss

    def forward(self, inputs, *rest):
        return self.loss(self.layer(inputs), *rest)


# What there is not


@every_kind
def test_there_is_no_map(kind):
    batch = made(kind)
    inputs = [leaf.detach() for leaf in batch.leaves]

    def of_first(first):
        return loss_of(kind)(first, *inputs[1:], *batch.rest)

    twice = inputs[0].expand(2, *inputs[0].shape)
    with pytest.raises(NotImplementedError, match="cannot be mapped by vmap"):
        torch.func.vmap(of_first)(twice)
    with pytest.raises(NotImplementedError, match="cannot be mapped by vmap"):
        torch.func.vmap(of_first)(twice.clone().requires_grad_())


@every_kind
def test_there_is_no_forward_mode(kind):
    batch = made(kind)
    name = "encoder_out" if kind == "joint" else "logits"
    with torch.autograd.forward_ad.dual_level():
        tangent = torch.ones_like(batch.leaves[0])
        dual = torch.autograd.forward_ad.make_dual(batch.leaves[0], tangent)
        with pytest.raises(NotImplementedError, match=f"{name} has a tangent"):
            loss_of(kind)(dual, *batch.leaves[1:], *batch.rest)


@every_kind
def test_there_is_no_function_transformation(kind):
    batch = made(kind)
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda x: loss_of(kind)(x, *batch.leaves[1:], *batch.rest))(
            batch.leaves[0].detach()
        )


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("name", ["rnnt_alignment", "joint_rnnt_posteriors", "rnnt_loss"])
def test_functions_of_no_adapter_are_called_outside(name, fullgraph):
    batch = made("joint" if "joint" in name else "logits")
    tensors = [leaf.detach() for leaf in batch.leaves]

    def function(*tensors):
        return getattr(cupy_rnnt, name)(*(2 * x for x in tensors), *batch.rest)

    compiled = torch.compile(function, fullgraph=fullgraph, backend="eager")
    words = "torch.compile traces it: call this function outside of the compiled one"
    with pytest.raises(Exception, match=words):
        compiled(*tensors)


def test_seeds_of_dropout_differ_from_call_to_call():
    """Of one compiled function, which is not compiled again for each."""
    batch = made("joint")

    def loss(seed):
        return adapter.joint_rnnt_loss(*batch.leaves, *batch.rest, dropout=0.4, seed=seed)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in range(torch._dynamo.config.recompile_limit + 2):
        assert torch.equal(compiled(seed), loss(seed))
