"""The loss of a joint network in PyTorch, a tile of cells at a time, every tile computed twice.

It stands for what is published as sample-wise or tiled computation with recomputation (four
products over all cells instead of autograd's three, and no more memory than a tile), without
selection: see ``docs/method.rst``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import peers
import torch

ROWS = 16384  # cells of a tile: 64 MiB of float32 logits for V = 1024


class Cells(NamedTuple):
    """Of the whole batch, without padding, an entry each."""

    sample: torch.Tensor
    frame: torch.Tensor
    column: torch.Tensor
    label: torch.Tensor
    """That leaves the cell; the blank where none is left."""

    @staticmethod
    def of(
        targets: torch.Tensor,
        logit_lengths: torch.Tensor,
        target_lengths: torch.Tensor,
        blank: int,
    ) -> Cells:
        frames, columns = int(logit_lengths.max()), targets.shape[1] + 1
        device = targets.device
        t = torch.arange(frames, device=device)[None, :, None]
        u = torch.arange(columns, device=device)[None, None, :]
        inside = (t < logit_lengths[:, None, None]) & (u <= target_lengths[:, None, None])
        sample, frame, column = inside.nonzero(as_tuple=True)
        padded = torch.nn.functional.pad(targets, (0, 1), value=blank)
        label = padded[sample, column]
        label[column == target_lengths[sample]] = blank
        return Cells(sample, frame, column, label)

    def tiles(self, rows: int) -> list[Cells]:
        return [Cells(*parts) for parts in zip(*(part.split(rows) for part in self), strict=True)]


def loss_and_grad(
    inputs: tuple[torch.Tensor, ...],
    targets: torch.Tensor,
    logit_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    factor_dtype: torch.dtype,
    costs_of: Callable[..., torch.Tensor] = peers.costs_of_transitions,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mean cost, and its gradients by encoder_out, predictor_out, weight and bias, which are
    float32 like them. Products are those of `factor_dtype`, sums float32. `costs_of` is what solves
    the lattices, differentiably."""
    encoder_out, predictor_out, weight, bias = inputs
    factor = weight.to(factor_dtype)
    size, frames = encoder_out.shape[:2]
    tiles = Cells.of(targets, logit_lengths, target_lengths, blank).tiles(ROWS)
    shape = size, frames, predictor_out.shape[1]
    by_blank, by_label = encoder_out.new_full((2, *shape), peers.IMPOSSIBLE)

    def logits_of(tile: Cells) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(
            encoder_out[tile.sample, tile.frame] + predictor_out[tile.sample, tile.column]
        )
        logits = torch.mm(hidden.to(factor_dtype), factor.T).float()
        return hidden, logits.add_(bias)

    normalisers = []
    for tile in tiles:
        _, logits = logits_of(tile)
        lse = logits.logsumexp(dim=1)
        where = tile.sample, tile.frame, tile.column
        by_blank[where] = logits[:, blank] - lse
        by_label[where] = logits.gather(1, tile.label[:, None])[:, 0] - lse
        normalisers.append(lse)
    lengths = logit_lengths, target_lengths
    loss, of_blank, of_label = _occupancies(costs_of, by_blank, by_label, *lengths)
    gradients = [torch.zeros_like(tensor) for tensor in inputs]
    d_encoder, d_predictor, d_weight, d_bias = gradients
    for tile, lse in zip(tiles, normalisers, strict=True):
        where = tile.sample, tile.frame, tile.column
        blanks, labels = of_blank[where], of_label[where]
        hidden, logits = logits_of(tile)
        d_logits = logits.sub_(lse[:, None]).exp_().mul_((blanks + labels)[:, None])
        d_logits[:, blank] -= blanks
        d_logits.scatter_add_(1, tile.label[:, None], -labels[:, None])
        factors = d_logits.to(factor_dtype)
        d_weight += torch.mm(factors.T, hidden.to(factor_dtype)).float()
        d_bias += d_logits.sum(dim=0)
        d_hidden = torch.mm(factors, factor).float().mul_(1 - hidden.square())
        d_encoder.view(-1, d_encoder.shape[2]).index_add_(
            0, tile.sample * frames + tile.frame, d_hidden
        )
        d_predictor.view(-1, d_predictor.shape[2]).index_add_(
            0, tile.sample * shape[2] + tile.column, d_hidden
        )
    return loss, gradients


def _occupancies(
    costs_of: Callable[..., torch.Tensor],
    by_blank: torch.Tensor,
    by_label: torch.Tensor,
    *lengths: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean cost, and the occupancies of both transitions over the number of samples: what autograd
    finds."""
    transitions = by_blank.requires_grad_(), by_label.requires_grad_()
    with torch.enable_grad():
        loss = costs_of(*transitions, *lengths).mean()
        of_blank, of_label = torch.autograd.grad(-loss, transitions)
    return loss.detach(), of_blank, of_label
