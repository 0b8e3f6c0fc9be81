"""CuPy arrays as arguments: where they may be, how they may lie in memory, and what comes back."""

import numpy as np
import pytest
from scipy.special import log_softmax

import cupy_rnnt
from cupy_rnnt.options import REDUCTIONS

from ...arguments.cases import (
    LENGTHS,
    OF_JOINT,
    OF_LOGITS,
    WITH_GRAD,
    B,
    T,
    U,
    V,
    arguments,
    array_names,
    assert_same_bits,
    changed,
    every_function,
    flat,
    float_names,
    joint_functions,
    named,
    refused,
)
from ...device_calls import to_device, to_host
from ...tolerances import DTYPES, assert_gradient_close

OPTIONS = {"reduction": "none", "return_info": True}


def moved(function, **changes):
    """Legal arguments, all on the device."""
    given = arguments(function, **changes)
    return {name: to_device(value) for name, value in given.items()}


def equal(actual, desired):
    """Results of both are the same, to the bit."""
    assert_same_bits(*(to_host(result[:-1]) for result in (actual, desired)))


def close(actual, desired):
    """The same, but for products of matrices that begin elsewhere."""
    results = (flat(to_host(result[:-1])) for result in (actual, desired))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


def flat_of(result):
    if isinstance(result, tuple):
        return [array for part in result for array in flat_of(part)]
    return [result]


# Results


