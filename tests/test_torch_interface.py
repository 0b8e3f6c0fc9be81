"""Modules and signatures of the PyTorch adapter."""

from __future__ import annotations

import inspect

import cupy_rnnt

from .torch_cases import adapter, assert_equal_bits, every_kind, gradients, loss_of, made


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
