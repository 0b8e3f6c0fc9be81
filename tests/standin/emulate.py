"""Launches interpreted by the PTX emulator, matrix products by NumPy: CuPy with real values."""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from tests import standin

_ILLEGAL_ADDRESS, _LAUNCH_FAILURE, _NOT_SUPPORTED = 700, 719, 15
_int, _pointer, _text = ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p
_OnLoad = ctypes.CFUNCTYPE(None, _pointer, _text)
_OnLaunch = ctypes.CFUNCTYPE(
    _int, _text, _pointer, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(_pointer)
)
_OnGemm = ctypes.CFUNCTYPE(
    _int, *[_int] * 6, _pointer, _pointer, _int, _pointer, _int, _pointer, _pointer, _int
)
_ELEMENTS = {0: np.float32, 1: np.float64, 2: np.float16, 14: ml_dtypes.bfloat16}  # cudaDataType
_held: list[Any] = []  # callbacks, and the memory


def install() -> Callable[..., np.ndarray]:
    """Hand launches and products to the emulator and NumPy; returns the `View` of compiled.py."""
    from ..ptxemu import api

    size = int(os.environ.get("STANDIN_MEMORY_MIB", "8192")) << 20  # untouched pages cost nothing
    segment = api.memory.add_raw("device", size)
    arena, base = segment.data, segment.base
    standin.cuda.standin_arena(
        _pointer(arena.ctypes.data), ctypes.c_size_t(base), ctypes.c_size_t(size)
    )

    def view(pointer: int, shape: tuple, dtype: Any, strides: tuple | None) -> np.ndarray:
        return np.ndarray(shape, dtype, arena, pointer - base, strides)

    _held.append(segment)
    kernels = _Kernels()
    _set(standin.cuda, "standin_on_load", _OnLoad(kernels.load))
    _set(standin.cuda, "standin_on_launch", _OnLaunch(kernels.launch))
    _set(standin.blas, "standin_on_gemm", _OnGemm(partial(_gemm, view)))
    return view


def _set(library: ctypes.CDLL, name: str, callback: Any) -> None:
    _held.append(callback)
    _pointer.in_dll(library, name).value = ctypes.cast(callback, _pointer).value


class _Kernels:
    """The PTX of modules by their handles, and the programs of their functions."""

    def __init__(self) -> None:
        self._images: dict[int, str] = {}
        self._modules: dict[int, Any] = {}
        self._programs: dict[tuple[int, bytes], Any] = {}

    def load(self, module: int, image: bytes) -> None:
        self._images[module] = image.decode()

    def launch(self, name: bytes, module: int, geometry: Any, arguments: Any) -> int:
        try:
            report = self._run(name, module, geometry, arguments)
        except Exception:
            print(f"standin: cannot run {name.decode()}", file=sys.stderr)
            traceback.print_exc()
            return _LAUNCH_FAILURE
        if report.errors:
            print(f"standin: error in {name.decode()}: {report}", file=sys.stderr)
            return _ILLEGAL_ADDRESS
        return 0

    def _run(self, name: bytes, module: int, geometry: Any, arguments: Any) -> Any:
        from ..ptxemu import api, interp

        if module not in self._modules:
            self._modules[module] = api.Module(ptx=self._images[module])
        if (module, name) not in self._programs:
            self._programs[module, name] = interp.Program(self._modules[module], name.decode())
        program = self._programs[module, name]
        parameters = bytearray(program.param_size)
        for i, parameter in enumerate(program.entry.params):
            offset = program.entry_params[parameter]
            data = ctypes.string_at(arguments[i], parameter.size)
            parameters[offset : offset + parameter.size] = data
        return interp.launch(
            program,
            tuple(geometry[:3]),
            tuple(geometry[3:6]),
            bytes(parameters),
            geometry[6],
            api.memory,
            self._modules[module].const_seg,
            check_race=False,
            count=False,
        )


def _gemm(view, kind, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) -> int:
    """``c = alpha a b + beta c`` of matrices whose columns are contiguous, as in cuBLAS."""
    try:
        dtype = np.dtype(_ELEMENTS[kind])
        result = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        scalar = ctypes.c_double if result == np.float64 else ctypes.c_float
        alpha, beta = (scalar.from_address(pointer).value for pointer in (alpha, beta))

        def matrix(pointer, leading, rows, columns, dtype, transposed=False):
            step, jump = dtype.itemsize, leading * dtype.itemsize
            strides = (jump, step) if transposed else (step, jump)
            return view(pointer, (rows, columns), dtype, strides)

        x, y = matrix(a, lda, m, k, dtype, ta), matrix(b, ldb, k, n, dtype, tb)
        out = matrix(c, ldc, m, n, result)
        with np.errstate(all="ignore"):
            product = alpha * (x.astype(result) @ y.astype(result))
            out[...] = product + beta * out if beta else product
    except Exception:
        traceback.print_exc()
        return _NOT_SUPPORTED
    return 0
