"""The joint network for NeMo beside NeMo's own, with NeMo's losses of the CPU.

No part of the tests that plain ``pytest`` runs, as ``nemo_toolkit[asr]`` must be installed::

    python -m pytest tests/integrations/check_nemo.py

Numba computes the loss of RNN-T on the CPU. NeMo has the other losses on GPUs alone. That of TDT in
PyTorch runs here, as ``.cuda()`` is made to return the tensor itself; what else is on GPUs alone is
held against :mod:`cupy_rnnt.torch` with the logits of the joint network.
"""

from __future__ import annotations

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nemo.collections.asr.losses.rnnt import RNNTLoss
    from nemo.collections.asr.models import EncDecRNNTModel
    from nemo.collections.asr.modules import RNNTJoint as OwnJoint
    from nemo.core.classes import common
    from omegaconf import OmegaConf

import cupy_rnnt.torch
from cupy_rnnt.integrations.nemo import RNNTJoint

TOKENS, HIDDEN = 6, 8
FRAMES, LABELS = torch.tensor([6, 5, 4]), torch.tensor([3, 2, 1])
TARGETS = torch.tensor([[1, 2, 3], [4, 5, 0], [2, 0, 0]])
DURATIONS = [0, 1, 2]
REDUCTIONS = "mean_batch", "mean", "mean_volume", "sum", None
TARGET = "cupy_rnnt.integrations.nemo.RNNTJoint"


class NoRates:
    """A word error rate that nobody asks for."""


class Rates:
    """A word error rate that keeps what it is asked for."""

    _to_sync = True

    def __init__(self):
        self.calls = []

    def update(self, **named):
        for name, axis in ("predictions", 1), ("targets", 0):  # without padding
            pairs = zip(named[name], named[f"{name}_lengths"], strict=True)
            named[name] = [x.narrow(axis, 0, int(n)) for x, n in pairs]
        self.calls.append(named)

    def get_hypotheses(self):
        return ["a", "b"]

    def compute(self):
        return torch.tensor(0.5), torch.tensor(1), torch.tensor(2)

    def reset(self):
        pass


def made(loss_name="warprnnt_numba", reduction="mean_batch", kind=RNNTJoint, **loss_kwargs):
    torch.manual_seed(0)
    options = loss_kwargs.pop("jointnet", {})
    extra = len(loss_kwargs.get("durations", loss_kwargs.get("big_blank_durations", [])))
    joint = kind(
        {
            "encoder_hidden": 5,
            "pred_hidden": 4,
            "joint_hidden": HIDDEN,
            "activation": "relu",
            **options,
        },
        TOKENS,
        num_extra_outputs=extra,
        fuse_loss_wer=True,
        fused_batch_size=2,
    )
    blank = TOKENS + extra * (loss_name[0] == "m")
    joint.set_loss(RNNTLoss(blank, reduction, loss_name, loss_kwargs))
    joint.set_wer(NoRates())
    return joint


def inputs():
    torch.manual_seed(1)
    encoder, decoder = torch.randn(3, 5, 6), torch.randn(3, 4, 4)
    return encoder.requires_grad_(), decoder.requires_grad_()


def batch():
    encoder, decoder = inputs()
    return {
        "encoder_outputs": encoder,
        "decoder_outputs": decoder,
        "encoder_lengths": FRAMES,
        "transcripts": TARGETS,
        "transcript_lengths": LABELS,
    }


