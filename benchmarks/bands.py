"""How many cells has the band of k2's pruned loss, what does it miss of the cost, and how many does
certified selection compute? On real utterances; threads and repeats do not matter here.

A band is chosen by the posteriors of the joint network itself, as no simple joint could choose it
better. Costs are in float32, and so are the cells of a tolerance of 2**-24.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np
import style
from matplotlib.figure import Figure
from workloads import Joint, speech

import cupy_rnnt

DUMPS = {
    "untrained": ["0", "1"],
    "half_trained": ["0", "1", "2"],
    "trained": ["0", "1", "2", "3", "4", "long0"],
}
RANGES = [5, 10, 20, 40]  # positions a frame, k2's s_range
BUDGET = 1024 * common.MIB

Row = dict[str, Any]


def posteriors(joint: Joint) -> np.ndarray:
    """Occupancies of blank and label in all cells of a single utterance, (1, T, U + 1, 2)."""
    hidden = np.tanh(joint.encoder_out[0, :, None] + joint.predictor_out[0])
    logits = hidden @ joint.weight.T + joint.bias
    logits -= np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    positions = np.arange(len(joint.targets[0]))
    scores = np.full((1, *logits.shape[:2], 2), -np.inf)
    scores[0, ..., 0] = logits[..., 0]
    scores[0, :, :-1, 1] = logits[:, positions, joint.targets[0]]
    targets, lengths = np.ones_like(joint.targets), (joint.logit_lengths, joint.target_lengths)
    _, grad = cupy_rnnt.rnnt_loss_and_grad(
        scores, targets, *lengths, blank=0, fused_log_softmax=False
    )
    return -grad


def row_of(dump: str, joints: list[Joint]) -> Row:
    """Shares of the cells, and nats that a band adds to the cost of an utterance, on average."""
    infos, costs, found = [], [], {s_range: [] for s_range in RANGES}
    for joint in joints:
        arguments = common.to_device(joint)
        options = {"max_workspace_bytes": BUDGET, "return_info": True}
        cost, _, info = cupy_rnnt.joint_rnnt_loss_and_grad(*arguments, **options)
        infos.append(info)
        costs.append(float(common.to_host(cost)))
        occupancies = posteriors(joint)
        for s_range, values in found.items():
            lengths = joint.logit_lengths, joint.target_lengths
            band = cupy_rnnt.prune_ranges(occupancies, *lengths, s_range)
            cost, info = cupy_rnnt.joint_rnnt_loss(*arguments, band=band, tolerance=0.0, **options)
            values.append((info.computed, float(common.to_host(cost)) - costs[-1]))
    cells = sum(info.cells for info in infos)
    row: Row = {"dump": dump, "cells": cells, "cost": float(np.mean(costs))}
    row |= {key: sum(getattr(info, key) for info in infos) / cells for key in ("computed", "kept")}
    for s_range, values in found.items():
        computed, added = zip(*values, strict=True)
        row[f"band {s_range}"] = {"cells": sum(computed) / cells, "added": float(np.mean(added))}
    return row


def draw(rows: list[Row]) -> Figure:
    """Nats missed over the share of cells, a line for each stage of training."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for row, colour, marker in zip(rows, style.SERIES, style.MARKERS, strict=False):
        bands = [row[f"band {s_range}"] for s_range in RANGES]
        points = [100 * band["cells"] for band in bands], [band["added"] for band in bands]
        stage = row["dump"].replace("_", " ")
        axes.plot(*points, f"{marker}-", color=colour, label=f"{stage}: bands")
        where = f"{stage}: certified selection, nothing missed"
        axes.plot([100 * row["computed"]], [0], "*", color=colour, markersize=16, label=where)
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.set(xlim=(0, None), ylim=(-3e-5, None), xlabel="cells computed (% of the lattice)")
    axes.set_ylabel("error of the cost (nats an utterance)")
    axes.legend(frameon=False, fontsize=8)
    widths = ", ".join(map(str, RANGES))
    style.message(figure, f"Narrow bands ({widths} positions) miss some of the cost")
    return figure


def main() -> None:
    options = common.arguments(__doc__)
    dumps = {dump: names[:1] if options.quick else names for dump, names in DUMPS.items()}
    rows = [row_of(dump, [speech(dump, [name]) for name in names]) for dump, names in dumps.items()]
    header = ["stage", "cost", "computed", "kept", *(f"s_range {n}" for n in RANGES)]
    body = [
        [
            row["dump"].replace("_", " "),
            f"{row['cost']:.1f}",
            f"{row['computed']:.1%}",
            f"{row['kept']:.1%}",
            *("{cells:.1%}, {added:.3g}".format(**row[f"band {n}"]) for n in RANGES),
        ]
        for row in rows
    ]
    common.table(header, body)
    common.save("bands", options, rows, draw(rows))


if __name__ == "__main__":
    main()
