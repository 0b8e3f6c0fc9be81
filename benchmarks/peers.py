"""The loss as PyTorch users write it: padded, held whole, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch

IMPOSSIBLE = -1e30  # a log-probability of 0 whose gradient is 0, where that of -inf is NaN


def _skewed(values: torch.Tensor) -> torch.Tensor:
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
    blank_diagonals = _skewed(by_blank).unbind(dim=1)
    label_diagonals = _skewed(by_label).unbind(dim=1)
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


def loss_of_logits(
    logits: torch.Tensor,
    targets: torch.Tensor,
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    """Mean cost."""
    log_probs = torch.log_softmax(logits, dim=-1)
    labels = torch.nn.functional.pad(targets, (0, 1))[:, None, :, None]
    by_label = log_probs.gather(3, labels.expand(-1, logits.shape[1], -1, -1)).squeeze(3)
    lengths = logit_lengths, target_lengths
    return costs_of_transitions(log_probs[..., blank], by_label, *lengths).mean()


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


def costs_of_tdt(
    by_blank: torch.Tensor,
    by_label: torch.Tensor,
    by_duration: torch.Tensor,
    durations: Sequence[int],
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """Cost of each sample of TDT from (B, T, S) log-probabilities of blank and label, and (B, T, S,
    D) of durations; an anti-diagonal of the whole batch at a time."""
    size, _, columns = by_blank.shape
    lists = zip(durations, by_duration.unbind(-1), strict=True)
    arcs = [(d, _skewed(by_blank + on), _skewed(by_label + on)) for d, on in lists]
    start = by_blank.new_full((size, columns), IMPOSSIBLE)
    start[:, 0] = 0.0
    alphas = [start]
    for n in range(1, arcs[0][1].shape[1]):
        incoming = [alphas[n - d] + blank[:, n - d] for d, blank, _ in arcs if 0 < d <= n]
        for d, _, label in arcs:
            if d < n:
                moved = (alphas[n - d - 1] + label[:, n - d - 1])[:, :-1]
                incoming.append(torch.nn.functional.pad(moved, (1, 0), value=IMPOSSIBLE))
        alphas.append(torch.stack(incoming).logsumexp(0))
    sample, diagonals = torch.arange(size, device=by_blank.device), torch.stack(alphas, dim=1)
    last = []
    for d, blank, _ in (arc for arc in arcs if arc[0] > 0):  # the last arc is a blank
        n = (logit_lengths - d + target_lengths).clamp(min=0)
        ends = (diagonals[sample, n] + blank[sample, n])[sample, target_lengths]
        last.append(ends.masked_fill(logit_lengths < d, IMPOSSIBLE))
    return -torch.stack(last).logsumexp(0)


def tdt_loss_of_logits(
    logits: torch.Tensor,
    targets: torch.Tensor,
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    durations: Sequence[int],
) -> torch.Tensor:
    """Mean cost; the last columns of `logits` are those of the durations."""
    tokens = torch.log_softmax(logits[..., : -len(durations)], dim=-1)
    by_duration = torch.log_softmax(logits[..., -len(durations) :], dim=-1)
    labels = torch.nn.functional.pad(targets, (0, 1))[:, None, :, None]
    by_label = tokens.gather(3, labels.expand(-1, logits.shape[1], -1, -1)).squeeze(3)
    arcs = tokens[..., blank], by_label, by_duration, durations
    return costs_of_tdt(*arcs, logit_lengths, target_lengths).mean()
