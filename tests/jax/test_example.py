"""The recipe in plain JAX learns, and its loss is that of the lines it replaces."""

from __future__ import annotations

import runpy

import numpy as np
import pytest

from .. import ROOT
from ..tolerances import assert_costs_close, assert_gradient_close
from .cases import adapter, jax, jnp

pytestmark = pytest.mark.slow

RECIPE = ROOT / "examples" / "train_jax.py"


def test_it_learns(capsys):
    recipe = runpy.run_path(str(RECIPE))
    costs = recipe["main"]()
    assert len(capsys.readouterr().out.splitlines()) == recipe["STEPS"] // 50
    assert np.mean(costs[:10]) > 15
    assert np.mean(costs[-10:]) < 2


def test_its_loss_is_that_of_the_lines_it_replaces():
    lines = RECIPE.read_text().splitlines()
    replaced = [line.replace("    #   ", "    ") for line in lines if line.startswith("    #   ")]
    start = lines.index("def loss(params, frames, targets, frame_counts, target_counts):")
    stop = next(i for i, line in enumerate(lines) if line.startswith("    # What a recipe"))
    recipe = runpy.run_path(str(RECIPE))
    names = recipe | {"rnnt_loss": adapter.rnnt_loss}
    exec("\n".join([*lines[start:stop], *replaced]), names)
    params, data = recipe["init"](jax.random.key(0)), recipe["batch"](np.random.default_rng(0))
    value, found = jax.value_and_grad(recipe["loss"])(params, *data)
    other, wanted = jax.value_and_grad(names["loss"])(params, *data)
    length = int(jnp.max(data[2] + data[3]))
    assert_costs_close(value, other, np.float32, length)
    for name in params:
        assert_gradient_close(found[name], wanted[name], np.float32, length, name)
