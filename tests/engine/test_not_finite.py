"""Numbers that are not finite, in the inputs of the engine and in its costs."""

from contextlib import nullcontext

import numpy as np
import pytest

from cupy_rnnt import reference
from cupy_rnnt.options import REDUCTIONS
from cupy_rnnt.reference.dropout import dropout_factors

from ..device_calls import joint_rnnt_loss_and_grad, rnnt_loss_and_grad
from ..helpers import divisor, random_joint_case, random_logits_case
from ..tolerances import assert_costs_close, assert_gradient_close, assert_gradients_close
from ..transducers.cases import HAT
from .selection.cases import selecting


@pytest.mark.parametrize(
    ("bad", "entries"),
    [
        (np.nan, slice(None)),
        (np.inf, slice(None)),
        (-np.inf, slice(None)),  # a row of them has no softmax
        (np.nan, 3),
        (np.inf, 3),
        (np.inf, -1),
    ],
)
def test_a_sample_that_is_not_finite_touches_no_other(device, bad, entries):
    case = random_logits_case(np.random.default_rng(1), 4, 7, 5, 9)
    _, expected = reference.rnnt_loss_and_grad(*case, reduction="sum")
    logits = case.logits.copy()
    logits[1, 3, 0, entries] = bad
    costs, grad = rnnt_loss_and_grad(logits, *case[1:], reduction="none")
    textbook = reference.rnnt_loss(logits, *case[1:], reduction="none")
    np.testing.assert_array_equal(np.isnan(costs), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(textbook), np.isnan(costs))
    assert not grad[1].any()
    np.testing.assert_allclose(np.delete(grad, 1, 0), np.delete(expected, 1, 0), atol=1e-12)


def test_joint_sample_that_is_not_finite_touches_no_other(device):
    case = random_joint_case(np.random.default_rng(1))
    weights = np.array([1.0, 0.0, 1.0, 1.0])
    _, expected = reference.joint_rnnt_loss_and_grad(*case, cost_weights=weights)
    encoder_out = case.encoder_out.copy()
    encoder_out[1, 2, 3] = np.nan
    costs, gradients = joint_rnnt_loss_and_grad(encoder_out, *case[1:], reduction="none")
    np.testing.assert_array_equal(np.isnan(costs), [False, True, False, False])
    assert_gradients_close(gradients, expected, np.float64, case.length)


def test_a_nan_that_dropout_drops(device):
    """A dropped value is multiplied by 0, and NaN stays NaN."""
    case = random_joint_case(np.random.default_rng(1), 2, 2, 1, hidden=64)
    dropped = np.flatnonzero(dropout_factors(0.5, 3, 0, 0, 1, 64)[0] == 0)
    for selects in selecting(), nullcontext():
        encoder_out = case.encoder_out.copy()
        encoder_out[0, 0, dropped[0]] = np.nan
        with selects:
            costs, gradients = joint_rnnt_loss_and_grad(
                encoder_out, *case[1:], dropout=0.5, seed=3, reduction="none"
            )
        np.testing.assert_array_equal(np.isnan(costs), [True, False])
        assert not any(np.isnan(gradient).any() for gradient in gradients)


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_probability_zero(device, zero_infinity):
    case = random_logits_case(np.random.default_rng(2), 3, 6, 4, 8)
    logits = case.logits.copy()
    logits[0, :, :, case.targets[0, 1]] = -np.inf
    costs, grad = rnnt_loss_and_grad(
        logits, *case[1:], reduction="none", zero_infinity=zero_infinity
    )
    assert costs[0] == (0.0 if zero_infinity else np.inf)
    assert np.isfinite(costs[1:]).all()
    assert not grad[0].any()
    assert grad[1].any()


def masked_twice(case):
    """The case with a first sample whose path must take a label twice that is masked by the least
    finite number."""
    targets = np.where(case.targets == 3, 4, case.targets)
    targets[0, :2] = 3
    least = np.finfo(case[0].dtype).min
    case = case._replace(targets=targets)
    if "logits" in case._fields:
        logits = case.logits.copy()
        logits[0, ..., 3] = least
        return case._replace(logits=logits)
    bias = case.bias.copy()
    bias[3] = least
    return case._replace(bias=bias)


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["logits", "joint"])
def test_a_cost_beyond_float32_is_infinite(device, kind, reduction, zero_infinity):
    """Although the lattice, in float64, holds it: it is the reported cost that has no gradient."""
    make = random_joint_case if kind == "joint" else random_logits_case
    call = joint_rnnt_loss_and_grad if kind == "joint" else rnnt_loss_and_grad
    case = masked_twice(make(np.random.default_rng(2), dtype=np.float32))
    share = 1 / divisor(reduction, case.target_lengths)
    weights = np.full(4, share)
    without_first = {"cost_weights": weights * [0, 1, 1, 1]}
    textbook = getattr(reference, call.__name__)
    expected, wanted = textbook(*case, reduction="none", **without_first)
    loss, grad, info = call(
        *case, reduction=reduction, zero_infinity=zero_infinity, return_info=True
    )
    costs = np.where(np.arange(4) > 0, expected, 0.0 if zero_infinity else np.inf)
    assert np.finfo(np.float32).max < expected[0] < np.inf
    whole = costs if reduction == "none" else costs.sum()
    assert_costs_close(loss, whole * share, np.float32, case.length)
    assert info.kept <= info.cells - case.logit_lengths[0] * (case.target_lengths[0] + 1)
    if kind == "joint":
        assert_gradients_close(grad, wanted, np.float32, case.length)
        assert not grad.encoder_out[0].any()
    else:
        assert_gradient_close(grad, wanted, np.float32, case.length)
        assert not grad[0].any()


