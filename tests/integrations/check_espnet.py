"""The losses for ESPnet in its own models, and beside its own loss of Numba on the CPU.

No part of the tests that plain ``pytest`` runs, as ESPnet and Numba must be installed::

    python -m pytest tests/integrations/check_espnet.py

The package itself does, without most of what it depends on: ``.ci/integrations`` has the list.
"""

from __future__ import annotations

import sys
from functools import partialmethod

import pytest
import torch
from espnet.nets.pytorch_backend.transducer.joint_network import JointNetwork as OlderJointNetwork
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr.encoder.rnn_encoder import RNNEncoder
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba
from espnet2.asr_transducer.decoder.stateless_decoder import StatelessDecoder
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from espnet2.asr_transducer.joint_network import JointNetwork

import cupy_rnnt.integrations.espnet
from cupy_rnnt.integrations.espnet import RNNTLoss, calc_transducer_loss, joint_transducer_loss
from cupy_rnnt.torch import rnnt_loss

TOKENS = ["<blank>", "<unk>", *"abcd", "<sos/eos>"]
LENGTHS = torch.tensor([6, 4, 2], dtype=torch.int32), torch.tensor([3, 2, 1], dtype=torch.int32)
TARGET = torch.tensor([[1, 2, 3], [4, 5, 0], [2, 0, 0]], dtype=torch.int32)


@pytest.fixture(autouse=True)
def criterion(monkeypatch):
    """What ESPnet imports."""
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", cupy_rnnt.integrations.espnet)


def joint_of(kind=JointNetwork, activation="tanh"):
    torch.manual_seed(0)
    return kind(len(TOKENS), 5, 4, 8, activation)


def made(joint=None, **options):
    """A tiny model of ``espnet2.asr``."""
    torch.manual_seed(0)
    tokens = options.pop("token_list", TOKENS)
    return ESPnetASRModel(
        len(tokens),
        tokens,
        *(None,) * 4,
        RNNEncoder(3, num_layers=1, hidden_size=5, output_size=5, subsample=None),
        None,
        TransducerDecoder(len(tokens), hidden_size=4),
        CTC(len(tokens), 5),
        JointNetwork(len(tokens), 5, 4, 8) if joint is None else joint,
        **{"ctc_weight": 0.0, "report_cer": False, "report_wer": False} | options,
    )


def batch(shift=0):
    torch.manual_seed(1)
    text = torch.tensor([[2, 3, 4], [5, 1, -1], [3, -1, -1]])
    lengths = torch.tensor([6, 5, 4]), torch.tensor([3, 2, 1])
    return torch.randn(3, 6, 3), lengths[0], torch.where(text < 0, text, text + shift), lengths[1]


def loss_and_gradients(model):
    model.zero_grad()
    loss, *_ = model(*batch(len(model.token_list) - len(TOKENS)))
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_criterion_is_the_loss_of_numba(reduction):
    logits = torch.randn(3, 6, 4, len(TOKENS), requires_grad=True)
    arguments = logits, TARGET, *LENGTHS
    expected = RNNTLossNumba(blank=0, reduction=reduction)(*arguments)
    loss = RNNTLoss(blank=0, reduction=reduction)(*arguments)
    torch.testing.assert_close(loss, expected.reshape(loss.shape))
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    (found,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        (JointNetwork, "tanh"),
        (JointNetwork, "relu"),
        (JointNetwork, "leaky_relu"),
        (JointNetwork, "swish"),
        (JointNetwork, "identity"),
        (OlderJointNetwork, "tanh"),
        (OlderJointNetwork, "swish"),
    ],
)
def test_fused_form_is_the_loss_of_numba(kind, activation):
    joint = joint_of(kind, activation)
    inputs = torch.randn(3, 6, 5, requires_grad=True), torch.randn(3, 4, 4, requires_grad=True)
    of = *inputs, *joint.parameters()
    logits = joint(inputs[0].unsqueeze(2), inputs[1].unsqueeze(1))
    expected = RNNTLossNumba(blank=0)(logits, TARGET, *LENGTHS)
    loss = joint_transducer_loss(joint, *inputs, TARGET, *LENGTHS)
    torch.testing.assert_close(loss, expected.reshape(()))
    expected = torch.autograd.grad(expected, of)
    found = torch.autograd.grad(loss, of)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("blank", [0, 6])
def test_a_model_of_asr(monkeypatch, blank):
    tokens = [*TOKENS[1 : blank + 1], TOKENS[0], *TOKENS[blank + 1 :]]
    model = made(token_list=tokens)
    assert type(model.criterion_transducer) is RNNTLoss
    expected = loss_and_gradients(model)
    monkeypatch.setattr(ESPnetASRModel, "_calc_transducer_loss", calc_transducer_loss)
    monkeypatch.setattr(model.joint_network, "forward", None)  # no logits are computed
    assert_same(loss_and_gradients(model), expected)


