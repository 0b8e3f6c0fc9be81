"""Pictures of stored results can be read in five seconds."""

from __future__ import annotations

import pytest

from ..ops.cuda.kernel_resources import ROOT

MOST_BARS = 6
LIGHT = "accuracy", "adapters", "bands", "joint", "logits"
LIGHT += "selection", "selection_figures", "workspace"  # all but those that import PyTorch and JAX


@pytest.fixture
def redraw(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import redraw

    return redraw


@pytest.mark.parametrize("name", LIGHT)
def test_figures_have_a_message_units_and_few_bars(redraw, name):
    assert name in redraw.NAMES
    for figure in redraw.figures(name).values():
        assert figure.get_suptitle()
        for axes in figure.axes:
            if axes.get_label() != "<colorbar>":
                assert axes.get_xlabel()
                assert len(axes.patches) <= MOST_BARS
