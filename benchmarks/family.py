"""What do the members of the family cost beside the plain loss, in time and in workspace?

On the joints of ``v1024``, each member in turn with the plain loss. A trained joint is turned into
that of a member so that its posteriors stay about those of the plain loss: :func:`members`.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import common
import numpy as np
import style
from matplotlib.figure import Figure
from workloads import WORKLOADS, Joint, fresh, speech

import cupy_rnnt

QUICK = {
    "quick fresh": lambda: fresh([30, 25], [8, 6], 200, 64),
    "quick trained": lambda: speech("trained", ["0"]),
}
NAMES = "v1024 fresh", "v1024 trained"
DURATIONS, BIG_BLANKS = (0, 1, 2, 3, 4), (2, 4, 8)
DROPOUT, S_RANGE = 0.2, 10
PLAIN = "regular"
DRAWN = "modified", "constrained", "hat", "tdt", "multi_blank"
FITTED = 4096  # cells
SCALES = {"fresh": (0.1, 0.0), "trained": (0.02, -6.0)}  # of further rows: weights, and bias

Row = dict[str, Any]


class Member(NamedTuple):
    """A joint, and what else a call takes."""

    joint: Joint
    options: dict[str, Any]


def log_odds(joint: Joint, seed: int = 0) -> tuple[np.ndarray, np.float32]:
    """A row of weights and a bias: the least squares fit of the log-odds of the blank, that is, of
    its logit less the log-sum-exp of the labels, on some cells of the batch."""
    rng = np.random.default_rng(seed)
    b = rng.integers(len(joint.targets), size=FITTED)
    t, u = rng.integers(joint.logit_lengths[b]), rng.integers(joint.target_lengths[b] + 1)
    hidden = np.tanh(joint.encoder_out[b, t] + joint.predictor_out[b, u])
    logits = hidden @ joint.weight.T + joint.bias
    odds = logits[:, joint.blank].copy()
    logits[:, joint.blank] = -np.inf
    odds -= np.logaddexp.reduce(logits, axis=1)
    columns = np.hstack([hidden, np.ones((FITTED, 1), np.float32)])
    fit = np.linalg.lstsq(columns, odds, rcond=None)[0].astype(np.float32)
    return fit[:-1], fit[-1]


def further_rows(joint: Joint, count: int, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """As the workloads have them: random ones of a fresh joint, unlikely ones of a trained one."""
    scale, bias = SCALES[stage]
    normal = partial(np.random.default_rng(1).standard_normal, dtype=np.float32)
    of_bias = 0.1 * normal(count) if stage == "fresh" else np.full(count, bias, np.float32)
    return scale * normal((count, joint.weight.shape[1])), of_bias


def of_hat(joint: Joint) -> Joint:
    """The blank is given its log-odds."""
    weight, bias = joint.weight.copy(), joint.bias.copy()
    weight[joint.blank], bias[joint.blank] = log_odds(joint)
    return joint._replace(weight=weight, bias=bias)


def of_tdt(joint: Joint, stage: str) -> Joint:
    """Rows of durations. In the trained joint they say 0 where a label is likely, and 1 where the
    blank is."""
    rows, biases = further_rows(joint, len(DURATIONS), stage)
    if stage == "trained":
        row, bias = log_odds(joint)
        rows[:2], biases[:2] = (-row / 2, row / 2), (-bias / 2, bias / 2)
    weight = np.concatenate([joint.weight, rows])
    return joint._replace(weight=weight, bias=np.concatenate([joint.bias, biases]))


def of_multi_blank(joint: Joint, stage: str) -> Joint:
    """Labels, big blanks and the blank, in this order."""
    rows, biases = further_rows(joint, len(BIG_BLANKS), stage)
    weight = np.concatenate([joint.weight[1:], rows, joint.weight[:1]])
    bias = np.concatenate([joint.bias[1:], biases, joint.bias[:1]])
    labels = np.maximum(joint.targets - 1, 0)  # of padding: 0
    return joint._replace(weight=weight, bias=bias, targets=labels, blank=-1)


def band_of(joint: Joint) -> Any:
    occupancies = common.to_host(cupy_rnnt.joint_rnnt_posteriors(*common.to_device(joint)))
    return cupy_rnnt.prune_ranges(occupancies, joint.logit_lengths, joint.target_lengths, S_RANGE)


def members(joint: Joint, stage: str) -> dict[str, Member]:
    """The plain loss, the others, and options of the plain loss."""
    tdt, multi_blank = cupy_rnnt.tdt(DURATIONS), cupy_rnnt.multi_blank(BIG_BLANKS)
    return {
        PLAIN: Member(joint, {}),
        "modified": Member(joint, {"transducer": "modified"}),
        "constrained": Member(joint, {"transducer": "constrained"}),
        "hat": Member(of_hat(joint), {"transducer": "hat"}),
        "tdt": Member(of_tdt(joint, stage), {"transducer": tdt}),
        "multi_blank": Member(of_multi_blank(joint, stage), {"transducer": multi_blank}),
        f"{PLAIN}, dropout {DROPOUT}": Member(joint, {"dropout": DROPOUT}),
        f"{PLAIN}, band of {S_RANGE}": Member(joint, {"band": band_of(joint)}),
    }


def call_of(member: Member) -> partial:
    arguments = common.to_device(member.joint)
    return partial(cupy_rnnt.joint_rnnt_loss_and_grad, *arguments, **member.options)


def measure(workload: str, threads: int, repeats: int) -> list[Row]:
    """A row for each member."""
    common.use_threads(threads)
    joint, stage = (WORKLOADS | QUICK)[workload](), workload.split()[-1]
    cupy_rnnt.joint_rnnt_loss_and_grad(*common.to_device(fresh([60], [9], 50, 40)))  # BLAS buffers
    calls = {name: call_of(member) for name, member in members(joint, stage).items()}
    rows: list[Row] = []
    for name, call in calls.items():
        cost, _, info = call(return_info=True)
        computed, kept = info.computed / info.cells, info.kept / info.cells
        samples = common.interleaved({PLAIN: calls[PLAIN]} | {name: call}, repeats)
        rows.append(
            {
                "workload": workload,
                "threads": threads,
                "transducer": name,
                "cost": float(cost),
                "computed": computed,
                "kept": kept,
                "products": computed + 2 * kept,
                "traced_bytes": common.peak_traced(call),
                "time": common.ratio(samples, name, PLAIN),
                "medians": common.medians(samples),
                "samples": samples,
            }
        )
    plain = rows[0]
    for row in rows:
        row["products_per_plain"] = row["products"] / plain["products"]
        row["workspace_per_plain"] = row["traced_bytes"] / plain["traced_bytes"]
    print(f"{workload}, {common.in_words(threads)}: done", flush=True)
    return rows


def report(rows: list[Row]) -> None:
    header = ["workload", "threads", "transducer", "cost", "computed", "kept", "seconds", "time"]
    body = [
        [
            row["workload"],
            row["threads"],
            row["transducer"],
            f"{row['cost']:.1f}",
            f"{row['computed']:.1%}",
            f"{row['kept']:.1%}",
            f"{row['medians'][row['transducer']]:.2f}",
            f"{row['time']:.2f}",
            f"{row['products_per_plain']:.2f}",
            f"{row['traced_bytes'] / common.MIB:.0f}",
            f"{row['workspace_per_plain']:.2f}",
        ]
        for row in rows
    ]
    common.table([*header, "products", "MiB", "workspace"], body)


def draw(rows: list[Row], threads: list[int], workloads: list[str]) -> Figure:
    """A panel for each workload, of the members."""
    chart = Figure(figsize=(10, 4 * len(threads)), layout="constrained")
    grid = chart.subplots(len(threads), len(workloads), sharey=True, squeeze=False)
    shown = [row for row in rows if row["transducer"] in DRAWN]
    places = np.arange(len(DRAWN))
    for axes, (count, workload) in zip(grid.flat, product(threads, workloads), strict=True):
        panel = [row for row in shown if (row["threads"], row["workload"]) == (count, workload)]
        bars = axes.bar(places, [row["time"] for row in panel], 0.7, color="C0", label="time")
        axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
        products = [row["products_per_plain"] for row in panel]
        axes.hlines(products, places - 0.4, places + 0.4, color="black", label="products alone")
        axes.axhline(1, color="grey", linestyle="--", linewidth=1, label="the plain loss")
        axes.set_xticks(places, DRAWN)
        axes.set_title(f"{workload}, {common.in_words(count)}")
        axes.set_ylabel("time / time of the plain loss")
    chart.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    times = [row["time"] for row in shown]
    span = f"{min(times):.2f} to {max(times):.2f}"
    style.message(chart, f"Members of the family take {span} times as long as the plain loss")
    return chart


def main() -> None:
    options = common.arguments(__doc__)
    names = QUICK if options.quick else NAMES
    rows = [
        row
        for threads in options.threads
        for name in names
        for row in common.alone(measure, name, threads, options.repeats)
    ]
    report(rows)
    common.save("family", options, rows, draw(rows, options.threads, list(names)))


if __name__ == "__main__":
    main()
