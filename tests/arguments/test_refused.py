"""Arrays that are refused: their shapes, types, lengths and targets, and what the error says."""

from __future__ import annotations

import numpy as np
import pytest

from .cases import (
    AXES,
    LENGTHS,
    B,
    H,
    T,
    U,
    V,
    arguments,
    array_names,
    changed,
    every_function,
    float_names,
    joint_functions,
    refused,
)

# Shapes


@every_function
def test_wrong_rank(function):
    for name in array_names(function):
        value = arguments(function)[name]
        for wrong in value[None], np.asarray(value[0]):
            refused(function, ValueError, name, str(wrong.shape), "is needed", **{name: wrong})


WRONG_SHAPES = {  # by argument: an extent that disagrees with the other arguments, and the shape
    "predictor_out": [((B - 1, U + 1, H), (B, U + 1, H)), ((B, U + 1, H + 1), (B, U + 1, H))],
    "weight": [((V, H - 1), (V, H)), ((V, 1), (V, H))],
    "bias": [((V + 1,), (V,)), ((1,), (V,))],
    "targets": [((B + 1, U), (B, U)), ((B, U + 2), (B, U)), ((1, U), (B, U)), ((U, B), (B, U))],
    "logit_lengths": [((B - 1,), (B,)), ((1,), (B,))],
    "target_lengths": [((B + 1,), (B,)), ((U + 1,), (B,))],
}


@every_function
def test_shapes_that_disagree(function):
    for name in set(array_names(function)) & set(WRONG_SHAPES):
        for shape, needed in WRONG_SHAPES[name]:
            wrong = np.ones(shape, arguments(function)[name].dtype)
            words = f"{name} has shape {shape}", f"{needed} is needed"
            refused(function, ValueError, *words, **{name: wrong})


def swapped(array):
    """With the first two axes exchanged."""
    return np.ascontiguousarray(array.swapaxes(0, 1))


@every_function
def test_as_many_positions_as_labels(function):
    """Not one more: it is not the targets that are wrong."""
    name, axis = ("logits", 2) if "logits" in array_names(function) else ("predictor_out", 1)
    whole = arguments(function)[name]
    short = np.delete(whole, 0, axis)
    words = f"{name} has shape {short.shape}, but {whole.shape} is needed", "(4, 5)", "U + 1"
    refused(function, ValueError, *words, **{name: short})
    # What shows it are targets alone, which may also be lists.
    targets = arguments(function)["targets"].tolist()
    refused(function, ValueError, *words, **{name: short, "targets": targets})


@every_function
def test_time_major(function):
    """One argument or all of them, with as many positions as there should be or one too few."""
    first, *others = (name for name in float_names(function) if name not in ("weight", "bias"))
    whole = arguments(function)
    words = f"{first} has shape {swapped(whole[first]).shape}", f"{whole[first].shape} is needed"
    reason = "samples are the first axis"
    refused(function, ValueError, *words, reason, **{first: swapped(whole[first])})
    all_swapped = {name: swapped(whole[name]) for name in (first, *others)}
    refused(function, ValueError, *words, reason, **all_swapped)
    for name, axis in [("logits", 2)] if first == "logits" else [("predictor_out", 1)]:
        words = f"{name} has shape {swapped(whole[name]).shape}", f"{whole[name].shape} is needed"
        refused(function, ValueError, *words, reason, **{name: swapped(whole[name])})
        short = swapped(np.delete(whole[name], 0, axis))
        words = f"{name} has shape {short.shape}", f"{whole[name].shape} is needed", "U + 1"
        refused(function, ValueError, *words, reason, **{name: short})


@joint_functions
def test_a_transposed_weight(function):
    weight = np.ascontiguousarray(arguments(function)["weight"].T)
    words = f"weight has shape ({H}, {V}), but ({V}, {H}) is needed", "Linear", "transpose"
    refused(function, ValueError, *words, weight=weight)


@every_function
def test_empty_axes(function):
    for name in float_names(function):
        value = arguments(function)[name]
        for axis, letter in enumerate(AXES[name]):
            empty = np.take(value, [], axis=axis)
            words = f"{name} has shape {empty.shape}", f"axis {letter} is empty"
            refused(function, ValueError, *words, **{name: empty})


@every_function
def test_an_empty_batch_has_no_loss(function):
    given = arguments(function)
    empty = {name: given[name][:0] for name in array_names(function)}
    empty |= {name: given[name] for name in ("weight", "bias") if name in given}
    refused(function, ValueError, "axis B is empty", **empty)


@every_function
def test_ragged_lists_are_named(function):
    for name in ("targets", *LENGTHS):
        refused(function, ValueError, name, **{name: [[1, 2], [3]]})


# Types


