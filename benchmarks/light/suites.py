"""The tests of the package, and the sanitizer of CUDA, on the GPU."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from . import Report, require
from .machine import sanitizer_path

ROOT = Path(__file__).resolve().parents[2]
_WORKERS = 12
_SANITIZED = "values", "sweeps", "rows"
_OUTCOMES = "PASSED|FAILED|ERROR|SKIPPED"
# ``[gw0] [ 10%] PASSED tests/...`` of workers, or ``tests/... PASSED [ 10%]``.
_OUTCOME = re.compile(rf"\] ({_OUTCOMES}) (\S+::.*)|^(\S+::.*) ({_OUTCOMES}) +\[")
_TAIL = 6000  # characters of the output that are kept


def _lines(command: list[str], seconds: float) -> Iterator[str]:
    """What a program prints, until it ends or the time is over; then it is interrupted, and killed
    if it goes on."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as program:
        timers = [
            threading.Timer(max(0, seconds - 5), program.send_signal, [signal.SIGINT]),
            threading.Timer(seconds, program.kill),
        ]
        for timer in timers:
            timer.start()
        assert program.stdout
        yield from program.stdout
        code = program.wait()
        for timer in timers:
            timer.cancel()
    yield f"exit status {code}"


def pytest(report: Report) -> None:
    """The device tests. Outcomes are counted as they come, so that none is lost to the clock."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-p", report.plugin.partition(":")[0]] if report.plugin else []
    workers = _WORKERS if find_spec("xdist") and not report.small else 0
    command += ["-n", str(workers)] if find_spec("xdist") else []
    command += ["--devices", "cuda", "-k", "cuda"]
    command += ["tests/ops/cuda/test_references.py"] if report.small else []
    outcomes: Counter[str] = Counter()
    failed: list[str] = []
    output = ""
    start = time.monotonic()
    for line in _lines(command, report.seconds_left() - 3):
        output = (output + line)[-_TAIL:]
        match = _OUTCOME.search(line)
        if not match:
            continue
        outcome, test = match[1] or match[4], (match[2] or match[3]).strip()
        outcomes[outcome] += 1
        if outcome in ("FAILED", "ERROR"):
            failed.append(test)
            report(f"{outcome} {test}"[:150], test=test)
    counted = ", ".join(f"{count} {outcome.lower()}" for outcome, count in outcomes.items())
    ended = output.splitlines()[-1]
    report(
        f"{counted or 'no test'}, in {time.monotonic() - start:.0f} s, {ended}",
        outcomes=outcomes,
        failed=failed,
        output=output,
    )
    require(ended == "exit status 0", ended)


def memcheck(report: Report) -> None:
    _sanitize(report, "memcheck")


def racecheck(report: Report) -> None:
    _sanitize(report, "racecheck")


def _sanitize(report: Report, tool: str) -> None:
    """Toy sizes under compute-sanitizer, every array an allocation of its own."""
    seconds = report.seconds_left() - 3
    program = [sys.executable, "benchmarks/first_light.py", "--run", *_SANITIZED]
    program += ["--small", "--no-pool", "--seconds", f"{seconds:.0f}"]
    options = ["--tool", tool, "--error-exitcode", "99", "--report-api-errors", "no"]
    options += ["--padding", "512"] if tool == "memcheck" else []
    found: list[str] = []
    output = ""
    for line in _lines([sanitizer_path(), *options, *program], seconds):
        output = (output + line)[-_TAIL:]
        if line.startswith("========="):
            found.append(line.strip())
    ended = output.splitlines()[-1]
    summary = [line for line in found if "SUMMARY" in line]
    report(
        f"{'; '.join(summary) or 'no summary'}, {ended}",
        summary=summary,
        found=found[:200],
        output=output,
    )
    require(bool(summary) and ended == "exit status 0", f"{tool} has found something, or failed")
