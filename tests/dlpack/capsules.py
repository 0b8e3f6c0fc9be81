"""DLPack written out by hand: exporters of NumPy arrays, and a reader.

The structures are declared here once more, so that the tests do not trust those of the package.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

import ml_dtypes
import numpy as np

CPU, CUDA, CUDA_HOST, METAL, ROCM, ROCM_HOST, CUDA_MANAGED = 1, 2, 3, 8, 10, 11, 13
CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
BFLOAT = 4
DTYPES = {(CODES[t.kind], 8 * t.itemsize): t for t in map(np.dtype, "?bBhHiIqQefd")}
DTYPES[BFLOAT, 16] = np.dtype(ml_dtypes.bfloat16)
READ_ONLY = 1


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device", c_int32 * 2),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", c_void_p), ("deleter", c_void_p))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32 * 2),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", DLTensor),
    )


_api = ctypes.PyDLL(None)  # declarations of its own
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = c_void_p, ctypes.c_char_p, c_void_p
_api.PyCapsule_GetPointer.restype = c_void_p
for _function in _api.PyCapsule_IsValid, _api.PyCapsule_GetPointer, _api.PyCapsule_SetName:
    _function.argtypes = ctypes.py_object, ctypes.c_char_p

in_use: dict[int, tuple[Any, ...]] = {}
"""What has been exported and not been given back, by the address of its structure. A capsule that
nobody takes over stays, for its destructor would run Python while an error is raised."""


_DELETER = ctypes.CFUNCTYPE(None, c_void_p)
_USED = {Managed: b"used_dltensor", Versioned: b"used_dltensor_versioned"}


@_DELETER
def _delete(address: int) -> None:
    del in_use[address]


def managed_in(capsule: Any) -> Managed | Versioned:
    kinds = (b"dltensor", Managed), (b"dltensor_versioned", Versioned)
    for name, kind in kinds:
        if _api.PyCapsule_IsValid(capsule, name):
            return kind.from_address(_api.PyCapsule_GetPointer(capsule, name))
    raise AssertionError(f"{capsule} is no capsule of DLPack")


class Exporter:
    """The least that speaks DLPack: memory of NumPy, which may say that it is elsewhere.

    `fields` take the place of what the structure would say; the last stream asked for is `stream`.
    """

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (CPU, 0)) -> None:
        self.array, self.device = array, device
        self.fields: dict[str, Any] = {}
        self.stream: Any = "never asked"

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def capsule(self, kind: Any, name: bytes) -> Any:
        array = self.array
        bfloat16 = array.dtype == ml_dtypes.bfloat16
        sizes = (c_int64 * array.ndim)(*array.shape)
        strides = (c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
        tensor = DLTensor(
            array.ctypes.data,
            self.device,
            array.ndim,
            BFLOAT if bfloat16 else CODES[array.dtype.kind],
            8 * array.itemsize,
            1,
            sizes,
            strides,
            0,
        )
        managed = kind(tensor=tensor, deleter=ctypes.cast(_delete, c_void_p))
        if kind is Versioned:
            managed.version[:] = 1, 0
            managed.flags = 0 if array.flags.writeable else READ_ONLY
        for field, value in self.fields.items():
            setattr(managed if hasattr(managed, field) else managed.tensor, field, value)
        address = ctypes.addressof(managed)
        in_use[address] = managed, sizes, strides, array
        return _api.PyCapsule_New(address, name, None)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.stream = stream
        return self.capsule(Managed, b"dltensor")


class NewExporter(Exporter):
    """Of DLPack 1.0."""

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: Any = None,
        copy: Any = None,
    ) -> Any:
        self.stream = stream
        if max_version is None or max_version[0] < 1:
            return self.capsule(Managed, b"dltensor")
        return self.capsule(Versioned, b"dltensor_versioned")


class Given:
    """An exporter of one capsule."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return tuple(managed_in(self.capsule).tensor.device)

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule


def taken(capsule: Any) -> tuple[Any, np.ndarray]:
    """Takes over the memory of a capsule, whatever device it says that it is on: all of it, and the
    array that is in there."""
    managed = managed_in(capsule)
    used = _USED[type(managed)]
    assert _api.PyCapsule_SetName(capsule, used) == 0
    tensor = managed.tensor
    shape = tensor.shape[: tensor.ndim]
    dtype = DTYPES[tensor.code, tensor.bits]
    strides = np.zeros(shape, "i1").strides  # of elements in order, where they are left out
    strides = [s * dtype.itemsize for s in (tensor.strides or strides)[: tensor.ndim]]
    pairs = list(zip(strides, shape, strict=True))
    first = sum(min(stride * (extent - 1), 0) for stride, extent in pairs)
    last = sum(max(stride * (extent - 1), 0) for stride, extent in pairs)
    size = last - first + dtype.itemsize if all(shape) else 0
    memory = (c_uint8 * size).from_address((tensor.data or 0) + tensor.byte_offset + first)
    weakref.finalize(memory, _DELETER(managed.deleter), ctypes.addressof(managed))
    return memory, np.ndarray(shape, dtype, memory, -first, strides)


class Foreign(NewExporter):
    """An array of a library that has a namespace, which makes such arrays."""

    @staticmethod
    def __array_namespace__(api_version: str | None = None) -> type[Foreign]:
        return Foreign

    @staticmethod
    def from_dlpack(x: Any) -> Foreign:
        return Foreign(taken(x.__dlpack__())[1])
