"""The PyTorch recipe in examples/: it learns, by the same steps as with what it replaces."""

from __future__ import annotations

import re

import numpy as np
import pytest

from .. import ROOT
from .cases import adapter, torch

pytestmark = pytest.mark.slow

SOURCE = (ROOT / "examples" / "train_torch.py").read_text()


def recipe(source, **names):
    """Its names, some of which may be replaced."""
    scope = {"__name__": "recipe", "rnnt_loss": adapter.rnnt_loss}
    exec(compile(source, "train_torch.py", "exec"), scope)
    scope.update(names)
    return scope


def test_it_learns(capsys):
    costs = recipe(SOURCE)["main"]()
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert costs[0] > 20
    assert np.mean(costs[-20:]) < 2


def test_what_it_replaces_makes_the_same_steps():
    """The lines that it shows as a comment are run; a loss of logits is here, too."""
    before = re.sub(r"^( +)#   ", r"\1", SOURCE, flags=re.MULTILINE)
    assert before.count("return rnnt_loss(") == 1
    expected = recipe(before, STEPS=30)["main"]()
    # Float32 round-off, which the steps of Adam amplify.
    np.testing.assert_allclose(recipe(SOURCE, STEPS=30)["main"](), expected, rtol=1e-4)


def test_compiled_it_makes_the_same_steps():
    scope = recipe(SOURCE, STEPS=30)
    expected = scope["main"]()
    model = scope["Transducer"]
    scope["Transducer"] = lambda: torch.compile(model(), fullgraph=True, backend="aot_eager")
    np.testing.assert_allclose(scope["main"](), expected, rtol=1e-4)
