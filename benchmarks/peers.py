"""The loss as PyTorch users write it: padded, held whole, differentiated by autograd."""

from __future__ import annotations

import torch

IMPOSSIBLE = -1e30  # a log-probability of 0 whose gradient is 0, where that of -inf is NaN


def skewed(values: torch.Tensor) -> torch.Tensor:
    """(B, T, S) values by anti-diagonals, (B, T + S - 1, S): entry [d, u] is that of (d - u, u)."""
    _, frames, columns = values.shape
    u = torch.arange(columns, device=values.device)
    t = torch.arange(frames + columns - 1, device=values.device)[:, None] - u
    inside = (t >= 0) & (t < frames)
    return values[:, t.clamp(0, frames - 1), u].masked_fill(~inside, IMPOSSIBLE)


def costs_of_transitions(
    by_blank: torch.Tensor,
    by_label: torch.Tensor,
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """Cost of each sample from (B, T, S) log-probabilities of both transitions; the forward
    recursion takes an anti-diagonal of the whole batch at a time."""
    size, _, columns = by_blank.shape
    blank_diagonals = skewed(by_blank).unbind(dim=1)
    label_diagonals = skewed(by_label).unbind(dim=1)
    alpha = by_blank.new_full((size, columns), IMPOSSIBLE)
    alpha[:, 0] = 0.0
    alphas = [alpha]
    for on_blank, on_label in zip(blank_diagonals[:-1], label_diagonals[:-1], strict=True):
        moved = torch.nn.functional.pad((alpha + on_label)[:, :-1], (1, 0), value=IMPOSSIBLE)
        alpha = torch.logaddexp(alpha + on_blank, moved)
        alphas.append(alpha)
    sample, last = torch.arange(size, device=by_blank.device), logit_lengths - 1
    final = torch.stack(alphas)[last + target_lengths, sample, target_lengths]
    return -(final + by_blank[sample, last, target_lengths])


def of_labels(by_token: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The (B, T, S) log-probabilities of the next labels, of the (B, T, S, V) of all tokens."""
    labels = torch.nn.functional.pad(targets, (0, 1))[:, None, :, None]
    return by_token.gather(3, labels.expand(-1, by_token.shape[1], -1, -1)).squeeze(3)


def loss_of_logits(
    logits: torch.Tensor,
    targets: torch.Tensor,
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    """Mean cost."""
    log_probs = torch.log_softmax(logits, dim=-1)
    transitions = log_probs[..., blank], of_labels(log_probs, targets)
    return costs_of_transitions(*transitions, logit_lengths, target_lengths).mean()


def loss_of_joint(
    encoder_out: torch.Tensor,
    predictor_out: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *lattice: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    """Mean cost of ``tanh(encoder_out[t] + predictor_out[u]) @ weight.T + bias``."""
    hidden = torch.tanh(encoder_out[:, :, None] + predictor_out[:, None])
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return loss_of_logits(logits, *lattice, blank)
