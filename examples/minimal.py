"""The method of the library in a page of NumPy: tiles, certified selection, gradients.

One utterance, a tanh joint network, the plain transducer. The library does the same for batches,
for other transducers, on a GPU, and many times faster. What is the same here:

- Logits exist for one tile of cells at a time. Pass 1 reads the log-probabilities of blank and
  label off them, pass 2 computes them again for the gradient.
- Pass 1 leaves out cells, and proves afterwards that they do not matter: bounds of their scores
  cost four dot products a cell, and with them the probability of all paths that ever leave the
  computed cells is bounded. If that bound is too large, more cells are computed.
- Pass 2 leaves out cells that hold next to no posterior probability.

Run it to see how few cells are computed, and that the result is that of the textbook.
"""

import numpy as np
from scipy.special import logsumexp, softmax

TILE = 256  # cells; their logits are all that is ever held
TOLERANCE = 2.0**-24
SLACK = 1e-9  # nats; covers what rounding does to bounds in float64


def joint(encoder, predictor, weight, bias, cells):
    """Hidden vectors and logits of some cells, (n, 2) frames and positions."""
    frames, positions = cells.T
    hidden = np.tanh(encoder[frames] + predictor[positions])
    return hidden, hidden @ weight.T + bias


def tiles(mask):
    """The marked cells, some at a time."""
    cells = np.argwhere(mask)
    return np.array_split(cells, range(TILE, len(cells), TILE))


def compute(scores, mask, inputs, labels, blank):
    """Pass 1: exact log-probabilities of blank and label in the marked cells."""
    for cells in tiles(mask):
        _, logits = joint(*inputs, cells)
        lse = logsumexp(logits, axis=1)
        frames, positions = cells.T
        scores[0, frames, positions] = logits[:, blank] - lse
        scores[1, frames, positions] = logits[np.arange(len(cells)), labels[positions]] - lse
    scores[1, :, -1] = -np.inf  # no label is left


def bounds(inputs, labels, blank):
    """Upper bounds of both scores of every cell.

    log-sum-exp is convex, so it lies above its tangent at any reference h0: with q the softmax
    there, lse(W h + b) >= q . (W h + b) + entropy(q). There is a reference for each frame (with the
    mean predictor output) and for each position (with the mean encoder output).
    """
    encoder, predictor, weight, bias = inputs
    others = np.arange(len(weight)) != blank
    hidden = np.tanh(encoder[:, None] + predictor)  # (T, S, H): the library never holds it either
    of_blank = hidden @ weight[blank] + bias[blank]
    of_label = (hidden * weight[labels]).sum(-1) + bias[labels]
    lower = of_label.copy()
    lower[:, -1] = -np.inf  # no label is left
    for references in encoder[:, None] + predictor.mean(0), encoder.mean(0) + predictor[None]:
        q = softmax(np.tanh(references) @ weight[others].T + bias[others], axis=-1)
        entropy = -(q * np.log(np.maximum(q, 1e-300))).sum(-1)
        tangent = (hidden * (q @ weight[others])).sum(-1) + q @ bias[others] + entropy
        lower = np.maximum(lower, tangent)
    denominator = np.logaddexp(of_blank, lower)
    return np.minimum(np.stack([of_blank, of_label]) - denominator + SLACK, 0.0)


def alphas(scores, inside):
    """What leads into each cell, in log space, over paths through cells inside only."""
    T, S = inside.shape
    alpha = np.full((T + 1, S + 1), -np.inf)  # row T and column S stay out of the lattice
    alpha[0, 0] = 0.0
    for t, u in np.argwhere(inside):
        alpha[t + 1, u] = np.logaddexp(alpha[t + 1, u], alpha[t, u] + scores[0, t, u])
        alpha[t, u + 1] = np.logaddexp(alpha[t, u + 1], alpha[t, u] + scores[1, t, u])
    return alpha


def betas(scores, inside):
    """What leads from each cell to the end, in log space, over paths through cells inside only."""
    T, S = inside.shape
    beta = np.full((T + 1, S + 1), -np.inf)
    beta[T, S - 1] = 0.0
    for t, u in np.argwhere(inside)[::-1]:
        by_blank, by_label = beta[t + 1, u] + scores[0, t, u], beta[t, u + 1] + scores[1, t, u]
        beta[t, u] = np.logaddexp(by_blank, by_label)
    return beta


