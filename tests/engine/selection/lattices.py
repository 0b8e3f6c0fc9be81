"""Groups of lattices that are exact in some cells and bounded in others, and what must hold there.

Scores, bounds and cells are drawn at random, for the arcs of any transducer; nothing here knows of
a joint network.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cupy_rnnt import reference
from cupy_rnnt.batch import CellsOf
from cupy_rnnt.ops.lattices import BoundedLattice
from cupy_rnnt.topology import LABEL, Topology
from cupy_rnnt.transducer import Transducer

from ...device_calls import operations, to_device, to_host
from ...helpers import occupancies, samples_of
from ...transducers.cases import PLAIN, random_sample


class BoundedSample(NamedTuple):
    """Scores and bounds of them, (K, T, S) each, and which cells are exact.

    No label leaves the last column: its log-prob is -inf there, and so is its bound. What a delay
    penalty adds is in neither.
    """

    exact: np.ndarray
    bounds: np.ndarray
    mask: np.ndarray
    transducer: Transducer = PLAIN
    delay_penalty: float = 0.0

    def delayed(self, scores: np.ndarray) -> np.ndarray:
        """With what the delay penalty adds to labels."""
        scores, topology = scores.copy(), self.transducer.topology
        if LABEL in topology.scores:
            T = self.mask.shape[0]
            delays = self.delay_penalty * ((T - 1) / 2 - np.arange(T))
            scores[topology.scores.index(LABEL)] += delays[:, None]
        return scores

    @property
    def inside(self) -> np.ndarray:
        """Cells whose arcs are exact: those of the mask that have what they read aside in it."""
        inside = self.mask.copy()
        for arc in self.transducer.topology.arcs:
            if arc.then is not None and arc.labels:
                inside[:, :-1] &= self.mask[:, 1:]
        return inside

    def log_prob(self) -> float:
        """Of all paths, by the textbook."""
        exact = self.delayed(self.exact)
        return float(reference.betas(exact, self.transducer.topology)[0, 0])


def random_samples(rng, extents, transducer=PLAIN, delay_penalty=0.0) -> list[BoundedSample]:
    """Distributions from flat to nearly certain, some of them with a 0; bounds from the log-probs
    themselves to far above them; and from few to most of the cells exact."""
    samples = []
    for t, s in extents:
        drawn = random_sample(rng, transducer, t, s - 1, labels=2)
        # Of such logits, a softmax is a Dirichlet distribution.
        gammas = rng.standard_gamma(rng.choice([0.05, 0.5, 5.0]), drawn.logits.shape)
        exact = drawn._replace(logits=np.log(np.maximum(gammas, 1e-300))).scores()
        exact[rng.random(exact.shape) < rng.choice([0.0, 0.0, 0.1])] = -np.inf
        above = rng.choice([0.0, 0.3, 5.0]) * rng.random(exact.shape)
        mask = rng.random((t, s)) < rng.choice([0.2, 0.8, 0.97])
        bounds = np.minimum(exact + above, 0.0)
        samples.append(BoundedSample(exact, bounds, mask, transducer, delay_penalty))
    samples[0].mask[-1, 0] = True  # a first round computes something
    return samples


def shapes_of(samples):
    """Their T and S."""
    return np.array([sample.mask.shape for sample in samples]).T


def made(samples, gradient=True) -> BoundedLattice:
    """Their lattice, bounded and written."""
    frames, positions = shapes_of(samples)
    ops, (first, *_) = operations(), samples
    of_batch = samples_of(ops, frames, positions)
    form = of_batch, gradient, first.delay_penalty, np.dtype(np.float64)
    lattice = ops.bounded_lattice(first.transducer, *form)
    scores = len(first.exact)
    bounds = np.concatenate([sample.bounds.reshape(scores, -1) for sample in samples], axis=1)
    lattice.bound(to_device(np.ascontiguousarray(bounds)))
    inside = np.concatenate([sample.mask.ravel() for sample in samples])
    exact = np.concatenate([sample.exact.reshape(scores, -1) for sample in samples], axis=1)
    if inside.any():
        cells = CellsOf(ops, of_batch)(to_device(np.flatnonzero(inside)))
        lse = to_device(np.zeros((1, inside.sum())))
        lattice.write(cells, lse, to_device(np.ascontiguousarray(exact[:, inside])))
    return lattice


PACKED = 2.0**-34
"""CUDA keeps alpha and the bound of beta in 40 bits each, and the mass that leaves C is a sum of
products of both. It is made larger by as much as rounding may take from it, which for logarithms of
a few hundred and 60 diagonals is some 2e-11."""


class Plain(NamedTuple):
    """Bounds of log alpha and log beta of each cell; the log-probability of the paths inside C, and
    a bound of that of those that leave it."""

    alpha: np.ndarray
    beta: np.ndarray
    inside: float
    leaving: float

    def candidates(self, mask: np.ndarray, threshold: float) -> np.ndarray:
        """Cells outside a mask that paths of such a log-probability may lead through."""
        return (self.alpha + self.beta >= threshold) & ~mask


def arc_weights(scores: np.ndarray, topology: Topology):
    """Each arc, and its log-probability at each cell; -inf without a label to emit."""
    for arc in topology.arcs:
        weight = sum(scores[topology.scores.index(score)] for score in arc.scores)
        if arc.labels:
            weight[:, -1] = -np.inf
        if arc.then is not None:
            aside = scores[topology.scores.index(arc.then)]
            if arc.labels:
                weight[:, :-1] += aside[:, 1:]
            else:
                weight = weight + aside
        yield arc, weight


def log_prob_of_paths(scores: np.ndarray, topology: Topology, inside: np.ndarray) -> float:
    """Of those that leave cells inside only, cell after cell."""
    T, S = inside.shape
    beta = np.full((T + topology.reach, S + 1), -np.inf)
    beta[T, S - 1] = 0.0
    arcs = list(arc_weights(scores, topology))
    for t, u in reversed(list(zip(*np.nonzero(inside), strict=True))):
        for arc, weight in arcs:
            to = t + arc.frames, u + arc.labels
            if to != (T, S - 1) or arc.ends:
                beta[t, u] = np.logaddexp(beta[t, u], weight[t, u] + beta[to])
    return float(beta[0, 0])


def plain(sample: BoundedSample) -> Plain:
    """By the definitions, cell after cell. From a cell, no more can come than from the best of
    those behind it, as all arcs together have at most probability 1 but for what a delay penalty
    adds; where they may have more, so much more."""
    topology, (T, S) = sample.transducer.topology, sample.mask.shape
    inside, most = sample.inside, np.log(sample.transducer.most_mass)
    scores = sample.delayed(np.where(sample.mask, sample.exact, sample.bounds))
    arcs = list(arc_weights(scores, topology))
    alpha = np.full((T, S), -np.inf)
    alpha[0, 0] = 0.0
    for t, u in np.ndindex(T, S):
        for arc, weight in arcs:
            before = t - arc.frames, u - arc.labels
            if min(before) >= 0:
                alpha[t, u] = np.logaddexp(alpha[t, u], alpha[before] + weight[before])
    beta, leave = np.full((2, T + topology.reach, S + 1), -np.inf)
    beta[T, S - 1] = 0.0
    for t, u in reversed(list(np.ndindex(T, S))):
        cap = -np.inf
        for arc, weight in arcs:
            to = t + arc.frames, u + arc.labels
            delay = sample.delay_penalty * ((T - 1) / 2 - t) if arc.labels else 0.0
            cap = max(cap, beta[to] + delay)  # even of an arc that may not end there: a bound
            if to == (T, S - 1) and not arc.ends:
                continue
            for values in (beta, leave) if inside[t, u] else (beta,):
                values[t, u] = np.logaddexp(values[t, u], weight[t, u] + values[to])
        beta[t, u] = min(beta[t, u], cap + most)
        if not inside[t, u]:
            leave[t, u] = beta[t, u]
    of_inside = log_prob_of_paths(scores, topology, inside)
    return Plain(alpha, beta[:T, :S], of_inside, float(leave[0, 0]))


def check_lattice(samples: list[BoundedSample], gradient=True) -> list[float]:
    """The certificate equals that of the plain recursions and bounds what all paths together have
    beyond those inside; occupancies of the latter are as far from the true ones as it allows.

    Given that share eps, the posterior of paths inside is at most eps / (1 + eps) away from that of
    all in total variation, and a path has at most A arcs, of a few scores each. A log-probability
    in float64 is off by some n**1.5 roundings of 2**-53, n = T + S (see the table of tolerances):
    for the 50 of these tests and values of a few hundred, 1e-12 is generous.
    """
    lattice = made(samples, gradient)
    check_likely(samples, lattice)
    inside, leaving, _ = lattice.certify()
    costs = to_host(lattice.solve())
    found_occupancies = occupancies(lattice, costs, *shapes_of(samples)) if gradient else ()
    found = []
    for i, sample in enumerate(samples):
        # Relative to the bound of all paths: that of what leaves may be far below any float64, and
        # is made up to no less than the least one for each cell.
        whole = plain(sample)
        base = whole.beta[0, 0] if np.isfinite(whole.beta[0, 0]) else 0.0
        shares = np.exp(leaving[i] - base), np.exp(whole.leaving - base)
        np.testing.assert_allclose(*shares, rtol=PACKED, atol=1e-300)
        log_inside, log_prob = whole.inside, sample.log_prob()
        np.testing.assert_allclose([inside[i], -costs[i]], log_inside, rtol=1e-13, atol=1e-14)
        assert np.exp(log_prob) <= (np.exp(log_inside) + np.exp(leaving[i])) * (1 + 1e-12)
        if not np.isfinite(log_inside):
            continue
        with np.errstate(over="ignore"):
            eps = float(np.exp(leaving[i] - inside[i]))
        if gradient:
            check_occupancies(sample, found_occupancies[i], eps)
        found.append(eps)
    return found


def check_occupancies(sample: BoundedSample, of_paths: np.ndarray, eps: float) -> None:
    """Of the paths inside C, given the share eps that the others may have of theirs."""
    topology, (T, S) = sample.transducer.topology, sample.mask.shape
    expected, _ = reference.occupancies(sample.delayed(sample.exact), topology)
    _, most_arcs = topology.path_arcs(T, S - 1)
    read = max(len(arc.scores) + (arc.then is not None) for arc in topology.arcs)
    share = eps / (1 + eps) if eps < np.inf else 1.0
    assert abs(of_paths - expected).sum() <= most_arcs * read * (2 * share + 1e-12)
    if LABEL in topology.scores:
        assert not of_paths[topology.scores.index(LABEL), :, -1].any()
    assert not of_paths[:, ~sample.mask].any()


def check_likely(samples: list[BoundedSample], lattice: BoundedLattice) -> None:
    """Cells outside C are likely if the products of their bounds are above a threshold, or if they
    are read aside from such a cell, inside C or not. The threshold is half way between two values,
    so that no rounding decides."""
    bounds = [plain(sample) for sample in samples]
    thresholds = np.empty(len(samples))
    for i, one in enumerate(bounds):
        values = (one.alpha + one.beta).ravel()
        values = np.unique(np.append(values[values > -np.inf], [0.0, 1.0]))
        gaps = np.flatnonzero(np.diff(values) > 1e-6)
        at = gaps[(7 * i + len(samples)) % len(gaps)]
        thresholds[i] = (values[at] + values[at + 1]) / 2
    totals = np.array([one.beta[0, 0] for one in bounds])
    with np.errstate(invalid="ignore"):  # without a path, all cells are likely
        least = np.where(totals > -np.inf, thresholds - totals, 0.0)
    thresholds = np.where(totals > -np.inf, thresholds, -np.inf)
    likely, counts = map(to_host, lattice.candidates(least))
    assert likely.sum() == counts.sum()
    assert likely.size == sum(sample.mask.size for sample in samples)
    start = 0
    for sample, one, threshold in zip(samples, bounds, thresholds, strict=True):
        chosen = likely[start : start + sample.mask.size].reshape(sample.mask.shape)
        expected = one.candidates(np.zeros_like(sample.mask), threshold)
        if any(arc.then is not None and arc.labels for arc in sample.transducer.topology.arcs):
            expected[:, 1:] |= expected[:, :-1].copy()
        np.testing.assert_array_equal(chosen, expected & ~sample.mask)
        start += sample.mask.size
