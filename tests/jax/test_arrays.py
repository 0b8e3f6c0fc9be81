"""Arrays and options of every sort in the JAX adapter: seen in place, or refused."""

from __future__ import annotations

import _thread
import inspect
import logging
import signal

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.engine import joint_source, logits_source
from cupy_rnnt.ops.numpy import workers

from .cases import (
    adapter,
    assert_equal_bits,
    callbacks,
    engine_calls,
    every_dtype,
    every_kind,
    gradient,
    jax,
    jnp,
    made,
    numpy_of,
    wide,
)

pytestmark = pytest.mark.usefixtures("jax_on_cpu")
RUN_TIME = jax.errors.JaxRuntimeError, ValueError  # the latter if the call itself waits for it


def address(array):
    return array.unsafe_buffer_pointer()


# In place


@every_kind
@every_dtype
@pytest.mark.parametrize("jit", [False, True])
def test_buffers_are_never_copied(kind, dtype, jit, monkeypatch):
    """Neither arguments nor results, and arguments cannot be written."""
    seen = []
    view = callbacks._numpy

    def spy(buffer):
        array = view(buffer)
        if array is not None:
            seen.append((array.ctypes.data, array.flags.writeable, array.dtype))
        return array

    monkeypatch.setattr(callbacks, "_numpy", spy)
    with wide(dtype):
        batch = made(kind, dtype=dtype)
        function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss

        def loss_of(inputs, integers):
            return function(*inputs, *integers, batch.case.blank, reduction="sum")

        found = jax.value_and_grad(loss_of)
        loss, gradients = (jax.jit(found) if jit else found)(batch.inputs, batch.integers)
    read = {place for place, writeable, _ in seen if not writeable}
    written = {place for place, writeable, _ in seen if writeable}
    assert {address(x) for x in (*batch.inputs, *batch.integers)} <= read
    assert address(loss) in written
    if dtype == np.float16:  # else they are scaled by what comes from above, into new memory
        assert {address(x) for x in gradients} <= written
    assert {t for *_, t in seen if t.kind not in "iu"} <= {np.dtype(dtype), loss.dtype}


@every_kind
@every_dtype
def test_the_engine_sees_the_buffers_themselves(kind, dtype, monkeypatch):
    source = joint_source.JointSource if kind == "joint" else logits_source.LogitsSource
    seen, original = [], source.__init__

    def spy(self, batch, inputs, *args, **keywords):
        seen.append(inputs if kind == "joint" else (inputs,))
        seen.append(args[-1] if kind == "joint" else (args[-1],))
        original(self, batch, inputs, *args, **keywords)

    monkeypatch.setattr(source, "__init__", spy)
    with wide(dtype):
        batch = made(kind, dtype=dtype)
        _, pullback = jax.vjp(lambda *i: batch.loss(*i, reduction="none"), *batch.inputs)
        gradients = pullback(jnp.ones(4, np.float64 if dtype == np.float64 else np.float32))
    inputs, _, again, results = seen
    for arrays, wanted in (inputs, batch.inputs), (again, batch.inputs), (results, gradients):
        assert [x.ctypes.data for x in arrays] == list(map(address, wanted))
        assert all(x.dtype == dtype for x in arrays)


@every_kind
def test_inputs_are_not_written(kind):
    batch = made(kind)
    before = [np.array(x) for x in (*batch.inputs, *batch.integers)]
    jax.block_until_ready(gradient(batch.loss, batch.inputs))
    for one, other in zip((*batch.inputs, *batch.integers), before, strict=True):
        np.testing.assert_array_equal(one, other)


@every_kind
def test_transposed_intermediates(kind):
    """Whatever layout XLA would choose, callbacks see the axes in order."""
    batch = made(kind)
    first = jnp.asarray(np.array(batch.inputs[0]).swapaxes(0, 1))

    def loss(first):
        return batch.loss(first.swapaxes(0, 1), *batch.inputs[1:])

    found = jax.jit(jax.grad(loss))(first)
    wanted = gradient(batch.loss, batch.inputs)[0]
    assert_equal_bits([found.swapaxes(0, 1)], [wanted])


# What is accepted


@every_kind
def test_numpy_arrays_and_lists(kind):
    batch = made(kind)
    count = len(batch.inputs)
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss
    given = *batch.case[:count], *(x.tolist() for x in batch.case[count:-1]), batch.case.blank
    assert_equal_bits([function(*given)], [batch.loss(*batch.inputs)])
    given = *batch.inputs, *map(list, batch.integers), batch.case.blank  # of arrays of JAX
    assert_equal_bits([function(*given)], [batch.loss(*batch.inputs)])


