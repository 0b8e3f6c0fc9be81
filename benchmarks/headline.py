"""Do 1024 utterances of 40 s fit, with loss and all gradients? They run on the CPU, float32.

Memory is sampled every second while a call runs. Afterwards every distinct utterance is computed
alone: costs and gradients must be those of the batch. The last check is against float64, all cells.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import common
import numpy as np
import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from workloads import Joint, fresh, speech

import cupy_rnnt
from cupy_rnnt import cli

GIB = 2**30
SAMPLED_EVERY = 1.0  # second
WRONG = 1e-3  # relative error of the gradients of a sample that are not those of the sample alone
ORDERS = [*permutations("0123", 3), "long0"]  # prompts end to end: 40 to 44 s each
DTYPES = "float32", "bfloat16"
COLOURS = {
    "process": style.GREY,
    "inputs": style.SKY,
    "gradients": style.BLUE,
    "workspace": style.ORANGE,
}


class Case(NamedTuple):
    """Distinct utterances, and how many of them, repeated, are a batch."""

    build: Callable[[], Joint]
    batch: int


CASES = {
    "trained": Case(lambda: speech("trained", ORDERS, 1024, 512), 1024),
    "fresh": Case(lambda: fresh([1000] * 32, [200] * 32, 512, 512), 1024),
}
QUICK = {
    "trained": Case(lambda: speech("trained", [("0", "1"), ("1", "0")]), 5),
    "fresh": Case(lambda: fresh([100] * 3, [20] * 3, 128, 128), 8),
}
PLANS = {"batch": 1024, "frames": 1000, "labels": 200, "hidden": 640}
VOCABULARIES = 1024, 4096, 16384

Row = dict[str, Any]


class Memory:
    """Samples of the resident memory, and of the cells done, while it is entered."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int, int]] = []
        self.cells_done = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._start = time.perf_counter()

    def progress(self, done: int, _: int) -> None:
        self.cells_done = done

    def _sample(self) -> None:
        while True:
            seconds = round(time.perf_counter() - self._start, 2)
            self.samples.append((seconds, common.resident_bytes(), self.cells_done))
            if self._over.wait(SAMPLED_EVERY):
                return

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def repeated(few: Joint, size: int) -> tuple[Joint, np.ndarray]:
    """A batch of that many samples, all of `few` in turn and shuffled, and which is which."""
    order = np.random.default_rng(0).permutation(np.arange(size) % len(few.targets))
    enc, pred, weight, bias, *lattice, blank = few
    samples = (array[order] for array in lattice)
    return Joint(enc[order], pred[order], weight, bias, *samples, blank), order


def measure(name: str, quick: bool, threads: int) -> Row:
    """The call on the whole batch, and its checks."""
    common.use_threads(threads)
    case = (QUICK if quick else CASES)[name]
    call = partial(cupy_rnnt.joint_rnnt_loss_and_grad, reduction="none")
    call(*fresh([60], [9], 50, 40))  # BLAS buffers
    process = common.resident_bytes()
    joint, order = repeated(case.build(), case.batch)
    memory, used = Memory(), time.process_time()
    start = time.perf_counter()
    with memory:
        peak, result = common.peak_resident(
            partial(call, *joint, return_info=True, progress=memory.progress)
        )
        seconds = time.perf_counter() - start
    costs, gradients, info = result
    vocabulary, hidden = joint.weight.shape
    size, frames = joint.encoder_out.shape[:2]
    positions = joint.predictor_out.shape[1]
    row = {
        "inputs": name,
        "threads": threads,
        "shape": [size, frames, positions - 1, vocabulary, hidden],
        "frames": [int(joint.logit_lengths.min()), int(joint.logit_lengths.max())],
        "labels": [int(joint.target_lengths.min()), int(joint.target_lengths.max())],
        "distinct": int(order.max()) + 1,
        "seconds": seconds,
        "processor_seconds": time.process_time() - used,
        "cells": info.cells,
        "computed": info.computed / info.cells,
        "kept": info.kept / info.cells,
        "rounds": info.rounds,
        "certificate": float(info.certificate.max()),
        "mean_cost": float(costs.mean()),
        "process_bytes": process,
        "inputs_bytes": common.result_bytes(tuple(joint)),
        "gradients_bytes": common.result_bytes(tuple(gradients)),
        "planned_bytes": info.workspace_bytes,
        "peak_above_inputs_bytes": peak,
        "padded_logits_bytes": 4 * size * frames * positions * vocabulary,
        "memory": memory.samples,
    }
    print(f"{name}: {seconds:.0f} s, {peak / GIB:.2f} GiB above the inputs", flush=True)
    del joint
    return row | {"checks": checks(case.build(), order, costs, gradients)}


