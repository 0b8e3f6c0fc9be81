"""Train a tiny Parakeet-TDT of transformers on recorded speech, without its logits.

The recordings are those of ``train_speech.py``, whose head comment says where they come from:

    pip install ".[torch]" transformers matplotlib tqdm
    python examples/transformers_parakeet.py --data sounds

The model has random weights; with ``ParakeetForTDT.from_pretrained(...)`` the rest is the same. The
one line that this package needs is the call of ``patch``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from speech_data import ALPHABET, DEFAULT_DATA, MELS, Batch, DataSettings, load_prompts
from transformers import ParakeetForTDT, ParakeetTDTConfig

from cupy_rnnt.integrations.transformers import patch

BLANK = len(ALPHABET)  # behind the characters, of which the first is padding
SETTINGS = DataSettings(train_prompts=96, test_prompts=8, max_seconds=2.5, speeds=(1.0,))
BATCH, LEARNING_RATE = 16, 2e-3


def tiny_parakeet() -> ParakeetForTDT:
    """A frame every 80 ms, as in the models that NVIDIA has published."""
    encoder = {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "num_mel_bins": MELS,
        "subsampling_conv_channels": 32,
    }
    config = ParakeetTDTConfig(
        vocab_size=BLANK + 1,
        decoder_hidden_size=96,
        num_decoder_layers=1,
        blank_token_id=BLANK,
        pad_token_id=0,
        encoder_config=encoder,
    )
    return ParakeetForTDT(config)


def arguments(batch: Batch) -> dict[str, torch.Tensor]:
    """What the model takes; it makes the inputs of its decoder from the labels."""
    mask = torch.arange(batch.features.shape[1]) < batch.frames[:, None]
    return {"input_features": batch.features, "attention_mask": mask, "labels": batch.targets}


def main() -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    train, _ = load_prompts((options.data,) if options.data else DEFAULT_DATA, SETTINGS)
    model = patch(tiny_parakeet(), reduction="mean_volume")
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    losses = []
    for epoch in range(options.epochs):
        order = rng.permutation(len(train))
        costs = []
        for chosen in np.array_split(order, -(-len(order) // BATCH)):
            prompts = [train[i] for i in chosen]
            batch = Batch.of([p.recorded for p in prompts], [p.text for p in prompts])
            loss = model(**arguments(batch)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            costs.append(loss.item())
        losses.append(float(np.mean(costs)))
        print(f"epoch {epoch + 1:3d}  cost {losses[-1]:.3f} nats a character", flush=True)
    return losses


if __name__ == "__main__":
    main()
