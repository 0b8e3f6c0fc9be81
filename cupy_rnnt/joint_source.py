"""The logits of a joint network, a tile at a time, and where their gradient goes: a
:class:`cupy_rnnt.passes.Source`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import defaults
from .batch import Batch, Cells, Coordinates, JointInputs
from .exponents import WeightExponents
from .ops import Shape, operations_for
from .options import Options
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
_LARGEST_EXPONENT = 14  # of a gradient of logits in float16, which ends below 2**16


class _JointScratch(NamedTuple):
    """Buffers of one worker; the last three serve the gradient only."""

    logits: Any
    block: Any  # a few rows of logits
    pre: Any
    hidden: Any
    factors: Any  # `hidden` in the factor dtype, or `hidden`
    d_logits: Any  # in the factor dtype, or None: they take the place of the logits
    d_hidden: Any
    slab: Any  # some rows of a weight gradient

    def rows(self, count: int) -> _JointScratch:
        """The same for a tile of fewer cells."""
        rows = {
            name: None if array is None else array[:count]
            for name, array in self._asdict().items()
            if name not in ("block", "slab")
        }
        return self._replace(**rows)


class JointSource:
    """Logits ``act(encoder_out[b, t] + predictor_out[b, u]) @ weight.T + bias``, tile by tile.

    `gradient` says whether :attr:`gradients` will be asked for; they go to `out`, if that is given.
    """

    def __init__(
        self,
        batch: Batch,
        inputs: JointInputs,
        options: Options,
        gradient: bool,
        out: JointGradients | None = None,
    ) -> None:
        self.ops = operations_for(inputs.encoder_out)
        self.dtype: np.dtype = defaults.compute_dtype(inputs.encoder_out.dtype)
        self.width: int
        self.hidden_size: int
        self.width, self.hidden_size = inputs.weight.shape
        worth_storing = self.hidden_size >= _STORING_HIDDEN_SIZE
        elements = self.width * self.hidden_size
        self.row = options.transducer.row(self.width, batch.blank)
        self._row = self.ops.device_row(self.row)
        self.selects = elements >= _SELECTING_ELEMENTS and options.transducer.normalises
        self.gains_surely = (
            elements >= _SURELY_GAINING_ELEMENTS and self.width >= _SURELY_GAINING_WIDTH
        )
        self.stored_row_bytes = self.width * self.dtype.itemsize if worth_storing else 0
        self.coordinates = Coordinates(batch, self.ops)
        self._batch, self._inputs = batch, inputs
        self._activation, self._gradient, self._out = options.activation, gradient, out
        weight, bias = inputs.weight, inputs.bias
        dense = weight.flags.c_contiguous or weight.flags.f_contiguous
        self._copied = not dense or weight.dtype != self.dtype
        if self._copied:
            weight = weight.astype(self.dtype, order="K" if dense else "C")
        self._weight = weight
        # Half types are multiplied as such: the weights are exact in them, and a hidden vector is
        # the sum of two, so that logits are as of float32.
        factor = self.ops.factor_dtype(inputs.encoder_out.dtype)
        self._factor_dtype: np.dtype | None = factor
        self._factor = self._weight
        if factor is not None:
            self._factor = self.ops.xp.concatenate((inputs.weight, inputs.weight), axis=1)
        self._bias = None if bias is None else self.ops.xp.ascontiguousarray(bias, self.dtype)
        self._scale: Any | None = None
        self._exponents: WeightExponents | None = None
        self._magnitudes: Magnitudes | None = None

    def scratch(self, rows: int) -> _JointScratch:
        return self._made(rows, self.ops.empty)

    def _made(self, rows: int, make: Callable[[Shape, np.dtype], Any]) -> _JointScratch:
        """The buffers of a tile, each made from its shape and dtype."""
        width, size, gradient = self.width, self.hidden_size, self._gradient
        slab = min(width, max(1, self.ops.sizes.slab_elements // size)) if gradient else 0
        hidden, factor = make((rows, size), self.dtype), self._factor_dtype
        return _JointScratch(
            logits=make((rows, width), self.dtype),
            block=make((self.ops.scratch_rows(rows, width), width), self.dtype),
            pre=make((rows, size), self.dtype),
            hidden=hidden,
            factors=hidden if factor is None else make((rows, 2 * size), factor),
            d_logits=None if factor is None or not gradient else make((rows, width), factor),
            d_hidden=make((rows if gradient else 0, size), self.dtype),
            slab=make((slab, size), self.dtype),
        )

    def tile_bytes(self, rows: int) -> int:
        sizes: list[int] = []
        self._made(rows, lambda shape, dtype: sizes.append(math.prod(shape) * dtype.itemsize))
        temporaries = 2 * rows * self.hidden_size * self.dtype.itemsize
        return sum(sizes) + temporaries + ROW_BYTES * rows

    def fixed_bytes(self, workers: int) -> int:
        weight_bytes = (self.hidden_size + 1) * self.width * self.dtype.itemsize
        copies = self._copied + (self._factor_dtype is not None)
        if self._gradient:
            copies += workers
        return copies * weight_bytes + self.width * self.dtype.itemsize

    def group_bytes(self, frames: int, columns: int, workers: int) -> int:
        rows = workers * (frames + columns) if self._gradient else 0
        return rows * self.hidden_size * self.dtype.itemsize

    def selection_bytes(self, frames: int, columns: int, samples: int, workers: int) -> int:
        itemsize = self.dtype.itemsize
        scores = len(self.row.columns)
        references = Tangents.nbytes(frames, columns, samples, scores, self.hidden_size, itemsize)
        return references + workers * _FRAME_CELL_BYTES * columns

    def tangents(self, samples: np.ndarray) -> Tangents:
        inputs = self._inputs._replace(weight=self._weight, bias=self._bias)
        if self._magnitudes is None:
            self._magnitudes = Magnitudes.of(self.ops, self._batch, inputs)
        form = self._activation, self.row, self._row
        return Tangents(self.ops, self._batch, samples, inputs, *form, self._magnitudes)

    def scores(self, cells: Cells, scratch: _JointScratch, stored: Any | None) -> tuple[Any, Any]:
        scratch = scratch.rows(len(cells.sample))
        logits = scratch.logits if stored is None else stored
        self._hidden(cells, scratch)
        self.ops.matmul(scratch.factors, self._factor.T, logits)
        return self.ops.row_scores(logits, self._bias, self._row, cells.label, scratch.block)

    def _hidden(self, cells: Cells, scratch: _JointScratch) -> None:
        encoder_out, predictor_out = self._inputs[:2]
        self.ops.hidden(
            encoder_out, predictor_out, cells, self._activation, scratch.pre, scratch.factors
        )

    def begin_gradient(self, workers: int, weights: Any, largest: Any) -> Any:
        zeros, xp = self.ops.zeros, self.ops.xp
        if self._factor_dtype is not None:
            # A power of two, so that the gradient of the logits, as large as `largest`, neither
            # overflows nor vanishes in float16.
            usable = xp.where((largest > 0) & xp.isfinite(largest), largest, 1.0)
            self._scale = xp.exp2(_LARGEST_EXPONENT - xp.ceil(xp.log2(usable))).astype(self.dtype)
        self._workers = workers
        self.gradients = self._out or JointGradients(
            *(None if a is None else zeros(a.shape, a.dtype) for a in self._inputs)
        )
        for gradient in self._out or ():
            if gradient is not None:
                gradient.fill(0)
        # Every worker sums over its own tiles; the order of these sums never depends on timing.
        self._d_weight = zeros((workers, self.width, self.hidden_size), self.dtype)
        self._d_bias = zeros((workers, self.width), self.dtype)
        if not self.ops.slow_denormals:
            return weights
        self._exponents = WeightExponents(weights, workers)
        return self._exponents.fractions

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
        ops = self.ops
        scratch = scratch.rows(len(cells.sample))
        logits, block, pre, _, factors, _, d_hidden, slab = scratch
        hidden, weight = factors[:, : self.hidden_size], self._factor[:, : self.hidden_size]
        occupancies = kept.occupancies
        self._hidden(cells, scratch)
        if stored is None:
            ops.matmul(factors, self._factor.T, logits)
        else:
            ops.gather(stored[0], (stored[1],), logits)
        if self._scale is not None and weights is not None:
            weights = weights * self._scale
        elif self._scale is not None:
            occupancies = self._scale * occupancies
        rows = logits, self._bias, self._row, kept.lse, occupancies, cells.label
        ops.logits_grad(*rows, clamp, weights, block, scratch.d_logits)
        d_logits = logits if scratch.d_logits is None else scratch.d_logits
        ops.matmul(d_logits, weight, d_hidden)
        sums = self._d_weight[worker], self._d_bias[worker]
        if self._exponents is not None:
            self._exponents.align(worker, cells.sample, d_logits, sums)
        ops.add_weight_grad(d_logits, hidden, sums[0], slab)
        ops.add_column_sum(d_logits, sums[1], block)
        ops.hidden_grad(d_hidden, hidden, pre, self._activation)
        sample = cells.sample - self._group_start
        frames = self._first_frame[sample] + cells.frame
        columns = self._first_column[sample] + cells.position
        ops.add_rows(d_hidden, frames, self._d_encoder[worker], pre)
        ops.add_rows(d_hidden, columns, self._d_predictor[worker], pre)

    def end_group(self, group: Group) -> None:
        for parts, places, gradient in (
            (self._d_encoder, self._frames, self.gradients.encoder_out),
            (self._d_predictor, self._columns, self.gradients.predictor_out),
        ):
            total = self._total(parts)
            if self._exponents is not None:
                self._exponents.put_back(total, places[0])
            self.ops.scatter(total, places, gradient)

    def end_gradient(self) -> None:
        for parts, gradient in (
            (self._d_weight, self.gradients.weight),
            (self._d_bias, self.gradients.bias),
        ):
            if self._exponents is not None:
                self._exponents.put_back_into_sums(parts)
            if gradient is not None:
                self.ops.assign(self._total(parts), gradient)

    def _total(self, parts: Any) -> Any:
        """The sum over the workers, in the place of the first one's part."""
        total = parts[0]
        for part in parts[1:]:
            total += part
        if self._scale is not None:
            total /= self._scale
        return total
