"""The CUDA half of the JAX adapter: callbacks with stand-ins for XLA's buffers and its context."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from cupy_rnnt.options import Options
from cupy_rnnt.results import JointGradients

from ..helpers import random_joint_case, random_logits_case
from ..tolerances import assert_costs_close, assert_gradient_close, assert_gradients_close
from .cases import callbacks, every_kind, jax, numpy_of
from .conftest import DEVICE

STREAM = 0x1234
CONTEXT = SimpleNamespace(stream=STREAM)
OF_CLASSES = "__firstlineno__", "__static_attributes__"  # of those written in Python 3.13


class Buffer:
    """As ``jax.experimental.buffer_callback.Buffer`` on CUDA: it has these attributes and no other,
    and a name for bfloat16 that CuPy does not know."""

    def __init__(self, array, writeable=False):
        self._array, self.writeable = array, writeable
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __dlpack_device__(self):
        return 2, DEVICE

    @property
    def __cuda_array_interface__(self):
        data = self._array.data.ptr, not self.writeable
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "version": 2}


def test_stand_ins_promise_no_more_than_jax():
    from jax.experimental.buffer_callback import Buffer as Real
    from jax.experimental.buffer_callback import ExecutionContext

    own = set(dir(Buffer(np.zeros(1)))) - set(dir(type("Empty", (), {})))
    assert own - {"_array", *OF_CLASSES} <= set(dir(Real))
    assert set(vars(CONTEXT)) <= set(dir(ExecutionContext))
    assert jax.devices()[0].platform != "cpu" or callbacks._CPU == 1


def made(xp, kind, dtype=np.float32, reduction="mean", gradient=True, mapped=(), **options):
    """A case, its callback, and buffers of arguments and results."""
    make = random_joint_case if kind == "joint" else random_logits_case
    case = make(np.random.default_rng(0), 2, 4, 2, dtype=dtype, **options)
    count = 4 if kind == "joint" else 1
    values = {"blank": case.blank, "reduction": reduction, "max_workspace_bytes": 2**24}
    make_loss = callbacks.JointLoss if kind == "joint" else callbacks.LogitsLoss
    loss = make_loss(Options.checked(np.dtype(dtype), **values))
    costs = xp.empty((2,) if reduction == "none" else (), np.float32)
    inputs = [None if x is None else xp.asarray(x) for x in case[:count]]
    gradients = [None if x is None else xp.empty(x.shape, x.dtype) for x in inputs]
    integers = [xp.asarray(x.astype(np.int32)) for x in case[count:-1]]
    return SimpleNamespace(
        case=case,
        loss=loss,
        result=costs,
        inputs=inputs,
        integers=integers,
        gradients=gradients if gradient else None,
    )


def buffers(arrays, writeable=False):
    return arrays and tuple(None if x is None else Buffer(x, writeable) for x in arrays)


def call(one, weights=None):
    result = () if one.result is None else buffers([one.result], True)
    (given,), gradients = buffers([weights]), buffers(one.gradients, True)
    one.loss(CONTEXT, (result, gradients), buffers(one.inputs), buffers(one.integers), given)


def assert_on_stream(xp):
    """Everything ran there, on that device; and nothing else will."""
    launches = xp.kernels.launches
    assert launches
    assert {launch.stream.ptr for launch in launches} == {STREAM}
    assert xp.cuda.get_current_stream() == xp.cuda.Stream.null
    assert xp.cuda.Device().id == DEVICE


@every_kind
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_loss_and_gradient(emulator, kind, dtype):
    one = made(emulator, kind, dtype)
    before = [x.get() for x in one.inputs]
    with emulator.cuda.Device(0):  # whatever was the current one
        call(one)
    assert_on_stream(emulator)
    loss, wanted = numpy_of(kind)(*one.case)
    assert_costs_close(one.result.get(), loss, dtype, one.case.length)
    found = [x.get() for x in one.gradients]
    if kind == "logits":
        assert_gradient_close(found[0], wanted, dtype, one.case.length)
    else:
        assert_gradients_close(JointGradients(*found), wanted, dtype, one.case.length)
    for array, old in zip(one.inputs, before, strict=True):
        np.testing.assert_array_equal(array.get(), old)


@every_kind
def test_loss_alone(emulator, kind):
    one = made(emulator, kind, gradient=False, reduction="none")
    call(one)
    assert_on_stream(emulator)
    loss, _ = numpy_of(kind)(*one.case, reduction="none")
    assert_costs_close(one.result.get(), loss, np.float32, one.case.length)


def test_gradient_alone_with_weights_from_the_device(emulator):
    one = made(emulator, "joint", reduction="none", bias=False)
    one.result = None
    weights = np.array([-0.5, 3.0], np.float32)
    call(one, emulator.asarray(weights))
    assert_on_stream(emulator)
    _, wanted = numpy_of("joint")(*one.case, cost_weights=weights)
    found = JointGradients(*(None if x is None else x.get() for x in one.gradients))
    assert_gradients_close(found, wanted, np.float32, one.case.length)


def test_mapped_instances(emulator):
    """Two batches with the labels of one; the parameters are those of both."""
    one = made(emulator, "joint", gradient=False)
    stacked = [np.stack([x, -x]) for x in one.case[:2]]
    one.inputs[:2] = map(emulator.asarray, stacked)
    for arrays in one.inputs, one.integers:
        for i, x in enumerate(arrays):
            if arrays is one.integers or i > 1:
                arrays[i] = x.reshape(1, *x.shape)
    one.result = emulator.empty((2,), np.float32)
    call(one)
    wanted = [numpy_of("joint")(*(x[i] for x in stacked), *one.case[2:])[0] for i in range(2)]
    assert_costs_close(one.result.get(), wanted, np.float32, one.case.length)


def test_an_error_leaves_no_stream_and_no_device_behind(emulator):
    one = made(emulator, "joint")
    one.integers[1] = emulator.asarray(np.array([4, 5], np.int32))
    with (
        emulator.cuda.Device(0),
        pytest.raises(ValueError, match=r"logit_lengths\[1\] is 5, but it must be between 1 and 4"),
    ):
        call(one)
    assert emulator.cuda.get_current_stream() == emulator.cuda.Stream.null
    assert emulator.cuda.Device().id == DEVICE


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32])
def test_buffers_as_arrays_of_cupy_itself(dtype):
    """Which needs no GPU as long as nothing is read."""
    cupy = pytest.importorskip("cupy")
    stand_in = SimpleNamespace(
        shape=(2, 3, 4),
        dtype=np.dtype(dtype),
        __cuda_array_interface__={"data": (4096, True)},
    )
    array = callbacks._cupy(DEVICE, stand_in)
    assert isinstance(array, cupy.ndarray)
    assert (array.shape, array.dtype, array.data.ptr) == ((2, 3, 4), dtype, 4096)
    assert array.device.id == DEVICE
