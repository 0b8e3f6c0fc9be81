"""The sums that take the gradient of a joint network: a :class:`cupy_rnnt.engine.sources.Sums`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..ops.types import Cells, DeviceArray, InputSums, OutputSums, RowPosteriors, Samples, Shape
from ..results import JointGradients
from .exponents import WeightExponents
from .joint_rows import JointRows, JointScratch
from .plan import Group, Plan


class JointSums:
    """Gradients of a whole batch, all 0 at first; :meth:`close` completes them.

    Every worker sums over its own tiles, so the order of the terms never depends on timing.
    """

    def __init__(
        self,
        joint: JointRows,
        gradients: JointGradients,
        plan: Plan,
        weights: DeviceArray,
        largest: float,
    ) -> None:
        ops = joint.ops
        self.joint, self.ops, self._gradients = joint, ops, gradients
        self._workers = plan.workers
        bias_rows = 0 if joint.bias is None else ops.bias_rows(plan.rows)
        self._d_weight, self._d_bias = self._zeros(
            (joint.width, joint.hidden_size), (bias_rows, joint.width)
        )
        dtype = joint.inputs.encoder_out.dtype
        self.weights, self._scale = ops.scaled_weights(weights, largest, dtype)
        self._exponents: WeightExponents | None = None
        if ops.slow_denormals:
            self._exponents = WeightExponents(weights, plan.workers)
            self.weights = self._exponents.fractions

    @contextmanager
    def of_group(self, group: Group, kept: DeviceArray) -> Iterator[_GroupSums]:
        """See :meth:`cupy_rnnt.engine.sources.Sums.of_group`."""
        joint, gradients = self.joint, self._gradients
        samples, size = joint.samples.run(group.start, group.stop), joint.hidden_size
        parts = self._zeros(*((count, size) for count in samples.rows))
        yield _GroupSums(self, samples, *parts)
        sums = InputSums(*map(_total, parts))
        if self._exponents is not None:
            numbers = np.arange(group.start, group.stop)
            lengths = joint.batch.frames, joint.batch.positions
            for total, counts in zip(sums, lengths, strict=True):
                self._exponents.put_back(total, np.repeat(numbers, counts[numbers]))
        self.ops.write_input_grads(sums, samples, self._scale, *gradients[:2])

    def _zeros(self, *shapes: Shape) -> list[Any]:
        """Sums of every worker, all 0, (workers, *shape) each, cleared together."""
        sizes = [self._workers * math.prod(shape) for shape in shapes]
        memory, start, parts = self.ops.zeros((sum(sizes),), self.joint.dtype), 0, []
        for size, shape in zip(sizes, shapes, strict=True):
            parts.append(memory[start : start + size].reshape(self._workers, *shape))
            start += size
        return parts

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
        logits, factors = scratch.logits, scratch.factors
        hidden = factors[:, : joint.hidden_size]
        joint.write_hidden(cells, scratch)
        d_logits = logits if scratch.d_logits is None else scratch.d_logits
        numbers = None
        if stored is None:
            joint.write_logits(factors, logits)
        else:
            logits, numbers = stored
        sums = OutputSums(self._d_weight[worker], self._d_bias[worker], scratch.slab)
        rows = joint.rows(logits, cells, scratch)
        ops.logits_grad(rows, posteriors, d_logits, numbers, sums)
        joint.write_d_hidden(d_logits, scratch.d_hidden)
        if self._exponents is not None:
            # Here and not before: what belongs to a single sample is on the scale of the sample.
            self._exponents.align(worker, cells.sample, d_logits, sums[:2])
        ops.add_output_grad(d_logits, hidden, sums)

    def close(self) -> None:
        """Write the gradients of weight and bias."""
        _, _, weight, bias = self._gradients
        parts = self._d_weight, self._d_bias
        if self._exponents is not None:
            for sums in parts:
                self._exponents.put_back_into_sums(sums)
        weight_sums, bias_sums = map(_total, parts)
        sums = weight_sums[: len(weight)], bias_sums[:, : len(weight)]  # without padding
        self.ops.write_output_grads(*sums, self._scale, weight, bias)


def _total(parts: DeviceArray) -> DeviceArray:
    """The sum over the workers, which overwrites the part of the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


class _GroupSums:
    """Sums over the cells of each frame, and of each position, of a group."""

    def __init__(
        self, sums: JointSums, samples: Samples, d_encoder: DeviceArray, d_predictor: DeviceArray
    ) -> None:
        self._sums, self._samples = sums, samples
        self._d_encoder, self._d_predictor = d_encoder, d_predictor  # of each worker

    def add(
        self,
        worker: int,
        cells: Cells,
        posteriors: RowPosteriors,
        stored: tuple[DeviceArray, DeviceArray] | None,
        scratch: JointScratch,
    ) -> None:
        scratch = scratch.rows(len(cells))
        self._sums.add(worker, cells, posteriors, stored, scratch)
        rows = self._sums.joint.hidden_rows(cells, scratch)
        sums = InputSums(self._d_encoder[worker], self._d_predictor[worker])
        self._sums.ops.add_input_grad(scratch.d_hidden, rows, self._samples, sums)
