"""What the tests of the reference share: random batches, enumerated paths, tolerances."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

# A few float64 operations on values of order 10, and no more than that.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def every_path(T, U):
    """All alignments, each a list of (t, u, is_label); the last transition is always a blank."""
    for emitting in combinations(range(T + U - 1), U):
        t = u = 0
        path = []
        for step in range(T + U):
            is_label = step in emitting
            path.append((t, u, is_label))
            t, u = (t, u + 1) if is_label else (t + 1, u)
        assert (t, u) == (T, U)
        yield path


def enumerated(logits, labels, blank, fused=True, fastemit=0.0):
    """Cost and gradient of one sample from the list of its paths, without any recursion."""
    T, S, _ = logits.shape
    paths = [
        [(t, u, labels[u] if is_label else blank, is_label) for t, u, is_label in path]
        for path in every_path(T, S - 1)
    ]
    log_probs = log_softmax(logits, axis=-1) if fused else logits
    scores = [sum(log_probs[t, u, k] for t, u, k, _ in path) for path in paths]
    grad = np.zeros(logits.shape)
    for path, posterior in zip(paths, softmax(scores), strict=True):
        for t, u, k, is_label in path:
            share = posterior * (1 + fastemit) if is_label else posterior
            grad[t, u, k] -= share
            if fused:
                grad[t, u] += share * softmax(logits[t, u])
    return -logsumexp(scores), grad


def random_batch(seed=0, B=3, T=4, U=2, V=5, blank=-1):
    """Logits, targets and lengths of samples that all differ, with padding beyond every length."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(B, T + 1, U + 2, V))
    labels = np.delete(np.arange(V), blank)
    targets = rng.choice(labels, size=(B, U + 1))
    logit_lengths = np.array([T, T - 1, 1, *rng.integers(1, T + 1, B)])[:B]
    target_lengths = np.array([U - 1, U, U, *rng.integers(0, U + 1, B)])[:B]
    return logits, targets, logit_lengths, target_lengths


def random_joint(seed=0, H=6, **shape):
    """Inputs of the joint and the rest of a batch; every extent differs from every other."""
    logits, *rest = random_batch(seed, **shape)
    B, T, S, V = logits.shape
    rng = np.random.default_rng(seed + 1)
    inputs = tuple(rng.normal(size=size) for size in ((B, T, H), (B, S, H), (V, H), (V,)))
    return inputs, rest


def assert_all_close(actual, desired, **tolerance):
    for one, other in zip(actual, desired, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)