def of(joint, **named):
    """Loss and gradients of a joint network."""
    arguments = batch() | named
    loss, *_ = joint(**arguments)
    variables = arguments["encoder_outputs"], arguments["decoder_outputs"], *joint.parameters()
    return loss, torch.autograd.grad(loss.sum(), variables)


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rnnt(reduction, activation):
    options = {"reduction": reduction, "jointnet": {"activation": activation}}
    assert_same(of(made(**options)), of(made(kind=OwnJoint, **options)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tdt(monkeypatch, reduction):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    options = {"durations": DURATIONS, "sigma": 0.05, "reduction": reduction}
    assert_same(
        of(made("tdt_pytorch", **options)), of(made("tdt_pytorch", kind=OwnJoint, **options))
    )


def test_fastemit_has_the_gradient_of_nemo():
    """And the cost without FastEmit, where NeMo's is multiplied."""
    expected = of(made(kind=OwnJoint, fastemit_lambda=0.25))
    assert_same(of(made(fastemit_lambda=0.25)), (expected[0] / 1.25, expected[1]))


def written_out(joint, **options):
    """The loss of logits that the joint network forms itself, before any normalisation."""
    joint.log_softmax = False
    encoder, decoder = inputs()
    logits = joint.joint(encoder.transpose(1, 2), decoder.transpose(1, 2))
    loss = cupy_rnnt.torch.rnnt_loss(logits, TARGETS, FRAMES, LABELS, TOKENS, **options)
    return loss, torch.autograd.grad(loss, (encoder, decoder, *joint.parameters()))


def test_clamp():
    """As on CUDA, each element of the gradient of a cost with respect to logits."""
    expected = written_out(made(), clamp=0.1)
    assert_same(of(made(clamp=0.1, reduction="mean_batch")), expected)


def test_tdt_with_fastemit_and_clamp():
    options = {"fastemit_lambda": 0.1, "clamp": 0.2}
    joint = made("tdt", durations=DURATIONS, sigma=0.05, omega=0.0, **options)
    expected = written_out(joint, transducer=cupy_rnnt.tdt(DURATIONS, 0.05), **options)
    assert_same(of(joint), expected)


def test_omega_takes_the_loss_of_tokens():
    joint = made("tdt", durations=DURATIONS, sigma=0.05, omega=1.0)
    encoder, decoder = inputs()
    joint.log_softmax = False
    logits = joint.joint(encoder.transpose(1, 2), decoder.transpose(1, 2))[..., : TOKENS + 1]
    expected = RNNTLoss(TOKENS, loss_name="pytorch")(
        log_probs=logits, targets=TARGETS, input_lengths=FRAMES, target_lengths=LABELS
    )
    torch.testing.assert_close(of(joint)[0], expected)


def test_multi_blank():
    joint = made("multiblank_rnnt", big_blank_durations=[2, 4], sigma=0.05)
    joint.log_softmax = False
    encoder, decoder = inputs()
    logits = joint.joint(encoder.transpose(1, 2), decoder.transpose(1, 2))
    expected = cupy_rnnt.torch.rnnt_loss(
        logits, TARGETS, FRAMES, LABELS, transducer=cupy_rnnt.multi_blank((2, 4), 0.05)
    )
    torch.testing.assert_close(of(joint)[0], expected)


def test_dropout():
    """Another seed for each step of training, from PyTorch's; none in evaluation."""
    arguments, jointnet = batch(), {"dropout": 0.3}
    means, variances = [], []
    for joint in made(jointnet=jointnet), made(kind=OwnJoint, jointnet=jointnet):
        with torch.no_grad():
            torch.manual_seed(3)
            losses = torch.stack([joint(**arguments)[0] for _ in range(400)])
            torch.manual_seed(3)
            assert joint(**arguments)[0] == losses[0]
        means.append(losses.mean())
        variances.append(losses.var() / len(losses))
    assert min(variances) > 0
    assert abs(means[0] - means[1]) < 4 * sum(variances).sqrt()
    expected = of(made(kind=OwnJoint, jointnet=jointnet).eval())
    assert_same(of(made(jointnet=jointnet).eval()), expected)


def test_rates_are_asked_for_as_before():
    results = []
    for kind in RNNTJoint, OwnJoint:
        joint = made(kind=kind)
        joint.set_wer(Rates())
        found = joint(**batch(), compute_wer=True, keep_hypotheses=True)
        assert joint.get_hypotheses() == ["a", "b"] * 2
        results.append((found, joint.wer.calls))
    (found, *calls), (expected, *expected_calls) = results
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(calls, expected_calls, rtol=0, atol=0)


def test_without_a_decoder_or_fusion_it_is_nemos_own():
    joint, own = made(), made(kind=OwnJoint)
    joint.set_wer(Rates())
    assert joint(**batch() | {"decoder_outputs": None}, compute_wer=True)[0] is None
    for module in joint, own:
        module.set_fuse_loss_wer(False)
    encoder, decoder = inputs()
    expected = own(encoder_outputs=encoder, decoder_outputs=decoder)
    assert torch.equal(joint(encoder_outputs=encoder, decoder_outputs=decoder), expected)
    assert list(joint.state_dict()) == list(own.state_dict())
    joint.set_fuse_loss_wer(True)
    with pytest.raises(ValueError, match="`loss` and `wer` modules were not provided"):
        joint(**batch())


def test_empty_transcripts_and_padding():
    """Transcripts may be padded more than needed, and NeMo's mean of such a batch is inf."""
    joint = made(reduction="mean")
    lengths = torch.tensor([2, 0, 1])
    loss, _ = of(joint, transcript_lengths=lengths)
    joint.loss.reduction = None
    costs, _ = of(joint, transcript_lengths=lengths)
    torch.testing.assert_close(loss, (costs / lengths.clamp(min=1)).mean())
    assert of(joint, transcript_lengths=torch.zeros_like(lengths))[0].isfinite().all()


def test_an_utterance_without_a_path():
    """TDT without the duration 0 has no path for more labels than frames."""
    joint = made("tdt_pytorch", durations=[1, 2], reduction=None)
    costs, gradients = of(joint, encoder_lengths=torch.tensor([2, 5, 4]))
    assert costs.isinf().tolist() == [True, False, False]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_what_is_refused():
    joint = made()
    with pytest.raises(ValueError, match="predictor_out has shape"):
        of(joint, decoder_outputs=torch.zeros(3, 4, 3))
    with pytest.raises(ValueError, match=r"targets\[0, 0\] is 7"):
        of(joint, transcripts=TARGETS + TOKENS)
    joint.temperature = 2.0
    with pytest.raises(ValueError, match="adapters, a masking_prob or a temperature"):
        of(joint)
    joint.temperature = 1.0
    joint.loss._loss = torch.nn.Identity()
    with pytest.raises(TypeError, match="the loss is a Identity, but one of RNNTLossNumba"):
        of(joint)


def config():
    return OmegaConf.create(
        {
            "labels": list("abcde "),
            "sample_rate": 16000,
            "model_defaults": {"enc_hidden": 8, "pred_hidden": 8},
            "preprocessor": {
                "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                "features": 16,
            },
            "encoder": {
                "_target_": "nemo.collections.asr.modules.ConformerEncoder",
                "feat_in": 16,
                "n_layers": 1,
                "d_model": 8,
                "n_heads": 2,
                "subsampling": "striding",
                "subsampling_conv_channels": 8,
            },
            "decoder": {
                "_target_": "nemo.collections.asr.modules.RNNTDecoder",
                "prednet": {"pred_hidden": 8, "pred_rnn_layers": 1},
            },
            "joint": {
                "_target_": TARGET,
                "fuse_loss_wer": True,
                "fused_batch_size": 2,
                "jointnet": {"joint_hidden": 8, "activation": "relu", "dropout": 0.0},
            },
            "decoding": {"strategy": "greedy", "greedy": {"max_symbols": 3}},
            "loss": {"loss_name": "warprnnt_numba"},
            "optim": {"name": "adamw", "lr": 0.001},
        }
    )


def test_a_model(monkeypatch):
    """From its configuration; with another vocabulary; with the parameters of NeMo's own."""
    own = config()
    own.joint._target_ = "nemo.collections.asr.modules.RNNTJoint"
    own = EncDecRNNTModel(own).eval()
    with pytest.raises(ValueError, match="target"):
        EncDecRNNTModel(config())
    allowed = [*common.ALLOWED_TARGET_PREFIXES, "cupy_rnnt.integrations.nemo."]
    monkeypatch.setattr(common, "ALLOWED_TARGET_PREFIXES", allowed)
    model = EncDecRNNTModel(config()).eval()
    model.load_state_dict(own.state_dict())
    audio = {
        "input_signal": torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)),
        "input_signal_length": torch.tensor([16000, 12000]),
    }
    encoded, frames = own(**audio)
    text, counts = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([3, 2])

    def evaluated(model):
        decoded, *_ = model.decoder(targets=text, target_length=counts)
        return model.joint(
            encoder_outputs=encoded,
            decoder_outputs=decoded,
            encoder_lengths=frames,
            transcripts=text,
            transcript_lengths=counts,
            compute_wer=True,
        )

    torch.testing.assert_close(evaluated(model), evaluated(own))
    model.change_vocabulary(list("xyz"))
    assert type(model.joint) is RNNTJoint
    loss, *_ = evaluated(model)
    loss.backward()
    assert model.joint.joint_net[-1].weight.grad.shape == (4, 8)
