"""Packed logits in JAX: the numbers of padded ones."""

from __future__ import annotations

import numpy as np
import pytest

from ..engine.test_packed import packed
from .cases import adapter, assert_equal_bits, every_reduction, gradient, jax, jnp, made

pytestmark = pytest.mark.usefixtures("jax_on_cpu")


def of_cells(array, case):
    return jnp.asarray(packed(np.asarray(array), case.logit_lengths, case.target_lengths))


@every_reduction
@pytest.mark.parametrize("jit", [False, True])
def test_packed_logits(reduction, jit):
    batch = made("logits")
    rows = of_cells(batch.inputs[0], batch.case)

    def loss(logits):
        costs = adapter.rnnt_loss(logits, *batch.integers, batch.case.blank, reduction=reduction)
        return costs.sum()

    function = jax.jit(loss) if jit else loss
    assert_equal_bits([function(rows)], [loss(batch.inputs[0])])
    (wanted,) = gradient(loss, batch.inputs)
    assert_equal_bits(gradient(function, [rows]), [of_cells(wanted, batch.case)])


def test_mapped_batches():
    """Two batches of the same lengths are one batch of twice as many samples."""
    batch = made("logits")
    rows = of_cells(batch.inputs[0], batch.case)
    both = jnp.stack([rows, -rows])

    def loss(logits):
        return adapter.rnnt_loss(logits, *batch.integers, batch.case.blank)

    found = jax.vmap(jax.value_and_grad(loss))(both)
    wanted = [jax.value_and_grad(loss)(logits) for logits in both]
    for i in range(2):
        assert_equal_bits([found[0][i], found[1][i]], wanted[i])


def test_the_wrong_number_of_rows():
    """Lengths are known when it runs."""
    batch = made("logits")
    rows = of_cells(batch.inputs[0], batch.case)[1:]
    with pytest.raises(Exception, match="packed logits have a row for each cell"):
        jax.block_until_ready(adapter.rnnt_loss(rows, *batch.integers, batch.case.blank))
