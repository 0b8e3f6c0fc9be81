"""Bounds of log-probs from four dot products a cell, against log-probs in float64."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st

from cupy_rnnt.engine import tangents
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS

from ...device_calls import examples, operations
from ...helpers import random_joint_case
from ...tolerances import DTYPES, unit_roundoff
from .cases import bounds_of, check_bounds, exact_log_probs
from .joints import any_case, with_padding

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_arithmetic = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@examples(
    250,
    8,
    shape=st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(0, 9), st.integers(2, 20)),
    hidden=st.sampled_from([1, 2, 8, 16, 65]),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(list(ACTIVATIONS)),
    blank=st.integers(-2, 1),
    bias=st.booleans(),
    rows=st.sampled_from([1, 3, 7, 200]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bounds_hold(device, shape, hidden, dtype, activation, blank, bias, rows, seed):
    rng = np.random.default_rng(seed)
    case = any_case(rng, *shape, hidden, dtype=dtype, blank=blank, bias=bias)
    check_bounds(case, activation, rows)


@every_activation
@pytest.mark.parametrize("labels", [0, 1])
@pytest.mark.parametrize("frames", [1, 2])
def test_least_lattices(device, frames, labels, activation):
    """Of one or two frames, no or one label, and a vocabulary of two."""
    case = random_joint_case(np.random.default_rng(0), 3, frames, labels, 2, 3)
    case = case._replace(logit_lengths=np.full(3, frames), target_lengths=np.full(3, labels))
    check_bounds(case, activation)


@every_activation
@every_arithmetic
@pytest.mark.parametrize("shape", [(1, 6), (7, 0)], ids=["one frame", "no label"])
def test_bounds_are_exact_at_their_references(device, shape, dtype, activation):
    """With one frame, the reference of a prefix is its only cell, and with no label that of a frame
    is: a tangent is the function itself where it touches. Rounding takes a bound to either side of
    the truth by no more than its slack, which is then added."""
    frames, labels = shape
    rng = np.random.default_rng(1)
    case = random_joint_case(rng, 2, frames, labels, 12, 20, dtype=dtype)
    case = case._replace(logit_lengths=np.full(2, frames), target_lengths=np.full(2, labels))
    bounds = check_bounds(case, activation)
    for (scores, slack), exact in zip(bounds, exact_log_probs(case, activation), strict=True):
        assert slack < (0.01 if dtype == np.float32 else 1e-10)
        assert (scores <= exact.scores + 2 * slack).all()


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 0.05), (np.float64, 1e-10)])
def test_slack_is_small_and_enough_for_a_usual_joint(device, dtype, most):
    """It is added to every log-prob, and even 0.05 nats cost but a few cells in a hundred. It
    bounds each of many roundings, which as a random walk stay far below that."""
    case = random_joint_case(
        np.random.default_rng(2), 2, 9, 6, 1024, 512, dtype=dtype, scale=0.05 * np.sqrt(512)
    )
    case = case._replace(logit_lengths=np.array([9, 4]), target_lengths=np.array([6, 3]))
    for (scores, slack), exact in zip(check_bounds(case), exact_log_probs(case), strict=True):
        assert 0 < slack < most
        some = exact.scores > -np.inf
        below = (exact.scores[some] - scores[some]).max() + slack
        assert below < slack / 4


@every_arithmetic
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_exponentials_of_the_summands_give_what_the_activation_does(device, activation, dtype):
    """Both are off by at most the slack they include."""
    case = any_case(np.random.default_rng(3), 3, 9, 6, 11, 16, dtype=dtype)
    by_exponentials = bounds_of(case, activation)
    with mock.patch.object(tangents, "_LARGEST_EXPONENT", 0.0):
        directly = bounds_of(case, activation)
    for one, other in zip(by_exponentials, directly, strict=True):
        assert one.slack == other.slack
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=2 * one.slack)


@every_arithmetic
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("size", [19.9, 20.1, 60.0, 1000.0])
def test_large_inputs(device, size, activation, dtype):
    """Samples whose exponentials would overflow go without, each for itself: of large outputs of
    the encoder, of the predictor, of both (which may cancel), and of neither."""
    rng = np.random.default_rng(4)
    case = random_joint_case(rng, 4, 9, 6, 11, 16, dtype=dtype, scale=3.0)
    encoder_out, predictor_out = case.encoder_out.copy(), case.predictor_out.copy()
    encoder_out[0, 3, :8] = size
    predictor_out[1, 0] = -size
    encoder_out[2] += size
    predictor_out[2] -= size
    case = case._replace(encoder_out=encoder_out, predictor_out=predictor_out)
    assert all(bounds.slack < np.inf for bounds in check_bounds(case, activation))


@every_activation
def test_size_of_each_sample_counts_for_itself(device, activation):
    """Without a bounded activation slack follows the size of the inputs, of the sample alone."""
    case = random_joint_case(np.random.default_rng(5), 3, 9, 6, 11, 16, dtype=np.float32)
    alone = [bounds.slack for bounds in bounds_of(case, activation)]
    encoder_out = case.encoder_out.copy()
    encoder_out[1] *= 30
    slacks = [b.slack for b in check_bounds(case._replace(encoder_out=encoder_out), activation)]
    assert [slacks[0], slacks[2]] == [alone[0], alone[2]]
    assert slacks[1] == alone[1] if activation in ("tanh", "sigmoid") else slacks[1] > 5 * alone[1]


@every_arithmetic
@pytest.mark.parametrize("left", ["targets", "one label"])
def test_masked_vocabulary(device, left, dtype):
    """Entries of bias -inf have probability 0, and none is left to the others."""
    case = random_joint_case(np.random.default_rng(6), 3, 9, 6, 12, 8, dtype=dtype, blank=0)
    bias, targets = case.bias.copy(), case.targets
    kept = np.unique(targets) if left == "targets" else targets[0, :1]
    masked = np.setdiff1d(np.arange(1, 12), kept)
    assert masked.size
    bias[masked] = -np.inf
    case = case._replace(bias=bias)
    for bounds, exact in zip(check_bounds(case), exact_log_probs(case), strict=True):
        np.testing.assert_array_equal(bounds.scores[1] == -np.inf, exact.scores[1] == -np.inf)


def test_masked_blank(device):
    case = random_joint_case(np.random.default_rng(7), blank=2)
    bias = case.bias.copy()
    bias[2] = -np.inf
    for bounds in check_bounds(case._replace(bias=bias)):
        assert (bounds.scores[0] == -np.inf).all()


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_padding_never_matters(device, rows):
    case = random_joint_case(np.random.default_rng(8), 5, 8, 6, 10, 7)
    for one, other in zip(bounds_of(case), bounds_of(with_padding(case, np.nan)), strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("name", ["encoder_out", "predictor_out", "weight", "bias"])
def test_what_is_not_a_number_bounds_nothing(device, name):
    """Where a NaN goes into a bound it is 0, above every log-prob, and that of a sample stays
    there."""
    case = random_joint_case(np.random.default_rng(9), 3, 9, 6, 12, 8)
    case = case._replace(logit_lengths=np.full(3, 9), target_lengths=np.full(3, 6))
    healthy = bounds_of(case)
    array = getattr(case, name).copy()
    array[(1, 4, 3)[: array.ndim]] = np.nan
    for b, bounds in enumerate(bounds_of(case._replace(**{name: array}))):
        bad = name in ("weight", "bias") or b == 1
        before = healthy[b].scores[..., :-1]
        expected, close = (np.zeros_like(before), 0) if bad else (before, bounds.slack)
        np.testing.assert_allclose(bounds.scores[..., :-1], expected, rtol=0, atol=close)


def test_slack_grows_with_the_unit_roundoff(device):
    """It is there for rounding only, and so is in proportion to it, but for sums over the
    vocabulary in float64, which count there alone. Where a hidden vector is two of a half type, of
    tanh, they leave the square of its round-off of each 1."""
    cases = [
        random_joint_case(np.random.default_rng(10), 1, 6, 4, 9, 200, dtype=dtype)
        for dtype in DTYPES
    ]
    left = [
        2 * abs(case.weight.astype(float)).sum(axis=1).max() * unit_roundoff(dtype) ** 2
        if operations().factor_dtype(dtype)
        else 0.0
        for case, dtype in zip(cases, DTYPES, strict=True)
    ]
    slacks = [bounds_of(case)[0].slack - more for case, more in zip(cases, left, strict=True)]
    ratio = unit_roundoff(np.float32) / unit_roundoff(np.float64)
    np.testing.assert_allclose(slacks[1:], slacks[0] * ratio, rtol=0.05)
