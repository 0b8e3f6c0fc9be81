"""The logits of the caller, and their gradient: a :class:`cupy_rnnt.engine.sources.Source`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..batch import Batch, CellsOf
from ..ops import operations_for
from ..ops.lattices import Lattice
from ..ops.types import Cells, DeviceArray, HostArray, LogitRows, RowPosteriors, compute_dtype
from ..transducer import LABEL_COLUMN, Row
from .exponents import WeightExponents
from .plan import ROW_BYTES, Group, Plan
from .tangents import Tangents

_CLEAR_ROWS = 2**14  # of a gradient, cleared at once
# How far above 1 rounding may take the sum of two probabilities: of log-probabilities computed in
# float32, even if they arrive as float64, and of those computed in half types.
_ROUNDING, _HALF_ROUNDING = 2.0**-11, 2.0**-3


class _LogitsScratch(NamedTuple):
    """Buffers of one worker."""

    logits: DeviceArray
    block: DeviceArray  # a few rows of logits
    unnormalised: DeviceArray  # bool, (1,): whether a row so far is no distribution


class LogitsSource:
    """Logits in memory, (B, T, U + 1, V) or packed (cells, V), or, if the row has no head,
    log-probabilities.

    The gradient goes to `grad`, which may be the array of the logits itself.
    """

    stored_row_bytes = 0
    selects = gains_surely = False

    def __init__(
        self, batch: Batch, logits: DeviceArray, row: Row, grad: DeviceArray | None = None
    ) -> None:
        self.ops = operations_for(logits)
        self.dtype: np.dtype = compute_dtype(logits.dtype)
        self.width: int = logits.shape[-1]
        self.grad = grad
        self.row, self.fused = row, bool(row.heads)
        lengths = batch.frames, batch.positions
        self.device_row, self.samples = self.ops.tables(row, *lengths, batch.labels)
        self.cells_of = CellsOf(self.ops, self.samples)
        self._batch, self.logits, self._packed = batch, logits, logits.ndim == 2
        self._tiles = None  # a view of the logits, (rows, V), where tiles need no copy
        if isinstance(logits, HostArray) and logits.flags.c_contiguous:
            self._tiles = logits.reshape(-1, self.width) if logits.dtype == self.dtype else None
        self._unnormalised: list[Any] = []  # a flag of each worker

    @property
    def looks_normalised(self) -> bool:
        """Whether every row that :meth:`scores` has read may hold log-probabilities."""
        return not np.concatenate(self.ops.host(*self._unnormalised)).any()

    def _unnormalised_rows(
        self, lse: DeviceArray, scores: DeviceArray, has_label: DeviceArray
    ) -> Any:
        """Marks, (n,), of rows whose exponentials do not add up to 1. Without a head only scores
        are read: then, of rows where the exponentials of the tokens' scores exceed 1 in sum."""
        xp = self.ops.xp
        if self.fused:
            return ~(abs(lse) < math.sqrt(np.finfo(self.dtype).eps)).all(axis=0)
        rounding = _HALF_ROUNDING if self.logits.dtype.itemsize == 2 else _ROUNDING
        total = xp.zeros(len(has_label))
        for score, column in zip(scores, self.row.columns, strict=True):
            if column == LABEL_COLUMN:
                score = xp.where(has_label, score, -np.inf)
            if column < self.row.tokens:
                total += xp.exp(score)
        return total > 1 + rounding

    def scratch(self, rows: int) -> _LogitsScratch:
        shapes = (rows, self.width), (self.ops.scratch_rows(rows, self.width), self.width)
        logits, block = (self.ops.empty(shape, self.dtype) for shape in shapes)
        self._unnormalised.append(self.ops.zeros((1,), bool))
        return _LogitsScratch(logits, block, self._unnormalised[-1])

    def tile_bytes(self, rows: int) -> int:
        elements = (2 * rows + self.ops.scratch_rows(rows, self.width)) * self.width
        return elements * self.dtype.itemsize + ROW_BYTES * rows

    def fixed_bytes(self, workers: int) -> int:
        return 0

    def group_bytes(self, frames: int, positions: int, workers: int) -> int:
        return 0

    def selection_bytes(self, frames: int, positions: int, samples: int, workers: int) -> int:
        return 0

    def tangents(self, numbers: HostArray) -> Tangents:
        raise NotImplementedError("given logits need no bounds")

    def index(self, cells: Cells) -> tuple[DeviceArray, ...]:
        """Where the rows of some cells are in the array of the logits."""
        if self._packed:
            return (cells.packed,)
        return cells.sample, cells.frame, cells.position

    def _tile(self, cells: Cells, scratch: _LogitsScratch) -> Any:
        """The logits of some cells: a view if they are contiguous, else a copy."""
        index = self.index(cells)
        if self._tiles is not None:
            ends = tuple(coordinate[[0, -1]] for coordinate in index)
            first, last = np.ravel_multi_index(ends, self.logits.shape[:-1])
            if last - first == len(cells) - 1:
                return self._tiles[first : last + 1]
        tile = scratch.logits[: len(cells)]
        self.ops.gather(self.logits, index, tile)
        return tile

    def scores(
        self, cells: Cells, scratch: _LogitsScratch, stored: DeviceArray | None
    ) -> tuple[DeviceArray, DeviceArray]:
        tile = self._tile(cells, scratch)
        results = self.ops.row_scores(LogitRows(tile, None, self.device_row, cells, scratch.block))
        flag, rows = scratch.unnormalised, self._unnormalised_rows(*results, cells.has_label)
        self.ops.xp.logical_or(flag, rows.any(), out=flag)
        return results

    def write_scores(
        self, lattice: Lattice, cells: Cells, scratch: _LogitsScratch, stored: DeviceArray | None
    ) -> None:
        lattice.write(cells, *self.scores(cells, scratch, stored))

    @contextmanager
    def sums(self, plan: Plan, weights: DeviceArray, largest: float) -> Iterator[LogitsSums]:
        """See :meth:`cupy_rnnt.engine.sources.Source.sums`."""
        yield LogitsSums(self, weights)

    def clear_without_gradient(self, group: Group, kept: DeviceArray) -> None:
        """If the gradient overwrites the logits, set the rows of a group to 0 except those of its
        `kept` cells."""
        if self.grad is not self.logits:
            return
        batch, ops = self._batch, self.ops
        for b in () if self._packed else range(group.start, group.stop):
            frames, positions = int(batch.frames[b]), int(batch.positions[b])
            self.grad[b, frames:] = 0
            self.grad[b, :frames, positions:] = 0
        cells = batch.run(group.start, group.stop)
        dropped = ops.xp.ones(len(cells), bool)
        dropped[kept - cells.start] = False
        rest = ops.indices(dropped, len(cells) - len(kept))
        for start in range(0, len(rest), _CLEAR_ROWS):
            place = self.cells_of(rest[start : start + _CLEAR_ROWS] + cells.start)
            self.grad[self.index(place)] = 0


