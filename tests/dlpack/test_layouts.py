"""How arrays of other libraries may lie in memory, and which of them may be overwritten."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt import dlpack, rnnt_loss_and_grad

from ..arguments.cases import (
    LAYOUTS,
    arguments,
    array_names,
    assert_same_bits,
    every_function,
    read_only,
)
from .capsules import Exporter, NewExporter
from .cases import BFLOAT16, asked_for_versions, library_of, needed, of

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


# Read


@every_layout
@pytest.mark.parametrize("kind", [Exporter, NewExporter])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
def test_strides_are_kept(layout, kind, dtype):
    array = layout(np.arange(60.0).reshape(3, 4, 5).astype(dtype))
    found = dlpack.imported(kind(array))
    assert (found.ctypes.data, found.strides) == (array.ctypes.data, array.strides)
    np.testing.assert_array_equal(found, array, strict=True)
    # Before DLPack 1.0 it could not be said whether memory may be written.
    assert not found.flags.writeable or (kind is NewExporter and array.flags.writeable)


@every_function
@every_layout
@pytest.mark.parametrize("kind", [Exporter, NewExporter])
def test_any_layout_of_numpy(function, layout, kind):
    given = arguments(function)
    given |= {name: layout(given[name]) for name in array_names(function)}
    others = {name: kind(given[name]) for name in array_names(function)}
    assert_same_bits(function(**given | others), function(**given))


def reversed_axes(tensor):
    axes = tuple(range(tensor.ndim))[::-1]
    return tensor.permute(axes).contiguous().permute(axes)


def every_other(tensor):
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def amid_others(tensor):
    return tensor.repeat(3, *[1] * (tensor.ndim - 1))[len(tensor) : 2 * len(tensor)]


@every_function
@pytest.mark.parametrize("layout", [reversed_axes, every_other, amid_others])
def test_any_layout_of_torch(function, layout):
    torch = needed("torch")
    given = arguments(function)
    names = array_names(function)
    tensors = {name: layout(torch.from_numpy(given[name])) for name in names}
    given |= {name: tensor.numpy() for name, tensor in tensors.items()}
    assert_same_bits(function(**given | tensors), function(**given))


@every_function
def test_one_row_for_all_samples(function):
    torch = needed("torch")
    given, name = arguments(function), array_names(function)[0]
    row = torch.from_numpy(given[name][:1])
    expected = function(**given | {name: row.numpy().repeat(len(given[name]), axis=0)})
    assert_same_bits(function(**given | {name: row.expand(given[name].shape)}), expected)


# Overwritten


def overwritten(logits):
    given = arguments(rnnt_loss_and_grad)
    return rnnt_loss_and_grad(**given | {"logits": logits}, overwrite_logits=True)


@asked_for_versions
@of("torch", "strict", "foreign")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_gradient_takes_the_place_of_logits(library, dtype):
    array = arguments(rnnt_loss_and_grad)["logits"].astype(dtype)
    logits, (_, expected) = library.make(array), overwritten(array.copy())
    loss, grad = overwritten(logits)
    assert grad is logits
    assert isinstance(loss, library.kind)
    np.testing.assert_array_equal(array, expected)


@asked_for_versions
@of("torch", "foreign")
def test_bfloat16_too(library):
    array = arguments(rnnt_loss_and_grad)["logits"].astype(BFLOAT16)
    logits, (_, expected) = library.make(array), overwritten(array.copy())
    assert overwritten(logits)[1] is logits
    np.testing.assert_array_equal(array, expected)


@asked_for_versions
@every_layout
def test_in_any_layout(layout):
    array = layout(arguments(rnnt_loss_and_grad)["logits"])
    if array.flags.writeable:
        _, expected = overwritten(array.copy())
        overwritten(NewExporter(array))
        np.testing.assert_array_equal(array, expected)


READ_ONLY = {
    "by its flag": lambda array: NewExporter(read_only(array)),
    "for want of a flag": Exporter,
    "as of the array API": lambda array: made("strict", read_only(array)),
    "as all of JAX": lambda array: made("jax", array),
}


def made(name, array):
    with library_of(name) as library:
        return library.make(array)


@pytest.mark.parametrize("make", READ_ONLY.values(), ids=READ_ONLY)
def test_not_if_memory_is_read_only(make):
    array = arguments(rnnt_loss_and_grad)["logits"].astype(np.float32)
    logits = make(array)
    with pytest.raises(ValueError, match="logits is read-only, but a writeable array is needed"):
        overwritten(logits)
    np.testing.assert_array_equal(dlpack.imported(logits), array)


def test_not_if_elements_share_memory():
    torch = needed("torch")
    array = arguments(rnnt_loss_and_grad)["logits"]
    before = array.copy()
    for stride in 0, array.itemsize, array.strides[1], -array.strides[2]:
        strides = (stride, *array.strides[1:])
        start = array[-1:] if stride < 0 else array
        overlapping = np.lib.stride_tricks.as_strided(start, array.shape, strides)
        logits = [overlapping, NewExporter(overlapping)]
        if stride >= 0:
            logits.append(torch.from_numpy(overlapping))
        for version in logits:
            with pytest.raises(ValueError, match="logits has elements that share memory"):
                overwritten(version)
    np.testing.assert_array_equal(array, before)
