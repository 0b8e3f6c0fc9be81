"""What do the loss and the gradient of given logits cost, beside one copy of the logits?

All are nanoseconds a valid logit; the copy, of one thread always, counts all it copies. PyTorch
runs in a process of its own, in turn with a copy of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import common
import costs
import numpy as np
import style
from matplotlib.figure import Figure
from workloads import fresh, speech

# Utterances of the trained joint, or samples, frames and labels of random logits; vocabulary.
SHAPES: dict[str, tuple[tuple[int, int, int] | list[str], int]] = {
    "fresh 8 x 200 x 51 x 500": ((8, 200, 50), 500),
    "fresh 4 x 200 x 51 x 1024": ((4, 200, 50), 1024),
    "fresh 32 x 100 x 26 x 128": ((32, 100, 25), 128),
    "trained, V = 300": (["0", "1", "2", "3"], 300),
    "trained, V = 1024": (["0", "1"], 1024),
}
QUICK: dict[str, tuple[tuple[int, int, int] | list[str], int]] = {
    "fresh 4 x 40 x 11 x 128": ((4, 40, 10), 128),
    "trained, V = 300": (["0"], 300),
}

Row = dict[str, Any]


def build(shape: str) -> tuple[Any, ...]:
    """Arguments of ``rnnt_loss`` up to ``blank``."""
    source, vocabulary = (SHAPES | QUICK)[shape]
    if isinstance(source, list):
        enc, pred, weight, bias, *lattice = speech("trained", source, vocabulary, 256)
        logits = np.tanh(enc[:, :, None] + pred[:, None]) @ weight.T + bias
    else:
        size, frames, labels = source
        *_, targets, logit_lengths, target_lengths, blank = fresh(
            [frames] * size, [labels] * size, vocabulary, 1
        )
        lattice = [targets, logit_lengths, target_lengths, blank]
        full = size, frames, labels + 1, vocabulary
        logits = np.random.default_rng(0).standard_normal(full, dtype=np.float32)
    return logits, *lattice


def nanoseconds(samples: common.Samples, valid: int, copied: int) -> dict[str, float]:
    counts = {name: copied if name == "copy" else valid for name in samples}
    return {name: 1e9 * s / counts[name] for name, s in common.medians(samples).items()}


def ours(shape: str, threads: int, repeats: int) -> Row:
    import cupy_rnnt

    common.use_threads(threads)
    logits, targets, logit_lengths, target_lengths, blank = common.to_device(build(shape))
    lattice = targets, logit_lengths, target_lengths, blank
    xp = common.array_library()
    work, copy = xp.empty_like(logits), xp.empty_like(logits)
    both = cupy_rnnt.rnnt_loss_and_grad
    cases = {
        "copy": partial(xp.copyto, copy, logits),
        "loss": partial(cupy_rnnt.rnnt_loss, work, *lattice),
        "gradient": partial(both, work, *lattice),
        "gradient in place": partial(both, work, *lattice, overwrite_logits=True),
    }
    samples = common.interleaved(cases, repeats, setup=partial(xp.copyto, work, logits))
    valid = int((logit_lengths * (target_lengths + 1)).sum()) * logits.shape[-1]
    *_, info = both(logits, *lattice, return_info=True)
    batch = costs.Batch.of(logit_lengths, target_lengths + 1)
    operations = costs.given_logits(batch, logits.shape[-1], info.kept / info.cells)
    return {
        "shape": shape,
        "threads": threads,
        "valid_logits": valid,
        "logits": logits.size,
        "kept": info.kept / info.cells,
        "nanoseconds": nanoseconds(samples, valid, logits.size),
        "samples": samples,
        **common.on_paper(common.medians(samples)["gradient in place"], operations),
    }


def peer(shape: str, threads: int, repeats: int) -> Row:
    import peers
    import torch

    common.use_threads(threads)
    logits, *lattice, blank = build(shape)
    valid = int((lattice[1] * (lattice[2] + 1)).sum()) * logits.shape[-1]
    leaf = torch.from_numpy(logits).requires_grad_()
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in lattice]

    def step() -> None:
        leaf.grad = None
        peers.loss_of_logits(leaf, *tensors, blank).backward()

    cases = {"copy": partial(np.copyto, np.empty_like(logits), logits), "pytorch": step}
    samples = common.interleaved(cases, repeats)
    return {"nanoseconds": nanoseconds(samples, valid, logits.size), "samples": samples}


def measure(shape: str, threads: int, repeats: int) -> Row:
    row = common.alone(ours, shape, threads, repeats)
    if common.device == "cpu":
        row["pytorch"] = common.alone(peer, shape, threads, repeats)
    print(f"{shape}, {common.in_words(threads)}: done", flush=True)
    return row


def series_of(row: Row) -> dict[str, float]:
    """Nanoseconds of all but the copy."""
    own = {name: ns for name, ns in row["nanoseconds"].items() if name != "copy"}
    if "pytorch" in row:
        own["PyTorch"] = row["pytorch"]["nanoseconds"]["pytorch"]
    return own


def report(rows: list[Row]) -> None:
    print("Nanoseconds a valid logit (and in copies of the logits):")
    header = ["logits", "threads", "kept", "copy", *series_of(rows[0])]
    body = []
    for row in rows:
        copies = [row["nanoseconds"]["copy"]] * 3
        copies += [row["pytorch"]["nanoseconds"]["copy"]] if "pytorch" in row else []
        values = zip(series_of(row).values(), copies, strict=True)
        body.append(
            [
                row["shape"],
                row["threads"],
                f"{row['kept']:.1%}",
                f"{row['nanoseconds']['copy']:.2f}",
                *(f"{ns:.2f} ({ns / copy:.1f})" for ns, copy in values),
            ]
        )
    common.table(header, body)
    common.beside_computed(rows, "shape")


def draw(rows: list[Row]) -> Figure:
    """A panel for each number of threads."""
    threads = sorted({row["threads"] for row in rows})
    chart = Figure(figsize=(5.5 * max(2, len(threads)), 3.6), layout="constrained")
    panels = chart.subplots(1, len(threads), sharey=True, squeeze=False)[0]
    names = {
        "gradient in place": "gradient, in place",
        "PyTorch": "PyTorch, gradient",
        "loss": "loss",
    }
    for axes, count in zip(panels, threads, strict=True):
        own = [row for row in rows if row["threads"] == count]
        series = {
            label: [series_of(row)[name] for row in own]
            for name, label in names.items()
            if name in series_of(own[0])
        }
        series["a copy of the logits"] = [row["nanoseconds"]["copy"] for row in own]
        style.dots(axes, [row["shape"] for row in own], series)
        axes.set(xlim=(0, None), xlabel="ns a valid logit", title=common.in_words(count))
    style.legend(chart, panels[0])
    first = [row for row in rows if row["threads"] == threads[0]]
    own = style.span([row["nanoseconds"]["gradient in place"] for row in first])
    text = f"Given logits, loss and gradient take {own} ns a logit"
    peers = [series_of(row)["PyTorch"] for row in first if "pytorch" in row]
    style.message(chart, text + (f", PyTorch {style.span(peers)}" if peers else ""))
    return chart


def main() -> None:
    options = common.arguments(__doc__)
    shapes = QUICK if options.quick else SHAPES
    rows = [measure(shape, n, options.repeats) for n in options.threads for shape in shapes]
    report(rows)
    common.save("logits", options, rows, draw(rows))


if __name__ == "__main__":
    main()
