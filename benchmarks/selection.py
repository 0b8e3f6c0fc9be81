"""What does certified selection save, and how far is its result from that of all cells?

`filter only` is the library with selection switched off: every softmax is computed, and the
gradient of the cells that matter. Both run in turn with the floor, three bare GEMMs over the valid
cells. Of a fraction f of cells computed and k kept, the least products are (f + 2 k) / 3 floors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import common
import numpy as np
import style
from matplotlib.figure import Figure
from workloads import SELECTION_WORKLOADS, Joint, fresh, speech

import cupy_rnnt
from cupy_rnnt.engine import joint_source
from cupy_rnnt.engine import selection as cells
from cupy_rnnt.engine.passes import Passes
from cupy_rnnt.engine.tangents import Tangents
from cupy_rnnt.ops import cuda
from cupy_rnnt.ops import numpy as cpu

QUICK = {
    "quick untrained": lambda: speech("untrained", ["0"]),
    "quick trained": lambda: speech("trained", ["0"]),
}
STAGES: dict[str, list[tuple[Any, str]]] = {
    "references": [(Tangents, "linearize")],
    "bounds": [(Tangents, "upper_bounds")],
    "sweeps": [(cells, "next_cells"), (cpu.exact_lattice, "solve"), (cuda.exact_lattice, "solve")],
    "pass 1": [(Passes, "_compute")],
    "pass 2": [(Passes, "second")],
}
FLOAT32_TOLERANCE = 2.0**-24  # the library's default
ERROR_SAMPLES = 2  # of a workload, whose errors are measured

Row = dict[str, Any]


def build(workload: str) -> Joint:
    return (SELECTION_WORKLOADS | QUICK)[workload]()


def without_selection() -> Any:
    """A context in which the library computes every cell."""
    return mock.patch.object(joint_source, "_SELECTING_ELEMENTS", math.inf)


def without_pilots() -> Any:
    """A context in which it selects whatever can be selected, even if little may be gained."""
    surely = dict.fromkeys(("_SURELY_GAINING_ELEMENTS", "_SURELY_GAINING_WIDTH"), 0)
    return mock.patch.multiple(joint_source, **surely)


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds spent in each stage meanwhile, on one thread."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            common.wait()
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                common.wait()
                seconds[stage] += time.perf_counter() - start

        return call

    with ExitStack() as patches:
        for stage, functions in STAGES.items():
            for place, name in functions:
                wrapped = timed(stage, getattr(place, name))
                patches.enter_context(mock.patch.object(place, name, wrapped))
        yield seconds


def stages(joint: Joint, repeats: int) -> dict[str, float]:
    """Median seconds of each stage of loss and gradients; `rest` is what is left."""
    samples: common.Samples = {name: [] for name in (*STAGES, "rest")}
    for _ in range(repeats):
        with stopwatch() as seconds:
            start = time.perf_counter()
            cupy_rnnt.joint_rnnt_loss_and_grad(*joint)
            common.wait()
            whole = time.perf_counter() - start
        seconds["rest"] = whole - sum(seconds.values())
        for stage, value in seconds.items():
            samples[stage].append(value)
    return common.medians(samples)


def times(workload: str, threads: int, repeats: int) -> Row:
    common.use_threads(threads)
    joint = common.to_device(build(workload))
    vocabulary, hidden = joint.weight.shape
    both = partial(cupy_rnnt.joint_rnnt_loss_and_grad, *joint)

    def filter_only() -> None:
        with without_selection():
            both()

    cupy_rnnt.joint_rnnt_loss_and_grad(*common.to_device(fresh([60], [9], 50, 40)))  # BLAS buffers
    cases = {
        "floor": common.three_gemms(joint.cells, hidden, vocabulary),
        "filter only": filter_only,
        "certified": both,
        "loss": partial(cupy_rnnt.joint_rnnt_loss, *joint),
    }
    samples = common.interleaved(cases, repeats)
    *_, info = both(return_info=True)
    computed, kept = info.computed / info.cells, info.kept / info.cells
    row = {
        "workload": workload,
        "threads": threads,
        "cells": info.cells,
        "vocabulary": vocabulary,
        "hidden": hidden,
        "computed": computed,
        "kept": kept,
        "rounds": info.rounds,
        "certificate": float(info.certificate.max()),
        "least": {"filter only": (1 + 2 * kept) / 3, "certified": (computed + 2 * kept) / 3},
        "per_floor": {name: common.ratio(samples, name) for name in cases},
        "saving": common.ratio(samples, "filter only", "certified"),
        "medians": common.medians(samples),
        "samples": samples,
        **common.on_paper(common.medians(samples)["certified"], joint.operations(info)),
    }
    return row | ({"stages": stages(joint, repeats)} if threads == 1 else {})


def true_errors(joint: Joint, tolerances: list[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each tolerance the certificates, and ``P(all paths) / P(paths computed) - 1`` itself, of
    all samples, in float64."""
    inputs = common.to_device(joint.astype(np.float64))
    loss = partial(cupy_rnnt.joint_rnnt_loss, *inputs, reduction="none")
    full, found, xp = loss(tolerance=0), [], common.array_library()
    for tolerance in tolerances:
        costs, info = loss(tolerance=tolerance, return_info=True)
        found.append(common.to_host((info.certificate, xp.expm1(costs - full))))
    return found


