"""Which cells does certified selection compute, how does that change with length, and how tight is
the certificate? On real utterances; threads and repeats do not matter here.

``selection_cells``: the cells computed and kept of one utterance, at three stages of training.
``selection_lengths``: what fraction that is of utterances cut short, whole, and joined together.
``selection_certificate``: certificates beside the true errors, in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

import common
import numpy as np
import style
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from selection import true_errors, without_pilots
from workloads import Joint, speech

import cupy_rnnt
from cupy_rnnt import engine
from cupy_rnnt.engine.passes import Passes, Solved

STAGES = {"untrained": "untrained", "half trained": "half_trained", "trained": "trained"}
UTTERANCES = ["0", "1", "2", "3", "4"]
JOINED = [["0", "1"], ["0", "1", "2"], UTTERANCES, ["long0", *UTTERANCES]]
CUTS = [50, 100, 150, 200, 300, 400, 500, 700]  # frames
CERTIFIED = {
    "trained": [*UTTERANCES, "long0"],
    "half_trained": ["0", "1", "2"],
    "char_trained": ["0", "1", "2"],
}
TOLERANCES = [1e-2, 1e-4, 1e-6, 6e-8]
PRUNED_RANGE = 5  # positions a frame of k2's pruned loss, s_range
BUDGET = 1024 * common.MIB  # holds the lattice of the longest sample

Row = dict[str, Any]


class Selection(NamedTuple):
    """What was selected of a single utterance; each (T, S)."""

    computed: np.ndarray
    kept: np.ndarray
    blank_occupancy: np.ndarray  # 0 where a cell was not kept

    def fractions(self) -> Row:
        return {"computed": float(self.computed.mean()), "kept": float(self.kept.mean())}


def selection(joint: Joint) -> Selection:
    """Watch the passes of loss and gradients of a single utterance."""
    shape = int(joint.logit_lengths[0]), int(joint.target_lengths[0]) + 1
    computed, kept = np.zeros((2, *shape), bool)
    blank_occupancy = np.zeros(shape)

    class Watched(Passes):
        def _compute(self, group, cells, *rest):
            computed.flat[common.to_host(cells)] = True
            super()._compute(group, cells, *rest)

    def watched_posteriors(solved, packed):
        found = original(solved, packed)
        on_host = common.to_host(found)
        kept.flat[on_host.packed] = True
        blank_occupancy.flat[on_host.packed] = on_host.occupancies[0]
        return found

    original = Solved.posteriors
    with (
        mock.patch.object(engine, "Passes", Watched),
        mock.patch.object(Solved, "posteriors", watched_posteriors),
    ):
        cupy_rnnt.joint_rnnt_loss_and_grad(*common.to_device(joint), max_workspace_bytes=BUDGET)
    return Selection(computed, kept, blank_occupancy)


def digits(found: Selection) -> list[str]:
    """A digit for every frame, from label count 0 on: 0 left out, 1 computed, 2 also kept."""
    values = found.computed.astype(int) + found.kept
    return ["".join(map(str, row)) for row in values.T]


def cells_rows() -> list[Row]:
    rows = []
    for stage, dump in STAGES.items():
        found = selection(speech(dump, ["0"]))
        rows.append({"stage": stage} | found.fractions() | {"cells": digits(found)})
    return rows


def cut(joint: Joint, labels: int, frames: int) -> Joint:
    """The first frames of an utterance, and the labels that belong to them."""
    return joint._replace(
        encoder_out=joint.encoder_out[:, :frames],
        predictor_out=joint.predictor_out[:, : labels + 1],
        targets=joint.targets[:, :labels],
        logit_lengths=np.array([frames]),
        target_lengths=np.array([labels]),
    )


def joined(utterances: list[str]) -> Joint:
    """One utterance after the other as one; the predictor begins anew with each."""
    parts = [speech("trained", [name]) for name in utterances]
    predictor = [part.predictor_out[:, :-1] for part in parts[:-1]]
    return parts[0]._replace(
        encoder_out=np.concatenate([part.encoder_out for part in parts], axis=1),
        predictor_out=np.concatenate([*predictor, parts[-1].predictor_out], axis=1),
        targets=np.concatenate([part.targets for part in parts], axis=1),
        logit_lengths=sum(part.logit_lengths for part in parts),
        target_lengths=sum(part.target_lengths for part in parts),
    )


def length_row(kind: str, utterance: str, joint: Joint, found: Selection) -> Row:
    loss = cupy_rnnt.joint_rnnt_loss(*common.to_device(joint), max_workspace_bytes=BUDGET)
    cost = float(loss)
    frames, columns = found.kept.shape
    of_utterance = {"kind": kind, "utterance": utterance, "frames": frames, "labels": columns - 1}
    return of_utterance | {"cost": cost} | found.fractions()


def lengths_rows(quick: bool) -> list[Row]:
    rows = []
    for name in UTTERANCES[:1] if quick else [*UTTERANCES, "long0"]:
        joint = speech("trained", [name])
        found = selection(joint)
        labels = found.blank_occupancy.argmax(axis=1)  # by the end of each frame, most likely
        for frames in CUTS:
            if frames < joint.logit_lengths[0]:
                part = cut(joint, int(labels[frames - 1]), frames)
                rows.append(length_row("cut short", name, part, selection(part)))
        rows.append(length_row("whole", name, joint, found))
    for names in JOINED[:1] if quick else JOINED:
        joint = joined(names)
        rows.append(length_row("joined", " + ".join(names), joint, selection(joint)))
    return rows


def selected(rows: list[Row]) -> list[Row]:
    """Short utterances are computed whole."""
    return [row for row in rows if row["computed"] < 1]


def power(rows: list[Row], key: str) -> tuple[float, float]:
    """Exponent and logarithm of the factor of a fraction of cells as a power of the frames."""
    logs = np.log([(row["frames"], row[key]) for row in selected(rows)])
    slope, offset = np.polyfit(*logs.T, 1)
    return float(slope), float(offset)


def certificate_rows(quick: bool) -> list[Row]:
    rows = []
    for dump, utterances in CERTIFIED.items():
        for name in utterances[:1] if quick else utterances:
            with without_pilots():
                found = true_errors(speech(dump, [name]), TOLERANCES)
            rows += [
                {
                    "dump": dump,
                    "utterance": name,
                    "tolerance": tolerance,
                    "certificate": float(certificate[0]),
                    "true_error": float(error[0]),
                }
                for tolerance, (certificate, error) in zip(TOLERANCES, found, strict=True)
            ]
    return rows


def left_out(rows: list[Row]) -> list[Row]:
    """Those that computed every cell have nothing to certify."""
    return [row for row in rows if row["certificate"] > 0]


def draw_cells(rows: list[Row]) -> Figure:
    chart = Figure(figsize=(12, 4), layout="constrained")
    colours = ListedColormap(["#EEEEEE", style.ORANGE, style.BLUE])
    panels = chart.subplots(1, len(rows), sharey=True)
    for axes, row in zip(panels, rows, strict=True):
        image = [list(map(int, line)) for line in row["cells"]]
        grid = axes.pcolormesh(image, cmap=colours, vmin=-0.5, vmax=2.5, rasterized=True)
        axes.set_title(f"{row['stage']}\ncomputed {row['computed']:.1%}, kept {row['kept']:.1%}")
        axes.set_xlabel("frame")
    panels[0].set_ylabel("labels emitted")
    bar = chart.colorbar(grid, ax=panels, ticks=range(3))
    bar.ax.set_yticklabels(["left out", "computed", "computed, and kept\nfor the gradient"])
    style.message(chart, "The better a model is trained, the fewer cells matter")
    return chart


def draw_lengths(rows: list[Row]) -> Figure:
    chart = Figure(figsize=(8, 5), layout="constrained")
    axes = chart.subplots()
    frames = np.array([row["frames"] for row in selected(rows)])
    ends = np.array([frames.min(), frames.max()])
    for key, colour, marker in (("computed", style.ORANGE, "o"), ("kept", style.BLUE, "s")):
        points = [(row["frames"], 100 * row[key]) for row in rows]
        axes.loglog(*np.transpose(points), marker, color=colour, alpha=0.8)
        slope, offset = power(rows, key)
        label = f"{key}, ~ frames$^{{{slope:.2f}}}$ where cells are selected"
        fitted = 100 * np.exp(offset) * ends**slope
        axes.plot(ends, fitted, color=colour, marker=marker, markevery=[], label=label)
    rate = sum(row["labels"] for row in rows) / sum(row["frames"] for row in rows)
    frames = np.geomspace(*axes.get_xlim())
    label = f"{PRUNED_RANGE} positions a frame, as k2's pruned loss (approximate)"
    pruned = 100 * np.minimum(1, PRUNED_RANGE / (rate * frames + 1))
    axes.plot(frames, pruned, "--", color=style.BLACK, label=label)
    axes.set_xlabel("frames (25 a second)")
    axes.set_ylabel("cells (% of the lattice)")
    axes.set_yticks([2, 5, 10, 20, 50, 100])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    style.message(chart, "The longer an utterance is, the fewer of its cells are computed")
    return chart


def draw_certificates(rows: list[Row]) -> Figure:
    chart = Figure(figsize=(7, 5), layout="constrained")
    axes = chart.subplots()
    looks = zip(CERTIFIED, style.SERIES, style.MARKERS, strict=False)
    for dump, colour, marker in looks:
        own = [row for row in left_out(rows) if row["dump"] == dump]
        points = [(row["certificate"], row["true_error"]) for row in own]
        label = dump.replace("_", " ").replace("char", "characters,")
        axes.loglog(*np.transpose(points), marker, color=colour, fillstyle="none", label=label)
    ends = axes.get_xlim()
    axes.plot(ends, ends, color=style.GREY, label="true error = certificate")
    axes.set_ylabel("true error, P / P(C) - 1")
    axes.set_xlabel("certificate: the error at most")
    axes.legend(frameon=False)
    shares = [row["true_error"] / row["certificate"] for row in left_out(rows)]
    style.message(chart, f"True errors are {style.span(shares)} of their certificates")
    return chart


def draw(content: dict[str, Any]) -> dict[str, Figure]:
    return {
        "selection_cells": draw_cells(content["cells"]),
        "selection_lengths": draw_lengths(content["lengths"]),
        "selection_certificate": draw_certificates(content["certificates"]),
    }


def main() -> None:
    options = common.arguments(__doc__)
    cells, lengths = cells_rows(), lengths_rows(options.quick)
    certificates = certificate_rows(options.quick)
    body = [[row["stage"], f"{row['computed']:.1%}", f"{row['kept']:.1%}"] for row in cells]
    common.table(["utterance 0", "computed", "kept"], body)
    header = ["kind", "utterance", "frames", "labels", "cost", "computed", "kept"]
    body = [
        [
            *(row[key] for key in header[:4]),
            f"{row['cost']:.1f}",
            f"{row['computed']:.1%}",
            f"{row['kept']:.1%}",
        ]
        for row in lengths
    ]
    common.table(header, body)
    slopes = {key: power(lengths, key)[0] for key in ("computed", "kept")}
    for key, value in slopes.items():
        print(f"{key}, where cells are selected: ~ frames ** {value:.2f}")
    header = ["dump", "utterance", "tolerance", "certificate", "true_error"]
    body = [
        [*(row[key] for key in header[:2]), *(f"{row[key]:.2e}" for key in header[2:])]
        for row in certificates
    ]
    common.table(header, body)
    shares = [row["true_error"] / row["certificate"] for row in left_out(certificates)]
    print(f"true error / certificate: {min(shares):.3f} to {max(shares):.3f}")
    content = {
        "cells": cells,
        "lengths": lengths,
        "slopes": slopes,
        "certificates": certificates,
        "largest_share": max(shares),
    }
    common.save("selection_figures", options, content, draw(content))


if __name__ == "__main__":
    main()
