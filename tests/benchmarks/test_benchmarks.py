"""Benchmarks: what is computed is what the documentation says, and the others run on a GPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cupy_rnnt

from .. import devices
from ..ops.cuda.kernel_resources import ROOT
from ..tolerances import unit_roundoff

FOLDER = ROOT / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A function that imports one of them by name."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if "." not in name and Path(getattr(module, "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


def test_docs_and_results_are_what_is_computed(script):
    computed = script("computed")
    rows = computed.steps()
    written = {path.name: path.read_text() for path in computed.TABLES.iterdir()}
    assert written == computed.tables(rows), "python benchmarks/computed.py writes docs/costs/"
    results = json.loads((computed.RESULTS / "computed.json").read_text())
    assert results == json.loads(json.dumps(computed.content(rows)))


def test_times_on_paper_have_host_and_sweeps(script):
    computed = script("computed")
    for row in computed.steps():
        stages = row["stages"]
        assert row["seconds"] == max(row["host"], row["device"])
        assert row["device"] == pytest.approx(sum(stages.values()))
        if row["step"] == computed.STAGED:
            shape = next(each for each in computed.SHAPES if each.name == row["shape"])
            assert stages["sweeps"] >= computed.own_sweeps(shape, row["machine"]) > 0
    for products in computed.ITEMSIZES:
        call = computed.read(f"host_{products}")
        info = call["info"]
        measured = computed.parts_of(info["computed"], info["kept"], call["call"]["vocab"])
        seconds = computed.host_seconds(measured, products)
        assert seconds > 1e-3 * call["host ms"]["median"]
        assert computed.host_seconds(measured._replace(groups=2), products) > 1.2 * seconds
        more = measured._replace(second=measured.second + 1)
        assert seconds < computed.host_seconds(more, products) < 1.15 * seconds
    assert len(computed.DRAWN) <= 6


def tiny(workloads: Any) -> dict[str, Any]:
    return {"tiny": lambda: workloads.fresh([9, 7], [3, 2], 130, 128)}


@pytest.fixture
def emulated(script, monkeypatch):
    """An emulated one, in whose place the scripts find it."""
    monkeypatch.setattr(script("common"), "device", "cuda")
    with devices.emulated() as found:
        monkeypatch.setattr(found.xp.kernels.options, "races", False)  # others look for these
        yield found


@pytest.fixture
def run_on_gpu(emulated, script, monkeypatch, tmp_path, capsys):
    """A function that runs one of them, once, with small sizes in the places of its own, and
    returns the rows that it has written, and what it has printed."""

    def run(name: str, **sizes: Any) -> tuple[Any, str]:
        common, module = script("common"), script(name)
        interleaved = common.interleaved
        monkeypatch.setattr(common, "HERE", tmp_path)
        monkeypatch.setattr(common, "alone", lambda function, *arguments: function(*arguments))
        monkeypatch.setattr(common, "use_threads", lambda count: None)
        monkeypatch.setattr(
            common, "interleaved", lambda cases, repeats, **more: interleaved(cases, 1, **more)
        )
        for attribute, value in sizes.items():
            monkeypatch.setattr(module, attribute, value)
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--device", "cuda", "--repeats", "1"])
        module.main()
        files = {path.name for path in (tmp_path / "results").iterdir()}
        assert files == {f"{name}_cuda_quick.json", f"{name}_cuda_quick.png"}
        written = json.loads((tmp_path / "results" / f"{name}_cuda_quick.json").read_text())
        assert written["machine"]["gpu"] == "emulated device"
        return written["rows"], capsys.readouterr().out

    return run


def assert_beside_computed(rows, printed):
    assert "measured / computed" in printed
    for row in rows:
        times = row["on_paper"]
        assert times["measured"] > times["computed"] > 0


@pytest.mark.slow
def test_joint_on_a_gpu(script, run_on_gpu):
    rows, printed = run_on_gpu("joint", QUICK=tiny(script("workloads")))
    assert_beside_computed(rows, printed)
    assert "pytorch" not in rows[0]


@pytest.mark.slow
def test_logits_on_a_gpu(run_on_gpu):
    rows, printed = run_on_gpu("logits", QUICK={"tiny": ((2, 6, 3), 40)}, SHAPES={})
    assert_beside_computed(rows, printed)
    assert "pytorch" not in rows[0]


@pytest.mark.slow
def test_selection_on_a_gpu(script, run_on_gpu):
    rows, printed = run_on_gpu("selection", QUICK=tiny(script("workloads")))
    assert_beside_computed(rows["times"], printed)
    assert rows["errors"][0]["cost_difference"] < 1e-3
    assert rows["times"][0]["stages"]["pass 2"] > 0


@pytest.mark.slow
def test_scaling_on_a_gpu(script, run_on_gpu):
    fresh = script("workloads").fresh
    rows, printed = run_on_gpu(
        "scaling",
        growing=lambda quick: {"more": [fresh([6] * n, [3] * n, 20, 12) for n in (1, 2)]},
        fresh=lambda *_: fresh([6], [3], 20, 12),
    )
    assert_beside_computed(rows["cells"], printed)


@pytest.mark.slow
def test_workspace_on_a_gpu(script, run_on_gpu):
    workspace = script("workspace")
    rows, _ = run_on_gpu("workspace", QUICK=[workspace.Case((2, 9, 3, 40, 12), 2, True)])
    assert rows[0]["traced_bytes"] <= rows[0]["planned_bytes"] <= rows[0]["budget_bytes"]
    assert rows[0]["resident_bytes"] > rows[0]["results_bytes"] > 0


@pytest.mark.usefixtures("emulated")
@pytest.mark.slow
def test_errors_on_a_gpu(script):
    accuracy, fresh = script("accuracy"), script("workloads").fresh
    rows = accuracy.joint_errors("tiny", fresh([9], [4], 10, 8)) + accuracy.logit_errors(6, 3, 9)
    assert len(rows) == 8
    assert all(row["ours"] < 100 * unit_roundoff(np.float32) for row in rows)


@pytest.mark.usefixtures("emulated")
@pytest.mark.slow
def test_figures_on_a_gpu(script):
    figures, fresh = script("selection_figures"), script("workloads").fresh
    found = figures.selection(fresh([6], [3], 20, 12))
    assert found.computed.shape == (6, 4)
    assert found.computed.all()
    np.testing.assert_allclose(found.blank_occupancy.sum(axis=1), 1, rtol=1e-5)  # of each frame


def test_members_have_posteriors_of_the_plain_loss(script, monkeypatch):
    family, fresh = script("family"), script("workloads").fresh
    joint = fresh([9, 7], [3, 2], 2, 16)  # of a single label: the log-odds of the blank are linear
    monkeypatch.setitem(family.SCALES, "trained", (0.0, -60.0))  # as good as no further columns
    members = family.members(joint, "trained")
    for name in "hat", "multi_blank":
        costs = [
            cupy_rnnt.joint_rnnt_loss(*members[each].joint, **members[each].options)
            for each in (family.PLAIN, name)
        ]
        assert costs[1] == pytest.approx(costs[0], rel=1e-5), name


def test_tdt_of_pytorch_is_the_textbook(script):
    torch, peer = pytest.importorskip("torch"), script("tdt_peer")
    rng, durations = np.random.default_rng(0), (0, 1, 2, 4)
    logits = rng.standard_normal((3, 9, 5, 7 + len(durations)))
    lattice = rng.integers(1, 7, (3, 4)), np.array([9, 7, 3]), np.array([4, 2, 0])
    leaf = torch.from_numpy(logits).requires_grad_()
    loss = peer.loss_of_logits(leaf, *map(torch.from_numpy, lattice), 0, durations)
    loss.backward()
    options = {"blank": 0, "transducer": cupy_rnnt.tdt(durations)}
    cost, grad = cupy_rnnt.reference.rnnt_loss_and_grad(logits, *lattice, **options)
    assert loss.item() == pytest.approx(cost, rel=1e-12)
    np.testing.assert_allclose(leaf.grad, grad, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_family_on_a_gpu(script, run_on_gpu):
    family, fresh = script("family"), script("workloads").fresh

    def members(joint: Any, stage: str) -> dict[str, Any]:
        tdt = {"transducer": cupy_rnnt.tdt(family.DURATIONS)}
        return {
            family.PLAIN: family.Member(joint, {}),
            "tdt": family.Member(family.of_tdt(joint, stage), tdt),
        }

    sizes = {"QUICK": {"a fresh": lambda: fresh([4], [2], 9, 8)}, "DRAWN": ("tdt",)}
    rows, _ = run_on_gpu("family", members=members, **sizes)
    plain, tdt = rows
    assert plain["time"] == plain["products_per_plain"] == plain["workspace_per_plain"] == 1
    assert tdt["time"] > 0
    assert tdt["workspace_per_plain"] > 1  # it has more scores


@pytest.mark.slow
def test_tdt_on_a_gpu(script, run_on_gpu):
    shape = script("computed").Shape("tiny", 2, 6, 4, 9)
    rows, _ = run_on_gpu("tdt", QUICK=[shape], HIDDEN=12)
    assert [row["front"] for row in rows] == ["logits", "joint"]
    assert all("PyTorch" not in row["medians"] for row in rows)
    assert rows[1]["on_paper"]["host"] > 0
