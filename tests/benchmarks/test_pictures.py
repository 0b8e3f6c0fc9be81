"""Benchmarks of the CPU that write pictures and tables of the documentation run, in small."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..ops.cuda.kernel_resources import ROOT

FOLDER = ROOT / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs one in this process, with small sizes in the places of its own, draws it
    once more from what it has written, and returns the rows and the folder."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(FOLDER)
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "HERE", tmp_path)
    monkeypatch.setattr(common, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(common, "use_threads", lambda count: None)
    monkeypatch.setattr(common, "machine", dict)

    def of(name: str, **sizes: Any) -> tuple[list[Any], Path]:
        module = importlib.import_module(name)
        for attribute, value in sizes.items():
            monkeypatch.setattr(module, attribute, value)
        quick = [name, "--quick", "--device", "cpu", "--repeats", "1"]
        for words in (quick, [*quick, "--redraw"]):
            monkeypatch.setattr(sys, "argv", words)
            module.main()
        results = tmp_path / "results"
        assert (results / f"{name}_quick.png").stat().st_size > 0
        return json.loads((results / f"{name}_quick.json").read_text())["rows"], results

    yield of
    for name, module in list(sys.modules.items()):
        if "." not in name and Path(getattr(module, "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


def test_headline(run):
    """The batch is its utterances, and its memory is seen; the estimate has all six rows."""
    fresh = importlib.import_module("workloads").fresh
    headline = importlib.import_module("headline")
    case = headline.Case(lambda: fresh([30] * 3, [6] * 3, 40, 32), 7)
    (*rows, last), results = run("headline", QUICK=dict.fromkeys(headline.QUICK, case))
    for row in rows:
        assert row["distinct"] == 3
        assert row["shape"] == [7, 30, 6, 40, 32]
        assert all(resident > 0 for _, resident, _ in row["memory"])
        assert max(row["checks"][key] for key in ("cost", "inputs", "weight", "bias")) < 1e-4
        assert row["checks"]["cost_from_float64"] < 1e-5
    plans = {(plan["vocabulary"], plan["dtype"]): plan for plan in last["plans"]}
    assert len(plans) == 6
    logits = 1024 * 1000 * 201 * 1024 * 4 / 2**30
    np.testing.assert_allclose(plans[1024, "float32"]["logits"], logits, rtol=1e-2)
    assert "785.00" in (results / "headline_plans_quick.rst").read_text()


def test_batch_size(run):
    fresh = importlib.import_module("workloads").fresh
    small = lambda name, size: fresh([20] * size, [5] * size, 40, 32)  # noqa: E731
    rows, _ = run("batch_size", batch=small)
    assert [row["batch"] for row in rows] == [1, 2] * 3


def test_growth(run):
    growth = importlib.import_module("growth")
    joint = growth.build("trained", growth.BASE | {"T": 500, "U": 130})
    assert joint.encoder_out.shape[1] == 500
    assert joint.targets.shape[1] == 130
    rows, _ = run("growth", QUICK={"B": [1, 2]}, BASE=growth.BASE | {"T": 40, "U": 20, "V": 300})
    assert [row["cells"] for row in rows] == [840, 1680] * 2
    power = [{"value": n, "seconds": 3 * n**1.5} for n in (1, 4, 9)]
    assert growth.exponent(power, "seconds") == pytest.approx(1.5)


@pytest.mark.slow
def test_contestants_agree(run):
    """PyTorch's autograd, in a process of its own, has the same loss and gradients, with durations,
    too."""
    contestants = importlib.import_module("contestants")
    few = {name: contestants.CONTESTANTS[name] for name in ("float64", "PyTorch autograd")}
    rows, _ = run("contestants", CONTESTANTS=few)
    assert [row["workload"] for row in rows] == [*contestants.QUICK]
    for row in rows:
        assert max(row["errors"].values()) < 1e-5, row
