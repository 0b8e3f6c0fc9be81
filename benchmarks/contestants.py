"""What do losses for transducers take on workloads as people train them?

Time and peak memory of loss and all gradients from encoder and predictor outputs on, in float32,
and errors against float64. Each contestant runs in a process of its own; those that this Python
does not have run with ``--python``, such as an environment with PyTorch 2.9.1 and torchaudio 2.9.1.
A GPU runs the whole sizes, a CPU the part that the name says: flash/16 has a sixteenth of the
cells. Time on a CPU is that of the processor, on one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import style
from contestant import CONTESTANTS, DURATIONS, INPUTS, LATTICE, TRUTH
from matplotlib.figure import Figure
from workloads import Joint, fresh, speech

from cupy_rnnt import cli

ONLY_TDT = "cupy_rnnt", "PyTorch autograd"
OURS = "cupy_rnnt"
FOLDER = Path(__file__).parent
PATHS = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
TIMEOUT = 300


class Workload(NamedTuple):
    """The joint, and what its cells are."""

    build: Callable[[], Joint]
    activation: str = "relu"
    transducer: str = "regular"
    dropout: float = 0.0


def padded(size: int, frames: int, labels: int, vocabulary: int, hidden: int = 640) -> Joint:
    return fresh([frames] * size, [labels] * size, vocabulary, hidden)


def icefall(size: int) -> Joint:
    """Utterances of LibriSpeech: 76 of them are 1000 s."""
    return fresh(*cli.librispeech_lengths(size), 500, 512)


def spoken(size: int) -> Joint:
    return speech("trained", [str(i % 4) for i in range(size)], 500, 512)


TDT = {"transducer": "tdt", "dropout": 0.2}
WHOLE = {
    "flash": Workload(partial(padded, 32, 400, 128, 1024)),
    "nemo": Workload(partial(padded, 64, 150, 72, 1025)),
    "parakeet": Workload(partial(padded, 16, 500, 160, 8193 + DURATIONS), **TDT),
    "icefall": Workload(partial(icefall, 76), "tanh"),
    "icefall, trained": Workload(partial(spoken, 76), "tanh"),
    "long": Workload(partial(padded, 10, 500, 160, 1025)),
}
SCALED = {
    "flash/16": Workload(partial(padded, 2, 400, 128, 1024)),
    "nemo/16": Workload(partial(padded, 4, 150, 72, 1025)),
    "parakeet/64": Workload(partial(padded, 1, 250, 80, 8193 + DURATIONS), **TDT),
    "icefall/19": Workload(partial(icefall, 4), "tanh"),
    "icefall/19, trained": Workload(partial(spoken, 4), "tanh"),
    "long/10": Workload(partial(padded, 1, 500, 160, 1025)),
}
QUICK = {
    "flash/quick": Workload(partial(padded, 2, 12, 5, 40, 32)),
    "parakeet/quick": Workload(partial(padded, 2, 12, 5, 40 + DURATIONS, 32), **TDT),
}
COLOURS = (style.BLUE, style.VERMILION, style.GREY, style.GREEN, style.ORANGE, style.PINK)
"""As many are drawn."""

Row = dict[str, Any]


def run(interpreter: str, contestant: str, workload: Workload, folder: Path, options: Any) -> Row:
    """What the process prints last."""
    words = [interpreter, str(FOLDER / "contestant.py"), contestant, str(folder)]
    repeats = 3 * options.repeats if contestant == OURS else options.repeats
    values = {"threads": options.threads[-1], "repeats": repeats, "device": options.device}
    values |= {name: getattr(workload, name) for name in ("activation", "transducer", "dropout")}
    words += [word for name, value in values.items() for word in (f"--{name}", str(value))]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, env=PATHS)
    except subprocess.TimeoutExpired:
        return {"fault": f"more than {TIMEOUT} s"}
    if done.returncode:
        return {"fault": (done.stderr.splitlines() or [f"exit {done.returncode}"])[-1][:100]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measurements(options: Any) -> Iterator[Row]:
    whole = WHOLE if options.device == "cuda" else SCALED
    for name, workload in (QUICK if options.quick else whole).items():
        joint = workload.build()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            arrays = {key: getattr(joint, key) for key in (*INPUTS, *LATTICE)}
            np.savez(folder / "inputs.npz", **arrays)
            for contestant in CONTESTANTS:
                row = entry(contestant, workload, folder, options)
                row = {"workload": name, "contestant": contestant, "cells": joint.cells, **row}
                summary = row.get("fault") or f"{row.get('seconds', 0):.2f} s"
                print(f"{name}, {contestant}: {summary}", flush=True)
                if contestant != TRUTH:
                    yield row


def entry(contestant: str, workload: Workload, folder: Path, options: Any) -> Row:
    if workload.transducer == "tdt" and contestant not in (TRUTH, *ONLY_TDT):
        return {"fault": "no TDT"}
    row = run(sys.executable, contestant, workload, folder, options)
    if options.python and "not installed" in row.get("fault", ""):
        row = run(options.python, contestant, workload, folder, options)
    return row


def report(rows: list[Row], options: Any) -> None:
    header = ["workload", "contestant", "seconds", "peak (MiB)", "error of loss", "of gradients"]
    body = []
    for row in rows:
        if "fault" in row:
            body.append([row["workload"], row["contestant"], row["fault"], "", "", ""])
            continue
        loss, *gradients = row["errors"].values()
        peak = f"{row['peak_bytes'] / common.MIB:.0f}"
        errors = [f"{loss:.0e}", f"{max(gradients):.0e}"]
        body.append([row["workload"], row["contestant"], f"{row['seconds']:.2f}", peak, *errors])
    common.publish("contestants", options, header, body)


def draw(rows: list[Row]) -> Figure:
    contestants = list(dict.fromkeys(row["contestant"] for row in rows if "fault" not in row))
    colours = dict(zip(contestants, COLOURS, strict=False))
    drawn = [row for row in rows if "fault" not in row and row["contestant"] in colours]
    names = list(dict.fromkeys(row["workload"] for row in drawn))
    chart = Figure(figsize=(2.3 * len(names) + 1, 6), layout="constrained")
    panels = chart.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        group = [row for row in drawn if row["workload"] == name]
        labels = [row["contestant"] for row in group]
        for axes, key, unit in zip(
            panels[:, column], ("seconds", "peak_bytes"), (1, common.MIB), strict=True
        ):
            values = [row[key] / unit for row in group]
            bars = axes.bar(labels, values, color=[colours[label] for label in labels])
            words = [f"{value:.0f}" if value >= 100 else f"{value:.2g}" for value in values]
            axes.bar_label(bars, words, fontsize=7)
            axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
            axes.margins(y=0.12)
        panels[0, column].set_xticks([])
        panels[0, column].set_title(name)
    panels[0, 0].set_ylabel("loss and gradients (s)")
    panels[1, 0].set_ylabel("peak above the inputs (MiB)")
    return chart


def message(rows: list[Row]) -> str:
    """How many times as much time and memory the best of the others takes, at least."""
    measured = [row for row in rows if "fault" not in row]
    least: list[float] = []
    for key in "seconds", "peak_bytes":
        ratios = [
            row[key] / own[key]
            for own in measured
            if own["contestant"] == OURS
            for row in measured
            if row["contestant"] != OURS and row["workload"] == own["workload"]
        ]
        least.append(min(ratios, default=1.0))
    return "All others take {:.1f} times the time and {:.1f} times the memory, or more".format(
        *least
    )


def main() -> None:
    others = "interpreter of the contestants that this one does not have"
    options = common.arguments(__doc__, repeats=1, threads=[1], redraws=True, python=others)
    rows = common.measured("contestants", options, partial(measurements, options))
    report(rows, options)
    chart = draw(rows)
    style.message(chart, message(rows))
    common.save_chart("contestants", options, chart)


if __name__ == "__main__":
    main()
