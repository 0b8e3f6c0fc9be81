"""Transducers and delay penalties through the JAX adapter: gradients, with and without jit."""

from __future__ import annotations

import numpy as np
import pytest

from ..tolerances import assert_costs_close
from ..transducers.cases import OPTIONS, value_of
from .cases import (
    assert_equal_bits,
    assert_gradients_match,
    every_kind,
    gradient,
    jax,
    made,
    reference_of,
    wide,
)

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def batch_of(kind, options, dtype=np.float32):
    return made(kind, dtype=dtype, vocabulary=11, transducer=value_of(options))


@every_kind
@every_option
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_gradients(kind, options, dtype):
    with wide(dtype):
        batch = batch_of(kind, options, dtype)
        costs = batch.loss(*batch.inputs, reduction="none", **options)
        found = gradient(batch.loss, batch.inputs, reduction="sum", **options)
    expected, _ = reference_of(kind)(*batch.case, reduction="none", **options)
    _, grads = reference_of(kind)(*batch.case, reduction="sum", **options)
    assert_costs_close(costs, expected, dtype, batch.length)
    assert_gradients_match(kind, found, grads, batch)


@every_kind
@every_option
def test_jitted_it_is_the_same(kind, options):
    batch = batch_of(kind, options)

    def loss(*inputs):
        return batch.loss(*inputs, reduction="sum", zero_infinity=True, **options)

    directly = loss(*batch.inputs), *gradient(loss, batch.inputs)
    jitted = jax.jit(loss)(*batch.inputs), *jax.jit(lambda x: gradient(loss, x))(batch.inputs)
    assert_equal_bits(jitted, directly)
    assert np.isfinite(directly[0])


@every_kind
def test_what_is_refused(kind):
    """When it is traced, before anything runs."""
    batch = batch_of(kind, {})
    for options, text in (
        ({"transducer": "modifed"}, "one of regular, modified, constrained, hat is needed"),
        ({"delay_penalty": float("nan")}, "delay_penalty is nan, but it must be finite"),
    ):
        with pytest.raises(ValueError, match=text):
            jax.eval_shape(lambda *inputs, o=options: batch.loss(*inputs, **o), *batch.inputs)
