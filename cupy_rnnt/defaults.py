"""The defaults of every public function, and the two choices that follow from a dtype."""

from __future__ import annotations

import numpy as np

MAX_WORKSPACE_BYTES = 256 * 2**20
"""Bytes a call may allocate beyond its arguments and results."""

FLOATING_DTYPES = ("float16", "bfloat16", "float32", "float64")


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype the arithmetic runs in: float64 for float64, float32 for everything narrower."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def tolerance(dtype: np.dtype) -> float:
    """Share of a sample's posterior that may be left out: the unit round-off of the results."""
    return 2.0**-53 if dtype == np.float64 else 2.0**-24
