"""Transducers of transformers, patched, beside what they compute themselves.

No part of the tests that plain ``pytest`` runs, as transformers must be installed::

    python -m pytest tests/integrations/check_transformers.py
"""

from __future__ import annotations

import copy
import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers

import cupy_rnnt.torch
from cupy_rnnt import reference
from cupy_rnnt.integrations.transformers import MODELS, REDUCTIONS, patch, unpatch

BLANK, PAD = 20, 2
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 8,
    "conv_kernel_size": 5,
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "layerdrop"), 0.0),
    "dropout_positions": 0.0,
}
CONFIGS = {
    "ParakeetForRNNT": "ParakeetRNNTConfig",
    "ParakeetForTDT": "ParakeetTDTConfig",
    "NemotronAsrStreamingForRNNT": "NemotronAsrStreamingConfig",
    "Nemotron3_5AsrForRNNT": "Nemotron3_5AsrConfig",
}
WITH_LOSS = "ParakeetForRNNT", "ParakeetForTDT"
every_model = pytest.mark.parametrize("name", MODELS)
models_with_a_loss = pytest.mark.parametrize("name", WITH_LOSS)


def made(name, **changes):
    """A tiny model of random weights."""
    torch.manual_seed(0)
    options = {
        "vocab_size": BLANK + 1,
        "decoder_hidden_size": 24,
        "num_decoder_layers": 1,
        "blank_token_id": BLANK,
        "pad_token_id": PAD,
        "encoder_config": ENCODER,
    }
    config = getattr(transformers, CONFIGS[name])(**options | changes)
    return getattr(transformers, name)(config)


