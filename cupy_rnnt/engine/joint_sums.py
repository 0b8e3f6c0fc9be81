"""The sums that take the gradient of a joint network: a :class:`cupy_rnnt.engine.sources.Sums`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..ops.types import Cells, DeviceArray, InputSums, OutputSums, RowPosteriors
from ..results import JointGradients
from .exponents import WeightExponents
from .joint_rows import JointRows, JointScratch
from .plan import Group

_LARGEST_EXPONENT = 14  # of an element of d logits in float16, whose range ends below 2**16


class JointSums:
    """Gradients of a whole batch, all 0 at first; :meth:`close` completes them.

    Every worker sums over its own tiles, so the order of the terms never depends on timing.
    """

    def __init__(
        self,
        joint: JointRows,
        gradients: JointGradients,
        workers: int,
        weights: DeviceArray,
        largest: DeviceArray,
    ) -> None:
        ops, dtype = joint.ops, joint.dtype
        self.joint, self.ops, self._gradients = joint, ops, gradients
        self._workers, self.weights = workers, weights
        self._d_weight = ops.zeros((workers, joint.width, joint.hidden_size), dtype)
        self._d_bias = ops.zeros((workers, joint.width), dtype)
        self._scale: Any | None = None
        if joint.factor_dtype is not None:
            # A power of two that takes `largest` to at most 2**14, and above 2**13, so that the
            # gradient of the logits neither overflows nor vanishes in float16.
            xp = ops.xp
            usable = xp.where((largest > 0) & xp.isfinite(largest), largest, 1.0)
            self._scale = xp.exp2(_LARGEST_EXPONENT - xp.ceil(xp.log2(usable))).astype(dtype)
        self._exponents: WeightExponents | None = None
        if ops.slow_denormals:
            self._exponents = WeightExponents(weights, workers)
            self.weights = self._exponents.fractions

    @contextmanager
    def of_group(self, group: Group, kept: DeviceArray) -> Iterator[_GroupSums]:
        """See :meth:`cupy_rnnt.engine.sources.Sums.of_group`."""
        joint, gradients = self.joint, self._gradients
        samples = slice(group.start, group.stop)
        lengths = joint.batch.frames[samples], joint.batch.positions[samples]
        table = self.ops.group_table(group.start, joint.batch.offsets[samples], *lengths)
        parts = [self._zeros(int(counts.sum())) for counts in lengths]
        yield _GroupSums(self, table, *parts)
        sums = InputSums(*map(_total, parts))
        if self._exponents is not None:
            for total, counts in zip(sums, lengths, strict=True):
                numbers = np.arange(group.start, group.stop)
                self._exponents.put_back(total, np.repeat(numbers, counts))
        self.ops.write_input_grads(sums, table, self._scale, *gradients[:2])

    def _zeros(self, rows: int) -> Any:
        """Sums of every worker, all 0, (workers, rows, H)."""
        return self.ops.zeros((self._workers, rows, self.joint.hidden_size), self.joint.dtype)

    def add(
        self,
        worker: int,
        cells: Cells,
        posteriors: RowPosteriors,
        stored: tuple[DeviceArray, DeviceArray] | None,
        scratch: JointScratch,
    ) -> None:
        """Add the gradients of weight and bias from some cells. Leave the gradient of their hidden
        vectors in ``scratch.d_hidden``."""
        ops, joint = self.ops, self.joint
        logits, block, _, _, factors, _, d_hidden, slab = scratch
        hidden = factors[:, : joint.hidden_size]
        joint.write_hidden(cells, scratch)
        if stored is None:
            joint.write_logits(factors, logits)
        else:
            ops.gather(stored[0], (stored[1],), logits)
        if self._scale is not None:
            posteriors = self._scaled(posteriors)
        ops.logits_grad(joint.rows(logits, cells, scratch), posteriors, scratch.d_logits)
        d_logits = logits if scratch.d_logits is None else scratch.d_logits
        joint.write_d_hidden(d_logits, d_hidden)
        sums = OutputSums(self._d_weight[worker], self._d_bias[worker], slab, block)
        if self._exponents is not None:
            # Here and not before: what belongs to a single sample is on the scale of the sample.
            self._exponents.align(worker, cells.sample, d_logits, sums[:2])
        ops.add_output_grad(d_logits, hidden, sums)

    def _scaled(self, posteriors: RowPosteriors) -> RowPosteriors:
        weights, occupancies = posteriors.weights, posteriors.occupancies
        if weights is None:
            return posteriors._replace(occupancies=self._scale * occupancies)
        return posteriors._replace(weights=weights * self._scale)

    def close(self) -> None:
        """Write the gradients of weight and bias."""
        for parts, gradient in (
            (self._d_weight, self._gradients.weight),
            (self._d_bias, self._gradients.bias),
        ):
            if self._exponents is not None:
                self._exponents.put_back_into_sums(parts)
            if gradient is not None:
                total = _total(parts)
                if self._scale is not None:
                    total /= self._scale
                self.ops.assign(total, gradient)


def _total(parts: DeviceArray) -> DeviceArray:
    """The sum over the workers, which overwrites the part of the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


class _GroupSums:
    """Sums over the cells of each frame, and of each position, of a group."""

    def __init__(
        self, sums: JointSums, table: Any, d_encoder: DeviceArray, d_predictor: DeviceArray
    ) -> None:
        self._sums, self._table = sums, table
        self._d_encoder, self._d_predictor = d_encoder, d_predictor  # of each worker

    def add(
        self,
        worker: int,
        cells: Cells,
        posteriors: RowPosteriors,
        stored: tuple[DeviceArray, DeviceArray] | None,
        scratch: JointScratch,
    ) -> None:
        scratch = scratch.rows(len(cells.sample))
        self._sums.add(worker, cells, posteriors, stored, scratch)
        rows = self._sums.joint.hidden_rows(cells, scratch)
        sums = InputSums(self._d_encoder[worker], self._d_predictor[worker])
        self._sums.ops.add_input_grad(scratch.d_hidden, rows, self._table, sums)
