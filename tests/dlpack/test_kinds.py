"""Arrays of other libraries as arguments: the numbers of NumPy come back, in the same kind."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import cupy_rnnt

from ..arguments.cases import (
    LENGTHS,
    OF_LOGITS,
    WITH_GRAD,
    arguments,
    array_names,
    every_function,
    float_names,
    joint_functions,
    named,
)
from .capsules import CUDA_HOST, ROCM_HOST, Exporter, Foreign
from .cases import (
    FOREIGN,
    MINIMAL,
    NUMPY,
    assert_read,
    every_dtype,
    every_library,
    library_of,
    needed,
)

INTEGERS = "targets", *LENGTHS


def flat(result):
    if isinstance(result, tuple):
        return [array for part in result for array in flat(part)]
    return [result]


def assert_same(library, actual, desired):
    for one, other in zip(flat(actual), flat(desired), strict=True):
        if other is None or isinstance(other, cupy_rnnt.Info):
            assert type(one) is type(other)
        else:
            assert_read(library, one, other)


# All arguments of one kind


@every_function
@every_dtype
def test_results_are_of_the_kind(library, dtype, function):
    given = arguments(function)
    given |= {name: given[name].astype(dtype) for name in float_names(function)}
    assert_same(library, function(**library.given(given)), function(**given))


@every_library
@every_function
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_every_reduction(library, function, reduction):
    given, options = arguments(function), {"reduction": reduction, "return_info": True}
    found = function(**library.given(given), **options)
    expected = function(**given, **options)
    assert_same(library, found, expected)
    assert isinstance(found[-1].certificate, np.ndarray)  # whatever the arguments are
    np.testing.assert_array_equal(found[-1].certificate, expected[-1].certificate)


@every_library
@named(WITH_GRAD)
def test_cost_weights(library, function):
    given, weights = arguments(function), np.array([0.5, -1.0, 0.0, 2.0])
    expected = function(**given, cost_weights=weights)
    given = library.given(given)
    for same in library.make(weights), weights, weights.tolist():
        assert_same(library, function(**given, cost_weights=same), expected)


@pytest.mark.parametrize("library", ["torch", "jax", "foreign"], indirect=True)
@named(WITH_GRAD)
def test_gradients_that_overflow_float16_are_inf(library, function):
    """No warning, and no error, whatever is made of floating point errors elsewhere."""
    given = arguments(function)
    given |= {name: given[name].astype(np.float16) for name in float_names(function)}
    with np.errstate(all="raise"):
        _, grad = function(**library.given(given), cost_weights=[1e7] * 4)
    for one in flat(grad):
        assert np.isinf(library.read(one)).any()
        assert not np.isnan(library.read(one)).any()


@every_library
@joint_functions
def test_no_bias(library, function):
    given = arguments(function, bias=None)
    assert_same(library, function(**library.given(given)), function(**given))


@every_library
@named(OF_LOGITS)
def test_the_warning_is_for_the_caller(library, function):
    given = arguments(function)
    given["logits"] -= np.logaddexp.reduce(given["logits"], axis=-1, keepdims=True)
    with pytest.warns(UserWarning, match="fused_log_softmax=False") as caught:
        function(**library.given(given))
    assert [warning.filename for warning in caught] == [__file__]


@every_function
@pytest.mark.parametrize("pinned_for", [CUDA_HOST, ROCM_HOST])
def test_pinned_memory_is_of_the_host(function, pinned_for):
    given = arguments(function)
    arrays = MINIMAL.given(given)
    for name in array_names(function):
        arrays[name].device = pinned_for, 0
    assert_same(NUMPY, function(**arrays), function(**given))


# Kinds that differ


@every_library
@every_function
def test_integers_of_any_library(library, function):
    given = arguments(function)
    expected = function(**given)
    assert_same(NUMPY, function(**library.given(given, *INTEGERS)), expected)
    floats = library.given(given, *float_names(function))
    assert_same(library, function(**floats), expected)
    lists = {name: given[name].tolist() for name in INTEGERS}
    assert_same(library, function(**floats | lists), expected)


@every_library
@every_function
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1"])
def test_integers_of_any_dtype(library, function, dtype):
    given = arguments(function)
    narrow = {name: library.make(given[name].astype(dtype)) for name in INTEGERS}
    assert_same(NUMPY, function(**given | narrow), function(**given))


@every_library
@joint_functions
def test_the_first_argument_decides(library, function):
    given = arguments(function)
    expected, first = function(**given), "encoder_out"
    others = [name for name in given if name != first]
    assert_same(library, function(**library.given(given, first)), expected)
    assert_same(NUMPY, function(**library.given(given, *others)), expected)
    lists = library.given(given, *others) | {first: given[first].tolist()}
    assert_same(NUMPY, function(**lists), expected)


def test_three_libraries_in_one_call():
    function = cupy_rnnt.joint_rnnt_loss_and_grad
    given = arguments(function)
    with library_of("jax") as jax, library_of("torch") as torch, library_of("strict") as strict:
        mixed = torch.given(given, "encoder_out", "targets")
        mixed = strict.given(mixed, "predictor_out", "logit_lengths")
        mixed = jax.given(mixed, "weight", "target_lengths")
        assert_same(torch, function(**mixed), function(**given))


# How the library is found


def test_subclasses_come_back_as_what_their_library_makes():
    torch = needed("torch")

    class Own(torch.Tensor):
        pass

    given = arguments(cupy_rnnt.rnnt_loss)
    logits = torch.from_numpy(given["logits"])
    for kind in Own, lambda tensor: torch.nn.Parameter(tensor, requires_grad=False):
        loss = cupy_rnnt.rnnt_loss(**given | {"logits": kind(logits)})
        assert type(loss) is torch.Tensor


@pytest.fixture
def package(monkeypatch):
    """A package without an array API namespace, and a type that is from one of its modules."""
    module = ModuleType("some_library")
    monkeypatch.setitem(sys.modules, "some_library", module)
    module.kind = type("Kind", (Exporter,), {"__module__": "some_library.arrays"})
    return module


def test_the_package_of_the_type_makes_the_results(package):
    given = arguments(cupy_rnnt.rnnt_loss_and_grad)
    expected = cupy_rnnt.rnnt_loss_and_grad(**given)
    given["logits"] = package.kind(given["logits"])
    for result in cupy_rnnt.rnnt_loss_and_grad(**given):
        assert isinstance(result, np.ndarray | np.generic)  # it has no from_dlpack
    package.from_dlpack = Foreign.from_dlpack
    assert_same(FOREIGN, cupy_rnnt.rnnt_loss_and_grad(**given), expected)


def test_the_namespace_comes_before_the_package(package):
    def fails(_: Any) -> Any:
        raise AssertionError

    package.from_dlpack = fails
    package.kind.__array_namespace__ = Foreign.__array_namespace__
    given = arguments(cupy_rnnt.rnnt_loss)
    loss = cupy_rnnt.rnnt_loss(**given | {"logits": package.kind(given["logits"])})
    assert_read(FOREIGN, loss, cupy_rnnt.rnnt_loss(**given))
