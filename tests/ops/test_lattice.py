"""Lattices against the textbook's loops."""

import threading
import time

import numpy as np
import pytest
from hypothesis import strategies as st

from cupy_rnnt import reference
from cupy_rnnt.batch import CellsOf
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.topology import LABEL

from ..device_calls import examples, operations, to_device, to_host
from ..helpers import occupancies, samples_of
from ..transducers.cases import PLAIN, TRANSDUCERS, random_sample, transducers


def solved(frames, positions, scores, gradient=True, transducer=PLAIN, delay_penalty=0.0):
    """Costs of a group of samples with given scores (K, T, S), and its lattice."""
    frames, positions = np.asarray(frames), np.asarray(positions)
    ops, count = operations(), int(np.dot(frames, positions))
    samples = samples_of(ops, frames, positions)
    form = transducer, samples, gradient, delay_penalty, np.dtype(np.float64)
    lattice = ops.exact_lattice(*form)
    cells = CellsOf(ops, samples)(to_device(np.arange(count)))
    packed = np.concatenate([of_sample.reshape(len(of_sample), -1) for of_sample in scores], axis=1)
    lattice.write(cells, to_device(np.zeros((1, count))), to_device(packed))
    return to_host(lattice.solve()), lattice


def random_scores(rng, frames, positions):
    """Of blank and label; nonsense where no label is left."""
    for t, s in zip(frames, positions, strict=True):
        scores = np.log(rng.dirichlet([1, 1, 1], (t, s)))[..., :2].transpose(2, 0, 1).copy()
        scores[1, :, -1] = 9
        yield scores


