"""
From a toy lattice to a certificate
===================================

This notebook computes the transducer loss by hand, on a lattice that fits on a page. Then it
takes an utterance of real speech, and shows why the library computes a tenth of the cells and can
still prove that the result is right. It runs in a few seconds on one core, from a checkout of the
project.

The words are those of :doc:`/glossary`, and :doc:`/method` has the formulas.
"""

# %%
# A toy lattice
# -------------
#
# There are 4 frames of audio and 3 labels, the letters of "cat". The network may emit a blank,
# which leads to the next frame, or the next letter. For each cell (frame t, letters emitted so
# far u) it gives a row of logits, one for each entry of the vocabulary. Here they are random,
# with a preference for c at frame 0, a at frame 1 and t at frame 3.

import itertools
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

import cupy_rnnt
import cupy_rnnt.plot

BLUE, ORANGE, BLACK, GREY = "#0072B2", "#E69F00", "#000000", "#BBBBBB"

vocabulary = ["blank", "a", "c", "t"]
word = "cat"
labels = np.array([vocabulary.index(letter) for letter in word])
T, U, V = 4, 3, len(vocabulary)

rng = np.random.default_rng(1)
logits = rng.standard_normal((T, U + 1, V))
logits[..., 0] += 0.5  # a blank is likely everywhere
for u, t in enumerate([0, 1, 3]):
    logits[t, u, labels[u]] += 2.5

log_probs = log_softmax(logits, axis=-1)
blank = log_probs[..., 0]  # (T, U + 1): log-probability of the blank in each cell
label = np.full((T, U + 1), -np.inf)  # of the next letter; after the last one there is none
label[:, :U] = log_probs[:, range(U), labels]


def draw_lattice(title, by_blank, by_label, *, path=(), width=5.0):
    """An arrow for each arc, its width and the number beside it by two arrays (T, U + 1)."""
    _, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    arcs = [(t, u, 1, 0, by_blank[t, u]) for t in range(T) for u in range(U + 1)]
    arcs += [(t, u, 0, 1, by_label[t, u]) for t in range(T) for u in range(U)]
    for t, u, frames, letters, value in arcs:
        if (t + frames, u) in {(T, u) for u in range(U)}:
            continue  # a blank of the last frame ends a path only after the last letter
        colour = ORANGE if (t, u, frames) in path else BLUE
        style = {"arrowstyle": "-|>", "lw": 0.3 + width * value, "color": colour}
        style |= {"shrinkA": 9, "shrinkB": 9, "mutation_scale": 12}
        axes.annotate("", (t + frames, u + letters), (t, u), arrowprops=style)
        middle = t + 0.5 * frames + 0.06 * letters, u + 0.5 * letters + 0.1 * frames
        axes.text(*middle, f"{value:.2f}", ha="center" if frames else "left")
    cells = [(t, u) for t in range(T) for u in range(U + 1)]
    axes.scatter(*np.transpose(cells), s=150, color="white", edgecolors=BLACK, zorder=3)
    axes.scatter([T], [U], s=150, color=BLACK, zorder=3)
    axes.text(T, U + 0.2, "end", ha="center")
    axes.set_xticks(range(T))
    axes.set_yticks(range(U + 1), [f'"{word[:u]}"' for u in range(U + 1)])
    axes.set(title=title, xlabel="frame", ylabel="emitted so far", xlim=(-0.4, T + 0.4))
    axes.set_ylim(-0.3, U + 0.5)
    axes.spines[["top", "right"]].set_visible(False)


arrows = np.exp([blank, label])
draw_lattice("Each arrow has a probability: right is a blank, up is a letter", *arrows)

# %%
# The cost is a sum over all paths
# --------------------------------
#
# A path begins in the lower left, and ends with the blank of the last cell. Its probability is
# the product of its arrows. There are few enough paths here to list them all: each is a way to
# arrange three letters and three blanks, with one more blank at the end.