def checks(few: Joint, order: np.ndarray, costs: np.ndarray, gradients: Any) -> Row:
    """Largest relative errors of the batch, from each distinct utterance alone."""
    counts = np.bincount(order)
    d_weight, d_bias = (np.zeros(a.shape) for a in (few.weight, few.bias))
    differences, equal, inputs = [], 0, np.zeros(len(order))
    for i, count in enumerate(counts):
        cost, alone = _alone(few, i)
        copies = costs[order == i]
        differences.append(np.abs(copies.astype(float) / cost - 1).max())
        equal += int((copies == cost).sum())
        d_weight += count * alone.weight.astype(float)
        d_bias += count * alone.bias.astype(float)
        for copy in np.flatnonzero(order == i):
            for name in ("encoder_out", "predictor_out"):
                single = getattr(alone, name)[0]
                copied = getattr(gradients, name)[copy, : len(single)]
                inputs[copy] = np.maximum(inputs[copy], _error(copied, single))
    exact_cost, exact = _alone(few.astype(np.float64), 0, tolerance=0)
    first = int(np.argmax(order == 0))
    frames = exact.encoder_out.shape[1]
    return {
        "costs_equal_bit_for_bit": equal / len(order),
        "cost": float(max(differences)),
        "inputs": float(inputs.max()),
        "wrong": np.flatnonzero(~(inputs < WRONG)).tolist(),
        "weight": _error(gradients.weight, d_weight),
        "bias": _error(gradients.bias, d_bias),
        "cost_from_float64": float(abs(costs[first] / exact_cost - 1)),
        "encoder_out_from_float64": _error(
            gradients.encoder_out[first, :frames], exact.encoder_out[0]
        ),
    }


def _alone(few: Joint, i: int, **options: Any) -> tuple[float, Any]:
    """Cost and gradients of one sample, without padding."""
    frames, labels = int(few.logit_lengths[i]), int(few.target_lengths[i])
    costs, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(
        few.encoder_out[i : i + 1, :frames],
        few.predictor_out[i : i + 1, : labels + 1],
        few.weight,
        few.bias,
        few.targets[i : i + 1, :labels],
        [frames],
        [labels],
        few.blank,
        reduction="none",
        **options,
    )
    return float(costs[0]), gradients


def _error(result: np.ndarray, truth: np.ndarray) -> float:
    """Relative, in the Euclidean norm."""
    return float(np.linalg.norm(result - truth.astype(float)) / np.linalg.norm(truth.astype(float)))


def plans(sizes: dict[str, int]) -> Iterator[Row]:
    """What ``python -m cupy_rnnt estimate`` prints, in GiB."""
    for vocabulary in VOCABULARIES:
        for dtype in DTYPES:
            counts = sizes | {"vocab": vocabulary}
            words = [word for name, n in counts.items() for word in (f"--{name}", str(n))]
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                cli.main(["estimate", *words, "--dtype", dtype])
            amounts = {
                key: _gib(re.search(rf"{label} +([\d.]+ \w+)", printed.getvalue()))
                for key, label in (
                    ("inputs", "inputs"),
                    ("gradients", "gradients"),
                    ("workspace", "workspace"),
                    ("logits", "batched computation"),
                )
            }
            yield {"vocabulary": vocabulary, "dtype": dtype, **amounts}


def _gib(found: re.Match[str] | None) -> float:
    assert found
    number, unit = found[1].split()
    return float(number) * 1024.0 ** (["MiB", "GiB", "TiB"].index(unit) - 1)


