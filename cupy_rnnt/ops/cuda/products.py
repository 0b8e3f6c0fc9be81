"""Products of matrices on CuPy arrays, by cuBLAS."""

from __future__ import annotations

import functools

import numpy as np

from ..types import DeviceArray
from .launch import WARP, Kernel, cublas, cupy, element_strides

__all__ = ["add_matmul", "factor_dtype", "matmul", "product_bytes", "splits"]

_HALVES = {"float16": "CUDA_R_16F", "bfloat16": "CUDA_R_16BF"}
_FACTORS = np.array([0.0, 1.0], np.float32)  # cuBLAS reads them where they are
_ADDRESSES = {x: _FACTORS[i:].ctypes.data for i, x in enumerate(_FACTORS.tolist())}

_SPLIT = Kernel("split", "split.cu", threads=WARP, variants=((),))
# A100, H100, B200 and B300: by their data sheets, tensor cores multiply TF32 more than seven times
# as fast as other units multiply float32. Those of an RTX 4090 are no faster than these, and three
# products for one would take longer.
_FAST_TF32 = "80", "90", "100", "103"
# Tensor cores cut off the sum of every 8 products, by half a unit of its last place on average, so
# that a sum of 1024 terms of one sign is 3e-6 of itself too small. float32 rounds, and is off by an
# eighth of that. With more terms, results would be less exact than those of float32 have to be.
_DEEPEST = 1024
# To split factors moves 16 bytes an element. By the data sheets, an H100 gains more than that takes
# where ``rows * columns / (rows + columns)`` is above 269, an A100 above 122.
_LEAST_SIZE = 256


@functools.cache  # a dtype takes 1.5 us for its name, whenever it is asked
def factor_dtype(dtype: np.dtype) -> np.dtype | None:
    """Half types: tensor cores multiply them, and add up in float32."""
    return dtype if dtype.name in _HALVES else None


@functools.cache
def _types(dtype: np.dtype) -> tuple[str, str]:
    """What CUDA calls the type of factors, and cuBLAS the way to multiply them."""
    if factor_dtype(dtype):
        return _HALVES[dtype.name], "CUBLAS_COMPUTE_32F"
    return "CUDA_R_32F", "CUBLAS_COMPUTE_32F_FAST_TF32"


def splits(dtype: np.dtype) -> bool:
    return bool(dtype == np.float32) and cupy().cuda.Device().compute_capability in _FAST_TF32


def _gains(rows: int, depth: int, columns: int) -> bool:
    """Whether a product gains by being split."""
    aligned = depth % 4 == columns % 4 == 0  # cuBLAS has no fast kernel for others
    large = rows * columns >= _LEAST_SIZE * (rows + columns)
    return aligned and large and depth <= _DEEPEST


def product_bytes(dtype: np.dtype, rows: int, depth: int, columns: int) -> int:
    if not splits(dtype) or not _gains(rows, depth, columns):
        return 0
    return 3 * dtype.itemsize * depth * (rows + columns)


def matmul(a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
    (rows, depth), columns = a.shape, b.shape[1]
    if splits(a.dtype) and _gains(rows, depth, columns):
        _gemm_ex(*_split(a, b), out, 0.0)
    else:
        _gemm(a, b, out, 0.0)


def add_matmul(a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
    """``out += a @ b``"""
    _gemm(a, b, out, 1.0)


def _gemm(a: DeviceArray, b: DeviceArray, out: DeviceArray, beta: float) -> None:
    """``out = a @ b + beta * out``, without a copy of `out`, which :func:`cupy.matmul` makes."""
    if factor_dtype(a.dtype):
        _gemm_ex(a, b, out, beta)
    else:
        cublas().gemm("N", "N", a, b, out=out, beta=beta)


def _gemm_ex(a: DeviceArray, b: DeviceArray, out: DeviceArray, beta: float) -> None:
    """The same on tensor cores, of half types or of float32, which become TF32; `out` is
    float32."""
    cuda = cupy().cuda
    factors, compute = _types(a.dtype)
    kind = getattr(cuda.runtime, factors)
    (rows, depth), columns = a.shape, b.shape[1]
    # cuBLAS reads matrices by columns, so a row-major matrix is its transpose there: b.T @ a.T.
    (of_a, a_step), (of_b, b_step) = _layout(a), _layout(b)
    cuda.cublas.gemmEx(
        *(cuda.device.get_cublas_handle(), of_b, of_a, columns, rows, depth, _ADDRESSES[1.0]),
        *(b.data.ptr, kind, b_step, a.data.ptr, kind, a_step),
        *(_ADDRESSES[beta], out.data.ptr, cuda.runtime.CUDA_R_32F, columns),
        *(getattr(cuda.cublas, compute), cuda.cublas.CUBLAS_GEMM_DEFAULT),
    )


def _split(a: DeviceArray, b: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """Factors of three times the depth, which TF32 holds and whose product is that of these."""
    memory = cupy().empty(3 * (a.size + b.size), np.float32)
    arguments_a, parts_a = _parts(a, 1, memory[: 3 * a.size])
    arguments_b, parts_b = _parts(b, 0, memory[3 * a.size :])
    _SPLIT[()](arguments_a[1] + arguments_b[1], *arguments_a, *arguments_b)
    return parts_a, parts_b


def _parts(
    matrix: DeviceArray, axis: int, memory: DeviceArray
) -> tuple[tuple[DeviceArray | int, ...], DeviceArray]:
    """The arguments of the kernel for a matrix, and where in `memory` it writes three parts of it
    that follow each other along an axis."""
    by_row, by_column = element_strides(matrix)
    if by_column != 1:
        arguments, parts = _parts(matrix.T, 1 - axis, memory)
        return arguments, parts.T
    rows, width = matrix.shape
    parts = memory.reshape((rows, 3 * width) if axis else (3 * rows, width))
    part, step = (width, 3 * width) if axis else (rows * width, width)
    return (matrix, rows, by_row, width, parts, part, step), parts


def _layout(matrix: DeviceArray) -> tuple[int, int]:
    """The operation of cuBLAS on the transpose of a matrix, and its leading dimension: the elements
    from row to row of a row-major matrix, from column to column of a column-major one."""
    cublas = cupy().cuda.cublas
    by_row, by_column = element_strides(matrix)
    if by_column == 1:
        return cublas.CUBLAS_OP_N, max(by_row, matrix.shape[1])
    return cublas.CUBLAS_OP_T, max(by_column, matrix.shape[0])