def arrows_of(steps):
    """The arcs (t, u, frames) of a path of blanks (1) and letters (0)."""
    t = u = 0
    for step in (*steps, 1):
        yield t, u, step
        t, u = t + step, u + 1 - step


def log_prob_of(path):
    return sum(blank[t, u] if step else label[t, u] for t, u, step in path)


paths = [tuple(arrows_of(steps)) for steps in set(itertools.permutations([1] * (T - 1) + [0] * U))]
by_enumeration = -logsumexp([log_prob_of(path) for path in paths])
best = max(paths, key=log_prob_of)
print(f"{len(paths)} paths, cost {by_enumeration:.6f} nats")

draw_lattice(
    f"The likeliest of {len(paths)} paths has {np.exp(log_prob_of(best) + by_enumeration):.0%} "
    "of their probability",
    *arrows,
    path=best,
)

# %%
# Alpha and beta: the same sum without the list
# ---------------------------------------------
#
# A real utterance has more paths than atoms fit into the universe. But paths share their parts.
# *Alpha* of a cell is the log-probability of all paths that lead to it, and *beta* of all that
# lead from it to the end. Each is made of its neighbours, one cell at a time.

alpha = np.full((T, U + 1), -np.inf)
alpha[0, 0] = 0.0
for t in range(T):
    for u in range(U + 1):
        if t > 0:
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t - 1, u] + blank[t - 1, u])
        if u > 0:
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t, u - 1] + label[t, u - 1])

beta = np.full((T + 1, U + 2), -np.inf)  # with a row and a column behind the last cell
beta[T, U] = 0.0
for t in reversed(range(T)):
    for u in reversed(range(U + 1)):
        beta[t, u] = np.logaddexp(beta[t + 1, u] + blank[t, u], beta[t, u + 1] + label[t, u])

sample = logits[None], labels[None], [T], [U]
by_library = cupy_rnnt.rnnt_loss(*sample, blank=0)
print(f"all paths  {by_enumeration:.12f}")
print(f"alpha      {-(alpha[-1, -1] + blank[-1, -1]):.12f}")
print(f"beta       {-beta[0, 0]:.12f}")
print(f"cupy_rnnt  {by_library:.12f}")
np.testing.assert_allclose([-beta[0, 0], by_library], by_enumeration, rtol=1e-12)

# %%
# Occupancies: where do paths go?
# -------------------------------
#
# What leads to an arrow, times the arrow, times what leads on from there: that is the probability
# of all paths through it. Its share of the total is the *occupancy* of the arrow.

by_blank = np.exp(alpha + blank + beta[1:, :-1] - beta[0, 0])
by_label = np.exp(alpha + label + beta[:-1, 1:] - beta[0, 0])
draw_lattice("Occupancy: how likely is it that a path takes this arrow?", by_blank, by_label)

(posteriors,) = cupy_rnnt.rnnt_posteriors(*sample, blank=0)
np.testing.assert_allclose(posteriors, np.stack([by_blank, by_label], axis=-1), atol=1e-12)
print("blanks a frame ", by_blank.sum(axis=1))
print("frames a letter", by_label.sum(axis=0)[:U])

# %%
# Each path leaves each frame once and emits each letter once, so these sums are 1.
#
# The gradient is made of occupancies
# -----------------------------------
#
# The derivative of the cost by a log-probability is minus the occupancy of its arrow. Behind a
# softmax this becomes: what the network says, less what the paths say. So the gradient of a cell
# is never larger than twice its occupancy. A cell that no likely path visits has next to no
# gradient.

occupancy = by_blank + by_label
gradient = occupancy[..., None] * softmax(logits, axis=-1)
gradient[..., 0] -= by_blank
gradient[:, range(U), labels] -= by_label[:, :U]

_, (by_library,) = cupy_rnnt.rnnt_loss_and_grad(*sample, blank=0)
np.testing.assert_allclose(by_library, gradient, atol=1e-12)

