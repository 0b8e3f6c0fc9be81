"""What do memory and time do as the batch grows, beside batched PyTorch?

Utterances of real speech through a trained joint network, and random inputs of the same shape for
the first steps of training. PyTorch holds padded logits and takes the same time for both; it is
measured as far as it fits in 12 GB, and a line goes on from there. On a thread of the CPU, whose
time is that of the processor, which other processes do not count in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import common
import joint as joint_benchmark
import numpy as np
import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from workloads import Joint, fresh, speech

import cupy_rnnt

GIB = 2**30
VOCABULARY, HIDDEN = 1024, 512
SIZES = {
    "cupy_rnnt, trained joint": [1, 4, 16, 32, 64, 128],
    "cupy_rnnt, fresh joint": [1, 4, 16, 32, 64, 128],
    "PyTorch, batched": [1, 4, 8, 16, 32],  # 0.35 GB each
}
QUICK = {name: [1, 2] for name in SIZES}
COLOURS = dict(zip(SIZES, (style.BLUE, style.SKY, style.VERMILION), strict=True))
MARKERS = dict(zip(SIZES, "os^", strict=True))

Row = dict[str, Any]


def batch(name: str, size: int) -> Joint:
    """Utterances of about 14 s: 351 to 375 frames and 51 to 66 labels."""
    names = [str(i % 4) for i in range(size)]
    joint = speech("trained", names, VOCABULARY, HIDDEN)
    if "fresh" in name:
        return fresh(joint.logit_lengths, joint.target_lengths, VOCABULARY, HIDDEN)
    return joint


def ours(joint: Joint) -> None:
    cupy_rnnt.joint_rnnt_loss_and_grad(*joint)


def measure(name: str, size: int, threads: int) -> Row:
    """One call, after a small one."""
    joint, step = batch(name, size), ours
    if "PyTorch" in name:
        import torch  # noqa: F401, whose threads are set below

        step = joint_benchmark.autograd
    common.use_threads(threads)
    step(fresh([60], [9], 50, 40))
    start = time.process_time()
    peak, _ = common.peak_resident(partial(step, joint))
    seconds = time.process_time() - start
    gradients = sum(array.nbytes for array in joint[:4])
    row = {
        "contestant": name,
        "batch": size,
        "seconds": seconds,
        "beyond_bytes": peak - gradients,
        "machine_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
    print(f"{name}, {size}: {seconds:.1f} s, {row['beyond_bytes'] / GIB:.2f} GiB", flush=True)
    return row


def line(rows: list[Row], key: str) -> np.ndarray:
    """Slope and intercept."""
    return np.polyfit([row["batch"] for row in rows], [row[key] for row in rows], 1)


def by_contestant(rows: list[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["contestant"] == name] for name in SIZES}


def report(rows: list[Row], options: Any) -> None:
    header = ["contestant", "B", "MiB beyond inputs and gradients", "seconds", "ms an utterance"]
    body = [
        [
            row["contestant"],
            row["batch"],
            f"{row['beyond_bytes'] / common.MIB:.0f}",
            f"{row['seconds']:.2f}",
            f"{1e3 * row['seconds'] / row['batch']:.0f}",
        ]
        for row in rows
    ]
    common.publish("batch_size", options, header, body)


def panel(axes: Axes, rows: list[Row], key: str, unit: float) -> None:
    most = max(row["batch"] for row in rows)
    for name, group in by_contestant(rows).items():
        sizes = np.array([row["batch"] for row in group])
        look = {"color": COLOURS[name], "linewidth": 2}
        values = np.array([row[key] for row in group]) / unit
        axes.plot(sizes, values, MARKERS[name] + "-", label=name, **look)
        if sizes[-1] < most:
            beyond = np.array([sizes[-1], most])
            label = "the same, extrapolated"
            axes.plot(
                beyond, np.polyval(line(group, key), beyond) / unit, "--", label=label, **look
            )
    axes.set_xlabel("utterances in the batch")
    axes.set_xlim(0, 1.02 * most)


def draw(rows: list[Row]) -> Figure:
    chart = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = chart.subplots(1, 2)
    panel(left, rows, "beyond_bytes", GIB)
    panel(right, rows, "seconds", 1.0)
    of_machine = rows[0]["machine_bytes"] / GIB
    left.axhline(of_machine, color="black", linewidth=1)
    left.text(1, of_machine, "all memory of this machine", va="bottom", fontsize=9)
    left.set_ylim(0, 1.5 * of_machine)
    left.set_ylabel("peak beyond inputs and gradients (GiB)")
    left.set_title("Memory stays flat: any batch fits")
    right.set_ylim(bottom=0)
    right.set_ylabel("loss and all gradients (s, one thread)")
    trained, untrained, pytorch = (
        line(group, "seconds")[0] for group in by_contestant(rows).values()
    )
    right.set_title(
        f"Time: {pytorch / trained:.0f} times less, fresh joint: {pytorch / untrained:.0f} times"
    )
    right.legend(loc="upper left", fontsize=9)
    return chart


def measurements(options: Any) -> Iterator[Row]:
    for name, sizes in (QUICK if options.quick else SIZES).items():
        for size in sizes:
            yield common.alone(measure, name, size, options.threads[-1])


def main() -> None:
    options = common.arguments(__doc__, threads=[1], redraws=True, cpu_only=True)
    rows = common.measured("batch_size", options, partial(measurements, options))
    report(rows, options)
    common.save_chart("batch_size", options, draw(rows))


if __name__ == "__main__":
    main()