@every_kind
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_integer_types(kind, dtype):
    batch = made(kind)
    count = len(batch.inputs)
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss
    with jax.enable_x64(dtype == np.int64):
        integers = [jnp.asarray(x, dtype) for x in batch.case[count:-1]]
        assert all(x.dtype == dtype for x in integers)
        loss = function(*batch.inputs, *integers, batch.case.blank)
    assert_equal_bits([loss], [batch.loss(*batch.inputs)])


def test_signatures_are_those_of_numpy():
    for name in "rnnt_loss", "joint_rnnt_loss":
        ours = inspect.signature(getattr(adapter, name)).parameters
        theirs = inspect.signature(getattr(cupy_rnnt, name)).parameters
        outside = {"progress", "return_info"}  # neither is a value of a traced function
        wanted = {n: (p.default, p.kind) for n, p in theirs.items() if n not in outside}
        assert {n: (p.default, p.kind) for n, p in ours.items()} == wanted
        assert list(ours) == list(wanted)


# What is refused when it is traced

REFUSED = {
    "rank": ({"inputs": lambda x: (x[0][0], *x[1:])}, ValueError),
    "dtype": ({"inputs": lambda x: (x[0].astype(int), *x[1:])}, TypeError),
    "empty": ({"inputs": lambda x: (x[0][:, :0], *x[1:])}, ValueError),
    "text": ({"inputs": lambda x: ("logits", *x[1:])}, TypeError),
    "targets": ({"integers": lambda x: (x[0][:, 1:], *x[1:])}, ValueError),
    "floats": ({"integers": lambda x: (x[0].astype(float), *x[1:])}, TypeError),
    "lengths": ({"integers": lambda x: (*x[:2], x[2][1:])}, ValueError),
    "blank": ({"blank": 9}, ValueError),
    "reduction": ({"reduction": "average"}, ValueError),
    "clamp": ({"clamp": np.inf}, ValueError),
    "tolerance": ({"tolerance": 1.0}, ValueError),
    "fastemit": ({"fastemit_lambda": "0.1"}, TypeError),
    "boolean": ({"zero_infinity": "False"}, TypeError),
    "time-major": ({"inputs": lambda x: (x[0].swapaxes(0, 1), *x[1:])}, ValueError),
    "positions": ({"integers": lambda x: (np.pad(x[0], ((0, 0), (0, 1))), *x[1:])}, ValueError),
    "bits": ({"integers": lambda x: (*x[:2], [*x[2][:3].tolist(), 2**64])}, ValueError),
}


@every_kind
@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused_as_by_numpy(kind, name):
    options, error = REFUSED[name]
    batch = made(kind)
    count = len(batch.inputs)
    inputs, integers = tuple(batch.case[:count]), tuple(batch.case[count:-1])
    options = {"blank": batch.case.blank, **options}
    inputs = options.pop("inputs", lambda x: x)(inputs)
    integers = options.pop("integers", lambda x: x)(integers)
    function = getattr(cupy_rnnt, "joint_rnnt_loss" if kind == "joint" else "rnnt_loss")
    with pytest.raises(error) as expected:
        function(*inputs, *integers, **options)
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss
    text = str(expected.value)
    with jax.enable_x64(True), engine_calls() as calls, pytest.raises(error) as found:
        jax.eval_shape(lambda: function(*inputs, *integers, **options))
    assert str(found.value) == text
    assert not calls


def test_shapes_and_dtypes_of_a_joint_must_match():
    batch = made("joint")
    for i, wrong, error, text in (
        (1, batch.inputs[1][:, :, 1:], ValueError, r"predictor_out has shape \(4, 6, 10\)"),
        (2, batch.inputs[2][:, 1:], ValueError, r"weight has shape \(9, 10\)"),
        (2, batch.inputs[2].T, ValueError, r"weight has shape \(11, 9\), but \(9, 11\) is needed"),
        (3, batch.inputs[3].astype(jnp.bfloat16), TypeError, "bias has dtype bfloat16"),
    ):
        inputs = list(batch.inputs)
        inputs[i] = wrong
        with pytest.raises(error, match=text):
            jax.eval_shape(batch.loss, *inputs)


@every_kind
def test_options_are_static(kind):
    batch = made(kind)
    for name, value in ("clamp", 0.5), ("tolerance", 0.1), ("zero_infinity", True):
        needed = "True or False" if value is True else "a number"
        with pytest.raises(TypeError, match=f"{name} is .*, but {needed} is needed"):
            jax.jit(lambda value, name=name: batch.loss(*batch.inputs, **{name: value}))(value)