fig, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot([0, 1], [0, 2], color=GREY, label="twice the occupancy")
axes.scatter(occupancy, abs(gradient).sum(axis=-1), color=BLUE, label="the cells", zorder=3)
axes.set(title="No occupancy, no gradient", xlabel="occupancy of the cell")
axes.set_ylabel("sum of |gradient| of its logits")
axes.legend()

# %%
# A real utterance
# ----------------
#
# Now to speech. The next lines load what enters the joint network of a small transducer that was
# trained on recorded prompts, with letters for labels. The joint network adds an encoder output
# (a row for each frame) and a predictor output (a row for each position), takes the tanh, and
# multiplies by a weight.

root = next(f for f in (Path.cwd(), *Path.cwd().parents) if (f / "benchmarks" / "data").is_dir())
symbols = " '" + "abcdefghijklmnopqrstuvwxyz" + "0123456789"  # entry 0 is the blank
with np.load(root / "benchmarks" / "data" / "speech_char_trained.npz") as data:
    names = "enc0", "pred0", "W", "b"
    encoder_out, predictor_out, weight, bias = (data[name].astype(float) for name in names)
    labels = data["y0"].astype(int)
text = [symbols[entry - 1] for entry in labels]
T, U = len(encoder_out), len(labels)
print("".join(text))
print(f"{T} frames, {U} letters, {T * (U + 1)} cells, cost ", end="")

sample = encoder_out[None], predictor_out[None], weight, bias, labels[None], [T], [U], 0
print(f"{cupy_rnnt.joint_rnnt_loss(*sample):.3f} nats")

SHOWN = 86, 33  # frames and letters: "press 6 to play the next message"
(posteriors,) = cupy_rnnt.joint_rnnt_posteriors(*sample)
(frames,) = cupy_rnnt.joint_rnnt_alignment(*sample).frames


def draw_utterance(title):
    """The beginning of the utterance."""
    _, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    cupy_rnnt.plot.alignment(posteriors, frames, text, axes=axes)
    axes.lines[0].set_linewidth(2)
    axes.tick_params("y", labelsize=7, length=0)
    axes.set(title=title, xlim=(-0.5, SHOWN[0]), ylim=(-0.5, SHOWN[1]))
    return axes


draw_utterance("Likely paths (blue) stay close to the likeliest one (orange)")
share = (posteriors.sum(axis=-1) > 1e-7).mean()
print(f"{share:.1%} of the cells have an occupancy above 1e-7")

# %%
# Most cells could be left out. But which? An occupancy depends on all cells, and a softmax in
# each of them is just the work that should be saved.
#
# Bounds that cost little
# -----------------------
#
# The costly part of a cell is the denominator of its softmax, a log-sum-exp over the vocabulary.
# It is convex, and so it lies above each of its tangents: :doc:`/pictures` shows how. A tangent
# costs four dot products a cell, whatever the size of the vocabulary, and makes each
# log-probability at most too large. ``examples/minimal.py`` has all of this in a page of NumPy.
# We take its pieces.

sys.path.insert(0, str(root / "examples"))
import minimal

inputs = encoder_out, predictor_out, weight, bias
targets = np.append(labels, 0)  # there is nothing to emit after the last letter
upper = minimal.bounds(inputs, targets, 0)
upper[1, :, -1] = -np.inf

exact, everywhere = upper.copy(), np.ones((T, U + 1), bool)
minimal.compute(exact, everywhere, inputs, targets, 0)

fig, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
some = rng.choice(T * (U + 1), 2000, replace=False)
pairs = exact[0].flat[some], upper[0].flat[some]
axes.scatter(*pairs, s=4, color=BLUE, label="2000 of the cells")
axes.axline((0, 0), slope=1, color=BLACK, linewidth=1, label="equal")
axes.set(title="A bound is never below the truth", xlim=(-12, 0.3), ylim=(-12, 0.3))
axes.set(xlabel="log-probability of the blank (nats)", ylabel="its bound (nats)")
axes.legend()
assert (upper >= exact).all()

