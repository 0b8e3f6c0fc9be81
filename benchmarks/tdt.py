"""What do loss and gradients of TDT cost on the sizes of the package ``tdt-loss``, with logits and
with a joint network, beside plain PyTorch (a recursion over anti-diagonals, and autograd)?

Lengths are those of full samples, durations 0 to 4, float32, the joint network H = 640 and relu.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import common
import costs
import numpy as np
import style
from matplotlib.figure import Figure

import cupy_rnnt

TDT = cupy_rnnt.tdt()
DURATIONS = (0, 1, 2, 3, 4)  # of the default above
HIDDEN = 640
SIZES = (8, 100, 20, 1025), (4, 200, 40, 8193)  # B, T, U, tokens
QUICK_SIZES = ((2, 20, 4, 65),)
FRONTS = "logits", "joint"
CONTESTANTS = "cupy_rnnt", "PyTorch"
GPU = "A100"  # whose time is computed; that of ``tdt-loss`` was measured on one

Row = dict[str, Any]


def inputs(front: str, size: tuple[int, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Floating arguments, those of a fresh model, and the targets with both lengths."""
    samples, frames, labels, tokens = size
    rng = np.random.default_rng(0)
    width = tokens + len(DURATIONS)
    lattice = [
        rng.integers(0, tokens - 1, (samples, labels)),
        np.full(samples, frames),
        np.full(samples, labels),
    ]
    if front == "logits":
        return [rng.standard_normal((samples, frames, labels + 1, width), np.float32)], lattice
    arrays = [
        rng.standard_normal((samples, frames, HIDDEN), np.float32),
        rng.standard_normal((samples, labels + 1, HIDDEN), np.float32),
        0.1 * rng.standard_normal((width, HIDDEN), np.float32),
        0.1 * rng.standard_normal(width, np.float32),
    ]
    return arrays, lattice


def ours(front: str, size: tuple[int, ...]) -> Callable[[], tuple[float, Any, cupy_rnnt.Info]]:
    """Loss, gradients, and what was computed."""
    arrays, lattice = inputs(front, size)
    options = {"transducer": TDT, "return_info": True}
    if front == "logits":
        return partial(cupy_rnnt.rnnt_loss_and_grad, *arrays, *lattice, **options)
    return partial(
        cupy_rnnt.joint_rnnt_loss_and_grad, *arrays, *lattice, activation="relu", **options
    )


def least_on_gpu(front: str, size: tuple[int, ...], info: cupy_rnnt.Info) -> float:
    """Seconds that the operations of our call take at least, on paper."""
    samples, frames, labels, tokens = size
    batch = costs.Batch.of(np.full(samples, frames), np.full(samples, labels + 1))
    computed, kept, width = (
        info.computed / info.cells,
        info.kept / info.cells,
        tokens + len(DURATIONS),
    )
    if front == "logits":
        operations = costs.given_logits(batch, width, kept)
    else:
        operations = costs.engine(batch, width, HIDDEN, computed, kept, selects=computed < 1)
    return costs.seconds(operations, costs.MACHINES[GPU])


def plain(front: str, size: tuple[int, ...]) -> Callable[[], tuple[float, Any]]:
    import peers
    import torch

    arrays, lattice = inputs(front, size)
    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    batch = list(map(torch.from_numpy, lattice))

    def run() -> tuple[float, Any]:
        if front == "logits":
            (logits,) = leaves
        else:
            encoder_out, predictor_out, weight, bias = leaves
            hidden = torch.relu(encoder_out[:, :, None] + predictor_out[:, None])
            logits = torch.nn.functional.linear(hidden, weight, bias)
        loss = peers.tdt_loss_of_logits(logits, *batch, blank=size[-1] - 1, durations=DURATIONS)
        gradients = torch.autograd.grad(loss, leaves)
        return loss.item(), tuple(gradient.numpy() for gradient in gradients)

    return run


MAKERS = {"cupy_rnnt": ours, "PyTorch": plain}