class LogitsSums:
    """Writes the gradient of the logits, a row for every cell."""

    def __init__(self, source: LogitsSource, weights: DeviceArray) -> None:
        self._source, self.weights = source, weights
        self._exponents: WeightExponents | None = None
        if source.ops.slow_denormals:
            self._exponents = WeightExponents(weights)
            self.weights = self._exponents.fractions

    @contextmanager
    def of_group(self, group: Group, kept: DeviceArray) -> Iterator[LogitsSums]:
        """See :meth:`cupy_rnnt.engine.sources.Sums.of_group`."""
        self._source.clear_without_gradient(group, kept)
        yield self

    def add(
        self,
        worker: int,
        cells: Cells,
        posteriors: RowPosteriors,
        stored: tuple[DeviceArray, DeviceArray] | None,
        scratch: _LogitsScratch,
    ) -> None:
        """See :meth:`cupy_rnnt.engine.sources.GroupSums.add`."""
        source, ops, count = self._source, self._source.ops, len(cells)
        rows, indices = ops.block_rows(count, source.width), source.index(cells)
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            of_part = cells.part(part)
            index = tuple(entries[part] for entries in indices)
            tile = scratch.logits[: len(of_part)]
            if source.row.heads:
                ops.gather(source.logits, index, tile)
            of_tile = LogitRows(tile, None, source.device_row, of_part, scratch.block)
            ops.logits_grad(of_tile, posteriors.part(part))
            if self._exponents is not None:
                self._exponents.put_back(tile, of_part.sample)
            ops.scatter(tile, index, source.grad)