def test_multi_blank(monkeypatch):
    """Big blanks are in front of the blank, the longest first, as ESPnet's task inserts them."""
    tokens = ["<blank4>", "<blank2>", *TOKENS]
    options = {"transducer_multi_blank_durations": [2, 4], "transducer_multi_blank_sigma": 0.1}
    model = made(token_list=tokens, **options)

    def criterion(*arguments):
        multi_blank = cupy_rnnt.multi_blank((2, 4), 0.1)
        return rnnt_loss(*arguments, blank=2, transducer=multi_blank)

    monkeypatch.setattr(model.criterion_transducer, "forward", criterion)
    expected = loss_and_gradients(model)
    monkeypatch.setattr(ESPnetASRModel, "_calc_transducer_loss", calc_transducer_loss)
    assert_same(loss_and_gradients(model), expected)


def test_error_rates_are_as_before(monkeypatch):
    model = made(report_cer=True, report_wer=True).eval()
    _, expected, _ = model(*batch())
    monkeypatch.setattr(ESPnetASRModel, "_calc_transducer_loss", calc_transducer_loss)
    _, found, _ = model(*batch())
    for name in "cer_transducer", "wer_transducer":
        assert found[name] is not None
        assert found[name] == expected[name]


def test_a_model_of_asr_transducer():
    torch.manual_seed(0)
    encoder = Encoder(
        16,
        [{"block_type": "conv1d", "kernel_size": 1, "output_size": 5}],
        input_conf={"conv_size": 4, "subsampling_factor": 4, "vgg_like": False},
    )
    decoder = StatelessDecoder(len(TOKENS), embed_size=4)
    joint = JointNetwork(len(TOKENS), 5, 4, 8)
    options = {"fastemit_lambda": 0.1}
    model = ESPnetASRTransducerModel(
        len(TOKENS), TOKENS, None, None, None, encoder, decoder, joint, **options
    )
    text = torch.tensor([[2, 3, 4], [5, 1, -1]])
    inputs = torch.randn(2, 40, 16), torch.tensor([40, 36]), text, torch.tensor([3, 2])
    loss, _, _ = model(*inputs)
    loss.backward()
    assert type(model.criterion_transducer) is RNNTLoss
    gradient = joint.lin_out.weight.grad
    joint.lin_out.weight.grad = None
    encoder_out, t_len = model.encode(*inputs[:2])
    decoder_out = decoder(torch.tensor([[0, 2, 3, 4], [0, 5, 1, 0]]))
    lengths = text.clamp(min=0), t_len, inputs[3]
    fused = joint_transducer_loss(joint, encoder_out, decoder_out, *lengths, **options)
    fused.backward()
    torch.testing.assert_close(fused, loss[0])
    torch.testing.assert_close(joint.lin_out.weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_options_are_passed_on(monkeypatch):
    model = made()
    expected, _ = loss_and_gradients(model)
    method = partialmethod(calc_transducer_loss, reduction="sum")
    monkeypatch.setattr(ESPnetASRModel, "_calc_transducer_loss", method)
    found, _ = loss_and_gradients(model)
    torch.testing.assert_close(found, 3 * expected)


def test_empty_transcripts(monkeypatch):
    monkeypatch.setattr(ESPnetASRModel, "_calc_transducer_loss", calc_transducer_loss)
    model = made()
    speech, frames, text, _ = batch()
    for labels in torch.tensor([3, 0, 1]), torch.zeros(3, dtype=torch.int64):
        padding = torch.arange(3) >= labels[:, None]
        encoder_out, lens = model.encode(speech, frames)
        loss, *rates = model._calc_transducer_loss(encoder_out, lens, text.masked_fill(padding, -1))
        assert loss.isfinite()
        assert rates == [None, None]


def test_an_utterance_without_a_path():
    """Two frames are too short for three labels, if each takes one."""
    joint, inputs = joint_of(), (torch.randn(3, 6, 5), torch.randn(3, 4, 4))
    lengths = TARGET, torch.tensor([2, 4, 6]), torch.tensor([3, 2, 1])
    options = {"transducer": "modified", "reduction": "none"}
    costs = joint_transducer_loss(joint, *inputs, *lengths, **options)
    assert costs.isinf().tolist() == [True, False, False]
    assert joint_transducer_loss(joint, *inputs, *lengths, zero_infinity=True, **options)[0] == 0


def test_what_is_refused():
    joint, inputs = joint_of(), (torch.randn(3, 6, 5), torch.randn(3, 4, 4))
    with pytest.raises(ValueError, match="predictor_out has shape"):
        joint_transducer_loss(joint, inputs[0], inputs[1][:, 1:], TARGET, *LENGTHS)
    with pytest.raises(ValueError, match=r"logit_lengths\[0\] is 6, but"):
        joint_transducer_loss(joint, inputs[0][:, 1:], inputs[1], TARGET, *LENGTHS)
    for name in "hardtanh", "mish", "selu", "smish", "ftswish":
        with pytest.raises(ValueError, match=r"joint_network.joint_activation is"):
            joint_transducer_loss(joint_of(activation=name), *inputs, TARGET, *LENGTHS)
    joint.lin_out = torch.nn.Sequential(joint.lin_out)
    with pytest.raises(TypeError, match=r"joint_network.lin_out is a Sequential"):
        joint_transducer_loss(joint, *inputs, TARGET, *LENGTHS)