def report(rows: list[Row], planned: list[Row], options: argparse.Namespace) -> None:
    header = ["inputs", "B", "frames", "labels", "V", "H", "computed", "kept", "certificate"]
    header += ["minutes", "processor minutes"]
    body = [
        [
            row["inputs"],
            row["shape"][0],
            "{} to {}".format(*row["frames"]),
            "{} to {}".format(*row["labels"]),
            *row["shape"][3:],
            f"{row['computed']:.1%}",
            f"{row['kept']:.1%}",
            f"{row['certificate']:.0e}",
            f"{row['seconds'] / 60:.1f}",
            f"{row['processor_seconds'] / 60:.1f}",
        ]
        for row in rows
    ]
    common.publish("headline", options, header, body)
    header = ["inputs", "held by inputs", "by gradients", "by the rest", "planned", "total"]
    body = [
        [
            row["inputs"],
            *(f"{row[key] / GIB:.2f}" for key in ("inputs_bytes", "gradients_bytes")),
            f"{(row['peak_above_inputs_bytes'] - row['gradients_bytes']) / GIB:.2f}",
            f"{row['planned_bytes'] / GIB:.2f}",
            f"{total(row):.2f}",
            f"{row['padded_logits_bytes'] / GIB:.0f}",
        ]
        for row in rows
    ]
    common.publish("headline_memory", options, [*header, "logits alone"], body)
    header = ["inputs", "cost", "the same bits", "inputs' gradients", "weight", "bias"]
    keys = ("inputs", "weight", "bias", "cost_from_float64", "encoder_out_from_float64")
    body = [
        [
            row["inputs"],
            f"{row['checks']['cost']:.0e}",
            f"{row['checks']['costs_equal_bit_for_bit']:.0%}",
            *(f"{row['checks'][key]:.0e}" for key in keys),
        ]
        for row in rows
    ]
    header += ["cost, float64", "encoder_out, float64"]
    common.publish("headline_checks", options, header, body)
    header = ["V", "dtype", "inputs", "gradients", "workspace", "logits alone"]
    keys = ("inputs", "gradients", "workspace", "logits")
    body = [
        [row["vocabulary"], row["dtype"], *(f"{row[key]:,.2f}" for key in keys)] for row in planned
    ]
    common.publish("headline_plans", options, header, body)


def total(row: Row) -> float:
    """Peak of inputs, gradients and workspace, in GiB."""
    return (row["inputs_bytes"] + row["peak_above_inputs_bytes"]) / GIB


def draw_memory(axes: Axes, row: Row) -> None:
    low = 0.0
    for name, colour in COLOURS.items():
        key = "planned_bytes" if name == "workspace" else f"{name}_bytes"
        high = low + row[key] / GIB
        axes.axhspan(low, high, color=colour, alpha=0.6, label=f"{name}: {high - low:.2f} GiB")
        low = high
    seconds, resident, _ = np.transpose(row["memory"])
    axes.plot(seconds / 60, resident / GIB, "k", linewidth=2, label="measured")
    size, *_, vocabulary, hidden = row["shape"]
    axes.set_title(
        f"{size} utterances, {row['inputs']} joint: {total(row):.1f} GiB\n"
        f"(the logits alone: {row['padded_logits_bytes'] / GIB:,.0f} GiB)"
    )
    axes.set_xlabel(f"minutes, V = {vocabulary}, H = {hidden}")
    axes.set_ylabel("memory of the process (GiB)")
    axes.set_ylim(0, 1.6 * low)
    axes.legend(loc="upper left", fontsize=8, ncols=2)


def draw_plans(axes: Axes, planned: list[Row]) -> None:
    rows = [row for row in planned if row["dtype"] == "float32"]
    places = np.arange(len(rows))
    ours = [row["inputs"] + row["gradients"] + row["workspace"] for row in rows]
    series = {
        "cupy_rnnt, planned in full": (ours, COLOURS["gradients"]),
        "the logits alone": ([row["logits"] for row in rows], style.VERMILION),
    }
    for i, (name, (values, colour)) in enumerate(series.items()):
        drawn = axes.bar(places + 0.4 * i - 0.2, values, 0.4, label=name, color=colour)
        axes.bar_label(drawn, [f"{value:,.1f}" for value in values], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(1, 1e5)
    axes.set_xticks(places, [f"V = {row['vocabulary']}" for row in rows])
    axes.set_ylabel("memory (GiB, logarithmic)")
    axes.set_title("Memory hardly depends on V, logits do\n(H = {hidden}, float32)".format(**PLANS))
    axes.legend(loc="upper left", fontsize=8)


def measurements(options: argparse.Namespace) -> Iterator[Row]:
    for name in CASES:
        yield common.alone(measure, name, options.quick, options.threads[-1])
    yield {"plans": list(plans(PLANS))}


def main() -> None:
    options = common.arguments(__doc__, threads=[2], redraws=True, cpu_only=True)
    *rows, last = common.measured("headline", options, partial(measurements, options))
    planned = last["plans"]
    report(rows, planned, options)
    chart = Figure(figsize=(14, 4.4), layout="constrained")
    *timelines, right = chart.subplots(1, len(rows) + 1)
    for axes, row in zip(timelines, rows, strict=True):
        draw_memory(axes, row)
    draw_plans(right, planned)
    common.save_chart("headline", options, chart)


if __name__ == "__main__":
    main()
