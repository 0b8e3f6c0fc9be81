"""Rows of a joint network, from the inputs of some cells to their logits and scores, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..batch import Batch, CellsOf
from ..ops import operations_for
from ..ops.lattices import Lattice
from ..ops.types import (
    Cells,
    DeviceArray,
    Dropout,
    HiddenRows,
    JointInputs,
    LogitRows,
    Shape,
    compute_dtype,
)
from ..options import Options
from ..transducer import Row
from .plan import ROW_BYTES


class JointScratch(NamedTuple):
    """Buffers of one worker, None without rows; only the gradient needs the slab and the last
    two. All but the first two have a row for each cell of a tile."""

    block: DeviceArray  # a few rows of logits
    slab: DeviceArray  # some rows of a weight gradient
    logits: DeviceArray
    pre: DeviceArray
    hidden: DeviceArray  # None where `factors` are made without
    factors: DeviceArray  # what `weight` multiplies: `hidden`, or its factors in the factor dtype
    d_logits: DeviceArray  # in the factor dtype; None where they overwrite the logits
    d_hidden: DeviceArray

    def rows(self, count: int) -> JointScratch:
        """The first rows of each buffer, for a tile of `count` cells."""
        of_cells = (None if array is None else array[:count] for array in self[2:])
        return JointScratch(self.block, self.slab, *of_cells)


class JointRows:
    """Logits ``act(encoder_out[b, t] + predictor_out[b, u]) @ weight.T + bias``, tile by tile.

    A row has a column for each row of the weights, and padding behind them where the device wants
    it: columns under no head, with weights of 0 and a bias of -inf, which has no share in anything.
    With `gradient`, scratch and bytes include what the gradient needs.
    """

    def __init__(self, batch: Batch, inputs: JointInputs, options: Options, gradient: bool) -> None:
        self.ops = operations_for(inputs.encoder_out)
        self.dtype: np.dtype = compute_dtype(inputs.encoder_out.dtype)
        vocabulary: int
        self.hidden_size: int
        vocabulary, self.hidden_size = inputs.weight.shape
        columns = self.ops.sizes.columns
        self.width = -(-vocabulary // columns) * columns
        self.row = _padded(options.transducer.row(vocabulary, batch.blank), self.width)
        lengths = batch.frames, batch.positions
        self.device_row, self.samples = self.ops.tables(self.row, *lengths, batch.labels)
        self.cells_of = CellsOf(self.ops, self.samples)
        self.batch, self.inputs = batch, inputs
        self.activation, self._gradient = options.activation, gradient
        self.dropout = Dropout.of(options.dropout, options.seed)
        weight, bias = inputs.weight, inputs.bias
        dense = weight.flags.c_contiguous or weight.flags.f_contiguous
        # A device may multiply half types as such. Weights are exact in them, and a hidden vector
        # is split into the sum of two factors, so logits are as accurate as those of float32.
        factor = self.ops.factor_dtype(inputs.encoder_out.dtype)
        self.factor_dtype: np.dtype | None = factor
        is_padded = self.width > vocabulary
        as_it_is = factor is None and not is_padded
        self._copied = not as_it_is or not dense or weight.dtype != self.dtype
        self._factor, self.bias = weight, bias
        if not as_it_is:
            parts, dtype = (1, self.dtype) if factor is None else (2, factor)
            make = self.ops.zeros if is_padded else self.ops.empty
            self._factor = make((self.width, parts * self.hidden_size), dtype)
            self._factor.reshape(self.width, parts, -1)[:vocabulary] = weight[:, None]
        elif self._copied:
            self._factor = weight.astype(self.dtype, order="K" if dense else "C")
        if bias is not None and is_padded:
            self.bias = self.ops.xp.full(self.width, -np.inf, self.dtype)
            self.bias[:vocabulary] = bias
        elif bias is not None:
            self.bias = self.ops.xp.ascontiguousarray(bias, self.dtype)

    def scratch(self, rows: int) -> JointScratch:
        shapes: list[tuple[Shape, np.dtype]] = []
        self._made(rows, lambda shape, dtype: shapes.append((shape, dtype)) if shape[0] else None)
        arrays = iter(self.ops.empties(*shapes))
        return self._made(rows, lambda shape, _: next(arrays) if shape[0] else None)

    def _made(self, rows: int, make: Callable[[Shape, np.dtype], Any]) -> JointScratch:
        """The buffers of a tile, each made from its shape and dtype."""
        width, size, gradient = self.width, self.hidden_size, self._gradient
        slab = min(width, max(1, self.ops.sizes.slab_elements // size)) if gradient else 0
        factor, fuses = self.factor_dtype, self.ops.fuses
        pre = make((rows, size), self.dtype)
        hidden = None if factor is not None and fuses else make((rows, size), self.dtype)
        return JointScratch(
            logits=make((rows, width), self.dtype),
            block=make((self.ops.scratch_rows(rows, width), width), self.dtype),
            pre=pre,
            hidden=hidden,
            factors=hidden if factor is None else make((rows, 2 * size), factor),
            d_logits=None if factor is None or not gradient else make((rows, width), factor),
            d_hidden=pre if fuses else make((rows if gradient else 0, size), self.dtype),
            slab=make((slab, size), self.dtype),
        )

    def tile_bytes(self, rows: int) -> int:
        sizes: list[int] = []
        self._made(rows, lambda shape, dtype: sizes.append(math.prod(shape) * dtype.itemsize))
        temporaries = 0 if self.ops.fuses else 2 * rows * self.hidden_size
        if self._gradient:  # fixed_bytes has the first row of the sums of the bias
            temporaries += (self.ops.bias_rows(rows) - 1) * self.width
        shapes = (self.hidden_size, self.width), (self.width, self.hidden_size)
        dtype = self.inputs.encoder_out.dtype
        products = max(self.ops.product_bytes(dtype, rows, *shape) for shape in shapes)
        return sum(sizes) + temporaries * self.dtype.itemsize + products + ROW_BYTES * rows

    def fixed_bytes(self, workers: int) -> int:
        weight_bytes = (self.hidden_size + 1) * self.width * self.dtype.itemsize
        copies = self._copied + (workers if self._gradient else 0)
        return copies * weight_bytes + self.width * self.dtype.itemsize

    def scores(
        self, cells: Cells, scratch: JointScratch, stored: DeviceArray | None
    ) -> tuple[DeviceArray, DeviceArray]:
        return self.ops.row_scores(self._logit_rows(cells, scratch, stored))

    def write_scores(
        self, lattice: Lattice, cells: Cells, scratch: JointScratch, stored: DeviceArray | None
    ) -> None:
        lattice.write_rows(self._logit_rows(cells, scratch, stored))

    def _logit_rows(
        self, cells: Cells, scratch: JointScratch, stored: DeviceArray | None
    ) -> LogitRows:
        scratch = scratch.rows(len(cells))
        logits = scratch.logits if stored is None else stored
        self.write_hidden(cells, scratch)
        self.write_logits(scratch.factors, logits)
        return self.rows(logits, cells, scratch)

    def rows(self, logits: DeviceArray, cells: Cells, scratch: JointScratch) -> LogitRows:
        return LogitRows(logits, self.bias, self.device_row, cells, scratch.block)

    def write_hidden(self, cells: Cells, scratch: JointScratch) -> None:
        self.ops.hidden(self.hidden_rows(cells, scratch))

    def hidden_rows(self, cells: Cells, scratch: JointScratch) -> HiddenRows:
        rows = self.inputs, cells, self.activation, scratch.pre, scratch.factors
        return HiddenRows(*rows, self.dropout)

    def write_logits(self, factors: DeviceArray, logits: DeviceArray) -> None:
        """``logits = factors @ weight.T``, without the bias."""
        self.ops.matmul(factors, self._factor.T, logits)

    def write_d_hidden(self, d_logits: DeviceArray, d_hidden: DeviceArray) -> None:
        self.ops.matmul(d_logits, self._factor[:, : self.hidden_size], d_hidden)


def _padded(row: Row, width: int) -> Row:
    """The row with so many columns; the new ones are those of no label."""
    if row.width == width:
        return row
    return row._replace(width=width, others=(*row.others, (row.width, width)))
