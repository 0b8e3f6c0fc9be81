"""Bands in PyTorch and JAX: what NumPy computes."""

from __future__ import annotations

import numpy as np
import pytest

import cupy_rnnt

from ..helpers import random_joint_case, random_logits_case

RNG = np.random.default_rng(0)
LOGITS = random_logits_case(RNG, dtype=np.float32)
JOINT = random_joint_case(RNG, dtype=np.float32)
FIRST = np.minimum(np.arange(7) // 3, np.maximum(LOGITS.target_lengths[:, None] - 3, 0))
WIDTH = np.array([4, 4, 5, 4])
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

cases = pytest.mark.parametrize(
    ("name", "case", "floats"), [("rnnt_loss", LOGITS, 1), ("joint_rnnt_loss", JOINT, 4)]
)


def expected(name, case, reduction):
    """The loss, and the gradients, of the cost of the second sample if there is no reduction."""
    weights = None if reduction != "none" else np.eye(4)[1]
    function = getattr(cupy_rnnt, f"{name}_and_grad")
    options = {"reduction": reduction, "band": (FIRST, WIDTH), "cost_weights": weights}
    loss, grads = function(*case, **options)
    return loss, grads if isinstance(grads, tuple) else (grads,)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@cases
def test_torch(name, case, floats, reduction):
    torch = pytest.importorskip("torch")
    adapter = pytest.importorskip("cupy_rnnt.torch")
    function = getattr(adapter, name)
    *integers, blank = case[floats:]
    band = torch.tensor(FIRST), torch.tensor(WIDTH)
    lattice = [torch.tensor(x) for x in integers]

    def call(*inputs):
        return function(*inputs, *lattice, blank, reduction=reduction, band=band)

    loss, grads = expected(name, case, reduction)
    for run in call, torch.compile(call, fullgraph=True, backend="aot_eager"):
        inputs = [torch.tensor(x, requires_grad=True) for x in case[:floats]]
        found = run(*inputs)
        (found if reduction == "mean" else found[1]).backward()
        np.testing.assert_allclose(found.detach(), loss, **CLOSE)
        for x, grad in zip(inputs, grads, strict=True):
            np.testing.assert_allclose(x.grad, grad, **CLOSE)
    scalar = function(*inputs, *lattice, blank, band=(band[0], 5))
    like = getattr(cupy_rnnt, name)(*case, band=(FIRST, 5))
    np.testing.assert_allclose(scalar.detach(), like, **CLOSE)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@cases
@pytest.mark.usefixtures("jax_on_cpu")
def test_jax(name, case, floats, reduction):
    jax = pytest.importorskip("jax")
    adapter = pytest.importorskip("cupy_rnnt.jax")
    function = getattr(adapter, name)
    *integers, blank = case[floats:]

    def call(inputs, band):
        loss = function(*inputs, *integers, blank, reduction=reduction, band=band)
        return (loss if reduction == "mean" else loss[1]), loss

    loss, grads = expected(name, case, reduction)
    run = jax.value_and_grad(call, has_aux=True)
    for differentiated in run, jax.jit(run):
        (_, found), gradients = differentiated(case[:floats], (FIRST, WIDTH))
        np.testing.assert_allclose(found, loss, **CLOSE)
        for one, grad in zip(gradients, grads, strict=True):
            np.testing.assert_allclose(one, grad, **CLOSE)
    bands = np.stack([FIRST, np.zeros_like(FIRST)])
    mapped = jax.vmap(lambda first: call(case[:floats], (first, 5))[1])(bands)
    for one, first in zip(mapped, bands, strict=True):
        like = getattr(cupy_rnnt, name)(*case, band=(first, 5), reduction=reduction)
        np.testing.assert_allclose(one, like, **CLOSE)


def test_wrong_bands():
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("cupy_rnnt.jax")
    adapter = pytest.importorskip("cupy_rnnt.torch")
    *arrays, blank = LOGITS
    tensors = [torch.tensor(x) for x in arrays]
    for function, arguments in (adapter.rnnt_loss, tensors), (jax.rnnt_loss, arrays):
        with pytest.raises(TypeError, match=r"band is 3, but a pair \(first, width\) or None"):
            function(*arguments, blank, band=3)
        with pytest.raises(TypeError, match=r"band\[1\] is 2.5, but an integer is needed"):
            function(*arguments, blank, band=(FIRST, 2.5))
        with pytest.raises(ValueError, match=r"band\[0\] has shape \(7,\), but \(4, 7\) is needed"):
            function(*arguments, blank, band=(FIRST[0], np.full(4, 2)))
