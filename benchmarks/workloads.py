"""Joint networks to measure on: fresh ones (random inputs) and one trained on real speech.

The trained joint is that of a small BPE transducer (V = 300, H = 256, tanh, blank 0) and its
utterances are real speech; see benchmarks/data/README.rst. Inert units pad it to the vocabulary and
the hidden size of a workload: extra hidden units have zero weight to the real outputs, extra
outputs small weights and a bias of -6, so that posteriors stay those of a trained model.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import cupy_rnnt.__main__ as command

DATA = Path(__file__).parent / "data"


class Joint(NamedTuple):
    """Arguments of ``joint_rnnt_loss``, in order, up to ``blank``."""

    encoder_out: np.ndarray
    predictor_out: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    targets: np.ndarray
    logit_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int = 0

    @property
    def cells(self) -> int:
        return int((self.logit_lengths * (self.target_lengths + 1)).sum())


def fresh(logit_lengths, target_lengths, vocabulary: int, hidden: int, seed: int = 0) -> Joint:
    """Random inputs: N(0, 1) encoder and predictor outputs, N(0, 0.1) output layer."""
    rng = np.random.default_rng(seed)
    logit_lengths, target_lengths = np.asarray(logit_lengths), np.asarray(target_lengths)
    size, frames, labels = len(logit_lengths), logit_lengths.max(), target_lengths.max()
    return Joint(
        rng.standard_normal((size, frames, hidden), dtype=np.float32),
        rng.standard_normal((size, labels + 1, hidden), dtype=np.float32),
        0.1 * rng.standard_normal((vocabulary, hidden), dtype=np.float32),
        0.1 * rng.standard_normal(vocabulary, dtype=np.float32),
        rng.integers(1, vocabulary, (size, labels)),
        logit_lengths,
        target_lengths,
    )


def trained(utterances, vocabulary: int, hidden: int, seed: int = 0) -> Joint:
    """Utterances by name ("0" to "4", of about 14 s, and "long0", of 40 s)."""
    rng = np.random.default_rng(seed)
    with np.load(DATA / "speech_trained.npz") as stored:
        encoder = [stored[f"enc{i}"] for i in utterances]
        predictor = [stored[f"pred{i}"] for i in utterances]
        labels = [stored[f"y{i}"] for i in utterances]
        real_weight, real_bias = stored["W"], stored["b"]
    real_vocabulary, real_hidden = real_weight.shape
    weight = 0.02 * rng.standard_normal((vocabulary, hidden), dtype=np.float32)
    weight[:real_vocabulary] = 0.0
    weight[:real_vocabulary, :real_hidden] = real_weight
    bias = np.full(vocabulary, -6.0, np.float32)
    bias[:real_vocabulary] = real_bias

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        out = np.zeros((len(rows), max(map(len, rows)), hidden), np.float32)
        for i, row in enumerate(rows):
            out[i, : len(row), :real_hidden] = row
            extra = (len(row), hidden - real_hidden)
            out[i, : len(row), real_hidden:] = rng.standard_normal(extra, dtype=np.float32)
        return out

    targets = np.zeros((len(labels), max(map(len, labels))), np.int64)
    for i, row in enumerate(labels):
        targets[i, : len(row)] = row
    return Joint(
        padded(encoder),
        padded(predictor),
        weight,
        bias,
        targets,
        np.array([len(row) for row in encoder]),
        np.array([len(row) for row in labels]),
    )


def _libri8() -> Joint:
    frames, labels = command.librispeech_lengths(8)
    return fresh(frames, labels, 500, 512)


_FIVE = ["0", "1", "2", "3", "4"]
_EIGHT = ["0", "1", "2", "3", "4", "0", "1", "2"]

WORKLOADS = {
    "libri8 fresh": _libri8,
    "v1024 fresh": lambda: fresh([200] * 8, [50] * 8, 1024, 512),
    "v4096 fresh": lambda: fresh([250] * 2, [60] * 2, 4096, 640),
    "libri8 trained": lambda: trained(_EIGHT, 500, 512),
    "v1024 trained": lambda: trained(_EIGHT, 1024, 512),
    "v4096 trained": lambda: trained(_FIVE[:2], 4096, 640),
    "long trained": lambda: trained(["long0"], 1024, 512),
}
