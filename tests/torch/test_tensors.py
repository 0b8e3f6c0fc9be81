"""Tensors of every sort: memory layouts, integer types, and those that are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from cupy_rnnt.engine import joint_source, logits_source, passes
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.results import JointGradients

from ..arguments.cases import AXES
from ..tolerances import assert_costs_close, assert_gradient_close
from .cases import (
    F,
    adapter,
    assert_equal_bits,
    every_dtype,
    every_kind,
    every_reduction,
    gradients,
    loss_of,
    made,
    numpy,
    torch,
)


def expected_view(leaf):
    leaf = leaf.detach()
    return leaf.view(torch.int16).numpy() if leaf.dtype == torch.bfloat16 else leaf.numpy()


@every_kind
@every_dtype
def test_tensors_are_never_copied(kind, dtype, monkeypatch):
    source = joint_source.JointSource if kind == "joint" else logits_source.LogitsSource
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
    loss_of(kind)(*batch.leaves, *batch.rest, reduction="none").sum().backward()
    assert len(seen) == (3 if kind == "joint" else 4)  # a mean has both passes at once
    for arrays in seen:
        for array, leaf in zip(arrays, batch.leaves, strict=True):
            assert np.shares_memory(array, expected_view(leaf))


@every_kind
def test_storage_stays_resizable(kind):
    """As that of parameters is under FSDP. Who calls ``Tensor.numpy`` forbids it for good."""
    batch = made(kind)
    batch.leaves = [leaf.detach().clone().requires_grad_() for leaf in batch.leaves]
    for reduction in "mean", "none":
        loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction).sum().backward()
    assert all(leaf.untyped_storage().resizable() for leaf in batch.leaves)


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


@every_kind
@every_reduction
def test_lists_belong_on_the_host(kind, reduction):
    """Whatever device PyTorch makes tensors on by default; "meta", which has no memory, stands for
    a GPU."""
    batch = made(kind)
    wanted = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction)
    lists = [values.tolist() for values in batch.rest[:-1]]
    with torch.device("meta"):
        loss, info = loss_of(kind)(*batch.leaves, *lists, reduction=reduction, return_info=True)
        found = gradients(loss.sum(), batch.leaves)
    assert info.cells == int((batch.rest[1] * (batch.rest[2] + 1)).sum())
    assert_equal_bits([loss], [wanted])
    assert_equal_bits(found, gradients(wanted.sum(), batch.leaves))


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
        (lambda x: x.to(torch.float8_e4m3fn), TypeError, "float8_e4m3fn"),
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


@every_kind
@every_reduction
def test_an_empty_axis_is_named(kind, reduction):
    """Before there are gradients of that shape."""
    batch = made(kind)
    for i, name in enumerate(names_of(kind)[:-3]):
        for axis, letter in enumerate(AXES[name]):
            leaves = [leaf.detach().requires_grad_() for leaf in batch.leaves]
            leaves[i] = leaves[i].detach().narrow(axis, 0, 0).requires_grad_()
            with pytest.raises(ValueError, match=re.escape(f"{name} has shape")) as caught:
                loss_of(kind)(*leaves, *batch.rest, reduction=reduction)
            assert str(caught.value).endswith(f"axis {letter} is empty")


@every_kind
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_refused(kind, layout):
    batch = made(kind)
    for i, name in enumerate(names_of(kind)):
        values = [leaf.detach() for leaf in batch.leaves] + list(batch.rest[:-1])
        if values[i].ndim > 1:
            values[i] = torch.nested.nested_tensor(list(values[i]), layout=layout)
            with pytest.raises(TypeError, match=f"^{name} is nested, but a padded tensor"):
                loss_of(kind)(*values)


@every_kind
def test_integers_beyond_64_bits_are_named(kind):
    batch = made(kind)
    for i, name in enumerate(names_of(kind)[-3:]):
        for value in 2**63, 2**64, -(2**70):
            lists = [values.tolist() for values in batch.rest[:-1]]
            (lists[i][1] if i == 0 else lists[i])[2] = value
            place = re.escape("[1, 2]" if i == 0 else "[2]")
            with pytest.raises(ValueError, match=rf"^{name}{place} is {value}, but it must be"):
                loss_of(kind)(*batch.leaves, *lists)


@every_kind
def test_tensors_that_are_time_major_or_short_of_a_position(kind):
    """The argument that is meant is named, not the targets."""
    batch = made(kind)
    i, name, axis = (1, "predictor_out", 1) if kind == "joint" else (0, "logits", 2)
    changes = lambda x: x.narrow(axis, 1, x.shape[axis] - 1), lambda x: x.swapaxes(0, 1)
    for change in changes:
        leaves = list(batch.leaves)
        leaves[i] = change(leaves[i])
        needed = re.escape(f"but {tuple(batch.leaves[i].shape)} is needed to match targets")
        with pytest.raises(ValueError, match=f"^{name} has shape .*{needed}"):
            loss_of(kind)(*leaves, *batch.rest)


@every_kind
def test_integers_cannot_ask_for_a_gradient(kind):
    batch = made(kind)
    for i, name in enumerate(names_of(kind)[-3:]):
        rest = list(batch.rest)
        with pytest.raises(RuntimeError, match="can require gradients"):  # PyTorch's own rule
            rest[i].requires_grad_()
        rest[i] = rest[i].double().requires_grad_()
        with pytest.raises(TypeError, match=f"{name} has dtype float64, but an integer dtype"):
            loss_of(kind)(*batch.leaves, *rest)


@every_kind
def test_what_is_no_tensor_is_named(kind):
    batch = made(kind)
    for i, name in enumerate(names_of(kind)[:-3]):
        for wrong in numpy(batch.leaves[i]), batch.leaves[i].tolist(), "text":
            leaves = [wrong if i == j else leaf for j, leaf in enumerate(batch.leaves)]
            with pytest.raises(TypeError, match=f"{name} is a .*, but a torch.Tensor is needed"):
                loss_of(kind)(*leaves, *batch.rest)
    for i, name in enumerate(names_of(kind)[-3:]):
        for wrong in [[1, 2], [1]], "text", None, [object()]:
            rest = [wrong if i == j else x for j, x in enumerate(batch.rest)]
            with pytest.raises(TypeError, match=f"{name} cannot be made a tensor"):
                loss_of(kind)(*batch.leaves, *rest)


@every_kind
@pytest.mark.parametrize(
    ("option", "error", "text"),
    [
        ({"blank": 1.0}, TypeError, "blank is 1.0, but an integer"),
        ({"blank": 9}, ValueError, "blank is 9, but it must be between -9 and 8"),
        ({"clamp": "1"}, TypeError, "clamp is '1', but a number"),
        (
            {"reduction": "avg"},
            ValueError,
            "reduction is 'avg', but one of none, mean, mean_volume, sum",
        ),
        ({"fastemit_lambda": -1}, ValueError, "fastemit_lambda is -1, but it must be"),
        ({"tolerance": 1.0}, ValueError, "tolerance is 1.0, but it must be"),
        ({"max_workspace_bytes": 1e6}, TypeError, "max_workspace_bytes is 1000000.0, but"),
        ({"zero_infinity": "False"}, TypeError, "zero_infinity is 'False', but True or False"),
        ({"return_info": [True]}, TypeError, r"return_info is \[True\], but True or False"),
    ],
)
def test_options_of_the_wrong_sort_are_named(kind, option, error, text):
    batch = made(kind)
    with pytest.raises(error, match=f"^{text}"):
        loss_of(kind)(*batch.leaves, *batch.rest[:-1], **option)


def test_fused_log_softmax_is_a_boolean():
    batch = made("logits")
    with pytest.raises(TypeError, match="fused_log_softmax is 'no', but True or False"):
        adapter.rnnt_loss(*batch.leaves, *batch.rest, fused_log_softmax="no")


def test_activations_are_named():
    batch = made("joint")
    with pytest.raises(ValueError, match="activation is 'elu', but one of tanh, relu"):
        adapter.joint_rnnt_loss(*batch.leaves, *batch.rest, activation="elu")


@every_kind
@pytest.mark.parametrize("during", ["first", "second"])
def test_an_interrupted_call_leaves_nothing_behind(kind, during, monkeypatch):
    batch = made(kind)
    wanted = gradients(loss_of(kind)(*batch.leaves, *batch.rest), batch.leaves)
    threads = cpu.threads()
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction="none").mean()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def step():
        loss_of(kind)(*batch.leaves, *batch.rest)
        loss.backward()

    with monkeypatch.context() as patch:
        patch.setattr(passes.Passes, during, interrupted)
        with pytest.raises(KeyboardInterrupt):
            step()
    assert all(leaf.grad is None for leaf in batch.leaves)
    assert cpu.threads() == threads
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {
        threads
    }
    found = gradients(loss, batch.leaves, retain_graph=True)
    for one, other in zip(found, wanted, strict=True):
        assert_gradient_close(one, other, np.float64, batch.length)


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


@every_reduction
def test_log_probabilities_that_cannot_be_are_noticed(reduction):
    (logits,), rest = made("logits").leaves, made("logits").rest
    options = {"fused_log_softmax": False, "reduction": reduction}
    for given in logits, logits.detach():
        with pytest.warns(UserWarning, match="blank and label add up to more than 1"):
            adapter.rnnt_loss(given, *rest, **options)
        adapter.rnnt_loss(given.log_softmax(-1), *rest, **options)
