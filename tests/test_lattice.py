"""Lattices against the textbook's loops."""

import numpy as np
import pytest
from hypothesis import strategies as st

from cupy_rnnt import reference
from cupy_rnnt.batch import Batch, Coordinates

from .device_calls import examples, operations, to_device, to_host
from .helpers import occupancies


def solved(frames, columns, log_probs, gradient=True):
    """A group of samples with given (blank, label) log-probs, and where its cells are."""
    frames, columns = np.asarray(frames), np.asarray(columns)
    size, most = len(frames), columns.max()
    batch = Batch(
        np.ones((size, most - 1), int), frames, columns - 1, (size, frames.max(), most), 2, 0
    )
    ops = operations()
    lattice = ops.lattice(frames, columns, gradient)
    cells = Coordinates(batch, ops).of(to_device(np.arange(batch.cell_count)))
    blank = np.concatenate([b.ravel() for b, _ in log_probs])
    label = np.concatenate(
        [np.pad(c, ((0, 0), (0, 1)), constant_values=9).ravel() for _, c in log_probs]
    )
    lattice.write(cells, to_device(blank), to_device(label))
    return to_host(lattice.solve()), lattice


def random_log_probs(rng, frames, columns):
    for t, s in zip(frames, columns, strict=True):
        both = np.log(rng.dirichlet([1, 1, 1], (t, s)))
        yield both[..., 0], both[:, :-1, 1]


@examples(
    150,
    10,
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_group_equals_textbook(device, shapes, seed):
    frames, columns = zip(*shapes, strict=True)
    log_probs = list(random_log_probs(np.random.default_rng(seed), frames, columns))
    costs, lattice = solved(frames, columns, log_probs)
    costs_alone, _ = solved(frames, columns, log_probs, gradient=False)
    np.testing.assert_array_equal(costs, costs_alone)
    for b, (of_blank, of_label) in enumerate(occupancies(lattice, frames, columns)):
        expected_blank, expected_label, log_prob = reference.occupancies(*log_probs[b])
        np.testing.assert_allclose(costs[b], -log_prob, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(of_blank, expected_blank, rtol=1e-11, atol=1e-300)
        np.testing.assert_allclose(of_label[:, :-1], expected_label, rtol=1e-11, atol=1e-300)
        np.testing.assert_allclose(of_blank.sum(axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(of_label[:, :-1].sum(axis=0), 1, rtol=1e-12)
        assert not of_label[:, -1].any()


def test_wide_groups_take_the_vector_logaddexp(device):
    """Long diagonals go another way through the recursion than short ones, with -inf in both."""
    rng = np.random.default_rng(0)
    frames, columns = [40] * 12, [35] * 12
    log_probs = list(random_log_probs(rng, frames, columns))
    for blank, label in log_probs:
        blank[rng.random(blank.shape) < 0.2] = -np.inf
        label[rng.random(label.shape) < 0.2] = -np.inf
    costs, lattice = solved(frames, columns, log_probs)
    assert np.isfinite(costs).any()
    for b, (blank, label) in enumerate(occupancies(lattice, frames, columns)):
        expected_blank, expected_label, log_prob = reference.occupancies(*log_probs[b])
        np.testing.assert_allclose(costs[b], -log_prob, rtol=1e-13)
        if np.isfinite(log_prob):
            np.testing.assert_allclose(blank, expected_blank, atol=1e-12)
            np.testing.assert_allclose(label[:, :-1], expected_label, atol=1e-12)
        else:
            assert not blank.any()
            assert not label.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 2), (1, 4)])
def test_a_bad_sample_keeps_to_itself(device, bad, place):
    frames, columns = [5, 4, 6], [5, 5, 3]
    log_probs = list(random_log_probs(np.random.default_rng(1), frames, columns))
    expected, healthy = solved(frames, columns, log_probs)
    log_probs[1][0][place] = bad
    costs, lattice = solved(frames, columns, log_probs)
    assert np.isnan(costs[1])
    np.testing.assert_array_equal(np.delete(costs, 1), np.delete(expected, 1))
    both = (occupancies(of, frames, columns) for of in (healthy, lattice))
    for b, (before, after) in enumerate(zip(*both, strict=True)):
        np.testing.assert_array_equal(after, 0.0 if b == 1 else before)
