"""Groups of lattices that are exact in some cells and bounded in others, and what must hold there.

Log-probs, bounds and cells are drawn at random; nothing here knows of a joint network.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cupy_rnnt import reference
from cupy_rnnt.batch import Batch, Coordinates
from cupy_rnnt.ops import BoundedLattice

from .device_calls import operations, to_device, to_host
from .helpers import occupancies


class BoundedSample(NamedTuple):
    """Log-probs and bounds of them, (T, S) each, and which cells are exact.

    No label leaves the last column: its log-prob is -inf there, and so is its bound.
    """

    exact: np.ndarray  # (2, T, S): blank, label
    bounds: np.ndarray
    mask: np.ndarray


def random_samples(rng, extents) -> list[BoundedSample]:
    """Distributions from flat to nearly certain, some of them with a 0; bounds from the log-probs
    themselves to far above them; and from few to most of the cells exact."""
    samples = []
    for t, s in extents:
        shares = rng.dirichlet(np.full(3, rng.choice([0.05, 0.5, 5.0])), (t, s))[..., :2]
        with np.errstate(divide="ignore"):
            exact = np.log(shares.transpose(2, 0, 1))
        exact[rng.random(exact.shape) < rng.choice([0.0, 0.0, 0.1])] = -np.inf
        exact[1, :, -1] = -np.inf
        above = rng.choice([0.0, 0.3, 5.0]) * rng.random(exact.shape)
        mask = rng.random((t, s)) < rng.choice([0.2, 0.8, 0.97])
        samples.append(BoundedSample(exact, np.minimum(exact + above, 0.0), mask))
    samples[0].mask[-1, 0] = True  # a first round computes something
    return samples


def shapes_of(samples):
    """Their T and S."""
    return np.array([sample.mask.shape for sample in samples]).T


def made(samples, gradient=True) -> BoundedLattice:
    """Their lattice, bounded and written."""
    frames, columns = shapes_of(samples)
    ops = operations()
    lattice = ops.bounded_lattice(frames, columns, gradient)
    bounds = np.concatenate([sample.bounds.reshape(2, -1) for sample in samples], axis=1)
    lattice.bound(to_device(np.ascontiguousarray(bounds)))
    shape = len(samples), int(frames.max()), int(columns.max())
    targets = np.ones((shape[0], shape[2] - 1), int)
    batch = Batch(targets, frames, columns - 1, shape, 2, 0)
    inside = np.concatenate([sample.mask.ravel() for sample in samples])
    both = np.concatenate([sample.exact.reshape(2, -1) for sample in samples], axis=1)
    if inside.any():
        cells = Coordinates(batch, ops).of(to_device(np.flatnonzero(inside)))
        lattice.write(cells, *(to_device(of_one[inside]) for of_one in both))
    return lattice


class Plain(NamedTuple):
    """Bounds of log alpha and log beta of each cell, and of what paths that leave C have."""

    alpha: np.ndarray
    beta: np.ndarray
    leaving: float

    def likely(self, mask: np.ndarray, threshold: float) -> np.ndarray:
        """Cells outside a mask that paths of such a log-probability may lead through."""
        return (self.alpha + self.beta >= threshold) & ~mask


def plain(sample: BoundedSample, most: float = 0.0) -> Plain:
    """By the definitions, cell after cell. From a cell that is only bounded, no more can come than
    from the better of the two behind it: both transitions together have at most probability 1. No
    alpha need be above `most`, which is 0 but for what need not be as tight."""
    mask = sample.mask
    blank, label = np.where(mask, sample.exact, sample.bounds)
    alpha = np.full(mask.shape, -np.inf)
    alpha[0, 0] = 0.0
    for t, u in np.ndindex(mask.shape):
        if t > 0:
            alpha[t, u] = alpha[t - 1, u] + blank[t - 1, u]
        if u > 0:
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t, u - 1] + label[t, u - 1])
        alpha[t, u] = min(alpha[t, u], most)
    beta = np.full((mask.shape[0] + 1, mask.shape[1] + 1), -np.inf)
    leaving = beta.copy()  # from a cell inside: what steps outside at some time
    beta[-1, -2] = 0.0
    for t, u in reversed(list(np.ndindex(mask.shape))):
        behind = beta[t + 1, u], beta[t, u + 1]
        beta[t, u] = np.logaddexp(blank[t, u] + behind[0], label[t, u] + behind[1])
        if mask[t, u]:
            by_blank, by_label = blank[t, u] + leaving[t + 1, u], label[t, u] + leaving[t, u + 1]
            leaving[t, u] = np.logaddexp(by_blank, by_label)
        else:
            beta[t, u] = min(beta[t, u], max(behind))
            leaving[t, u] = beta[t, u]
    return Plain(alpha, beta[:-1, :-1], float(leaving[0, 0]))


def check_lattice(samples: list[BoundedSample], gradient=True) -> list[float]:
    """The certificate equals that of the plain recursions and bounds what all paths together have
    beyond those inside; occupancies of the latter are as far from the true ones as it allows.

    Given that share eps, the posterior of paths inside is at most eps / (1 + eps) away from that of
    all in total variation, and a path has T + U transitions. A log-probability in float64 is off by
    some n**1.5 roundings of 2**-53, n = T + S (see the table of tolerances): for the 50 of these
    tests and values of a few hundred, 1e-12 is generous.
    """
    lattice = made(samples, gradient)
    lattice.certify()
    check_likely(samples, lattice)
    inside, leaving = to_host(lattice.certify())
    costs = to_host(lattice.solve())
    both = occupancies(lattice, *shapes_of(samples)) if gradient else ()
    found = []
    for i, (exact, _, mask) in enumerate(samples):
        # Relative to the bound of all paths: that of what leaves may be far below any float64, and
        # is made up to no less than the least one for each cell.
        whole = plain(samples[i])
        base = whole.beta[0, 0] if np.isfinite(whole.beta[0, 0]) else 0.0
        shares = np.exp(leaving[i] - base), np.exp(whole.leaving - base)
        np.testing.assert_allclose(*shares, rtol=1e-12, atol=1e-300)
        every = exact[0], exact[1, :, :-1]
        masked = np.where(mask, exact, -np.inf)
        log_prob, log_inside = (
            reference.betas(*both)[0, 0] for both in (every, (masked[0], masked[1, :, :-1]))
        )
        np.testing.assert_allclose([inside[i], -costs[i]], log_inside, rtol=1e-13, atol=1e-14)
        assert np.exp(log_prob) <= (np.exp(log_inside) + np.exp(leaving[i])) * (1 + 1e-12)
        if not np.isfinite(log_inside):
            continue
        with np.errstate(over="ignore"):
            eps = float(np.exp(leaving[i] - inside[i]))
        if gradient:
            of_blank, of_label = both[i]
            true_blank, true_label, _ = reference.occupancies(*every)
            error = abs(of_blank - true_blank).sum() + abs(of_label[:, :-1] - true_label).sum()
            transitions = sum(mask.shape) - 1
            share = eps / (1 + eps) if eps < np.inf else 1.0
            assert error <= transitions * (2 * share + 1e-12)
            assert not of_label[:, -1].any()
            assert not (of_blank + of_label)[~mask].any()
        found.append(eps)
    return found


def check_likely(samples: list[BoundedSample], lattice: BoundedLattice) -> None:
    """Cells outside C are likely if the products of their bounds are above a threshold, be it with
    alphas of at most 1 or without that limit. It is half way between two values, so that no
    rounding decides."""
    bounds = [(plain(sample), plain(sample, np.inf)) for sample in samples]
    thresholds = np.empty(len(samples))
    for i, both in enumerate(bounds):
        values = np.concatenate([(one.alpha + one.beta).ravel() for one in both])
        values = np.unique(np.append(values[values > -np.inf], [0.0, 1.0]))
        gaps = np.flatnonzero(np.diff(values) > 1e-6)
        at = gaps[(7 * i + len(samples)) % len(gaps)]
        thresholds[i] = (values[at] + values[at + 1]) / 2
    likely = to_host(lattice.likely(to_device(thresholds)))
    assert likely.size == sum(sample.mask.size for sample in samples)
    start = 0
    for sample, (tight, loose), threshold in zip(samples, bounds, thresholds, strict=True):
        mine = likely[start : start + sample.mask.size].reshape(sample.mask.shape)
        assert not (tight.likely(sample.mask, threshold) & ~mine).any()
        assert not (mine & ~loose.likely(sample.mask, threshold)).any()
        start += mine.size
