"""The operations of :mod:`cupy_rnnt.ops` on NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

from ..blocks import carved
from ..types import HostArray, OutputSums, Shape, Sizes
from .best import BestLattice
from .bounded import BoundedLattice
from .bounds import upper_bounds
from .casts import assign, gather, scatter
from .inputs import add_input_grad, hidden, write_input_grads
from .lattice import Lattice, lattice_nbytes
from .references import (
    label_softmax,
    means,
    reference_hidden,
    row_sums,
    slack,
    write_tangents,
)
from .rows import block_rows, logits_grad, row_scores, scaled_weights
from .samples import coordinates, tables
from .workers import start_workers, threads

__all__ = [
    "add_input_grad",
    "add_output_grad",
    "asarray",
    "best_lattice",
    "bias_rows",
    "block_rows",
    "bounded_lattice",
    "coordinates",
    "device_of",
    "empties",
    "empty",
    "exact_lattice",
    "factor_dtype",
    "found_first",
    "fuses",
    "gather",
    "hidden",
    "host",
    "indices",
    "label_softmax",
    "lattice_nbytes",
    "logits_grad",
    "matmul",
    "means",
    "places",
    "product_bytes",
    "reference_hidden",
    "result",
    "row_scores",
    "row_sums",
    "scaled_weights",
    "scatter",
    "scratch_rows",
    "sizes",
    "slack",
    "slow_denormals",
    "splits",
    "start_workers",
    "tables",
    "threads",
    "upper_bounds",
    "workspace_bytes",
    "write_input_grads",
    "write_output_grads",
    "write_tangents",
    "xp",
    "zeros",
]

xp: ModuleType = np
empty = np.empty
slow_denormals = True
fuses = False
exact_lattice = Lattice
bounded_lattice = BoundedLattice
best_lattice = BestLattice

sizes = Sizes(
    # A tile of 4 MiB in float32, and at least 1024 rows: a GEMM of 512 is a twentieth slower.
    tile_elements=2**20,
    full_rows=1024,
    most_rows=2**13,
    tile_share=1.0,
    # Smaller tiles lose more to overhead than a second worker gains.
    small_elements=2**16,
    small_rows=64,
    # So many cells keep every worker busy, and on diagonals so wide the arithmetic of a vector
    # operation takes longer than the call.
    group_cells=2**16,
    group_width=1024,
    columns=1,
    slab_elements=2**18,  # stay in the cache
    # More logits fall out of the caches, and every call faults their pages in again: with 256 MiB a
    # call took up to a fifth longer than with 64.
    stored_bytes=2**26,
    least_stored=0,
    group_share=0.5,
    list_bytes=2 * 8 + 2 * 8 + 2 * 8,  # list; choosing kept cells; number and row of a kept cell
    cuts_groups=True,
)


def workspace_bytes() -> int:
    return 2**28


def device_of(array: HostArray) -> AbstractContextManager[None]:
    return nullcontext()


def asarray(array: HostArray) -> HostArray:
    return array


def host(*arrays: HostArray) -> list[HostArray]:
    return list(map(np.asarray, arrays))


def zeros(shape: Shape, dtype: DTypeLike) -> HostArray:
    """Zeros, aligned to 64 bytes: XLA takes such an array over and copies any other."""
    dtype = np.dtype(dtype)
    memory = np.zeros(math.prod(shape) * dtype.itemsize + 63, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % 64)


def empties(*shapes: tuple[Shape, np.dtype]) -> Sequence[HostArray]:
    return carved(np.empty, shapes)


result = zeros


def indices(mask: HostArray, count: int, first: int = 0) -> HostArray:
    return np.flatnonzero(mask) + first


def places(numbers: HostArray, values: HostArray) -> HostArray:
    return numbers.searchsorted(values)


def found_first(numbers: HostArray, values: HostArray) -> tuple[HostArray, HostArray, int]:
    places = numbers.searchsorted(values)
    found = numbers.take(places, mode="clip") == values
    first = np.flatnonzero(found)
    order = np.concatenate((first, np.flatnonzero(~found)))
    return values[order], places[order], len(first)


scratch_rows = block_rows


def bias_rows(rows: int) -> int:
    return 1


def factor_dtype(dtype: np.dtype) -> None:
    """None: no NumPy multiplies half types fast."""


def splits(dtype: np.dtype) -> bool:
    return False


def product_bytes(dtype: np.dtype, rows: int, depth: int, columns: int) -> int:
    return 0


def matmul(a: HostArray, b: HostArray, out: HostArray) -> None:
    np.matmul(a, b, out=out)


def add_output_grad(d_logits: HostArray, hidden: HostArray, sums: OutputSums) -> None:
    slab = len(sums.slab)
    for start in range(0, len(sums.weight), slab):
        rows = slice(start, min(start + slab, len(sums.weight)))
        product = sums.slab[: rows.stop - start]
        np.matmul(d_logits[:, rows].T, hidden, out=product)
        sums.weight[rows] += product
    if len(sums.bias):
        np.add(sums.bias[0], d_logits.sum(axis=0), out=sums.bias[0])


def write_output_grads(
    weight_sums: HostArray,
    bias_sums: HostArray,
    scale: None,
    weight: HostArray,
    bias: HostArray | None,
) -> None:
    assign(weight_sums, weight)
    if bias is not None:
        assign(bias_sums[0], bias)