def errors(workload: str, threads: int) -> Row:
    """Of the first samples of a workload: the true error in float64, and how far float32 results
    are from those without selection or filter."""
    common.use_threads(threads)
    joint = build(workload).first(ERROR_SAMPLES)
    inputs = common.to_device(joint)
    both = partial(cupy_rnnt.joint_rnnt_loss_and_grad, *inputs, reduction="none")
    with without_pilots():
        ((certificates, true),) = true_errors(joint, [FLOAT32_TOLERANCE])
        costs, gradients, info = common.to_host(both(return_info=True))
    full_costs, full = common.to_host(both(tolerance=0))
    relative = [abs(a - b).max() / abs(b).max() for a, b in zip(gradients, full, strict=True)]
    return {
        "workload": workload,
        "samples": len(costs),
        "computed": info.computed / info.cells,
        "certificate": float(certificates.max()),
        "true_error": float(true.max()),
        "rounding": 4 * float(np.spacing(full_costs.astype(np.float64)).max()),
        "costs": full_costs.tolist(),
        "cost_difference": float(abs(costs - full_costs).max()),
        "gradient_differences": dict(zip(full._fields, map(float, relative), strict=True)),
    }


def true_error(row: Row) -> str:
    """In words where it drowns in the rounding of the costs."""
    error, rounding = row["true_error"], row["rounding"]
    return f"{error:.1e}" if error > rounding else f"< {rounding:.0e}"


def measure(workload: str, threads: int, repeats: int) -> Row:
    row = common.alone(times, workload, threads, repeats)
    print(f"{workload}, {common.in_words(threads)}: done", flush=True)
    return row


def report(rows: list[Row], of_errors: list[Row]) -> None:
    print("Time, in floors from `loss` on:")
    header = ["workload", "threads", "computed", "kept", "rounds", "certificate", "floor (s)"]
    header += ["loss", "filter only", "certified", "saving", "least products"]
    body = [
        [
            row["workload"],
            row["threads"],
            f"{row['computed']:.1%}",
            f"{row['kept']:.1%}",
            row["rounds"],
            f"{row['certificate']:.0e}",
            f"{row['medians']['floor']:.2f}",
            *(f"{row['per_floor'][name]:.2f}" for name in ("loss", "filter only", "certified")),
            f"{row['saving']:.2f}x",
            f"{row['least']['certified']:.2f}",
        ]
        for row in rows
    ]
    common.table(header, body)
    common.beside_computed(rows, "workload")
    if one_thread := [row for row in rows if "stages" in row]:
        print("Where the time of loss and gradients goes, in floors, on one thread:")
        body = [
            [
                row["workload"],
                *(f"{value / row['medians']['floor']:.3f}" for value in row["stages"].values()),
            ]
            for row in one_thread
        ]
        common.table(["workload", *one_thread[0]["stages"]], body)
    print(f"Errors, of up to {ERROR_SAMPLES} samples, beside the results with tolerance 0:")
    differences = [row["gradient_differences"] for row in of_errors]
    header = ["workload", "computed", "certificate", "true error", "cost", "cost, float32"]
    body = [
        [
            row["workload"],
            f"{row['computed']:.1%}",
            f"{row['certificate']:.1e}",
            true_error(row),
            f"{max(row['costs']):.1f}",
            f"{row['cost_difference']:.1e}",
            *(f"{value:.1e}" for value in row["gradient_differences"].values()),
        ]
        for row in of_errors
    ]
    common.table([*header, *differences[0]], body)


def draw(content: dict[str, list[Row]]) -> Figure:
    """A panel for each number of threads."""
    rows = content["times"]
    threads = sorted({row["threads"] for row in rows})
    chart = Figure(figsize=(5.5 * max(2, len(threads)), 4.6), layout="constrained")
    panels = chart.subplots(1, len(threads), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, threads, strict=True):
        own = [row for row in rows if row["threads"] == count]
        series = {
            "certified selection": [row["per_floor"]["certified"] for row in own],
            "all cells in pass 1": [row["per_floor"]["filter only"] for row in own],
            "matrix products of selection alone": [row["least"]["certified"] for row in own],
        }
        style.dots(axes, [row["workload"] for row in own], series)
        axes.axvline(1, color=style.BLACK, linestyle="--", linewidth=1)
        axes.set(xlim=(0, None), title=common.in_words(count))
        axes.set_xlabel("time / three bare matrix products over all cells (dashed: 1)")
    style.legend(chart, panels[0])
    savings = style.span([row["saving"] for row in rows if row["threads"] == threads[0]])
    style.message(chart, f"Selection makes loss and gradients {savings} times as fast")
    return chart


def main() -> None:
    options = common.arguments(__doc__)
    names = QUICK if options.quick else SELECTION_WORKLOADS
    rows = [measure(name, n, options.repeats) for n in options.threads for name in names]
    of_errors = [common.alone(errors, name, max(options.threads)) for name in names]
    report(rows, of_errors)
    content = {"times": rows, "errors": of_errors}
    common.save("selection", options, content, draw(content))


if __name__ == "__main__":
    main()
