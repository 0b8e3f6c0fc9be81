"""Arrays of other libraries on a GPU: CuPy computes with them where they are."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from cupy_rnnt import dlpack, rnnt_loss_and_grad

from ..arguments.cases import (
    LENGTHS,
    WITH_GRAD,
    arguments,
    array_names,
    every_function,
    float_names,
    joint_functions,
    named,
)
from ..device_calls import to_device, to_host
from .capsules import BFLOAT, CODES, CPU, CUDA_MANAGED, READ_ONLY, Given, managed_in
from .cases import BFLOAT16, FLOATS


class Exporter:
    """An array of CuPy, by the protocol alone."""

    legacy, flags = False, 0

    def __init__(self, array):
        self.array, self.streams = array, []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream=None, max_version=None, copy=None):
        self.streams.append(stream)
        is_bfloat16 = self.array.dtype == BFLOAT16
        array = self.array.view(np.uint16) if is_bfloat16 else self.array
        version = None if self.legacy else max_version
        capsule = array.__dlpack__(stream=stream, max_version=version)
        managed = managed_in(capsule)
        if is_bfloat16:
            managed.tensor.code = BFLOAT
        if version:
            managed.flags |= self.flags
        return capsule


class Foreign(Exporter):
    """Of a library that has a namespace, which makes such arrays."""

    @staticmethod
    def __array_namespace__():
        return Foreign

    @staticmethod
    def from_dlpack(x):
        capsule = x.__dlpack__(stream=1, max_version=(1, 0))
        tensor = managed_in(capsule).tensor
        is_bfloat16 = tensor.code == BFLOAT
        if is_bfloat16:
            tensor.code = CODES["u"]
        array = sys.modules["cupy"].from_dlpack(Given(capsule))
        return Foreign(array.view(BFLOAT16) if is_bfloat16 else array)


class Legacy(Foreign):
    legacy = True


class Ancient(Foreign):
    def __dlpack__(self, *, stream=None):
        return super().__dlpack__(stream=stream)


class ReadOnly(Foreign):
    flags = READ_ONLY


def moved(function, kind=None, **changes):
    """Legal arguments on the device, the arrays as a kind of exporter."""
    values = {name: to_device(value) for name, value in arguments(function, **changes).items()}
    arrays = array_names(function) if kind else ()
    return values | {name: kind(values[name]) for name in arrays if values[name] is not None}


def parts(result):
    return (
        [part for one in result for part in parts(one)] if isinstance(result, tuple) else [result]
    )


def address(array):
    """In the emulator, memory that was passed on has another address for kernels."""
    return array.host.ctypes.data if hasattr(array, "host") else array.data.ptr


def assert_same(actual, desired, kind):
    for one, other in zip(parts(actual), parts(desired), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert type(one) is kind
            one, other = (to_host(getattr(x, "array", x)) for x in (one, other))
            np.testing.assert_array_equal(one, other, strict=True)


# Results


@every_function
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", [Foreign, Legacy, Ancient])
@pytest.mark.thinned(3)
@pytest.mark.slow
def test_results_are_of_the_kind(gpu, function, dtype, kind):
    floats = {name: arguments(function)[name].astype(dtype) for name in float_names(function)}
    expected = function(**moved(function, **floats))
    assert_same(function(**moved(function, kind, **floats)), expected, Foreign)


@every_function
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
def test_without_a_namespace_they_are_of_cupy(gpu, function, dtype):
    floats = {name: arguments(function)[name].astype(dtype) for name in float_names(function)}
    expected = function(**moved(function, **floats))
    assert_same(function(**moved(function, Exporter, **floats)), expected, gpu.xp.ndarray)


@joint_functions
def test_no_bias_and_no_reduction(gpu, function):
    options = {"reduction": "none", "return_info": True}
    *expected, _ = function(**moved(function, bias=None), **options)
    *found, info = function(**moved(function, Foreign, bias=None), **options)
    assert_same(tuple(found), tuple(expected), Foreign)
    assert type(info.certificate) is gpu.xp.ndarray


@named(WITH_GRAD)
def test_cost_weights_and_integers_of_any_kind(gpu, function):
    values = moved(function)
    weights = gpu.asarray(np.array([0.5, -1.0, 0.0, 2.0]))
    expected = function(**values, cost_weights=weights)
    integers = {name: Foreign(values[name]) for name in ("targets", *LENGTHS)}
    found = function(**values | integers, cost_weights=Foreign(weights))
    assert_same(found, expected, gpu.xp.ndarray)
    on_host = {name: arguments(function)[name] for name in ("targets", *LENGTHS)}
    found = function(**moved(function, Foreign) | on_host, cost_weights=weights.tolist())
    assert_same(found, expected, Foreign)


@joint_functions
def test_the_first_argument_decides(gpu, function):
    expected = function(**moved(function))
    for first, kind in (Foreign, Foreign), (None, gpu.xp.ndarray):
        others = moved(function, None if first else Foreign)
        mixed = others | {"encoder_out": moved(function, first)["encoder_out"]}
        assert_same(function(**mixed), expected, kind)


# Places


@every_function
def test_another_device_than_the_current_one(gpu, function):
    if gpu.xp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")
    expected = function(**moved(function))
    with gpu.xp.cuda.Device(1):
        values = moved(function, Foreign)
    found = function(**values)
    assert gpu.xp.cuda.Device().id == 0
    assert {part.array.device.id for part in parts(found) if part is not None} == {1}
    assert_same(found, expected, Foreign)


@joint_functions
def test_arrays_on_several_devices(gpu, function):
    values = moved(function, Foreign)
    with pytest.raises(ValueError, match="weight is on the CPU, but encoder_out is on device 0"):
        function(**values | {"weight": arguments(function)["weight"]})
    if gpu.xp.cuda.runtime.getDeviceCount() > 1:
        with gpu.xp.cuda.Device(1):
            weight = Foreign(gpu.asarray(arguments(function)["weight"]))
        with pytest.raises(ValueError, match="weight is on device 1, but encoder_out is on dev"):
            function(**values | {"weight": weight})


@every_function
def test_the_exporter_is_told_the_current_stream(gpu, function):
    values = moved(function, Foreign)
    function(**values)
    with gpu.xp.cuda.Stream() as stream:
        function(**values)
    for name in array_names(function):
        assert values[name].streams == [1, stream.ptr]  # 1 is the default stream


def test_managed_memory_is_of_its_device(gpu):
    """Which the host could read, too."""

    class Managed(Foreign):
        def __dlpack_device__(self):
            return CUDA_MANAGED, self.array.device.id

    values = moved(rnnt_loss_and_grad)
    values["logits"] = Managed(values["logits"])
    assert_same(
        rnnt_loss_and_grad(**values), rnnt_loss_and_grad(**moved(rnnt_loss_and_grad)), Foreign
    )


def test_a_capsule_from_elsewhere(gpu):
    class Lying(Foreign):
        def __dlpack__(self, **kwargs):
            return np.ones(3).__dlpack__()

    values = moved(rnnt_loss_and_grad)
    for name in array_names(rnnt_loss_and_grad):
        with pytest.raises(TypeError, match=rf"{name} is a .*Lying that DLPack cannot pass on"):
            rnnt_loss_and_grad(**values | {name: Lying(values[name])})


def test_a_capsule_that_is_there_after_all(gpu):
    class Lying(Foreign):
        def __dlpack_device__(self):
            return CPU, 0

    values = moved(rnnt_loss_and_grad)
    values["logits"] = Lying(values["logits"])
    with pytest.raises(TypeError, match=r"logits is a .*Lying that DLPack cannot pass on"):
        rnnt_loss_and_grad(**values)


# Memory


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_memory_is_shared(gpu, dtype):
    array = gpu.asarray(np.arange(24).reshape(2, 3, 4).astype(dtype))
    for view in array, array[::-1, 1:, ::2], array.T:
        found = dlpack.imported(Foreign(view))
        assert (address(found), found.strides) == (address(view), view.strides)
        np.testing.assert_array_equal(gpu.asnumpy(found), gpu.asnumpy(view), strict=True)
        passed_on = dlpack.exported(view, like=Foreign(array)).array
        assert (address(passed_on), passed_on.strides) == (address(view), view.strides)
        np.testing.assert_array_equal(gpu.asnumpy(passed_on), gpu.asnumpy(view), strict=True)


def test_logits_are_overwritten(gpu):
    _, expected = rnnt_loss_and_grad(**moved(rnnt_loss_and_grad))
    values = moved(rnnt_loss_and_grad, Foreign)
    _, grad = rnnt_loss_and_grad(**values, overwrite_logits=True)
    assert grad is values["logits"]
    assert_same(grad, expected, Foreign)


@pytest.mark.parametrize("kind", [Ancient, Legacy, ReadOnly])
def test_read_only_logits_are_not_overwritten(gpu, kind):
    """Nor those of an exporter that cannot say that they may be."""
    values = moved(rnnt_loss_and_grad, kind)
    with pytest.raises(ValueError, match="logits is read-only"):
        rnnt_loss_and_grad(**values, overwrite_logits=True)
    before = arguments(rnnt_loss_and_grad)["logits"]
    np.testing.assert_array_equal(gpu.asnumpy(values["logits"].array), before)
    rnnt_loss_and_grad(**values)


def test_memory_that_several_elements_share_is_not_overwritten(gpu):
    values = moved(rnnt_loss_and_grad)
    rows = gpu.xp.broadcast_to(values["logits"][:1], values["logits"].shape)
    with pytest.raises(ValueError, match="logits has elements that share memory"):
        rnnt_loss_and_grad(**values | {"logits": Foreign(rows)}, overwrite_logits=True)


@every_function
@pytest.mark.slow
@pytest.mark.usefixtures("collector")
def test_memory_is_released(gpu, function):
    pool = gpu.xp.get_default_memory_pool()
    values = moved(function, Foreign)
    function(**values)  # what it keeps for all calls
    gc.collect()
    before = pool.used_bytes()
    result = function(**values)
    owned = sum(512 for part in parts(result) if part is not None)
    assert pool.used_bytes() >= before + owned  # an allocation has 512 bytes at least
    del result
    gc.collect()
    assert pool.used_bytes() == before
    values.clear()
    gc.collect()
    assert pool.used_bytes() < before
