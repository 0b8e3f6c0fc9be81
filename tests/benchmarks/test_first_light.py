"""The command for whoever has a GPU: it runs to its end on an emulated one, and loses nothing to a
crash, a hang or the clock."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.results import JointGradients

from .. import devices
from ..ops.cuda.kernel_resources import ROOT
from ..tolerances import assert_costs_close, assert_gradients_close

FOLDER = ROOT / "benchmarks"
FAULTS = "tests.benchmarks.first_light_faults:install"


@pytest.fixture
def script(monkeypatch):
    """A function that imports one of the benchmarks by name."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if FOLDER in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]


# On an emulated GPU


@pytest.fixture
def emulated(tmp_path):
    """A function that runs some steps as the command line does, and returns what the file says of
    them."""

    def run(*steps: str) -> dict[str, dict]:
        command = [sys.executable, "benchmarks/first_light.py", "--small", "--out", str(tmp_path)]
        command += [
            "--import",
            "tests.emulated.in_place_of_cupy:pytest_configure",
            "--steps",
            *steps,
        ]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        content = json.loads((tmp_path / "first_light.json").read_text())
        assert done.returncode == 0, done.stdout + done.stderr
        assert content["stand_in"] == "tests.emulated.in_place_of_cupy:pytest_configure"
        assert content["machine"]["gpu"] == content["present"]["GPU"] == "emulated device"
        return content["steps"]

    with devices.emulated():  # or skip
        yield run


def test_values_on_an_emulated_gpu(emulated):
    steps = emulated("info", "compile", "main job", "values", "torch", "jax")
    cases = steps["values"]["results"]
    assert len(cases) == 2 * 2 * 4 + 2  # joint and logits, two vocabularies, four types; speech
    for case in cases:
        assert case["passed"]
        assert 0 < max(case["shares"].values()) <= 1
    assert all(case["certificate"] <= 2.0**-24 for case in cases if "certificate" in case)
    assert max(case["computed"] for case in cases[-2:]) < 0.5
    assert "gradient of predictor_out" in steps["main job"]["results"][-1]["printed"]
    assert len(steps["compile"]["results"][0]["seconds"]) == 4
    for name in "torch", "jax":
        assert steps[name]["status"] == "not there"
        assert "is not there: " in steps[name]["why"]


