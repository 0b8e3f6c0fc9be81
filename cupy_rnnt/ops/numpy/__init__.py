"""The operations of :mod:`cupy_rnnt.ops` on NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import csr_array

from ...transducer import Row
from ..types import Cells, HostArray, JointInputs, OutputSums, Shape, Sizes
from . import float16
from .activations import ACTIVATIONS
from .bounded import BoundedLattice
from .bounds import largest_row_sum, magnitudes, means, upper_bounds
from .lattice import Lattice, lattice_nbytes
from .rows import block_rows, label_softmax, logits_grad, row_dots, row_scores
from .workers import start_workers, threads

__all__ = [
    "activate",
    "add_output_grad",
    "add_rows",
    "asarray",
    "assign",
    "batch_table",
    "block_rows",
    "bounded_lattice",
    "coordinates",
    "device_of",
    "device_row",
    "empty",
    "exact_lattice",
    "factor_dtype",
    "gather",
    "hidden",
    "hidden_grad",
    "host",
    "indices",
    "label_softmax",
    "largest_row_sum",
    "lattice_nbytes",
    "logits_grad",
    "magnitudes",
    "matmul",
    "means",
    "repeat",
    "row_dots",
    "row_scores",
    "scatter",
    "scratch_rows",
    "sizes",
    "slow_denormals",
    "start_workers",
    "threads",
    "upper_bounds",
    "xp",
    "zeros",
]

xp: ModuleType = np
empty = np.empty
repeat = np.repeat
slow_denormals = True
exact_lattice = Lattice
bounded_lattice = BoundedLattice

sizes = Sizes(
    workspace_bytes=2**28,
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
    slab_elements=2**18,  # stay in the cache
    # More logits fall out of the caches, and every call faults their pages in again: with 256 MiB a
    # call took up to a fifth longer than with 64.
    stored_bytes=2**26,
    group_share=0.5,
    cuts_groups=True,
)


def device_of(array: HostArray) -> AbstractContextManager[None]:
    return nullcontext()


def device_row(row: Row) -> Row:
    return row


def asarray(array: HostArray) -> HostArray:
    return array


def host(*arrays: HostArray) -> list[HostArray]:
    return list(map(np.asarray, arrays))


def zeros(shape: Shape, dtype: DTypeLike) -> HostArray:
    """Zeros, aligned to 64 bytes: XLA takes such an array over and copies any other."""
    dtype = np.dtype(dtype)
    memory = np.zeros(math.prod(shape) * dtype.itemsize + 63, np.uint8)
    return HostArray(shape, dtype, memory, -memory.ctypes.data % 64)


def indices(mask: HostArray, count: int | None = None) -> HostArray:
    return np.flatnonzero(mask)


def batch_table(
    offsets: HostArray, positions: HostArray, labels: HostArray
) -> tuple[HostArray, HostArray, HostArray]:
    return offsets, positions, labels


def coordinates(table: tuple[HostArray, HostArray, HostArray], packed: HostArray) -> Cells:
    offsets, of_samples, labels = table
    sample = offsets.searchsorted(packed, side="right") - 1
    positions = of_samples[sample]
    within = packed - offsets[sample]
    frame = within // positions
    position = within - frame * positions
    return Cells(sample, frame, position, labels[sample, position], position < positions - 1)


scratch_rows = block_rows


def gather(source: HostArray, index: tuple[HostArray, ...], out: HostArray) -> None:
    if source.dtype == out.dtype and source.flags.c_contiguous:
        extents = source.shape[:-1]
        rows = np.ravel_multi_index(index, extents)
        flat = source.reshape(-1, source.shape[-1])
        np.take(flat, rows, axis=0, out=out, mode="clip")  # mode="raise" would buffer `out`
    elif source.dtype == np.float16:
        float16.widen(source[index], out)
    else:
        out[...] = source[index]


def scatter(tile: HostArray, index: tuple[HostArray, ...], out: HostArray) -> None:
    for rows, cast in _cast(tile, out.dtype):
        out[tuple(entries[rows] for entries in index)] = cast


def assign(values: HostArray, out: HostArray) -> None:
    for rows, cast in _cast(values, out.dtype):
        out[rows] = cast


def _cast(values: HostArray, dtype: np.dtype) -> Iterator[tuple[slice, HostArray]]:
    """Slices of the rows, and the rows: cast if the dtype is float16, which NumPy casts slowly."""
    if dtype != np.float16:
        yield slice(None), values
        return
    count = len(values)
    block = block_rows(count, values.size // count)
    halves = np.empty((block, *values.shape[1:]), np.float16)
    for start in range(0, count, block):
        rows = values[start : start + block]
        float16.narrow(rows, halves[: len(rows)])
        yield slice(start, start + block), halves[: len(rows)]


def hidden(
    inputs: JointInputs, cells: Cells, activation: str, pre: HostArray, out: HostArray
) -> None:
    gather(inputs.encoder_out, (cells.sample, cells.frame), pre)
    gather(inputs.predictor_out, (cells.sample, cells.position), out)
    pre += out
    activate(activation, pre, out)


def activate(activation: str, pre: HostArray, out: HostArray) -> None:
    ACTIVATIONS[activation].apply(pre, out)


def factor_dtype(dtype: np.dtype) -> None:
    """None: no NumPy multiplies half types fast."""


def matmul(a: HostArray, b: HostArray, out: HostArray) -> None:
    np.matmul(a, b, out=out)


def add_output_grad(d_logits: HostArray, hidden: HostArray, sums: OutputSums) -> None:
    slab = len(sums.slab)
    for start in range(0, len(sums.weight), slab):
        rows = slice(start, min(start + slab, len(sums.weight)))
        product = sums.slab[: rows.stop - start]
        np.matmul(d_logits[:, rows].T, hidden, out=product)
        sums.weight[rows] += product
    np.add(sums.bias, d_logits.sum(axis=0), out=sums.bias)


def hidden_grad(d_hidden: HostArray, hidden: HostArray, pre: HostArray, activation: str) -> None:
    ACTIVATIONS[activation].derivative(pre, hidden)
    d_hidden *= pre


def add_rows(tile: HostArray, rows: HostArray, out: HostArray, scratch: HostArray) -> None:
    # A sparse matrix of ones times the tile: 13 times faster than np.add.reduceat, and it needs no
    # sorted copy of the tile.
    order = np.argsort(rows, kind="stable")
    targets, starts = np.unique(rows[order], return_index=True)
    ends = np.append(starts, len(rows))
    ones = np.ones(len(rows), tile.dtype)
    sums = csr_array((ones, order, ends), shape=(len(targets), len(rows))) @ tile
    totals = scratch[: len(targets)]
    np.take(out, targets, axis=0, out=totals, mode="clip")
    totals += sums
    out[targets] = totals
