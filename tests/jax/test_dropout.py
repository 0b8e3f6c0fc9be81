"""Dropout through the JAX adapter."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import cupy_rnnt

from ..tolerances import assert_costs_close, assert_gradients_close
from .cases import adapter, assert_equal_bits, gradient, jax, jnp, made, reference_of

OPTIONS = {"dropout": 0.3, "reduction": "sum"}


@pytest.mark.parametrize("seed", [5, 2**62 + 5])
def test_values_and_gradients(seed):
    batch = made("joint")
    options = OPTIONS | {"seed": seed}
    loss, found = (
        batch.loss(*batch.inputs, **options),
        gradient(batch.loss, batch.inputs, **options),
    )
    expected_loss, expected = reference_of("joint")(*batch.case, **options)
    assert_costs_close(loss, expected_loss, batch.dtype, batch.length)
    assert_gradients_close(found, expected, batch.dtype, batch.length)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_seed_may_be_an_array(reduction, caplog):
    """Which is not compiled again for another seed."""
    batch = made("joint")
    options = OPTIONS | {"reduction": reduction}

    @jax.jit
    def step(seed, *inputs):
        return jax.value_and_grad(lambda inputs: batch.loss(*inputs, **options, seed=seed).sum())(
            inputs
        )

    for seed in 5, 6:
        value, found = step(jnp.uint32(seed), *batch.inputs)
        fixed = options | {"seed": seed}
        wanted = batch.loss(*batch.inputs, **fixed).sum()
        expected = gradient(lambda *x, fixed=fixed: batch.loss(*x, **fixed).sum(), batch.inputs)
        assert_equal_bits([value, *found], [wanted, *expected])
    assert step._cache_size() == 1


def test_scores_take_a_seed_that_is_an_array():
    batch = made("joint")
    lattice = *batch.integers, batch.case.blank

    @jax.jit
    def total(seed, *inputs):
        return adapter.joint_rnnt_log_probs(*inputs, *lattice, dropout=0.3, seed=seed).sum()

    for seed in 5, 6:
        options = {"dropout": 0.3, "seed": seed}
        scores = cupy_rnnt.joint_rnnt_log_probs(*batch.case, **options)
        wanted = cupy_rnnt.joint_rnnt_log_probs_grad(
            *batch.case, grad=np.ones_like(scores), **options
        )
        value = total(jnp.uint32(seed), *batch.inputs)
        np.testing.assert_allclose(value, scores.sum(), rtol=1e-5)
        assert_equal_bits(gradient(partial(total, jnp.uint32(seed)), batch.inputs), wanted)


@pytest.mark.parametrize("mapped_seed", [False, True])
def test_mapped_calls_have_the_gradients_of_their_values(mapped_seed):
    """An instance drops what it would drop alone, in either direction."""
    batch = made("joint")
    encoder_out, *rest = batch.inputs
    pair, seeds = jnp.stack([encoder_out, 0.5 * encoder_out]), jnp.array([3, 4])

    def one(encoder_out, seed):
        return batch.loss(encoder_out, *rest, **OPTIONS, seed=seed)

    axes = (0, 0 if mapped_seed else None)
    given = seeds if mapped_seed else seeds[0]
    values, found = jax.vmap(jax.value_and_grad(one), axes)(pair, given)
    alone = jax.vmap(one, axes)(pair, given)
    for i in range(2):
        seed = seeds[i] if mapped_seed else seeds[0]
        value, gradient = jax.value_and_grad(one)(pair[i], seed)
        assert_equal_bits([values[i], alone[i], found[i]], [value, value, gradient])


def test_seeds_that_are_refused():
    batch = made("joint")
    for seed in jnp.ones(2, jnp.int32), jnp.float32(1), jax.random.key(0):
        with pytest.raises(TypeError, match=r"seed has shape .* a single integer is needed"):
            batch.loss(*batch.inputs, **OPTIONS, seed=seed)
    with pytest.raises(Exception, match="seed is -1, but it must be between 0 and"):
        np.asarray(batch.loss(*batch.inputs, **OPTIONS, seed=jnp.int32(-1)))
