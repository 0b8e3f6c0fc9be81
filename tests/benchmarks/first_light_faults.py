"""Steps that fail, in the places of some of ``benchmarks/first_light.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any


def present(report: Any) -> None:
    report("asked", present={"GPU": "some", "compute-sanitizer": "not there: mislaid"})
    report("named", machine={"gpu": "some"})


def crash(report: Any) -> None:
    report("before the crash", number=1)
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(report: Any) -> None:
    child = subprocess.Popen(["sleep", "600"])
    report("before the hang", child=child.pid)
    time.sleep(600)


def work(report: Any) -> None:
    report("worked", small=report.small, plugin=report.plugin)


def install() -> None:
    """What every process of ``benchmarks/first_light.py`` calls; importing this does nothing."""
    sys.modules["light.machine"] = SimpleNamespace(  # type: ignore[assignment]
        present=present, info=crash, compiled=hang, main_job=work
    )
