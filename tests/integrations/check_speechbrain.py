"""The losses for SpeechBrain beside its own, which run on Numba's simulator of CUDA.

No part of the tests that plain ``pytest`` runs, as SpeechBrain and Numba must be installed::

    python -m pytest tests/integrations/check_speechbrain.py

A module without content stands in for torchaudio, which SpeechBrain imports for audio files.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest
import torch

from cupy_rnnt.integrations.speechbrain import joint_transducer_loss, transducer_loss

BLANK, SYMBOLS, HIDDEN = 0, 6, 5
FRAMES, LABELS = torch.tensor([5, 4, 2]), torch.tensor([3, 2, 1])
INPUT_LENS, TARGET_LENS = FRAMES / 5, LABELS / 3
TARGETS = torch.tensor([[1, 2, 3], [4, 5, 0], [2, 0, 0]], dtype=torch.int32)


@pytest.fixture(scope="module")
def speechbrain():
    """The package, whose kernels run on the CPU."""
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    torchaudio = ModuleType("torchaudio")
    torchaudio.__version__ = "2.11.0"
    sys.modules["torchaudio"] = torchaudio
    import speechbrain.nnet.linear
    import speechbrain.nnet.losses
    import speechbrain.nnet.transducer.transducer_joint

    return speechbrain.nnet


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, SYMBOLS, dtype=torch.float64, generator=generator)
    return logits.requires_grad_()


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


def test_costs_are_those_of_speechbrain_times_frames(speechbrain, logits):
    arguments = logits, TARGETS, INPUT_LENS, TARGET_LENS, BLANK
    theirs = speechbrain.losses.transducer_loss(*arguments, reduction="none") * FRAMES
    costs = transducer_loss(*arguments, reduction="none")
    torch.testing.assert_close(costs, theirs)
    for reduction, expected in (
        ("mean", theirs.mean()),
        ("batchmean", theirs.mean()),
        ("sum", theirs.sum()),
    ):
        torch.testing.assert_close(transducer_loss(*arguments, reduction), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_of_speechbrain_is_that_of_the_sum(speechbrain, logits, reduction):
    arguments = logits, TARGETS, INPUT_LENS, TARGET_LENS, BLANK
    (expected,) = gradients(speechbrain.losses.transducer_loss(*arguments, reduction), logits)
    (gradient,) = gradients(transducer_loss(*arguments, reduction="sum"), logits)
    torch.testing.assert_close(gradient, expected)
    (of_mean,) = gradients(transducer_loss(*arguments), logits)
    torch.testing.assert_close(of_mean * len(TARGETS), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", [torch.nn.LeakyReLU, torch.nn.Tanh, torch.nn.ReLU])
def test_fused_form_is_joint_layer_and_loss(speechbrain, bias, nonlinearity):
    torch.manual_seed(1)
    joint = speechbrain.transducer.transducer_joint.Transducer_joint(nonlinearity=nonlinearity)
    layer = speechbrain.linear.Linear(SYMBOLS, input_size=HIDDEN, bias=bias).double()
    encoder_out = torch.randn(3, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    predictor_out = torch.randn(3, 4, HIDDEN, dtype=torch.float64, requires_grad=True)
    inputs = encoder_out, predictor_out, *layer.parameters()
    logits = layer(joint(encoder_out.unsqueeze(2), predictor_out.unsqueeze(1)))
    lengths = TARGETS, INPUT_LENS, TARGET_LENS, BLANK
    expected = speechbrain.losses.transducer_loss(logits, *lengths, reduction="sum")
    loss = joint_transducer_loss(
        encoder_out,
        predictor_out,
        layer,
        *lengths,
        reduction="sum",
        nonlinearity=nonlinearity,
    )
    for found, gradient in zip(gradients(loss, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(found, gradient)
    mean = joint_transducer_loss(
        encoder_out, predictor_out, layer, *lengths, nonlinearity=joint.nonlinearity
    )
    torch.testing.assert_close(mean * 3, loss)


def test_a_recipe_names_it():
    """As its hyperparameters do; older ones pass ``use_torchaudio``."""
    from hyperpyyaml import load_hyperpyyaml

    name = "cupy_rnnt.integrations.speechbrain.transducer_loss"
    cost = load_hyperpyyaml(f"""
blank_index: 0
transducer_cost: !name:{name}
    blank_index: !ref <blank_index>
    use_torchaudio: True