@every_function
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.thinned(5)
def test_results_are_arrays_as_of_numpy(gpu, function, dtype, reduction):
    given = arguments(function)
    given |= {name: given[name].astype(dtype) for name in float_names(function)}
    expected = function(**given, reduction=reduction)
    found = to_host(
        function(**{name: to_device(value) for name, value in given.items()}, reduction=reduction)
    )
    found, expected = (flat_of(result) for result in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == np.shape(other)
        assert_gradient_close(one, other, dtype, T + U)


# Where arrays are


@every_function
def test_another_device_than_the_current_one(gpu, function):
    """All is done there, and the current device stays what it is."""
    if gpu.xp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")
    expected = function(**moved(function), **OPTIONS)
    with gpu.xp.cuda.Device(1):
        given = moved(function)
    found = function(**given, **OPTIONS)
    assert gpu.xp.cuda.Device().id == 0
    for array in flat_of(found[:-1]):
        assert array.device.id == 1
    equal(found, expected)


@every_function
def test_integers_may_be_anywhere(gpu, function):
    given = moved(function)
    expected = function(**given, **OPTIONS)
    integers = {name: arguments(function)[name] for name in ("targets", *LENGTHS)}
    equal(function(**given | integers, **OPTIONS), expected)
    lists = {name: array.tolist() for name, array in integers.items()}
    equal(function(**given | lists, **OPTIONS), expected)
    narrow = {name: gpu.asarray(array.astype(np.int32)) for name, array in integers.items()}
    equal(function(**given | narrow, **OPTIONS), expected)
    if gpu.xp.cuda.runtime.getDeviceCount() > 1:
        with gpu.xp.cuda.Device(1):
            elsewhere = {name: gpu.asarray(array) for name, array in integers.items()}
        equal(function(**given | elsewhere, **OPTIONS), expected)


@named(WITH_GRAD)
def test_cost_weights_may_be_anywhere(gpu, function):
    given, weights = moved(function), np.array([0.5, -1.0, 0.0, 2.0])
    expected = function(**given, cost_weights=weights, **OPTIONS)
    for others in gpu.asarray(weights), weights.tolist(), gpu.asarray(weights.astype(np.float32)):
        equal(function(**given, cost_weights=others, **OPTIONS), expected)


@joint_functions
@pytest.mark.parametrize("name", ["encoder_out", "predictor_out", "weight", "bias"])
def test_arrays_on_several_devices(gpu, function, name):
    given = moved(function)
    given[name] = gpu.asnumpy(given[name])
    places = ("the CPU", "device 0") if name != "encoder_out" else ("device 0", "the CPU")
    wrong, first = ("predictor_out" if name == "encoder_out" else name), "encoder_out"
    with pytest.raises(
        ValueError, match=f"{wrong} is on {places[0]}, but {first} is on {places[1]}"
    ):
        function(**given)
    if gpu.xp.cuda.runtime.getDeviceCount() > 1:
        with gpu.xp.cuda.Device(1):
            given[name] = gpu.asarray(arguments(function)[name])
        places = ("device 1", "device 0")[:: -1 if name == "encoder_out" else 1]
        with pytest.raises(
            ValueError, match=f"{wrong} is on {places[0]}, but {first} is on {places[1]}"
        ):
            function(**given)


# How they lie in memory

LAYOUTS = {
    "fortran": lambda xp, array: xp.array(array, order="F"),
    "every other": lambda xp, array: xp.repeat(array, 2, axis=array.ndim - 1)[..., ::2],
    "reversed": lambda xp, array: (
        xp.ascontiguousarray(array[::-1, ..., ::-1])[::-1, ..., ::-1]
        if array.ndim > 1
        else xp.ascontiguousarray(array[::-1])[::-1]
    ),
    "amid others": lambda xp, array: xp.concatenate([array[:1], array, array[:1]])[1:-1],
}


@every_function
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.slow
def test_any_layout_gives_the_same(gpu, function, layout):
    given = moved(function)
    expected = function(**given, **OPTIONS)
    others = {name: LAYOUTS[layout](gpu.xp, given[name]) for name in array_names(function)}
    close(function(**given | others, **OPTIONS), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_any_layout_are_overwritten(gpu, layout):
    function = cupy_rnnt.rnnt_loss_and_grad
    given = moved(function)
    _, expected = function(**given)
    logits = LAYOUTS[layout](gpu.xp, given["logits"])
    _, grad = function(**given | {"logits": logits}, overwrite_logits=True)
    assert grad is logits
    np.testing.assert_array_equal(gpu.asnumpy(logits), gpu.asnumpy(expected))


@every_function
def test_one_row_for_all_samples(gpu, function):
    """Arrays of stride 0, whose memory is that of one sample."""
    given, name = arguments(function), float_names(function)[0]
    repeated = np.broadcast_to(given[name][:1], given[name].shape)
    expected = function(**moved(function, **{name: repeated.copy()}), **OPTIONS)
    on_device = gpu.xp.broadcast_to(to_device(given[name][:1].copy()), repeated.shape)
    equal(function(**moved(function) | {name: on_device}, **OPTIONS), expected)


def test_memory_that_several_elements_share_is_not_overwritten(gpu):
    given = moved(cupy_rnnt.rnnt_loss_and_grad)
    given["logits"] = gpu.xp.broadcast_to(given["logits"][:1], given["logits"].shape)
    with pytest.raises(ValueError, match="logits has elements that share memory"):
        cupy_rnnt.rnnt_loss_and_grad(**given, overwrite_logits=True)


# What is refused


@named(OF_LOGITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_probabilities_are_noticed_as_by_numpy(gpu, function, dtype):
    """Those that are taken for logits, and the other way round."""
    given = arguments(function)
    log_probs = log_softmax(given["logits"], axis=-1).astype(dtype)
    given = {name: to_device(value) for name, value in given.items()}
    as_log_probs = {"logits": to_device(log_probs), "fused_log_softmax": False}
    function(**given | as_log_probs)
    log_probs[0, 1, 2, given["blank"]] = np.log(1.2)
    with pytest.warns(UserWarning, match="blank and label add up to more than 1"):
        function(**given | as_log_probs | {"logits": to_device(log_probs)})
    if dtype.itemsize > 2:  # half types are rounded by more than float32, in which it is seen
        log_probs = log_softmax(log_probs, axis=-1)
        with pytest.warns(UserWarning, match="fused_log_softmax=False saves the work"):
            function(**given | {"logits": to_device(log_probs)})


def wrong_values():
    return {
        "targets": (
            changed(np.ones((B, U), int), (0, 0), V),
            changed(np.ones((B, U), int), (2, 1), -1),
            changed(np.ones((B, U), int), (0, 2), V - 1),
            np.ones((B, U + 1), int),
            np.ones((B, U)),
            changed(np.ones((B, U), np.uint64), (0, 1), 2**63 + 5),
        ),
        "logit_lengths": (np.zeros(B, int), np.full(B, T + 1), np.ones(B + 1, int), np.ones(B)),
        "target_lengths": (np.full(B, -1), np.full(B, U + 1), np.ones((B, 1), int)),
    }


@every_function
@pytest.mark.parametrize("name", wrong_values())
def test_the_same_errors_as_of_numpy(gpu, function, name):
    lengths = {"logit_lengths": np.full(B, T), "target_lengths": np.full(B, U)}
    for wrong in wrong_values()[name]:
        given = arguments(function, **lengths | {name: wrong})
        with pytest.raises((ValueError, TypeError)) as of_numpy:
            function(**given)
        before = {key: to_device(value) for key, value in given.items()}
        ways = [{}] + [{"overwrite_logits": True}] * (function is cupy_rnnt.rnnt_loss_and_grad)
        for way in ways:
            with pytest.raises(type(of_numpy.value)) as of_cupy:
                function(**before, **way)
            assert str(of_cupy.value) == str(of_numpy.value)
        for key, value in before.items():
            if isinstance(given[key], np.ndarray):
                np.testing.assert_array_equal(gpu.asnumpy(value), given[key])


@every_function
def test_floats_of_the_wrong_kind(gpu, function):
    for name in float_names(function):
        given = moved(function)
        with pytest.raises(TypeError, match=f"{name} has dtype int64, but one of float16"):
            function(**given | {name: given[name].astype(np.int64)})
        with pytest.raises(ValueError, match=name):
            function(**given | {name: given[name][None]})


@joint_functions
def test_dtypes_that_differ(gpu, function):
    given = moved(function)
    with pytest.raises(TypeError, match="weight has dtype float32, but float64 is needed"):
        function(**given | {"weight": given["weight"].astype(np.float32)})


def test_numpy_calls_are_refused_as_before(gpu):
    """Where CuPy is there but not asked for."""
    refused(OF_JOINT[0], ValueError, "targets[0, 0] is 99", targets=np.full((B, U), 99))
