"""How do time and memory grow with B, T, U, V and H, for a fresh joint and a trained one?

Each size grows by a decade or more while the others stay. Trained joints are real speech: prompts
end to end, read faster or slower, by interpolating encoder outputs, to have the frames that are
wanted, and padded to V and H. Time is that of the processor, on one thread, the least of the
repeats, and memory that of NumPy's arrays beyond inputs and gradients (tracemalloc), with the
default workspace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import common
import numpy as np
import style
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from workloads import Joint, fresh, speech

import cupy_rnnt

BASE = {"B": 2, "T": 400, "U": 100, "V": 512, "H": 256}
GROWN = {
    "B": [1, 2, 4, 8, 16],
    "T": [200, 400, 800, 1600, 3200],
    "U": [30, 60, 120, 240, 360],
    "V": [300, 600, 1200, 2400, 4800],
    "H": [256, 512, 1024, 2048, 4096],
}
QUICK = {"B": [1, 2], "T": [200, 400]}
INPUTS = "fresh", "trained"
QUANTITIES = {"seconds": "time (s, one thread)", "traced_bytes": "memory (MiB)"}
LABELS_A_PROMPT = 51  # at least; those of the last prompt beyond U are cut off with its frames

Row = dict[str, Any]


def build(inputs: str, sizes: dict[str, int]) -> Joint:
    size, frames, labels, vocabulary, hidden = sizes.values()
    if inputs == "fresh":
        return fresh([frames] * size, [labels] * size, vocabulary, hidden)
    prompts = tuple(str(i % 4) for i in range(labels // LABELS_A_PROMPT + 1))
    long = speech("trained", [prompts] * size, vocabulary, hidden)
    share = labels / long.targets.shape[1]
    places = np.linspace(0, share * (long.encoder_out.shape[1] - 1), frames)
    below = places.astype(int)
    part = (places - below).astype(np.float32)[:, None]
    above = np.minimum(below + 1, long.encoder_out.shape[1] - 1)
    encoder_out = (1 - part) * long.encoder_out[:, below] + part * long.encoder_out[:, above]
    lattice = np.full(size, frames), np.full(size, labels)
    columns = long.predictor_out[:, : labels + 1].copy(), long.weight, long.bias
    return Joint(encoder_out, *columns, long.targets[:, :labels], *lattice)


def measure(grown: str, value: int, inputs: str, repeats: int) -> Row:
    joint = build(inputs, BASE | {grown: value})
    call = partial(cupy_rnnt.joint_rnnt_loss_and_grad, *joint)
    *_, info = call(return_info=True)  # warms up, too
    samples = [processor_seconds(call) for _ in range(repeats)]
    return {
        "grown": grown,
        "value": value,
        "inputs": inputs,
        "cells": info.cells,
        "computed": info.computed / info.cells,
        "kept": info.kept / info.cells,
        "seconds": min(samples),
        "traced_bytes": common.peak_traced(call),
        "planned_bytes": info.workspace_bytes,
        "samples": samples,
    }


def processor_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def exponent(rows: list[Row], key: str) -> float:
    """Of `key` as a power of the value that grows, fitted to the logarithms."""
    logs = np.log([[row["value"], row[key]] for row in rows])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def grouped(rows: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """By what grows, then by inputs."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row["grown"], {}).setdefault(row["inputs"], []).append(row)
    return groups


def report(rows: list[Row], options: Any) -> None:
    header = ["grows", "from", "to", "inputs", "computed", "seconds", "time as"]
    body = [
        [
            name,
            group[0]["value"],
            group[-1]["value"],
            inputs,
            f"{group[0]['computed']:.1%} to {group[-1]['computed']:.1%}",
            f"{group[0]['seconds']:.3f} to {group[-1]['seconds']:.3f}",
            f"{name} ** {exponent(group, 'seconds'):.2f}",
            "{:.0f} to {:.0f}".format(
                *(row["traced_bytes"] / common.MIB for row in (group[0], group[-1]))
            ),
            f"{name} ** {exponent(group, 'traced_bytes'):.2f}",
        ]
        for name, groups in grouped(rows).items()
        for inputs, group in groups.items()
    ]
    common.publish("growth", options, [*header, "memory (MiB)", "memory as"], body)


def draw(rows: list[Row]) -> Figure:
    groups = grouped(rows)
    chart = Figure(figsize=(3 * len(groups), 5.6), layout="constrained")
    panels = chart.subplots(2, len(groups), sharey="row", squeeze=False)
    for column, (name, of_inputs) in enumerate(groups.items()):
        for axes, (key, label) in zip(panels[:, column], QUANTITIES.items(), strict=True):
            unit = common.MIB if key == "traced_bytes" else 1
            for (inputs, group), (colour, marker) in zip(
                of_inputs.items(), ((style.SKY, "s-"), (style.BLUE, "o-")), strict=True
            ):
                values = [row[key] / unit for row in group]
                power = f"{inputs}: {name}$^{{{exponent(group, key):.2f}}}$"
                sizes = [row["value"] for row in group]
                axes.loglog(sizes, values, marker, color=colour, label=power)
            axes.set_xlabel(
                f"{name}; " + ", ".join(f"{n} = {v}" for n, v in BASE.items() if n != name),
                fontsize=7,
            )
            axes.legend(fontsize=8)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(sizes, map(str, sizes))
            axes.set_yscale("log" if key == "seconds" else "linear")
            if column == 0:
                axes.set_ylabel(label)
        budget = cupy_rnnt.ops.numpy.workspace_bytes() / common.MIB
        panels[1, column].axhline(budget, color="black", linestyle="--", linewidth=1)
    panels[1, 0].set_ylim(0, 1.1 * budget)
    panels[1, 0].text(1, budget, "workspace allowed", va="bottom", fontsize=8)
    style.message(chart, "Time grows with the cells that matter, memory stops at what you allow")
    return chart


def measurements(options: Any) -> Iterator[Row]:
    common.use_threads(options.threads[-1])
    cupy_rnnt.joint_rnnt_loss_and_grad(*fresh([60], [9], 50, 40))
    for grown, values in (QUICK if options.quick else GROWN).items():
        for inputs in INPUTS:
            for value in values:
                yield measure(grown, value, inputs, options.repeats)


def main() -> None:
    options = common.arguments(__doc__, repeats=3, threads=[1], redraws=True, cpu_only=True)
    rows = common.measured("growth", options, partial(measurements, options))
    report(rows, options)
    common.save_chart("growth", options, draw(rows))


if __name__ == "__main__":
    main()
