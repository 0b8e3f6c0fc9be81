"""The TDT loss as PyTorch users write it: padded, held whole, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peers import IMPOSSIBLE, of_labels, skewed
from torch.nn.functional import linear, log_softmax, pad, relu


def costs_of_arcs(
    by_blank: list[torch.Tensor],
    by_label: list[torch.Tensor],
    durations: Sequence[int],
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """Cost of each sample from the (B, T, S) log-probabilities of arcs, of a blank with each
    duration above 0, and of a label with each duration; the forward recursion takes an
    anti-diagonal of the whole batch at a time."""
    waiting = [d for d in durations if d > 0]
    steps = [*waiting, *(d + 1 for d in durations)]  # in diagonals
    scores = torch.stack([*by_blank, *by_label], dim=1)
    size, arcs, _, columns = scores.shape
    diagonals = skewed(scores.flatten(0, 1)).unflatten(0, (size, arcs)).unbind(dim=2)
    alpha = scores.new_full((size, columns), IMPOSSIBLE)
    alpha[:, 0] = 0.0
    blanks, arriving = [], []  # of each diagonal: what its arcs of a blank hold, and of all arcs
    for n, of_arcs in enumerate(diagonals):
        if n:
            sources = [arriving[n - d][i] for i, d in enumerate(steps) if d <= n]
            alpha = torch.logsumexp(torch.stack(sources), dim=0)
        through = alpha[:, None] + of_arcs
        on_blank, on_label = through.split([len(waiting), len(durations)], dim=1)
        moved = pad(on_label[..., :-1], (1, 0), value=IMPOSSIBLE)
        blanks.append(on_blank)
        arriving.append([*on_blank.unbind(dim=1), *moved.unbind(dim=1)])
    sample, of_diagonals = torch.arange(size, device=scores.device), torch.stack(blanks)
    last = []
    for i, d in enumerate(waiting):  # arcs that lead to the end of the frames
        frame = logit_lengths - d
        held = of_diagonals[frame.clamp(min=0) + target_lengths, sample, i, target_lengths]
        last.append(held.masked_fill(frame < 0, IMPOSSIBLE))
    return -torch.logsumexp(torch.stack(last), dim=0)


def loss_of_logits(
    logits: torch.Tensor,
    targets: torch.Tensor,
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    durations: Sequence[int],
) -> torch.Tensor:
    """Mean cost; a row holds tokens, and then a logit for each duration."""
    count = len(durations)
    tokens = log_softmax(logits[..., :-count], dim=-1)
    of_durations = log_softmax(logits[..., -count:], dim=-1).unbind(dim=-1)
    label, on_blank = of_labels(tokens, targets), tokens[..., blank]
    waiting = [on_blank + x for d, x in zip(durations, of_durations, strict=True) if d > 0]
    emitting = [label + x for x in of_durations]
    return costs_of_arcs(waiting, emitting, durations, logit_lengths, target_lengths).mean()


def loss_of_joint(
    encoder_out: torch.Tensor,
    predictor_out: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *lattice: torch.Tensor,
    blank: int,
    durations: Sequence[int],
) -> torch.Tensor:
    """Mean cost of ``relu(encoder_out[t] + predictor_out[u]) @ weight.T + bias``."""
    hidden = relu(encoder_out[:, :, None] + predictor_out[:, None])
    return loss_of_logits(linear(hidden, weight, bias), *lattice, blank, durations)
