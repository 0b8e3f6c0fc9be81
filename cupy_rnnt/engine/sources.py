"""What the engine asks of the source of the logits, and of the sums that take their gradient."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..batch import CellsOf
from ..ops.lattices import Lattice
from ..ops.types import Cells, DeviceArray, HostArray, RowPosteriors, Samples
from .plan import Group, Needs, Plan
from .tangents import Tangents


class Kept(NamedTuple):
    """The cells whose gradient is computed, one entry each, in packed order."""

    packed: DeviceArray  # int64, (n,)
    lse: DeviceArray  # float64, (G, n): of each head
    occupancies: DeviceArray  # compute dtype, (K, n): of each score, with FastEmit's factor

    def part(self, index: DeviceArray | slice) -> Kept:
        """The cells at an index."""
        return Kept(*(array[..., index] for array in self))


class GroupSums(Protocol):
    """Takes the gradient of a group of samples."""

    def add(
        self,
        worker: int,
        cells: Cells,
        posteriors: RowPosteriors,
        stored: tuple[DeviceArray, DeviceArray | None] | None,
        scratch: Any,
    ) -> None:
        """Add the gradient of some cells.

        `stored` holds logits that are in memory and the numbers of the cells' rows in them, or None
        for logits in the scratch, a row for each cell. Calls of several workers overlap; every
        worker makes its calls in the same order in every run.
        """


class Sums(Protocol):
    """Takes the gradient of a batch, which is complete on leaving the context."""

    weights: DeviceArray
    """Cost weights (B,) for the posteriors that :meth:`GroupSums.add` takes."""

    def of_group(self, group: Group, kept: DeviceArray) -> AbstractContextManager[GroupSums]:
        """The sums of a group, whose kept cells have the packed indices `kept`. The gradients of
        its samples are complete on leaving the context."""


class Source(Needs, Protocol):
    """Gives logits, tile by tile, and takes their gradient."""

    samples: Samples
    """Those of the batch."""
    cells_of: CellsOf
    dtype: np.dtype
    """The compute dtype."""
    gains_surely: bool
    """Whether bounds of scores save more than they cost even if they leave out few cells."""

    def scratch(self, rows: int) -> Any:
        """Buffers of one worker."""

    def scores(
        self, cells: Cells, scratch: Any, stored: DeviceArray | None
    ) -> tuple[DeviceArray, DeviceArray]:
        """Log-sum-exps (G, n) and scores (K, n) of n cells, float64.

        Unless `stored` (n, V) is None, the logits of the cells are written to it.
        """

    def write_scores(
        self, lattice: Lattice, cells: Cells, scratch: Any, stored: DeviceArray | None
    ) -> None:
        """Write what :meth:`scores` returns to a lattice."""

    def tangents(self, numbers: HostArray) -> Tangents:
        """What bounds the scores of the samples with some numbers. Called only if :attr:`selects`
        is true."""

    def sums(
        self, plan: Plan, weights: DeviceArray, largest: float
    ) -> AbstractContextManager[Sums]:
        """Gradients, all 0 at first, for cost weights (B,). No element of the gradient of the
        logits is larger in magnitude than `largest` times its weight."""
