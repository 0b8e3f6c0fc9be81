"""Packed logits as tensors: the numbers of padded ones."""

from __future__ import annotations

import pytest

from .cases import adapter, assert_equal_bits, every_reduction, gradients, made, torch
from .guest import PLACES


def of_cells(logits, batch):
    lengths = zip(logits, *batch.rest[1:3], strict=True)
    return torch.cat([x[:t, : u + 1].flatten(end_dim=-2) for x, t, u in lengths])


@every_reduction
@pytest.mark.parametrize("compiled", [False, True])
def test_packed_logits(reduction, compiled):
    batch = made("logits")
    (leaf,) = batch.leaves
    loss = adapter.rnnt_loss(leaf, *batch.rest, reduction=reduction)
    wanted = gradients(loss.sum(), [leaf])
    rows = of_cells(leaf.detach(), batch).requires_grad_()

    def function(rows):
        return adapter.rnnt_loss(rows, *batch.rest, reduction=reduction)

    if compiled:
        torch.compiler.reset()
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = function(rows)
    assert_equal_bits([found], [loss])
    assert_equal_bits(gradients(found.sum(), [rows]), [of_cells(wanted[0], batch)])
    with torch.no_grad():
        assert_equal_bits([function(rows)], [loss])


@pytest.mark.parametrize("place", PLACES)
def test_on_cuda(place):
    batch = made("logits", size=3, frames=5, labels=3, vocabulary=6)
    (leaf,) = batch.leaves
    with place() as there:
        lattice = *map(there.moved, batch.rest[:-1]), batch.rest[-1]
        losses, found = [], []
        for logits in leaf.detach(), of_cells(leaf.detach(), batch):
            logits = there.moved(logits.requires_grad_())
            losses.append(adapter.rnnt_loss(logits, *lattice))
            found += gradients(losses[-1], [logits])
    assert_equal_bits(losses[:1], losses[1:])
    assert_equal_bits([of_cells(found[0], batch)], found[1:])


def test_the_wrong_number_of_rows():
    batch = made("logits")
    rows = of_cells(batch.leaves[0].detach(), batch)
    with pytest.raises(ValueError, match="packed logits have a row for each cell"):
        adapter.rnnt_loss(rows[1:], *batch.rest)
