"""Tangents of a log-sum-exp in one dimension."""

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import logsumexp, softmax
from shared import style

slopes, offsets = np.array([-1.6, -0.3, 0.5, 1.4]), np.array([-0.6, 0.3, 0.2, -0.9])
h = np.linspace(-3, 3, 301)
REFERENCES = {-1.6: ("of the frame", style.BLUE), 1.2: ("of the position", style.ORANGE)}


def logits(h):
    return np.multiply.outer(h, slopes) + offsets


def tangent(reference):
    """q . z + entropy(q), with the softmax q at the reference."""
    q = softmax(logits(reference))
    return logits(h) @ q - q @ np.log(q)


figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
of_logits = axes.plot(h, logits(h), color=style.GREY, linewidth=1)
of_logits[0].set_label("logits of four labels")
truth = logsumexp(logits(h), axis=-1)
axes.plot(h, truth, color=style.BLACK, linewidth=2.5, label="their log-sum-exp: costly, a softmax")
for reference, (name, colour) in REFERENCES.items():
    line = tangent(reference)
    axes.plot(h, line, color=colour, linewidth=2, label=f"tangent at the reference {name}")
    axes.plot(reference, np.interp(reference, h, line), "o", color=colour, markersize=9)
best = np.max([tangent(reference) for reference in REFERENCES], axis=0)
axes.fill_between(
    h, best, truth, color=style.BLACK, alpha=0.12, linewidth=0, label="how loose it is"
)
axes.set_title("A tangent is never above the log-sum-exp, and costs one dot product", weight="bold")
axes.set(xlabel="hidden value h of a cell", ylabel="nats", xlim=(-3, 3), ylim=(-3, 5))
axes.legend(loc="upper center", frameon=False)
axes.spines[["top", "right"]].set_visible(False)
