"""The logits of a joint network, a tile at a time: a
:class:`cupy_rnnt.engine.sources.Source`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..batch import Batch
from ..ops.types import DeviceArray, HostArray, JointInputs
from ..options import Options
from ..results import JointGradients
from .joint_rows import JointRows
from .joint_sums import JointSums
from .plan import Plan
from .tangents import Tangents

# Bounds take four dot products of length H a cell, and logits take V. With fewer than 2**12
# weights, bounds always cost more than they save. From 2**14 weights and V = 128 on, they save more
# than they cost, however few cells they leave out.
_SELECTING_ELEMENTS = 2**12
_SURELY_GAINING_ELEMENTS, _SURELY_GAINING_WIDTH = 2**14, 128
_FRAME_CELL_BYTES = 128  # a cell takes them while the bounds of its frame are formed


class JointSource(JointRows):
    """The logits of a joint network.

    With `gradient`, :attr:`gradients` can be computed: in `out` or, if it is None, in new arrays.
    """

    def __init__(
        self,
        batch: Batch,
        inputs: JointInputs,
        options: Options,
        gradient: bool,
        out: JointGradients | None = None,
    ) -> None:
        super().__init__(batch, inputs, options, gradient)
        self._out = out
        elements = self.width * self.hidden_size
        self.selects = elements >= _SELECTING_ELEMENTS and options.transducer.normalises
        self.gains_surely = (
            elements >= _SURELY_GAINING_ELEMENTS and self.width >= _SURELY_GAINING_WIDTH
        )
        # A product of other rows may round them otherwise, and their softmax with them: of a sharp
        # model with H = 64, gradients were off by 4e-5 of the largest entry instead of 2e-6. To
        # store them takes 0.98 to 1.04 of the time of computing them again, for H = 32 to 100.
        self.stored_row_bytes = self.width * self.dtype.itemsize
        self._row_sums: DeviceArray = None

    def group_bytes(self, frames: int, positions: int, workers: int) -> int:
        rows = workers * (frames + positions) if self._gradient else 0
        return rows * self.hidden_size * self.dtype.itemsize

    def selection_bytes(self, frames: int, positions: int, samples: int, workers: int) -> int:
        itemsize = self.dtype.itemsize
        scores = len(self.row.columns)
        references = Tangents.nbytes(frames, positions, samples, scores, self.hidden_size, itemsize)
        return references + workers * _FRAME_CELL_BYTES * positions

    def tangents(self, numbers: HostArray) -> Tangents:
        weight = self._factor[:, : self.hidden_size]
        if self._row_sums is None:
            self._row_sums = self.ops.row_sums(weight)
        inputs = self.inputs._replace(weight=weight, bias=self.bias)
        rows = self.row, self.device_row
        of_hidden = self.activation, self.dropout
        return Tangents(self.samples.chosen(numbers), inputs, *of_hidden, *rows, self._row_sums)

    @contextmanager
    def sums(self, plan: Plan, weights: DeviceArray, largest: float) -> Iterator[JointSums]:
        """See :meth:`cupy_rnnt.engine.sources.Source.sums`; it completes :attr:`gradients`."""
        self.gradients = self._out or JointGradients(
            *(None if a is None else self.ops.result(a.shape, a.dtype) for a in self.inputs)
        )
        sums = JointSums(self, self.gradients, plan, weights, largest)
        yield sums
        sums.close()
