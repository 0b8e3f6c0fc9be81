r"""Upper bounds of the scores of a joint network, from a few dot products a cell.

The costly part of a log-prob is the denominator of its softmax. Log-sum-exp is the largest value of
:math:`q \cdot z + H(q)` over all distributions q, with their entropy H (Gibbs' inequality). So with
:math:`z = W h + b` over the labels, every q bounds it from below by a linear function of the hidden
vector:

.. math:: \log \sum_v e^{z_v} \ge g \cdot h + c, \quad g = W^T q, \quad c = q \cdot b + H(q) .

With the softmax at a reference hidden vector :math:`h_0` as q, this is the tangent there. But any q
will do: neither the reference nor its softmax need be exact, only c must belong to the q that g is
made of. So a device with half types multiplies and rounds in these.

Each frame has a reference (its encoder output with the mean predictor output), and so has each
position (the mean encoder output with its predictor output). The largest of both tangents and the
label's own logit bounds the log-sum-exp over the labels from below. Its log-sum-exp with the logits
of the blanks bounds the denominator from below, and hence the scores from above.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ops import operations_for
from ..ops.types import (
    DeviceArray,
    Dropout,
    Forms,
    JointInputs,
    Logistic,
    LogitRows,
    ReferenceRows,
    Rounding,
    Samples,
    Shape,
    TangentRows,
    compute_dtype,
)
from ..transducer import LABEL_COLUMN, Row

_HIDDEN_ERROR = 16  # of a hidden value, in units of round-off, errors of its inputs included
_SPLIT_ERROR = 40  # of log-probs by products of split factors, in units of round-off and `size`
_MASKED = 200.0  # an entry so many nats below another has no share in a softmax in any precision
# Relative and least absolute error of rounding to a half type.
_ROUND_OFF = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}
_LARGEST_EXPONENT = 40.0  # exp(40)**2 = 6e34 is far below the largest float32, 3e38
_NONE_FITS = -1.0  # the logistic form has a shift, which dropout would not leave alone
_LOGISTIC = {"tanh": Logistic(2.0, -2.0, 1.0), "sigmoid": Logistic(-1.0, 1.0, 0.0)}
_OTHER = Logistic(0.0, 1.0, 0.0)


class Tangents:
    """The references of some samples, and the upper bounds of scores that follow from them.

    Parameters
    ----------
    samples : Samples
    inputs : JointInputs
        Encoder and predictor outputs; weights in a dtype that the device multiplies, bias in the
        compute dtype.
    activation : str
    dropout : Dropout or None
        It has no part in references, as any of them will do.
    row : Row
        Where the scores are in a row of logits.
    device_row
        What operations take in the place of `row`.
    row_sums : shape (V,)
        Of the magnitudes of the weights.
    """

    def __init__(
        self,
        samples: Samples,
        inputs: JointInputs,
        activation: str,
        dropout: Dropout | None,
        row: Row,
        device_row: Any,
        row_sums: DeviceArray,
    ) -> None:
        ops = self._ops = operations_for(inputs.weight)
        self._inputs, self._row = inputs, device_row
        self._samples = samples
        self.frames, self.positions = samples.rows
        """Numbers of references of either kind. Those that are frames come first."""
        # The vectors of a position: weights of blanks, durations and label, and its own slope.
        exact = sum(column != LABEL_COLUMN for column in row.columns)
        hidden_size, dtype = inputs.weight.shape[1], compute_dtype(inputs.weight.dtype)
        shapes: list[tuple[Shape, np.dtype]] = []
        for count, vectors in ((self.frames, 1), (self.positions, exact + 2)):
            shapes += [((count, hidden_size), dtype), ((count, vectors, hidden_size), dtype)]
            shapes += [((count, vectors), np.dtype(np.float64))]
        arrays = ops.empties(*shapes)
        self._tangents = TangentRows(*arrays[:3]), TangentRows(*arrays[3:])
        form = activation, _LOGISTIC.get(activation, _OTHER)
        if dropout is not None:
            row_sums = row_sums * dropout.scale  # hidden values are so many times larger
        with np.errstate(all="ignore"):
            self._means, magnitudes = ops.means(inputs, samples)
            of_inputs = magnitudes, row_sums, inputs.bias
            rounding = self._rounding(_LARGEST_EXPONENT if dropout is None else _NONE_FITS)
            slack, fits = ops.slack(samples, *of_inputs, device_row, form, rounding)
        self._forms = Forms(*form, fits, slack, dropout)

    @staticmethod
    def nbytes(
        frames: int, positions: int, samples: int, scores: int, hidden_size: int, itemsize: int
    ) -> int:
        of_position = scores + 1
        vectors = 2 * frames + (of_position + 1) * positions + 4 * samples
        constants = frames + (of_position + 1) * positions + 16 * samples
        return vectors * hidden_size * itemsize + 8 * constants

    def _rounding(self, largest_exponent: float) -> Rounding:
        r"""How far rounding may take a bound below the truth, in nats.

        Let u be the unit round-off, and `size` a bound of :math:`|W_v| \cdot |h|` for every row v.
        A dot product of length H with a hidden vector off by a few u is off by at most
        ``dot = 3 (H + 16) u size + 2 u (size + |bias|)``: one part for :math:`W_v \cdot h` itself
        and two for the form ``scale * (W_v / (1 + ...)) + shift * sum(W_v)``. So a log-prob, which
        is a dot product less a tangent or a second dot product, is off by 2 ``dot``, and by what
        the slope and the constant of the tangent are off by:

        - Errors of the reference, of its logits and of q only move the point of contact, since q is
          divided by its own sum, and the constant is made from q as it was rounded.
        - The slope is a sum of V products, off by V u size, and scaled, off by 2 u size. Tensor
          cores cut sums off instead of rounding them, and are off by twice V u size.
        - The constant is :math:`q \cdot b + H(q)`. A GPU adds up its terms in float64. They are off
          by u |bias| and 4 u of the entropy, which is log V at most. NumPy takes it from a sum of V
          products and a log-sum-exp: V u size, and u for each unit of a logit, of an exponent, and
          of the error of an exponential, 2 (size + |bias|), log V and 8 in all.
        - Sums over V in float64, of q and of the terms of the constant, are off by V times its unit
          round-off, which counts if u is no larger.

        Hence 2 V u size for slope and constant on both devices, and the larger of the other terms.
        A hidden vector as the sum of two factors of a half type is off by `per_hidden` of itself;
        times the weights, that is the error of a logit, and of a log-sum-exp. Where products of
        float32 are split, a logit, a log-sum-exp and a slope are off by 3 * 2**-22 or 12 u of
        `size` each. Two thirds of the terms of a slope are below 2**-10 of it and come first. To
        cut these off, with 1024 entries at most, adds 4 u.
        """
        vocabulary, hidden_size = self._inputs.weight.shape
        u = float(np.finfo(compute_dtype(self._inputs.weight.dtype)).eps) / 2
        factor = self._ops.factor_dtype(self._inputs.encoder_out.dtype)
        split = _SPLIT_ERROR if self._ops.splits(self._inputs.encoder_out.dtype) else 0
        unit, least = (0.0, 0.0) if factor is None else _ROUND_OFF[factor.name]
        of_dots = 2 * (3 * (hidden_size + _HIDDEN_ERROR) + 2)
        of_sums = vocabulary * float(np.finfo(np.float64).eps) / 2
        entropy = math.log(vocabulary)
        return Rounding(
            per_size=u * (of_dots + 2 * vocabulary + 4 + split) + of_sums,
            per_bias=u * (2 * 2 + 2) + 2 * of_sums,
            fixed=u * (8 + 4 * entropy) + of_sums * (1 + 2 * entropy),
            per_hidden=unit**2,
            least=least,
            masked=_MASKED,
            largest_exponent=largest_exponent,
        )

    def linearize(self, start: int, stop: int, scratch: Any) -> None:
        """Compute references ``start`` to ``stop - 1``."""
        ops, inputs, kinds = self._ops, self._inputs, list(self._kinds(start, stop))
        scratch = scratch.rows(stop - start)
        logits, pre = scratch.logits, scratch.pre
        hidden = scratch.factors.reshape(-1, inputs.weight.shape[1])[: stop - start]
        for rows, part in kinds:
            of_rows = rows, inputs, self._means, self._forms.activation
            ops.reference_hidden(*of_rows, pre[part], hidden[part])
        ops.matmul(hidden, inputs.weight.T, logits)
        of_logits = LogitRows(logits, inputs.bias, self._row, None, scratch.block)
        q, constants, sums = ops.label_softmax(of_logits, inputs.weight.dtype)
        ops.matmul(q, inputs.weight, pre)
        for rows, part in kinds:
            tangents = pre[part], constants[part], sums[part]
            out = self._tangents[rows.side]
            ops.write_tangents(rows, inputs, self._row, self._forms, tangents, out)

    def _kinds(self, start: int, stop: int) -> Iterator[tuple[ReferenceRows, slice]]:
        """The frames and the positions among some references, and where they are among these."""
        samples, frames = self._samples, self.frames
        if start < frames:
            end = min(stop, frames)
            yield ReferenceRows(samples, 0, start, end), slice(end - start)
        if stop > frames:
            begin = max(start, frames)
            rows = ReferenceRows(samples, 1, begin - frames, stop - frames)
            yield rows, slice(begin - start, stop - start)

    def upper_bounds(
        self, start: int, stop: int, scratch: Any, base: int, out: DeviceArray
    ) -> None:
        """Write bounds of the scores of all cells of frames `start` to ``stop - 1`` to
        ``out[:, packed - base]``, float64."""
        rows = ReferenceRows(self._samples, 0, start, stop)
        frames, positions = self._tangents
        of_rows = rows, frames, positions, self._row, self._forms
        self._ops.upper_bounds(*of_rows, base, scratch.hidden, out)