# %%
# Which cells to compute
# ----------------------
#
# With bounds in the place of log-probabilities, alpha plus beta is a bound of all paths through a
# cell. Cells where it is small are left out. All others are computed: they are the set C.

through = (minimal.alphas(upper, everywhere) + minimal.betas(upper, everywhere))[:T, : U + 1]
tolerance = 2.0**-24  # the library's default for float32
inside = through >= through[0, 0] + np.log(tolerance / 2 / (T + U))

axes = draw_utterance(f"C (inside the line) has {inside.mean():.0%} of the cells")
axes.contour(inside.T, [0.5], colors=BLACK, linewidths=1)

# %%
# The certificate
# ---------------
#
# So far C is a guess. Now comes the proof. A path that does not stay in C has a first cell
# outside. Up to there its probability is exact, and from there on bounded. The sum over all cells
# where paths may step out bounds everything that was left out, and nothing that is inside counts
# twice.

scores = np.where(inside, exact, upper)
leaving = minimal.alphas(scores, inside) + minimal.betas(scores, everywhere)
leaving = np.where(inside, -np.inf, leaving[:T, : U + 1])
log_inside = minimal.betas(scores, inside)[0, 0]
certificate = np.exp(logsumexp(leaving) - log_inside)

fig, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
mass = np.where(np.isinf(leaving), np.nan, (leaving - log_inside) / np.log(10))
image = axes.imshow(mass.T, origin="lower", aspect="auto", cmap="viridis", vmin=-20)
axes.contourf(inside.T, [0.5, 1.5], colors=[GREY])
axes.set(title=f"All that can leave C (grey) adds up to a share of {certificate:.1e}")
axes.set(xlabel="frame", ylabel="letters emitted", xlim=(-0.5, SHOWN[0]), ylim=(-0.5, SHOWN[1]))
fig.colorbar(image, label="share that steps out here, at most (power of ten)")

# %%
# That is the certificate: the true cost is below the computed one by at most log(1 +
# certificate). We can check it here, because we have the exact scores of all cells.

cost, true_cost = -log_inside, -minimal.betas(exact, everywhere)[0, 0]
print(f"computed cost {cost:.12f}")
print(f"true cost     {true_cost:.12f}")
print(f"difference    {cost - true_cost:.1e}, proven to be at most {np.log1p(certificate):.1e}")
assert 0 <= cost - true_cost <= np.log1p(certificate) + 1e-13  # rounding

# %%
# The library does the same
# -------------------------
#
# ``return_info=True`` says what was computed and what is proven. The library does not look for
# bounds where that may not pay, as with the 39 entries of this vocabulary. In a batch it tries
# them on one sample first. So here are eight copies of the utterance.

size = 8
copies = [np.stack([array] * size) for array in (encoder_out, predictor_out)]
batch = *copies, weight, bias, np.stack([labels] * size), [T] * size, [U] * size, 0
costs, gradients, info = cupy_rnnt.joint_rnnt_loss_and_grad(
    *batch, reduction="none", tolerance=2.0**-24, return_info=True
)
print(f"computed    {info.computed / info.cells:.1%} of the cells")
print(f"kept        {info.kept / info.cells:.1%}, those with a gradient that matters")
print(f"certificate {info.certificate[0]:.1e} of the first sample")

# %%
# The tolerance is the only knob. The certificate takes at most half of it, and the true error is
# below the certificate. Smaller tolerances cost few cells.

tolerances = 10.0 ** np.arange(-10, 0)
exact_cost = cupy_rnnt.joint_rnnt_loss(*batch, reduction="none", tolerance=0)[0]
shares, certificates, errors = [], [], []
for tolerance in tolerances:
    costs, info = cupy_rnnt.joint_rnnt_loss(
        *batch, reduction="none", tolerance=tolerance, return_info=True
    )
    shares.append(info.computed / info.cells)
    certificates.append(info.certificate[0])
    errors.append(costs[0] - exact_cost)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
