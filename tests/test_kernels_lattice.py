"""Lattices on CUDA against those on NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupy_rnnt.ops import cuda_lattice, launch

from . import ptxemu
from .lattice_cases import RAGGED, Side, random_case
from .test_kernels_rows_memory import run_far, shifted

LIMIT = -600.0  # a log-prob below is made of the least numbers
FAR, FAR_CELLS = 2**31 + 2**20, 35  # the first cell of a sample, and how many it has

shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)
random_groups = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
with_and_without_gradient = pytest.mark.parametrize("gradient", [False, True])


def assert_twins(case, gpu, gradient):
    """Costs and occupancies (or None), the same on both sides."""
    host, other = Side(case), Side(case, gpu)
    expected, actual = host.exact(gradient), other.exact(gradient)
    costs = other.costs(actual)
    np.testing.assert_allclose(costs, host.costs(expected), rtol=1e-13)
    if not gradient:
        return costs, None
    occupancies = other.occupancies(actual)
    np.testing.assert_allclose(occupancies, host.occupancies(expected), rtol=1e-11, atol=1e-300)
    return costs, occupancies


@random_groups
@given(shapes=shapes, holes=st.sampled_from([0.0, 0.1]), seed=seeds, gradient=st.booleans())
def test_groups(gpu, shapes, holes, seed, gradient):
    assert_twins(random_case(np.random.default_rng(seed), shapes, holes), gpu, gradient)


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
    monkeypatch.setattr(cuda_lattice, "_ROOM", 4)
    case = random_case(np.random.default_rng(3), [(20, 30), *RAGGED])
    assert_twins(case, gpu, gradient)
    certify_and_solve(case, gpu, 0.9, gradient)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 25 + 17, 25 + 9, 25 + 4])
@pytest.mark.parametrize("of", ["blank", "label"])
def test_a_bad_sample_keeps_to_itself(gpu, bad, place, of):
    case = random_case(np.random.default_rng(4), [(5, 5), (4, 5), (6, 3)])
    _, healthy = assert_twins(case, gpu, True)
    getattr(case, of)[place] = bad
    costs, occupancies = assert_twins(case, gpu, True)
    sample = case.cells.sample[place]
    suffers = of == "blank" or case.cells.has_label[place]
    np.testing.assert_array_equal(np.isnan(costs), suffers & (np.arange(3) == sample))
    healthy[:, suffers & (case.cells.sample == sample)] = 0
    np.testing.assert_array_equal(occupancies, healthy)


def test_a_sample_without_paths(gpu):
    case = random_case(np.random.default_rng(5), RAGGED)
    case.blank[(case.cells.sample == 1) & (case.cells.frame == 2)] = -np.inf
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
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
        return actual

    def likely(thresholds):
        expected, actual = (
            side.likely(of, thresholds) for side, of in zip(sides, lattices, strict=True)
        )
        np.testing.assert_array_equal(actual, expected)
        return actual

    _, total = certify()
    likely(total + rng.normal(-3, 2, len(total)))
    chosen = rng.random(len(case.blank)) < share
    chosen[0] = True
    for side, of in zip(sides, lattices, strict=True):
        side.write(of, np.flatnonzero(chosen))
    found = certify()
    none, every = (np.full(len(total), limit) for limit in (np.inf, -np.inf))
    assert not likely(none).any()
    assert not likely(np.full(len(total), np.nan)).any()
    np.testing.assert_array_equal(likely(every), ~chosen)
    certify()
    expected, actual = (side.costs(of) for side, of in zip(sides, lattices, strict=True))
    np.testing.assert_allclose(actual, expected, rtol=1e-13)
    if gradient:
        expected, actual = (side.occupancies(of) for side, of in zip(sides, lattices, strict=True))
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-300)
        assert not actual[:, ~chosen].any()
    return found, actual


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
    (inside, leaving), _ = certify_and_solve(case, gpu, share, False)
    side = Side(case, gpu)
    assert (-side.costs(side.exact(False)) <= np.logaddexp(inside, leaving) + 1e-13).all()


def test_samples_without_bounds_and_bad_ones(gpu):
    case = random_case(np.random.default_rng(8), RAGGED)
    case.bounds[:, case.cells.sample == 0] = -np.inf
    case.blank[case.cells.sample == 3] = np.nan
    certify_and_solve(case, gpu, 0.9, True)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.slow
def test_the_same_bits_for_any_schedule(gpu, monkeypatch, bounded):
    case = random_case(np.random.default_rng(9), [(50, 40), *RAGGED])
    chosen = np.flatnonzero(np.random.default_rng(9).random(len(case.blank)) < 0.9)
    side, results = Side(case, gpu), []
    for seed, blocks in enumerate((2**16, 1, 3)):
        if gpu.name.startswith("emulated"):
            monkeypatch.setattr(gpu.xp.kernels.options, "seed", seed)
        monkeypatch.setattr(launch, "MOST_BLOCKS", blocks)
        of = side.bounded() if bounded else side.exact()
        found = []
        if bounded:
            side.write(of, chosen)
            found += [side.certify(of), side.likely(of, np.full(len(RAGGED) + 1, -20.0))]
        found += [side.costs(of), side.occupancies(of)]
        results.append([values.tobytes() for values in found])
    assert results[0] == results[1] == results[2]


@with_and_without_gradient
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("room", [3056, 3])
@pytest.mark.slow
def test_memory_is_as_announced(gpu, monkeypatch, gradient, bounded, room):
    monkeypatch.setattr(cuda_lattice, "_ROOM", room)
    case = random_case(np.random.default_rng(10), [(40, 30), (20, 60), (70, 1)])
    side, pool = Side(case, gpu), gpu.xp.get_default_memory_pool()
    width = int((np.minimum(case.frames, case.columns) + 1).sum())
    diagonals = int((case.frames + case.columns).max()) - 1
    bounds, least = side.asarray(case.bounds), side.asarray(np.full(3, np.inf))
    written = [side.asarray(values) for values in (*case.cells, case.blank, case.label)]
    pool.free_all_blocks()
    before = pool.total_bytes()
    kind = side.ops.BoundedLattice if bounded else side.ops.Lattice
    of = kind(case.frames, case.columns, gradient)
    if bounded:
        of.bound(bounds)
    of.write(type(case.cells)(*written[:5]), *written[5:])
    if bounded:
        of.certify()
        of.likely(least)
    of.solve()
    announced = cuda_lattice.lattice_nbytes(diagonals, width, gradient, bounded)
    assert pool.total_bytes() - before <= announced


def far_arrays(count):
    """Places for cells from FAR on, poisoned, and what a kernel is given for them."""
    arrays = [ptxemu.empty(FAR_CELLS, np.float64) for _ in range(count)]
    return arrays, [shifted(values, FAR) for values in arrays]


def test_far_samples():
    case = random_case(np.random.default_rng(12), [(7, 5)])
    table = np.array([(FAR, 7, 5)], cuda_lattice._SAMPLE).view("i8")
    end, poisoned, costs = FAR + FAR_CELLS, np.zeros(1, np.int32), np.empty(1)
    ((*_, alpha, beta), far), block = far_arrays(4), FAR // 256
    given = [shifted(values, FAR) for values in (*case.cells[:3], case.blank, case.label)]
    run_far("lattice.cu", "lattice_write", block, end, table, *given, *far[:2], None, poisoned)
    rest = 1, None, poisoned, *far[2:], costs
    for sweep in range(2):
        args = 2, table, *far[:2], np.int32(0), *rest
        run_far("lattice.cu", "lattice_sweep<128>", sweep, *args)
    run_far("lattice.cu", "lattice_occupancies", block, end, 1, table, *far[2:], costs, *far[:2])
    run_far("lattice.cu", "lattice_unwrap", block, end, 1, table, *far)
    side = Side(case)
    lattice = side.exact()
    np.testing.assert_allclose(costs, side.costs(lattice), rtol=1e-13)
    np.testing.assert_allclose([alpha, beta], side.occupancies(lattice), atol=1e-13)


def test_far_samples_between_bounds():
    case = random_case(np.random.default_rng(13), [(7, 5)])
    table = np.array([(FAR, 7, 5)], cuda_lattice._SAMPLE).view("i8")
    (_, far), block = far_arrays(4), FAR // 256
    exact, likely = np.zeros(FAR_CELLS, bool), ptxemu.empty(FAR_CELLS, bool)
    (inside, leaving), threshold = np.empty((2, 1)), np.array([-4.0])
    packed = [shifted(values, FAR) for values in case.bounds]
    run_far("bounded.cu", "bounded_wrap", block, FAR + FAR_CELLS, 1, table, *packed, *far[:2])
    both, marks = (1, table, *far[:2], np.int32(0)), shifted(exact, FAR)
    run_far("bounded.cu", "bounded_beta<128>", 0, *both, far[2])
    bounds = marks, far[2]
    run_far("bounded.cu", "bounded_leaving<128>", 0, *both, *bounds, far[3], inside, leaving)
    out = far[3], shifted(likely, FAR)
    run_far("bounded.cu", "bounded_likely<128>", 0, *both, *bounds, threshold, *out)
    side = Side(case)
    lattice = side.bounded()
    np.testing.assert_allclose([inside, leaving], side.certify(lattice), rtol=1e-13)
    np.testing.assert_array_equal(likely, side.likely(lattice, threshold))
    assert 0 < likely.sum() < FAR_CELLS


def test_far_cells_of_a_sample():
    frames, columns, count = 2**17, 2**16, 8
    table = np.array([(0, frames, columns)], cuda_lattice._SAMPLE).view("i8")
    position = columns - 20 + np.arange(count)
    frame = frames - 3 - np.arange(count)
    first = int((frame[0] + position[0] - frames) * columns + position[0])
    assert first > 2**31
    blank, label = np.random.default_rng(14).random((2, count))
    stored = [ptxemu.empty(count, np.float64) for _ in range(2)]
    index, poisoned = (np.zeros(count, int), frame, position), np.zeros(1, np.int32)
    far = [shifted(values, first) for values in stored]
    args = count, table, *index, blank, label, *far, None, poisoned
    run_far("lattice.cu", "lattice_write", 0, *args)
    np.testing.assert_array_equal(stored, [blank, label])
