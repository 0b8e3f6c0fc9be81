"""Products of matrices on CuPy arrays, by cuBLAS."""

from __future__ import annotations

import numpy as np

from ..types import DeviceArray
from .launch import cublas, cupy, element_strides

__all__ = ["add_matmul", "factor_dtype", "matmul"]

_HALVES = {"float16": "CUDA_R_16F", "bfloat16": "CUDA_R_16BF"}
_FACTORS = np.array([0.0, 1.0], np.float32)  # cuBLAS reads them where they are
_ADDRESSES = {x: _FACTORS[i:].ctypes.data for i, x in enumerate(_FACTORS.tolist())}


def factor_dtype(dtype: np.dtype) -> np.dtype | None:
    """Half types: tensor cores multiply them, and add up in float32."""
    return dtype if dtype.name in _HALVES else None


def matmul(a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
    _gemm(a, b, out, 0.0)


def add_matmul(a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
    """``out += a @ b``"""
    _gemm(a, b, out, 1.0)


def _gemm(a: DeviceArray, b: DeviceArray, out: DeviceArray, beta: float) -> None:
    """``out = a @ b + beta * out``, without a copy of `out`, which :func:`cupy.matmul` makes. With
    factors of half types, `out` is float32."""
    gemm = cublas().gemm
    if a.dtype.name not in _HALVES:
        gemm("N", "N", a, b, out=out, beta=beta)
        return
    cuda = cupy().cuda
    half = getattr(cuda.runtime, _HALVES[a.dtype.name])
    (rows, depth), columns = a.shape, b.shape[1]
    # cuBLAS reads matrices by columns, so a row-major matrix is its transpose there: b.T @ a.T.
    (of_a, a_step), (of_b, b_step) = _layout(a), _layout(b)
    cuda.cublas.gemmEx(
        *(cuda.device.get_cublas_handle(), of_b, of_a, columns, rows, depth, _ADDRESSES[1.0]),
        *(b.data.ptr, half, b_step, a.data.ptr, half, a_step),
        *(_ADDRESSES[beta], out.data.ptr, cuda.runtime.CUDA_R_32F, columns),
        *(cuda.cublas.CUBLAS_COMPUTE_32F, cuda.cublas.CUBLAS_GEMM_DEFAULT),
    )


def _layout(matrix: DeviceArray) -> tuple[int, int]:
    """The operation of cuBLAS on the transpose of a matrix, and its leading dimension: the elements
    from row to row of a row-major matrix, from column to column of a column-major one."""
    cublas = cupy().cuda.cublas
    by_row, by_column = element_strides(matrix)
    if by_column == 1:
        return cublas.CUBLAS_OP_N, max(by_row, matrix.shape[1])
    return cublas.CUBLAS_OP_T, max(by_column, matrix.shape[0])
