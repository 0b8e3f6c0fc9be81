"""Arguments: what the four NumPy functions accept, and what they say of everything else."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

import cupy_rnnt
from cupy_rnnt.ops.activations import ACTIVATIONS

from .helpers import random_joint_case, random_logits_case

OF_LOGITS = cupy_rnnt.rnnt_loss, cupy_rnnt.rnnt_loss_and_grad
OF_JOINT = cupy_rnnt.joint_rnnt_loss, cupy_rnnt.joint_rnnt_loss_and_grad
WITH_GRAD = cupy_rnnt.rnnt_loss_and_grad, cupy_rnnt.joint_rnnt_loss_and_grad
LENGTHS = "logit_lengths", "target_lengths"
B, T, U, V, H = 4, 7, 5, 9, 11


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


def arguments(function, seed=0, **changes):
    """Legal arguments by name, but for the changes."""
    make = random_joint_case if function in OF_JOINT else random_logits_case
    return make(np.random.default_rng(seed), B, T, U, V)._asdict() | changes


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
    "targets": [((B + 1, U), (B, U)), ((B, U + 1), (B, U)), ((1, U), (B, U)), ((U, B), (B, U))],
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


@every_function
def test_empty_axes(function):
    axes = {
        "logits": ("B", "T", "U + 1", "V"),
        "encoder_out": ("B", "T", "H"),
        "predictor_out": ("B", "U + 1", "H"),
        "weight": ("V", "H"),
        "bias": ("V",),
    }
    for name in float_names(function):
        value = arguments(function)[name]
        for axis, letter in enumerate(axes[name]):
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
def test_tensors_of_another_library(function):
    torch = pytest.importorskip("torch")
    for name in array_names(function):
        tensor = torch.from_numpy(arguments(function)[name])
        refused(function, TypeError, f"{name} is a torch.Tensor", **{name: tensor})


@every_function
@pytest.mark.parametrize("wrong", [None, 3, "text", {1: 2}, object()], ids=repr)
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


# Targets and blank


@every_function
@pytest.mark.parametrize("value", [-1, V, V + 100, -V, -(2**40)])
def test_targets_out_of_range(function, value):
    wrong = changed(arguments(function)["targets"], (0, 2), value)
    words = f"targets[0, 2] is {value},", f"{V} entries"
    refused(function, ValueError, *words, targets=wrong)
    refused(function, ValueError, *words, targets=wrong.tolist())


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


@every_function
@pytest.mark.parametrize("value", [-1, V - 1, V, 2**40, -(2**63)])
def test_padding_of_targets_may_hold_anything(function, value):
    given = arguments(function)
    padding = np.arange(U) >= given["target_lengths"][:, None]
    assert padding.any()
    targets = np.where(padding, value, given["targets"])
    assert_same_bits(function(**given | {"targets": targets}), function(**given))


@every_function
@pytest.mark.parametrize("blank", [V, -V - 1, 10**30, -(10**30)])
def test_blank_out_of_range(function, blank):
    words = f"blank is {blank},", f"between {-V} and {V - 1}"
    refused(function, ValueError, *words, blank=blank)


@every_function
@pytest.mark.parametrize("blank", [1.0, 0.5, math.nan, "0", None, [0], np.float64(1)], ids=repr)
def test_blank_is_an_integer(function, blank):
    refused(function, TypeError, "blank is", repr(blank), "integer", blank=blank)


@every_function
@pytest.mark.parametrize("blank", [0, 3, V - 1])
def test_blank_may_count_from_the_end(function, blank):
    targets = np.where(np.arange(U) % 2, (blank + 1) % V, (blank + 2) % V) * np.ones((B, 1), int)
    given = arguments(function, targets=targets)
    wanted = function(**given | {"blank": blank})
    for same in blank - V, np.int8(blank), np.uint64(blank):
        assert_same_bits(function(**given | {"blank": same}), wanted)


# Options


@every_function
@pytest.mark.parametrize("value", ["average", "", "Mean", None, 1, ["mean"], b"mean"], ids=repr)
def test_unknown_reduction(function, value):
    words = f"reduction is {value!r}", "none, mean, sum"
    refused(function, ValueError, *words, reduction=value)


@joint_functions
@pytest.mark.parametrize("value", ["elu", "Tanh", None, np.tanh, ["tanh"]], ids=repr)
def test_unknown_activation(function, value):
    words = f"activation is {value!r}", *ACTIVATIONS
    refused(function, ValueError, *words, activation=value)


@every_function
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("clamp", [math.nan, math.inf, -math.inf, np.float32(np.nan), 10**400]),
        ("fastemit_lambda", [math.nan, math.inf, -math.inf, -1e-9, -3]),
        ("tolerance", [math.nan, math.inf, -math.inf, -1e-30, 1, 1.5]),
    ],
)
def test_numbers_out_of_range(function, name, values):
    for value in values:
        words = f"{name} is {value!r}", "must be finite"
        refused(function, ValueError, *words, **{name: value})


@every_function
@pytest.mark.parametrize("name", ["clamp", "fastemit_lambda", "tolerance"])
def test_numbers_are_numbers(function, name):
    wrong = ["0.5", b"1", [0.5], {}, 1j, np.complex64(1), np.array([0.5]), object()]
    if name != "tolerance":  # for which it is the default
        wrong.append(None)
    for value in wrong:
        words = f"{name} is {value!r}", "a number is needed"
        refused(function, TypeError, *words, **{name: value})


@every_function
@pytest.mark.parametrize("name", ["clamp", "fastemit_lambda", "tolerance"])
def test_numbers_of_any_type(function, name):
    wanted = function(**arguments(function, **{name: 0.5}))
    for value in np.float16(0.5), np.float32(0.5), np.float64(0.5):
        assert_same_bits(function(**arguments(function, **{name: value})), wanted)


@functions_with_grad
def test_wrong_cost_weights(function):
    def wrong(error, value, *words):
        refused(function, error, "cost_weights", *words, cost_weights=value)

    wrong(ValueError, np.ones(B + 1), f"shape ({B + 1},)", f"({B},) is needed")
    wrong(ValueError, np.ones((B, 1)), f"shape ({B}, 1)", f"({B},) is needed")
    wrong(ValueError, np.ones(()), "shape ()")
    for dtype in "c8", "?", "O", "S4":
        wrong(TypeError, np.ones(B, dtype), "dtype", "real")
    for value in np.nan, np.inf, -np.inf:
        wrong(ValueError, [1.0, 2.0, value, 3.0], f"cost_weights[2] is {value}", "finite")
    wrong(TypeError, 1.0, "builtins.float")
    wrong(TypeError, "ones")


@functions_with_grad
def test_cost_weights_of_any_real_type(function):
    wanted = function(**arguments(function, cost_weights=np.arange(1.0, B + 1)))
    weights = range(1, B + 1)
    for value in list(weights), tuple(weights), *(np.array(weights, t) for t in ("i1", "u8", "f2")):
        assert_same_bits(function(**arguments(function, cost_weights=value)), wanted)


@every_function
@pytest.mark.parametrize("value", [3, "print", [print]], ids=repr)
def test_progress_is_callable(function, value):
    refused(function, TypeError, f"progress is {value!r}", "callable", progress=value)


def test_only_writeable_arrays_are_overwritten():
    function = cupy_rnnt.rnnt_loss_and_grad
    logits = arguments(function)["logits"]
    read_only = logits.copy()
    read_only.flags.writeable = False
    words = "logits is read-only", "writeable"
    refused(function, ValueError, *words, logits=read_only, overwrite_logits=True)
    with pytest.raises(TypeError, match="logits is a list, but an array is needed"):
        function(**arguments(function, logits=logits.tolist(), overwrite_logits=True))


# Workspace


@every_function
def test_the_least_workspace_is_named_and_is_the_least(function):
    with pytest.raises(ValueError, match="at least") as caught:
        function(**arguments(function, max_workspace_bytes=0))
    needed = int(re.search(r"at least (\d+) bytes", str(caught.value)).group(1))
    for value in -(10**30), -1, 0, 1, 1000, needed - 1:
        words = f"max_workspace_bytes is {value},", f"at least {needed} bytes"
        refused(function, ValueError, *words, max_workspace_bytes=value)
    result = function(**arguments(function, max_workspace_bytes=needed, return_info=True))
    assert result[-1].workspace_bytes <= needed
    plenty = function(**arguments(function, max_workspace_bytes=10**30))
    for one, other in zip(flat(result[:-1]), flat(plenty), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)  # sums in another order


@every_function
@pytest.mark.parametrize("value", [2.0**28, "256 MiB", math.inf, [2**28]], ids=repr)
def test_workspace_is_an_integer(function, value):
    words = f"max_workspace_bytes is {value!r}", "integer"
    refused(function, TypeError, *words, max_workspace_bytes=value)


# Extents beyond any memory, of arrays that repeat one element


def broadcast(shape, dtype=np.float32):
    return np.broadcast_to(np.zeros((), dtype), shape)


def enormous(function, frames=2, labels=1, vocabulary=4, hidden=3):
    columns = labels + 1
    if function in OF_LOGITS:
        floats = {"logits": broadcast((1, frames, columns, vocabulary))}
    else:
        floats = {
            "encoder_out": broadcast((1, frames, hidden)),
            "predictor_out": broadcast((1, columns, hidden)),
            "weight": broadcast((vocabulary, hidden)),
            "bias": broadcast((vocabulary,)),
        }
    targets = broadcast((1, labels), np.int8)
    return floats | {"targets": targets, "logit_lengths": [frames], "target_lengths": [labels]}


@named((*OF_JOINT, cupy_rnnt.rnnt_loss))
def test_enormous_lattices_need_too_large_a_workspace(function):
    with pytest.raises(ValueError, match=r"max_workspace_bytes is 268435456, .* \d{14,} bytes"):
        function(**enormous(function, frames=2**45))


@every_function
@pytest.mark.parametrize("extent", ["frames", "labels", "vocabulary", "hidden"])
def test_enormous_extents_are_refused(function, extent):
    """By the workspace, or by NumPy where an argument or a result must be held as a whole."""
    if extent == "hidden" and function in OF_LOGITS:
        return
    with pytest.raises((ValueError, MemoryError), match=r"bytes|Unable to allocate"):
        function(**enormous(function, **{extent: 2**45}))


@joint_functions
def test_cells_beyond_64_bits(function):
    with pytest.raises(ValueError, match=rf"{2**64} cells, but at most 2\*\*62"):
        function(**enormous(function, frames=2**32, labels=2**32 - 1))


@every_function
def test_enormous_padding_costs_nothing(function):
    """Short samples in endless arrays; but a gradient is as large as its argument."""
    extents = {"frames": 2**40, "labels": 2**18} if function not in WITH_GRAD else {"labels": 2**12}
    given = enormous(function, **extents) | {"logit_lengths": [2], "target_lengths": [1]}
    if "weight" in given:
        given["activation"] = "relu"
    loss = np.asarray(flat(function(**given | {"max_workspace_bytes": 2**21}))[0])
    assert loss == pytest.approx(math.log(4**3 / 2), rel=1e-6)  # two paths, three transitions


# What is accepted as it is


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


# Anything


def scrambled(data, array):
    """An array with another shape, dtype, layout or content; or something else altogether."""
    change = data.draw(st.integers(0, 9))
    if change == 0:
        return array[..., None]
    if change == 1:
        return array.astype(
            data.draw(st.sampled_from(["f2", "f4", "f8", "i4", "u1", "?", "O", "c8"]))
        )
    if change == 2:
        return np.take(array, [], axis=data.draw(st.integers(0, array.ndim - 1)))
    if change == 3:
        axis = data.draw(st.integers(0, array.ndim - 1))
        return np.take(array, range(data.draw(st.integers(1, 12))), axis=axis, mode="wrap")
    if change == 4:
        return np.broadcast_to(array[:1], array.shape)
    if change == 5:
        return data.draw(st.sampled_from(LAYOUTS))(array)
    if change == 6:
        return array.tolist()
    if change == 7 and array.size:
        poison = (
            [-1, 0, 3, 100] if array.dtype.kind == "i" else [np.nan, np.inf, -np.inf, 1e30, -50]
        )
        index = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
        return changed(array, index, data.draw(st.sampled_from(poison)))
    if change == 8:
        return data.draw(anything)
    return array.T


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 20),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=2),
    st.just([[1, 2], [3]]),
    st.lists(st.integers(-1, 9), max_size=5),
    st.lists(st.lists(st.floats(-9, 9), max_size=2), max_size=2),
    st.sampled_from([np.float32(0.25), np.int8(2), np.bool_(True), 1j, 10**400, object(), print]),
)
small_number = st.one_of(st.floats(0, 5), anything)
OPTIONS = {
    "blank": st.one_of(st.integers(-V, V - 1), anything),
    "clamp": st.one_of(st.floats(allow_nan=False, allow_infinity=False), anything),
    "fastemit_lambda": st.one_of(st.floats(0, 5), anything),
    "tolerance": st.one_of(st.floats(0, 0.999), anything),
    "max_workspace_bytes": st.one_of(st.integers(0, 2**22), anything),
    "reduction": st.one_of(st.sampled_from(["none", "mean", "sum"]), anything),
    "zero_infinity": st.booleans(),
    "return_info": st.booleans(),
    "progress": st.one_of(st.none(), st.just(lambda done, cells: None), anything),
}
OF_GRAD = {"cost_weights": st.one_of(st.lists(st.floats(-9, 9), min_size=B, max_size=B), anything)}
OF_KIND = {
    cupy_rnnt.rnnt_loss: {"fused_log_softmax": st.booleans()},
    cupy_rnnt.rnnt_loss_and_grad: {
        "fused_log_softmax": st.booleans(),
        "overwrite_logits": st.booleans(),
        **OF_GRAD,
    },
    cupy_rnnt.joint_rnnt_loss: {"activation": st.sampled_from([*ACTIVATIONS, "elu"])},
    cupy_rnnt.joint_rnnt_loss_and_grad: {"activation": st.sampled_from([*ACTIVATIONS]), **OF_GRAD},
}


def moderate(value):
    """Whether a float argument is finite and far from the limits of its type."""
    array = np.asarray(value, np.float64)
    return bool((abs(array) < 1e3).all())


@every_function
@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_anything_is_computed_or_refused(function, data):
    given_arguments = arguments(function, seed=data.draw(st.integers(0, 9)))
    options = OPTIONS | OF_KIND[function]
    names = st.sampled_from([*array_names(function), *options])
    for name in data.draw(st.lists(names, max_size=3, unique=True)):
        if name in options:
            given_arguments[name] = data.draw(options[name], label=name)
        else:
            given_arguments[name] = scrambled(data, given_arguments[name])
    try:
        result = function(**given_arguments)
    except (TypeError, ValueError):
        return
    floats = [given_arguments[name] for name in float_names(function)]
    if all(moderate(value) for value in floats if value is not None):
        count = 2 if function in WITH_GRAD else 1
        parts = result[:count] if isinstance(result, tuple) else result
        for array in flat(parts):
            if array.dtype != object:  # the gradient of no bias
                assert np.isfinite(array.astype(np.float64)).all()
