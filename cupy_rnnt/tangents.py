r"""Upper bounds of the log-probs of a joint network, from four dot products a cell.

The costly part of a log-prob is the denominator of its softmax. As log-sum-exp is convex, it lies
above its tangents: with :math:`z = W h + b` over the labels, a reference hidden vector :math:`h_0`
and :math:`q = \mathrm{softmax}(W h_0 + b)`,

.. math:: \log \sum_v e^{z_v} \ge c + g \cdot h, \quad g = W^T q, \quad
          c = \log \sum_v e^{z_v(h_0)} - g \cdot h_0 .

There is a reference for each frame (its encoder output with the mean predictor output) and for each
prefix of the labels (the mean encoder output with its predictor output). The larger of both
tangents and of the label's own logit, with the blank's logit added, bounds the denominator from
below, and so the log-probs of blank and label from above.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .batch import Batch
from .ops import Operations
from .results import JointGradients

_BLOCK_ELEMENTS = 2**17  # hidden values at once, which stay in the inner caches
_HIDDEN_ERROR = 16  # of a hidden value in units of round-off, with all that goes into it
_MASKED = 200.0  # nats below the others, an entry has no share in a softmax in any precision
_LARGEST_EXPONENT = 40.0  # the product of two such exponentials is far from overflow in float32


class _Logistic(NamedTuple):
    """An activation as ``scale / (1 + exp(rate * x)) + shift``.

    With ``x = e + p`` this is ``scale * q / (q + exp(rate * e)) + shift``, ``q = exp(-rate * p)``:
    exponentials of the encoder and predictor outputs do for all their sums.
    """

    rate: float
    scale: float
    shift: float


_LOGISTIC = {"tanh": _Logistic(2.0, -2.0, 1.0), "sigmoid": _Logistic(-1.0, 1.0, 0.0)}
_OTHER = _Logistic(0.0, 1.0, 0.0)  # rate 0: the activation is applied as it is


class Tangents:
    """The references of some samples, and the bounds they give.

    Parameters
    ----------
    ops : Operations
    batch : Batch
    samples : numpy.ndarray, shape (n,), int64
    inputs : JointGradients
        Encoder and predictor outputs; weights and bias in the compute dtype.
    activation : str
    row_size : float
        Largest sum of the absolute values in a row of the weights.
    """

    def __init__(
        self,
        ops: Operations,
        batch: Batch,
        samples: np.ndarray,
        inputs: JointGradients,
        activation: str,
        row_size: float,
    ) -> None:
        self._ops, self._batch, self._samples = ops, batch, samples
        self._inputs, self._activation = inputs, activation
        lengths = batch.frames[samples], batch.columns[samples]
        self._ends = [count.cumsum() for count in lengths]
        self._firsts = [last - count for last, count in zip(self._ends, lengths, strict=True)]
        self.references = tuple(int(last[-1]) for last in self._ends)
        """How many there are of frames, and of prefixes."""
        frames, prefixes = self.references
        hidden_size, dtype = inputs.weight.shape[1], inputs.weight.dtype
        self._means = ops.empty((2, len(samples), hidden_size), dtype)
        self._slopes = ops.empty((frames, hidden_size), dtype)
        self._constants = np.empty(frames)
        # The vectors of a prefix: weights of the blank and of the label, and the slope.
        self._vectors = ops.empty((prefixes, 3, hidden_size), dtype)
        self._vector_constants = np.empty((prefixes, 3))
        self._predictor = ops.empty((prefixes, hidden_size), dtype)
        with np.errstate(all="ignore"):
            sizes = np.array([self._measure(side) for side in range(2)])
            logistic = _LOGISTIC.get(activation, _OTHER)
            fits = abs(logistic.rate) * sizes.max(axis=0) <= _LARGEST_EXPONENT
            self._form = np.where(fits[:, None], logistic, _OTHER)
            hidden_sizes = np.ones(len(samples)) if activation in _LOGISTIC else sizes.sum(axis=0)
            self._slack = [
                self._slack_of(b, size)
                for b, size in zip(samples, row_size * hidden_sizes, strict=True)
            ]

    def _measure(self, side: int) -> list[float]:
        """Take the means of the encoder (`side` 0) or predictor outputs (1), and return the largest
        absolute value in each sample."""
        sizes = []
        for mean, b, first, last in zip(
            self._means[side], self._samples, self._firsts[side], self._ends[side], strict=True
        ):
            rows = self._inputs[side][b, : last - first]
            rows.mean(axis=0, dtype=mean.dtype, out=mean)
            sizes.append(float(max(rows.max(), -rows.min())))
        return sizes

    @staticmethod
    def nbytes(frames: int, columns: int, samples: int, hidden_size: int, itemsize: int) -> int:
        vectors = frames + 4 * columns + 2 * samples
        return vectors * hidden_size * itemsize + 8 * (frames + 3 * columns + 16 * samples)

    def _slack_of(self, sample: int, size: float) -> float:
        r"""How far rounding may take a bound below the truth, in nats.

        Let u be the unit round-off, and `size` a bound of :math:`|W_v| \cdot |h|` for every row v.
        A dot product of length H with a hidden vector off by a few u is off by at most
        ``dot = 3 (H + 16) u size + 2 u (size + |bias|)``: one part for :math:`W_v \cdot h` itself
        and two for the form ``scale * (W_v / (1 + ...)) + shift * sum(W_v)``. A tangent is made of
        three of them (its slope at the cell and at the reference, and the logits of the reference)
        and of a slope summed over V, off by V u size at both places. What the logits of the
        reference are off by moves the point of contact, no more, if q is their softmax and adds up
        to 1. Rounded exponentials do so to some 12 u, and u for each unit of a logit, which moves
        the bound by as much times :math:`1 + |g| |h - h_0|`. A log-prob is the difference of one
        dot product and of the larger of a tangent and a dot product.
        """
        vocabulary, hidden_size = self._inputs.weight.shape
        largest_bias = self._largest_bias(sample, size)
        u = float(np.finfo(self._inputs.weight.dtype).eps) / 2
        dot = u * (3 * (hidden_size + _HIDDEN_ERROR) * size + 2 * (size + largest_bias))
        second_order = 4 * u * (12 + size + largest_bias) * (1 + size)
        return float(4 * dot + 2 * vocabulary * u * size + second_order)

    def _largest_bias(self, sample: int, size: float) -> float:
        """Largest absolute bias of the blank, of a label of the sample, or of an entry that can
        have a share in a softmax: not of one that is masked."""
        bias, batch = self._inputs.bias, self._batch
        if bias is None:
            return 0.0
        most = bias.max(initial=-np.inf, where=np.isfinite(bias))
        matters = bias >= most - 2 * size - _MASKED
        matters[batch.labels[sample, : batch.columns[sample] - 1]] = True
        matters[batch.blank] = True
        return float(abs(bias[matters & np.isfinite(bias)]).max(initial=0.0))

    def refer(self, side: int, start: int, stop: int, scratch: Any) -> None:
        """Work out the references of frames (`side` 0) or of prefixes (1) from `start` on."""
        ops, batch, (*outputs, weight, bias) = self._ops, self._batch, self._inputs
        logits, block, pre, hidden, *_ = scratch.rows(stop - start)
        rows = np.arange(start, stop)
        sample = np.searchsorted(self._ends[side], rows, side="right")
        index = self._samples[sample], rows - self._firsts[side][sample]
        ops.gather(outputs[side], index, pre)
        rate, scale, shift = self._form[sample].T[:, :, None].astype(pre.dtype)
        if side == 1:
            terms = np.multiply(pre, -rate, out=self._predictor[start:stop])
            np.exp(terms, out=terms)
            np.copyto(terms, pre, where=rate == 0)
        pre += self._means[1 - side][sample]
        ops.activate(self._activation, pre, hidden)
        ops.matmul(hidden, weight.T, logits)
        constants = ops.label_softmax(logits, bias, batch.blank, block)
        ops.matmul(logits, weight, pre)
        constants -= ops.row_dots(pre, hidden)
        if side == 0:
            self._slopes[start:stop], self._constants[start:stop] = pre, constants
            vectors, constants = self._slopes[start:stop, None], self._constants[start:stop, None]
        else:
            labels = batch.labels[index]
            vectors, into = self._vectors[start:stop], self._vector_constants[start:stop]
            vectors[:, 0], vectors[:, 1], vectors[:, 2] = weight[batch.blank], weight[labels], pre
            into[:, 0], into[:, 1], into[:, 2] = 0.0, 0.0, constants
            if bias is not None:
                into[:, 0], into[:, 1] = bias[batch.blank], bias[labels]
            into[index[1] == batch.columns[index[0]] - 1, 1] = -np.inf  # no label is left
            constants = into
        constants += shift * vectors.sum(axis=-1, dtype=np.float64)
        vectors *= scale[:, None]

    def bound(self, start: int, stop: int, scratch: Any, base: int, out: np.ndarray) -> None:
        """Bounds of blank and label log-probs of all cells of frames `start` to ``stop - 1``.

        They go to ``out[:, packed - base]``, float64.
        """
        (encoder_out, _, weight, _), batch = self._inputs, self._batch
        block = max(1, _BLOCK_ELEMENTS // weight.shape[1])
        i = int(np.searchsorted(self._ends[0], start, side="right"))
        while start < stop:
            b, until = self._samples[i], min(stop, int(self._ends[0][i]))
            first = start - int(self._firsts[0][i])
            rows = encoder_out[b, first : first + until - start].astype(weight.dtype)
            rate = float(self._form[i, 0])
            columns = slice(int(self._firsts[1][i]), int(self._ends[1][i]))
            bounds = self._ops.bounds(
                np.exp(rate * rows) if rate else rows,
                self._predictor[columns],
                None if rate else self._activation,
                self._slopes[start:until],
                self._constants[start:until],
                self._vectors[columns],
                self._vector_constants[columns],
                self._slack[i],
                scratch.hidden[:block],
            )
            place = int(batch.offsets[b] + first * batch.columns[b]) - base
            for values, of_cells in zip(bounds, out, strict=True):
                of_cells[place : place + values.size] = values.reshape(-1)
            start, i = until, i + 1
