"""The scores of all cells, and the gradient of any function of them.

    for tile of all cells:           # forward: pass 1 of the engine, without a lattice
        scores
    for group in plan:               # backward: pass 2, from a gradient in the place of a posterior
        for list of cells in group:  # those whose gradient is not 0
            for tile of list:
                logits, log-sum-exps, gradient

The occupancies of pass 2 are ``- d cost / d scores``. It takes the gradient of any function of the
scores with that of the function in the place of the cost's. Logits are computed once in either
direction. Lists are as long as a few tiles, however large the batch is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..batch import Batch
from ..ops.types import Cells, DeviceArray, RowPosteriors, Tile
from ..options import Options
from ..quiet import quiet
from ..transducer import LABEL_COLUMN
from .plan import LISTED_TILES, Group, make_plan
from .sources import GroupSums, Source
from .work import Work

# The gradient of the scores is multiplied by a power of two, so that its largest element is from
# 2**29 to 2**30. Then an element below 2**-46 counts as 0: it is below 2**-75 of the largest. The
# rest have no denormal product with a softmax value of at least 3e-20 and a weight of at least
# 2**-14 (see `ops/numpy/rows.py` and `exponents.py`), and the largest do not overflow.
_TOP, _LEAST = 30, 2.0**-46


class _Listed(NamedTuple):
    """Cells whose gradient is not 0."""

    packed: DeviceArray  # int64, (n,)
    occupancies: DeviceArray  # compute, (K, n): minus the gradient, times a power of two


class Scores(Work):
    """The scores of the cells of a batch; with `gradient`, what takes the gradient of a function of
    them. The options that concern paths have no effect."""

    def __init__(self, source: Source, batch: Batch, options: Options, gradient: bool) -> None:
        plan = make_plan(source, batch, options, gradient, store=False, lattices=False)
        super().__init__(source, batch, options, plan)
        self._labels = [k for k, c in enumerate(source.row.columns) if c == LABEL_COLUMN]

    @quiet
    def write(self, out: DeviceArray) -> None:
        """Write the scores to `out` (B, T, U + 1, K), which is 0 everywhere."""
        source, ops = self.source, self.source.ops

        def tile(worker: int, part: Tile) -> None:
            cells = source.cells_of(ops.xp.arange(*part))
            _, scores = source.scores(cells, self.scratch[worker], None)
            self._clear_absent_labels(scores, cells)
            rows = ops.xp.ascontiguousarray(scores.T, source.dtype)
            ops.scatter(rows, _index(cells), out)

        count = self.batch.cell_count
        self.run(tile, count, report=lambda part: self._report(part[1]))
        self._report(count)

    @quiet
    def add_gradient(self, grad: DeviceArray) -> None:
        """Write the gradient of a function to ``source.gradients``, given its gradient by the
        scores, (B, T, U + 1, K)."""
        source, size = self.source, self.batch.size
        _, exponent = math.frexp(self._largest(grad))
        least = np.finfo(source.dtype).minexp + _TOP + 6  # or weights would be denormal
        power = 2.0 ** (_TOP - max(exponent, least))
        weights = source.ops.asarray(np.full(size, 1 / power))
        # An element is in the columns of K scores at most, and under one softmax.
        largest = 2 * len(source.row.columns) * 2.0**_TOP
        with source.sums(self.plan, weights, largest) as sums:
            for group in self.plan.groups:
                with sums.of_group(group, None) as of_group:  # lists follow, one by one
                    for stop, listed in self._lists(group, grad, power):
                        self._add(of_group, listed, sums.weights)
                        self._report(stop)
        self._report(self.batch.cell_count)

    def _add(self, of_group: GroupSums, listed: _Listed, weights: DeviceArray) -> None:
        source, clamp = self.source, self.options.clamp
        of_list = source.cells_of(listed.packed)

        def tile(worker: int, part: Tile) -> None:
            of_tile, scratch = slice(*part), self.scratch[worker]
            cells = of_list.part(of_tile)
            logits = scratch.logits[: len(cells)]
            lse, _ = source.scores(cells, scratch, logits)
            occupancies = listed.occupancies[:, of_tile]
            posteriors = RowPosteriors(lse, occupancies, weights, clamp)
            of_group.add(worker, cells, posteriors, (logits, None), scratch)

        self.run(tile, len(listed.packed), fixed=True)

    def _runs(self, group: Group) -> Iterator[Tile]:
        """Runs of the cells of a group, as long as some tiles."""
        cells = self.batch.run(group.start, group.stop)
        length = LISTED_TILES * self.plan.workers * self.plan.rows
        for start in range(cells.start, cells.stop, length):
            yield start, min(start + length, cells.stop)

    def _lists(
        self, group: Group, grad: DeviceArray, power: float
    ) -> Iterator[tuple[int, _Listed]]:
        """For each run of the cells of a group, where it stops and its cells with a gradient."""
        source, ops = self.source, self.source.ops
        for start, stop in self._runs(group):
            packed = ops.xp.arange(start, stop)
            values = self._gradient(grad, packed) * -power
            values[abs(values) < _LEAST] = 0.0
            is_listed = (values != 0).any(axis=0)
            count = int(ops.host(is_listed.sum())[0])
            index = ops.indices(is_listed, count)
            occupancies = values[:, index].astype(source.dtype)
            yield stop, _Listed(packed[index], occupancies)

    def _largest(self, grad: DeviceArray) -> float:
        """The largest finite magnitude in the gradient of the scores."""
        xp = self.source.ops.xp
        runs = [run for group in self.plan.groups for run in self._runs(group)]
        tops = []
        for run in runs:
            values = abs(self._gradient(grad, xp.arange(*run)))
            tops.append(xp.where(values < np.inf, values, 0.0).max())
        return max(map(float, self.source.ops.host(*tops)))

    def _gradient(self, grad: DeviceArray, packed: DeviceArray) -> DeviceArray:
        """The gradient of the scores of some cells, float64 (K, n)."""
        source, ops = self.source, self.source.ops
        cells = source.cells_of(packed)
        rows = ops.empty((len(packed), grad.shape[-1]), source.dtype)
        ops.gather(grad, _index(cells), rows)
        values = rows.T.astype(np.float64, order="C")
        self._clear_absent_labels(values, cells)
        return values

    def _clear_absent_labels(self, values: DeviceArray, cells: Cells) -> None:
        """Set the values (K, n) of labels to 0 at last positions, which no label leaves."""
        for k in self._labels:
            values[k] = self.source.ops.xp.where(cells.has_label, values[k], 0.0)

    def _report(self, done: int) -> None:
        if self.options.progress is not None:
            self.options.progress(done, self.batch.cell_count)


def _index(cells: Cells) -> tuple[DeviceArray, ...]:
    return cells.sample, cells.frame, cells.position
