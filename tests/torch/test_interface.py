"""Modules and signatures of the PyTorch adapter."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import reference

from ..tolerances import assert_costs_close, assert_gradients_close
from .cases import adapter, assert_equal_bits, every_kind, gradients, loss_of, made, numpy, torch


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


def test_a_module_draws_seeds_of_dropout():
    """Other ones in every call, again the same ones after the same ``manual_seed``; none after
    ``eval``."""
    batch = made("joint")
    arguments = *batch.leaves, *batch.rest[:-1]
    module = adapter.JointRNNTLoss(batch.case.blank, dropout=0.4)
    torch.manual_seed(3)
    first, second = module(*arguments), module(*arguments)
    assert first != second
    torch.manual_seed(3)
    assert_equal_bits([module(*arguments)], [first])
    assert_equal_bits([module(*arguments, seed=5)], [module(*arguments, seed=5)])
    fixed = adapter.JointRNNTLoss(batch.case.blank, dropout=0.4, seed=7)
    wanted = adapter.joint_rnnt_loss(*arguments, batch.case.blank, dropout=0.4, seed=7)
    assert_equal_bits([fixed(*arguments)], [wanted])
    without = adapter.joint_rnnt_loss(*arguments, batch.case.blank)
    assert_equal_bits([module.eval()(*arguments)], [without])


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_dropout_of_both_passes_is_the_same(reduction):
    batch = made("joint")
    options = {"reduction": reduction, "dropout": 0.3, "seed": 2**60 + 1}
    costs = adapter.joint_rnnt_loss(*batch.leaves, *batch.rest, **options)
    found = gradients(costs.sum(), batch.leaves)
    options["reduction"] = "sum" if reduction == "none" else reduction
    expected_loss, expected = reference.joint_rnnt_loss_and_grad(*batch.case, **options)
    assert_costs_close(numpy(costs.sum()), expected_loss, np.float64, batch.length)
    assert_gradients_close(list(map(numpy, found)), expected, np.float64, batch.length)


def test_a_module_may_have_the_output_layer():
    batch = made("joint")
    encoder_out, predictor_out, weight, bias = batch.leaves
    output = torch.nn.Linear(11, 9)
    output.weight, output.bias = torch.nn.Parameter(weight.detach()), None
    own = adapter.JointRNNTLoss(batch.case.blank, output=output)
    loss = own(encoder_out, predictor_out, *batch.rest[:-1])
    names = "targets", "logit_lengths", "target_lengths"
    named = own(encoder_out, predictor_out, **dict(zip(names, batch.rest, strict=False)))
    plain = adapter.JointRNNTLoss(batch.case.blank)
    expected = plain(encoder_out, predictor_out, weight, None, *batch.rest[:-1])
    assert_equal_bits([loss, named], [expected, expected])
    loss.backward()
    expected.backward()
    assert_equal_bits([output.weight.grad], [weight.grad])
    assert bias.grad is None
    own_layer = "has an output layer of its own: leave out weight and bias"
    for wrong in {"weight": weight}, {"bias": bias}:
        with pytest.raises(TypeError, match=own_layer):
            own(encoder_out, predictor_out, *batch.rest[:-1], **wrong)
    with pytest.raises(TypeError, match=own_layer):
        own(encoder_out, predictor_out, weight, bias, *batch.rest[:-1])
    no_layer = "has no output layer: pass weight and bias, or make it with output="
    with pytest.raises(TypeError, match=no_layer):
        plain(encoder_out, predictor_out, *batch.rest[:-1])
    with pytest.raises(TypeError, match=no_layer):
        plain(encoder_out, predictor_out, **dict(zip(names, batch.rest, strict=False)))
    with pytest.raises(TypeError, match="missing 3 required positional arguments: 'targets'"):
        plain(encoder_out, predictor_out, weight, bias)


def test_modules_check_their_options_at_once():
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        adapter.RNNTLoss(reduction="avg")
    with pytest.raises(ValueError, match=r"dropout is 2\.0"):
        adapter.JointRNNTLoss(dropout=2.0)
    with pytest.raises(TypeError, match="blank"):
        adapter.JointRNNTLoss(torch.nn.Linear(3, 4))
    with pytest.raises(TypeError, match=r"output must be a torch\.nn\.Linear, not Sequential"):
        adapter.JointRNNTLoss(output=torch.nn.Sequential(torch.nn.Linear(3, 4)))


def test_modules_are_saved_and_loaded(tmp_path):
    batch = made("joint", dtype=torch.float32)
    modules = [
        adapter.JointRNNTLoss(batch.case.blank, clamp=0.1, output=torch.nn.Linear(11, 9))
        for _ in range(2)
    ]
    losses = [module(*batch.leaves[:2], *batch.rest[:-1]) for module in modules]
    assert losses[0] != losses[1]
    state = modules[0].state_dict()
    assert state.keys() == {"output.weight", "output.bias"}
    torch.save(state, tmp_path / "state.pt")
    modules[1].load_state_dict(torch.load(tmp_path / "state.pt"))
    assert_equal_bits([modules[1](*batch.leaves[:2], *batch.rest[:-1])], losses[:1])
    for module in adapter.RNNTLoss(), adapter.JointRNNTLoss():
        assert module.state_dict() == {}
        module.load_state_dict({})
    copied = pickle.loads(pickle.dumps(copy.deepcopy(modules[0])))
    assert repr(copied) == repr(modules[0])
    assert_equal_bits([copied(*batch.leaves[:2], *batch.rest[:-1])], losses[:1])


def test_modules_say_what_they_do():
    assert repr(adapter.RNNTLoss(0, tolerance=1e-3)) == (
        "RNNTLoss(blank=0, clamp=-1.0, reduction='mean', fused_log_softmax=True, tolerance=0.001)"
    )
    output = torch.nn.Linear(2, 3, bias=False)
    assert repr(adapter.JointRNNTLoss(reduction="sum", activation="relu", output=output)) == (
        "JointRNNTLoss(\n"
        "  blank=-1, clamp=-1.0, reduction='sum', activation='relu'\n"
        "  (output): Linear(in_features=2, out_features=3, bias=False)\n"
        ")"
    )


@pytest.mark.parametrize("module", [adapter.RNNTLoss, adapter.JointRNNTLoss])
def test_modules_know_their_options(module):
    with pytest.raises(TypeError, match="unexpected keyword argument 'blnk'"):
        module(blnk=0)


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
