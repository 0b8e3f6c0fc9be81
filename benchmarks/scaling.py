"""Does the time grow in proportion to the cells, and how much do more threads help?

Two ways to more cells: more samples of one size, and one sample that gets longer, with four frames
a label. Of a longer sample a smaller part matters, so its gradient gets cheaper a cell.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import common
import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from workloads import WORKLOADS, Joint, fresh

import cupy_rnnt

VOCABULARY = HIDDEN = 64
BUDGET = 512 * common.MIB  # holds the lattice of the longest sample

Row = dict[str, Any]


def growing(quick: bool) -> dict[str, list[Joint]]:
    """From about 2,000 cells to about 2,000,000."""
    sizes = [1, 3, 10] if quick else [1, 3, 10, 32, 100, 316, 1000]
    lengths = [22, 40] if quick else [22, 39, 70, 125, 223, 397, 706]
    sized = partial(fresh, vocabulary=VOCABULARY, hidden=HIDDEN)
    return {
        "more samples": [sized([100] * size, [19] * size) for size in sizes],
        "longer samples": [sized([4 * labels], [labels]) for labels in lengths],
    }


def cells_row(series: str, joint: Joint, threads: int, repeats: int) -> Row:
    joint = common.to_device(joint)
    call = partial(cupy_rnnt.joint_rnnt_loss_and_grad, *joint, max_workspace_bytes=BUDGET)
    repeats = max(repeats, 100_000 // joint.cells)  # short calls are noisy
    with threadpool_limits(threads):
        samples = common.interleaved({"gradients": call}, repeats)
    seconds = common.medians(samples)["gradients"]
    *_, info = call(return_info=True)
    return {
        "series": series,
        "threads": threads,
        "cells": info.cells,
        "kept": info.kept / info.cells,
        "seconds": seconds,
        "nanoseconds_per_cell": 1e9 * seconds / info.cells,
        "samples": samples,
        **common.on_paper(seconds, joint.operations(info)),
    }


def slope(rows: list[Row]) -> float:
    """Exponent of the time as a power of the number of cells."""
    logs = np.log([[row["cells"], row["seconds"]] for row in rows])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def threads_row(quick: bool, threads: list[int], repeats: int) -> Row:
    """One joint, and the bare GEMMs, with each number of threads in turn."""
    joint = fresh([60] * 4, [20] * 4, 256, 128) if quick else WORKLOADS["v1024 fresh"]()
    joint = common.to_device(joint)
    vocabulary, hidden = joint.weight.shape
    floor = common.three_gemms(joint.cells, hidden, vocabulary)
    work = {"floor": floor, "gradients": partial(cupy_rnnt.joint_rnnt_loss_and_grad, *joint)}

    def limited(count: int, function: Any) -> None:
        with threadpool_limits(count):
            function()

    samples = common.interleaved(
        {f"{name} {n}": partial(limited, n, work[name]) for name in work for n in threads}, repeats
    )
    return {
        "workload": "quick" if quick else "v1024 fresh",
        "speedups": {
            f"{name} {n}": common.ratio(samples, f"{name} {threads[0]}", f"{name} {n}")
            for name in work
            for n in threads
        },
        "samples": samples,
    }


def by_series(rows: list[Row]) -> dict[tuple[str, int], list[Row]]:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["series"], row["threads"]), []).append(row)
    return groups


def report(rows: list[Row], threads: Row) -> None:
    header = ["series", "threads", "cells", "kept", "seconds", "ns a cell"]
    body = [
        [
            row["series"],
            row["threads"],
            row["cells"],
            f"{row['kept']:.1%}",
            f"{row['seconds']:.4f}",
            f"{row['nanoseconds_per_cell']:.0f}",
        ]
        for row in rows
    ]
    common.table(header, body)
    for (series, count), group in by_series(rows).items():
        print(f"{series}, {common.in_words(count)}: time ~ cells ** {slope(group):.3f}")
    pairs = [[name, f"{value:.2f}"] for name, value in threads["speedups"].items()]
    common.table([f"{threads['workload']}, threads", "speed-up"], pairs)
    common.beside_computed(rows, "cells")


def draw(rows: list[Row]) -> Figure:
    chart = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = chart.subplots(1, 2)
    for (series, count), group in by_series(rows).items():
        cells = [row["cells"] for row in group]
        label = f"{series}, {common.in_words(count)}: slope {slope(group):.2f}"
        left.loglog(cells, [row["seconds"] for row in group], "o-", label=label)
        right.semilogx(cells, [row["nanoseconds_per_cell"] for row in group], "o-")
    left.set_ylabel("seconds, loss and gradients")
    right.set_ylabel("ns / cell")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel(f"cells (V = {VOCABULARY}, H = {HIDDEN})")
    left.legend()
    return chart


def main() -> None:
    options = common.arguments(__doc__)
    rows = [
        cells_row(series, joint, count, options.repeats)
        for count in options.threads
        for series, joints in growing(options.quick).items()
        for joint in joints
    ]
    threads = threads_row(options.quick, options.threads, options.repeats)
    report(rows, threads)
    common.save("scaling", options, {"cells": rows, "threads": threads}, draw(rows))


if __name__ == "__main__":
    main()
