"""Groups of samples and tiles of cells from a budget of bytes.

A *group* is a run of consecutive samples whose lattices are solved together. A *tile* is a run of
a group's list of cells. Tiles have equal numbers of rows: small samples share a tile, and a large
sample spans many. The rest of the budget stores logits of pass 1 for pass 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

from ..batch import Batch
from ..ops import Operations
from ..ops.types import Sizes
from ..options import Options
from ..transducer import Row, Transducer

_SMALL_ROWS = 64  # a smaller tile is not worth it, even if workers then have unequal counts
ROW_BYTES = 512
"""What a row of a tile takes up in vectors, such as indices and occupancies."""
LISTED_TILES = 4
"""Tiles of a worker in a list of cells, where lists are not those of whole groups."""
_MASKS_BYTES = 8  # a cell has entries of masks as well where cells are selected
_BAND_BYTES = 3 * 8  # a cell takes them while the cells of a band are listed
_SAMPLE_BYTES = 1024  # lengths, offsets, costs, weights and their Python objects
_BOOKKEEPING_BYTES = 2**20  # threads, closures, chunks of occupancies


class Needs(Protocol):
    """What the source of the logits allocates, in bytes."""

    ops: Operations
    width: int
    row: Row
    stored_row_bytes: int
    """A row of logits kept from pass 1 to pass 2; 0 if the source has no use for it."""
    selects: bool
    """Whether the source can bound its scores from above and gains by it."""

    def fixed_bytes(self, workers: int) -> int: ...

    def tile_bytes(self, rows: int) -> int: ...

    def group_bytes(self, frames: int, positions: int, workers: int) -> int: ...

    def selection_bytes(self, frames: int, positions: int, samples: int, workers: int) -> int:
        """What :class:`~cupy_rnnt.engine.tangents.Tangents` of a group take."""


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
    transducer : Transducer
        That of the lattices, without the arcs that are longer than all samples.
    workers : int
        Tiles computed at once.
    rows : int
        Cells a tile.
    groups : list of Group
    stored : int
        Rows of logits kept at most.
    gradient : bool
        Whether occupancies are needed, and not only costs.
    selecting : bool
        Whether the cells of pass 1 are selected by bounds.
    workspace_bytes : int
        Planned peak of what is allocated beyond the arguments and the results.
    """

    transducer: Transducer
    workers: int
    rows: int
    groups: list[Group]
    stored: int
    gradient: bool
    selecting: bool
    workspace_bytes: int


