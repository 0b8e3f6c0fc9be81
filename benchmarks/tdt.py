"""What do the loss and gradients of TDT take beside PyTorch's autograd, on the shapes of tdt-loss?

The authors of that CUDA kernel measure it on these two shapes, given random logits; a joint network
comes beside them. Memory is the peak above the inputs, gradients included, in a process of its own.
What the kernel takes on an A100, as published, stands beside what our operations take on paper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import common
import computed
import costs
import family
import modelled
import numpy as np
import style
from computed import HIDDEN, Shape, Step
from family import DURATIONS
from matplotlib.figure import Figure
from workloads import Joint, fresh

SHAPES = [Shape("small", 8, 100, 21, 1025), Shape("large", 4, 200, 41, 8193)]  # V: tokens
QUICK = [Shape("small", 2, 20, 6, 65), Shape("large", 2, 30, 9, 129)]
FRONTS = "logits", "joint"
CONTESTANTS = "cupy_rnnt", "PyTorch"
GPU = "A100"
SOURCE = "huggingface/kernels-community 3b9907c, tdt-loss/README.md"
PUBLISHED = {  # milliseconds on an A100 in float32, of given logits: of PyTorch, of tdt-loss
    SHAPES[0].title: (624.0, 1.5),
    SHAPES[1].title: (1259.0, 9.5),
}
COUNTED = 64  # positions, of the sweeps that were counted, nearest to those of the shapes

Row = dict[str, Any]


def joint_of(shape: Shape) -> Joint:
    lengths = [shape.frames] * shape.samples, [shape.positions - 1] * shape.samples
    return family.of_tdt(fresh(*lengths, shape.vocabulary, HIDDEN), "fresh")


def logits_of(shape: Shape) -> np.ndarray:
    full = shape.samples, shape.frames, shape.positions, shape.vocabulary + len(DURATIONS)
    return np.random.default_rng(0).standard_normal(full, dtype=np.float32)


def ours(shape: Shape, front: str) -> Callable[..., Any]:
    import cupy_rnnt

    options = {"transducer": cupy_rnnt.tdt(DURATIONS)}
    if front == "joint":
        arguments = common.to_device(joint_of(shape))
        options["activation"] = "relu"
        return partial(cupy_rnnt.joint_rnnt_loss_and_grad, *arguments, **options)
    lattice = joint_of(shape)[4:]
    logits = common.to_device(logits_of(shape))
    return partial(cupy_rnnt.rnnt_loss_and_grad, logits, *lattice, **options)


def pytorch(shape: Shape, front: str) -> Callable[[], float]:
    import tdt_peer
    import torch

    *arrays, blank = joint_of(shape)
    inputs = arrays[:4] if front == "joint" else [logits_of(shape)]
    leaves = [torch.from_numpy(array).requires_grad_() for array in inputs]
    lattice = [torch.from_numpy(array) for array in arrays[4:]]
    loss_of = tdt_peer.loss_of_joint if front == "joint" else tdt_peer.loss_of_logits

    def step() -> float:
        for leaf in leaves:
            leaf.grad = None
        loss = loss_of(*leaves, *lattice, blank=blank, durations=DURATIONS)
        loss.backward()
        return loss.item()

    return step


CALLS = dict(zip(CONTESTANTS, (ours, pytorch), strict=True))


def contestants() -> list[str]:
    """PyTorch's part is the CPU's."""
    return list(CONTESTANTS if common.device == "cpu" else CONTESTANTS[:1])


def resident(name: str, shape: Shape, front: str, threads: int) -> int:
    CALLS[name](QUICK[0], front)()  # buffers of the BLAS
    common.use_threads(threads)
    return common.peak_resident(CALLS[name](shape, front))[0]


def timed(shape: Shape, front: str, threads: int, repeats: int) -> Row:
    calls = {name: CALLS[name](shape, front) for name in contestants()}
    common.use_threads(threads)
    loss, _, info = calls["cupy_rnnt"](return_info=True)
    row = {
        "cost": {"cupy_rnnt": float(loss)},
        "computed": info.computed / info.cells,
        "kept": info.kept / info.cells,
        "on_paper": on_paper(shape, front, info),
    }
    if "PyTorch" in calls:
        row["cost"]["PyTorch"] = calls["PyTorch"]()
    samples = common.interleaved(calls, repeats)
    row |= {"medians": common.medians(samples), "samples": samples}
    if "PyTorch" in calls:
        row["speed_up"] = common.ratio(samples, "PyTorch", "cupy_rnnt")
    return row


def on_paper(shape: Shape, front: str, info: Any) -> Row:
    """Seconds on a GPU, at least: those of the plain loss of as many columns and cells, as the
    sweeps and the host have not been counted for TDT. Those of the host are known of joints."""
    width, further = shape.vocabulary + len(DURATIONS), max(info.rounds - 1, 0)
    if front == "joint":
        cells = info.computed, info.kept
        operations = modelled.operations(shape.batch, width, HIDDEN, *cells, "float32")
        host = modelled.host_seconds(modelled.parts_of(*cells, width, further), "float32")
    else:
        operations = costs.given_logits(shape.batch, width, info.kept / info.cells)
        host = None
    sweeps = computed.own_sweeps(shape._replace(positions=COUNTED), GPU, further)
    stages = Step(operations, host or 0.0, sweeps).stages(costs.MACHINES[GPU], "float32")
    return {"device": sum(stages.values()), "host": host}


def measure(shape: Shape, front: str, threads: int, repeats: int) -> Row:
    row = {
        "shape": shape.title,
        "front": front,
        "threads": threads,
        **common.alone(timed, shape, front, threads, repeats),
        "resident_bytes": {
            name: common.alone(resident, name, shape, front, threads) for name in contestants()
        },
    }
    print(f"{shape.title}, {front}, {common.in_words(threads)}: done", flush=True)
    return row


def report(rows: list[Row]) -> None:
    header = ["shape", "front", "threads", "computed", "kept"]
    header += [f"{name}, s" for name in contestants()] + ["PyTorch / cupy_rnnt"]
    header += [f"{name}, MiB" for name in contestants()]
    body = [
        [
            row["shape"],
            row["front"],
            row["threads"],
            f"{row['computed']:.1%}",
            f"{row['kept']:.1%}",
            *(f"{row['medians'][name]:.3f}" for name in contestants()),
            f"{row['speed_up']:.1f}" if "speed_up" in row else "",
            *(f"{row['resident_bytes'][name] / common.MIB:.0f}" for name in contestants()),
        ]
        for row in rows
    ]
    common.table(header, body)
    print(f"Milliseconds on an {GPU} in float32, published ({SOURCE}) and on paper:")
    header = ["shape", "PyTorch, published", "tdt-loss, published", "cupy_rnnt, logits"]
    body = []
    for shape, published in PUBLISHED.items():
        paper = {row["front"]: row["on_paper"] for row in rows if row["shape"] == shape}
        if paper:
            times = paper["logits"]["device"], paper["joint"]["device"], paper["joint"]["host"]
            on_paper = (computed.digits(1e3 * time) for time in times)
            body.append([shape, *(f"{ms:g}" for ms in published), *on_paper])
    common.table([*header, "cupy_rnnt, joint", "its host"], body)


def draw(rows: list[Row], threads: list[int], shapes: list[Shape]) -> Figure:
    """Time above memory, a column for each shape."""
    quantities = "seconds", "MiB above the inputs"
    chart = Figure(figsize=(9, 6 * len(threads)), layout="constrained")
    grid = chart.subplots(2 * len(threads), len(shapes), squeeze=False)
    panels = product(threads, quantities, shapes)
    places = np.arange(len(FRONTS))
    for axes, (count, quantity, shape) in zip(grid.flat, panels, strict=True):
        panel = [row for row in rows if (row["threads"], row["shape"]) == (count, shape.title)]
        for i, name in enumerate(contestants()):
            if quantity == "seconds":
                heights, form = [row["medians"][name] for row in panel], "{:.2f}"
            else:
                heights = [row["resident_bytes"][name] / common.MIB for row in panel]
                form = "{:.0f}"
            bars = axes.bar(places + 0.4 * i - 0.2, heights, 0.4, label=name)
            axes.bar_label(bars, fmt=form, fontsize=9)
        axes.margins(y=0.1)
        axes.set_xticks(places, FRONTS)
        axes.set_title(f"{shape.title}, {common.in_words(count)}", fontsize=9)
        axes.set_ylabel(quantity)
    chart.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    style.message(chart, message(rows))
    return chart


def message(rows: list[Row]) -> str:
    ratios = [row["speed_up"] for row in rows if "speed_up" in row]
    if not ratios:
        return "Loss and gradients of TDT on the shapes of tdt-loss"
    span = f"{min(ratios):.1f} to {max(ratios):.1f}"
    return f"Loss and gradients of TDT are {span} times as fast as PyTorch's autograd"


def main() -> None:
    options = common.arguments(__doc__)
    shapes = QUICK if options.quick else SHAPES
    rows = [
        measure(shape, front, threads, options.repeats)
        for threads in options.threads
        for shape in shapes
        for front in FRONTS
    ]
    report(rows)
    common.save("tdt", options, rows, draw(rows, options.threads, shapes))


if __name__ == "__main__":
    main()
