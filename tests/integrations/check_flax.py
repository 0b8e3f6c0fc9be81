"""The recipe in Flax NNX learns, and its gradients are those of logits.

No part of the tests that plain ``pytest`` runs, as Flax and optax must be installed.
"""

from __future__ import annotations

import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cupy_rnnt.jax import rnnt_loss

from .. import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return runpy.run_path(str(EXAMPLES / "train_flax.py"))


def test_it_learns(recipe, capsys):
    costs = recipe["main"]()
    assert len(capsys.readouterr().out.splitlines()) == recipe["STEPS"] // 50
    assert np.mean(costs[:10]) > 15
    assert np.mean(costs[-10:]) < 2.5  # with dropout


def test_without_dropout_it_is_the_loss_of_logits(recipe):
    model = recipe["Transducer"](nnx.Rngs(3, dropout=4), dropout=0.0)
    frames, targets, *lengths = recipe["batch"](np.random.default_rng(0))

    def of_logits(model):
        encoder_out, predictor_out = model(frames, targets)
        hidden = jnp.tanh(encoder_out[:, :, None] + predictor_out[:, None])
        return rnnt_loss(model.output(hidden), targets, *lengths, recipe["BLANK"])

    value, found = nnx.value_and_grad(lambda model: model.loss(frames, targets, *lengths))(model)
    expected, wanted = nnx.value_and_grad(of_logits)(model)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * max(1e-3, abs(other).max()))
