"""The specification, held against the enumeration of all paths, and its recursions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from cupy_rnnt import reference
from cupy_rnnt.reference import occupancies, rnnt_loss, rnnt_loss_and_grad

from .cases import EXACT, enumerated, every_path


def test_every_path_counts_the_alignments():
    # U labels among the T + U - 1 transitions before the last blank.
    assert len(list(every_path(4, 3))) == 20
    assert len(list(every_path(1, 3))) == len(list(every_path(4, 0))) == 1


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    T=st.integers(1, 4),
    U=st.integers(0, 3),
    V=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    fused=st.booleans(),
    fastemit=st.sampled_from([0.0, 0.3]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    data=st.data(),
)
def test_loss_and_gradient_are_those_of_the_enumerated_paths(
    T, U, V, seed, fused, fastemit, scale, data
):
    blank = data.draw(st.integers(-V, V - 1), label="blank")
    labels = data.draw(st.lists(st.integers(0, V - 1), min_size=U, max_size=U), label="labels")
    logits = scale * np.random.default_rng(seed).normal(size=(T, U + 1, V))
    cost, grad = enumerated(logits, labels, blank, fused, fastemit)

    batch = logits[None], np.array([labels], int), [T], [U], blank, -1.0, "sum", fused
    loss, grad_logits = rnnt_loss_and_grad(*batch, fastemit_lambda=fastemit)
    np.testing.assert_allclose(loss, cost, **EXACT)
    np.testing.assert_allclose(grad_logits[0], grad, rtol=1e-11, atol=1e-12)
    assert rnnt_loss(*batch, fastemit_lambda=fastemit) == loss


def test_unreachable_paths_count_for_nothing():
    logits = np.random.default_rng(3).normal(size=(4, 3, 5))
    logits[1, 0, 0] = logits[2, 1, 3] = -np.inf
    cost, grad = enumerated(logits, [1, 3], 0)
    loss, grad_logits = rnnt_loss_and_grad(logits[None], [[1, 3]], [4], [2], 0, reduction="sum")
    np.testing.assert_allclose(loss, cost, **EXACT)
    np.testing.assert_allclose(grad_logits[0], grad, **EXACT)


def test_alphas_betas_and_occupancies_tell_one_story():
    rng = np.random.default_rng(5)
    T, U = 6, 4
    scores = np.log(rng.random((2, T, U + 1)))
    alpha, beta = reference.alphas(scores), reference.betas(scores)
    (blank, label), log_prob = occupancies(scores)

    np.testing.assert_allclose(alpha[-1, -1] + scores[0, -1, -1], log_prob, **EXACT)
    # Every path crosses every anti-diagonal once.
    for n in range(T + U):
        cells = [(t, n - t) for t in range(T) if 0 <= n - t <= U]
        total = logsumexp([alpha[cell] + beta[cell] for cell in cells])
        np.testing.assert_allclose(total, log_prob, **EXACT)
    np.testing.assert_allclose(blank.sum(axis=1), 1.0, **EXACT)
    np.testing.assert_allclose(label[:, :-1].sum(axis=0), 1.0, **EXACT)
    assert not label[:, -1].any()
    scores[1, :, -1] = np.nan  # not read
    np.testing.assert_array_equal(occupancies(scores)[0], [blank, label])
