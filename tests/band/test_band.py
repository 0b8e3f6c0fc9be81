"""Losses within a band: the sums over the paths that lead through its cells only."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cupy_rnnt
from cupy_rnnt import reference
from cupy_rnnt.batch import Batch
from cupy_rnnt.tokens import Tokens

from ..device_calls import examples, joint_rnnt_loss, joint_rnnt_loss_and_grad, rnnt_loss_and_grad
from ..engine.selection.cases import selecting
from ..engine.selection.joints import aligned_case, shapes
from ..engine.test_workspace import peak_beyond_results
from ..helpers import least_budget, random_joint_case, random_logits_case
from ..reference.cases import EXACT
from ..tolerances import DTYPES, assert_costs_close, assert_gradients_close
from ..transducers.cases import (
    TRANSDUCERS,
    Topology,
    batch_of,
    blanks_of,
    enumerated,
    padded_grads,
    random_sample,
    transducers,
    width_of,
)
from .cases import BandedSample, cells_of_paths, masks, random_bands

GRADIENT = {"rtol": 1e-11, "atol": 1e-12}
EXTENTS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**32 - 1)
every_transducer = pytest.mark.parametrize("transducer", TRANSDUCERS.values(), ids=TRANSDUCERS)


def batch_in(band, extents, topology: Topology) -> Batch:
    frames, labels = np.array(extents).T
    shape = len(extents), band[0].shape[1], labels.max() + 1
    targets = np.ones((shape[0], shape[2] - 1), int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Batch(targets, frames, labels, shape, 0, Tokens(9), band=band, topology=topology)


def widened(band, extents, topology):
    """The masks of the band as it is after all."""
    batch = batch_in(band, extents, topology)
    sizes = [(T, U + 1) for T, U in extents]
    for first, stop, (T, S) in zip(*batch.band, sizes, strict=True):
        u = np.arange(S)
        yield (first[:T, None] <= u) & (u < stop[:T, None])


def check_logits(transducer, extents, seed, fused, tolerance, delay_penalty, fastemit):
    """Whatever is outside, and a NaN in the logits there."""
    rng = np.random.default_rng(seed)
    blank = int(rng.choice(blanks_of(transducer, 3)))
    shapes = [(T, U + 1) for T, U in extents]
    band = random_bands(rng, shapes, max(T for T, _ in shapes) + 1)
    samples = [
        BandedSample(
            random_sample(
                rng, transducer, T, U, blank=blank, fused=fused, delay_penalty=delay_penalty
            ),
            inside,
        )
        for (T, U), inside in zip(extents, widened(band, extents, transducer.topology), strict=True)
    ]
    *arguments, blank = batch_of([sample.poisoned for sample in samples])
    costs, grads = zip(*(enumerated(sample, fastemit) for sample in samples), strict=True)
    options = {
        "reduction": "none",
        "fused_log_softmax": fused,
        "transducer": transducer,
        "delay_penalty": delay_penalty,
        "fastemit_lambda": fastemit,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss, grad = rnnt_loss_and_grad(
            *arguments, blank, **options, band=band, tolerance=tolerance
        )
    np.testing.assert_allclose(loss, costs, **EXACT)
    np.testing.assert_allclose(grad, padded_grads(samples, grads, arguments[0]), **GRADIENT)


@examples(
    200,
    2,
    transducer=transducers(),
    extents=EXTENTS,
    seed=SEEDS,
    fused=st.booleans(),
    tolerance=st.sampled_from([0.0, None]),
    delay_penalty=st.sampled_from([0.0, 0.3]),
    fastemit=st.sampled_from([0.0, 0.2]),
)
def test_logits_of_any_transducer(device, **drawn):
    check_logits(**drawn)


@pytest.mark.parametrize("tolerance", [0.0, None])
@every_transducer
def test_logits(device, transducer, tolerance):
    for seed in range(5 if device.name == "numpy" else 1):
        check_logits(transducer, [(4, 3), (3, 1), (1, 2), (3, 0)], seed, True, tolerance, 0.2, 0.1)


def banded_joint(rng, transducer, dtype=np.float64):
    case = aligned_case(
        rng, 3, 11, 6, width_of(transducer, 6), 9, dtype=dtype, transducer=transducer
    )
    first = np.full(case.encoder_out.shape[:2], -99)
    for row, (T, S) in zip(first, shapes(case), strict=True):  # holds a path
        row[:T] = np.clip(np.arange(T) * S // T - 1, 0, S - 1)
    return case, (first, np.array([-(-S // T) + 2 for T, S in shapes(case)]))


@pytest.mark.parametrize("selects", [False, True])
@every_transducer
@pytest.mark.thinned(4)
def test_joints(device, transducer, selects):
    """By the textbook, selected by bounds or not, and with every cell kept."""
    for seed in range(4 if device.name == "numpy" else 1):
        case, band = banded_joint(np.random.default_rng(seed), transducer)
        options = {"transducer": transducer, "band": band, "reduction": "none"}
        expected, grads = reference.joint_rnnt_loss_and_grad(*case, **options)
        for tolerance in None, 1e-3, 0.0:
            with selecting() if selects else nullcontext():
                loss, found, info = joint_rnnt_loss_and_grad(
                    *case, **options, tolerance=tolerance, return_info=True
                )
            cells = sum(mask.sum() for mask in masks(*band, shapes(case)))
            assert info.kept <= info.computed <= cells < info.cells
            if tolerance == 1e-3:
                finite = np.isfinite(expected)
                error, rounding = loss[finite] - expected[finite], 1e-12 * abs(expected[finite])
                assert (error >= -rounding).all()
                assert (error <= np.log1p(info.certificate[finite]) + rounding).all()
                continue
            assert_costs_close(loss, expected, np.float64, case.length)
            assert_gradients_close(found, grads, np.float64, case.length)
            if tolerance == 0.0:
                assert info.computed == cells
                assert not info.certificate.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.thinned(2)
def test_selection_leaves_out_cells_of_the_band(device, dtype):
    case = aligned_case(np.random.default_rng(1), 2, 40, 24, 9, 12, sharpness=5.0, dtype=dtype)
    T, S = case.encoder_out.shape[1], case.predictor_out.shape[1]
    first = np.clip(np.arange(T) * S // T - 8, 0, case.target_lengths[:, None])
    band = first, 16
    with selecting():
        loss, info = joint_rnnt_loss(*case, band=band, reduction="none", return_info=True)
    cells = sum(mask.sum() for mask in masks(*band, shapes(case)))
    assert info.computed < 0.8 * cells
    expected = reference.joint_rnnt_loss(*case, band=band, reduction="none")
    assert_costs_close(loss, expected, dtype, case.length, 12)


def test_hidden_vectors_outside_may_be_anything(device):
    """The sum of a frame and a position is inf - inf in a cell that does not exist, and a NaN."""
    case = random_joint_case(np.random.default_rng(3), 1, 4, 3)._replace(
        logit_lengths=np.array([4]), target_lengths=np.array([3])
    )
    case.encoder_out[0, 0], case.predictor_out[0, 3] = np.inf, -np.inf
    first = np.array([[0, 0, 1, 1]])
    options = {"band": (first, 3), "activation": "sigmoid"}
    case.encoder_out[0, 0] = 1e308
    case.predictor_out[0, 3] = -1e308
    expected, grads = reference.joint_rnnt_loss_and_grad(*case, **options)
    for selects in selecting(), nullcontext():
        with selects:
            loss, found = joint_rnnt_loss_and_grad(*case, **options)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        assert_gradients_close(found, grads, np.float64, case.length)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_band_of_all_cells_changes_nothing(device, overwrite):
    case = random_logits_case(np.random.default_rng(4))
    first = np.zeros(case.logits.shape[:2], int)
    expected = rnnt_loss_and_grad(*case)
    found = rnnt_loss_and_grad(*case, band=(first, 2**70), overwrite_logits=overwrite)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_overwritten_logits_are_0_outside(device):
    rng = np.random.default_rng(5)
    case = random_logits_case(rng)
    frames, labels = case.logits.shape[1], case.target_lengths[:, None]
    first = np.minimum(np.arange(frames) * 3 // 5, np.maximum(labels - 3, 0))
    band = first, [4, 4, 5, 4]
    expected = rnnt_loss_and_grad(*case, band=band)
    assert not expected[1][0, 0, 4:].any()
    found = rnnt_loss_and_grad(*case, band=band, overwrite_logits=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_of_a_group_have_their_own_bands():
    """A workspace that stores few logits cuts a group in parts."""
    case, band = banded_joint(np.random.default_rng(6), TRANSDUCERS["regular"])
    whole = cupy_rnnt.joint_rnnt_loss_and_grad(*case, band=band)
    with pytest.raises(ValueError, match="at least") as caught:
        cupy_rnnt.joint_rnnt_loss(*case, band=band, max_workspace_bytes=0)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    with selecting():
        for more in 0, 2**12, 2**14, 2**16, 2**18:
            budget = {"max_workspace_bytes": 2 * least + more}
            loss, grads = cupy_rnnt.joint_rnnt_loss_and_grad(*case, band=band, **budget)
            np.testing.assert_allclose(loss, whole[0], rtol=1e-12)
            assert_gradients_close(grads, whole[1], np.float64, case.length)


@pytest.mark.parametrize("selects", [False, True])
@pytest.mark.parametrize("width", [4, 40])
@pytest.mark.thinned(4)
def test_the_workspace_is_as_planned(device, width, selects):
    shape = (3, 60, 30, 20, 16) if device.name == "numpy" else (2, 12, 8, 20, 16)
    case = random_joint_case(np.random.default_rng(10), *shape, dtype=np.float32)
    first = np.minimum(
        np.arange(shape[1]) * 2 // 3, np.maximum(case.target_lengths - 3, 0)[:, None]
    )
    width = np.where(case.logit_lengths < shape[1] - 1, 40, width)
    with selecting() if selects else nullcontext():
        budget = least_budget(joint_rnnt_loss_and_grad, *case, band=(first, width))
        options = {"band": (first, width), "max_workspace_bytes": budget + 2**16}
        peak, info = peak_beyond_results(joint_rnnt_loss_and_grad, *case, **options)
    assert peak <= info.workspace_bytes <= budget + 2**16


# Bands that hold no path


@settings(max_examples=300, deadline=None)
@given(transducer=transducers(), extents=EXTENTS, seed=SEEDS)
def test_a_band_is_widened_as_far_as_a_nearest_path_needs(transducer, extents, seed):
    rng, topology = np.random.default_rng(seed), transducer.topology
    band = random_bands(rng, [(T, U + 1) for T, U in extents])
    before = masks(*band, [(T, U + 1) for T, U in extents])
    after = widened(band, extents, topology)
    for inside, found, (T, U) in zip(before, after, extents, strict=True):
        paths = cells_of_paths(topology, T, U)
        if not paths or any(all(inside[cell] for cell in path) for path in paths):
            np.testing.assert_array_equal(found, inside)
            continue
        first, last = inside.argmax(axis=1), U - inside[:, ::-1].argmax(axis=1)

        def distance(path, first=first, last=last):
            return sum(max(first[t] - u, u - last[t], 0) for t, u in path)

        least = min(map(distance, paths))
        hulls = []
        for path in paths:
            low, high = first.copy(), last.copy()
            for t, u in path:
                low[t], high[t] = min(low[t], u), max(high[t], u)
            u = np.arange(U + 1)
            hulls.append((low[:, None] <= u) & (u <= high[:, None]))
        nearest = [hull for path, hull in zip(paths, hulls, strict=True) if distance(path) == least]
        assert any((found == hull).all() for hull in nearest)


@pytest.mark.parametrize("name", ["regular", "modified"])
def test_a_warning_names_the_sample(name):
    case = random_logits_case(np.random.default_rng(7), 4, 8, 4)._replace(
        logit_lengths=np.array([8, 8, 8, 8]), target_lengths=np.array([4, 4, 4, 4])
    )
    first = np.array([[0, 0, 1, 1, 2, 2, 3, 3]] * 4)
    first[1] = 0
    first[3, 2:] = 3
    text = r"the band of sample 1 holds no path and was widened, and so was that of 1 more"
    with pytest.warns(UserWarning, match=text) as caught:
        cupy_rnnt.rnnt_loss(*case, band=(first, 2), transducer=name)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_sample_that_no_path_fits_costs_infinity(device):
    """Whatever its band is; the others are as they were."""
    case = random_logits_case(np.random.default_rng(8), 3, 5, 4)._replace(
        logit_lengths=np.array([5, 2, 5]), target_lengths=np.array([3, 4, 4])
    )
    first = np.zeros((3, 5), int)
    options = {"transducer": "modified", "reduction": "none"}
    loss, grad = rnnt_loss_and_grad(*case, band=(first, 5), **options)
    expected = rnnt_loss_and_grad(*case, **options)
    assert loss[1] == np.inf
    np.testing.assert_array_equal(loss, expected[0])
    np.testing.assert_array_equal(grad, expected[1])


# Arguments

FIRST, BEYOND = np.zeros((2, 4, 7), int)
BEYOND[0, 2] = 5


def refused(error, text, band):
    case = random_logits_case(np.random.default_rng(9))
    with pytest.raises(error) as caught:
        cupy_rnnt.rnnt_loss(*case, band=band)
    assert text in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("error", "text", "band"),
    [
        (TypeError, "band is 3, but a pair (first, width) or None is needed", 3),
        (TypeError, "but a pair (first, width) or None is needed", (FIRST,)),
        (ValueError, "band[0] has shape (7,), but (4, 7) is needed", (FIRST[0], 2)),
        (ValueError, "band[1] has shape (3,), but (4,) is needed", (FIRST, [2, 2, 2])),
        (TypeError, "band[0] has dtype float64, but an integer dtype", (FIRST * 1.0, 2)),
        (TypeError, "band[1] is 2.5, but an integer is needed", (FIRST, 2.5)),
        (TypeError, "band[1] has dtype float64", (FIRST, np.full(4, 2.0))),
        (ValueError, "band[1] is 0 in sample 0, but it must be at least 1", (FIRST, 0)),
        (ValueError, "band[1] is -1 in sample 2", (FIRST, [1, 1, -1, 1])),
        (ValueError, "band[0][0, 2] is 5, but it must be between 0 and 4", (BEYOND, 2)),
        (ValueError, "band[0][0, 0] is -1, but it must be between 0 and 4", (FIRST - 1, 2)),
    ],
)  # fmt: skip
def test_wrong_bands(error, text, band):
    refused(error, text, band)


def test_bands_of_any_kind(device):
    """Lists and arrays of any integer type, on the host or not; padding is not looked at."""
    case = random_logits_case(np.random.default_rng(9))
    first = np.minimum(np.arange(7) // 2, case.target_lengths[:, None])
    widths = np.full(4, 6)
    expected = rnnt_loss_and_grad(*case, band=(first, 6))
    padded = np.where(np.arange(7) < case.logit_lengths[:, None], first, -(10**9))
    for band in (
        (first.tolist(), 6),
        (first.astype(np.uint8), widths.astype(np.int16)),
        (padded, np.int64(6)),
        [first, widths.tolist()],
    ):
        for one, other in zip(rnnt_loss_and_grad(*case, band=band), expected, strict=True):
            np.testing.assert_array_equal(one, other)