def test_times_on_an_emulated_gpu(emulated):
    steps = emulated("calls bfloat16", "sweeps", "products", "rows", "headline")
    whole, modelled, kernels, *_ = steps["calls bfloat16"]["results"]
    times = modelled["computed_host_seconds"], modelled["computed_gpu_seconds"]
    assert modelled["measured_over_computed"] == pytest.approx(
        sorted(whole["wall_seconds"])[len(whole["wall_seconds"]) // 2] / max(times)
    )
    assert 0 < times[1] < times[0]  # a toy starves the GPU
    assert 0 < whole["kept"] <= whole["computed"] <= whole["cells"] == 5 * 3 + 4 * 2
    assert kernels["by"].startswith("events")
    counts = {row["name"]: row["count"] for row in kernels["kernels"]}
    assert counts["lattice_sweep"] == 1
    assert counts["products"] == 3  # logits, gradients of weights and of hidden vectors
    times = [row["seconds"] for row in kernels["kernels"]]
    assert times == sorted(times, reverse=True)
    assert times[-1] > 0
    (sweeps,) = steps["sweeps"]["results"]
    for name in "lattice_sweep", "cost only: lattice_sweep", "lattice_mark", "lattice_leaving":
        assert sweeps["ns_a_diagonal"][name] == pytest.approx(sweeps["seconds"][name] * 1e9 / 71)
    assert len(steps["products"]["results"]) == 4
    for rows in steps["rows"]["results"]:
        assert set(rows["seconds"]) - set(rows["gigabytes_a_second"]) == {"frame_starts"}
    (headline,) = steps["headline"]["results"]
    assert headline["cells"] == 2 * (6 * 4 + 4 * 3)
    assert headline["pool_bytes"] > 2 * headline["input_bytes"]


def test_device_tests_on_an_emulated_gpu(emulated):
    *_, counted = emulated("pytest")["pytest"]["results"]
    assert counted["outcomes"]["PASSED"] > 100
    assert set(counted["outcomes"]) == {"PASSED"}


# Isolation and the clock


@pytest.fixture
def session(script, monkeypatch, tmp_path, capsys):
    """A function that runs steps of which some are faulty, within seconds, and returns the exit
    status, what the file says, and what was printed."""
    first_light = script("first_light")
    monkeypatch.setattr(first_light, "_LEAST", 0.2)
    monkeypatch.setattr(first_light, "_GRACE", 0.1)
    even = {name: step._replace(share=1) for name, step in first_light.STEPS.items()}
    monkeypatch.setattr(first_light, "STEPS", even)

    def run(seconds: float, *steps: str) -> tuple[int, dict, str]:
        options = ["--out", str(tmp_path), "--import", FAULTS, "--budget-seconds", str(seconds)]
        status = first_light.main([*options, "--steps", *steps])
        assert [path.name for path in tmp_path.iterdir()] == ["first_light.json"]
        content = json.loads((tmp_path / "first_light.json").read_text())
        return status, content, capsys.readouterr().out

    return run


def test_a_crash_and_a_hang_lose_nothing_else(session):
    status, content, printed = session(8, "info", "compile", "main job", "memcheck")
    assert status == 1
    steps = content["steps"]
    crashed, hung = steps["info"], steps["compile"]
    assert (crashed["status"], crashed["exit_status"]) == ("failed", -11)
    assert crashed["results"] == [{"text": "before the crash", "number": 1}]
    assert "last words" in crashed["output"]
    assert hung["status"] == "out of time"
    assert hung["results"][0]["text"] == "before the hang"
    stat = Path(f"/proc/{hung['results'][0]['child']}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"  # what it started is gone
    assert steps["main job"]["status"] == "done"
    assert steps["main job"]["results"] == [{"text": "worked", "small": False, "plugin": FAULTS}]
    why = "compute-sanitizer is not there: mislaid"
    assert steps["memcheck"] == {"status": "not there", "why": why}
    assert content["machine"] == {"gpu": "some"}
    for line in "before the crash", "before the hang", "worked", why:
        assert line in printed


def test_steps_for_which_there_is_no_time_are_not_run(session):
    status, content, _ = session(0.1, "info", "main job")
    assert status == 0
    assert {step["status"] for step in content["steps"].values()} == {"not run"}


def test_time_that_a_step_leaves_is_there_for_the_next(session, script):
    _, content, printed = session(8, "main job", "info")
    assert [*content["steps"]] == ["present", "info", "main job"]  # in their order
    up_to = [
        float(line.split("up to ")[1][:-2]) for line in printed.splitlines() if "up to" in line
    ]
    assert up_to[0] == pytest.approx(8 / 3, abs=0.6)
    assert up_to[0] < up_to[1] < up_to[2] <= 8


def test_shares_are_those_of_the_default_budget(script):
    first_light = script("first_light")
    assert sum(step.share for step in first_light.STEPS.values()) == 400
    assert first_light.options([]).budget_seconds == 400


def test_a_file_is_shown(session, script, capsys, tmp_path):
    session(8, "info", "memcheck")
    script("first_light").main(["--show", str(tmp_path / "first_light.json")])
    shown = capsys.readouterr().out
    assert f"some, which {FAULTS} stands for: times mean nothing" in shown
    for line in "  before the crash", "  | last words", "memcheck: not there: compute-sanitizer":
        assert line in shown


# What is measured


def test_busy_time_counts_what_overlaps_once(script):
    timing = script("light.timing")
    found = [timing.Interval("a", 5.0, 6.0), timing.Interval("b", 0.0, 2.0)]
    found += [timing.Interval("a", 1.0, 3.0), timing.Interval("b", 1.5, 1.75)]
    assert timing.busy_seconds(found) == 4.0
    assert timing.by_name(found) == [
        {"name": "a", "count": 2, "seconds": 3.0},
        {"name": "b", "count": 2, "seconds": 2.25},
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("void lattice_sweep<128>(Sample const*, long long)", "lattice_sweep"),
        ("lattice_write(long long, Sample const*)", "lattice_write"),
        ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH"),
        ("void at::native::(anonymous namespace)::f<float>(int)", "at::native::f<float>"),
        ("cupy_copy__int64_int64", "cupy_copy__int64_int64"),
    ],
)
def test_names_of_kernels(script, name, expected):
    importlib.import_module("cupy_rnnt.ops.cuda")  # declares kernels
    assert script("light.timing").short(name) == expected


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about the CUDA that it does not have
def test_intervals_are_read_from_the_profiler_of_pytorch(script, monkeypatch):
    """Operations of the CPU stand for those of a GPU."""
    torch, timing = pytest.importorskip("torch"), script("light.timing")
    cpu = torch.autograd.DeviceType.CPU
    monkeypatch.setattr(torch.autograd, "DeviceType", SimpleNamespace(CUDA=cpu))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(timing, "wait", lambda: None)
    matrix = torch.ones(300, 300)
    found = timing.profiled(lambda: torch.mm(matrix, matrix))
    (product,) = (interval for interval in found if interval.name == "aten::mm")
    assert 1e-6 < product.end - product.start < 1


def test_errors_that_are_too_large_or_nan_are_told(script, monkeypatch):
    values, light = script("light.values"), script("light")
    monkeypatch.setattr(values, "_allowed", lambda *_: (1e-6, 1e-5))
    for wrong, passes in ((1e-6, True), (1e-4, False), (np.nan, False)):
        errors = values._Errors(values._batch(True, 64), np.dtype(np.float32))
        errors.cost(np.full(2, 3.0), np.full(2, 3.0))
        errors.gradient("weight", np.array([1.0, 1 + wrong]), np.ones(2))
        assert errors.report(light.Report(True, 1, None), "case") is passes


def test_contestants_agree_with_the_package(script):
    torch, contestants = pytest.importorskip("torch"), script("light.contestants")
    joint = script("workloads").fresh([9, 7, 4], [3, 2, 0], 30, 12)
    wanted_loss, wanted = cupy_rnnt.joint_rnnt_loss_and_grad(*joint)
    contestants.tiles.ROWS = 20  # several tiles
    for name, contestant in contestants.CONTESTANTS.items():
        if "torchaudio" in name:
            continue
        loss, gradients = contestant(contestants._Case(joint, "float32", "cpu"))
        assert_costs_close(float(loss), wanted_loss, np.float32, 12)
        found = JointGradients(*(gradient.numpy() for gradient in gradients))
        assert_gradients_close(found, wanted, np.float32, 12)
        rough, _ = contestant(contestants._Case(joint, "bfloat16", "cpu"))
        assert rough.dtype == torch.float32
        assert 0 < abs(float(rough) - float(loss)) < 2.0**-8 * float(loss)


# What only a GPU runs, where the CPU or an emulator stands for it


@pytest.fixture
def results(script):
    """A function that runs a step in this process, in small, and returns what it reports."""
    light = script("light")

    class Kept(light.Report):
        def __init__(self) -> None:
            super().__init__(True, 600, None)  # seconds, more than any of these takes
            self.results: list[dict] = []

        def __call__(self, text, **values):
            self.results.append({"text": text, **values})

    def run(step, *arguments) -> list[dict]:
        report = Kept()
        step(report, *arguments)
        return report.results

    return run


@pytest.fixture
def torch_on_cuda(monkeypatch):
    """PyTorch, whose CPU takes itself for a GPU."""
    torch = pytest.importorskip("torch")
    event = SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 2000.0)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "Event": lambda enable_timing: event,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda: 7,
        "memory_allocated": lambda: 3,
        "reset_peak_memory_stats": lambda: None,
        "stream": nullcontext,
        "synchronize": lambda: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    return torch