""")["transducer_cost"]
    logits = torch.zeros(1, 2, 2, 3)
    ones = torch.ones(1)
    loss = cost(logits, torch.tensor([[1]]), ones, ones)
    expected = torch.tensor(27 / 2).log()  # two paths of three arcs, each of probability 1 / 3
    torch.testing.assert_close(loss, expected)


def test_log_probabilities(logits):
    """A second normalisation changes nothing, and is not needed."""
    arguments = TARGETS, INPUT_LENS, TARGET_LENS, BLANK
    expected = transducer_loss(logits, *arguments)
    loss = transducer_loss(logits.log_softmax(-1), *arguments, fused_log_softmax=False)
    torch.testing.assert_close(loss, expected)


def test_empty_transcripts(logits):
    lens = torch.tensor([1.0, 0.0, 1 / 3])
    costs = transducer_loss(logits, TARGETS, INPUT_LENS, lens, BLANK, "none")
    blanks = logits.log_softmax(-1)[1, :4, 0, BLANK]
    torch.testing.assert_close(costs[1], -blanks.sum())


def test_an_utterance_without_a_path(logits):
    """One frame is too short for two labels, if each takes one."""
    lens = torch.tensor([1.0, 0.2, 1.0]), torch.tensor([1.0, 2 / 3, 1 / 3])
    options = {"reduction": "none", "transducer": "modified"}
    costs = transducer_loss(logits, TARGETS, *lens, BLANK, **options)
    assert costs.isinf().tolist() == [False, True, False]
    options |= {"reduction": "mean", "zero_infinity": True}
    assert transducer_loss(logits, TARGETS, *lens, BLANK, **options).isfinite()


@pytest.mark.parametrize("name", ["input_lens", "target_lens"])
@pytest.mark.parametrize("share", [5.0, -0.2, float("nan")])
def test_relative_lengths_are_checked(logits, name, share):
    lens = {"input_lens": INPUT_LENS, "target_lens": TARGET_LENS}
    lens[name] = torch.tensor([1.0, share, 1.0])
    with pytest.raises(ValueError, match=rf"{name}\[1\] is {share:g}, but a length relative to"):
        transducer_loss(logits, TARGETS, blank_index=BLANK, **lens)


def test_what_is_refused(speechbrain, logits):
    with pytest.raises(ValueError, match=r"input_lens\[0\] is 0, but .* above 0"):
        transducer_loss(logits, TARGETS, INPUT_LENS - 1, TARGET_LENS, BLANK)
    with pytest.raises(ValueError, match=r"logits has shape \(5, 4, 6\)"):
        transducer_loss(logits[0], TARGETS, INPUT_LENS, TARGET_LENS, BLANK)
    with pytest.raises(ValueError, match="logits has shape"):
        transducer_loss(logits[:, :, 1:], TARGETS, INPUT_LENS, TARGET_LENS, BLANK)
    with pytest.raises(ValueError, match="reduction is 'average'"):
        transducer_loss(logits, TARGETS, INPUT_LENS, TARGET_LENS, BLANK, "average")
    inputs = torch.randn(3, 5, HIDDEN), torch.randn(3, 4, HIDDEN)
    lengths = TARGETS, INPUT_LENS, TARGET_LENS, BLANK
    layer = torch.nn.Linear(HIDDEN, SYMBOLS)
    with pytest.raises(ValueError, match="joint is 'concat', but 'sum' is needed"):
        joint_transducer_loss(*inputs, layer, *lengths, joint="concat")
    with pytest.raises(ValueError, match=r"encoder_out has shape .* three axes"):
        joint_transducer_loss(inputs[0][:, :, None], inputs[1], layer, *lengths)
    with pytest.raises(ValueError, match=r"nonlinearity is GELU.* one of tanh, relu"):
        joint_transducer_loss(*inputs, layer, *lengths, nonlinearity=torch.nn.GELU)
    with pytest.raises(ValueError, match="nonlinearity is PReLU"):
        joint_transducer_loss(*inputs, layer, *lengths, nonlinearity=torch.nn.PReLU(init=0.01))
    with pytest.raises(TypeError, match="output_layer is a Sequential"):
        joint_transducer_loss(*inputs, torch.nn.Sequential(layer), *lengths)
    normed = speechbrain.linear.Linear(SYMBOLS, input_size=HIDDEN, max_norm=1.0)
    with pytest.raises(ValueError, match="output_layer has a max_norm"):
        joint_transducer_loss(*inputs, normed, *lengths)
