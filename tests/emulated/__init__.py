"""CuPy without a GPU: the names of it that the package uses, over NumPy and the PTX emulator.

With ``sys.modules["cupy"]`` set to this module (fixture ``device`` does that), the package runs on
an emulated device, its own launch code included. What is stricter than CuPy:

- Memory is poisoned when it is allocated; who reads it unwritten fails, in kernels and outside.
- Kernels are checked by ``tests.ptxemu``; warnings are errors, too. Blocks run in random order.
- Arguments of kernels must have the size of the parameters, and be on the current device.
- No function takes a keyword that CuPy does not know, or an array of NumPy.

``kernels.launches`` tells which kernels ran, ``kernels.options`` how; ``arrays.operations`` what
the device was asked for, and how often; ``arrays.waits`` how often the host waited;
``get_default_memory_pool()`` which bytes are and were in use. The module
``in_place_of_cupy`` is for programs that are no tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arrays, cublas, cuda, dlpack, kernels, memory
from .arrays import FUNCTIONS, UFUNCS, WAITING, ndarray
from .dlpack import from_dlpack
from .kernels import RawKernel, RawModule

__all__ = [
    "RawKernel",
    "RawModule",
    "arange",
    "array",
    "asarray",
    "ascontiguousarray",
    "asnumpy",
    "broadcast_to",
    "copyto",
    "cublas",
    "cuda",
    "dlpack",
    "empty",
    "empty_like",
    "from_dlpack",
    "full",
    "full_like",
    "get_default_memory_pool",
    "kernels",
    "matmul",
    "memory",
    "ndarray",
    "ones",
    "zeros",
    "zeros_like",
    *FUNCTIONS,
    *UFUNCS,
    *WAITING,
]

__version__ = "emulated"

for _name, _parameters in FUNCTIONS.items():
    globals()[_name] = arrays.by_numpy(_name, _parameters)
for _name, _parameters in WAITING.items():
    globals()[_name] = arrays.waiting(_name, _parameters)
for _name in UFUNCS:
    globals()[_name] = arrays.ufunc(_name)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    new = ndarray(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order=order)
    new.fill(fill_value)
    return new


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> ndarray:
    fortran = order == "F" or (order in "KA" and not prototype.flags.c_contiguous)
    fortran = fortran and (order == "F" or prototype.flags.f_contiguous)
    return ndarray(
        prototype.shape if shape is None else shape,
        prototype.dtype if dtype is None else dtype,
        order="F" if fortran else "C",
    )


def full_like(
    a: ndarray,
    fill_value: Any,
    dtype: Any = None,
    order: str = "K",
    subok: None = None,
    shape: Any = None,
) -> ndarray:
    new = empty_like(a, dtype, order, subok, shape)
    new.fill(fill_value)
    return new


def zeros_like(
    a: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> ndarray:
    return full_like(a, 0, dtype, order, subok, shape)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    if stop is None:
        start, stop = 0, start
    return arrays.to_device(arrays.asked("arrays", np.arange(start, stop, step, dtype)))


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    if isinstance(obj, ndarray):
        same = dtype is None or obj.dtype == dtype
        contiguous = order != "C" or obj.flags.c_contiguous
        if same and contiguous and not copy and obj.ndim >= ndmin:
            return obj
        obj = arrays.asked("arrays", memory.checked(obj.host))
    else:
        arrays.asked("copies", obj)
    return arrays.to_device(np.array(obj, dtype, order=order, ndmin=ndmin))


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False
) -> ndarray:
    return array(a, dtype, bool(copy), order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, False, "C", ndmin=1)


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    return a.get(order=order) if isinstance(a, ndarray) else np.asarray(a, order=order)


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return ndarray.of(np.broadcast_to(array.host, shape))


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: None = None) -> None:
    arrays.call(lambda value: np.broadcast_to(value, dst.shape), src, out=dst)


def matmul(x1: ndarray, x2: ndarray, /, out: ndarray | None = None) -> ndarray:
    return arrays.call(np.matmul, x1, x2, out=out)


def get_default_memory_pool() -> memory.MemoryPool:
    return memory.default_pool
