"""Does certified selection change a training run, and what does it save?

Puts two runs of the speech example on one picture, the second one without selection:

    python examples/train_speech.py --threads 1 --out with
    python examples/train_speech.py --threads 1 --out without --tolerance 0
    python benchmarks/training.py with without
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import common
from matplotlib.figure import Figure

PANELS = {
    "training cost (nats an utterance)": ["cost"],
    "test character error rate": ["cer"],
    "share of the cells": ["computed", "kept"],
}
SHARES = PANELS["share of the cells"]


def chart(histories: dict[str, list[dict]]) -> Figure:
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        for name, history in histories.items():
            for key in keys:
                if keys is SHARES and name != "selected":
                    continue  # all cells, always
                label = key if keys is SHARES else name
                axes.plot(
                    [row["epoch"] for row in history], [row[key] for row in history], label=label
                )
        axes.set(title=title, xlabel="epoch", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("selected", type=Path, help="folder of the run with the default tolerance")
    parser.add_argument("whole", type=Path, help="folder of the run with --tolerance 0")
    options = parser.parse_args()
    logs = {
        name: json.loads((folder / "log.json").read_text())
        for name, folder in vars(options).items()
    }
    histories = {name: log["history"] for name, log in logs.items()}
    rows = [
        [
            name,
            f"{history[0]['cost']:.2f}",
            f"{history[-1]['cost']:.2f}",
            f"{history[-1]['cer']:.3f}",
            f"{history[0]['computed']:.2f} to {history[-1]['computed']:.2f}",
            f"{history[0]['kept']:.2f} to {history[-1]['kept']:.2f}",
            f"{statistics.median(row['seconds'] for row in history):.1f}",
        ]
        for name, history in histories.items()
    ]
    common.table(["run", "first cost", "last cost", "CER", "computed", "kept", "s an epoch"], rows)
    content = {"machine": common.machine(), "runs": logs}
    (common.HERE / "results" / "speech.json").write_text(json.dumps(content, indent=1) + "\n")
    chart(histories).savefig(common.HERE / "results" / "speech.png", dpi=120)


if __name__ == "__main__":
    main()
