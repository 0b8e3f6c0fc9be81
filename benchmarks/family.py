"""What does each member of the family cost, beside the plain loss?

Loss and all gradients, every member in turn in each repeat, per cell. The workloads "v1024 fresh"
and "v1024 trained" give a member the columns that it has beyond the plain transducer: big blanks in
front, of bias -6 where the joint is trained, and durations behind, nearly all alike. The workload
"own" has joint networks that were trained as what they are, TDT and HAT, by the speech example; V
and H are padded as in the others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import common
import numpy as np
import style
from matplotlib.figure import Figure
from workloads import WORKLOADS, Joint, speech

import cupy_rnnt

PLAIN = "regular"
TRANSDUCERS: dict[str, Any] = {
    "regular": "regular",
    "modified": "modified",
    "constrained": "constrained",
    "hat": "hat",
    "multi_blank": cupy_rnnt.multi_blank(),
    "tdt": cupy_rnnt.tdt(),
}
BIG_BLANKS, DURATIONS = 3, 5  # of the defaults above
OWN = {"regular": "char_trained", "hat": "hat", "tdt": "tdt"}
"""The joint networks in ``data/`` that were trained as such."""
UTTERANCES = (list("012") * 3)[:8]
WORKLOAD_NAMES = "v1024 fresh", "v1024 trained", "own"

Row = dict[str, Any]


def columns(count: int, like: np.ndarray, scale: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    return scale * rng.standard_normal((count, like.shape[1]), dtype=np.float32)


def v1024(workload: str, member: str) -> Joint:
    """With the columns that the member has beyond the plain transducer."""
    joint, fresh = WORKLOADS[workload](), workload == "v1024 fresh"
    scale, bias = (0.1, 0.0) if fresh else (0.01, -6.0)
    weights, biases = [joint.weight], [joint.bias]
    before = BIG_BLANKS if member == "multi_blank" else 0  # the column of the blank
    if before:
        weights.insert(0, columns(before, joint.weight, scale))
        biases.insert(0, np.full(before, bias, np.float32))
    if member == "tdt":
        weights.append(columns(DURATIONS, joint.weight, scale))
        biases.append(np.zeros(DURATIONS, np.float32))
    layer = {"weight": np.concatenate(weights), "bias": np.concatenate(biases)}
    return joint._replace(**layer, targets=joint.targets + before, blank=before)


def own(member: str) -> Joint:
    """The joint network that was trained as the member, with outputs and units that only pad it."""
    durations = DURATIONS if member == "tdt" else 0
    real = len(speech(OWN[member], ["0"]).bias)
    joint = speech(OWN[member], UTTERANCES, 1024 + durations, 512)
    rows = np.arange(len(joint.bias))  # real ones first, while durations come last in a layer
    order = np.concatenate([rows[: real - durations], rows[real:], rows[real - durations : real]])
    return joint._replace(weight=joint.weight[order], bias=joint.bias[order])


def build(workload: str, member: str) -> Joint:
    return own(member) if workload == "own" else v1024(workload, member)


def run(joint: Joint, member: str) -> Any:
    options = {"transducer": TRANSDUCERS[member], "return_info": True}
    return cupy_rnnt.joint_rnnt_loss_and_grad(*common.to_device(joint), **options)


def measure(workload: str, quick: bool, threads: int, repeats: int) -> list[Row]:
    """A row for each member."""
    common.use_threads(threads)
    joints = {name: build(workload, name) for name in (OWN if workload == "own" else TRANSDUCERS)}
    if quick:
        joints = {name: joint.first(1) for name, joint in joints.items()}
    cases = {name: partial(run, joint, name) for name, joint in joints.items()}
    samples = common.interleaved(cases, repeats)
    per_cell = {
        name: [seconds / joints[name].cells for seconds in values]
        for name, values in samples.items()
    }
    rows: list[Row] = []
    for name, case in cases.items():
        *_, info = case()
        row = {
            "workload": workload,
            "member": name,
            "threads": threads,
            "columns": len(joints[name].bias),
            "computed": info.computed / info.cells,
            "kept": info.kept / info.cells,
            "rounds": info.rounds,
            "planned_bytes": info.workspace_bytes,
            "traced_bytes": common.peak_traced(case),
            "time_over_plain": common.ratio(per_cell, name, PLAIN),
            "seconds": common.medians(samples)[name],
            "samples": samples[name],
        }
        rows.append(row)
        row["workspace_over_plain"] = row["traced_bytes"] / rows[0]["traced_bytes"]
    print(f"{workload}, {common.in_words(threads)}: done", flush=True)
    return rows


def report(rows: list[Row]) -> None:
    header = ["workload", "threads", "member", "columns", "computed", "kept", "seconds"]
    header += ["time / plain", "workspace / plain"]
    body = [
        [
            row["workload"],
            row["threads"],
            row["member"],
            row["columns"],
            f"{row['computed']:.1%}",
            f"{row['kept']:.1%}",
            f"{row['seconds']:.2f}",
            f"{row['time_over_plain']:.2f}",
            f"{row['workspace_over_plain']:.2f}",
        ]
        for row in rows
    ]
    common.table(header, body)


def draw(rows: list[Row]) -> Figure:
    """A panel for each workload, with time and workspace of each member."""
    rows = [row for row in rows if row["threads"] == rows[0]["threads"]]
    chart = Figure(figsize=(12, 3.8), layout="constrained")
    panels = chart.subplots(1, len(WORKLOAD_NAMES), sharex=True)
    for axes, workload in zip(panels, WORKLOAD_NAMES, strict=True):
        members = [row for row in rows if row["workload"] == workload]
        series = {
            "time": [row["time_over_plain"] for row in members],
            "workspace": [row["workspace_over_plain"] for row in members],
        }
        style.dots(axes, [row["member"] for row in members], series)
        axes.axvline(1, color=style.BLACK, linestyle="--", linewidth=1)
        title = "trained as what they are" if workload == "own" else workload
        axes.set(xlim=(0, None), title=title, xlabel="over the plain loss (dashed: 1)")
    style.legend(chart, panels[0])
    times = style.span([row["time_over_plain"] for row in rows if row["member"] != PLAIN])
    style.message(chart, f"Members of the family take {times} times as long as the plain loss")
    return chart


def main() -> None:
    options = common.arguments(__doc__)
    rows = [
        row
        for threads in options.threads
        for workload in WORKLOAD_NAMES
        for row in common.alone(measure, workload, options.quick, threads, options.repeats)
    ]
    report(rows)
    common.save("family", options, rows, draw(rows))


if __name__ == "__main__":
    main()
