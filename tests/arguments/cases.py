"""Legal arguments of the four NumPy functions, and what spoils or disguises them."""

from __future__ import annotations

import numpy as np
import pytest

import cupy_rnnt

from ..helpers import random_joint_case, random_logits_case

OF_LOGITS = cupy_rnnt.rnnt_loss, cupy_rnnt.rnnt_loss_and_grad
OF_JOINT = cupy_rnnt.joint_rnnt_loss, cupy_rnnt.joint_rnnt_loss_and_grad
WITH_GRAD = cupy_rnnt.rnnt_loss_and_grad, cupy_rnnt.joint_rnnt_loss_and_grad
LENGTHS = "logit_lengths", "target_lengths"
B, T, U, V, H = 4, 7, 5, 9, 11
AXES = {
    "logits": ("B", "T", "U + 1", "V"),
    "encoder_out": ("B", "T", "H"),
    "predictor_out": ("B", "U + 1", "H"),
    "weight": ("V", "H"),
    "bias": ("V",),
}


def named(functions):
    return pytest.mark.parametrize("function", functions, ids=lambda function: function.__name__)


every_function = named(OF_LOGITS + OF_JOINT)
joint_functions = named(OF_JOINT)
functions_with_grad = named(WITH_GRAD)


def float_names(function):
    if function in OF_JOINT:
        return "encoder_out", "predictor_out", "weight", "bias"
    return ("logits",)


def array_names(function):
    return *float_names(function), "targets", *LENGTHS


def arguments(function, of=0, **changes):
    """Legal arguments by name, but for the changes."""
    make = random_joint_case if function in OF_JOINT else random_logits_case
    return make(np.random.default_rng(of), B, T, U, V)._asdict() | changes


def flat(result):
    """Every array of a result, gradients of a joint network included."""
    if isinstance(result, tuple):
        return [array for part in result for array in flat(part)]
    return [np.asarray(result)]


def assert_same_bits(actual, desired):
    for one, other in zip(flat(actual), flat(desired), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def refused(function, error, *words, **changes):
    """The call raises, the message holds all the words, and the arguments are as they were; so
    also if the logits were to be overwritten."""
    ways = [{}]
    if function is cupy_rnnt.rnnt_loss_and_grad and "overwrite_logits" not in changes:
        ways.append({"overwrite_logits": True})
    for way in ways:
        given = arguments(function, **changes) | way
        before = {name: array.copy() for name, array in arrays_of(given)}
        with pytest.raises(error) as caught:
            function(**given)
        assert type(caught.value) is error  # not one of NumPy's own kinds
        if isinstance(given.get("logits"), list):
            words = []  # what cannot be overwritten may be refused for that
        for word in words:
            assert word in str(caught.value)
        for name, array in arrays_of(given):
            assert array.tobytes() == before[name].tobytes(), name


def arrays_of(given):
    return [(name, value) for name, value in given.items() if isinstance(value, np.ndarray)]


def changed(array, index, value, dtype=None):
    result = array.astype(dtype or array.dtype)
    result[index] = value
    return result


# Memory layouts


def strided(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


def reversed_strides(array):
    return np.flip(np.flip(array).copy())


def read_only(array):
    result = array.copy()
    result.flags.writeable = False
    return result


def unaligned(array):
    result = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    result[...] = array
    assert not result.flags.aligned
    return result


def middle_of_more(array):
    return np.pad(array, 1, mode="wrap")[(slice(1, -1),) * array.ndim]


LAYOUTS = np.asfortranarray, strided, reversed_strides, read_only, unaligned, middle_of_more
