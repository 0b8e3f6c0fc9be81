"""Arrays that are accepted as they are: padding, memory layouts, integer types, lists."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

import cupy_rnnt

from ..helpers import random_joint_case, random_logits_case
from ..tolerances import DTYPES
from .cases import (
    LAYOUTS,
    LENGTHS,
    OF_JOINT,
    OF_LOGITS,
    B,
    U,
    V,
    arguments,
    array_names,
    assert_same_bits,
    every_function,
    flat,
    float_names,
    named,
    reversed_strides,
    strided,
    unaligned,
)


@every_function
@pytest.mark.parametrize("value", [-1, V - 1, V, 2**40, -(2**63)])
def test_padding_of_targets_may_hold_anything(function, value):
    given = arguments(function)
    padding = np.arange(U) >= given["target_lengths"][:, None]
    assert padding.any()
    targets = np.where(padding, value, given["targets"])
    assert_same_bits(function(**given | {"targets": targets}), function(**given))


@every_function
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_any_memory_layout_gives_the_same(function, layout, dtype):
    given = arguments(function)
    given |= {name: given[name].astype(dtype) for name in float_names(function)}
    wanted = function(**given)
    for name in array_names(function):
        result = function(**given | {name: layout(given[name])})
        if name == "weight":  # BLAS may take another way through it
            close = 1e-5 if dtype != np.float64 else 1e-13
            if dtype == np.float16:  # one rounding of the result may then go the other way
                close = 1e-3
            for one, other in zip(flat(result), flat(wanted), strict=True):
                np.testing.assert_allclose(one, other, rtol=close, atol=close)
        else:
            assert_same_bits(result, wanted)


@pytest.mark.parametrize("layout", [np.asfortranarray, strided, reversed_strides, unaligned])
def test_logits_of_any_layout_are_overwritten(layout):
    given = arguments(cupy_rnnt.rnnt_loss_and_grad)
    wanted = cupy_rnnt.rnnt_loss_and_grad(**given)
    logits = layout(given.pop("logits"))
    result = cupy_rnnt.rnnt_loss_and_grad(logits, **given, overwrite_logits=True)
    assert result[1] is logits
    assert_same_bits(result, wanted)


@every_function
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u8"])
def test_any_integer_dtype(function, dtype):
    given = arguments(function)
    wanted = function(**given)
    for name in ("targets", *LENGTHS):
        assert_same_bits(function(**given | {name: given[name].astype(dtype)}), wanted)


@every_function
def test_small_integer_dtypes_take_large_extents(function):
    """300 frames and labels, whose comparison with 8-bit lengths must not wrap around."""
    make = random_joint_case if function in OF_JOINT else random_logits_case
    case = make(np.random.default_rng(0), 2, 300, 290, 3)
    given = case._asdict() | {
        "logit_lengths": np.array([5, 127]),
        "target_lengths": np.array([3, 2]),
    }
    wanted = function(**given)
    for dtype in "i1", "u1":
        narrow = {name: given[name].astype(dtype) for name in LENGTHS}
        assert_same_bits(function(**given | narrow), wanted)


@every_function
@pytest.mark.parametrize("kind", [list, tuple])
def test_lists(function, kind):
    given = arguments(function)
    wanted = function(**given)
    for name in array_names(function):
        assert_same_bits(function(**given | {name: kind(given[name].tolist())}), wanted)


@every_function
def test_no_label_at_all(function):
    given = arguments(function)
    name = "predictor_out" if "predictor_out" in given else "logits"
    axis = 1 if name == "predictor_out" else 2
    given |= {name: np.take(given[name], [0], axis=axis), "target_lengths": [0] * B}
    wanted = function(**given | {"targets": np.zeros((B, 0), np.int32)})
    for targets in [[]] * B, np.zeros((B, 0), np.uint8):
        assert_same_bits(function(**given | {"targets": targets}), wanted)


# Log-probabilities in the place of logits


@named(OF_LOGITS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_log_probabilities_are_noticed(function, dtype):
    given = arguments(function)
    given["logits"] = log_softmax(given["logits"], axis=-1).astype(dtype)
    with pytest.warns(UserWarning, match="fused_log_softmax=False"):
        warned = function(**given)
    as_they_are = function(**given, fused_log_softmax=False)
    close = 1e-12 if dtype == np.float64 else 1e-5
    assert flat(warned)[0] == pytest.approx(flat(as_they_are)[0], rel=close)
    # One row that is not normalised shows that the others are so by chance.
    given["logits"][0, 0, 0] += 0.01
    function(**given)


NO_LOG_PROBS = "the probabilities of blank and label add up to more than 1"


@named(OF_LOGITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_probabilities_that_cannot_be_are_noticed(function, dtype):
    """Those of one cell do: 0.6 and 0.6; the label may be the only one, or there may be none."""
    given = arguments(function)
    log_probs = log_softmax(given["logits"], axis=-1).astype(dtype)
    blank, label = given["blank"], given["targets"][0, 2]
    changes = [
        {(0, 1, 2, blank): np.log(0.6), (0, 1, 2, label): np.log(0.6)},
        {(0, 1, 2, label): np.log(1.2)},
        {(1, 1, 0, blank): np.log(1.2)},  # a sample without labels
    ]
    for change in changes:
        wrong = log_probs.copy()
        for place, value in change.items():
            wrong[place] = value
        with pytest.warns(UserWarning, match=NO_LOG_PROBS):
            function(**given | {"logits": wrong}, fused_log_softmax=False)


@named(OF_LOGITS)
def test_logits_passed_as_log_probabilities_are_noticed(function):
    given = arguments(function)
    given["logits"] = 3 * given["logits"] + 4
    with pytest.warns(UserWarning, match=NO_LOG_PROBS):
        result = function(**given, fused_log_softmax=False)
    assert flat(result)[0] < 0


@named(OF_LOGITS)
@pytest.mark.parametrize("vocabulary", [2, 9, 2000])
@pytest.mark.parametrize("blank", [0, -1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounded_log_probabilities_are_none_to_warn_of(function, dtype, blank, vocabulary):
    """Rounded to the dtype, when they had an offset, or to float32 before float64; label 0, which
    stands where no label is left, may be the blank; padding may hold anything."""
    case = random_logits_case(np.random.default_rng(0), vocabulary=vocabulary, blank=blank, scale=8)
    with_offset = (case.logits + 10).astype(dtype).astype(np.float32)
    log_probs = log_softmax(with_offset, axis=-1).astype(dtype)
    for b, (frames, labels) in enumerate(zip(case.logit_lengths, case.target_lengths, strict=True)):
        log_probs[b, frames:] = log_probs[b, :, labels + 1 :] = 5
    result = function(*case._replace(logits=log_probs), fused_log_softmax=False, reduction="sum")
    assert np.isfinite(flat(result)[0])
