"""The likeliest paths on CUDA: the same as on NumPy, bit for bit; and planted faults."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.topology import BLANK, LABEL, Arc, Score, Topology
from cupy_rnnt.transducer import Transducer

from ... import devices
from ...emulated.memory import UninitialisedRead
from ...ptxemu import KernelError
from ...transducers.cases import tdt, transducers
from ..lattice_cases import RAGGED, Side, random_case
from . import test_rows_faults
from .test_lattice import delays, every_transducer, few_groups, seeds

kernels = test_rows_faults.kernels


def found(side, of):
    """Costs, frames and durations."""
    return [side.costs(of), *map(side.asnumpy, of.path())]


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def assert_twins(case, gpu, share=0.5, seed=0, dtype=np.float32):
    """All cells; then some of them, with bounds in the others, in two rounds."""
    sides = Side(case, dtype=dtype), Side(case, gpu, dtype)
    exact = [side.made("BestLattice", True) for side in sides]
    for side, of in zip(sides, exact, strict=True):
        side.write(of, slice(None))
    expected, actual = map(found, sides, exact)
    assert_same(actual, expected)

    bounded = [side.made("BestLattice", True) for side in sides]
    for side, of in zip(sides, bounded, strict=True):
        of.bound(side.asarray(case.bounds))
    rng = np.random.default_rng(seed)
    chosen = case.beside(rng.random(len(case.cells.sample)) < share)
    for some in np.flatnonzero(chosen), np.flatnonzero(~chosen):
        candidates = []
        for side, of in zip(sides, bounded, strict=True):
            side.write(of, some)
            candidates.append(side.candidates(of, np.full(len(case.frames), -3.0)))
        # A path through a cell has sums of another order than the likeliest of all.
        assert (candidates[0] != candidates[1]).mean() < 0.01
        results = [of.certify() for of in bounded]
        costs, *_ = found(sides[0], bounded[0])
        assert_same(*(found(side, of) for side, of in zip(sides, bounded, strict=True)))
        of_bounds, of_gpu = ([array[~np.isnan(costs)] for array in result] for result in results)
        assert_same(of_gpu, of_bounds)
        inside, upper, proven = of_gpu
        assert (inside <= upper).all()
        assert (inside[proven] == upper[proven]).all()
    assert proven.all()
    assert_same(found(sides[1], bounded[1]), actual)
    return actual


@few_groups
@given(transducer=transducers(), holes=st.sampled_from([0.0, 0.1]), seed=seeds, delay=delays)
def test_transducers_that_nobody_has_invented(gpu, transducer, holes, seed, delay):
    rng = np.random.default_rng(seed)
    case = random_case(rng, rng.integers(1, 8, (3, 2)), holes, transducer, delay)
    assert_twins(case, gpu, 0.8, seed)


@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
@every_transducer
def test_transducers(gpu, transducer, delay_penalty):
    shapes = [(20, 7), (7, 20), *RAGGED]
    case = random_case(np.random.default_rng(15), shapes, 0.02, transducer, delay_penalty)
    costs, frames, _ = assert_twins(case, gpu)
    assert np.isfinite(costs).any()
    counts = np.where(np.isfinite(costs), case.columns - 1, 0)
    np.testing.assert_array_equal((frames >= 0).sum(axis=1), counts)


@pytest.mark.parametrize("shape", [(300, 3), (130, 140), (2, 300)], ids=str)
@pytest.mark.slow
def test_samples_of_many_sizes(gpu, shape):
    assert_twins(random_case(np.random.default_rng(0), [shape, *RAGGED]), gpu, 0.9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_samples(gpu, bad):
    case = random_case(np.random.default_rng(4), [(5, 5), (4, 5), (6, 3)])
    case.scores[0, 3] = bad
    case.scores[0, (case.cells.sample == 1) & (case.cells.frame == 2)] = -np.inf
    costs, frames, durations = assert_twins(case, gpu)
    assert np.isnan(costs[0])
    assert costs[1] == np.inf
    assert np.isfinite(costs[2])
    assert (frames[:2] == -1).all()
    assert (durations[:2] == -1).all()


def test_costs_of_float32(gpu):
    case = random_case(np.random.default_rng(5), [(2, 2), (3, 2)])
    case.scores[:, :4] *= 1e39
    assert assert_twins(case, gpu)[0][0] == np.inf
    assert 1e38 < assert_twins(case, gpu, dtype=np.float64)[0][0] < np.inf


def test_the_same_bits_for_any_schedule(gpu, monkeypatch):
    case = random_case(np.random.default_rng(9), [(20, 14), *RAGGED])
    results = []
    for seed, blocks in enumerate((2**16, 1, 3)):
        if gpu.name.startswith("emulated"):
            monkeypatch.setattr(gpu.xp.kernels.options, "seed", seed)
        monkeypatch.setattr(launch, "MOST_BLOCKS", blocks)
        results.append([values.tobytes() for values in assert_twins(case, gpu)])
    assert results[0] == results[1] == results[2]


# What is replaced by what in best.cu, or in the file named
FAULTS = {
    "diagonals that overlap": ("            __syncthreads();\n", ""),
    "an arc from before the first frame": ("frame < arc.frames || position", "position"),
    "an arc from before the first position": (" || position < arc.labels) return", ") return"),
    "scores of arcs that lead nowhere": ("if (after.value == -infinity()) return", "if (0) return"),
    "the last of the largest": ("if (!(sum > best)) return;", "if (!(sum >= best)) return;"),
    "sums over cells outside": ("way == 3 || is_inside<T>(lattice, exact, d, c)", "true"),
    "a bound of cells inside": ("way == 3 || is_inside", "is_inside"),
    "totals of one way": ("if (way != 1 && d == 0)", "if (way == 3 && d == 0)"),
    "the path of a bad sample": ("ends = bad || cost == infinity()", "ends = cost == infinity()"),
    "the path of a sample without one": ("ends = bad || cost == infinity()", "ends = bad"),
    "a path that is always inside": (
        "inside = inside && is_inside",
        "inside = inside || is_inside",
    ),
    "rows that are not cleared": ("u < labels; ++u", "u < labels - 1; ++u"),
    "frames before the arc": ("+ position] = later;", "+ position] = later - 1;"),
    "labels behind the arc": ("+ position] = frame;", "+ position] = frame + later;"),
    "the cost of a bad sample": ('bad ? nan("") :', "false ? 0 :"),
    "costs beyond float32": ("!narrow || fabs", "true || fabs"),
    "a path that ends no path": (
        "? N::one() : N::zero();",
        "? N::one() : N::one();",
        "lattice.cuh",
    ),
    "scores as words": ("factors < 0 ? score : word", "false ? score : word", "lattice.cuh"),
    "bounds as words": ("factors < 0 ? bound : word", "false ? bound : word", "lattice.cu"),
}


# An arc that reads the last score aside, which is the last in memory.
ASIDE = Topology((Arc(1, 0, (BLANK,)), Arc(1, 1, (LABEL,), then=Score("duration"))))


def run():
    """Two samples are bad, one costs more than float32 holds, and many paths are equal."""
    with devices.emulated() as gpu:
        for transducer in Transducer(ASIDE), tdt((0, 1, 2)):
            shapes = (9, 4), (4, 9), (5, 3), (4, 3), (2, 2), (6, 5)
            case = random_case(np.random.default_rng(0), shapes, 0, transducer)
            rng, of = np.random.default_rng(1), case.cells.sample
            case.scores[:] = rng.integers(-4, -1, case.scores.shape) / 4
            case.scores[0, of == 3] = -np.inf
            case.scores[:, of == 4] *= 1e39
            case.bounds[:] = case.scores + rng.integers(0, 2, case.scores.shape) / 4
            case.bounds[case.label, ~case.cells.has_label] = -np.inf
            case.scores[0, np.flatnonzero(of == 2)[4]] = np.nan
            assert_twins(case, gpu)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_a_fault_is_found(kernels, fault):
    sound, broken, *files = FAULTS[fault]
    source = kernels / (files or ["best.cu"])[0]
    text = source.read_text()
    assert text.count(sound) == 1
    source.write_text(text.replace(sound, broken))
    with pytest.raises((AssertionError, KernelError, UninitialisedRead)):
        run()


def test_without_one_nothing_is_found():
    run()
