"""The loss for icefall in a stand-in of the interface of its models, beside the textbook.

icefall is no package, and k2 is compiled for each PyTorch. Names, arguments and shapes below are
those of ``egs/librispeech/ASR/zipformer`` (``model.py``, ``joiner.py`` and ``decoder.py``) and of
``k2.RaggedTensor``. The file needs no toolkit::

    python -m pytest tests/integrations/check_icefall.py
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cupy_rnnt import reference
from cupy_rnnt.integrations.icefall import forward_transducer

BLANK, SYMBOLS = 0, 6
LABELS = [[1, 2, 3], [4, 5], [2]]
FRAMES = torch.tensor([6, 5, 3])


class RaggedTensor:
    """What a model uses of k2's: two axes and padding."""

    def __init__(self, values):
        self.values = values

    def pad(self, mode, padding_value):
        assert mode == "constant"
        rows = [torch.tensor(row, dtype=torch.int32) for row in self.values]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding_value)


class Joiner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder_proj = torch.nn.Linear(5, 8)
        self.decoder_proj = torch.nn.Linear(4, 8)
        self.output_linear = torch.nn.Linear(8, SYMBOLS)

    def forward(self, encoder_out, decoder_out):
        return self.output_linear(
            torch.tanh(self.encoder_proj(encoder_out) + self.decoder_proj(decoder_out))
        )


class Decoder(torch.nn.Module):
    """Embeds two symbols, the last ones."""

    blank_id = BLANK

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(SYMBOLS, 4)
        self.conv = torch.nn.Conv1d(4, 4, 2)

    def forward(self, y):
        embedded = torch.nn.functional.pad(self.embedding(y).transpose(1, 2), (1, 0))
        return torch.relu(self.conv(embedded)).transpose(1, 2)


class AsrModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder, self.joiner = Decoder(), Joiner()
        self.simple_am_proj = torch.nn.Linear(5, SYMBOLS)
        self.simple_lm_proj = torch.nn.Linear(4, SYMBOLS)

    forward_transducer = forward_transducer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AsrModel().double()


def encoder_out():
    generator = torch.Generator().manual_seed(1)
    encoded = torch.randn(3, 6, 5, dtype=torch.float64, generator=generator)
    return encoded.requires_grad_()


def counts(labels):
    return torch.tensor([len(row) for row in labels])


def written_out(model, encoded, labels=LABELS, **options):
    """The textbook's loss of the joiner's logits, and gradients of the inputs and parameters."""
    width = max(len(row) for row in labels)
    padded = np.array([[*row, *[BLANK] * (width - len(row))] for row in labels], dtype=np.int64)
    started = np.pad(padded, ((0, 0), (1, 0)), constant_values=BLANK)
    decoder_out = model.decoder(torch.from_numpy(started))
    logits = model.joiner(encoded.unsqueeze(2), decoder_out.unsqueeze(1))
    lengths = FRAMES.numpy(), counts(labels).numpy()
    loss, gradient = reference.rnnt_loss_and_grad(
        logits.detach().numpy(), padded, *lengths, BLANK, reduction="sum", **options
    )
    trained = encoded, *model.decoder.parameters(), *model.joiner.parameters()
    return loss, torch.autograd.grad(logits, trained, torch.from_numpy(gradient))


def ragged(labels):
    return RaggedTensor(labels)


def padded(labels):
    """With something else than the blank where nothing is."""
    rows = [torch.tensor(row, dtype=torch.int64) for row in labels]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


@pytest.mark.parametrize("kind", [ragged, padded])
@pytest.mark.parametrize("labels", [LABELS, [[1, 2], [], [3]], [[], [], []]])
def test_loss_and_gradients_are_those_of_the_textbook(model, kind, labels):
    encoded = encoder_out()
    simple, loss = model.forward_transducer(
        encoder_out=encoded,
        encoder_out_lens=FRAMES,
        y=kind(labels),
        y_lens=counts(labels),
        prune_range=5,
        am_scale=0.0,
        lm_scale=0.25,
    )
    expected, gradients = written_out(model, encoded, labels)
    assert simple == 0
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    trained = encoded, *model.decoder.parameters(), *model.joiner.parameters()
    torch.testing.assert_close(torch.autograd.grad(loss, trained), gradients)


@pytest.mark.parametrize("options", [{"transducer": "modified"}, {"delay_penalty": 0.1}])
def test_options_of_k2(model, options):
    arguments = encoder_out(), FRAMES, ragged(LABELS), counts(LABELS)
    _, loss = model.forward_transducer(*arguments, **options)
    expected, _ = written_out(model, arguments[0], **options)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_every_parameter_has_a_gradient(model):
    """As distributed training wants; those of the projections of the simple loss are 0."""
    simple, loss = model.forward_transducer(encoder_out(), FRAMES, ragged(LABELS), counts(LABELS))
    (0.5 * simple + loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.simple_am_proj.weight.grad.any()
    assert not model.simple_lm_proj.bias.grad.any()
    del model.simple_am_proj, model.simple_lm_proj
    again = model.forward_transducer(encoder_out(), FRAMES, ragged(LABELS), counts(LABELS))
    assert again == (simple, loss)


def test_an_utterance_without_a_path(model):
    """One frame is too short for three labels, if each takes one."""
    arguments = encoder_out(), torch.tensor([1, 5, 3]), ragged(LABELS), counts(LABELS)
    assert model.forward_transducer(*arguments, transducer="modified")[1].isinf()
    _, loss = model.forward_transducer(*arguments, transducer="modified", zero_infinity=True)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in model.joiner.parameters())


def test_what_is_refused(model):
    with pytest.raises(ValueError, match=r"target_lengths\[0\] is 4, but"):
        model.forward_transducer(encoder_out(), FRAMES, ragged(LABELS), counts(LABELS) + 1)
    with pytest.raises(ValueError, match=r"logit_lengths\[0\] is 7, but"):
        model.forward_transducer(encoder_out(), FRAMES + 1, ragged(LABELS), counts(LABELS))
    model.decoder.embedding = torch.nn.Embedding(9, 4).double()
    with pytest.raises(ValueError, match=r"targets\[0, 0\] is 6, but"):
        model.forward_transducer(encoder_out(), FRAMES, ragged([[6], [1], [2]]), FRAMES // FRAMES)
    model.joiner.output_linear = torch.nn.Sequential(model.joiner.output_linear)
    with pytest.raises(TypeError, match=r"joiner.output_linear is a Sequential"):
        model.forward_transducer(encoder_out(), FRAMES, padded(LABELS), counts(LABELS))