def test_a_cost_that_float64_holds_has_a_gradient(device):
    """The same mask, and no reason to leave out the sample."""
    case = random_logits_case(np.random.default_rng(2))
    case = masked_twice(case._replace(logits=case.logits.astype(np.float32)))
    case = case._replace(logits=case.logits.astype(np.float64))
    costs, grad = rnnt_loss_and_grad(*case, reduction="none", zero_infinity=True)
    expected, _ = reference.rnnt_loss_and_grad(*case, reduction="none")
    assert_costs_close(costs, expected, np.float64, case.length)
    assert costs[0] > np.finfo(np.float32).max
    assert grad[0].any()


def test_a_sum_beyond_float32_is_infinite_and_has_a_gradient(device):
    """As every cost is finite."""
    case = random_logits_case(np.random.default_rng(2), dtype=np.float32)
    logits = case.logits.copy()
    logits[:2, 0, 0], logits[:2, 0, 0, 0] = -2e38, 0.0
    targets = np.where(case.targets == 0, 1, case.targets)
    case = case._replace(logits=logits, targets=targets)
    costs, _ = rnnt_loss_and_grad(*case, reduction="none")
    loss, grad = rnnt_loss_and_grad(*case, reduction="sum", zero_infinity=True)
    assert (costs < np.inf).all()
    assert loss == np.inf
    assert all(one.any() for one in grad)


def test_masked_vocabulary_gets_no_gradient(device):
    case = random_joint_case(np.random.default_rng(4), vocabulary=12)
    bias = case.bias.copy()
    masked = np.setdiff1d(np.arange(11), case.targets)
    bias[masked] = -np.inf
    case = case._replace(bias=bias)
    loss, gradients = joint_rnnt_loss_and_grad(*case)
    expected_loss, expected = reference.joint_rnnt_loss_and_grad(*case)
    assert len(masked)
    assert not gradients.weight[masked].any()
    assert not gradients.bias[masked].any()
    assert_costs_close(loss, expected_loss, np.float64, case.length)
    assert_gradients_close(gradients, expected, np.float64, case.length)


@pytest.mark.parametrize("clamp", [-1.0, 0.5])
@pytest.mark.parametrize("kind", ["logits", "overwritten logits", "joint"])
def test_gradients_that_overflow_float16_are_inf(device, kind, clamp):
    """As in the first steps under a loss scale. Whatever is made of floating point errors
    elsewhere, no warning, and no error."""
    make = random_joint_case if kind == "joint" else random_logits_case
    call = joint_rnnt_loss_and_grad if kind == "joint" else rnnt_loss_and_grad
    case = make(np.random.default_rng(4), dtype=np.float16)
    options = {"clamp": clamp, "cost_weights": np.array([1e7, -1e7, 3e6, 2e7])}
    own = {"overwrite_logits": True} if kind == "overwritten logits" else {}
    copy = case._replace(**{case._fields[0]: case[0].copy()})
    with np.errstate(all="raise"):
        loss, grad = call(*copy, **options, **own)
    expected_loss, expected = getattr(reference, call.__name__)(*case, **options)
    assert_costs_close(loss, expected_loss, np.float16, case.length)
    for one, other in zip(grad, expected, strict=True):
        large = abs(other) > 1.01 * float(np.finfo(np.float16).max)
        assert large.any()
        np.testing.assert_array_equal(one[large], np.sign(other[large]) * np.inf)
        assert not np.isnan(one).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_labels_that_are_not_read_have_no_gradient(device, bad):
    """Behind the last label, the head of the labels has no score, and its sum may be anything."""
    logits = np.random.default_rng(0).standard_normal((2, 3, 2, 4))
    logits[0, 1, 1, :2] = bad
    arguments = logits, [[1], [0]], [3, 3], [1, 1]
    costs, grad = rnnt_loss_and_grad(*arguments, reduction="none", transducer=HAT)
    expected = reference.rnnt_loss_and_grad(*arguments, reduction="none", transducer=HAT)
    assert np.isfinite(costs).all()
    np.testing.assert_allclose(costs, expected[0], rtol=1e-12)
    np.testing.assert_allclose(grad, expected[1], rtol=0, atol=1e-12)


def test_labels_that_are_not_read_have_no_part_in_gradients_of_a_joint(device):
    """Of one sample they overflow in float32; its blank and the other sample do not."""
    encoder_out = np.array([[[1e30, 0]], [[0.5, 0]]], np.float32)
    weight = np.array([[1e10, 0], [-1, 1], [0, 1]], np.float32)
    inputs = encoder_out, np.zeros((2, 1, 2), np.float32), weight, None
    options = {"activation": "identity", "reduction": "sum", "transducer": HAT}
    integers = np.zeros((2, 0), int), [1, 1], [0, 0]
    loss, gradients = joint_rnnt_loss_and_grad(*inputs, *integers, **options)
    expected_loss, expected = reference.joint_rnnt_loss_and_grad(*inputs, *integers, **options)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for actual, desired in zip(gradients[:3], expected[:3], strict=True):
        scale = np.abs(desired).max()
        np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-6 * max(scale, 1.0))
