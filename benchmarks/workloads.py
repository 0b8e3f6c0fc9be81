"""Joint networks to measure on: fresh ones (random inputs) and those of real speech.

The latter are the joints of small transducers (H = 256, tanh, blank 0) at several stages of their
training, with real utterances; see benchmarks/data/README.rst. Inert units pad them to the
vocabulary and the hidden size of a workload: extra hidden units have zero weight to the real
outputs, extra outputs small weights and a bias of -6, so that posteriors stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import costs
import numpy as np

from cupy_rnnt import Info, cli

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

    def operations(self, info: Info) -> list[costs.Operation]:
        """Of loss and gradients, with as many cells computed and kept as a call says."""
        batch = costs.Batch.of(self.logit_lengths, self.target_lengths + 1)
        computed, kept = info.computed / info.cells, info.kept / info.cells
        return costs.engine(batch, *self.weight.shape, computed, kept, selects=computed < 1)

    def first(self, size: int) -> Joint:
        """The first samples of the batch."""
        enc, pred, weight, bias, *lattice, blank = self
        return Joint(enc[:size], pred[:size], weight, bias, *(a[:size] for a in lattice), blank)

    def astype(self, dtype) -> Joint:
        return Joint(*(array.astype(dtype) for array in self[:4]), *self[4:])


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


def _utterance(stored: Any, names: str | tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Encoder and predictor outputs and labels of an utterance, or of several, end to end.

    Where an utterance meets the next one, the predictor starts anew.
    """
    names = (names,) if isinstance(names, str) else names
    predictor = [stored[f"pred{i}"] for i in names]
    return (
        np.concatenate([stored[f"enc{i}"] for i in names]),
        np.concatenate([*(rows[:-1] for rows in predictor[:-1]), predictor[-1]]),
        np.concatenate([stored[f"y{i}"] for i in names]),
    )


def speech(
    dump: str,
    utterances: Sequence[str | tuple[str, ...]],
    vocabulary: int | None = None,
    hidden: int | None = None,
    seed: int = 0,
) -> Joint:
    """Utterances, by name, of ``benchmarks/data/speech_DUMP.npz``; padded to no more than the joint
    has if no sizes are given. A tuple of names is the utterances end to end."""
    rng = np.random.default_rng(seed)
    with np.load(DATA / f"speech_{dump}.npz") as stored:
        encoder, predictor, labels = zip(*(_utterance(stored, i) for i in utterances), strict=True)
        real_weight, real_bias = stored["W"], stored["b"]
    real_vocabulary, real_hidden = real_weight.shape
    vocabulary, hidden = vocabulary or real_vocabulary, hidden or real_hidden
    weight = 0.02 * rng.standard_normal((vocabulary, hidden), dtype=np.float32)
    weight[:real_vocabulary] = 0.0
    weight[:real_vocabulary, :real_hidden] = real_weight
    bias = np.full(vocabulary, -6.0, np.float32)
    bias[:real_vocabulary] = real_bias

    def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
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
    frames, labels = cli.librispeech_lengths(8)
    return fresh(frames, labels, 500, 512)


_EIGHT = ["0", "1", "2", "3", "4", "0", "1", "2"]

WORKLOADS = {
    "libri8 fresh": _libri8,
    "v1024 fresh": lambda: fresh([200] * 8, [50] * 8, 1024, 512),
    "v4096 fresh": lambda: fresh([250] * 2, [60] * 2, 4096, 640),
    "libri8 trained": lambda: speech("trained", _EIGHT, 500, 512),
    "v1024 trained": lambda: speech("trained", _EIGHT, 1024, 512),
    "v4096 trained": lambda: speech("trained", _EIGHT[:2], 4096, 640),
    "long trained": lambda: speech("trained", ["long0"], 1024, 512),
}
# More stages of training, and small vocabularies.
SELECTION_WORKLOADS = WORKLOADS | {
    "v1024 untrained": lambda: speech("untrained", ["0", "1"] * 4, 1024, 512),
    "v1024 half trained": lambda: speech("half_trained", (["0", "1", "2"] * 3)[:8], 1024, 512),
    "v300 trained": lambda: speech("trained", _EIGHT),
    "char trained": lambda: speech("char_trained", ["0", "1", "2"] * 3),
}