@pytest.mark.usefixtures("torch_on_cuda", "collector")
def test_every_contestant_is_measured_or_told_why_not(script, results, monkeypatch):
    contestants = script("light.contestants")
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    case = partial(contestants._Case, device="cpu")
    monkeypatch.setattr(contestants, "_Case", case)
    monkeypatch.setattr(contestants, "_REPEATS", 1)
    found = results(contestants.contestants)
    assert len(found) == 2 * 2 * len(contestants.CONTESTANTS)
    for result in found:
        if "torchaudio" in result["contestant"]:
            assert result["fault"].startswith("ModuleNotFoundError")
        else:
            assert (result["peak_bytes"], set(result["wall_seconds"])) == (4, {2.0})
    norms = {r["contestant"]: r["d_weight_norm"] for r in found if "fault" not in r}
    ours, *others = (norm for name, norm in norms.items() if name.startswith("trained, float32"))
    assert others == pytest.approx([ours] * len(others), rel=1e-5)


def test_values_through_pytorch_and_jax(script, results, torch_on_cuda):
    pytest.importorskip("jax")
    values = script("light.values")
    with devices.emulated():
        joint = values._batch(True, 64)
        (by_torch,) = results(values._torch_case, torch_on_cuda, "float32", joint)
        by_jax = results(values.jax_arrays)
    for case in by_torch, *by_jax:
        assert case["passed"]
        assert set(case["shares"]) == {"cost", *JointGradients._fields}