@examples(
    150,
    10,
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_group_equals_textbook(device, shapes, seed):
    frames, positions = zip(*shapes, strict=True)
    scores = list(random_scores(np.random.default_rng(seed), frames, positions))
    costs, lattice = solved(frames, positions, scores)
    costs_alone, _ = solved(frames, positions, scores, gradient=False)
    np.testing.assert_array_equal(costs, costs_alone)
    for b, (of_blank, of_label) in enumerate(occupancies(lattice, costs, frames, positions)):
        expected, log_prob = reference.occupancies(scores[b])
        np.testing.assert_allclose(costs[b], -log_prob, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose([of_blank, of_label], expected, rtol=1e-11, atol=1e-300)
        np.testing.assert_allclose(of_blank.sum(axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(of_label[:, :-1].sum(axis=0), 1, rtol=1e-12)
        assert not of_label[:, -1].any()


def check_group(rng, transducer, shapes, delay_penalty, of_labels):
    frames, positions = zip(*shapes, strict=True)
    samples = [random_sample(rng, transducer, t, s - 1, 2) for t, s in shapes]
    scores = [sample.scores() for sample in samples]
    options = {"transducer": transducer, "delay_penalty": delay_penalty}
    costs, lattice = solved(frames, positions, scores, **options)
    costs_alone, _ = solved(frames, positions, scores, gradient=False, **options)
    np.testing.assert_array_equal(costs, costs_alone)
    topology = transducer.topology
    found = occupancies(lattice, costs, frames, positions, of_labels)
    for cost, of_sample, of_scores in zip(costs, found, scores, strict=True):
        if delay_penalty and LABEL in topology.scores:
            t = np.arange(of_scores.shape[1])[:, None]
            of_scores[topology.scores.index(LABEL)] += delay_penalty * ((len(t) - 1) / 2 - t)
        expected, log_prob = reference.occupancies(of_scores, topology, of_labels)
        np.testing.assert_allclose(cost, -log_prob, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(of_sample, expected, rtol=1e-10, atol=1e-300)


@examples(
    150,
    6,
    transducer=transducers(),
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6),
    delay_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.1]),
    of_labels=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_group_of_any_arcs_equals_textbook(
    device, transducer, shapes, delay_penalty, of_labels, seed
):
    """Of samples that lie both ways round; many have no path at all."""
    check_group(np.random.default_rng(seed), transducer, shapes, delay_penalty, of_labels)


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_group_of_arcs_in_use_equals_textbook(device, name):
    """With long diagonals, too."""
    shapes = (9, 4), (4, 9), (1, 1), (1, 6), (8, 1), (70, 50), (30, 60)
    for delay_penalty in 0.0, 0.2:
        check_group(np.random.default_rng(0), TRANSDUCERS[name], shapes, delay_penalty, 1.1)


def test_wide_groups_take_the_vector_logaddexp(device):
    """Long diagonals go another way through the recursion than short ones, with -inf in both."""
    rng = np.random.default_rng(0)
    frames, positions = [40] * 12, [35] * 12
    scores = list(random_scores(rng, frames, positions))
    for of_sample in scores:
        of_sample[rng.random(of_sample.shape) < 0.2] = -np.inf
    costs, lattice = solved(frames, positions, scores)
    assert np.isfinite(costs).any()
    for b, of_sample in enumerate(occupancies(lattice, costs, frames, positions)):
        expected, log_prob = reference.occupancies(scores[b])
        np.testing.assert_allclose(costs[b], -log_prob, rtol=1e-13)
        np.testing.assert_allclose(of_sample, expected, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 2), (1, 4)])
def test_a_bad_sample_keeps_to_itself(device, bad, place):
    frames, positions = [5, 4, 6], [5, 5, 3]
    scores = list(random_scores(np.random.default_rng(1), frames, positions))
    expected, healthy = solved(frames, positions, scores)
    scores[1][0][place] = bad
    costs, lattice = solved(frames, positions, scores)
    assert np.isnan(costs[1])
    np.testing.assert_array_equal(np.delete(costs, 1), np.delete(expected, 1))
    before = occupancies(healthy, expected, frames, positions)
    after = occupancies(lattice, costs, frames, positions)
    for b in 0, 2:
        np.testing.assert_array_equal(after[b], before[b])


@pytest.mark.parametrize("least", [1e-12, 1e-4, 0.3])
@pytest.mark.parametrize("name", TRANSDUCERS)
@pytest.mark.thinned(2)
def test_what_is_not_kept_holds_less_than_asked_for(device, name, least):
    """Of the paths that lead through the cells of a frame, or read one of their scores: so much for
    each cell of the frame. And a kept cell holds so much, or half of it if it is read from another
    cell."""
    transducer, shapes = TRANSDUCERS[name], ((9, 5), (5, 9), (12, 3))
    rng = np.random.default_rng(2)
    frames, positions = zip(*shapes, strict=True)
    samples = [random_sample(rng, transducer, t, s - 1, 2, scale=3.0) for t, s in shapes]
    costs, lattice = solved(
        frames, positions, [sample.scores() for sample in samples], transducer=transducer
    )
    kept = np.zeros(np.dot(frames, positions), bool)
    kept[to_host(lattice.keep(np.full(len(costs), least)))] = True
    start, topology = 0, transducer.topology
    for cost, sample in zip(costs, samples, strict=True):
        scores = sample.scores()
        of_sample = kept[start : start + scores[0].size].reshape(scores[0].shape)
        start += scores[0].size
        if not np.isfinite(cost):
            assert not of_sample.any()
            continue
        alpha, beta = reference.alphas(scores, topology), reference.betas(scores, topology)
        mass = np.exp(alpha + beta - beta[0, 0])
        aside = any(arc.then is not None for arc in topology.arcs)
        reading = np.pad(mass, ((0, 0), (1, 0)))[:, :-1] if aside else np.zeros_like(mass)
        left_out = np.where(of_sample, 0.0, mass + reading).sum(axis=1)
        assert (left_out < least * mass.shape[1] * (1 + 1e-9)).all()
        enough = least * (0.5 if aside else 1.0) * (1 - 1e-9)
        assert (np.maximum(mass, reading)[of_sample] >= enough).all()


def test_tiles_of_two_threads_keep_what_they_write(monkeypatch):
    """Two threads write the first tiles of a lattice at the same time: the log-sum-exps of both are
    there. Each allocated an array of its own once, and that of one thread was lost."""
    samples = samples_of(cpu, [6], [4])
    lattice = cpu.exact_lattice(PLAIN, samples, True, 0.0, np.dtype(np.float64))
    packed, empty = np.arange(24), np.empty

    def slowly(*arguments, **options):
        time.sleep(0.05)
        return empty(*arguments, **options)

    def write(half):
        cells = CellsOf(cpu, samples)(half)
        lattice.write(cells, half[None] + 1.0, np.full((2, len(half)), -1.0))

    threads = [threading.Thread(target=write, args=(half,)) for half in np.split(packed, 2)]
    with monkeypatch.context() as patched:
        patched.setattr(np, "empty", slowly)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lattice.solve()
    lse, _ = lattice.posteriors(packed, 1.0, np.dtype(np.float64), 0.0)
    np.testing.assert_array_equal(lse, packed[None] + 1.0)
