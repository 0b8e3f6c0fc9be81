"""Lattices on CUDA against those on NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupy_rnnt.ops.cuda import lattice as cuda_lattice
from cupy_rnnt.ops.cuda import launch

from ... import ptxemu
from ...transducers.cases import TRANSDUCERS, transducers
from ..lattice_cases import RAGGED, Side, random_case
from .test_rows_memory import run_far, shifted, table_of_samples

LIMIT = -600.0  # a log-prob below is made of the least numbers
FAR, FAR_CELLS = 2**31 + 2**20, 35  # the first cell of a sample, and how many it has

shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)
delays = st.sampled_from([0.0, 0.3])
every_transducer = pytest.mark.parametrize("transducer", TRANSDUCERS.values(), ids=TRANSDUCERS)
random_groups = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
few_groups = settings(random_groups, max_examples=8)  # each topology is compiled
with_and_without_gradient = pytest.mark.parametrize("gradient", [False, True])


def assert_twins(case, gpu, gradient, dtype=np.float32):
    """Costs and occupancies (or None), the same on both sides, and so are the cells kept."""
    host, other = Side(case, dtype=dtype), Side(case, gpu, dtype)
    expected, actual = host.exact(gradient), other.exact(gradient)
    costs = other.costs(actual)
    np.testing.assert_allclose(costs, host.costs(expected), rtol=1e-13, atol=1e-15)
    if not gradient:
        return costs, None
    for share in 0.03, 0.37:  # of which no cell holds exactly a multiple
        kept = other.kept(actual, costs, share)
        np.testing.assert_array_equal(kept, host.kept(expected, costs, share))
        assert kept.dtype == np.int64
    occupancies = other.occupancies(actual, costs, 1.5)
    desired = host.occupancies(expected, costs, 1.5)
    np.testing.assert_allclose(occupancies, desired, rtol=1e-11, atol=1e-300)
    return costs, other.occupancies(actual, costs)


@random_groups
@given(
    shapes=shapes,
    holes=st.sampled_from([0.0, 0.1]),
    seed=seeds,
    gradient=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_groups(gpu, shapes, holes, seed, gradient, dtype):
    assert_twins(random_case(np.random.default_rng(seed), shapes, holes), gpu, gradient, dtype)


@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
@every_transducer
def test_transducers(gpu, transducer, delay_penalty):
    """Both ways round, also where diagonals do not fit into shared memory."""
    shapes = [(20, 7), (7, 20), *RAGGED]
    case = random_case(np.random.default_rng(15), shapes, 0.02, transducer, delay_penalty)
    costs, occupancies = assert_twins(case, gpu, True)
    assert np.isfinite(costs).any()
    of_labels = np.add.reduceat(occupancies[case.label], case.starts)
    np.testing.assert_allclose(of_labels, (case.columns - 1) * np.isfinite(costs), atol=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_lattice, "_most_columns", lambda _: 4)
        assert_twins(case, gpu, False)
        certify_and_solve(case, gpu, 0.9, True)


@few_groups
@given(transducer=transducers(), holes=st.sampled_from([0.0, 0.1]), seed=seeds, delay=delays)
def test_transducers_that_nobody_has_invented(gpu, transducer, holes, seed, delay):
    rng = np.random.default_rng(seed)
    case = random_case(rng, rng.integers(1, 8, (3, 2)), holes, transducer, delay)
    assert_twins(case, gpu, True)
    certify_and_solve(case, gpu, 0.8, True, seed)


@with_and_without_gradient
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (130, 140), (1, 300), (300, 2)], ids=str)
@pytest.mark.slow
def test_samples_of_many_sizes(gpu, shape, gradient):
    case = random_case(np.random.default_rng(0), [shape, *RAGGED])
    costs, occupancies = assert_twins(case, gpu, gradient)
    assert np.isfinite(costs).all()
    if gradient:
        sums = np.add.reduceat(occupancies, case.starts, axis=1)
        counts = np.array([case.frames, case.columns - 1])
        np.testing.assert_allclose(sums, counts, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3001), (2000, 1)], ids=str)
@pytest.mark.slow
def test_long_samples(gpu, shape):
    costs, _ = assert_twins(random_case(np.random.default_rng(1), [shape]), gpu, False)
    assert np.isfinite(costs).all()


@with_and_without_gradient
@pytest.mark.slow
def test_a_thread_walks_over_several_columns(gpu, monkeypatch, gradient):
    monkeypatch.setattr(cuda_lattice, "_BLOCKS", (128,))
    case = random_case(np.random.default_rng(2), [(135, 131), *RAGGED])
    assert_twins(case, gpu, gradient)


@with_and_without_gradient
@pytest.mark.slow
def test_diagonals_that_do_not_fit_into_shared_memory(gpu, monkeypatch, gradient):
    monkeypatch.setattr(cuda_lattice, "_most_columns", lambda _: 4)
    case = random_case(np.random.default_rng(3), [(20, 30), *RAGGED])
    assert_twins(case, gpu, gradient)
    certify_and_solve(case, gpu, 0.9, gradient)


@pytest.mark.parametrize("size", [3.0, 900.0, 1e6, 1e30, 1e300])
def test_scores_of_any_size(gpu, size):
    """A sample with a score that an exponent cannot hold is swept by logarithms; the others of the
    group are not. Logarithms beyond 1e4 are too coarse for occupancies, on either side."""
    case = random_case(np.random.default_rng(16), [(5, 4), (6, 7), (7, 3)])
    of_second = np.flatnonzero(case.cells.sample == 1)
    case.scores[0, of_second] *= size
    case.scores[1, of_second[::3]] = -size
    case.scores[0, of_second[5]] = size
    costs, occupancies = assert_twins(case, gpu, size < 1e4)
    assert np.isfinite(costs[1]) == (size < 1e38)
    if size < 1e4:
        of_frames = np.add.reduceat(occupancies[0], case.starts)
        np.testing.assert_allclose(of_frames, case.frames, rtol=1e-10)
    for dtype, expected in (np.float32, [0, 2 * (size > 700), 0]), (np.float64, [2, 2, 2]):
        side = Side(case, gpu, dtype)
        np.testing.assert_array_equal(side.asnumpy(side.exact()._flags), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 25 + 17, 25 + 9, 25 + 4])
@pytest.mark.parametrize("of", [0, 1], ids=["blank", "label"])
def test_a_bad_sample_keeps_to_itself(gpu, bad, place, of):
    case = random_case(np.random.default_rng(4), [(5, 5), (4, 5), (6, 3)])
    _, healthy = assert_twins(case, gpu, True)
    case.scores[of, place] = bad
    costs, occupancies = assert_twins(case, gpu, True)
    sample = case.cells.sample[place]
    suffers = of == 0 or case.cells.has_label[place]
    np.testing.assert_array_equal(np.isnan(costs), suffers & (np.arange(3) == sample))
    healthy[:, suffers & (case.cells.sample == sample)] = 0
    np.testing.assert_array_equal(occupancies, healthy)


def test_a_sample_without_paths(gpu):
    case = random_case(np.random.default_rng(5), RAGGED)
    case.scores[0, (case.cells.sample == 1) & (case.cells.frame == 2)] = -np.inf
    costs, occupancies = assert_twins(case, gpu, True)
    np.testing.assert_array_equal(costs == np.inf, np.arange(len(RAGGED)) == 1)
    assert not occupancies[:, case.cells.sample == 1].any()


def certify_and_solve(case, gpu, share, gradient, seed=0):
    """A round of selection, with a random set C, on both sides: certificates of C."""
    rng = np.random.default_rng(seed)
    sides = Side(case), Side(case, gpu)
    lattices = [side.bounded(gradient) for side in sides]

    def certify():
        expected, actual = (
            np.maximum(side.certify(of), LIMIT) for side, of in zip(sides, lattices, strict=True)
        )
        # Sums are kept in 40 bits, and what leaves C makes up for that.
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)
        assert (actual[1] >= expected[1] - 1e-14 * (1 + abs(expected[1]))).all()
        return actual

    def candidates(thresholds):
        expected, actual = (
            side.candidates(of, thresholds) for side, of in zip(sides, lattices, strict=True)
        )
        np.testing.assert_array_equal(actual, expected)
        return actual

    samples = len(case.frames)
    candidates(rng.normal(-3, 2, samples))
    certify()
    candidates(rng.normal(-3, 2, samples))
    chosen = rng.random(len(case.cells.sample)) < share
    chosen[0] = True
    chosen = case.beside(chosen)
    for side, of in zip(sides, lattices, strict=True):
        side.write(of, np.flatnonzero(chosen))
    found = certify()
    none, every = (np.full(samples, limit) for limit in (np.inf, -np.inf))
    assert not candidates(none).any()
    assert not candidates(np.full(samples, np.nan)).any()
    np.testing.assert_array_equal(candidates(every), ~chosen)
    certify()
    expected, costs = (side.costs(of) for side, of in zip(sides, lattices, strict=True))
    np.testing.assert_allclose(costs, expected, rtol=1e-13, atol=1e-15)
    if gradient:
        occupancies = [
            side.occupancies(of, costs) for side, of in zip(sides, lattices, strict=True)
        ]
        np.testing.assert_allclose(*reversed(occupancies), rtol=1e-11, atol=1e-300)
        assert not occupancies[1][:, ~chosen].any()
    return found, costs


@random_groups
@given(
    shapes=shapes,
    holes=st.sampled_from([0.0, 0.1]),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    seed=seeds,
    gradient=st.booleans(),
)
@pytest.mark.slow
def test_selections(gpu, shapes, holes, share, seed, gradient):
    case = random_case(np.random.default_rng(seed), shapes, holes)
    certify_and_solve(case, gpu, share, gradient, seed)


@pytest.mark.parametrize("shape", [(60, 40), (140, 150)], ids=str)
@pytest.mark.slow
def test_selections_of_larger_samples(gpu, shape):
    case = random_case(np.random.default_rng(6), [shape, *RAGGED])
    certify_and_solve(case, gpu, 0.97, True)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
@pytest.mark.slow
def test_a_certificate_holds(gpu, share):
    case = random_case(np.random.default_rng(7), [(9, 5), (14, 6), (5, 14), (30, 3)])
    (inside, leaving, _), _ = certify_and_solve(case, gpu, share, False)
    side = Side(case, gpu)
    assert (-side.costs(side.exact(False)) <= np.logaddexp(inside, leaving) + 1e-13).all()


def test_samples_without_bounds_and_bad_ones(gpu):
    case = random_case(np.random.default_rng(8), RAGGED)
    case.bounds[:, case.cells.sample == 0] = -np.inf
    case.scores[0, case.cells.sample == 3] = np.nan
    certify_and_solve(case, gpu, 0.9, True)


@few_groups
@given(
    transducer=st.sampled_from([TRANSDUCERS[name] for name in ("regular", "constrained", "tdt")]),
    share=st.sampled_from([0.5, 1.0]),
    seed=seeds,
    delay=delays,
)
def test_cells_that_are_left_out(gpu, transducer, share, seed, delay):
    """They have probability 0, are exact, and are never kept nor candidates."""
    rng = np.random.default_rng(seed)
    case = random_case(rng, [(12, 5), (4, 9), (1, 1), (6, 6)], 0.0, transducer, delay)
    first = rng.integers(0, 2, (4, 13)).cumsum(axis=1) % case.columns[:, None]
    stop = np.minimum(first + rng.integers(1, 7, (4, 1)), case.columns[:, None])
    sample, frame, position, *_ = case.cells
    inside = (first[sample, frame] <= position) & (position < stop[sample, frame])
    written = np.flatnonzero(inside & (rng.random(len(inside)) < share))
    found = []
    for side in Side(case), Side(case, gpu):
        exact, of = side.made("Lattice", True), side.bounded()
        for lattice, cells in (exact, np.flatnonzero(inside)), (of, written):
            lattice.leave_out(first, stop)
            side.write(lattice, cells)
        mass = side.certify(of)
        marks = side.candidates(of, np.full(4, -3.0))
        side.certify(of)  # candidates are followed by a round
        costs = side.costs(exact), side.costs(of)
        kept = side.kept(exact, costs[0]), side.kept(of, costs[1], 1e-300)
        every, dtype = side.asarray(kept[0]), np.dtype(np.float64)
        occupancies = side.asnumpy(exact.posteriors(every, 1.0, dtype, 0.0)[1])
        assert inside[kept[0]].all()
        assert inside[kept[1]].all()
        assert not marks[~inside].any()
        found.append((mass, marks, *costs, *kept, occupancies))
    expected, actual = found
    bounds = {"rtol": 2.0**-34, "atol": 1e-10}
    np.testing.assert_allclose(actual[0][[0, 2]], expected[0][[0, 2]], **bounds)
    shares = (np.exp(mass[1] - np.where(mass[2] > -np.inf, mass[2], 0)) for mass, *_ in found)
    np.testing.assert_allclose(*shares, rtol=2.0**-34, atol=1e-300)
    for one, other in zip(actual[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.slow
def test_the_same_bits_for_any_schedule(gpu, monkeypatch, bounded):
    case = random_case(np.random.default_rng(9), [(50, 40), *RAGGED])
    chosen = np.flatnonzero(np.random.default_rng(9).random(len(case.cells.sample)) < 0.9)
    side, results = Side(case, gpu), []
    for seed, blocks in enumerate((2**16, 1, 3)):
        if gpu.name.startswith("emulated"):
            monkeypatch.setattr(gpu.xp.kernels.options, "seed", seed)
        monkeypatch.setattr(launch, "MOST_BLOCKS", blocks)
        of = side.bounded() if bounded else side.exact()
        found = []
        if bounded:
            side.write(of, chosen)
            found += [side.certify(of), side.candidates(of, np.full(len(RAGGED) + 1, -20.0))]
        found.append(side.costs(of))
        found.append(side.occupancies(of, found[-1]))
        results.append([values.tobytes() for values in found])
    assert results[0] == results[1] == results[2]


@with_and_without_gradient
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("room", [2037, 3])
@pytest.mark.slow
@pytest.mark.parametrize("name", ["regular", "constrained", "tdt"])
def test_memory_is_as_announced(gpu, monkeypatch, gradient, bounded, room, name):
    monkeypatch.setattr(cuda_lattice, "_most_columns", lambda _: room)
    shapes, transducer = [(40, 30), (20, 60), (70, 1)], TRANSDUCERS[name]
    case = random_case(np.random.default_rng(10), shapes, 0, transducer)
    side, pool = Side(case, gpu), gpu.xp.get_default_memory_pool()
    width = int((np.minimum(case.frames, case.columns) + 1).sum())
    diagonals = int((case.frames + case.columns).max()) - 1
    bounds, scores = side.asarray(case.bounds), side.asarray(case.scores)
    cells = side.cells()
    lse = scores[:0]
    pool.free_all_blocks()
    before = pool.total_bytes()
    of = side.made("BoundedLattice" if bounded else "Lattice", gradient)
    if bounded:
        of.bound(bounds)
        of.candidates(np.full(3, np.inf))
    of.write(cells, lse, scores)
    if bounded:
        of.certify()
    of.solve()
    sizes = transducer.topology, diagonals, width, len(case.cells.sample)
    announced = cuda_lattice.lattice_nbytes(*sizes, gradient, bounded)
    assert pool.total_bytes() - before <= announced


def test_diagonals_of_as_many_columns_as_fit():
    """At most the bytes that kernels were declared with, which a block is given unasked."""
    for transducer in TRANSDUCERS.values():
        topology = transducer.topology
        most, row = cuda_lattice._most_columns(topology), 12 * (topology.reach + 1)
        assert most * row <= cuda_lattice._DIAGONALS_BYTES
        assert most == 512 or (most + 1) * row > cuda_lattice._DIAGONALS_BYTES


REGULAR = TRANSDUCERS["regular"].topology.cpp
ALL, ONE = np.int32(2), np.int32(1)  # scores


def far(*arrays):
    """Arrays as parts, from cell FAR on, of some that would be too large."""
    return [shifted(values, FAR) for values in arrays]


def stored_far(rows):
    """Places for two scores of the cells from FAR on, poisoned, and each of them."""
    stored = ptxemu.empty((2, FAR_CELLS), np.float64)
    return stored, *far(stored.reshape(-1), *stored)[:rows]


def poisoned(dtype=np.float64):
    return ptxemu.empty(FAR_CELLS, dtype)


BEHIND_FAR = table_of_samples([FAR, 7], [1, 5])
"""A sample of which nothing is here, and one behind it."""
SWEPT = *BEHIND_FAR, np.int32(5)
SWEEP, DIAGONALS_BYTES = f"lattice_sweep<{REGULAR}, 128>", 2 * 5 * 12


def test_far_samples():
    case = random_case(np.random.default_rng(12), [(7, 5)])
    end, flags, block = FAR + FAR_CELLS, np.zeros(2, np.int32), FAR // 256
    totals, costs, counts = np.empty((4, 2)), np.empty(2), np.zeros(2, np.int64)
    _, whole, *each = stored_far(3)
    alpha, beta, lses = far(*(poisoned(np.int64) for _ in range(2)), poisoned())
    keeps = poisoned(bool)
    # Scores are as far apart as there are cells to write: one at a time, the second is the label's.
    for scores, to, label in zip(case.scores, each, (-1, 0), strict=True):
        packed, values = far(FAR + np.arange(FAR_CELLS), scores)
        kinds = ONE, values, ONE, np.int32(label), ONE, 0.0, FAR_CELLS
        args = *BEHIND_FAR, packed, values, *kinds, lses, to, None, flags
        run_far("lattice.cu", "lattice_write", block, end, *args)
    assert not flags.any()
    sums = beta, None, alpha, None, totals, costs, False
    spare = None, 0
    sweeps = np.int32(0b101), *SWEPT, whole, FAR_CELLS, None, flags, 0.0, 1.0, *spare
    for sweep in 1, 3:
        args = 4, *sweeps, *sums
        run_far("lattice.cu", SWEEP, sweep, *args, shared_bytes=DIAGONALS_BYTES)
    args = 8, *SWEPT, flags, alpha, beta, np.full(2, 0.1), costs, None  # frames of a block
    run_far("cells.cu", f"lattice_keep<{REGULAR}>", 1, *args, *far(keeps), counts)
    packed, occupancies = FAR + np.arange(FAR_CELLS), ptxemu.empty((2, FAR_CELLS), np.float64)
    args = FAR_CELLS, packed, *SWEPT, flags, whole, FAR_CELLS, alpha, beta, costs
    lse = ptxemu.empty((1, FAR_CELLS), np.float64)
    results = 1.0, 0.0, lses, ONE, lse, occupancies
    run_far("cells.cu", f"lattice_posteriors<{REGULAR}, double>", 0, *args, *results)
    side = Side(case)
    lattice = side.exact()
    np.testing.assert_allclose(costs[1:], side.costs(lattice), rtol=1e-13)
    np.testing.assert_array_equal(np.flatnonzero(keeps), side.kept(lattice, costs[1:], 0.1))
    assert 0 < keeps.sum() == counts[1] < FAR_CELLS
    np.testing.assert_allclose(occupancies, side.occupancies(lattice, costs[1:]), atol=1e-11)
    np.testing.assert_array_equal(lse[0], case.scores[1])


def test_far_samples_between_bounds():
    case = random_case(np.random.default_rng(13), [(7, 5)])
    block, end, flags = FAR // 256, FAR + FAR_CELLS, np.zeros(2, np.int32)
    _, whole, *each = stored_far(3)
    upper_alpha, upper_beta, alpha = far(*(poisoned(np.int64) for _ in range(3)))
    totals, counts, shares = np.empty((4, 2)), np.zeros(2, np.int64), np.empty(2)
    exact, likely, least = np.zeros(FAR_CELLS, bool), poisoned(bool), np.full(2, -4.0)
    for bounds, to, label in zip(case.bounds, each, (-1, 0), strict=True):
        args = end, *BEHIND_FAR, *far(bounds), ONE, np.int32(label), ONE, 0.0, to, flags
        run_far("lattice.cu", "lattice_bound", block, *args)
    (marks,), (chosen,) = far(exact), far(likely)
    sweep = *SWEPT, whole, FAR_CELLS, marks, flags, 0.0, 1.0, None, 0
    band, left_out = (np.zeros((2, 7), int), np.full((2, 7), 5)), poisoned(bool)
    args = end, *BEHIND_FAR, *band, 7, whole, 0, *far(left_out), marks
    run_far("lattice.cu", "lattice_leave_out", block, *args)
    assert not left_out.any()
    results = None, upper_alpha, alpha, upper_beta, totals, np.empty(2), False
    for i in 1, 3, 5:
        args = 6, np.int32(0b1110), *sweep, *results
        run_far("lattice.cu", SWEEP, i, *args, shared_bytes=DIAGONALS_BYTES)
    args = 1, *SWEPT, flags, marks, alpha, upper_beta, totals[3], shares
    run_far("cells.cu", f"lattice_leaving<{REGULAR}>", 1, *args)
    args = end, *SWEPT, flags, upper_alpha, upper_beta, least, totals[3], marks
    run_far("cells.cu", f"lattice_mark<{REGULAR}>", block, *args, chosen, counts)
    side = Side(case)
    lattice = side.bounded()
    np.testing.assert_array_equal(likely, side.candidates(lattice, least[1:]))
    assert 0 < likely.sum() == counts[1] < FAR_CELLS
    inside, leaving, upper = side.certify(lattice)
    assert inside == totals[2, 1] == -np.inf
    found = np.log(shares[1]) + totals[3, 1], totals[3, 1]
    np.testing.assert_allclose(found, [leaving[0], upper[0]], rtol=1e-11)
    far_marks = far(poisoned(bool))
    args = end, *BEHIND_FAR, np.ones(2, bool), marks, *far_marks
    run_far("cells.cu", "lattice_complete", block, *args)


def test_far_cells_of_a_sample():
    frames, columns, count = 2**17, 2**16, 8
    table = table_of_samples([frames], [columns])
    position = columns - 20 + np.arange(count)
    frame = frames - 3 - np.arange(count)
    first = int((frame[0] + position[0] - frames) * columns + position[0])
    assert first > 2**31
    scores = -np.random.default_rng(14).random((2, count))
    words = ptxemu.empty((2, count), np.float64)
    packed, flags = frame * columns + position, np.zeros(1, np.int32)
    no_heads = None, np.int32(0)
    places = count, None, shifted(words.reshape(-1), first), None, flags
    args = *table, packed, *no_heads, scores, ALL, ONE, ONE, 0.0, *places
    run_far("lattice.cu", "lattice_write", 0, count, *args)
    np.testing.assert_allclose(np.log(words), scores, rtol=1e-13)
    assert not flags.any()