_SANITIZER = """#!/bin/sh
printf '%s\\n' "$@" > "$(dirname "$0")/words"
echo "========= COMPUTE-SANITIZER"
echo "========= {summary}"
exit {status}
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize(
    ("summary", "status", "passes"),
    [
        ("ERROR SUMMARY: 0 errors", 0, True),
        ("ERROR SUMMARY: 2 errors", 99, False),
        ("no process found", 0, False),
    ],
)
def test_what_the_sanitizer_says(
    script, results, monkeypatch, tmp_path, tool, summary, status, passes
):
    suites, program = script("light.suites"), tmp_path / "compute-sanitizer"
    program.write_text(_SANITIZER.format(summary=summary, status=status))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with nullcontext() if passes else pytest.raises(SystemExit, match=tool):
        (found,) = results(getattr(suites, tool))
        assert found["summary"] == [f"========= {summary}"]
    words = (tmp_path / "words").read_text().split()
    assert words[:2] == ["--tool", tool]
    first_light = script("first_light")
    asked = first_light.options(words[words.index("benchmarks/first_light.py") + 1 :])
    assert asked.small
    assert asked.no_pool
    assert set(asked.run) <= set(first_light.STEPS)


def test_the_headline_begins_with_a_part(script, results, monkeypatch):
    headline, fresh = script("light.headline"), script("workloads").fresh
    for name, value in {"_BATCH": 4, "_PILOT": 2, "_BYTES": 2**26}.items():
        monkeypatch.setattr(headline, name, value)
    few = fresh([5], [2], 20, 12)
    with devices.emulated():
        part, whole = results(headline._attempt, "toy", few)
    assert "extrapolated, not measured" in part["text"]
    assert part["extrapolated_seconds"] * part["cells_a_second"] == pytest.approx(4 * 15)
    assert whole["cells"] == 4 * 15
    planned = whole["workspace_bytes"] + 2 * whole["input_bytes"]
    assert 2 * whole["input_bytes"] < whole["pool_bytes"] < planned + 2**16
    assert whole["max_workspace_bytes"] == 2**26 - 2 * whole["input_bytes"]
    expected = cupy_rnnt.joint_rnnt_loss(*few)
    assert whole["loss"] == pytest.approx(expected, rel=1e-5)