class Tiles(Sequence[tuple[int, int]]):
    """``count`` entries from `first` on in equal tiles ``(start, stop)`` of at most `rows`.

    Every worker gets the same number of tiles, unless that takes tiles of under 64 rows.
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
    """The size of a group, from which the bytes of its lattice, lists and sums follow."""

    diagonals: int
    width: int
    cells: int
    frames: int
    positions: int
    samples: int

    def joined(self, other: _Extent) -> _Extent:
        sums = (x + y for x, y in zip(self[1:], other[1:], strict=True))
        return _Extent(max(self.diagonals, other.diagonals), *sums)


def workspace_budget(options: Options, ops: Operations) -> int:
    """Bytes that a call may allocate beyond its arguments and results; 2**62 is no bound."""
    budget = options.max_workspace_bytes
    return ops.workspace_bytes() if budget is None else min(budget, 2**62)


def make_plan(
    source: Needs,
    batch: Batch,
    options: Options,
    gradient: bool,
    store: bool,
    lattices: bool = True,
) -> Plan:
    """Choose workers, tiles and groups so that the planned peak is within `max_workspace_bytes`.

    Pass 1 selects its cells if the tolerance is above 0, the source can bound scores, and the
    bounds fit.

    Parameters
    ----------
    gradient : bool
        Whether the call needs occupancies, and not only costs.
    store : bool
        Whether logits may be kept from pass 1 to pass 2, which saves their second computation.
    lattices : bool
        Whether lattices are solved; if not, the cells of a group are listed some tiles at a time.

    Raises
    ------
    ValueError
        If not even one worker with tiles of one row fits.
    """
    ops, sizes = source.ops, source.ops.sizes
    transducer = options.transducer.within(int(batch.frames.max()))
    topology = transducer.topology
    budget = workspace_budget(options, ops)
    scores, heads = len(topology.scores), len(source.row.heads)
    # The log-sum-exps are held of all cells and again of the kept cells, whose occupancies are too.
    cell_bytes = sizes.list_bytes + 8 * (2 * heads + scores)
    # Coordinates of the cells of a list, and three arrays of their scores.
    listed_bytes = 0 if lattices or not gradient else LISTED_TILES * (64 + 3 * 8 * scores)
    full, small = _tile_rows(batch, source.width, sizes)
    selecting = lattices and options.tolerance > 0 and source.selects
    tile_bytes = cache(source.tile_bytes)
    extents = [
        _Extent(t + s - 1, min(t, s) + 1, t * s, t, s, 1)
        for t, s in zip(batch.frames.tolist(), batch.positions.tolist(), strict=True)
    ]

    def group_bytes(extent: _Extent, workers: int, selecting: bool) -> int:
        diagonals, width, cells, frames, positions, samples = extent
        vectors = source.group_bytes(frames, positions, workers)
        if not lattices:
            return vectors
        lattice = ops.lattice_nbytes(topology, diagonals, width, cells, gradient, selecting)
        if selecting:  # the references are freed before the gradient is allocated
            lattice += (8 * scores + _MASKS_BYTES) * cells
            vectors = max(vectors, source.selection_bytes(frames, positions, samples, workers))
        if batch.band is not None:  # a mask of the cells that are left out
            lattice += diagonals * width + _BAND_BYTES * cells
        return lattice + cell_bytes * cells + vectors

    def base_bytes(workers: int, rows: int) -> int:
        shared = _BOOKKEEPING_BYTES + batch.nbytes + _SAMPLE_BYTES * batch.size
        of_tile = tile_bytes(rows) + listed_bytes * rows
        return shared + source.fixed_bytes(workers) + workers * of_tile

    @cache
    def sample_bytes(workers: int, selecting: bool) -> int:
        return max(group_bytes(extent, workers, selecting) for extent in extents)

    def least_bytes(workers: int, rows: int) -> int:
        return base_bytes(workers, rows) + sample_bytes(workers, selecting)

    def fits(workers: int, rows: int) -> bool:
        within_share = workers * tile_bytes(rows) <= sizes.tile_share * budget
        return within_share and least_bytes(workers, rows) <= budget

    selecting = selecting and least_bytes(1, small) <= budget
    workers, rows = _workers_and_rows(batch, full, small, budget, ops.threads(), least_bytes, fits)
    room = budget - base_bytes(workers, rows)

    def is_full(held: _Extent, joined: _Extent) -> bool:
        busy = held.cells >= sizes.group_cells * workers and held.width >= sizes.group_width
        return busy or group_bytes(joined, workers, selecting) > int(sizes.group_share * room)

    groups = _grouped(extents, is_full)
    largest = max(group_bytes(extent, workers, selecting) for _, extent in groups)
    row_bytes = source.stored_row_bytes if store else 0
    most = min(room - largest, sizes.stored_bytes) // row_bytes if row_bytes else 0
    all_rows = max(extent.cells for _, extent in groups)
    stored = min(most, all_rows) if most >= min(sizes.least_stored, all_rows) else 0
    return Plan(
        transducer=transducer,
        workers=workers,
        rows=rows,
        groups=[group for group, _ in groups],
        stored=stored,
        gradient=gradient,
        selecting=selecting,
        workspace_bytes=budget - room + largest + stored * row_bytes,
    )


def _grouped(
    extents: list[_Extent], is_full: Callable[[_Extent, _Extent], bool]
) -> list[tuple[Group, _Extent]]:
    """Groups and their sizes: a sample starts a new group if ``is_full(held, joined)``, of the size
    of the group without the sample and with it."""
    groups, start, held = [], 0, extents[0]
    for b, extent in enumerate(extents[1:], start=1):
        joined = held.joined(extent)
        if is_full(held, joined):
            groups.append((Group(start, b), held))
            start, joined = b, extent
        held = joined
    return [*groups, (Group(start, len(extents)), held)]


def _tile_rows(batch: Batch, width: int, sizes: Sizes) -> tuple[int, int]:
    """Rows of a tile if memory is ample, and the fewest that are worth another worker."""
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
    """The most workers that fit with tiles of `small` rows, then the largest tiles that fit."""
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
