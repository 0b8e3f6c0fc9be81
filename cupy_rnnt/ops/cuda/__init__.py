"""The operations of :mod:`cupy_rnnt.ops` on CuPy arrays.

Everything runs on the current stream of the current device, and all memory is from CuPy's current
allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..blocks import carved
from ..types import DeviceArray, HostArray, OutputSums, Shape, Sizes, Tile
from .best import BestLattice
from .bounds import upper_bounds
from .indices import found_first, indices, places
from .inputs import add_input_grad, hidden, write_input_grads
from .lattice import BoundedLattice, Lattice, lattice_nbytes
from .launch import cupy, device_bytes, host
from .products import add_matmul, factor_dtype, matmul, product_bytes, splits
from .references import (
    label_softmax,
    means,
    reference_hidden,
    row_sums,
    slack,
    write_tangents,
)
from .rows import (
    bias_rows,
    gather,
    logits_grad,
    row_scores,
    scaled_weights,
    scatter,
    scratch_rows,
    write_output_grads,
)
from .samples import coordinates, tables

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

# Tiles and groups take all of the budget: it takes many rows of a GEMM to fill a GPU, and many
# samples, whose lattices are solved in parallel.
sizes = Sizes(
    # Logits of 128 MiB. A tile takes 9 operations in both passes, 0.16 ms of the host; an H100
    # needs 0.26 ms for its products with H = 640, of half types. No cache holds half of it. With
    # tiles of 24 MiB, which L2 would hold, 5 % of the cells of B = 64, T = 1000, U = 200 take 900
    # operations instead of 210: 16 ms of the host instead of 4, beside 11 ms of an H100.
    tile_elements=2**25,
    full_rows=2**13,
    most_rows=2**16,
    tile_share=0.5,
    small_elements=2**16,
    small_rows=64,
    group_cells=2**62,
    group_width=2**62,
    columns=8,  # 16 bytes of a half type
    slab_elements=0,
    stored_bytes=2**62,
    # To tell stored rows from others takes 4 operations a group, of which one waits, and another
    # tile takes 5: 0.2 ms. An H100 multiplies so many rows of V = 1024 and H = 640 in as long.
    least_stored=2**16,
    group_share=0.9,
    list_bytes=8 + 2 * 8,  # list; number and row of a kept cell
    cuts_groups=False,
)

slow_denormals = False
fuses = True
exact_lattice = Lattice
bounded_lattice = BoundedLattice
best_lattice = BestLattice

_SHARE = 32  # of a device's memory
_LEAST_WORKSPACE = 2**30


def workspace_bytes() -> int:
    """A 32nd of the current device's memory, which does not depend on what is free, so that a call
    is the same in every run.

    Larger groups solve more lattices side by side, with fewer operations: a batch of 64 samples
    with T = 1000, U = 200 is 4 groups with 1 GiB, and 1 group with the 2.5 GiB of 80.
    """
    return max(device_bytes() // _SHARE, _LEAST_WORKSPACE)


xp: ModuleType  # CuPy, by __getattr__


def __getattr__(name: str) -> Any:
    if name == "xp":
        return cupy()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def device_of(array: DeviceArray) -> AbstractContextManager[Any]:
    device: AbstractContextManager[Any] = array.device
    return device


def asarray(array: HostArray) -> DeviceArray:
    return cupy().asarray(array)


def add_output_grad(d_logits: DeviceArray, hidden: DeviceArray, sums: OutputSums) -> None:
    add_matmul(d_logits.T, hidden, sums.weight)


def block_rows(rows: int, width: int) -> int:
    return rows


def empty(shape: Shape, dtype: DTypeLike) -> DeviceArray:
    return cupy().empty(shape, dtype)


def empties(*shapes: tuple[Shape, np.dtype]) -> Sequence[DeviceArray]:
    return carved(cupy().empty, shapes)


result = empty


def zeros(shape: Shape, dtype: DTypeLike) -> DeviceArray:
    return cupy().zeros(shape, dtype)


def threads() -> int:
    return 1


class _InOrder:
    """Runs tiles one after the other; see :class:`cupy_rnnt.ops.Workers`."""

    def run(
        self,
        function: Callable[[int, Tile], None],
        tiles: Sequence[Tile],
        fixed: bool = False,
        report: Callable[[Tile], None] | None = None,
    ) -> None:
        for tile in tiles:
            function(0, tile)
            if report is not None:
                report(tile)


def start_workers(count: int) -> _InOrder:
    return _InOrder()
