"""Groups of samples and tiles of cells from a budget of bytes.

A *group* is a run of consecutive samples whose lattices are solved together. A *tile* is a run of
a group's list of cells, as many rows in every tile; small samples share one, a large sample spans
many. What is left of the budget holds logits of the first pass for the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..batch import Batch
from ..ops import Operations
from ..ops.types import Sizes
from ..transducer import Row, Transducer

_SMALL_ROWS = 64  # tiles are not made smaller so that all workers have as many
ROW_BYTES = 512
"""For indices, occupancies and other vectors with an entry a row of a tile."""
_CELL_BYTES = 2 * 8 + 2 * 8 + 2 * 8  # list; choosing kept cells; number and row of a kept cell
_MASKS_BYTES = 8  # of a cell, where cells are selected
_SAMPLE_BYTES = 1024  # lengths, offsets, costs, weights and their Python objects
_BOOKKEEPING_BYTES = 2**20  # threads, closures, chunks of occupancies


class Needs(Protocol):
    """What the source of the logits allocates, in bytes."""

    width: int
    row: Row
    stored_row_bytes: int
    """A row of logits kept from pass 1 to pass 2; 0 if the source has no use for it."""
    selects: bool
    """Whether bounds of the log-probs may be wanted."""

    def fixed_bytes(self, workers: int) -> int: ...

    def tile_bytes(self, rows: int) -> int: ...

    def group_bytes(self, frames: int, positions: int, workers: int) -> int: ...

    def selection_bytes(self, frames: int, positions: int, samples: int, workers: int) -> int:
        """Of what bounds the log-probs of a group."""


@dataclass(frozen=True)
class Group:
    """Samples ``start`` to ``stop - 1``."""

    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """How a batch is computed.

    Attributes
    ----------
    workers : int
        Tiles computed at once.
    rows : int
        Cells a tile.
    groups : list of Group
    stored : int
        Rows of logits kept at most.
    selecting : bool
        Whether the cells of pass 1 are selected by bounds.
    workspace_bytes : int
        Planned peak of what is allocated beyond the arguments and the results.
    """

    workers: int
    rows: int
    groups: list[Group]
    stored: int
    selecting: bool
    workspace_bytes: int


class Tiles(Sequence[tuple[int, int]]):
    """``count`` entries from `first` on in equal tiles ``(start, stop)`` of at most `rows`.

    There are as many for every worker, if they are large enough for that.
    """

    def __init__(self, count: int, rows: int, workers: int, first: int = 0) -> None:
        self._first, self._count = first, count
        pieces = -(-count // rows)
        even = -(-pieces // workers) * workers
        self._pieces = even if even * _SMALL_ROWS <= count else pieces

    def __len__(self) -> int:
        return self._pieces

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < self._pieces:
            raise IndexError(i)
        return self._edge(i), self._edge(i + 1)

    def _edge(self, i: int) -> int:
        return self._first + self._count * i // self._pieces


class _Extent(NamedTuple):
    """The size of a group: what its lattice, its lists and its sums take up."""

    diagonals: int
    width: int
    cells: int
    frames: int
    positions: int
    samples: int

    def joined(self, other: _Extent) -> _Extent:
        sums = (x + y for x, y in zip(self[1:], other[1:], strict=True))
        return _Extent(max(self.diagonals, other.diagonals), *sums)


def plan(
    batch: Batch,
    needs: Needs,
    ops: Operations,
    transducer: Transducer,
    budget: int,
    gradient: bool,
    store: bool,
    select: bool,
) -> Plan:
    """Choose workers, tiles and groups so that the planned peak stays within the budget.

    Parameters
    ----------
    gradient : bool
        Whether occupancies are wanted, not the costs alone.
    store : bool
        Whether logits may be kept from pass 1 to pass 2, which saves their second computation.
    select : bool
        Whether cells may be left out of pass 1. They are if there is room to find out which.

    Raises
    ------
    ValueError
        If not even one worker with tiles of one row fits.
    """
    extents = [
        _Extent(t + s - 1, min(t, s) + 1, t * s, t, s, 1)
        for t, s in zip(batch.frames.tolist(), batch.positions.tolist(), strict=True)
    ]

    def group_bytes(extent: _Extent, workers: int) -> int:
        diagonals, width, cells, frames, positions, samples = extent
        lattice = ops.lattice_nbytes(topology, diagonals, width, gradient, selecting)
        vectors = needs.group_bytes(frames, positions, workers)
        if selecting:  # the references are gone before there is a gradient
            lattice += (8 * scores + _MASKS_BYTES) * cells
            vectors = max(vectors, needs.selection_bytes(frames, positions, samples, workers))
        return lattice + cell_bytes * cells + vectors

    def base_bytes(workers: int, rows: int) -> int:
        shared = _BOOKKEEPING_BYTES + batch.nbytes + _SAMPLE_BYTES * batch.size
        return shared + needs.fixed_bytes(workers) + workers * needs.tile_bytes(rows)

    def least_bytes(workers: int, rows: int) -> int:
        return base_bytes(workers, rows) + max(group_bytes(e, workers) for e in extents)

    def fits(workers: int, rows: int) -> bool:
        within_share = workers * needs.tile_bytes(rows) <= sizes.tile_share * budget
        return within_share and least_bytes(workers, rows) <= budget

    sizes, selecting = ops.sizes, select and needs.selects
    topology, scores = transducer.topology, len(transducer.topology.scores)
    heads = len(needs.row.heads)
    # Log-sum-exps of all cells and, where these are kept, of the latter, with occupancies.
    cell_bytes = _CELL_BYTES + 8 * (2 * heads + scores)
    full, small = _tile_rows(batch, needs.width, sizes)
    selecting = selecting and least_bytes(1, small) <= budget
    workers, rows = _workers_and_rows(batch, full, small, budget, ops.threads(), least_bytes, fits)
    room = budget - base_bytes(workers, rows)

    def is_full(held: _Extent, joined: _Extent) -> bool:
        busy = held.cells >= sizes.group_cells * workers and held.width >= sizes.group_width
        return busy or group_bytes(joined, workers) > room // 2

    groups = _grouped(extents, is_full)
    largest = max(group_bytes(extent, workers) for _, extent in groups)
    row_bytes = needs.stored_row_bytes if store else 0
    most = min(room - largest, sizes.stored_bytes) // row_bytes if row_bytes else 0
    stored = min(most, max(extent.cells for _, extent in groups))
    starts = [0, *(stop for stop, _ in groups)]
    return Plan(
        workers=workers,
        rows=rows,
        groups=[Group(start, stop) for start, (stop, _) in zip(starts, groups, strict=False)],
        stored=stored,
        selecting=selecting,
        workspace_bytes=budget - room + largest + stored * row_bytes,
    )


def _grouped(
    extents: list[_Extent], full: Callable[[_Extent, _Extent], bool]
) -> list[tuple[int, _Extent]]:
    """Join samples until ``full(held, joined)``: the sample behind each group, and its size."""
    groups = []
    held = extents[0]
    for b, extent in enumerate(extents[1:], start=1):
        joined = held.joined(extent)
        if full(held, joined):
            groups.append((b, held))
            joined = extent
        held = joined
    return [*groups, (len(extents), held)]


def _tile_rows(batch: Batch, width: int, sizes: Sizes) -> tuple[int, int]:
    """Rows of a tile if there is room, and the fewest worth having."""
    rows = max(sizes.tile_elements // width, sizes.full_rows)
    full = min(rows, sizes.most_rows, batch.cell_count)
    return full, min(max(sizes.small_elements // width, sizes.small_rows), full)


def _workers_and_rows(
    batch: Batch,
    full: int,
    small: int,
    budget: int,
    threads: int,
    least_bytes: Callable[[int, int], int],
    fits: Callable[[int, int], bool],
) -> tuple[int, int]:
    """As many workers as fit with tiles worth having, then as large tiles as fit."""
    most = max(1, min(threads, batch.cell_count // small))
    for workers in range(most, 0, -1):
        if least_bytes(workers, small) <= budget:
            break
    else:
        small = 1
    rows = full
    while rows > small and not fits(workers, rows):
        rows = max(rows // 2, small)
    needed = least_bytes(workers, rows)
    if needed > budget:
        raise ValueError(
            f"max_workspace_bytes is {budget}, but this batch needs at least {needed} bytes"
        )
    return workers, rows
