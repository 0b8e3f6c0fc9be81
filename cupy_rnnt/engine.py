"""The sample-wise engine: two passes over lists of cells, a tile at a time, in a fixed workspace.

    for group in plan:
        select                     # the cells that can matter: by bounds, or all
        for tile of these cells:   # pass 1: the log-probs of blank and label of each cell
        certify                    # that the others do not matter, or select more
        lattice                    # costs and occupancies of all samples of the group
        keep                       # the cells whose gradient matters
        for tile of kept cells:    # pass 2: their gradient

It goes beyond Braun, McDermott and Hsiao (arXiv 2211.16270) in that a tile is a run of cells, not
a sample, so that nothing is padded, and in that both passes leave out cells without posterior mass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .batch import Batch
from .dlpack import exported
from .options import Options
from .passes import FirstPass, Kept, Passes, Source
from .results import Info, reduced
from .schedule import Group, Plan, plan


@dataclass
class Result:
    """Costs, and what a later backward pass needs."""

    batch: Batch
    options: Options
    dtype: np.dtype  # of the arithmetic and of the loss
    plan: Plan
    costs: Any  # float64, (B,)
    certificate: Any  # float64, (B,)
    kept: list[Kept] = field(default_factory=list)  # in packed order
    computed_count: int = 0
    kept_count: int = 0
    rounds: int = 1

    @staticmethod
    def of(source: Source, batch: Batch, options: Options, plan: Plan) -> Result:
        arrays = source.ops.xp.empty((2, batch.size))
        return Result(batch, options, source.dtype, plan, *arrays)

    def add(self, group: Group, first: FirstPass) -> Kept | None:
        """Take over what the first pass over a group has found; returns its kept cells."""
        samples = slice(group.start, group.stop)
        costs = self.costs[samples]
        costs[...] = first.costs
        if self.options.zero_infinity:
            costs[~(abs(costs) < np.inf)] = 0.0
        self.certificate[samples] = first.certificate
        self.computed_count += first.computed
        self.rounds = max(self.rounds, first.rounds)
        if first.kept is not None:
            self.kept_count += len(first.kept.packed)
        return first.kept

    def loss(self) -> Any:
        return reduced(self.costs, self.options.reduction, self.dtype)

    def info(self) -> Info:
        return Info(
            cells=self.batch.cell_count,
            computed=self.computed_count,
            kept=self.kept_count,
            certificate=self.certificate,
            rounds=self.rounds,
            workspace_bytes=self.plan.workspace_bytes,
        )


def forward(source: Source, batch: Batch, options: Options, keep: bool) -> Result:
    """Costs alone, or (`keep`) also the kept cells, which :func:`backward` takes all together."""
    chosen = make_plan(source, batch, options, gradient=keep, store=False)
    result = Result.of(source, batch, options, chosen)
    with _running(source, batch, options, chosen, 1) as passes:
        for part in passes.parts():
            kept = result.add(part.group, passes.first(part, keep))
            if kept is not None:
                result.kept.append(kept)
    return result


def backward(source: Source, batch: Batch, options: Options, kept: Kept, weights: Any) -> None:
    """Pass 2 over the cells that :func:`forward` kept, with cost weights known only now."""
    ops = source.ops
    weights = ops.asarray(weights)
    chosen = make_plan(source, batch, options, gradient=True, store=False)
    behind = ops.asarray(batch.offsets[[group.stop for group in chosen.groups]])
    ends = ops.host(ops.xp.searchsorted(kept.packed, behind))[0].tolist()
    with _running(source, batch, options, chosen, 1) as passes:
        weights = source.begin_gradient(chosen.workers, weights, _largest(weights, options))
        for group, start, end in zip(chosen.groups, [0, *ends], ends, strict=False):
            passes.second(group, kept.part(slice(start, end)), weights)
        source.end_gradient()


def forward_backward(source: Source, batch: Batch, options: Options, weights: np.ndarray) -> Result:
    """Both passes, part by part; logits of pass 1 serve pass 2 as far as the workspace goes."""
    chosen = make_plan(source, batch, options, gradient=True, store=True)
    on_device = source.ops.asarray(weights)
    result = Result.of(source, batch, options, chosen)
    with _running(source, batch, options, chosen, 2) as passes:
        largest = _largest(on_device, options)
        on_device = source.begin_gradient(chosen.workers, on_device, largest)
        for part in passes.parts():
            kept = result.add(part.group, passes.first(part, keep=True))
            assert kept is not None
            passes.second(part.group, kept, on_device)
        source.end_gradient()
    return result


def run(
    source: Source, batch: Batch, options: Options, weights: np.ndarray | None = None
) -> Result:
    """Costs, and given weights of them also the gradient."""
    if weights is None:
        return forward(source, batch, options, keep=False)
    return forward_backward(source, batch, options, weights)


def returned(result: Result, like: Any, *gradients: Any) -> Any:
    """What a public function returns: arrays of the kind of its argument `like`."""
    info = [result.info()] if result.options.return_info else []
    values = exported(result.loss(), like), *gradients, *info
    return values if len(values) > 1 else values[0]


def make_plan(source: Source, batch: Batch, options: Options, gradient: bool, store: bool) -> Plan:
    budget, select = options.max_workspace_bytes, options.tolerance > 0
    transducer = options.transducer
    return plan(batch, source, source.ops, transducer, budget, gradient, store, select)


def _largest(weights: Any, options: Options) -> Any:
    """A bound of the gradient of the logits: of costs, it is within 1 + lambda of 0."""
    return abs(weights).max() * (1 + options.fastemit_lambda)


@contextmanager
def _running(
    source: Source, batch: Batch, options: Options, plan: Plan, count: int
) -> Iterator[Passes]:
    """Passes over the batch, `count` of them in all; a gradient that is too large for its dtype is
    inf, and no reason to warn."""
    with np.errstate(all="ignore"):
        yield Passes(source, batch, options, plan, source.ops.workers(plan.workers), count)
    if options.progress is not None:
        options.progress(batch.cell_count, batch.cell_count)