def peak(contestant: str, front: str, size: tuple[int, ...], threads: int) -> int:
    """Resident bytes of a call above its arguments, in a process of its own."""
    common.use_threads(threads)
    MAKERS[contestant](front, QUICK_SIZES[0])()
    return common.peak_resident(MAKERS[contestant](front, size))[0]


def timed(front: str, size: tuple[int, ...], threads: int, repeats: int) -> Row:
    """Both in turn, on the same arrays; how far costs and gradients are apart."""
    cases = {name: maker(front, size) for name, maker in MAKERS.items()}
    common.use_threads(threads)
    samples = common.interleaved(cases, repeats)
    (cost, gradients, info), (peer_cost, peer_gradients) = (case() for case in cases.values())
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    apart = [
        float(np.linalg.norm(own - other) / np.linalg.norm(other))
        for own, other in zip(gradients, peer_gradients, strict=True)
    ]
    return {
        "front": front,
        "size": size,
        "threads": threads,
        "ratio": common.ratio(samples, "PyTorch", "cupy_rnnt"),
        "medians": common.medians(samples),
        "samples": samples,
        "computed": info.computed / info.cells,
        "kept": info.kept / info.cells,
        GPU: least_on_gpu(front, size, info),
        "cost_apart": abs(float(cost) - peer_cost) / abs(peer_cost),
        "gradients_apart": max(apart),
    }


def measure(front: str, size: tuple[int, ...], threads: int, repeats: int) -> Row:
    row = common.alone(timed, front, size, threads, repeats)
    bytes_of = {name: common.alone(peak, name, front, size, threads) for name in CONTESTANTS}
    print(f"{front} of {size}, {common.in_words(threads)}: done", flush=True)
    return row | {"resident_bytes": bytes_of}


def in_words(row: Row) -> str:
    return f"{row['front']}, " + ", ".join(map(str, row["size"]))


def report(rows: list[Row]) -> None:
    header = ["front; B, T, U, tokens", "threads", *(f"{name} (s)" for name in CONTESTANTS)]
    header += ["PyTorch / cupy_rnnt", *(f"{name} (MiB)" for name in CONTESTANTS)]
    header += ["computed", "kept", f"{GPU}, on paper (ms)"]
    body = [
        [
            in_words(row),
            row["threads"],
            *(f"{row['medians'][name]:.3g}" for name in CONTESTANTS),
            f"{row['ratio']:.1f}",
            *(f"{row['resident_bytes'][name] / common.MIB:.0f}" for name in CONTESTANTS),
            f"{row['computed']:.0%}",
            f"{row['kept']:.0%}",
            f"{1e3 * row[GPU]:.2g}",
        ]
        for row in rows
    ]
    common.table(header, body)
    apart = (max(row[key] for row in rows) for key in ("cost_apart", "gradients_apart"))
    print("Costs and gradients are apart by {:.0e} and {:.0e}, relatively.".format(*apart))


def draw(rows: list[Row]) -> Figure:
    """Time on the left, memory on the right."""
    rows = [row for row in rows if row["threads"] == rows[0]["threads"]]
    chart = Figure(figsize=(11, 3.2), layout="constrained")
    panels = chart.subplots(1, 2, sharey=True)
    values = {"time (s)": ("medians", 1.0), "peak memory (MiB)": ("resident_bytes", common.MIB)}
    for axes, (title, (key, unit)) in zip(panels, values.items(), strict=True):
        series = {name: [row[key][name] / unit for row in rows] for name in CONTESTANTS}
        style.dots(axes, [in_words(row) for row in rows], series)
        axes.set(xscale="log", xlabel=title)
    style.legend(chart, panels[0])
    ratios = style.span([row["ratio"] for row in rows])
    style.message(chart, f"TDT in plain PyTorch takes {ratios} times as long, and holds more")
    return chart


def main() -> None:
    options = common.arguments(__doc__)
    rows = [
        measure(front, size, threads, options.repeats)
        for threads in options.threads
        for size in (QUICK_SIZES if options.quick else SIZES)
        for front in FRONTS
    ]
    report(rows)
    common.save("tdt", options, rows, draw(rows))


if __name__ == "__main__":
    main()
