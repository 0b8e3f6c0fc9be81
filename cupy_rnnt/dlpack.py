"""Arrays of any library that speaks DLPack: taken over by NumPy or CuPy, and given back.

Nothing is copied, and the only library that is imported is the one that computes. NumPy and CuPy do
not know DLPack's bfloat16: a capsule of bfloat16 is renamed to uint16, taken over, and viewed as
the bfloat16 of ml_dtypes. In the other direction, uint16 is renamed to bfloat16. The structures are
those of `dlpack.h
<https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h>`__.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .ops import is_on_cuda
from .ops.types import ArrayLike, DeviceArray

_ON_HOST = 1, 3, 11  # kDLCPU, kDLCUDAHost, kDLROCMHost
_ON_CUDA = 2, 13  # kDLCUDA, kDLCUDAManaged
_UINT, _BFLOAT = 1, 4
_READ_ONLY = 1


class _Tensor(ctypes.Structure):
    """``DLTensor``, with which ``DLManagedTensor`` begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """``DLManagedTensorVersioned``"""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_object_and_name = ctypes.py_object, ctypes.c_char_p
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, *_object_and_name)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, *_object_and_name)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _versioned(capsule: Any) -> _Versioned | None:
    """The content of a capsule of DLPack 1.0 or later; None for an earlier one."""
    if not _is_valid(capsule, b"dltensor_versioned"):
        return None
    managed = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
    if managed.major != 1:
        raise BufferError(f"its capsule is of DLPack {managed.major}.{managed.minor}, not 1.x")
    return managed


def _tensor(capsule: Any) -> _Tensor:
    versioned = _versioned(capsule)
    if versioned is not None:
        tensor: _Tensor = versioned.tensor
        return tensor
    if not _is_valid(capsule, b"dltensor"):
        raise BufferError(f"its __dlpack__ returned {capsule!r}, which is no unused capsule")
    return _Tensor.from_address(_pointer(capsule, b"dltensor"))


class _Renamed:
    """An exporter that replaces a type code of 16-bit elements by another one."""

    def __init__(self, exporter: Any, code: int, new_code: int) -> None:
        self._exporter, self._code, self._new_code = exporter, code, new_code
        self.was_renamed = False

    def __dlpack_device__(self) -> Any:
        return self._exporter.__dlpack_device__()

    def __dlpack__(self, **kwargs: Any) -> Any:
        capsule = self._exporter.__dlpack__(**kwargs)
        tensor = _tensor(capsule)
        if tensor.ndim > 0 and not tensor.shape:
            raise BufferError("it has no shape")
        if not tensor.data and all(tensor.shape[: tensor.ndim]):
            raise BufferError("it has no memory")
        if (tensor.code, tensor.bits) == (self._code, 16):
            tensor.code = self._new_code
            self.was_renamed = True
        return capsule


def adapter_needed(value: ArrayLike) -> str | None:
    """The module of this package for an array that its library traces or differentiates, if so."""
    if getattr(value, "requires_grad", False) is True:
        return "cupy_rnnt.torch"
    jax = sys.modules.get("jax")
    return "cupy_rnnt.jax" if jax and isinstance(value, jax.core.Tracer) else None


def detached(value: ArrayLike) -> ArrayLike:
    """The same array without a derivative, where its library has one that it does not pass on."""
    return value.detach() if getattr(value, "requires_grad", False) is True else value


def _is_compiled(value: ArrayLike) -> bool:
    """Whether an array is a tensor that stands for others while PyTorch traces a function."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    return bool(torch.compiler.is_compiling())


def imported(value: ArrayLike) -> DeviceArray:
    """The memory of an object with ``__dlpack__``, as an array of NumPy, or of CuPy on the object's
    device and CuPy's current stream there."""
    if getattr(value, "is_nested", False) is True:  # PyTorch speaks of an internal error
        raise BufferError("it is nested: pass torch.nested.to_padded_tensor(tensor, 0)")
    if _is_compiled(value):
        raise BufferError(
            "torch.compile traces it: call this function outside of the compiled one, or a loss by "
            "cupy_rnnt.torch"
        )
    device_type, _ = value.__dlpack_device__()
    if device_type in _ON_HOST:
        library: Any = np
    elif device_type in _ON_CUDA:
        from .ops.cuda.launch import cupy

        library = cupy()
    else:
        raise BufferError(f"it is on a device of DLPack's type {int(device_type)}, not CPU or CUDA")
    if getattr(value, "is_neg", bool)():  # PyTorch exports such a tensor with the wrong sign
        raise BufferError("it is a negation yet to be done: pass tensor.resolve_neg()")
    exporter = _Renamed(value, _BFLOAT, _UINT)
    array = library.from_dlpack(exporter)
    if exporter.was_renamed:
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    return array


def is_read_only(value: ArrayLike) -> bool:
    """Whether an object with ``__dlpack__`` does not allow writing to its memory; no DLPack before
    1.0 can allow it."""
    try:
        versioned = _versioned(value.__dlpack__(max_version=(1, 0)))
    except TypeError:  # DLPack before 1.0 has no `max_version`
        return True
    return versioned is None or bool(versioned.flags & _READ_ONLY)


def exported(array: DeviceArray | None, like: ArrayLike) -> ArrayLike:
    """An array of NumPy or CuPy as an array of the library of `like`.

    It is made by ``from_dlpack`` of the library's array API namespace, or else of the package that
    defines the type of `like` or a base of it. If there is neither, the array is returned as it is.
    None stays None.
    """
    if array is None or isinstance(like, (np.ndarray, list, tuple)) or is_on_cuda(like):
        return array
    from_dlpack = _from_dlpack(like)
    if from_dlpack is None:
        return array
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if array.dtype.name == "bfloat16":
        return from_dlpack(_Renamed(array.view(np.uint16), _UINT, _BFLOAT))
    return from_dlpack(array)


def _from_dlpack(like: ArrayLike) -> Callable[[Any], Any] | None:
    if hasattr(like, "__array_namespace__"):
        libraries = [like.__array_namespace__()]
    else:
        packages = (kind.__module__.partition(".")[0] for kind in type(like).__mro__)
        libraries = [sys.modules.get(package) for package in packages]
    return next((x.from_dlpack for x in libraries if hasattr(x, "from_dlpack")), None)
