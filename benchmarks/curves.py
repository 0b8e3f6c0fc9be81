"""Do PyTorch, ``torch.compile`` and JAX train alike?

    python benchmarks/curves.py --data sounds

The first steps of the speech example (``examples/train_speech.py`` says how to get its recordings)
with a small model, short prompts and no dropout, from the same parameters, on the same batches.
What float32 noise explains is measured too: how far eager PyTorch is from itself in float64, and
from itself with the samples of each batch in other orders, which reorders sums.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import common
import numpy as np
import style
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(common.HERE.parent / "examples"))
import train_speech
import train_speech_jax
from speech_data import DEFAULT_DATA, Batch, Prompt, load_prompts, training_batches
from train_speech import Settings

SETTINGS = Settings(
    train_prompts=200,
    test_prompts=16,
    max_seconds=2.0,
    epochs=12,
    gru=64,
    layers=1,
    joint=64,
    dropout=0.0,
)
STEPS, QUICK_STEPS = 50, 8
ORDERS, QUICK_ORDERS = 20, 2
SHAPES = 256  # no fewer than there are: each compiles the convolutions anew
LEAST = 1e-8  # difference on the picture; one in the last digit of float32 is 6e-8 or more
EAGER, LOSS, MODEL, JAX = "PyTorch", "torch.compile, loss", "torch.compile, model", "JAX"
COMPILED = {
    LOSS: "joint_rnnt_loss with fullgraph=True; the rest is eager",
    MODEL: "Transducer.loss, with graph breaks at its GRUs and at pack_padded_sequence, through "
    "which PyTorch cannot trace",
}
NOISE = (
    "Twice the largest relative difference of eager PyTorch in float32 from itself in float64: two "
    "runs in float32, each as far from that as eager PyTorch, differ by no more. The curves, with "
    "the samples of each batch in other orders, differ in the order of sums over the batch alone."
)

Curve = list[float]


def first_batches(settings: Settings, train: list[Prompt], count: int) -> list[Batch]:
    rng = np.random.default_rng(settings.seed)
    epochs = (training_batches(train, settings.batch, rng) for _ in iter(int, 1))
    return list(islice((batch for epoch in epochs for batch in epoch), count))


def pytorch(
    settings: Settings,
    train: list[Prompt],
    batches: list[Batch],
    change: Callable[[torch.nn.Module], object] = lambda model: None,
) -> Curve:
    """Mean cost of an utterance at each step."""
    trainer = train_speech.Trainer(settings, train, [], Path())
    trainer.model.train()
    change(trainer.model)
    return [trainer.step(batch)[0] for batch in batches]


def compile_model(model: Any) -> None:
    model.loss = torch.compile(model.loss, dynamic=True)


def curves(settings: Settings, train: list[Prompt], batches: list[Batch]) -> dict[str, Curve]:
    run = partial(pytorch, settings, train, batches)
    found = {EAGER: run()}
    loss = torch.compile(train_speech.joint_rnnt_loss, fullgraph=True)
    with mock.patch.object(train_speech, "joint_rnnt_loss", loss):
        found[LOSS] = run()
    with torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=4 * SHAPES):
        found[MODEL] = run(compile_model)
    trainer = train_speech_jax.Trainer(settings, train)
    return found | {JAX: [trainer.step(batch) for batch in batches]}


def reordered(batch: Batch, rng: np.random.Generator) -> Batch:
    order = torch.from_numpy(rng.permutation(len(batch.frames)))
    return Batch(*(part[order] for part in batch))


def in_float64(settings: Settings, train: list[Prompt], batches: list[Batch]) -> Curve:
    doubled = [batch._replace(features=batch.features.double()) for batch in batches]
    return pytorch(settings, train, doubled, torch.nn.Module.double)


def difference(curve: Curve, base: Curve) -> Curve:
    """Relative, at each step."""
    return np.abs(np.array(curve) / base - 1).tolist()


def summary(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each run: its differences from eager PyTorch, by what float32 noise explains too, and from
    PyTorch in float64."""
    found = {}
    for name, curve in content["costs"].items():
        from_eager = difference(curve, content["costs"][EAGER])
        found[name] = {
            "first_step": from_eager[0],
            "largest": max(from_eager),
            "largest_by_noise": max(from_eager) / content["noise"]["bound"],
            "largest_from_float64": max(difference(curve, content["float64"])),
        }
    return found


def draw(content: dict[str, Any]) -> Figure:
    costs = content["costs"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(costs[EAGER]) + 1)

    def draw_difference(curve: Curve, **look: Any) -> None:
        right.semilogy(steps, np.maximum(difference(curve, costs[EAGER]), LEAST), **look)

    for curve in content["noise"]["curves"]:
        draw_difference(curve, color=style.GREY, linewidth=0.8)
    right.plot([], [], color=style.GREY, label="PyTorch, samples in other orders")
    lines = ("-", "--", ":", "-.")
    colours = style.GREY, style.ORANGE, style.BLACK, style.BLUE
    for i, (name, line, colour) in enumerate(zip(costs, lines, colours, strict=True)):
        left.plot(steps, costs[name], line, color=colour, linewidth=5 - i, label=name)
        if name != EAGER:
            draw_difference(costs[name], color=colour, label=name, marker=".", markersize=4)
    left.set(xlabel="step", ylabel="cost (nats an utterance)", ylim=(0, None))
    right.set(xlabel="step", ylabel=f"relative difference from PyTorch (0 at {LEAST:g})")
    bound = content["noise"]["bound"]
    label = "explained by float32 noise"
    right.axhline(bound, color=style.BLACK, linestyle=":", label=label)
    right.set_ylim(None, 30 * bound)
    for axes in (left, right):
        axes.legend(fontsize=8, frameon=False)
    style.message(figure, "PyTorch, torch.compile and JAX train alike, to the rounding of float32")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--quick", action="store_true", help="few steps: does the script run?")
    options = parser.parse_args()
    common.use_threads(1)
    folders = (options.data,) if options.data else DEFAULT_DATA
    train, _ = load_prompts(folders, SETTINGS)
    batches = first_batches(SETTINGS, train, QUICK_STEPS if options.quick else STEPS)

    rng = np.random.default_rng(0)
    noise = [
        pytorch(SETTINGS, train, [reordered(batch, rng) for batch in batches])
        for _ in range(QUICK_ORDERS if options.quick else ORDERS)
    ]
    costs = curves(SETTINGS, train, batches)
    exact = in_float64(SETTINGS, train, batches)
    bound = 2 * max(difference(costs[EAGER], exact))
    content = {
        "settings": asdict(SETTINGS),
        "compiled": COMPILED,
        "costs": costs,
        "float64": exact,
        "noise": {"meaning": NOISE, "bound": bound, "curves": noise},
    }
    content["summary"] = summary(content)
    header = ["run", "first step", "largest", "by the noise", "largest, from float64"]
    body = [
        [name, *(f"{value:.2g}" for value in row.values())]
        for name, row in content["summary"].items()
    ]
    common.table(header, body)
    print(f"Float32 noise explains {bound:.2g}, twice PyTorch's largest difference from float64.")
    largest = [max(difference(curve, costs[EAGER])) for curve in noise]
    print(f"In {len(noise)} orders of the samples: {min(largest):.2g} to {max(largest):.2g}")
    common.save("curves", argparse.Namespace(quick=options.quick), content, draw(content))


if __name__ == "__main__":
    main()