def certified_scores(inputs, labels, blank, tolerance):
    """Scores, exact in the computed cells C; a mask of C; and the certificate: what the paths that
    leave C add to the probability of those inside, at most, as a share of it."""
    scores = bounds(inputs, labels, blank)
    scores[1, :, -1] = -np.inf
    T, S = scores.shape[1:]
    everywhere, inside = np.ones((T, S), bool), np.zeros((T, S), bool)
    likely = -np.inf  # log-probability of the paths inside
    while True:
        upper = betas(scores, everywhere)[:T, :S]
        through = alphas(scores, everywhere)[:T, :S] + upper
        whole = through[0, 0] if likely == -np.inf else likely
        with np.errstate(divide="ignore"):  # a tolerance of 0 computes every cell
            new = ~inside & (through >= whole + np.log(tolerance / (T * S)))
        compute(scores, new, inputs, labels, blank)
        inside |= new
        upper = betas(scores, everywhere)[:T, :S]
        alpha = alphas(scores, inside)
        likely = alpha[T, S - 1]
        # A path that is not inside steps out somewhere: alpha up to there, a bound of all the rest.
        leaving = logsumexp(np.append((alpha[:T, :S] + upper)[~inside], -np.inf))
        certificate = np.exp(leaving - likely)
        if certificate <= tolerance or not new.any():
            return scores, inside, certificate


def loss_and_gradients(encoder, predictor, weight, bias, labels, blank=0, tolerance=TOLERANCE):
    """Cost in nats, gradients of all four inputs, and what was computed of the lattice."""
    inputs, labels = (encoder, predictor, weight, bias), np.append(labels, 0)
    scores, inside, certificate = certified_scores(inputs, labels, blank, tolerance / 2)
    T, S = inside.shape
    alpha, beta = alphas(scores, inside), betas(scores, inside)
    cost = -beta[0, 0]
    # Posterior probabilities of the two arcs of each cell: minus d cost / d score.
    share = np.where(inside, alpha[:T, :S] + cost, -np.inf)
    by_blank = np.exp(share + scores[0] + beta[1:, :S])
    by_label = np.exp(share + scores[1] + beta[:T, 1:])
    kept = by_blank + by_label >= tolerance / 2 * (T + S - 1) / (T * S)
    gradients = [np.zeros_like(array) for array in inputs]
    d_encoder, d_predictor, d_weight, d_bias = gradients
    for cells in tiles(kept):  # pass 2
        frames, positions = cells.T
        hidden, logits = joint(*inputs, cells)
        of_blank, of_label = by_blank[frames, positions], by_label[frames, positions]
        d_logits = (of_blank + of_label)[:, None] * softmax(logits, axis=1)
        d_logits[:, blank] -= of_blank
        d_logits[np.arange(len(cells)), labels[positions]] -= of_label
        d_weight += d_logits.T @ hidden
        d_bias += d_logits.sum(0)
        d_sum = (d_logits @ weight) * (1 - hidden**2)
        np.add.at(d_encoder, frames, d_sum)
        np.add.at(d_predictor, positions, d_sum)
    return cost, gradients, (inside, kept, certificate)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    T, U, V, H = 60, 12, 50, 32
    labels = rng.integers(1, V, U)
    weight, bias = rng.standard_normal((V, H)), np.zeros(V)
    # An alignment that the joint network prefers: encoder outputs point to a label, or the blank.
    wanted = np.zeros(T, int)
    wanted[np.linspace(2, T - 3, U).astype(int)] = labels
    encoder = 0.5 * weight[wanted] + 0.1 * rng.standard_normal((T, H))
    predictor = 0.1 * rng.standard_normal((U + 1, H))
    cost, gradients, (inside, kept, certificate) = loss_and_gradients(
        encoder, predictor, weight, bias, labels
    )
    print(f"cost {cost:.6f} nats, computed {inside.mean():.0%} of {inside.size} cells, ", end="")
    print(f"kept {kept.mean():.0%}, certificate {certificate:.1e}")
    everything, _, _ = loss_and_gradients(encoder, predictor, weight, bias, labels, tolerance=0.0)
    print(f"cost of the whole lattice {everything:.6f}")
