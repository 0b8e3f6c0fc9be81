"""Arrays on the GPU, made there as far as possible: its host is slow beside it."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401, tells NumPy of bfloat16
import numpy as np
from workloads import Joint

from cupy_rnnt.ops.cuda.launch import cupy

_DISTINCT_ROWS = 1024


def on_device(joint: Joint, dtype: Any) -> Joint:
    arrays = map(cupy().asarray, joint.astype(np.dtype(dtype))[:4])
    return Joint(*arrays, *joint[4:])


def tiled(array: Any, copies: int) -> Any:
    """The array several times, along its first axis."""
    xp, shape = cupy(), array.shape
    every = xp.ascontiguousarray(xp.broadcast_to(array, (copies, *shape)))
    return every.reshape(copies * shape[0], *shape[1:])


def normal(dtype: Any, rows: int, width: int) -> Any:
    """Values of a normal distribution, since clocks depend on values; rows come again."""
    rng = np.random.default_rng(0)
    few = rng.standard_normal((min(rows, _DISTINCT_ROWS), width), np.float32).astype(dtype)
    return tiled(cupy().asarray(few), -(-rows // len(few)))[:rows]
