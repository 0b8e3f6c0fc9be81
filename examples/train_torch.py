"""A transducer in PyTorch, whose joint network and loss are one module, `JointRNNTLoss`.

    python examples/train_torch.py

The data are made up: a sentence is a few symbols, each of which sounds for two to five frames, in
noise. The model is as small as it can be: a window of frames, and the last symbol.
"""

import numpy as np
import torch
from torch import nn

from cupy_rnnt.torch import JointRNNTLoss

BLANK, SYMBOLS, MOST, SIZE, HIDDEN, STEPS, RATE = 0, 8, 6, 16, 32, 300, 1e-2


def batch(rng):
    """Frames (B, T, SYMBOLS), padded targets (B, U), and the lengths of both."""
    lengths = rng.integers(2, MOST + 1, SIZE)
    targets = rng.integers(1, SYMBOLS, (SIZE, MOST))
    frames = rng.normal(scale=0.3, size=(SIZE, 5 * MOST, SYMBOLS))
    ends = np.cumsum(rng.integers(2, 6, (SIZE, MOST)), axis=1)
    for b, u in np.ndindex(SIZE, MOST):
        frames[b, ends[b, u - 1] if u else 0 : ends[b, u], targets[b, u]] += 1
    last = ends[np.arange(SIZE), lengths - 1]
    return map(torch.from_numpy, (frames.astype(np.float32), targets, last, lengths))


class Transducer(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv1d(SYMBOLS, HIDDEN, 3, padding=1)
        self.predictor = nn.Embedding(SYMBOLS, HIDDEN)
        self.output = nn.Linear(HIDDEN, SYMBOLS)
        self.loss = JointRNNTLoss(BLANK, output=self.output)

    def forward(self, frames, targets, frame_counts, target_counts):
        encoder_out = self.encoder(frames.mT).mT
        predictor_out = self.predictor(nn.functional.pad(targets, (1, 0), value=BLANK))
        # What a recipe has had here, with its (B, T, U + 1, V) logits:
        #   hidden = torch.tanh(encoder_out[:, :, None] + predictor_out[:, None])
        #   logits = self.output(hidden)
        #   return rnnt_loss(logits, targets.int(), frame_counts.int(), target_counts.int(), BLANK)
        return self.loss(encoder_out, predictor_out, targets, frame_counts, target_counts)


def main():
    torch.manual_seed(0)
    rng, model, costs = np.random.default_rng(0), Transducer(), []
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for count in range(1, STEPS + 1):
        cost = model(*batch(rng))
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
        if count % 50 == 0:
            print(f"step {count:4d}  cost {np.mean(costs[-50:]):7.3f} nats a sentence")
    return costs


if __name__ == "__main__":
    main()