@every_function
@pytest.mark.parametrize("dtype", ["i4", "u1", "c8", "c16", "?", "O", "S4", "g", ">f4", ">f8"])
def test_wrong_dtype_of_floats(function, dtype):
    for name in float_names(function):
        wrong = arguments(function)[name].astype(dtype)
        if wrong.dtype == np.float64:  # where long double is no wider
            continue
        words = (f"{name} has dtype", "native byte order" if dtype[0] == ">" else "float32")
        refused(function, TypeError, *words, **{name: wrong})


@every_function
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "?", "O", "S4", "m8[s]"])
def test_wrong_dtype_of_integers(function, dtype):
    for name in ("targets", *LENGTHS):
        wrong = arguments(function)[name].astype(dtype)
        refused(function, TypeError, f"{name} has dtype", "integer", **{name: wrong})


@joint_functions
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_mixed_dtypes(function, dtype):
    for name in "predictor_out", "weight", "bias":
        wrong = arguments(function)[name].astype(dtype)
        words = f"{name} has dtype {wrong.dtype}", "float64"
        refused(function, TypeError, *words, **{name: wrong})


@every_function
@pytest.mark.parametrize("wrong", [None, 3, "text", {1: 2}, object()], ids=type)
def test_what_is_no_array(function, wrong):
    for name in array_names(function):
        if name != "bias" or wrong is not None:
            word = f"{name} is a {type(wrong).__module__}.{type(wrong).__name__}"
            refused(function, TypeError, word, **{name: wrong})


@every_function
def test_masked_arrays(function):
    for name in array_names(function):
        masked = np.ma.masked_array(arguments(function)[name])
        refused(function, TypeError, f"{name} is a", "MaskedArray", **{name: masked})


# Lengths


@every_function
@pytest.mark.parametrize(
    ("name", "low", "high"), [("logit_lengths", 1, T), ("target_lengths", 0, U)]
)
def test_lengths_out_of_range(function, name, low, high):
    lengths = arguments(function)[name]
    for value in low - 1, high + 1, -high, np.iinfo(np.int64).min, np.iinfo(np.int64).max:
        for b in 0, 2:
            words = f"{name}[{b}] is {value},", f"between {low} and {high}"
            refused(function, ValueError, *words, **{name: changed(lengths, b, value)})
    for dtype, value in ("u8", 2**64 - 1), ("u8", 2**63), ("u1", 255), ("i1", -128):
        wrong = changed(lengths, 1, value, dtype)
        refused(function, ValueError, f"{name}[1] is {value},", **{name: wrong})
    refused(function, ValueError, f"{name}[3]", **{name: [*lengths[:3].tolist(), 2**40]})
    # NumPy makes no integers of these.
    for value in 2**63, 2**64, 2**70, -(2**63) - 1, -(2**64):
        words = f"{name}[3] is {value}, but it must be between -2**63 and 2**63 - 1"
        refused(function, ValueError, words, **{name: [*lengths[:3].tolist(), value]})


@every_function
def test_no_frames_but_labels_or_none(function):
    for labels in 0, 2:
        target_lengths = np.full(B, labels)
        for wrong in np.zeros(B, int), np.array([1, 0, 1, 1]):
            refused(
                function,
                ValueError,
                "is 0, but it must be between 1",
                logit_lengths=wrong,
                target_lengths=target_lengths,
            )


# Targets


@every_function
@pytest.mark.parametrize("value", [-1, V, V + 100, -V, -(2**40)])
def test_targets_out_of_range(function, value):
    wrong = changed(arguments(function)["targets"], (0, 2), value)
    words = f"targets[0, 2] is {value},", f"{V} entries"
    refused(function, ValueError, *words, targets=wrong)
    refused(function, ValueError, *words, targets=wrong.tolist())


@every_function
def test_targets_in_lists_beyond_any_integer(function):
    wrong = arguments(function)["targets"].tolist()
    wrong[1][3] = 2**64
    refused(function, ValueError, f"targets[1, 3] is {2**64},", targets=wrong)


@every_function
def test_targets_beyond_any_signed_integer(function):
    wrong = changed(arguments(function)["targets"], (0, 1), 2**64 - 1, np.uint64)
    refused(function, ValueError, f"targets[0, 1] is {2**64 - 1},", targets=wrong)


@every_function
@pytest.mark.parametrize("blank", [0, 3, -1, -V])
def test_a_target_that_is_the_blank(function, blank):
    targets = np.where(arguments(function)["targets"] == blank % V, 1, 2)
    wrong = changed(targets, (0, 1), blank % V)
    words = f"targets[0, 1] is {blank % V}, which is the blank", "differ"
    refused(function, ValueError, *words, targets=wrong, blank=blank)
