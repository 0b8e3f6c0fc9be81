"""Does the measured peak stay within the budget, and what does a small budget cost?

The peak is counted twice, in processes of their own: what NumPy and Python allocate (tracemalloc,
less the returned arrays) and the resident memory, returned arrays and buffers of the BLAS included.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import common
import numpy as np
import style
from matplotlib.figure import Figure
from workloads import Joint, fresh


class Case(NamedTuple):
    """A batch, its budget in MiB, and whether to time it against the floor."""

    shape: tuple[int, int, int, int, int]  # B, T, U, V, H
    budget: int
    timed: bool = False


CASES = [
    *(Case((8, 200, 50, 1024, 512), budget, True) for budget in (16, 64, 256)),
    Case((16, 1000, 150, 128, 64), 16),
    Case((256, 1000, 150, 128, 64), 256),
]
QUICK = [
    *(Case((4, 60, 20, 256, 128), budget, True) for budget in (4, 8, 16)),
    Case((4, 400, 60, 128, 64), 16),
]

Row = dict[str, Any]


def build(case: Case) -> Joint:
    size, frames, labels, vocabulary, hidden = case.shape
    return fresh([frames] * size, [labels] * size, vocabulary, hidden)


def prepared(case: Case, threads: int) -> tuple[Joint, Any]:
    """The inputs, and a call on them whose process has its BLAS buffers already."""
    import cupy_rnnt

    common.use_threads(threads)
    cupy_rnnt.joint_rnnt_loss_and_grad(*common.to_device(fresh([60], [9], 50, 40)))
    joint, budget = common.to_device(build(case)), case.budget * common.MIB
    return joint, partial(
        cupy_rnnt.joint_rnnt_loss_and_grad, *joint, max_workspace_bytes=budget, return_info=True
    )


def traced(case: Case, threads: int) -> int:
    return common.peak_traced(prepared(case, threads)[1])


def resident(case: Case, threads: int, repeats: int) -> Row:
    joint, call = prepared(case, threads)
    start = time.perf_counter()
    peak, result = common.peak_resident(call)
    common.wait()
    row = {
        "seconds": time.perf_counter() - start,
        "inputs_bytes": common.result_bytes(tuple(joint)),
        "results_bytes": common.result_bytes(result),
        "resident_bytes": peak,
        "cells": joint.cells,
        "kept": result[2].kept / joint.cells,
        "planned_bytes": result[2].workspace_bytes,
        "finite": bool(np.isfinite(float(result[0]))),
    }
    if case.timed:
        cases = {"floor": common.three_gemms(joint.cells, case.shape[4], case.shape[3])}
        samples = common.interleaved(cases | {"gradients": call}, repeats)
        row["seconds"] = common.medians(samples)["gradients"]
        row["gradients_per_floor"] = common.ratio(samples, "gradients")
        row["samples"] = samples
    return row


def measure(case: Case, threads: int, repeats: int) -> Row:
    row = {
        "shape": case.shape,
        "threads": threads,
        "budget_bytes": case.budget * common.MIB,
        **common.alone(resident, case, threads, repeats),
        "traced_bytes": common.alone(traced, case, threads),
    }
    print(f"{case.shape} in {case.budget} MiB, {common.in_words(threads)}: done", flush=True)
    return row


def logits_bytes(row: Row) -> int:
    return 4 * row["cells"] * row["shape"][3]


def report(rows: list[Row]) -> None:
    header = ["B, T, U, V, H", "threads", "logits (MiB)", "budget", "planned", "traced"]
    header += ["resident", "of it results", "seconds", "floors"]
    keys = "budget_bytes", "planned_bytes", "traced_bytes", "resident_bytes", "results_bytes"
    body = [
        [
            ", ".join(map(str, row["shape"])),
            row["threads"],
            f"{logits_bytes(row) / common.MIB:.0f}",
            *(f"{row[key] / common.MIB:.1f}" for key in keys),
            f"{row['seconds']:.2f}",
            f"{row['gradients_per_floor']:.2f}" if "gradients_per_floor" in row else "",
        ]
        for row in rows
    ]
    common.table(header, body)


def draw(rows: list[Row]) -> Figure:
    chart = Figure(figsize=(7.5, 5), layout="constrained")
    axes = chart.subplots()
    budgets = np.array([row["budget_bytes"] for row in rows]) / common.MIB
    ends = [budgets.min() / 1.5, budgets.max() * 1.5]
    axes.plot(ends, ends, "--", color=style.BLACK, label="the budget")
    for key, marker, colour, label in (
        ("traced_bytes", "o", style.BLUE, "allocated, less results"),
        ("resident_bytes", "D", style.BLACK, "resident, with results and buffers of the BLAS"),
    ):
        peaks = [row[key] / common.MIB for row in rows]
        axes.plot(budgets, peaks, marker, color=colour, fillstyle="none", label=label)
    logits = [logits_bytes(row) / common.MIB for row in rows]
    axes.plot(budgets, logits, "s", color=style.ORANGE, label="the logits, which are not held")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="budget (MiB)", ylabel="peak memory (MiB)")
    axes.legend(frameon=False)
    style.message(chart, "The workspace stays within its budget, however large the logits")
    return chart


def main() -> None:
    options = common.arguments(__doc__, repeats=3)
    cases = QUICK if options.quick else CASES
    rows = [measure(case, n, options.repeats) for n in options.threads for case in cases]
    report(rows)
    common.save("workspace", options, rows, draw(rows))


if __name__ == "__main__":
    main()
