"""Transducers and delay penalties through the PyTorch adapter: autograd, compilation, operators."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt.options import Options

from ..transducers.cases import OPTIONS, value_of
from .cases import (
    KINDS,
    adapter,
    assert_equal_bits,
    assert_gradients_match,
    every_kind,
    gradients,
    loss_of,
    made,
    numpy,
    operators,
    reference_of,
    torch,
)

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def batch_of(kind, options):
    return made(kind, vocabulary=11, transducer=value_of(options))


@every_kind
@every_option
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_values_and_gradients(kind, options, reduction):
    batch = batch_of(kind, options)
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction, **options)
    upstream = torch.ones_like(loss)
    found = gradients(loss, batch.leaves, grad_outputs=upstream)
    expected, grads = reference_of(kind)(*batch.case, reduction=reduction, **options)
    np.testing.assert_allclose(numpy(loss), expected, rtol=1e-12)
    assert_gradients_match(kind, found, grads, np.float64, batch.length)


@every_kind
@every_option
def test_compiled_without_a_break(kind, options):
    """As it is without compilation, bit for bit."""
    torch.compiler.reset()
    batch = batch_of(kind, options)

    def loss(leaves):
        return loss_of(kind)(*leaves, *batch.rest, reduction="none", **options)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    directly, found = loss(batch.leaves), compiled(batch.leaves)
    assert_equal_bits([found], [directly])
    finite = torch.isfinite(directly)
    assert finite.sum() > 1
    both = (gradients(costs[finite].sum(), batch.leaves) for costs in (directly, found))
    assert_equal_bits(*both)


@every_kind
@every_option
def test_operators_keep_the_rules(kind, options):
    batch = batch_of(kind, options)
    values = Options.checked(np.dtype(np.float64), blank=batch.case.blank, **options).values()
    of_kind = operators.JOINT if kind == "joint" else operators.LOGITS
    constant = [leaf.detach() for leaf in batch.leaves]
    for keep, inputs in (True, batch.leaves), (False, constant):
        given = operators.Arguments(inputs, list(batch.rest[:-1]), values).flat()
        torch.library.opcheck(of_kind.forward, (*given, keep))


@pytest.mark.parametrize("kind", KINDS)
def test_modules_take_them(kind):
    make = adapter.JointRNNTLoss if kind == "joint" else adapter.RNNTLoss
    batch = batch_of(kind, {})
    module = make(blank=batch.case.blank, transducer="modified", delay_penalty=0.1)
    assert "transducer='modified', delay_penalty=0.1" in repr(module)
    loss = module(*batch.leaves, *batch.rest[:-1])
    options = {"transducer": "modified", "delay_penalty": 0.1}
    assert loss == loss_of(kind)(*batch.leaves, *batch.rest, **options)


@every_kind
def test_what_is_refused(kind):
    batch = batch_of(kind, {})
    for options, text in (
        ({"transducer": "modifed"}, "one of regular, modified, constrained, hat is needed"),
        ({"delay_penalty": float("nan")}, "delay_penalty is nan, but it must be finite"),
    ):
        with pytest.raises(ValueError, match=text):
            loss_of(kind)(*batch.leaves, *batch.rest, **options)