left.semilogx(tolerances, 100 * np.array(shares), "o-", color=BLUE)
left.set(
    title=f"From 0.1 to 1e-10: {shares[-1]:.0%} to {shares[0]:.0%} of the cells", ylim=(0, None)
)
left.set(xlabel="tolerance", ylabel="cells computed (%)")
right.loglog(tolerances, tolerances, color=GREY, label="tolerance")
right.loglog(tolerances, certificates, "s-", color=ORANGE, label="certificate")
right.loglog(tolerances, errors, "o-", color=BLUE, label="true error of the cost (nats)")
right.set(title="The true error is below the certificate", xlabel="tolerance")
right.legend()

# %%
# The kept cells, over the text
# -----------------------------
#
# Pass 2, the gradient, needs fewer cells still: only computed ones whose occupancy matters.

kept = cupy_rnnt.joint_rnnt_posteriors(*sample, dense=False, tolerance=2.0**-24)
mask = np.zeros((T, U + 1))
mask[kept.frame, kept.position] = 1
axes = draw_utterance(f"The gradient takes {mask.mean():.0%} of the cells, inside the line")
axes.contour(mask.T, [0.5], colors=BLACK, linewidths=1)

# %%
# Another transducer: TDT
# -----------------------
#
# A TDT model [Xu2023]_ says how many frames to jump, beside what to emit. Everything above holds
# for it as well: paths, occupancies, bounds and certificates know the arcs of a transducer only
# as values. Here are made-up logits of a model that likes to jump by the right durations through
# "a cat".

phrase, durations = "a cat", (0, 1, 2, 3, 4)
alphabet = sorted(set(phrase))  # and then the blank
plan = [("", 3), ("a", 3), (" ", 2), ("", 4), ("c", 2), ("a", 4), ("t", 2)]  # what, how far
T, U, V = sum(frames for _, frames in plan), len(phrase), len(alphabet) + 1
labels = np.array([alphabet.index(letter) for letter in phrase])
logits = 0.5 * rng.standard_normal((1, T, U + 1, V + len(durations)))
t = u = 0
for letter, jump in plan:
    entry = alphabet.index(letter) if letter else V - 1
    for near in (t - 1, t, t + 1):  # not sure to the frame
        if 0 <= near < T:
            logits[0, near, u, entry] += 3
            logits[0, near, u, V + jump] += 3 if near == t else 1
    t, u = t + jump, u + len(letter)

sample = logits, labels[None], [T], [U]
tdt = {"blank": V - 1, "transducer": cupy_rnnt.tdt(durations)}
alignment = cupy_rnnt.rnnt_alignment(*sample, **tdt)
(posteriors,) = cupy_rnnt.rnnt_posteriors(*sample, **tdt)
emitted = zip(phrase, alignment.frames[0], alignment.durations[0], strict=True)
for letter, frame, duration in emitted:
    print(f"{letter!r} at frame {frame}, then {duration} frames on")

fig, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
cupy_rnnt.plot.alignment(
    posteriors, alignment.frames[0], phrase, transducer=tdt["transducer"], axes=axes
)
axes.set(title="TDT jumps: it skips the frames between the dark cells", xticks=range(T))

# %%
# Where to go from here: :doc:`/pictures` shows the stages of a call, and :doc:`/selection` has
# the proofs.
#
# .. [Xu2023] H. Xu, F. Jia, S. Majumdar, H. Huang, S. Watanabe, B. Ginsburg, "Efficient Sequence
#     Transduction by Jointly Predicting Tokens and Durations", ICML 2023,
#     `arXiv 2304.06795 <https://arxiv.org/abs/2304.06795>`__.
