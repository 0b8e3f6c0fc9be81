"""The PyTorch adapter, held against the reference and against autograd through the textbook."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import reference, sources
from cupy_rnnt.results import JointGradients

from .helpers import random_joint_case, random_logits_case
from .tolerances import (
    assert_costs_close,
    assert_gradient_close,
    assert_gradients_close,
)

torch = pytest.importorskip("torch")
F = torch.nn.functional

import cupy_rnnt.torch as adapter  # noqa: E402

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "identity": lambda x: x,
}
DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}
WEIGHTS = np.array([0.75, -2.0, 0.0, 3.0])  # what comes from above: of any sign, or nothing
KINDS = "logits", "joint"

every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def tensor(array, dtype=None):
    """A tensor of its own of the values of an array."""
    if array is None:
        return None
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.tensor(array, dtype=dtype)


def numpy(value):
    return value.detach().double().numpy()


def made(kind, seed=0, *, dtype=torch.float64, **options):
    """A batch as NumPy arguments and as leaves (those with a gradient) and the other arguments."""
    make = random_joint_case if kind == "joint" else random_logits_case
    case = make(np.random.default_rng(seed), dtype=DTYPES[dtype], **options)
    count = 4 if kind == "joint" else 1
    leaves = [None if x is None else tensor(x).requires_grad_() for x in case[:count]]
    rest = (*map(torch.from_numpy, case[count:-1]), case.blank)
    return SimpleNamespace(case=case, leaves=leaves, rest=rest, length=case.length)


def loss_of(kind):
    return adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss


def reference_of(kind):
    if kind == "joint":
        return reference.joint_rnnt_loss_and_grad
    return reference.rnnt_loss_and_grad


def gradients(loss, leaves, **options):
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None], **options)


def assert_gradients_match(kind, actual, desired, dtype, length):
    if kind == "logits":
        assert_gradient_close(numpy(actual[0]), desired, dtype, length)
    else:
        actual = [numpy(one) for one in actual] + [None] * (4 - len(actual))
        assert_gradients_close(actual, desired, dtype, length)


def assert_equal_bits(actual, desired):
    for one, other in zip(actual, desired, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


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


def reduced(costs, reduction):
    return {"none": costs, "mean": costs.mean(), "sum": costs.sum()}[reduction]


# Values


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
    expected = reduced(textbook("logits", batch.leaves, batch.rest, fused=fused), reduction)
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
    scale = WEIGHTS if reduction == "none" else np.full(4, -2.5 / (4 if reduction == "mean" else 1))
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


# Modules and signatures


@every_kind
def test_modules_are_the_functions(kind):
    batch = made(kind)
    module = adapter.JointRNNTLoss if kind == "joint" else adapter.RNNTLoss
    options = {"clamp": 0.2, "reduction": "sum", "fastemit_lambda": 0.1}
    loss = module(batch.case.blank, **options)(*batch.leaves, *batch.rest[:-1])
    wanted = loss_of(kind)(*batch.leaves, *batch.rest, **options)
    assert_equal_bits([loss], [wanted])
    assert_equal_bits(gradients(loss, batch.leaves), gradients(wanted, batch.leaves))
    assert not list(module().parameters())
    mean = module()(*batch.leaves, *batch.rest[:-1])
    assert_equal_bits([mean], [loss_of(kind)(*batch.leaves, *batch.rest[:-1])])


TORCHAUDIO_FUNCTION = (  # torchaudio.functional.rnnt_loss
    ("logits", inspect.Parameter.empty),
    ("targets", inspect.Parameter.empty),
    ("logit_lengths", inspect.Parameter.empty),
    ("target_lengths", inspect.Parameter.empty),
    ("blank", -1),
    ("clamp", -1),
    ("reduction", "mean"),
    ("fused_log_softmax", True),
)
TORCHAUDIO_MODULE = TORCHAUDIO_FUNCTION[4:]  # torchaudio.transforms.RNNTLoss


def positional(function):
    return tuple(
        (name, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
    )


def test_signatures_are_those_of_torchaudio():
    assert positional(adapter.rnnt_loss) == TORCHAUDIO_FUNCTION
    assert positional(adapter.RNNTLoss) == TORCHAUDIO_MODULE
    assert positional(adapter.RNNTLoss().forward) == TORCHAUDIO_FUNCTION[:4]
    joint = positional(adapter.joint_rnnt_loss)
    assert joint == positional(cupy_rnnt.joint_rnnt_loss)
    assert joint[4:] == TORCHAUDIO_FUNCTION[1:-1]


@every_kind
def test_keywords_are_those_of_the_numpy_functions(kind):
    ours = inspect.signature(loss_of(kind)).parameters
    theirs = inspect.signature(getattr(cupy_rnnt, loss_of(kind).__name__)).parameters
    defaults = {name: p.default for name, p in theirs.items() if name != "progress"}
    assert {name: p.default for name, p in ours.items()} == defaults


# Autograd


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
def test_a_retained_graph_may_be_walked_twice(kind):
    batch = made(kind)
    loss = loss_of(kind)(*batch.leaves, *batch.rest)
    first = gradients(loss, batch.leaves, retain_graph=True)
    assert_equal_bits(gradients(loss, batch.leaves, retain_graph=True), first)
    upstream = torch.tensor(-2.0, dtype=torch.float64)
    other = gradients(loss, batch.leaves, retain_graph=True, grad_outputs=upstream)
    assert_equal_bits([-2 * grad for grad in first], other)
    assert_equal_bits(gradients(loss, batch.leaves), first)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, batch.leaves)


@every_kind
def test_there_is_no_second_derivative(kind):
    batch = made(kind)
    weights = torch.from_numpy(WEIGHTS).requires_grad_()
    costs = loss_of(kind)(*batch.leaves, *batch.rest, reduction="none")
    first = gradients(costs @ weights, batch.leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].sum().backward()


@every_kind
def test_inputs_must_stay_until_the_backward_pass(kind):
    count = 4 if kind == "joint" else 1
    for i in range(count):
        batch = made(kind)
        loss = loss_of(kind)(*batch.leaves, *batch.rest)
        with torch.no_grad():
            batch.leaves[i] += 1.0  # as an optimiser does
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@every_kind
def test_targets_and_lengths_may_change_after_the_forward_pass(kind):
    batch = made(kind)
    wanted = gradients(loss_of(kind)(*batch.leaves, *batch.rest), batch.leaves)
    loss = loss_of(kind)(*batch.leaves, *batch.rest)
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
def test_half_types_under_a_loss_scale(kind):
    """Products with the scale stay in float32 up to the one rounding at the end."""
    batch = made(kind, dtype=torch.float16)
    costs = loss_of(kind)(*batch.leaves, *batch.rest, reduction="none")
    scaled = gradients(costs.sum() * 64.0, batch.leaves)
    plain = reference_of(kind)(*batch.case, reduction="sum")[1]
    desired = plain * 64.0 if kind == "logits" else JointGradients(*(64.0 * g for g in plain))
    assert_gradients_match(kind, scaled, desired, np.float16, batch.length)


# Tensors of every sort


def expected_view(leaf):
    leaf = leaf.detach()
    return leaf.view(torch.int16).numpy() if leaf.dtype == torch.bfloat16 else leaf.numpy()


@every_kind
@every_dtype
def test_tensors_are_never_copied(kind, dtype, monkeypatch):
    source = sources.JointSource if kind == "joint" else sources.LogitsSource
    seen = []
    original = source.__init__

    def spy(self, batch, inputs, *args, **keywords):
        seen.append(inputs if kind == "joint" else (inputs,))
        original(self, batch, inputs, *args, **keywords)

    monkeypatch.setattr(source, "__init__", spy)
    batch = made(kind, dtype=dtype)
    batch.leaves[0] = batch.leaves[0].detach().transpose(0, 1).contiguous().transpose(0, 1)
    batch.leaves[0].requires_grad_()
    loss_of(kind)(*batch.leaves, *batch.rest).backward()
    assert len(seen) == 2  # forward and backward
    for arrays in seen:
        for array, leaf in zip(arrays, batch.leaves, strict=True):
            assert np.shares_memory(array, expected_view(leaf))


def neg_view(x):
    """The same values as a lazy negative: memory holds them with the other sign."""
    lazy = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert lazy.is_neg()
    return lazy


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "part": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "negative": neg_view,
}


@every_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_gives_the_same(kind, layout):
    batch = made(kind)
    loss = loss_of(kind)(*batch.leaves, *batch.rest)
    wanted = gradients(loss, batch.leaves)
    views = [LAYOUTS[layout](leaf.detach()).requires_grad_() for leaf in batch.leaves]
    other = loss_of(kind)(*views, *batch.rest)
    assert_costs_close(numpy(other), numpy(loss), np.float64, 1)
    for one, two in zip(gradients(other, views), wanted, strict=True):
        assert_gradient_close(one, two, np.float64, batch.length)


def test_expanded_inputs():
    batch = made("joint")
    encoder_out, *others = batch.leaves
    row = encoder_out.detach()[:1].requires_grad_()
    expanded = row.expand_as(encoder_out)
    loss = adapter.joint_rnnt_loss(expanded, *others, *batch.rest)
    same = row.detach().repeat(4, 1, 1).requires_grad_()
    wanted = adapter.joint_rnnt_loss(same, *others, *batch.rest)
    assert_equal_bits([loss], [wanted])
    (of_row,), (of_all,) = gradients(loss, [row]), gradients(wanted, [same])
    assert_gradient_close(of_row, of_all.sum(0, keepdim=True), np.float64, 1)


@every_kind
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_any_integer_dtype(kind, dtype):
    batch = made(kind)
    wanted = loss_of(kind)(*batch.leaves, *batch.rest)
    integers = [values.to(dtype) for values in batch.rest[:-1]]
    loss = loss_of(kind)(*batch.leaves, *integers, batch.case.blank)
    assert_equal_bits([loss], [wanted])
    assert_equal_bits(gradients(loss, batch.leaves), gradients(wanted, batch.leaves))


@every_kind
def test_lists_of_integers(kind):
    batch = made(kind)
    wanted = loss_of(kind)(*batch.leaves, *batch.rest)
    lists = [values.tolist() for values in batch.rest[:-1]]
    assert_equal_bits([loss_of(kind)(*batch.leaves, *lists)], [wanted])
    arrays = [values.numpy() for values in batch.rest[:-1]]
    assert_equal_bits([loss_of(kind)(*batch.leaves, *arrays)], [wanted])


def names_of(kind):
    inputs = JointGradients._fields if kind == "joint" else ("logits",)
    return *inputs, "targets", "logit_lengths", "target_lengths"


@every_kind
@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (lambda x: x.to("meta"), ValueError, "device meta"),
        (lambda x: x.to_sparse(), TypeError, "layout torch.sparse_coo"),
        (lambda x: x.to(torch.complex64), TypeError, "dtype complex64"),
        (lambda x: x.to(torch.bool), TypeError, "dtype bool"),
        (lambda x: x.to(torch.float8_e4m3fn), TypeError, "Float8_e4m3fn"),
        (lambda x: x[None], ValueError, "(1, "),
    ],
)
def test_tensors_of_the_wrong_sort_are_named(kind, change, error, word):
    batch = made(kind)
    values = [*batch.leaves, *batch.rest[:-1]]
    for i, name in enumerate(names_of(kind)):
        wrong = [change(x.detach()) if i == j else x for j, x in enumerate(values)]
        with pytest.raises(error, match=rf"^{name} ") as caught:
            loss_of(kind)(*wrong)
        assert word in str(caught.value)


def test_mixed_dtypes():
    batch = made("joint", dtype=torch.float32)
    for i, name in enumerate(JointGradients._fields[1:], 1):
        mixed = [leaf.half() if i == j else leaf for j, leaf in enumerate(batch.leaves)]
        with pytest.raises(TypeError, match=f"{name} has dtype float16, but float32 is needed"):
            adapter.joint_rnnt_loss(*mixed, *batch.rest)


@every_kind
@pytest.mark.parametrize("blank", [0, -1])
def test_a_target_that_is_the_blank(kind, blank):
    """Other libraries compute a wrong gradient then."""
    batch = made(kind, blank=blank)
    batch.rest[0][0, 1] = blank % 9
    with pytest.raises(ValueError, match=r"targets\[0, 1\] is \d, which is the blank"):
        loss_of(kind)(*batch.leaves, *batch.rest)


def test_log_probabilities_are_noticed():
    batch = made("logits")
    for logits in batch.leaves[0].log_softmax(-1), batch.leaves[0].detach().log_softmax(-1):
        with pytest.warns(UserWarning, match="fused_log_softmax=False"):
            adapter.rnnt_loss(logits, *batch.rest)


# What is not finite


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
        np.testing.assert_equal(loss.item(), reduced(costs, reduction).item())
    actual = gradients(loss, leaves, grad_outputs=torch.ones_like(loss))

    # The gradient is that of the other samples, computed without this one.
    few = [x[1:].detach().requires_grad_() if i < 2 else x for i, x in enumerate(leaves)]
    rest = [x[1:] for x in batch.rest[:-1]]
    alone = loss_of(kind)(*few, *rest, batch.case.blank, reduction="sum")
    if reduction == "mean":
        alone = alone / 4
    wanted = gradients(alone, few)
    for i, (one, other) in enumerate(zip(actual, wanted, strict=True)):
        if i < 2:
            assert (one[0] == 0).all()
            one = one[1:]
        assert torch.isfinite(other).all()
        assert_gradient_close(one, other, np.float64, 1)


# A model


class Transducer(torch.nn.Module):
    """Two layers over the frames, an embedding of the last label, a joint network. Blank is 0."""

    def __init__(self, features, hidden, vocabulary):
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(features, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, hidden)
        )
        self.predictor = torch.nn.Embedding(vocabulary, hidden)
        self.output = torch.nn.Linear(hidden, vocabulary)
        self.loss = adapter.JointRNNTLoss(blank=0)

    def forward(self, frames, targets, frame_counts, label_counts):
        history = F.pad(targets, (1, 0))
        return self.loss(
            self.encoder(frames),
            self.predictor(history),
            self.output.weight,
            self.output.bias,
            targets,
            frame_counts,
            label_counts,
        )

    def greedy(self, frames):
        labels = [0]
        for frame in self.encoder(frames):
            for _ in range(3):  # labels a frame at most
                best = self.output((frame + self.predictor.weight[labels[-1]]).tanh()).argmax()
                if best == 0:
                    break
                labels.append(int(best))
        return labels[1:]


def synthetic_speech(rng, size, labels, vocabulary):
    """Each label sounds for one to three frames; no label follows itself."""
    sentences, recordings = [], []
    for count in rng.integers(1, labels + 1, size):
        sentence = [int(rng.integers(1, vocabulary))]
        while len(sentence) < count:
            sentence.append(
                int((sentence[-1] + rng.integers(1, vocabulary - 1) - 1) % (vocabulary - 1)) + 1
            )
        sentences.append(torch.tensor(sentence))
        sounds = np.repeat(np.eye(vocabulary)[sentence], rng.integers(1, 4, count), axis=0)
        sounds += 0.05 * rng.standard_normal(sounds.shape)
        recordings.append(torch.tensor(sounds, dtype=torch.float32))
    return recordings, sentences


def test_a_tiny_model_learns():
    torch.manual_seed(0)
    recordings, sentences = synthetic_speech(np.random.default_rng(0), 24, 6, 7)
    pad = torch.nn.utils.rnn.pad_sequence
    batch = (
        pad(recordings, batch_first=True),
        pad(sentences, batch_first=True),
        torch.tensor([len(frames) for frames in recordings]),
        torch.tensor([len(labels) for labels in sentences]),
    )
    model = Transducer(7, 32, 7)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
    with torch.no_grad():
        decoded = [model.greedy(frames) for frames in recordings]
    assert decoded == [labels.tolist() for labels in sentences]
