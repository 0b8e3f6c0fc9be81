"""Arrays of other libraries that are refused, and what the error says."""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any

import numpy as np
import pytest

from cupy_rnnt import rnnt_loss_and_grad

from ..arguments.cases import (
    LENGTHS,
    B,
    U,
    V,
    arguments,
    array_names,
    changed,
    every_function,
    float_names,
    functions_with_grad,
    joint_functions,
)
from .capsules import CPU, CUDA, METAL, ROCM, Exporter, Managed, NewExporter, Versioned, taken
from .cases import BFLOAT16, asked_for_versions, every_library, library_of, needed


def refused(function, error, *words, **changes):
    """The message holds all the words."""
    with pytest.raises(error) as caught:
        function(**arguments(function) | changes)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)


def not_passed_on(function, exporter, *words, error=TypeError):
    for name in array_names(function):
        kind = f"{name} is a {type(exporter).__module__}.{type(exporter).__qualname__} that DLPack"
        refused(function, error, kind, *words, **{name: exporter})


# What all libraries have in common with NumPy


@every_library
@every_function
def test_the_same_errors_as_for_numpy(library, function):
    wrong = {
        "targets": (np.full((B, U), V), np.ones((B, U + 1), int), np.ones((B, U))),
        "logit_lengths": (np.zeros(B, int), np.ones(B + 1, int), np.ones(B, bool)),
        "target_lengths": (np.full(B, -1), np.ones((B, 1), int)),
    }
    for name in float_names(function):
        array = arguments(function)[name]
        wrong[name] = array[None], array.astype(int), array.astype(complex), array[..., :0]
    for name, versions in wrong.items():
        for version in versions:
            with pytest.raises((TypeError, ValueError)) as of_numpy:
                function(**arguments(function) | {name: version})
            refused(
                function, type(of_numpy.value), str(of_numpy.value), **{name: library.make(version)}
            )


@joint_functions
@every_library
def test_dtypes_that_differ(library, function):
    for name in "predictor_out", "weight", "bias":
        wrong = library.make(arguments(function)[name].astype(np.float32))
        refused(function, TypeError, f"{name} has dtype float32, but float64", **{name: wrong})


@functions_with_grad
@every_library
def test_cost_weights(library, function):
    for wrong, error in (
        (np.ones(B + 1), ValueError),
        (changed(np.ones(B), 2, np.nan), ValueError),
    ):
        refused(function, error, "cost_weights", cost_weights=library.make(wrong))


# PyTorch


@every_function
def test_a_gradient_is_not_lost_silently(function):
    torch = needed("torch")
    for name in float_names(function):
        tensor = torch.from_numpy(arguments(function)[name]).requires_grad_()
        words = f"{name} is a torch.Tensor", "differentiated", "use cupy_rnnt.torch"
        for version in tensor, torch.nn.Parameter(tensor.detach()), tensor * 2:
            refused(function, TypeError, name, *words[1:], **{name: version})
        with torch.no_grad():
            refused(function, TypeError, *words, **{name: tensor})
            function(**arguments(function) | {name: tensor * 2})
        function(**arguments(function) | {name: tensor.detach()})


def tensors_without_memory_of_their_own():
    torch = needed("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    ones = torch.ones(2, 3, 4, 5)
    yield ones.to_sparse(), "layout"
    yield torch.ones(2, 3, device="meta"), "meta"
    yield torch.complex(ones, ones).conj(), "conjugate"
    yield torch.complex(ones, ones).conj().imag, "resolve_neg"
    for layout in torch.strided, torch.jagged:
        yield torch.nested.nested_tensor([ones[0], ones[1]], layout=layout), "to_padded_tensor"
    with FakeTensorMode():
        yield torch.ones(2, 3), "no memory"


@every_function
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_tensors_that_are_more_than_memory(function):
    for tensor, word in tensors_without_memory_of_their_own():
        not_passed_on(function, tensor, word)


def test_tensors_under_vmap():
    torch = needed("torch")
    given = arguments(rnnt_loss_and_grad)
    logits = torch.from_numpy(given.pop("logits"))[None]
    with pytest.raises(TypeError, match=r"logits is a torch\.Tensor that DLPack cannot pass on"):
        torch.vmap(lambda logits: rnnt_loss_and_grad(logits, **given))(logits)


# JAX


@every_function
@pytest.mark.parametrize("transform", ["jit", "grad", "vmap"])
def test_traced_arrays(function, transform):
    jax = needed("jax")
    with library_of("jax") as library:
        for name in float_names(function):
            given = arguments(function)
            array = library.make(given[name])
            words = rf"{name} is a jax\S*Tracer that is .* traced: use cupy_rnnt\.jax"
            call = getattr(jax, transform)(lambda x: function(**given | {name: x}))  # noqa: B023
            with pytest.raises(TypeError, match=words):
                call(array)


def test_deleted_arrays():
    with library_of("jax") as library:
        logits = library.make(arguments(rnnt_loss_and_grad)["logits"])
        logits.delete()
        not_passed_on(rnnt_loss_and_grad, logits)


# Exporters that fail


class Failing:
    def __init__(self, error):
        self.error = error

    def __dlpack_device__(self):
        return CPU, 0

    def __dlpack__(self, **kwargs):
        raise self.error


@every_function
@pytest.mark.parametrize("error", [BufferError, RuntimeError, NotImplementedError, ValueError])
def test_what_an_exporter_raises_is_the_reason(function, error):
    exporter = Failing(error("the memory is gone\nfor ever"))
    not_passed_on(function, exporter, "the memory is gone")
    with pytest.raises(TypeError) as caught:
        function(**arguments(function) | {"targets": exporter})
    assert caught.value.__cause__ is exporter.error
    assert "for ever" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, KeyError])
