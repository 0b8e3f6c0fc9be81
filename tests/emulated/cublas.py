"""``cupy.cublas``, and the names of ``cupy.cuda.cublas`` below it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .. import ptxemu
from . import memory
from .arrays import asked, call, ndarray

__all__ = ["gemm"]

CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT = 68, 77, -1
TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # CUDA_R_32F and so on


def gemm(
    transa: str,
    transb: str,
    a: ndarray,
    b: ndarray,
    out: ndarray | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Refuses what CuPy would copy first."""
    assert a.ndim == b.ndim == 2
    assert a.dtype == b.dtype
    if a.dtype.name not in ("float32", "float64"):
        raise TypeError("invalid dtype")
    for array in (a, b) if out is None else (a, b, out):
        assert array.flags.c_contiguous or array.flags.f_contiguous
        assert array.dtype == a.dtype
    left, right = (
        {"N": array, "T": array.T}[transposed] for array, transposed in ((a, transa), (b, transb))
    )

    def product(x: np.ndarray, y: np.ndarray, *before: np.ndarray) -> np.ndarray:
        return alpha * (x @ y) + sum(beta * z for z in before)

    before = () if beta == 0 or out is None else (out,)
    return call(product, left, right, *before, out=out, counted="products")


def gemmEx(
    handle: int,
    transa: int,
    transb: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    A: int,
    Atype: int,
    lda: int,
    B: int,
    Btype: int,
    ldb: int,
    beta: int,
    C: int,
    Ctype: int,
    ldc: int,
    computeType: int,
    algo: int,
) -> None:
    """Matrices are columns behind each other, as for cuBLAS; of half types, or of float32 as TF32,
    with float32 sums."""
    in_tf32 = Atype == TYPES["float32"]
    assert computeType == (CUBLAS_COMPUTE_32F_FAST_TF32 if in_tf32 else CUBLAS_COMPUTE_32F)
    assert (handle, algo, Btype, Ctype) == (get_cublas_handle(), -1, Atype, TYPES["float32"])
    by, kept = (ctypes.c_float.from_address(pointer).value for pointer in (alpha, beta))
    a, b = _matrix(A, Atype, lda, m, k, transa), _matrix(B, Btype, ldb, k, n, transb)
    c = _matrix(C, Ctype, ldc, m, n, CUBLAS_OP_N)
    product = _tf32_product if in_tf32 else np.matmul
    found = by * product(*(memory.checked(x).astype(np.float32) for x in (a, b)))
    c[...] = found if kept == 0 else found + kept * memory.checked(c)
    memory.mark_written(asked("products", c))


def _tf32_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As tensor cores may do it at worst: bits that TF32 does not hold are cut off, and so are
    those that float32 does not hold, whenever 8 products have been added."""
    a, b = ((x.view(np.int32) & ~0x1FFF).view(np.float32).astype(float) for x in (a, b))
    total = np.zeros((len(a), b.shape[1]), np.float32)
    with np.errstate(all="ignore"):
        for k in range(0, a.shape[1], 8):
            exact = total + a[:, k : k + 8] @ b[k : k + 8]
            total = exact.astype(np.float32)
            beyond = abs(total) > abs(exact)
            total[beyond] = np.nextafter(total[beyond], np.float32(0))
    return total


def _matrix(at: int, kind: int, step: int, rows: int, columns: int, operation: int) -> np.ndarray:
    """`rows` and `columns` are those behind the operation."""
    dtype = np.dtype({number: name for name, number in TYPES.items()}[kind])
    if operation == CUBLAS_OP_T:
        return _matrix(at, kind, step, columns, rows, CUBLAS_OP_N).T
    assert step >= max(1, rows)
    return ptxemu.array_at(at, (rows, columns), dtype, (dtype.itemsize, step * dtype.itemsize))


def get_cublas_handle() -> int:
    """Of ``cupy.cuda.device``."""
    return 1
