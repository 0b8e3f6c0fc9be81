"""The soak command: a few dozen cases of each kind, and that it finds what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from .. import ROOT
from . import calls
from .__main__ import main
from .cases import FRONTS, drawn, frameworks


def test_random_calls_are_right(capsys):
    assert main(["--cases", "60"]) == 0
    counts = re.findall(r"(\d+) \w+ of \w+\n", capsys.readouterr().out)
    assert sum(map(int, counts)) == 60


@pytest.mark.slow
def test_random_calls_on_an_emulated_device(capsys):
    assert main(["--cases", "1", "--device", "emulated"]) == 0
    assert "1 cases from seed 0, 0 failures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("disturbance", "cases"),
    [("allocations", 5), ("threads", 48), ("spawn", 4)],
)
@pytest.mark.slow
def test_disturbed_calls_leave_nothing_behind(disturbance, cases, capsys):
    assert main(["--cases", str(cases), "--disturb", disturbance]) == 0
    assert int(capsys.readouterr().out.split()[0]) > 0


@pytest.mark.parametrize(("disturbance", "cases"), [("interrupts", 8), ("fork", 12)])
@pytest.mark.slow
def test_disturbed_processes(disturbance, cases):
    """A fork wants a process without JAX. An interrupt wants one without hypothesis: if it hits the
    callback of hypothesis that watches the garbage collector, Python swallows it, and pytest fails.
    """
    command = [sys.executable, "-m", "tests.soak", "--cases", str(cases), "--disturb", disturbance]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.split()[0]) > 0
    assert "0 failures" in result.stdout


def test_a_fault_is_found_with_its_seed(monkeypatch, capsys):
    """FastEmit that has no effect: the command names the cases that it changes, and no others."""
    right = calls.ON_DEVICE["joint"]

    def wrong(*args, **options):
        return right(*args, **options | {"fastemit_lambda": 0.0})

    monkeypatch.setitem(calls.ON_DEVICE, "joint", wrong)
    assert main(["--cases", "40", "--seed", "7"]) == 1
    found = re.findall(r"python -m tests.soak --cases 1 --seed (\d+)", capsys.readouterr().out)
    affected = [drawn(int(seed)) for seed in found]
    assert len(affected) > 3
    for case in affected:
        assert (case.front, case.framework) == ("joint", "numpy")
        assert case.options["fastemit_lambda"] > 0
    assert main(["--cases", "1", "--seed", found[0]]) == 1


def test_a_call_that_writes_into_its_arguments_is_found(monkeypatch, capsys):
    right = calls.ON_DEVICE["logits"]

    def wrong(logits, *args, **options):
        return right(logits, *args, **options, overwrite_logits=logits.flags.writeable)

    monkeypatch.setitem(calls.ON_DEVICE, "logits", wrong)
    assert main(["--cases", "30"]) == 1
    assert "an argument has changed" in capsys.readouterr().out


def test_cases_are_of_every_front_and_framework():
    cases = [drawn(seed) for seed in range(200)]
    assert {case.front for case in cases} == set(FRONTS)
    assert {case.framework for case in cases} == set(frameworks())
    assert any(case.selects for case in cases)
    assert any(case.options.get("band") for case in cases)
