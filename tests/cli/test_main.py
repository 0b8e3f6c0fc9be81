"""The command line: what it prints, held against arithmetic done here, and how it fails."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import cli, joint, reference
from cupy_rnnt.cli import terminal

from .. import ROOT
from . import cases
from .cases import CHECKED

SMALL = [*cases.SMALL, "--device", "cpu"]


@pytest.fixture
def short(monkeypatch):
    cases.shorten(monkeypatch)


@pytest.fixture
def run(capsys):
    """Run a command line; its status, the text after each name it prints, and its errors."""
    return lambda *argv: cases.printed(capsys, *argv)[:3]


def number(text):
    """The first number of a text."""
    return float(re.search(r"\d[\d,.]*", text)[0].replace(",", ""))


def test_main_job_on_real_lengths(run):
    frames, labels = cli.librispeech_lengths(2)
    cells = int((frames * (labels + 1)).sum())
    padded = 2 * int(frames.max() * (labels.max() + 1))
    status, rows, err = run("--batch", "2", *SMALL, "--vocab", "40", "--seed", "3")
    assert (status, err) == (0, "")
    assert rows["samples B"] == "2"
    assert rows["frames T"] == f"{frames.min()} to {frames.max()}"
    assert rows["labels U"] == f"{labels.min()} to {labels.max()}"
    assert rows["vocabulary V, hidden H"] == "40, 6"
    assert rows["values"] == "float32, random, seed 3"
    assert rows["lattice cells"] == f"{cells:,} ({padded:,} with padding)"
    assert 0 < number(rows["cells kept"]) < cells
    assert rows["workspace"].endswith(" planned, 256 MiB allowed")
    logits = padded * 40 * 4 / 2**20
    assert (
        f"{logits:.3g} MiB of logits + {logits:.3g} MiB of gradient"
        in (rows["batched computation"])
    )
    seconds, rate = re.fullmatch(r"([\d.]+) s, ([\d,]+) cells a second", rows["time"]).groups()
    assert cells / number(rate) == pytest.approx(float(seconds), abs=0.0006)  # three decimals
    assert all(rows[name].endswith(": ok") for name in CHECKED)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_prints_the_costs_of_the_call_and_checks_them(run, monkeypatch, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    seen = {}
    original = joint.joint_rnnt_loss_and_grad

    def spy(*inputs, **options):
        seen["results"] = original(*inputs, **options)
        return seen["results"]

    monkeypatch.setattr(joint, "joint_rnnt_loss_and_grad", spy)
    status, rows, _ = run("--batch", "4", *SMALL, "--dtype", dtype)
    assert status == 0
    costs, gradients, info = seen["results"]
    texts = " / ".join(f"{f(costs):.1f}" for f in (np.min, np.median, np.max))
    assert rows["cost per sample"] == f"{texts} nats (min / median / max)"
    assert rows["cells computed"].startswith(f"{info.computed}, ")
    assert rows["cells kept"].startswith(f"{info.kept} for the gradients")
    assert gradients.weight.dtype.name == dtype
    assert gradients.weight.shape == (11, 6)


@pytest.mark.usefixtures("short")
def test_same_seed_same_numbers(run):
    costs = [run(*SMALL, "--batch", "3", "--seed", seed)[1]["cost per sample"] for seed in "001"]
    assert costs[0] == costs[1] != costs[2]


@pytest.mark.usefixtures("short")
def test_checks_the_shortest_samples(run, monkeypatch):
    seen = []
    original = reference.joint_rnnt_loss_and_grad

    def spy(*inputs, **options):
        seen.extend(inputs[5])  # logit_lengths
        return original(*inputs, **options)

    monkeypatch.setattr(reference, "joint_rnnt_loss_and_grad", spy)
    run("--batch", "4", *SMALL)
    assert seen == [7, 4, 5]
    seen.clear()
    monkeypatch.setattr(cli, "_CHECKED_PRODUCTS", 19 * 11 * 6)  # the two shortest, no more
    run("--batch", "4", *SMALL)
    assert seen == [7, 4]
    seen.clear()
    monkeypatch.setattr(cli, "_CHECKED_PRODUCTS", 1)  # never fewer than one
    run("--batch", "4", *SMALL)
    assert seen == [7]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("factor", [1.001, np.nan])
@pytest.mark.parametrize("wrong", CHECKED)
def test_wrong_result_fails_the_check(run, monkeypatch, wrong, factor):
    original = reference.joint_rnnt_loss_and_grad

    def skewed(*inputs, **options):
        costs, gradients = original(*inputs, **options)
        if wrong == "cost":
            return costs * factor, gradients
        name = wrong.split()[-1]
        return costs, gradients._replace(**{name: getattr(gradients, name) * factor})

    monkeypatch.setattr(reference, "joint_rnnt_loss_and_grad", skewed)
    status, rows, err = run("--batch", "4", *SMALL)
    assert status == 1
    assert rows[wrong].endswith(": FAILED")
    if factor == factor:  # a NaN cost leaves no tolerance for the gradients either
        assert err == f"cupy_rnnt: error: the check of {wrong} failed\n"
        assert all(rows[name].endswith(": ok") for name in CHECKED if name != wrong)


def test_tolerances_grow_as_their_derivation_says():
    def tolerances(dtype, frames, hidden):
        inputs = cli._Inputs(*[np.zeros(0)] * 7)._replace(
            weight=np.zeros((2, hidden), dtype),
            logit_lengths=np.array([1, frames]),
            target_lengths=np.array([0, 0]),
        )
        return np.array(cli._tolerances(inputs, cost=frames))

    of_cost, of_gradient = tolerances(np.float32, 100, 16)
    assert of_cost == pytest.approx(4 * 4 * 2**-24)
    assert of_gradient == pytest.approx(4 * 10 * 4 * 2**-24)
    np.testing.assert_allclose(tolerances(np.float32, 100, 64), [2 * of_cost, 2 * of_gradient])
    assert tolerances(np.float16, 100, 16)[1] == pytest.approx(of_gradient + 2**-11)
    assert tolerances(np.float64, 100, 16)[1] == pytest.approx(4 * 10 * (4 + 100) * 2**-53)


def estimate(**options):
    sizes = {"batch": 3, "frames": 50, "labels": 20, "vocab": 70, "hidden": 30} | options
    return ["estimate", *(word for name, n in sizes.items() for word in (f"--{name}", str(n)))]


@pytest.mark.parametrize(("dtype", "itemsize"), [("float16", 2), ("float32", 4), ("float64", 8)])
def test_estimate_is_arithmetic(run, dtype, itemsize):
    status, rows, err = run(*estimate(), "--dtype", dtype, "--max-workspace-bytes", "3MiB")
    assert (status, err) == (0, "")
    floats = (3 * 50 * 30 + 3 * 21 * 30 + 70 * 30 + 70) * itemsize
    integers = (3 * 20 + 3 + 3) * 8
    logits = 3 * 50 * 21 * 70 * itemsize
    assert rows["batch"] == "B = 3, T = 50, U = 20, V = 70, H = 30"
    assert rows["dtype"] == dtype
    assert rows["lattice cells"] == "3,150"
    assert rows["inputs"] == terminal.nbytes(floats + integers)
    assert rows["gradients"] == terminal.nbytes(floats)
    both = terminal.nbytes(logits)
    assert rows["batched computation"].startswith(f"{both} of logits + {both} of gradient = ")
    assert terminal.nbytes(2 * logits) in rows["batched computation"]
    assert rows["workspace"].endswith(" planned, 3 MiB allowed")


@pytest.mark.parametrize("budget", ["3MiB", "256MiB"])
def test_estimate_is_the_plan_of_the_call(run, budget):
    rng = np.random.default_rng(0)
    shapes = [(3, 50, 30), (3, 21, 30), (70, 30), (70,)]
    floats = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    targets, lengths = rng.integers(1, 70, (3, 20)), ([50] * 3, [20] * 3)
    limit = terminal.parse_nbytes(budget)
    *_, info = cupy_rnnt.joint_rnnt_loss_and_grad(
        *floats, targets, *lengths, 0, max_workspace_bytes=limit, return_info=True
    )
    _, rows, _ = run(*estimate(), "--max-workspace-bytes", budget)
    assert rows["workspace"] == f"{terminal.nbytes(info.workspace_bytes)} planned, " + (
        terminal.nbytes(limit) + " allowed"
    )


def test_estimate_of_a_large_batch_allocates_and_computes_nothing(run):
    start = time.perf_counter()
    tracemalloc.start()
    try:
        status, rows, _ = run("estimate")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert status == 0
    assert rows["batch"] == "B = 1024, T = 1000, U = 200, V = 4096, H = 640"
    assert number(rows["lattice cells"]) == 1024 * 1000 * 201
    logits = 1024 * 1000 * 201 * 4096 * 4 / 2**40
    assert rows["batched computation"].startswith(f"{logits:.3g} TiB of logits")
    floats = (1024 * 1201 * 640 + 4096 * 641) * 4 / 2**30
    assert rows["gradients"] == f"{floats:.3g} GiB"
    assert number(rows["workers"]) >= 1
    assert number(rows["tile"]) >= 1
    assert 1 <= number(rows["groups of samples"]) <= 1024
    assert number(rows["rows of logits stored"]) < 256 * 2**20 / (4096 * 4)
    assert peak < 64 * 2**20
    assert time.perf_counter() - start < 20  # half a second, if nobody else is at work


def test_estimate_without_labels(run):
    status, rows, _ = run(*estimate(labels=0))
    assert status == 0
    assert rows["lattice cells"] == "150"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch", "0"], "argument --batch: '0' is not a whole number between 1 and 2147483647"),
        (["--batch", "257"], "--batch is 257, but there are 256 utterances"),
        (["--vocab", "1"], "argument --vocab: '1' is not a whole number between 2"),
        (["--hidden", "1.5"], "argument --hidden: '1.5' is not a whole number"),
        (["--seed", "-1"], "argument --seed: "),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--max-workspace-bytes", "1.5"], "argument --max-workspace-bytes: '1.5' is not a number"),
        (["--max-workspace-bytes", "9MB"], "argument --max-workspace-bytes: '9MB' is not a number"),
        (["estimat"], "unrecognized arguments: estimat"),
        (["--batch", "3", "estimate"], "unrecognized arguments: estimate"),
        (["estimate", "--seed", "3"], "unrecognized arguments: --seed 3"),
        (["estimate", "--max-workspace-bytes", "1KiB"], "max_workspace_bytes is 1024, but this"),
        (["info", "--batch", "3"], "unrecognized arguments: --batch 3"),
    ],
)
def test_bad_option_is_one_line(run, argv, message):
    status, _, err = run(*argv)
    assert status == 2
    assert err.startswith(f"cupy_rnnt: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("short")
def test_error_of_the_library_is_one_line(run):
    status, _, err = run("--batch", "2", *SMALL, "--max-workspace-bytes", "1000")
    assert status == 2
    assert err.startswith("cupy_rnnt: error: max_workspace_bytes is 1000, but this batch needs")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyboardInterrupt(), (130, "")),
        (MemoryError(), (2, "cupy_rnnt: error: out of memory\n")),
        (TypeError("dtype\nis wrong"), (2, "cupy_rnnt: error: dtype is wrong\n")),
    ],
)
def test_interruptions(run, monkeypatch, raised, expected):
    def call(*inputs, **options):
        raise raised

    monkeypatch.setattr(joint, "joint_rnnt_loss_and_grad", call)
    status, _, err = run("--batch", "2", *SMALL)
    assert (status, err) == expected


def test_bfloat16_without_ml_dtypes(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    status, _, err = run(*estimate(), "--dtype", "bfloat16")
    assert (status, err) == (
        2,
        "cupy_rnnt: error: --dtype bfloat16 needs the package ml_dtypes\n",
    )


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("bar", ["tqdm", "own"])
def test_progress_bar_on_a_terminal(run, monkeypatch, bar):
    if bar == "tqdm":
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    status, _, err = run("--batch", "4", *SMALL)
    assert status == 0
    assert "cells" in err if bar == "tqdm" else f"\r100% {'#' * 40}" in err
    assert err.endswith("\r")
    assert not err.splitlines()[-1].strip()  # gone once the work is done


@pytest.mark.parametrize("argv", [["--help"], ["estimate", "--help"], ["info", "--help"]])
def test_help(capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(f"usage: python -m cupy_rnnt{''.join(f' {a}' for a in argv[:-1])} [-h]")
    if argv == ["--help"]:
        for word in (
            "LibriSpeech",
            "csukuangfj",
            "Apache-2.0",
            "estimate",
            "info",
            "(default: 16)",
        ):
            assert word in out


def python(*argv):
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)


def test_as_a_program():
    done = python("-m", "cupy_rnnt", "--batch", "1", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"cupy_rnnt {cupy_rnnt.__version__} on the CPU (")
    assert done.stdout.count(": ok\n") == 3
    failed = python("-m", "cupy_rnnt", "--vocab", "none")
    assert (failed.returncode, failed.stdout) == (2, "")
