"""What a GPU says of this package: values, times by kernel, contestants, tests, in one command.

    python benchmarks/first_light.py --out DIR

Each step runs in a process of its own, within its share of the time: what crashes or hangs loses
that step only. Results are printed at once, and DIR/first_light.json is written after each of
them. What a step needs is asked once, at the start; a step that lacks something says so.

    python benchmarks/first_light.py --show DIR/first_light.json

prints such a file.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import light

HERE = Path(__file__).resolve().parent
FILE = "first_light.json"
_GRACE = 2.0  # seconds that a step has to end after its time is over
_LEAST = 5.0  # seconds below which no step is started
_KEPT = 6000  # characters of what a step has printed beside its results


class Step(NamedTuple):
    """A function ``light.MODULE:FUNCTION`` of a report, and what it takes."""

    function: str
    share: float
    """Seconds of the budget of 400; what a step leaves is there for those after it."""
    needs: tuple[str, ...] = ("GPU",)
    """Of what :func:`light.machine.present` asks for."""


STEPS = {
    "present": Step("machine:present", 35, ()),
    # Does it work?
    "info": Step("machine:info", 12, ()),
    "compile": Step("machine:compiled", 20),
    "main job": Step("machine:main_job", 15),
    "values": Step("values:values", 25),
    "torch": Step("values:torch_tensors", 15, ("GPU", "PyTorch")),
    "jax": Step("values:jax_arrays", 20, ("GPU", "JAX")),
    # Where does the time go?
    "calls bfloat16": Step("calls:bfloat16", 25),
    "calls float32": Step("calls:float32", 25),
    # How fast are the parts?
    "sweeps": Step("parts:sweeps", 15),
    "products": Step("parts:products", 17),
    "rows": Step("parts:rows", 10),
    # Beside others, and on the batch that the package is for.
    "contestants": Step("contestants:contestants", 28, ("GPU", "PyTorch")),
    "headline": Step("headline:headline", 33),
    # Tests.
    "pytest": Step("suites:pytest", 45, ("GPU", "pytest")),
    "memcheck": Step("suites:memcheck", 30, ("GPU", "compute-sanitizer")),
    "racecheck": Step("suites:racecheck", 30, ("GPU", "compute-sanitizer")),
}


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("first_light"),
        help=f"folder of {FILE} (default: first_light)",
    )
    parser.add_argument(
        "--budget-seconds", type=float, default=400, help="of all steps together (default: 400)"
    )
    parser.add_argument("--small", action="store_true", help="toy sizes: do the steps run?")
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="some only", metavar="STEP")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print such a file, and no more")
    parser.add_argument(
        "--import",
        dest="plugin",
        metavar="MODULE[:FUNCTION]",
        help="a module that every step imports first, such as a stand-in for a GPU, and a function "
        "of it that is called then",
    )
    for_steps = parser.add_argument_group("of the process of a step")
    for_steps.add_argument("--run", nargs="+", choices=STEPS, metavar="STEP")
    for_steps.add_argument("--seconds", type=float, default=60)
    for_steps.add_argument("--no-pool", action="store_true", help="an allocation for every array")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    given = options(argv)
    if given.show:
        show(json.loads(given.show.read_text()))
        return 0
    if given.run:
        run(given)
        return 0
    return Session(given).run()


# The process of a step


def run(given: argparse.Namespace) -> None:
    sys.path.insert(0, str(HERE.parent))  # the package and its tests, installed or not
    if given.plugin:
        name, _, function = given.plugin.partition(":")
        module = importlib.import_module(name)
        if function:
            getattr(module, function)()
    if given.no_pool:
        import cupy

        cupy.cuda.set_allocator(None)
    report = light.Report(given.small, given.seconds, given.plugin)
    for name in given.run:
        module, function = STEPS[name].function.split(":")
        getattr(importlib.import_module(f"light.{module}"), function)(report)


# All steps


class Session:
    """Runs steps one after the other and keeps what they report."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._start = time.monotonic()
        self._file = given.out / FILE
        given.out.mkdir(parents=True, exist_ok=True)
        self._content: dict[str, Any] = {
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "options": {"small": given.small, "budget_seconds": given.budget_seconds},
            "stand_in": given.plugin,
            "machine": {},
            "present": {},
            "steps": {},
        }

    def run(self) -> int:
        """Exit status: 0 if no step has failed."""
        names = [name for name in STEPS if name in {"present", *(self._given.steps or STEPS)}]
        self._content["steps"] = {name: {"status": "not run"} for name in names}
        for i, name in enumerate(names):
            self._content["steps"][name] = self._step(name, names[i + 1 :])
            self._write()
        statuses = {name: step["status"] for name, step in self._content["steps"].items()}
        self._say(", ".join(f"{name}: {status}" for name, status in statuses.items()))
        return int(any(status in ("failed", "out of time") for status in statuses.values()))

    def _step(self, name: str, later: list[str]) -> dict[str, Any]:
        lacking = [
            f"{need} is {answer}"
            for need, answer in self._content["present"].items()
            if need in STEPS[name].needs and answer.startswith("not there")
        ]
        seconds = self._seconds(name, later)
        if lacking or seconds < _LEAST:
            status = "not there" if lacking else "not run"
            why = "; ".join(lacking) or "no time left"
            self._say(f"{name}: {status}: {why}")
            return {"status": status, "why": why}
        self._say(f"{name}: up to {seconds:.0f} s")
        return self._process(name, seconds)

    def _seconds(self, name: str, later: list[str]) -> float:
        """What is left when all later steps have got their shares."""
        shares = [STEPS[other].share for other in (name, *later)]
        left = self._given.budget_seconds - (time.monotonic() - self._start)
        chosen = sum(STEPS[other].share for other in self._content["steps"])
        unit = self._given.budget_seconds / chosen
        return max(left - unit * sum(shares[1:]), 0) if left > 0 else 0

    def _process(self, name: str, seconds: float) -> dict[str, Any]:
        """Run a step, and stop it when its time is over, with all that it has started."""
        step: dict[str, Any] = {"status": "running", "results": []}
        self._content["steps"][name] = step
        start = time.monotonic()
        out_of_time = threading.Event()
        with subprocess.Popen(
            self._command(name, seconds - _GRACE),
            cwd=HERE.parent,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            errors="replace",
        ) as process:

            def stop() -> None:
                out_of_time.set()
                kill_session(process.pid)

            timer = threading.Timer(seconds, stop)
            timer.start()
            try:
                output = self._results(name, process.stdout, step["results"])
                code = process.wait()
            finally:
                timer.cancel()
                kill_session(process.pid)
        step["seconds"] = round(time.monotonic() - start, 2)
        step["status"] = "out of time" if out_of_time.is_set() else "failed" if code else "done"
        if code:
            step |= {"exit_status": code, "output": output}
            self._say(f"{name}: {step['status']}, exit status {code}: ...{output[-600:].strip()}")
        return step

    def _command(self, name: str, seconds: float) -> list[str]:
        command = [sys.executable, str(HERE / "first_light.py"), "--run", name]
        command += ["--seconds", f"{seconds:.1f}"]
        command += ["--small"] if self._given.small else []
        return command + (["--import", self._given.plugin] if self._given.plugin else [])

    def _results(self, name: str, lines: Any, results: list[dict[str, Any]]) -> str:
        """Take the results as they come; return the end of what else was printed."""
        output = ""
        for line in lines:
            before, mark, result = line.partition(light.MARK)
            output = (output + before)[-_KEPT:]
            if mark:
                results.append(json.loads(result))
                self._say(f"{name}: {results[-1]['text']}")
                for part in "present", "machine":
                    self._content[part] |= results[-1].get(part, {})
                self._write()
        return output

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {text}", flush=True)

    def _write(self) -> None:
        """In one go, so that a kill leaves a whole file."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._content, indent=1) + "\n")
        new.replace(self._file)


def kill_session(leader: int) -> None:
    """A process that leads a session, and all that it has started there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


