"""Whatever the arguments are, the call computes something finite or refuses them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cupy_rnnt
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS
from cupy_rnnt.options import REDUCTIONS

from .cases import (
    LAYOUTS,
    WITH_GRAD,
    B,
    V,
    arguments,
    array_names,
    changed,
    every_function,
    flat,
    float_names,
)


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
    "reduction": st.one_of(st.sampled_from(REDUCTIONS), anything),
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
@pytest.mark.filterwarnings("ignore:the probabilities of blank and label:UserWarning")
@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_anything_is_computed_or_refused(function, data):
    given_arguments = arguments(function, of=data.draw(st.integers(0, 9)))
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
