"""The lattice by the textbook: any arcs, cell after cell, in float64.

A sample has ``T`` frames, ``U`` labels and ``S = U + 1`` positions. Its scores (K, T, S) are in the
order of :attr:`cupy_rnnt.transducer.Topology.scores`. A path leads from cell (0, 0) over arcs to
(T, U), which is no cell.

References
----------
.. [1] A. Graves, "Sequence Transduction with Recurrent Neural Networks", 2012, arXiv 1211.3711.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..topology import Arc, Topology
from ..transducer import NAMED

FloatArray = NDArray[np.float64]
PLAIN = NAMED["regular"].topology
quiet = np.errstate(invalid="ignore", over="ignore")  # NaN in the data is legal


def weights(scores: FloatArray, topology: Topology) -> Iterator[tuple[Arc, FloatArray]]:
    """Every arc with its log-probability (T, S) at each cell, -inf where it lacks a label."""
    S = scores.shape[2]
    row_of = {score: k for k, score in enumerate(topology.scores)}
    for arc in topology.arcs:
        weight = np.sum([scores[row_of[score]] for score in arc.scores], axis=0)
        if arc.labels:
            weight[:, S - arc.labels :] = -np.inf
        if arc.then is not None:
            weight[:, : S - arc.labels] += scores[row_of[arc.then]][:, arc.labels :]
        yield arc, weight


@quiet
def alphas(scores: FloatArray, topology: Topology = PLAIN) -> FloatArray:
    """Log-probability (T, S) of reaching each cell from the first one, section 2.4 of [1]_.

    Examples
    --------
    >>> blank, label = np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.6, 1], [0.2, 1]])
    >>> np.exp(alphas(np.stack([blank, label]))).round(6).tolist()
    [[1.0, 0.6], [0.5, 0.4]]
    """
    alpha = np.full(scores.shape[1:], -np.inf)
    alpha[0, 0] = 0.0
    arcs = list(weights(scores, topology))
    for t, u in np.ndindex(alpha.shape):
        for arc, weight in arcs:
            before = t - arc.frames, u - arc.labels
            if min(before) >= 0:
                alpha[t, u] = np.logaddexp(alpha[t, u], alpha[before] + weight[before])
    return alpha


@quiet
def betas(scores: FloatArray, topology: Topology = PLAIN) -> FloatArray:
    """Log-probability (T, S) of finishing from each cell; at [0, 0], of all paths together.

    Examples
    --------
    >>> blank, label = np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.6, 1], [0.2, 1]])
    >>> np.exp(betas(np.stack([blank, label]))).round(6).tolist()
    [[0.2, 0.25], [0.1, 0.5]]
    """
    T, S = scores.shape[1:]
    beta = np.full((T, S), -np.inf)
    arcs = list(weights(scores, topology))
    for t, u in reversed(list(np.ndindex(beta.shape))):
        for arc, weight in arcs:
            target = t + arc.frames, u + arc.labels
            if target == (T, S - 1) and arc.ends:
                beta[t, u] = np.logaddexp(beta[t, u], weight[t, u])
            elif target[0] < T and target[1] < S:
                beta[t, u] = np.logaddexp(beta[t, u], weight[t, u] + beta[target])
    return beta


def _beyond(beta: FloatArray, arc: Arc) -> FloatArray:
    """Log-probability (T, S) of finishing from the target of an arc, for each cell it leaves."""
    T, S = beta.shape
    rest = np.full((T, S), -np.inf)
    last = T - arc.frames, S - 1 - arc.labels
    if min(last) >= 0:
        rest[: T - arc.frames, : S - arc.labels] = beta[arc.frames :, arc.labels :]
        if arc.frames and arc.ends:
            rest[last] = 0.0
    return rest


@quiet
def occupancies(
    scores: FloatArray, topology: Topology = PLAIN, of_labels: float = 1.0
) -> tuple[FloatArray, float]:
    """Posterior probability that a path takes arcs with a score: minus the gradient of the cost.

    Parameters
    ----------
    scores : (K, T, S) array
    topology : Topology
    of_labels : float
        The factor of arcs that emit a label: 1 + lambda of FastEmit.

    Returns
    -------
    occupancies : (K, T, S) array
        All 0 if the log-probability is not finite, for then there is no posterior.
    log_prob : float
        Of all paths together.

    Examples
    --------
    >>> blank, label = np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.6, 1], [0.2, 1]])
    >>> (_, of_label), _ = occupancies(np.stack([blank, label]))
    >>> of_label.round(6).tolist()
    [[0.75, 0.0], [0.25, 0.0]]
    """
    alpha, beta = alphas(scores, topology), betas(scores, topology)
    occupancy = np.zeros_like(scores)
    log_prob = float(beta[0, 0])
    if not np.isfinite(log_prob):
        return occupancy, log_prob
    row_of = {score: k for k, score in enumerate(topology.scores)}
    for arc, weight in weights(scores, topology):
        taken = np.exp(alpha + weight + _beyond(beta, arc) - log_prob)
        taken *= of_labels if arc.labels else 1.0
        for score in arc.scores:
            occupancy[row_of[score]] += taken
        if arc.then is not None:
            beside = occupancy[row_of[arc.then]][:, arc.labels :]
            beside += taken[:, : taken.shape[1] - arc.labels]
    return occupancy, log_prob
