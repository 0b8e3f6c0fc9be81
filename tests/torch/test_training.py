"""A tiny model, trained with the PyTorch adapter, learns to transcribe synthetic speech."""

from __future__ import annotations

import numpy as np
import pytest

from .cases import F, adapter, torch

pytestmark = pytest.mark.slow


class Transducer(torch.nn.Module):
    """Two layers over the frames, an embedding of the last label, a joint network. Blank is 0."""

    def __init__(self, features, hidden, vocabulary):
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(features, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, hidden)
        )
        self.predictor = torch.nn.Embedding(vocabulary, hidden)
        self.output = torch.nn.Linear(hidden, vocabulary)
        self.loss = adapter.JointRNNTLoss(blank=0)

    def forward(self, frames, targets, frame_counts, label_counts):
        history = F.pad(targets, (1, 0))
        return self.loss(
            self.encoder(frames),
            self.predictor(history),
            self.output.weight,
            self.output.bias,
            targets,
            frame_counts,
            label_counts,
        )

    def greedy(self, frames):
        labels = [0]
        for frame in self.encoder(frames):
            for _ in range(3):  # labels a frame at most
                best = self.output((frame + self.predictor.weight[labels[-1]]).tanh()).argmax()
                if best == 0:
                    break
                labels.append(int(best))
        return labels[1:]


def synthetic_speech(rng, size, labels, vocabulary):
    """Each label sounds for one to three frames; no label follows itself."""
    sentences, recordings = [], []
    for count in rng.integers(1, labels + 1, size):
        sentence = [int(rng.integers(1, vocabulary))]
        while len(sentence) < count:
            sentence.append(
                int((sentence[-1] + rng.integers(1, vocabulary - 1) - 1) % (vocabulary - 1)) + 1
            )
        sentences.append(torch.tensor(sentence))
        sounds = np.repeat(np.eye(vocabulary)[sentence], rng.integers(1, 4, count), axis=0)
        sounds += 0.05 * rng.standard_normal(sounds.shape)
        recordings.append(torch.tensor(sounds, dtype=torch.float32))
    return recordings, sentences


def test_a_tiny_model_learns():
    torch.manual_seed(0)
    recordings, sentences = synthetic_speech(np.random.default_rng(0), 24, 6, 7)
    pad = torch.nn.utils.rnn.pad_sequence
    batch = (
        pad(recordings, batch_first=True),
        pad(sentences, batch_first=True),
        torch.tensor([len(frames) for frames in recordings]),
        torch.tensor([len(labels) for labels in sentences]),
    )
    model = Transducer(7, 32, 7)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
    with torch.no_grad():
        decoded = [model.greedy(frames) for frames in recordings]
    assert decoded == [labels.tolist() for labels in sentences]
