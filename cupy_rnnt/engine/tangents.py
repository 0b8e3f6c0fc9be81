r"""Upper bounds of the scores of a joint network, from a few dot products a cell.

The costly part of a log-prob is the denominator of its softmax. As log-sum-exp is convex, it lies
above its tangents: with :math:`z = W h + b` over the labels, a reference hidden vector :math:`h_0`
and :math:`q = \mathrm{softmax}(W h_0 + b)`,

.. math:: \log \sum_v e^{z_v} \ge c + g \cdot h, \quad g = W^T q, \quad
          c = \log \sum_v e^{z_v(h_0)} - g \cdot h_0 .

Each frame has a reference (its encoder output with the mean predictor output), and so has each
position (the mean encoder output with its predictor output). The largest of both tangents and the
label's own logit bounds the log-sum-exp over the labels from below. Its log-sum-exp with the logits
of the blanks bounds the denominator from below, and hence the scores from above.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..batch import Batch
from ..ops import Operations
from ..ops.types import (
    DeviceArray,
    FrameTangents,
    HostArray,
    JointInputs,
    LogitRows,
    PositionTangents,
    Runs,
)
from ..transducer import LABEL_COLUMN, Row

_HIDDEN_ERROR = 16  # of a hidden value, in units of round-off, errors of its inputs included
_MASKED = 200.0  # an entry so many nats below another has no share in a softmax in any precision
# Relative and least absolute error of rounding to a half type.
_ROUND_OFF = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}
_LARGEST_EXPONENT = 40.0  # exp(40)**2 = 6e34 is far below the largest float32, 3e38


class _Logistic(NamedTuple):
    """An activation as ``scale / (1 + exp(rate * x)) + shift``.

    With ``x = e + p`` this is ``scale * q / (q + exp(rate * e)) + shift``, ``q = exp(-rate * p)``:
    only encoder and predictor outputs need exponentials, and no cell does.
    """

    rate: float
    scale: float
    shift: float


_LOGISTIC = {"tanh": _Logistic(2.0, -2.0, 1.0), "sigmoid": _Logistic(-1.0, 1.0, 0.0)}
_OTHER = _Logistic(0.0, 1.0, 0.0)  # rate 0: not logistic, the activation itself is applied


class Magnitudes(NamedTuple):
    """How large the inputs of a joint network are, on the host."""

    encoder: HostArray  # (B,): largest magnitude in each sample
    predictor: HostArray  # (B,)
    weight: HostArray  # largest sum of the absolute values in a row
    bias: HostArray | None = None

    @staticmethod
    def of(ops: Operations, batch: Batch, inputs: JointInputs) -> Magnitudes:
        with np.errstate(all="ignore"):
            return Magnitudes(
                *ops.host(
                    ops.magnitudes(inputs.encoder_out, batch.frames),
                    ops.magnitudes(inputs.predictor_out, batch.positions),
                    ops.largest_row_sum(inputs.weight),
                    *(() if inputs.bias is None else (inputs.bias,)),
                )
            )


class Tangents:
    """The references of some samples, and the upper bounds of scores that follow from them.

    Parameters
    ----------
    ops : Operations
    batch : Batch
    samples : numpy.ndarray, shape (n,), int64
    inputs : JointInputs
        Encoder and predictor outputs; weights and bias in the compute dtype.
    activation : str
    row : Row
        Where the scores are in a row of logits.
    device_row
        What operations take in the place of `row`.
    magnitudes : Magnitudes
        Of the inputs.
    """

    def __init__(
        self,
        ops: Operations,
        batch: Batch,
        samples: HostArray,
        inputs: JointInputs,
        activation: str,
        row: Row,
        device_row: Any,
        magnitudes: Magnitudes,
    ) -> None:
        self._ops, self._batch, self._samples = ops, batch, samples
        self._inputs, self._activation, self._magnitudes = inputs, activation, magnitudes
        self._row = device_row
        self._exact = [column for column in row.columns if column != LABEL_COLUMN]
        lengths = batch.frames[samples], batch.positions[samples]
        self._ends = [count.cumsum() for count in lengths]
        self._firsts = [last - count for last, count in zip(self._ends, lengths, strict=True)]
        self.references = tuple(int(last[-1]) for last in self._ends)
        """Numbers of references: of frames and of positions."""
        frames, positions = self.references
        hidden_size, dtype = inputs.weight.shape[1], inputs.weight.dtype
        self._means = ops.empty((2, len(samples), hidden_size), dtype)
        self._slopes = ops.empty((frames, hidden_size), dtype)
        self._constants = ops.empty((frames,), np.float64)
        # The vectors of a position: weights of blanks, durations and label, and its own slope.
        vectors = len(self._exact) + 2
        self._positions = PositionTangents(
            ops.empty((positions, hidden_size), dtype),
            ops.empty((positions, vectors, hidden_size), dtype),
            ops.empty((positions, vectors), np.float64),
        )
        with np.errstate(all="ignore"):
            for array, counts, means in zip(inputs[:2], lengths, self._means, strict=True):
                ops.means(array, samples, counts, means)
            sizes = np.stack((magnitudes.encoder, magnitudes.predictor))[:, samples]
            logistic = _LOGISTIC.get(activation, _OTHER)
            self._fits = abs(logistic.rate) * sizes.max(axis=0) <= _LARGEST_EXPONENT
            hidden_sizes = np.ones(len(samples)) if activation in _LOGISTIC else sizes.sum(axis=0)
            weight = float(magnitudes.weight)
            slack = [
                self._slack_of(b, weight * size)
                for b, size in zip(samples.tolist(), hidden_sizes.tolist(), strict=True)
            ]
            self._slack = np.array(slack) + 2 * weight * self._left_by_factors(hidden_sizes)

    @staticmethod
    def nbytes(
        frames: int, positions: int, samples: int, scores: int, hidden_size: int, itemsize: int
    ) -> int:
        of_position = scores + 1
        vectors = frames + (of_position + 1) * positions + 2 * samples
        constants = frames + of_position * positions + 16 * samples
        return vectors * hidden_size * itemsize + 8 * constants

    def _slack_of(self, sample: int, size: float) -> float:
        r"""How far rounding may take a bound below the truth, in nats.

        Let u be the unit round-off, and `size` a bound of :math:`|W_v| \cdot |h|` for every row v.
        A dot product of length H with a hidden vector off by a few u is off by at most
        ``dot = 3 (H + 16) u size + 2 u (size + |bias|)``: one part for :math:`W_v \cdot h` itself
        and two for the form ``scale * (W_v / (1 + ...)) + shift * sum(W_v)``. A tangent is made of
        three dot products (its slope at the cell and at the reference, and the logits of the
        reference), and its slope is a sum over V, off by V u size at both places. An error of the
        reference's logits only moves the point of contact, if q is their softmax and adds up to 1.
        The sum of rounded exponentials is off from 1 by some 12 u, and by u for each unit of a
        logit, which moves the bound by as much times :math:`1 + |g| |h - h_0|`. A log-prob is a
        dot product less a tangent or a second dot product, whichever is larger: 4 ``dot`` in all.
        """
        vocabulary, hidden_size = self._inputs.weight.shape
        largest_bias = self._largest_bias(sample, size)
        u = float(np.finfo(self._inputs.weight.dtype).eps) / 2
        dot = u * (3 * (hidden_size + _HIDDEN_ERROR) * size + 2 * (size + largest_bias))
        second_order = 4 * u * (12 + size + largest_bias) * (1 + size)
        return float(4 * dot + 2 * vocabulary * u * size + second_order)

    def _left_by_factors(self, hidden_sizes: HostArray) -> Any:
        """Largest error of an element of a hidden vector as the sum of its two factors. Times the
        weights, it is the error of a logit, and of a log-sum-exp."""
        factor = self._ops.factor_dtype(self._inputs.encoder_out.dtype)
        if factor is None:
            return 0.0
        unit, least = _ROUND_OFF[factor.name]
        return np.maximum(unit**2 * hidden_sizes, least)

    def _largest_bias(self, sample: int, size: float) -> float:
        """Largest absolute bias of the blank, the sample's labels, and every entry that can have
        a share in a softmax. An entry has none if its bias masks it."""
        bias, batch = self._magnitudes.bias, self._batch
        if bias is None:
            return 0.0
        most = bias.max(initial=-np.inf, where=np.isfinite(bias))
        matters = bias >= most - 2 * size - _MASKED
        matters[batch.labels[sample, : batch.positions[sample] - 1]] = True
        matters[self._exact] = True
        return float(abs(bias[matters & np.isfinite(bias)]).max(initial=0.0))

    def _alike(self, side: int, start: int, stop: int) -> Iterator[tuple[_Logistic, int, int]]:
        """Runs of frames or positions whose hidden vectors are computed in the same form."""
        of_sample = np.searchsorted(self._ends[side], np.arange(start, stop), side="right")
        fits = self._fits[of_sample]
        edges = start + 1 + np.flatnonzero(fits[1:] != fits[:-1])
        logistic = _LOGISTIC.get(self._activation, _OTHER)
        for first, last in pairwise([start, *edges.tolist(), stop]):
            yield logistic if fits[first - start] else _OTHER, first, last

    def _rows(self, side: int, start: int, stop: int) -> tuple[HostArray, HostArray, HostArray]:
        """For each frame or position: the number of its sample in `samples`, the number of its
        sample in the batch, and its own number in the sample."""
        rows = np.arange(start, stop)
        of_sample = np.searchsorted(self._ends[side], rows, side="right")
        return of_sample, self._samples[of_sample], rows - self._firsts[side][of_sample]

    def linearize(self, side: int, start: int, stop: int, scratch: Any) -> None:
        """Compute references ``start`` to ``stop - 1`` of frames (`side` 0) or positions (1)."""
        for form, first, last in self._alike(side, start, stop):
            self._linearize(side, first, last, form, scratch.rows(last - first))

    def _linearize(self, side: int, start: int, stop: int, form: _Logistic, scratch: Any) -> None:
        ops, batch, (*outputs, weight, bias) = self._ops, self._batch, self._inputs
        logits, block, pre, hidden, *_ = scratch
        of_sample, *index = self._rows(side, start, stop)
        ops.gather(outputs[side], tuple(map(ops.asarray, index)), pre)
        if side == 1:
            self._exponentials(pre, -form.rate, self._positions.predictor[start:stop])
        pre += self._means[1 - side][ops.asarray(of_sample)]
        ops.activate(self._activation, pre, hidden)
        ops.matmul(hidden, weight.T, logits)
        intercepts = ops.label_softmax(LogitRows(logits, bias, self._row, None, block))
        ops.matmul(logits, weight, pre)
        intercepts -= ops.row_dots(pre, hidden)
        if side == 0:
            self._slopes[start:stop], self._constants[start:stop] = pre, intercepts
            vectors, constants = self._slopes[start:stop, None], self._constants[start:stop, None]
        else:
            sample, position = index
            labels = ops.asarray(batch.labels[sample, position])
            _, vectors, constants = (array[start:stop] for array in self._positions)
            for i, v in enumerate((*self._exact, labels)):
                vectors[:, i], constants[:, i] = weight[v], 0.0 if bias is None else bias[v]
            vectors[:, -1], constants[:, -1] = pre, intercepts
            no_label = np.flatnonzero(position == batch.positions[sample] - 1)
            constants[ops.asarray(no_label), -2] = -np.inf
        constants += form.shift * vectors.sum(axis=-1, dtype=np.float64)
        vectors *= form.scale

    def _exponentials(self, array: DeviceArray, rate: float, out: DeviceArray) -> None:
        """``out = exp(rate * array)``, or ``out = array`` if the rate is 0."""
        if rate:
            self._ops.xp.multiply(array, rate, out=out)
            self._ops.xp.exp(out, out=out)
        elif out is not array:
            out[...] = array

    def upper_bounds(
        self, start: int, stop: int, scratch: Any, base: int, out: DeviceArray
    ) -> None:
        """Write bounds of the scores of all cells of frames `start` to ``stop - 1`` to
        ``out[:, packed - base]``, float64."""
        ops = self._ops
        for form, first, last in self._alike(0, start, stop):
            _, *index = self._rows(0, first, last)
            encoder = scratch.pre[: last - first]
            ops.gather(self._inputs.encoder_out, tuple(map(ops.asarray, index)), encoder)
            self._exponentials(encoder, form.rate, encoder)
            frames = FrameTangents(
                encoder,
                self._slopes[first:last],
                self._constants[first:last],
                None if form.rate else self._activation,
                scratch.hidden,
            )
            runs = self._runs(first, last, base)
            ops.upper_bounds(frames, self._positions, self._row, runs, out)

    def _runs(self, start: int, stop: int, base: int) -> Runs:
        """The samples that frames `start` to ``stop - 1`` belong to."""
        first, last = np.searchsorted(self._ends[0], [start, stop - 1], side="right")
        samples = slice(first, last + 1)
        positions = self._batch.positions[self._samples[samples]]
        begin = np.maximum(self._firsts[0][samples], start)
        end = np.minimum(self._ends[0][samples], stop)
        frames_before = begin - self._firsts[0][samples]
        return Runs(
            frame=begin - start,
            frames=end - begin,
            position=self._firsts[1][samples],
            positions=positions,
            cell=self._batch.offsets[self._samples[samples]] + frames_before * positions - base,
            slack=self._slack[samples],
        )
