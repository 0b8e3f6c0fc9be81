"""CUB and Thrust, which are compiled into CuPy, where the stand-in cannot see them: done here.

Their calls are counted, allocate as theirs do, and compute with NumPy if there are values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import CUB, SORT

View = Callable[[int, tuple, Any, tuple | None], np.ndarray]
_SCRATCH = 1024  # bytes; CUB asks for about as much


def install(view: View | None) -> None:
    """`view` makes an array of a device pointer, shape, dtype and strides; None: no values."""
    import cupy
    from cupy.cuda import cub

    from . import counts

    operations = {
        int(getattr(cub, f"CUPY_CUB_{name}")): operation
        for name, operation in {
            "SUM": lambda x, axis: x.sum(axis, x.dtype, keepdims=True),
            "PROD": lambda x, axis: x.prod(axis, x.dtype, keepdims=True),
            "MIN": lambda x, axis: x.min(axis, keepdims=True),
            "MAX": lambda x, axis: x.max(axis, keepdims=True),
            "ARGMIN": lambda x, axis: x.argmin(keepdims=True),
            "ARGMAX": lambda x, axis: x.argmax(keepdims=True),
            "CUMSUM": lambda x, axis: x.cumsum(dtype=x.dtype).reshape(x.shape),
            "CUMPROD": lambda x, axis: x.cumprod(dtype=x.dtype).reshape(x.shape),
        }.items()
    }
    missing = {"device_scan", "device_reduce", "device_segmented_reduce"} - {*dir(cub)}
    if missing:
        raise RuntimeError(f"the stand-in is for CuPy 14.2: this one has no cub.{missing.pop()}")

    def compute(op: Any, x: Any, out: Any, axis: tuple | None) -> None:
        counts[CUB] += 1
        cupy.cuda.alloc(_SCRATCH)
        if view:
            operand = view(x.data.ptr, x.shape, x.dtype, x.strides)
            with np.errstate(all="ignore"):
                values = operations[int(op)](operand, axis)
            view(out.data.ptr, out.shape, out.dtype, out.strides)[...] = values.reshape(out.shape)

    def device_scan(x, op):
        if x.size:
            compute(op, x, x, None)
        return x

    def device_reduce(x, op, reduce_axis, out_axis, out=None, keepdims=False):
        arg = int(op) in (int(cub.CUPY_CUB_ARGMIN), int(cub.CUPY_CUB_ARGMAX))
        y = cupy.empty((), np.int64 if arg else x.dtype)
        compute(op, x, y, None)
        return finish(y.reshape((1,) * x.ndim) if keepdims else y, out)

    def device_segmented_reduce(
        x, op, reduce_axis, out_axis, out=None, keepdims=False, contiguous_size=0
    ):
        kept = [n if i in out_axis else 1 for i, n in enumerate(x.shape)]
        shape = tuple(kept) if keepdims else tuple(x.shape[i] for i in out_axis)
        y = cupy.empty(shape, x.dtype, order="C" if x.flags.c_contiguous else "F")
        compute(op, x, y, tuple(reduce_axis))
        return finish(y, out)

    def finish(y, out):
        if out is None:
            return y
        out[...] = y
        return out

    cub.device_scan, cub.device_reduce = device_scan, device_reduce
    cub.device_segmented_reduce = device_segmented_reduce
    _install_sorts(view)


def _install_sorts(view: View | None) -> None:
    from cupy.cuda import thrust

    from . import counts

    def sort(dtype, data, keys, shape):
        counts[SORT] += 1
        if view:
            values = view(data, tuple(shape), dtype, None)
            values[...] = np.sort(values, axis=-1)

    def argsort(dtype, index, data, keys, shape):
        counts[SORT] += 1
        if view:
            order = np.argsort(view(data, tuple(shape), dtype, None), axis=-1, kind="stable")
            view(index, tuple(shape), np.int64, None)[...] = order

    def lexsort(dtype, index, keys, k, n):
        counts[SORT] += 1
        if view:
            view(index, (n,), np.int64, None)[...] = np.lexsort(view(keys, (k, n), dtype, None))

    thrust.sort, thrust.argsort, thrust.lexsort = sort, argsort, lexsort