def test_what_is_no_reason_stays_as_it_is(error):
    refused(rnnt_loss_and_grad, error, logits=Failing(error()))


# Devices


class Somewhere(NewExporter):
    """Where `device` says, and that may be anything."""

    def __init__(self, device: Any) -> None:
        super().__init__(np.ones((B, U)), (CPU, 0))
        self.where = device

    def __dlpack_device__(self) -> Any:
        if isinstance(self.where, Exception):
            raise self.where
        return self.where


@every_function
@pytest.mark.parametrize("number", [METAL, ROCM, 0, 99])
def test_other_devices(function, number):
    not_passed_on(function, Somewhere((number, 0)), f"device of DLPack's type {number},")


@pytest.mark.parametrize("place", [None, 1, (), ("cpu", 0), BufferError("x"), TypeError("x")])
def test_devices_that_are_none(place):
    not_passed_on(rnnt_loss_and_grad, Somewhere(place))


def test_half_of_the_protocol():
    exporter = type("Half", (), {"__dlpack__": lambda self, **kwargs: None})()
    not_passed_on(rnnt_loss_and_grad, exporter, "__dlpack_device__")
    other = type("Half", (), {"__dlpack_device__": lambda self: (CPU, 0)})()
    refused(rnnt_loss_and_grad, TypeError, "another array with __dlpack__", logits=other)


@every_function
def test_cuda_without_cupy(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    not_passed_on(function, Somewhere((CUDA, 0)), "need CuPy", "cupy-cuda12x", error=ImportError)


@every_function
def test_bfloat16_without_its_package(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    exporter = NewExporter(np.ones((B, U), BFLOAT16))
    not_passed_on(function, exporter, "ml_dtypes", error=ImportError)


# Exporters that lie


class Returning(Somewhere):
    """It passes on something else than a capsule of its own."""

    def __init__(self, returned: Any) -> None:
        super().__init__((CPU, 0))
        self.returned = returned

    def __dlpack__(self, **kwargs):
        return self.returned


def other_capsules():
    used = NewExporter(np.ones(3)).capsule(Versioned, b"dltensor_versioned")
    taken(used)
    return used, NewExporter(np.ones(3)).capsule(Managed, b"another name")


@every_function
def test_what_is_no_capsule(function):
    for returned in (None, 0, b"dltensor", np.ones(3), *other_capsules()):
        not_passed_on(function, Returning(returned), repr(returned), "no unused capsule")


@pytest.mark.parametrize("kind", [Exporter, NewExporter])
@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"data": None}, "no memory"),
        ({"shape": None}, "no shape"),
        ({"ndim": -1}, "dimensions"),
        ({"device": (ctypes.c_int32 * 2)(CUDA, 0)}, "device"),
        ({"device": (ctypes.c_int32 * 2)(METAL, 0)}, "device"),
        ({"lanes": 4}, "lanes"),
        ({"bits": 4}, "dtype"),
        ({"bits": 128}, "dtype"),
        ({"code": 7}, "dtype"),
        ({"code": 4, "bits": 64}, "dtype"),
        ({"ndim": 1000}, "dim"),
    ],
)
def test_structures_that_lie(kind, fields, word):
    exporter = kind(np.ones((B, U)))
    exporter.fields = fields
    not_passed_on(rnnt_loss_and_grad, exporter, word)


@asked_for_versions
def test_a_later_version():
    exporter = NewExporter(np.ones((B, U)))
    exporter.fields = {"version": (ctypes.c_uint32 * 2)(2, 1)}
    not_passed_on(rnnt_loss_and_grad, exporter, "of DLPack 2.1, not 1.x")


@every_library
def test_nothing_is_overwritten_before_it_is_refused(library):
    array = arguments(rnnt_loss_and_grad)["logits"]
    before = array.copy()
    for name in "targets", *LENGTHS:
        logits = library.make(array)
        with pytest.raises(TypeError, match=re.escape(f"{name} is a ")):
            rnnt_loss_and_grad(
                **arguments(rnnt_loss_and_grad)
                | {"logits": logits, name: Failing(BufferError("gone"))},
                overwrite_logits=True,
            )
    np.testing.assert_array_equal(array, before)
