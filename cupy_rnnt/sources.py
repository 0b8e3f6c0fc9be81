"""Where logits come from, and where their gradient goes: given logits, or a joint network.

Both implement :class:`cupy_rnnt.passes.Source`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import defaults
from .batch import Batch, Cells
from .ops import operations_for
from .passes import Kept
from .results import JointGradients
from .schedule import ROW_BYTES, Group, block_rows
from .tangents import Tangents

_STORING_HIDDEN_SIZE = 128  # logits of narrower joints are computed again sooner than fetched
# Bounds are four products with a vector of H, the logits V of them: with few weights, or labels,
# bounds save less than they cost where they leave out few cells, or always.
_SELECTING_ELEMENTS = 2**12
_SURELY_GAINING_ELEMENTS, _SURELY_GAINING_WIDTH = 2**14, 128
_FRAME_CELL_BYTES = 128  # of a cell while its bounds are formed, a frame at a time
_SLAB_ELEMENTS = 2**18  # of a weight gradient: what is added to it at once stays in the cache


class _LogitsScratch(NamedTuple):
    """Buffers of one worker."""

    logits: Any
    block: Any  # a few rows of logits


class LogitsSource:
    """Given logits, or (``fused_log_softmax=False``) log-probabilities.

    The gradient goes to `grad`, which may be the array of the logits itself.
    """

    stored_row_bytes = 0
    selects = gains_surely = False

    def __init__(
        self, batch: Batch, logits: Any, fused_log_softmax: bool, grad: Any | None = None
    ) -> None:
        self.ops = operations_for(logits)
        self.dtype: np.dtype = defaults.compute_dtype(logits.dtype)
        self.width: int = logits.shape[-1]
        self.grad = grad
        self._batch, self._logits, self._fused = batch, logits, fused_log_softmax
        self._rows = None  # the logits by rows, where a tile can be had without a copy
        if logits.flags.c_contiguous and logits.dtype == self.dtype:
            self._rows = logits.reshape(-1, self.width)
        self.looks_normalised = fused_log_softmax and self.width > 1
        self._normalised_within = float(np.sqrt(np.finfo(self.dtype).eps))

    def scratch(self, rows: int) -> _LogitsScratch:
        shapes = (rows, self.width), (block_rows(rows, self.width), self.width)
        return _LogitsScratch(*(self.ops.empty(shape, self.dtype) for shape in shapes))

    def tile_bytes(self, rows: int) -> int:
        elements = (2 * rows + block_rows(rows, self.width)) * self.width
        return elements * self.dtype.itemsize + ROW_BYTES * rows

    def fixed_bytes(self, workers: int) -> int:
        return 0

    def group_bytes(self, frames: int, columns: int, workers: int) -> int:
        return 0

    def selection_bytes(self, frames: int, columns: int, samples: int, workers: int) -> int:
        return 0

    def tangents(self, samples: np.ndarray) -> Tangents:
        raise NotImplementedError("given logits need no bounds")

    def _tile(self, cells: Cells, scratch: _LogitsScratch) -> Any:
        """The logits of some cells: a view if they lie together, else a copy."""
        index = cells.sample, cells.frame, cells.position
        if self._rows is not None:
            ends = tuple(values[[0, -1]] for values in index)
            first, last = np.ravel_multi_index(ends, self._logits.shape[:-1])
            if last - first == len(cells.sample) - 1:
                return self._rows[first : last + 1]
        tile = scratch.logits[: len(cells.sample)]
        self.ops.gather(self._logits, index, tile)
        return tile

    def log_probs(
        self, cells: Cells, scratch: _LogitsScratch, stored: Any | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tile = self._tile(cells, scratch)
        blank, labels = self._batch.blank, cells.label
        if not self._fused:
            return self.ops.pick_log_probs(tile, blank, labels)
        results = self.ops.row_log_probs(tile, None, blank, labels, scratch.block)
        if self.looks_normalised and not (abs(results[0]) < self._normalised_within).all():
            self.looks_normalised = False
        return results

    def begin_gradient(self, workers: int) -> None:
        pass

    def begin_group(self, group: Group, kept: np.ndarray) -> None:
        """Clear the rows that get no gradient, where the gradient overwrites the logits."""
        if self.grad is not self._logits:
            return
        batch = self._batch
        for b in range(group.start, group.stop):
            frames, columns = batch.frames[b], batch.columns[b]
            self.grad[b, frames:] = 0
            self.grad[b, :, columns:] = 0
            dropped = np.ones(frames * columns, bool)
            mine = slice(*np.searchsorted(kept, batch.offsets[b : b + 2]))
            dropped[kept[mine] - batch.offsets[b]] = False
            for frame, row in enumerate(dropped.reshape(frames, columns)):
                self.grad[b, frame, :columns][row] = 0

    def add_gradient(
        self,
        worker: int,
        cells: Cells,
        kept: Kept,
        stored: tuple[Any, np.ndarray] | None,
        clamp: float,
        weights: np.ndarray | None,
        scratch: _LogitsScratch,
    ) -> None:
        blank, rows = self._batch.blank, len(scratch.block)
        for start in range(0, len(cells.sample), rows):
            part = slice(start, start + rows)
            labels, of_kept = cells.label[part], kept.part(start, start + rows)
            occupancies = of_kept.blank_occupancy, of_kept.label_occupancy
            of_weights = None if weights is None else weights[part]
            index = cells.sample[part], cells.frame[part], cells.position[part]
            tile = scratch.logits[: len(labels)]
            if self._fused:
                self.ops.gather(self._logits, index, tile)
                self.ops.logits_grad(
                    tile,
                    None,
                    of_kept.lse,
                    *occupancies,
                    blank,
                    labels,
                    clamp,
                    of_weights,
                    scratch.block,
                )
            else:
                self.ops.log_probs_grad(tile, *occupancies, blank, labels, clamp, of_weights)
            self.ops.scatter(tile, index, self.grad)

    def end_group(self, group: Group) -> None:
        pass

    def end_gradient(self) -> None:
        pass


class _JointScratch(NamedTuple):
    """Buffers of one worker; the last two serve the gradient only."""

    logits: Any
    block: Any  # a few rows of logits
    pre: Any
    hidden: Any
    d_hidden: Any
    slab: Any  # some rows of a weight gradient

    def rows(self, count: int) -> _JointScratch:
        """The same for a tile of fewer cells."""
        logits, block, pre, hidden, d_hidden, slab = self
        return _JointScratch(
            logits[:count], block, pre[:count], hidden[:count], d_hidden[:count], slab
        )


class JointSource:
    """Logits ``act(encoder_out[b, t] + predictor_out[b, u]) @ weight.T + bias``, tile by tile.

    `gradient` says whether :meth:`gradients` will be asked
    for.
    """

    def __init__(
        self, batch: Batch, arguments: JointGradients, activation: str, gradient: bool
    ) -> None:
        self.ops = operations_for(arguments.encoder_out)
        self.dtype: np.dtype = defaults.compute_dtype(arguments.encoder_out.dtype)
        self.width: int
        self.hidden_size: int
        self.width, self.hidden_size = arguments.weight.shape
        worth_storing = self.hidden_size >= _STORING_HIDDEN_SIZE
        elements = self.width * self.hidden_size
        self.selects = elements >= _SELECTING_ELEMENTS
        self.gains_surely = (
            elements >= _SURELY_GAINING_ELEMENTS and self.width >= _SURELY_GAINING_WIDTH
        )
        self.stored_row_bytes = self.width * self.dtype.itemsize if worth_storing else 0
        self._batch, self._arguments = batch, arguments
        self._activation, self._gradient = activation, gradient
        weight, bias = arguments.weight, arguments.bias
        dense = weight.flags.c_contiguous or weight.flags.f_contiguous
        self._weight = weight.astype(self.dtype, order="K" if dense else "C", copy=not dense)
        self._row_size: float | None = None
        self._bias = None if bias is None else np.ascontiguousarray(bias, self.dtype)

    def _shapes(self, rows: int) -> _JointScratch:
        tile = rows, self.hidden_size
        slab = min(self.width, max(1, _SLAB_ELEMENTS // self.hidden_size))
        return _JointScratch(
            logits=(rows, self.width),
            block=(block_rows(rows, self.width), self.width),
            pre=tile,
            hidden=tile,
            d_hidden=tile if self._gradient else (0,),
            slab=(slab, self.hidden_size) if self._gradient else (0,),
        )

    def scratch(self, rows: int) -> _JointScratch:
        return _JointScratch(*(self.ops.empty(shape, self.dtype) for shape in self._shapes(rows)))

    def tile_bytes(self, rows: int) -> int:
        elements = sum(map(math.prod, self._shapes(rows)))
        temporaries = 2 * rows * self.hidden_size
        return (elements + temporaries) * self.dtype.itemsize + ROW_BYTES * rows

    def fixed_bytes(self, workers: int) -> int:
        weight_bytes = (self.hidden_size + 1) * self.width * self.dtype.itemsize
        copies = int(self._weight is not self._arguments.weight)
        if self._gradient:
            copies += workers
        return copies * weight_bytes + self.width * self.dtype.itemsize

    def group_bytes(self, frames: int, columns: int, workers: int) -> int:
        rows = workers * (frames + columns) if self._gradient else 0
        return rows * self.hidden_size * self.dtype.itemsize

    def selection_bytes(self, frames: int, columns: int, samples: int, workers: int) -> int:
        itemsize = self.dtype.itemsize
        references = Tangents.nbytes(frames, columns, samples, self.hidden_size, itemsize)
        return references + workers * _FRAME_CELL_BYTES * columns

    def tangents(self, samples: np.ndarray) -> Tangents:
        if self._row_size is None:
            self._row_size = self.ops.largest_row_sum(self._weight)
        inputs = self._arguments._replace(weight=self._weight, bias=self._bias)
        return Tangents(self.ops, self._batch, samples, inputs, self._activation, self._row_size)

    def log_probs(
        self, cells: Cells, scratch: _JointScratch, stored: Any | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scratch = scratch.rows(len(cells.sample))
        logits = scratch.logits if stored is None else stored
        self._hidden(cells, scratch)
        self.ops.matmul(scratch.hidden, self._weight.T, logits)
        return self.ops.row_log_probs(
            logits, self._bias, self._batch.blank, cells.label, scratch.block
        )

    def _hidden(self, cells: Cells, scratch: _JointScratch) -> None:
        encoder_out, predictor_out = self._arguments[:2]
        self.ops.hidden(
            encoder_out, predictor_out, cells, self._activation, scratch.pre, scratch.hidden
        )

    def begin_gradient(self, workers: int) -> None:
        zeros = self.ops.zeros
        self._workers = workers
        self.gradients = JointGradients(
            *(None if a is None else zeros(a.shape, a.dtype) for a in self._arguments)
        )
        # Every worker sums over its own tiles; the order of these sums never depends on timing.
        self._d_weight = zeros((workers, self.width, self.hidden_size), self.dtype)
        self._d_bias = zeros((workers, self.width), self.dtype)

    def begin_group(self, group: Group, kept: np.ndarray) -> None:
        samples = slice(group.start, group.stop)
        frames, columns = self._batch.frames[samples], self._batch.columns[samples]
        self._group_start = group.start
        self._first_frame = np.cumsum(frames) - frames
        self._first_column = np.cumsum(columns) - columns
        sums = self._workers, int(frames.sum()), self.hidden_size
        self._d_encoder = self.ops.zeros(sums, self.dtype)
        sums = self._workers, int(columns.sum()), self.hidden_size
        self._d_predictor = self.ops.zeros(sums, self.dtype)

    def add_gradient(
        self,
        worker: int,
        cells: Cells,
        kept: Kept,
        stored: tuple[Any, np.ndarray] | None,
        clamp: float,
        weights: np.ndarray | None,
        scratch: _JointScratch,
    ) -> None:
        ops, blank = self.ops, self._batch.blank
        scratch = scratch.rows(len(cells.sample))
        logits, block, pre, hidden, d_hidden, slab = scratch
        self._hidden(cells, scratch)
        if stored is None:
            ops.matmul(hidden, self._weight.T, logits)
        else:
            ops.gather(stored[0], (stored[1],), logits)
        occupancies = kept.blank_occupancy, kept.label_occupancy
        ops.logits_grad(
            logits, self._bias, kept.lse, *occupancies, blank, cells.label, clamp, weights, block
        )
        ops.add_weight_grad(logits, hidden, self._d_weight[worker], slab)
        ops.add_column_sum(logits, self._d_bias[worker])
        ops.matmul(logits, self._weight, d_hidden)
        ops.hidden_grad(d_hidden, hidden, pre, self._activation)
        sample = cells.sample - self._group_start
        frames = self._first_frame[sample] + cells.frame
        columns = self._first_column[sample] + cells.position
        ops.add_rows(d_hidden, frames, self._d_encoder[worker], pre)
        ops.add_rows(d_hidden, columns, self._d_predictor[worker], pre)

    def end_group(self, group: Group) -> None:
        d_encoder, d_predictor = _total(self._d_encoder), _total(self._d_predictor)
        for i, b in enumerate(range(group.start, group.stop)):
            frames, first = self._batch.frames[b], self._first_frame[i]
            self.gradients.encoder_out[b, :frames] = d_encoder[first : first + frames]
            columns, first = self._batch.columns[b], self._first_column[i]
            self.gradients.predictor_out[b, :columns] = d_predictor[first : first + columns]

    def end_gradient(self) -> None:
        self.gradients.weight[...] = _total(self._d_weight)
        if self.gradients.bias is not None:
            self.gradients.bias[...] = _total(self._d_bias)


def _total(parts: Any) -> Any:
    """The sum over the workers, in the place of the first one's part."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
