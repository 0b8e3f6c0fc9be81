"""How long do the loss and gradients of a joint network take, beside the GEMMs they consist of?

The floor is what autograd cannot do without: three bare GEMMs over the valid cells. Against it run
cupy_rnnt, and PyTorch with the padded logits in memory, each in a process of its own and in turn
with its own floor. Memory is the peak above the inputs, gradients included.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import common
import numpy as np
import style
from matplotlib.figure import Figure
from workloads import WORKLOADS, Joint, fresh, speech

QUICK = {
    "quick fresh": lambda: fresh([60, 50], [10, 12], 300, 128),
    "quick trained": lambda: speech("trained", ["0"]),
}
PEER_BYTES = 14e9
PEER_COPIES = 6  # of the padded logits, with a margin
PEER_REPEATS = 1  # after two rounds that do not count
PEER_WORKLOADS = [*QUICK, "libri8 fresh", "v1024 fresh", "libri8 trained", "v1024 trained"]
MEMORY = ("padded_logits_bytes", "planned_bytes", "traced_bytes")
PEERS = {"pytorch": False, "pytorch flushing": True}  # whether denormals are flushed to zero

Row = dict[str, Any]


def build(workload: str) -> Joint:
    return (WORKLOADS | QUICK)[workload]()


def ours(workload: str, threads: int, repeats: int) -> Row:
    import cupy_rnnt

    common.use_threads(threads)
    joint = common.to_device(build(workload))
    vocabulary, hidden = joint.weight.shape
    shape = (*joint.encoder_out.shape[:2], joint.predictor_out.shape[1])
    both = partial(cupy_rnnt.joint_rnnt_loss_and_grad, *joint)
    cupy_rnnt.joint_rnnt_loss_and_grad(*common.to_device(fresh([60], [9], 50, 40)))  # BLAS buffers
    resident, (*_, info) = common.peak_resident(partial(both, return_info=True))
    traced = common.peak_traced(both)
    cases = {
        "floor": common.three_gemms(joint.cells, hidden, vocabulary),
        "gradients": both,
        "loss": partial(cupy_rnnt.joint_rnnt_loss, *joint),
    }
    samples = common.interleaved(cases, repeats)
    computed, kept = info.computed / info.cells, info.kept / info.cells
    return {
        "workload": workload,
        "threads": threads,
        "cells": info.cells,
        "vocabulary": vocabulary,
        "hidden": hidden,
        "computed": computed,
        "kept": kept,
        "ideal_storing": (computed + 2 * kept) / 3,
        "ideal_recomputing": (computed + 3 * kept) / 3,
        "padded_logits_bytes": 4 * math.prod(shape) * vocabulary,
        "planned_bytes": info.workspace_bytes,
        "traced_bytes": traced,
        "resident_bytes": resident,
        "gradients_per_floor": common.ratio(samples, "gradients"),
        "loss_per_floor": common.ratio(samples, "loss"),
        "medians": common.medians(samples),
        "samples": samples,
        **common.on_paper(common.medians(samples)["gradients"], joint.operations(info)),
    }


def cut(joint: Joint) -> Joint:
    """As many samples as PyTorch has memory for."""
    _, frames, hidden = joint.encoder_out.shape
    columns, vocabulary = joint.predictor_out.shape[1], len(joint.weight)
    sample_bytes = 4 * frames * columns * (PEER_COPIES * vocabulary + 3 * hidden)
    size = max(1, min(len(joint.targets), int(PEER_BYTES / sample_bytes)))
    return joint.first(size)


def autograd(joint: Joint) -> None:
    """Loss and all gradients by PyTorch."""
    import peers
    import torch

    *arrays, blank = joint
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    for parameter in tensors[:4]:
        parameter.requires_grad_()
    peers.loss_of_joint(*tensors, blank=blank).backward()


def peer(workload: str, threads: int, repeats: int, flush: bool) -> Row:
    import torch

    torch.set_flush_denormal(flush)
    common.use_threads(threads)
    whole = build(workload)
    joint = cut(whole)

    autograd(fresh([60], [9], 50, 40))
    resident, _ = common.peak_resident(partial(autograd, joint))
    vocabulary, hidden = joint.weight.shape
    cases = {
        "floor": common.three_gemms(joint.cells, hidden, vocabulary),
        "gradients": partial(autograd, joint),
    }
    samples = common.interleaved(cases, repeats)
    return {
        "batch": len(joint.targets),
        "was_cut": len(joint.targets) < len(whole.targets),
        "resident_bytes": resident,
        "gradients_per_floor": common.ratio(samples, "gradients"),
        "medians": common.medians(samples),
        "samples": samples,
    }


def measure(workload: str, threads: int, repeats: int) -> Row:
    row = common.alone(ours, workload, threads, repeats)
    peers = PEERS if workload in PEER_WORKLOADS and common.device == "cpu" else {}
    for name, flush in peers.items():
        row[name] = common.alone(peer, workload, threads, min(repeats, PEER_REPEATS), flush)
    print(f"{workload}, {common.in_words(threads)}: done", flush=True)
    return row


def resident_mib(row: Row) -> str:
    if not row:
        return ""
    size = f"{row['resident_bytes'] / common.MIB:.0f}"
    return f"{size} (batch cut to {row['batch']})" if row.get("was_cut") else size


def report(rows: list[Row]) -> None:
    print("Time, in floors from `loss` on:")
    header = ["workload", "threads", "computed", "kept", "floor (s)", "loss"]
    header += ["loss and gradients", "ideal, storing logits", "ideal, recomputing", *PEERS]
    body = [
        [
            row["workload"],
            row["threads"],
            f"{row['computed']:.1%}",
            f"{row['kept']:.1%}",
            f"{row['medians']['floor']:.2f}",
            f"{row['loss_per_floor']:.2f}",
            f"{row['gradients_per_floor']:.2f}",
            f"{row['ideal_storing']:.2f}",
            f"{row['ideal_recomputing']:.2f}",
            *(f"{row[p]['gradients_per_floor']:.2f}" if p in row else "" for p in PEERS),
        ]
        for row in rows
    ]
    common.table(header, body)
    print("Peak memory in MiB above the inputs; without the gradients where it says workspace:")
    header = ["workload", "threads", "padded logits", "workspace planned", "workspace traced"]
    body = [
        [
            row["workload"],
            row["threads"],
            *(f"{row[key] / common.MIB:.0f}" for key in MEMORY),
            *map(resident_mib, (row, *(row.get(p, {}) for p in PEERS))),
        ]
        for row in rows
    ]
    common.table([*header, "resident", *(f"{p}, resident" for p in PEERS)], body)
    common.beside_computed(rows, "workload")


def autograd_floors(row: Row) -> float:
    """Of PyTorch, flushing denormals or not, whichever was faster."""
    return min((row[p]["gradients_per_floor"] for p in PEERS if p in row), default=math.nan)


def draw(rows: list[Row]) -> Figure:
    """A panel for each number of threads."""
    threads = sorted({row["threads"] for row in rows})
    chart = Figure(figsize=(5.5 * max(2, len(threads)), 4), layout="constrained")
    panels = chart.subplots(1, len(threads), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, threads, strict=True):
        own = [row for row in rows if row["threads"] == count]
        series = {
            "cupy_rnnt": [row["gradients_per_floor"] for row in own],
            "PyTorch autograd, batched": list(map(autograd_floors, own)),
            "matrix products of cupy_rnnt alone": [row["ideal_storing"] for row in own],
        }
        style.dots(axes, [row["workload"] for row in own], series)
        axes.axvline(1, color=style.BLACK, linestyle="--", linewidth=1)
        axes.set(xscale="log", title=common.in_words(count))
        axes.set_xlabel("time / three bare matrix products over all cells (dashed: 1)")
    style.legend(chart, panels[0])
    first = [row for row in rows if row["threads"] == threads[0]]
    own = style.span([row["gradients_per_floor"] for row in first])
    text = f"Loss and gradients take {own} times three bare matrix products"
    peers = [autograd_floors(row) for row in first if "pytorch" in row]
    style.message(chart, text + (f", autograd {style.span(peers)}" if peers else ""))
    return chart


def main() -> None:
    options = common.arguments(__doc__)
    names = QUICK if options.quick else WORKLOADS
    rows = [measure(name, n, options.repeats) for n in options.threads for name in names]
    report(rows)
    common.save("joint", options, rows, draw(rows))


if __name__ == "__main__":
    main()