# Reading a file

_SHOWN = "driver", "python", "numpy", "cupy-cuda13x", "torch", "jax", "cpu", "commit"


def show(content: dict[str, Any]) -> None:
    for line in shown(content):
        print(line)


def shown(content: dict[str, Any]) -> Iterator[str]:
    """What the file says, for people."""
    machine, given = content["machine"], content["options"]
    where = machine.get("gpu", "no GPU")
    if content["stand_in"]:
        where += f", which {content['stand_in']} stands for: times mean nothing"
    yield f"{content['started']}, {where}"
    if given["small"]:
        yield "toy sizes (--small): times mean nothing"
    yield ", ".join(f"{key} {machine[key]}" for key in _SHOWN if machine.get(key))
    for name, answer in content["present"].items():
        yield f"  {name}: {answer}"
    for name, step in content["steps"].items():
        if name == "present":
            continue
        yield ""
        why = f": {step['why']}" if "why" in step else ""
        took = f", {step['seconds']} s" if "seconds" in step else ""
        yield f"{name}: {step['status']}{took}{why}"
        yield "-" * len(name)
        for result in step.get("results", []):
            yield f"  {result['text']}"
        if step["status"] in ("failed", "out of time"):
            yield from (f"  | {line}" for line in step["output"].splitlines()[-15:])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the step that runs, too
    sys.exit(main())
