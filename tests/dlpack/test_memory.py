"""No copies: whose memory arrays of other libraries are, and until when."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref

import numpy as np
import pytest

from cupy_rnnt import dlpack, joint, rnnt_loss_and_grad
from cupy_rnnt import logits as logits_front
from cupy_rnnt.ops import numpy as cpu

from ..arguments.cases import (
    arguments,
    array_names,
    assert_same_bits,
    every_function,
    float_names,
    functions_with_grad,
)
from ..device_calls import allocated
from . import capsules
from .capsules import CPU, NewExporter
from .cases import assert_read, every_dtype, needed, of


def flat(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


def on_64_bytes(dtype):
    """An array of which JAX needs no copy."""
    array = cpu.zeros((2, 3, 4), dtype)
    array[...] = np.arange(24).reshape(2, 3, 4)
    return array


# Shared


@every_dtype
def test_imports_share_memory(library, dtype):
    array = library.make(on_64_bytes(dtype))
    found = dlpack.imported(array)
    desired = array.array if library.name == "minimal" else library.read(array)
    assert found.ctypes.data == desired.ctypes.data
    np.testing.assert_array_equal(found, desired, strict=True)


@every_dtype
def test_exports_share_memory(library, dtype):
    array = on_64_bytes(dtype)
    found = dlpack.exported(array, like=library.make(array.copy()))
    assert_read(library, found, array)
    assert library.read(found).ctypes.data == array.ctypes.data


@every_dtype
@functions_with_grad
def test_gradients_stay_where_they_were_computed(library, dtype, function, monkeypatch):
    made, zeros = set(), cpu.zeros

    def recorded(shape, dtype):
        array = zeros(shape, dtype)
        made.add((shape, array.ctypes.data))
        return array

    monkeypatch.setattr(cpu, "zeros", recorded)
    monkeypatch.setattr(cpu, "result", recorded)
    given = arguments(function)
    given |= {name: given[name].astype(dtype) for name in float_names(function)}
    for gradient in flat(function(**library.given(given))[1]):
        found = library.read(gradient)
        assert (found.shape, found.ctypes.data) in made


@of("torch", "strict", "foreign", "minimal")
@functions_with_grad
def test_nothing_more_is_allocated_than_for_numpy(library, function):
    given = arguments(function)
    peaks = []
    for version in (given, library.given(given)) * 2:  # of which the first two fill caches
        with allocated() as peak:
            function(**version)
        peaks.append(peak.bytes)
    assert peaks[3] < peaks[2] + 2**14  # objects of Python's


# Lifetimes


class Temporary(NewExporter):
    """What it exports belongs to the capsule alone."""

    def capsule(self, kind, name):
        return NewExporter(self.array.copy()).capsule(kind, name)


@every_function
def test_memory_is_kept_as_long_as_it_is_read(function):
    given = arguments(function)
    before, during = len(capsules.in_use), []
    exporters = {name: Temporary(given[name]) for name in array_names(function)}
    found = function(**given | exporters, progress=lambda *_: during.append(len(capsules.in_use)))
    assert_same_bits(found, function(**given))
    assert max(during) == before + len(float_names(function))  # labels and lengths were copied
    assert len(capsules.in_use) == before


@every_function
@of("torch", "jax", "strict")
@pytest.mark.slow
@pytest.mark.usefixtures("collector")
def test_nothing_holds_arguments_after_the_call(library, function):
    given = library.given(arguments(function))
    function(**given)
    references = [weakref.ref(given[name]) for name in array_names(function)]
    given.clear()
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)


@of("torch", "jax", "strict", "foreign")
@functions_with_grad
@pytest.mark.slow
@pytest.mark.usefixtures("collector")
def test_results_hold_their_memory(library, function, monkeypatch):
    made = []

    def exported(array, like):
        if isinstance(array, np.ndarray):
            made.append(weakref.ref(array))
        return dlpack.exported(array, like)

    given = arguments(function)
    expected = flat(function(**given)[1])
    monkeypatch.setattr(logits_front, "exported", exported)
    monkeypatch.setattr(joint, "exported", exported)
    gradients = flat(function(**library.given(given))[1])
    gc.collect()
    for gradient, desired in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(library.read(gradient), desired)
    del gradients, gradient
    gc.collect()
    assert [array() for array in made] == [None] * len(expected)


class Tampered:
    """NumPy's own capsules, which say something else."""

    def __init__(self, array, **fields):
        self.array, self.fields = array, fields

    def __dlpack_device__(self):
        return CPU, 0

    def __dlpack__(self, **kwargs):
        capsule = self.array.__dlpack__(**kwargs)
        for field, value in self.fields.items():
            setattr(capsules.managed_in(capsule).tensor, field, value)
        return capsule


@pytest.mark.parametrize("fields", [{"lanes": 2}, {"bits": 24}, {"data": None}, {"code": 77}])
@pytest.mark.usefixtures("collector")
def test_memory_that_is_refused_is_released(fields):
    given = arguments(rnnt_loss_and_grad)
    given["logits"] = Tampered(given["logits"], **fields)
    memory = weakref.ref(given["logits"].array)
    with pytest.raises(TypeError, match=r"logits is a .*Tampered that DLPack cannot pass on"):
        rnnt_loss_and_grad(**given)
    given.clear()
    gc.collect()
    assert memory() is None


# What is imported

CALLS = """
import json, sys
import numpy as np
import cupy_rnnt

class Exporter:
    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

{make}
rng = np.random.default_rng(0)
floats = [make(rng.normal(size=s)) for s in [(2, 4, 3, 5), (2, 4, 6), (2, 3, 6), (5, 6), (5,)]]
integers = [make(np.array(x)) for x in ([[1, 2], [3, 0]], [4, 3], [2, 1])]
_, grad = cupy_rnnt.rnnt_loss_and_grad(floats[0], *integers)
cupy_rnnt.joint_rnnt_loss_and_grad(*floats[1:], *integers)
print(json.dumps([type(grad).__module__.split(".")[0], list(sys.modules)]))
"""
MAKE = {
    "numpy": "make = Exporter",
    "torch": "import torch; make = torch.from_numpy",
    "array_api_strict": "import array_api_strict; make = array_api_strict.asarray",
}


@pytest.mark.parametrize("name", MAKE)
def test_no_other_library_is_imported(name):
    needed(name)
    result = subprocess.run(
        [sys.executable, "-c", CALLS.format(make=MAKE[name])],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    kind, modules = json.loads(result.stdout)
    assert kind == name
    assert not {"array_api_strict", "cupy", "jax", "ml_dtypes", "torch"} & set(modules) - {name}