def test_fused_log_softmax_is_a_boolean():
    batch = made("logits")
    with pytest.raises(TypeError, match="fused_log_softmax is 'no', but True or False is needed"):
        batch.loss(*batch.inputs, fused_log_softmax="no")


@every_kind
def test_integers_have_no_derivative(kind):
    batch = made(kind)
    count = len(batch.inputs)
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss
    with pytest.raises(TypeError, match="int"):
        jax.grad(function, argnums=count)(*batch.inputs, *batch.integers)


# What goes wrong when it runs

OUT_OF_RANGE = {
    "label": (0, (1, 0), 9, "the vocabulary has 9 entries"),
    "blank": (0, (2, 1), 8, "which is the blank"),
    "frames": (1, (3,), 8, "it must be between 1 and 7"),
    "no frames": (1, (0,), 0, "it must be between 1 and 7"),
    "labels": (2, (0,), 6, "it must be between 0 and 5"),
}


@every_kind
@pytest.mark.parametrize("name", OUT_OF_RANGE)
@pytest.mark.parametrize("jit", [False, True])
def test_integers_out_of_range(kind, name, jit, caplog):
    which, place, value, text = OUT_OF_RANGE[name]
    batch = made(kind)
    integers = [np.array(x) for x in batch.integers]
    integers[2][:] = 5
    integers[which][place] = value
    batch.case = batch.case._replace(
        targets=integers[0], logit_lengths=integers[1], target_lengths=integers[2]
    )
    with pytest.raises(ValueError, match=text) as expected:
        numpy_of(kind)(*batch.case)
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss

    def found(inputs, integers):
        return jax.grad(lambda inputs: function(*inputs, *integers, batch.case.blank))(inputs)

    with pytest.raises(RUN_TIME) as error:
        jax.block_until_ready((jax.jit(found) if jit else found)(batch.inputs, integers))
    assert f"ValueError: {expected.value}" in str(error.value)
    assert caplog.record_tuples == [("cupy_rnnt", logging.ERROR, f"ValueError: {expected.value}")]
    jax.block_until_ready(gradient(batch.loss, batch.inputs))  # works on


@every_kind
def test_integers_of_more_bits_than_jax_takes(kind):
    """2**32 + 5 frames are not 5, in an array of NumPy."""
    batch = made(kind)
    function = adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss
    wide_integers = [np.asarray(x).astype(np.int64) for x in batch.integers]
    loss = function(*batch.inputs, *wide_integers, batch.case.blank)
    assert_equal_bits([loss], [batch.loss(*batch.inputs)])
    wide_integers[1][2] = 2**32 + 5
    with pytest.raises(RUN_TIME, match=r"logit_lengths\[2\] is 2147483647, but it must be"):
        jax.block_until_ready(function(*batch.inputs, *wide_integers, batch.case.blank))


@every_kind
def test_a_workspace_that_is_too_small(kind):
    batch = made(kind)
    with pytest.raises(ValueError, match="max_workspace_bytes is 1000") as expected:
        numpy_of(kind)(*batch.case, max_workspace_bytes=1000)
    with pytest.raises(RUN_TIME) as error:
        gradient(batch.loss, batch.inputs, max_workspace_bytes=1000)
    assert str(expected.value) in str(error.value)


def test_normalised_logits_are_noticed():
    batch = made("logits")
    with pytest.raises(RUN_TIME, match="UserWarning: the softmax of every row"):
        jax.block_until_ready(batch.loss(jax.nn.log_softmax(batch.inputs[0])))  # a warning is one


@pytest.fixture
def interrupts():
    """Those that Python handles. In a process of the background, which a shell starts with `&`,
    interrupts are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@every_kind
@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_leaves_nothing_behind(kind, monkeypatch):
    batch = made(kind)
    before = workers.threads()
    original = callbacks.run

    def interrupted(source, *args):
        write_scores = source.write_scores

        def then(*args):
            _thread.interrupt_main()
            return write_scores(*args)

        source.write_scores = then
        return original(source, *args)

    monkeypatch.setattr(callbacks, "run", interrupted)
    with pytest.raises((KeyboardInterrupt, *RUN_TIME)) as error:
        jax.block_until_ready(gradient(batch.loss, batch.inputs))
    assert "KeyboardInterrupt" in repr(error.value)
    assert workers.threads() == before
    assert not workers._single_threaded_blas._users
    monkeypatch.undo()
    jax.block_until_ready(gradient(batch.loss, batch.inputs))
