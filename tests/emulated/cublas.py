"""``cupy.cublas``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import call, ndarray

__all__ = ["gemm"]


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
    return call(product, left, right, *before, out=out)
