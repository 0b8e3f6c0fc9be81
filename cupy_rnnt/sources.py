"""Where logits come from, and where their gradient goes: given logits, or a joint network.

Both implement :class:`cupy_rnnt.passes.Source`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import defaults
from .batch import Batch, Cells, Coordinates
from .ops import operations_for
from .passes import Kept
from .results import JointGradients
from .schedule import ROW_BYTES, Group
from .tangents import Magnitudes, Tangents

_STORING_HIDDEN_SIZE = 128  # logits of narrower joints are computed again sooner than fetched
# Bounds are four products with a vector of H, the logits V of them: with few weights, or labels,
# bounds save less than they cost where they leave out few cells, or always.
_SELECTING_ELEMENTS = 2**12
_SURELY_GAINING_ELEMENTS, _SURELY_GAINING_WIDTH = 2**14, 128
_FRAME_CELL_BYTES = 128  # of a cell while its bounds are formed, a frame at a time
_CLEAR_ROWS = 2**14  # of a gradient, at once


class _LogitsScratch(NamedTuple):
    """Buffers of one worker."""

    logits: Any
    block: Any  # a few rows of logits
    largest: Any  # log-sum-exp so far, (1,)


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
        self.coordinates = Coordinates(batch, self.ops)
        self._batch, self._logits, self._fused = batch, logits, fused_log_softmax
        self._rows = None  # the logits by rows, where a tile can be had without a copy
        if isinstance(logits, np.ndarray) and logits.flags.c_contiguous:
            self._rows = logits.reshape(-1, self.width) if logits.dtype == self.dtype else None
        self._largest: list[Any] = []  # log-sum-exp, of each worker

    @property
    def looks_normalised(self) -> bool:
        """Whether every row that :meth:`log_probs` saw sums to 1 without a softmax."""
        if not self._fused or self.width == 1:
            return False
        largest = np.concatenate(self.ops.host(*self._largest))
        return bool((largest < np.sqrt(np.finfo(self.dtype).eps)).all())

    def scratch(self, rows: int) -> _LogitsScratch:
        shapes = (rows, self.width), (self.ops.scratch_rows(rows, self.width), self.width)
        logits, block = (self.ops.empty(shape, self.dtype) for shape in shapes)
        self._largest.append(self.ops.zeros((1,), np.float64))
        return _LogitsScratch(logits, block, self._largest[-1])

    def tile_bytes(self, rows: int) -> int:
        elements = (2 * rows + self.ops.scratch_rows(rows, self.width)) * self.width
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
    ) -> tuple[Any, Any, Any]:
        tile = self._tile(cells, scratch)
        blank, labels = self._batch.blank, cells.label
        if not self._fused:
            return self.ops.pick_log_probs(tile, blank, labels)
        results = self.ops.row_log_probs(tile, None, blank, labels, scratch.block)
        self.ops.xp.maximum(scratch.largest, abs(results[0]).max(), out=scratch.largest)
        return results

    def begin_gradient(self, workers: int) -> None:
        pass

    def begin_group(self, group: Group, kept: Any) -> None:
        """Clear the rows that get no gradient, where the gradient overwrites the logits."""
        if self.grad is not self._logits:
            return
        batch, ops = self._batch, self.ops
        for b in range(group.start, group.stop):
            frames, columns = int(batch.frames[b]), int(batch.columns[b])
            self.grad[b, frames:] = 0
            self.grad[b, :frames, columns:] = 0
        cells = batch.run(group.start, group.stop)
        dropped = ops.xp.ones(len(cells), bool)
        dropped[kept - cells.start] = False
        others = ops.indices(dropped, len(cells) - len(kept))
        for start in range(0, len(others), _CLEAR_ROWS):
            there = self.coordinates.of(others[start : start + _CLEAR_ROWS] + cells.start)
            self.grad[there.sample, there.frame, there.position] = 0

    def add_gradient(
        self,
        worker: int,
        cells: Cells,
        kept: Kept,
        stored: tuple[Any, Any] | None,
        clamp: float,
        weights: Any | None,
        scratch: _LogitsScratch,
    ) -> None:
        blank, count = self._batch.blank, len(cells.sample)
        rows = self.ops.block_rows(count, self.width)
        for start in range(0, count, rows):
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

    `gradient` says whether :attr:`gradients` will be asked for; they go to `out`, if that is given.
    """

    def __init__(
        self,
        batch: Batch,
        arguments: JointGradients,
        activation: str,
        gradient: bool,
        out: JointGradients | None = None,
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
        self.coordinates = Coordinates(batch, self.ops)
        self._batch, self._arguments = batch, arguments
        self._activation, self._gradient, self._out = activation, gradient, out
        weight, bias = arguments.weight, arguments.bias
        dense = weight.flags.c_contiguous or weight.flags.f_contiguous
        self._copied = not dense or weight.dtype != self.dtype
        if self._copied:
            weight = weight.astype(self.dtype, order="K" if dense else "C")
        self._weight = weight
        self._bias = None if bias is None else self.ops.xp.ascontiguousarray(bias, self.dtype)
        self._magnitudes: Magnitudes | None = None

    def _shapes(self, rows: int) -> _JointScratch:
        tile = rows, self.hidden_size
        slab = min(self.width, max(1, self.ops.sizes.slab_elements // self.hidden_size))
        return _JointScratch(
            logits=(rows, self.width),
            block=(self.ops.scratch_rows(rows, self.width), self.width),
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
        copies = int(self._copied)
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
        inputs = self._arguments._replace(weight=self._weight, bias=self._bias)
        if self._magnitudes is None:
            self._magnitudes = Magnitudes.of(self.ops, self._batch, inputs)
        return Tangents(self.ops, self._batch, samples, inputs, self._activation, self._magnitudes)

    def log_probs(
        self, cells: Cells, scratch: _JointScratch, stored: Any | None
    ) -> tuple[Any, Any, Any]:
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
        self.gradients = self._out or JointGradients(
            *(None if a is None else zeros(a.shape, a.dtype) for a in self._arguments)
        )
        for gradient in self._out or ():
            if gradient is not None:
                gradient.fill(0)
        # Every worker sums over its own tiles; the order of these sums never depends on timing.
        self._d_weight = zeros((workers, self.width, self.hidden_size), self.dtype)
        self._d_bias = zeros((workers, self.width), self.dtype)

    def begin_group(self, group: Group, kept: Any) -> None:
        self._group_start = group.start
        self._first_frame, self._frames, self._d_encoder = self._sums(group, self._batch.frames)
        self._first_column, self._columns, self._d_predictor = self._sums(
            group, self._batch.columns
        )

    def _sums(self, group: Group, lengths: np.ndarray) -> tuple[Any, tuple[Any, Any], Any]:
        """Gradients of the frames, or of the prefixes, of a group: where each sample begins, where
        they belong, and each worker's sums."""
        counts = lengths[group.start : group.stop]
        ends = counts.cumsum()
        firsts, total = ends - counts, int(ends[-1])
        samples = np.repeat(np.arange(group.start, group.stop), counts)
        places = samples, np.arange(total) - np.repeat(firsts, counts)
        sums = self.ops.zeros((self._workers, total, self.hidden_size), self.dtype)
        asarray = self.ops.asarray
        return asarray(firsts), (asarray(places[0]), asarray(places[1])), sums

    def add_gradient(
        self,
        worker: int,
        cells: Cells,
        kept: Kept,
        stored: tuple[Any, Any] | None,
        clamp: float,
        weights: Any | None,
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
        ops.add_column_sum(logits, self._d_bias[worker], block)
        ops.matmul(logits, self._weight, d_hidden)
        ops.hidden_grad(d_hidden, hidden, pre, self._activation)
        sample = cells.sample - self._group_start
        frames = self._first_frame[sample] + cells.frame
        columns = self._first_column[sample] + cells.position
        ops.add_rows(d_hidden, frames, self._d_encoder[worker], pre)
        ops.add_rows(d_hidden, columns, self._d_predictor[worker], pre)

    def end_group(self, group: Group) -> None:
        gradients = self.gradients
        self.ops.scatter(_total(self._d_encoder), self._frames, gradients.encoder_out)
        self.ops.scatter(_total(self._d_predictor), self._columns, gradients.predictor_out)

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
