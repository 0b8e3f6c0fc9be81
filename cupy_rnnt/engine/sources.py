"""What the engine asks of the source of the logits, and of the sums that their gradient goes to."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..batch import Coordinates
from ..ops.types import Cells, DeviceArray, HostArray, RowPosteriors
from .plan import Group, Needs
from .tangents import Tangents


class Kept(NamedTuple):
    """The cells of one group whose gradient is computed, one entry each, in packed order."""

    packed: DeviceArray  # int64, (n,)
    lse: DeviceArray  # float64, (G, n): of each head
    occupancies: DeviceArray  # compute dtype, as the gradient uses it, (K, n): of each score

    def part(self, some: DeviceArray) -> Kept:
        """Some of the cells."""
        return Kept(*(values[..., some] for values in self))

    def posteriors(self, weights: DeviceArray, clamp: float) -> RowPosteriors:
        """Cost weights (n,) go into the occupancies, as gradients are linear in them, or are left
        to be applied behind the bounds that `clamp` sets."""
        if clamp > 0:
            return RowPosteriors(self.lse, self.occupancies, clamp, weights)
        weights = weights.astype(self.occupancies.dtype)
        return RowPosteriors(self.lse, weights * self.occupancies, clamp, None)


class GroupSums(Protocol):
    """Where the gradient of a group of samples goes."""

    def add(
        self,
        worker: int,
        cells: Cells,
        posteriors: RowPosteriors,
        stored: tuple[DeviceArray, DeviceArray] | None,
        scratch: Any,
    ) -> None:
        """Add the gradient of some cells.

        `stored` are logits that pass 1 has left and the rows that belong to the cells. Calls of
        different workers overlap; those of one worker come in the same order in every run.
        """


class Sums(Protocol):
    """Where the gradient of a batch goes: it is there when the context is left."""

    weights: DeviceArray
    """Of the costs, (B,), as :meth:`GroupSums.add` is to be given them."""

    def of_group(self, group: Group, kept: DeviceArray) -> AbstractContextManager[GroupSums]:
        """Those of a group, of which `kept` are the packed indices of the cells; the gradients of
        its samples are there when the context is left."""


class Source(Needs, Protocol):
    """Where logits come from and their gradient goes."""

    coordinates: Coordinates
    dtype: np.dtype
    """The compute dtype."""
    gains_surely: bool
    """Whether bounds of scores save more than they cost even if they leave out few cells."""

    def scratch(self, rows: int) -> Any:
        """Buffers of one worker."""

    def scores(
        self, cells: Cells, scratch: Any, stored: DeviceArray | None
    ) -> tuple[DeviceArray, DeviceArray]:
        """Log-sum-exps (G, n) and scores (K, n) of some cells, float64.

        Their logits are left in `stored`, (cells, V), if it is given.
        """

    def tangents(self, samples: HostArray) -> Tangents:
        """What bounds the scores of some samples; only called if `selects` is set."""

    def sums(
        self, workers: int, weights: DeviceArray, largest: DeviceArray
    ) -> AbstractContextManager[Sums]:
        """Gradients, all 0, given weights of the costs, (B,). `largest` bounds the magnitude of
        what each logit gets as its gradient."""
