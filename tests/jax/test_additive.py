"""The additive loss in JAX: the numbers of NumPy, with a derivative."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.jax.additive import AdditiveLoss
from cupy_rnnt.options import Options

from ..helpers import random_logits_case
from .cases import WEIGHTS, adapter, assert_equal_bits, jax, jnp
from .test_cuda import assert_on_stream, call

SCALES = {"lm_scale": 0.25, "am_scale": 0.15}

pytestmark = pytest.mark.usefixtures("jax_on_cpu")


def made(size=4, dtype=np.float32):
    """Both summands, the rest of the arguments, and a band."""
    rng = np.random.default_rng(0)
    case = random_logits_case(rng, size)
    _, frames, positions, width = case.logits.shape
    shapes = (size, frames, width), (size, positions, width)
    first = np.arange(frames) * case.target_lengths[:, None] // frames
    inputs = tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)
    return inputs, case[1:], (first.astype(np.int32), 3)


@pytest.mark.parametrize(
    ("reduction", "dtype", "scales"),
    [("none", np.float32, SCALES), ("mean", np.float32, {}), ("mean_volume", np.float16, SCALES)],
)
def test_results_are_those_of_numpy(reduction, dtype, scales):
    inputs, batch, band = made(dtype=dtype)
    options = {"reduction": reduction, "transducer": "modified", "band": band, **scales}
    weights = WEIGHTS if reduction == "none" else None
    loss, grads, occupancies = cupy_rnnt.additive_rnnt_loss_and_grad(
        *inputs, *batch, **options, cost_weights=weights, return_occupancies=True
    )

    def function(inputs):
        found, posteriors = adapter.additive_rnnt_loss(
            *inputs, *batch, **options, return_occupancies=True
        )
        total = found if weights is None else (jnp.asarray(weights, np.float32) * found).sum()
        return total, (found, posteriors)

    run = jax.value_and_grad(function, has_aux=True)
    for differentiated in run, jax.jit(run):
        (_, found), gradients = differentiated(inputs)
        assert_equal_bits(found, (loss, occupancies))
        for one, other in zip(gradients, grads, strict=True):
            assert one.dtype == dtype
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=np.finfo(dtype).eps)
    alone = adapter.additive_rnnt_loss(*inputs, *batch, **options)
    assert_equal_bits([alone], [loss])


@pytest.mark.parametrize("scales", [{}, SCALES])
def test_mapped_batches_are_batches_of_their_own(scales):
    """With a unigram, which is a mean over the batch, and without."""
    (am, lm), batch, _ = made()

    def loss(am):
        return adapter.additive_rnnt_loss(am, lm, *batch, **scales)

    pair = jnp.stack([am, 0.5 * am])
    found, gradients = jax.vmap(jax.value_and_grad(loss))(pair)
    for i, x in enumerate(pair):
        value, gradient = jax.value_and_grad(loss)(x)
        np.testing.assert_allclose(found[i], value, rtol=1e-6)
        np.testing.assert_allclose(gradients[i], gradient, rtol=1e-5, atol=1e-7)


def test_what_is_refused():
    (am, lm), batch, _ = made()
    with pytest.raises(TypeError, match="return_occupancies is 1"):
        adapter.additive_rnnt_loss(am, lm, *batch, return_occupancies=1)
    with pytest.raises(ValueError, match=r"lm has shape .* is needed"):
        jax.jit(adapter.additive_rnnt_loss)(am, lm[..., 1:], *batch[:3])
    with pytest.raises(TypeError, match="lm_scale is '1', but a number is needed"):
        adapter.additive_rnnt_loss(am, lm, *batch, lm_scale="1")


def test_on_cuda(emulator):
    """On the stream of the computation, with stand-ins for its buffers."""
    inputs, (*integers, blank), _ = made(2)
    options = Options.checked(np.dtype(np.float32), blank=blank)
    one = SimpleNamespace(
        loss=AdditiveLoss(options, **SCALES, returns_occupancies=False),
        inputs=list(map(emulator.asarray, inputs)),
        integers=[emulator.asarray(x.astype(np.int32)) for x in integers],
        result=emulator.empty((), np.float32),
        gradients=[emulator.empty(x.shape, x.dtype) for x in inputs],
    )
    call(one)
    assert_on_stream(emulator)
    loss, grads = cupy_rnnt.additive_rnnt_loss_and_grad(*inputs, *integers, blank, **SCALES)
    np.testing.assert_allclose(one.result.get(), loss, rtol=1e-6)
    for found, grad in zip(one.gradients, grads, strict=True):
        np.testing.assert_allclose(found.get(), grad, rtol=1e-5, atol=1e-7)
