"""How exact are float32 results, beside those of a loss whose recursions are float32 as well?

The truth is ``cupy_rnnt.reference``, in float64 on the same float32 inputs. `plain` is the
textbook in float32 throughout, as peers compute it. Threads and repeats do not matter here.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np
import style
from matplotlib.figure import Figure
from scipy.special import log_softmax
from workloads import Joint, fresh, speech

import cupy_rnnt
from cupy_rnnt import JointGradients, reference

Row = dict[str, Any]


def plain_recursions(blank: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alpha (T, S) and beta (T + 1, S + 1) of log-probs (T, S), an anti-diagonal at a time."""
    frames, columns = blank.shape
    diagonals = []
    for d in range(frames + columns - 1):
        u = np.arange(max(0, d - frames + 1), min(columns, d + 1))
        diagonals.append((d - u, u))
    beta = np.full((frames + 1, columns + 1), -np.inf, blank.dtype)
    beta[frames, columns - 1] = 0.0
    for t, u in reversed(diagonals):
        beta[t, u] = np.logaddexp(beta[t + 1, u] + blank[t, u], beta[t, u + 1] + label[t, u])
    alpha = np.full((frames + 1, columns + 1), -np.inf, blank.dtype)  # shifted by one cell
    alpha[1, 1] = 0.0
    for t, u in diagonals[1:]:  # index -1 wraps around, to where alpha is -inf
        stay = alpha[t, u + 1] + blank[t - 1, u]
        alpha[t + 1, u + 1] = np.logaddexp(stay, alpha[t + 1, u] + label[t, u - 1])
    return alpha[1:, 1:], beta


def plain(logits: np.ndarray, labels: np.ndarray) -> tuple[np.float32, np.ndarray]:
    """Cost of one sample and its gradient (T, S, V), blank 0, all in the dtype of the logits."""
    log_probs = log_softmax(logits, axis=-1)
    columns = np.arange(len(labels))
    blank, label = log_probs[..., 0], np.full(logits.shape[:2], -np.inf, logits.dtype)
    label[:, :-1] = log_probs[:, columns, labels]
    alpha, beta = plain_recursions(blank, label)
    by_blank = np.exp(alpha + blank + beta[1:, :-1] - beta[0, 0])
    by_label = np.exp(alpha + label + beta[:-1, 1:] - beta[0, 0])
    grad = (by_blank + by_label)[..., None] * np.exp(log_probs)
    grad[..., 0] -= by_blank
    grad[:, columns, labels] -= by_label[:, :-1]
    return -beta[0, 0], grad


def plain_joint(joint: Joint) -> tuple[np.float32, JointGradients]:
    """The same for the only sample of a joint network."""
    encoder, predictor, weight = joint.encoder_out[0], joint.predictor_out[0], joint.weight
    hidden = np.tanh(encoder[:, None] + predictor)
    cost, d_logits = plain(hidden @ weight.T + joint.bias, joint.targets[0])
    d_sum = d_logits @ weight * (1 - hidden**2)
    flat = d_logits.reshape(-1, len(weight))
    d_weight = flat.T @ hidden.reshape(len(flat), -1)
    gradients = d_sum.sum(axis=1)[None], d_sum.sum(axis=0)[None], d_weight, flat.sum(axis=0)
    return cost, JointGradients(*gradients)


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def joint_errors(name: str, joint: Joint) -> list[Row]:
    """Relative error of the cost and of each gradient, the norm of the difference over the norm."""
    true_cost, truth = reference.joint_rnnt_loss_and_grad(*joint)
    ours = common.to_host(cupy_rnnt.joint_rnnt_loss_and_grad(*common.to_device(joint)))
    peer = plain_joint(joint)
    rows = []
    for i, result in enumerate(("cost", *truth._fields)):
        found, expected, beside = [
            np.atleast_1d(loss if i == 0 else gradients[i - 1]).astype(np.float64)
            for loss, gradients in (ours, (true_cost, truth), peer)
        ]
        errors = {"ours": relative(found, expected), "plain": relative(beside, expected)}
        rows.append({"problem": name, "result": result, **errors})
    return rows


def logit_errors(frames: int, labels: int, vocabulary: int) -> list[Row]:
    """Largest absolute error of d cost / d logits, whose elements are within [-1, 1]."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((1, frames, labels + 1, vocabulary), dtype=np.float32)
    lattice = rng.integers(1, vocabulary, (1, labels)), [frames], [labels], 0
    rows = []
    for name, logits in {
        "N(0, 1)": normal,
        "N(0, 1) * 1000": normal * np.float32(1000),
        "N(0, 1) + 10000": normal + np.float32(10000),
    }.items():
        _, truth = reference.rnnt_loss_and_grad(logits, *lattice)
        _, ours = common.to_host(cupy_rnnt.rnnt_loss_and_grad(common.to_device(logits), *lattice))
        _, peer = plain(logits[0], lattice[0][0])
        errors = {"ours": abs(ours - truth).max(), "plain": abs(peer - truth[0]).max()}
        rows.append({"problem": f"logits {name}", "result": "logits"} | errors)
    return [row | {key: float(row[key]) for key in ("ours", "plain")} for row in rows]


def draw(rows: list[Row]) -> Figure:
    """A panel for each joint network, and one for given logits."""
    problems: dict[str, list[Row]] = {}
    for row in rows:
        title = row["problem"].split(" N(")[0]
        problems.setdefault(title, []).append(row)
    chart = Figure(figsize=(12, 3.6), layout="constrained")
    panels = chart.subplots(1, len(problems), sharex=True)
    for axes, (title, own) in zip(panels, problems.items(), strict=True):
        kind, _, errors = title.rpartition(", ")
        names = [row["result"] if kind else row["problem"].removeprefix("logits ") for row in own]
        series = {
            "cupy_rnnt": [row["ours"] for row in own],
            "all in float32": [row["plain"] for row in own],
        }
        style.dots(axes, names, series)
        axes.set(xscale="log", title=kind or "gradient of given logits")
        axes.set_xlabel("relative error" if errors == "relative" else "largest absolute error")
    style.legend(chart, panels[0])
    ours, plain = (max(row[key] for row in rows) for key in ("ours", "plain"))
    text = f"Float32 results are off by {ours:.0e} at most"
    style.message(chart, f"{text}, with a lattice in float32 by up to {plain:.1g}")
    return chart


def main() -> None:
    options = common.arguments(__doc__)
    frames, labels = (200, 40) if options.quick else (1000, 200)
    joints = {
        f"fresh joint, T {frames}, U {labels}, relative": fresh([frames], [labels], 64, 32),
        "trained joint, speech, relative": speech("trained", ["0" if options.quick else "long0"]),
    }
    problems = {name: joint_errors(name, joint) for name, joint in joints.items()}
    logits = logit_errors(*((100, 20, 30) if options.quick else (400, 80, 30)))
    rows = [*(row for rows in problems.values() for row in rows), *logits]
    header = ["problem", "error of", "cupy_rnnt", "all in float32"]
    body = [
        [row["problem"], row["result"], f"{row['ours']:.1e}", f"{row['plain']:.1e}"] for row in rows
    ]
    common.table(header, body)
    common.save("accuracy", options, rows, draw(rows))


if __name__ == "__main__":
    main()
