"""The cells that each stage of a call touches, on an utterance of real speech."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from scipy.special import logsumexp
from shared import minimal, selection_figures, style, workloads

joint = workloads.speech("trained", ["0"])
found = selection_figures.selection(joint)  # by the library, with its default tolerance
T, S = found.computed.shape
labels = np.append(joint.targets[0], 0)
encoder, predictor, weight, bias = (array.astype(float) for array in joint[:4])
inputs = encoder[0], predictor[0], weight, bias

# Bounds, and what may leave the computed cells, in float64 by the method in a page of NumPy.
everywhere = np.ones((T, S), bool)
scores = minimal.bounds(inputs, labels, joint.blank)
scores[1, :, -1] = -np.inf
through = minimal.alphas(scores, everywhere) + minimal.betas(scores, everywhere)
through = (through - through[0, 0])[:T, :S] / np.log(10)
minimal.compute(scores, found.computed, inputs, labels, joint.blank)
log_inside = minimal.betas(scores, found.computed)[0, 0]
leaving = minimal.alphas(scores, found.computed) + minimal.betas(scores, everywhere)
leaving = np.where(found.computed, -np.inf, leaving[:T, :S]) - log_inside
certificate = np.exp(logsumexp(leaving))

NOTHING = "#EEEEEE"
LEAST = -20  # power of ten of a share that can be seen


def marked(axes, cells, colour):
    axes.imshow(cells.T, cmap=ListedColormap([NOTHING, colour]), vmin=0, vmax=1, **IMAGE)


def shaded(axes, values, least):
    """Powers of ten, from `least` to 0."""
    values = np.where(values < least, np.nan, values)
    axes.set_facecolor(NOTHING)
    image = axes.imshow(values.T, cmap="viridis", vmin=least, vmax=0, **IMAGE)
    figure.colorbar(image, ax=axes, ticks=[least, 0], format="$10^{%d}$", pad=0.02)


IMAGE = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
figure, panels = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharex=True, sharey=True)
references, bounds, sweeps, first, proof, second = panels.flat

edges = np.zeros((T, S), bool)
edges[:, :2] = edges[:4] = True
marked(references, edges, style.ORANGE)
references.set_title(f"1. References: V logits for each of\n{T} frames and {S} positions")
marked(bounds, everywhere, style.ORANGE)
bounds.set_title(f"2. Bounds: 4 dot products for each\nof {T * S} cells")
shaded(sweeps, through, -12)
sweeps.set_title("3. Sweeps: the share of paths through\na cell, at most")
marked(first, found.computed, style.BLUE)
first.set_title(
    f"4. Pass 1: V logits for each of\n{found.computed.sum()} cells ({found.computed.mean():.0%})"
)
outside = np.argwhere(leaving > np.log(10) * LEAST)
shares = leaving[tuple(outside.T)] / np.log(10)
points = proof.scatter(*outside.T, s=3, c=shares, cmap="viridis", vmin=LEAST, vmax=-9)
proof.set_facecolor(NOTHING)
figure.colorbar(points, ax=proof, ticks=[LEAST, -9], format="$10^{%d}$", pad=0.02)
proof.set_title(f"5. Certificate: at most {certificate:.0e} of P\nsteps out, at these cells")
marked(second, found.kept, style.BLUE)
second.set_title(
    f"6. Pass 2: the gradient of the logits of\n{found.kept.sum()} cells ({found.kept.mean():.0%})"
)
for axes in panels[1]:
    axes.set_xlabel("frame")
for axes in panels[:, 0]:
    axes.set_ylabel("labels emitted")
figure.suptitle("Two stages take the softmax of cells, and few cells need it", weight="bold")
