"""How do members of the family train, and how many cells matter to them then?

Puts runs of the speech example on one picture, beside the plain run of ``speech.json``, and keeps
the joint network that each has trained, with held-out prompts, as ``data/speech_MEMBER.npz``:

    python examples/train_speech.py --threads 1 --transducer tdt --out tdt
    python examples/train_speech.py --threads 1 --transducer hat --out hat
    python benchmarks/transducers.py tdt hat --data sounds

Without runs it computes the shares of cells of the kept joint networks again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import common
import numpy as np
import style
import torch
from matplotlib.figure import Figure
from workloads import DATA, speech

import cupy_rnnt

sys.path.insert(0, str(common.HERE.parent / "examples"))
from speech_data import BLANK, DEFAULT_DATA, Batch, Prompt, load_prompts
from train_speech import MEMBERS, Settings, Transducer

RESULTS = common.HERE / "results" / "transducers.json"
PLAIN = common.HERE / "results" / "speech.json"
DUMPS = {"regular": "char_trained", "tdt": "tdt", "hat": "hat"}  # the first is of another training
UTTERANCES, SECONDS = 3, 10  # held-out prompts are joined to so many, each so long or a bit longer
COPIES = 3  # of each in a batch: bounds are not tried on fewer cells
STYLES = {"regular": ("-", ""), "tdt": ("--", "//"), "hat": (":", "..")}  # of lines, and of bars
SHARES = {"computed": "f", "kept": "k"}


def joined(prompts: list[Prompt]) -> Batch:
    """The first prompts, one after the other, as a few long utterances."""
    ends = list(accumulate(len(prompt.recorded) for prompt in prompts))
    frames = SECONDS * 100
    features, texts = [], []
    for i in range(UTTERANCES):
        parts = [p for p, end in zip(prompts, ends, strict=True) if (end - 1) // frames == i]
        features.append(torch.cat([prompt.recorded for prompt in parts]))
        texts.append(" ".join(prompt.text for prompt in parts))
    return Batch.of(features, texts)


@torch.no_grad()
def keep(folder: Path, data: tuple[Path, ...]) -> dict[str, Any]:
    """Write the joint network of a run, in float16, and return the log of the run."""
    log = json.loads((folder / "log.json").read_text())
    settings = Settings(**log["settings"])
    model = Transducer(settings).eval()
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    batch = joined(load_prompts(data, replace(settings, speeds=()))[1])
    encoder_out, frames = model.encode(batch.features, batch.frames)
    predictor_out, _ = model.predict(torch.nn.functional.pad(batch.targets, (1, 0), value=BLANK))
    arrays = {"W": model.output.weight, "b": model.output.bias}
    for i, (t, u) in enumerate(zip(frames, batch.target_lengths, strict=True)):
        arrays |= {f"enc{i}": encoder_out[i, :t], f"pred{i}": predictor_out[i, : u + 1]}
    labels = {f"y{i}": row[:u] for i, (row, u) in enumerate(zip(*batch[2:], strict=True))}
    stored = {name: array.half().numpy() for name, array in arrays.items()}
    stored |= {name: row.numpy().astype(np.int32) for name, row in labels.items()}
    np.savez_compressed(DATA / f"speech_{settings.transducer}.npz", **stored)
    return log


def shares(member: str) -> dict[str, float]:
    """Of all cells of the kept utterances: those computed, and those that a gradient needs."""
    names = [str(i) for i in range(UTTERANCES)] * COPIES
    joint = speech(DUMPS[member], names)
    options = {"transducer": MEMBERS[member], "return_info": True}
    *_, info = cupy_rnnt.joint_rnnt_loss_and_grad(*joint, **options)
    return {name: getattr(info, name) / info.cells for name in SHARES}


def runs_of(folders: list[Path], data: tuple[Path, ...]) -> dict[str, Any]:
    """The log of each member: of the folders, and else as it was."""
    runs = {"regular": json.loads(PLAIN.read_text())["runs"]["selected"]}
    if RESULTS.exists():
        runs |= json.loads(RESULTS.read_text())["runs"]
    for folder in folders:
        log = keep(folder, data)
        runs[log["settings"]["transducer"]] = log
    return runs


def chart(runs: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    errors = ", ".join(f"{name} {run['history'][-1]['cer']:.2f}" for name, run in runs.items())
    style.message(figure, f"Members of the family train alike: character error rates {errors}")
    cost, cer, cells = figure.subplots(1, 3)
    for i, (name, run) in enumerate(runs.items()):
        line, hatch = STYLES[name]
        epochs = [row["epoch"] for row in run["history"]]
        for axes, key in (cost, "cost"), (cer, "cer"):
            axes.plot(epochs, [row[key] for row in run["history"]], line, label=name)
        places = np.arange(len(SHARES)) + 0.25 * (i - 1)
        values = list(run["shares"].values())
        bars = cells.bar(places, values, 0.22, label=name, hatch=hatch, edgecolor="white")
        cells.bar_label(bars, fmt="%.2f", fontsize=8)
    cost.set(title="training cost (nats an utterance)", xlabel="epoch", ylim=(0, None))
    cer.set(title="test character error rate", xlabel="epoch", ylim=(0, 1))
    names = [f"{name}, {letter}" for name, letter in SHARES.items()]
    cells.set(
        title="share of the cells, trained, 10 s utterances",
        xticks=range(len(SHARES)),
        xticklabels=names,
    )
    for axes in cost, cer, cells:
        axes.grid(alpha=0.3, axis="y")
        axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs of the speech example")
    parser.add_argument("--data", type=Path, help="folder of the recordings")
    options = parser.parse_args()
    runs = runs_of(options.runs, (options.data,) if options.data else DEFAULT_DATA)
    for member, run in runs.items():
        run["shares"] = shares(member)
    rows = [
        [
            member,
            f"{run['history'][-1]['cost']:.2f}",
            f"{run['history'][-1]['cer']:.3f}",
            *(f"{run['history'][-1][name]:.2f}" for name in SHARES),
            *(f"{share:.2f}" for share in run["shares"].values()),
        ]
        for member, run in runs.items()
    ]
    header = [f"{letter}, {cells}" for cells in ("training", "10 s") for letter in SHARES.values()]
    common.table(["member", "last cost", "CER", *header], rows)
    RESULTS.write_text(json.dumps({"machine": common.machine(), "runs": runs}, indent=1) + "\n")
    chart(runs).savefig(RESULTS.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