def batch(name):
    """Three utterances; the padding of labels is that of the model."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 96, 16, generator=generator)
    mask = torch.ones(3, 96, dtype=torch.long)
    mask[1, 70:] = 0
    pad = BLANK if name == "ParakeetForRNNT" else PAD
    labels = torch.tensor([[3, 4, 5, 6], [7, 8, pad, pad], [9, pad, pad, pad]])
    ids = torch.cat([torch.full((3, 1), BLANK), labels], dim=1)
    return {
        "input_features": features,
        "attention_mask": mask,
        "decoder_input_ids": ids,
        "labels": labels,
    }


@pytest.fixture
def torchaudio(monkeypatch):
    """The loss of logits under the name that transformers asks for: the reference's values, with
    the gradient of this package."""

    def rnnt_loss(logits, targets, logit_lengths, target_lengths, blank, reduction):
        arguments = targets, logit_lengths, target_lengths, blank
        costs = cupy_rnnt.torch.rnnt_loss(logits, *arguments, reduction=reduction)
        expected = reference.rnnt_loss(
            logits.detach().numpy(), *(x.numpy() for x in arguments[:3]), blank, reduction="none"
        )
        torch.testing.assert_close(costs.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
        return costs

    module = ModuleType("torchaudio")
    module.functional = SimpleNamespace(rnnt_loss=rnnt_loss)
    module.__spec__ = SimpleNamespace(name="torchaudio")
    monkeypatch.setitem(sys.modules, "torchaudio", module)
    for loaded in list(sys.modules.values()):
        if getattr(loaded, "__name__", "") == "transformers.utils.import_utils":
            monkeypatch.setattr(loaded, "is_torchaudio_available", lambda: True)
            mapping = loaded.BACKENDS_MAPPING
            monkeypatch.setitem(mapping, "torchaudio", (lambda: True, "{0}"))


def loss_and_gradients(model, **arguments):
    model.zero_grad()
    output = model(**arguments)
    output.loss.sum().backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close(actual, expected, scale=None, units=64):
    """To some roundings of the largest element, or of a scale."""
    scale = expected.abs().max() if scale is None else scale
    bound = units * torch.finfo(torch.float32).eps * float(torch.as_tensor(scale).detach())
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


@models_with_a_loss
@pytest.mark.parametrize("reduction", [None, *REDUCTIONS])
def test_loss_and_gradients_are_those_of_the_model(torchaudio, name, reduction):
    """Gradients that vanish in exact arithmetic, such as those in front of a normalisation, are
    rounding on either side: so the largest of all parameters says how exact they are."""
    model, arguments = made(name).eval(), batch(name)
    if reduction is not None:
        arguments["reduction"] = reduction
    expected, gradients = loss_and_gradients(model, **arguments)
    output, found = loss_and_gradients(patch(model), **arguments)
    assert output.logits is None
    assert_close(output.loss, expected.loss)
    assert_close(output.pooler_output, expected.pooler_output, units=0)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, gradient in gradients.items():
        assert_close(found[key], gradient, largest, units=512)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in WITH_LOSS])
def test_models_without_a_loss_get_one(name):
    """Of their logits, by the reference; there labels may end in the padding of the tokenizer."""
    model, arguments = made(name).eval(), batch(name)
    logits = model(**{k: v for k, v in arguments.items() if k != "labels"}).logits
    frames = model.get_audio_features(
        arguments["input_features"], arguments["attention_mask"]
    ).attention_mask.sum(-1)
    costs = reference.rnnt_loss(
        *(logits.detach().numpy(), arguments["labels"].numpy(), frames.numpy(), [4, 2, 1]),
        BLANK,
        reduction="none",
    )
    patch(model)
    found = model(**arguments, reduction="none") if "reduction" in parameters(model) else None
    loss = model(**arguments).loss
    assert loss.item() == pytest.approx(costs.sum() / 7, rel=1e-5)
    assert found is None or found.loss.shape == (3,)
    loss.backward()
    assert all(p.grad is not None for p in model.joint.parameters())


def parameters(model):
    return inspect.signature(model.forward).parameters


@every_model
def test_without_labels_nothing_changes(name):
    model, arguments = made(name).eval(), batch(name)
    del arguments["labels"]
    expected = model(**arguments).logits
    names, signature = list(model.state_dict()), inspect.signature(model.forward)
    patch(model)
    assert torch.equal(model(**arguments).logits, expected)
    assert list(model.state_dict()) == names
    assert inspect.signature(model.forward) == signature


@every_model
def test_it_is_undone(torchaudio, name):
    model, arguments = made(name), batch(name)
    before = [dict(vars(module)) for module in (model, model.joint)]
    patch(patch(model, reduction="sum"))
    model(**arguments)
    assert vars(model.joint).keys() == before[1].keys()
    assert unpatch(unpatch(model)) is model
    assert [vars(module).keys() for module in (model, model.joint)] == [b.keys() for b in before]
    if name in WITH_LOSS:
        assert model(**arguments).logits is not None


@every_model
def test_what_may_be_left_out(name):
    """Inputs of the decoder follow from the labels, and the mask takes all frames."""
    model, arguments = patch(made(name).eval()), batch(name)
    arguments["attention_mask"] = torch.ones_like(arguments["attention_mask"])
    expected = model(**arguments).loss
    labels = arguments["labels"].masked_fill(arguments["decoder_input_ids"][:, 1:] < 3, -100)
    labels = labels.masked_fill(labels == BLANK, -100)
    found = model(arguments["input_features"], labels=labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@models_with_a_loss
def test_autocast_and_gradient_checkpointing(torchaudio, name):
    model, arguments = made(name), batch(name)
    # oneDNN has no LSTM of bfloat16 for CPUs without AVX-512.
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        expected, _ = loss_and_gradients(model, **arguments)
        patch(model)
        model.gradient_checkpointing_enable()
        output, found = loss_and_gradients(model.train(), **arguments)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss.float(), rtol=0.02, atol=0)
    assert all(gradient.isfinite().all() for gradient in found.values())


@every_model
def test_a_trainer_saves_and_loads(name, tmp_path):
    model = patch(made(name), max_workspace_bytes=2**27)
    dataset = [{k: v[i] for k, v in batch(name).items()} for i in range(3)] * 4
    options = transformers.TrainingArguments(
        str(tmp_path / "trained"),
        max_steps=4,
        per_device_train_batch_size=3,
        learning_rate=3e-3,
        report_to=[],
        logging_steps=1,
        use_cpu=True,
        save_strategy="no",
    )
    trainer = transformers.Trainer(model, options, train_dataset=dataset)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    arguments = batch(name)
    expected = patch(again)(**arguments).loss
    torch.testing.assert_close(model.eval()(**arguments).loss, expected)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(**arguments).loss, expected)


def test_an_utterance_without_a_path_or_without_labels():
    """TDT without the duration 0 has no path for more labels than frames."""
    model, arguments = made("ParakeetForTDT", durations=[1, 2]).eval(), batch("ParakeetForTDT")
    arguments["labels"] = torch.full((3, 20), PAD)
    arguments["labels"][0] = 5
    arguments["labels"][1, :2] = 5
    del arguments["decoder_input_ids"]
    patch(model, zero_infinity=True, reduction="none")
    costs = model(**arguments).loss
    assert costs[0] == 0
    assert costs[1:].isfinite().all()
    assert model(**arguments, reduction="mean").loss.isfinite()


def test_what_is_refused():
    encoder = transformers.ParakeetEncoder(transformers.ParakeetEncoderConfig(**ENCODER))
    with pytest.raises(TypeError, match="model is a ParakeetEncoder, but one of ParakeetForRNNT"):
        patch(encoder)
    model = made("ParakeetForTDT")
    with pytest.raises(ValueError, match="reduction is 'average', but one of mean_volume"):
        patch(model, reduction="average")
    with pytest.raises(TypeError, match="unexpected keyword argument 'fastemit'"):
        patch(model, fastemit=0.1)
    with pytest.raises(ValueError, match="hidden_act is 'gelu', but one of tanh"):
        patch(made("ParakeetForTDT", hidden_act="gelu"))
    arguments = batch("ParakeetForTDT")
    patch(model)
    with pytest.raises(ValueError, match="reduction is 'average'"):
        model(**arguments, reduction="average")
    arguments["decoder_input_ids"] = arguments["decoder_input_ids"][:, :-1]
    with pytest.raises(ValueError, match="predictor_out has shape"):
        model(**arguments)
    assert "forward" not in vars(model.joint)
    model.joint.head = torch.nn.Sequential(model.joint.head)
    with pytest.raises(TypeError, match=r"joint.head is a Sequential, but a torch.nn.Linear"):
        patch(model)
