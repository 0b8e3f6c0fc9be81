"""The loss of logits that are sums of a frame's and a position's, without a joint network: k2's
"simple" and "smoothed" losses.

The log-sum-exp of ``am[t] + lm[u]`` over the vocabulary is the logarithm of an entry of the product
``exp(am) @ exp(lm).T`` of two matrices. So the scores of all cells of a sample take one product,
and their gradient two more; the (T, U + 1, V) logits are never formed. This arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .batch import BandLike, Batch
from .engine import run
from .engine.logits_source import LogitsSource
from .ops import Operations, operations_for
from .ops.types import ArrayLike, DeviceArray, compute_dtype
from .options import Options
from .quiet import quiet
from .tokens import Tokens
from .transducer import LABEL_COLUMN, Row

_LEAST = 1e-280  # a product of exponentials below has lost terms to underflow


class AdditiveGradients(NamedTuple):
    """Gradients of the reduced loss with respect to the two summands of the logits.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> am, lm = np.zeros((1, 3, 4)), np.zeros((1, 2, 4))
    >>> loss, gradients = cupy_rnnt.additive_rnnt_loss_and_grad(am, lm, [[0]], [3], [1])
    >>> gradients.am.shape, gradients.lm.shape
    ((1, 3, 4), (1, 2, 4))
    """

    am: DeviceArray
    lm: DeviceArray


class Scales(NamedTuple):
    """The shares of the scores that come from the position alone and from the frame alone."""

    lm: float
    am: float

    @property
    def both(self) -> float:
        return 1.0 - self.lm - self.am


class AdditiveCall(NamedTuple):
    """The validated arguments of one call."""

    batch: Batch
    options: Options
    am: DeviceArray
    lm: DeviceArray
    row: Row  # of logits
    scales: Scales

    @property
    def ops(self) -> Operations:
        return operations_for(self.am)

    @property
    def columns(self) -> list[int]:
        """Where the K scores are in a row of scores: blanks, the label, durations."""
        blanks = self.options.transducer.blanks
        first = {"blank": blanks - 1, "label": blanks, "duration": blanks + 1}
        scores = self.options.transducer.topology.scores
        steps = {"blank": -1, "label": 1, "duration": 1}
        return [first[kind] + steps[kind] * number for kind, number in scores]

    def of_scores(self) -> tuple[Batch, Row]:
        """The batch whose logits are rows of scores, in which every label has one column."""
        batch, transducer = self.batch, replace(self.options.transducer, blank_columns=None)
        size, blanks = batch.size, transducer.blanks
        targets = np.full((size, self.lm.shape[1] - 1), blanks)
        shape = size, *(array.shape[1] for array in (self.am, self.lm))
        lengths = batch.frames, batch.positions - 1
        tokens = Tokens(blanks + 1, transducer)
        of_scores = Batch(targets, *lengths, shape, blanks - 1, tokens)
        of_scores.band = batch.band
        width = blanks + 1 + transducer.durations
        return of_scores, transducer.row(width, blanks - 1, True)


def checked(
    am: ArrayLike,
    lm: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    lm_scale: float = 0.0,
    am_scale: float = 0.0,
    band: BandLike = None,
    **keywords: Any,
) -> AdditiveCall:
    """Validate the arguments of a loss; `keywords` are those of :class:`Options`."""
    am = checks.floats("am", am, ("B", "T", "V"))
    options = Options.checked(am.dtype, **keywords)
    lm = checks.floats("lm", lm, ("B", "U + 1", "V"), dtype=am.dtype)
    targets = checks.integer_array("targets", targets)
    checks.batch_first("am", am, targets)
    checks.batch_first("lm", lm, targets, positions=1)
    size, frames, width = am.shape
    checks.shape("lm", lm, (size, lm.shape[1], width))
    checks.same_device(am=am, lm=lm)
    scales = Scales(checks.number("lm_scale", lm_scale), checks.number("am_scale", am_scale))
    integers, topology = (targets, logit_lengths, target_lengths), options.transducer.topology
    shape, tokens = (size, frames, lm.shape[1]), options.tokens(width)
    batch = Batch(*integers, shape, options.blank, tokens, band=band, topology=topology)
    row = options.transducer.row(width, batch.blank, False)
    whole = [head.ranges == ((0, width),) and not head.zero for head in row.heads]
    if whole != [True] or set(row.charged) != {(0,)}:
        raise ValueError(
            f"transducer is {options.transducer}, but an additive loss needs one with a single "
            "softmax, over the whole row"
        )
    return AdditiveCall(batch, options, am, lm, row, scales)


class Unigram(NamedTuple):
    """The mean of the softmax of `lm` over all positions of the batch, as k2 takes it."""

    probs: DeviceArray  # (V,)
    logs: DeviceArray

    @staticmethod
    def of(lm: DeviceArray, xp: Any) -> Unigram:
        total = xp.zeros(lm.shape[-1])
        for rows in lm:
            total += _softmax(rows.astype(np.float64), xp).sum(axis=0)
        probs = total / (lm.shape[0] * lm.shape[1])
        return Unigram(probs, xp.log(probs))


def _log_sum_exp(rows: DeviceArray, xp: Any) -> DeviceArray:
    most = rows.max(axis=-1)
    return xp.log(xp.exp(rows - most[..., None]).sum(axis=-1)) + most


def _softmax(rows: DeviceArray, xp: Any) -> DeviceArray:
    return xp.exp(rows - _log_sum_exp(rows, xp)[..., None])


class Sample:
    """One sample: its scores, and their gradient by `am` (T, V) and `lm` (S, V)."""

    def __init__(self, call: AdditiveCall, b: int, unigram: Unigram | None) -> None:
        self._xp = xp = call.ops.xp
        T, S = int(call.batch.frames[b]), int(call.batch.positions[b])
        self._am, self._lm = call.am[b, :T].astype(np.float64), call.lm[b, :S].astype(np.float64)
        self._scales, self._unigram = call.scales, unigram
        self._of_frame, self._of_position = (x.max(axis=1) for x in (self._am, self._lm))
        self._frames = xp.exp(self._am - self._of_frame[:, None])
        self._positions = xp.exp(self._lm - self._of_position[:, None])
        self.products = self._frames @ self._positions.T
        self._labels = xp.asarray(call.batch.labels[b, :S])
        self._row_columns, self._columns = call.row.columns, call.columns

    def fits(self) -> DeviceArray:
        """Whether no product has lost terms that matter."""
        return (self.products > _LEAST).all()

    def _log_sum_exps(self, fits: bool) -> DeviceArray:
        """Of all cells, (T, S)."""
        xp = self._xp
        if fits:
            return xp.log(self.products) + self._of_frame[:, None] + self._of_position
        return xp.stack([_log_sum_exp(frame + self._lm, xp) for frame in self._am])

    def _of_columns(self, rows: DeviceArray, positions: bool) -> Iterator[DeviceArray]:
        """For each score the column of it in rows (n, V): a vector or, of labels, a matrix (n, S)
        or, if rows are those of positions, a vector."""
        for column in self._row_columns:
            if column != LABEL_COLUMN:
                yield rows[:, column]
            elif positions:
                yield rows[self._xp.arange(len(rows)), self._labels]
            else:
                yield rows[:, self._labels]

    def write_scores(self, out: DeviceArray, fits: bool) -> None:
        """Write the scores to `out`, (T, S, columns)."""
        xp, scales = self._xp, self._scales
        sums = self._log_sum_exps(fits)
        by_frame, by_position = scales.both * self._am, scales.both * self._lm
        if self._unigram is not None:
            am_only = self._am + self._unigram.logs
            by_frame = by_frame + scales.am * (am_only - _log_sum_exp(am_only, xp)[:, None])
        if scales.lm:
            of_lm = _log_sum_exp(self._lm, xp)[:, None]
            by_position = by_position + scales.lm * (self._lm - of_lm)
        parts = self._of_columns(by_frame, False), self._of_columns(by_position, True)
        for column, of_frame, of_position in zip(self._columns, *parts, strict=True):
            if of_frame.ndim == 1:
                of_frame = of_frame[:, None]
            out[..., column] = of_frame + of_position - scales.both * sums

    def gradients(
        self, d_scores: DeviceArray, fits: bool
    ) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        """Gradients of `am` and `lm`, and of the logarithm of the unigram, (V,), given that of
        the scores, (T, S, K)."""
        xp, scales = self._xp, self._scales
        d_scores = list(d_scores.transpose(2, 0, 1))
        d_sums: DeviceArray = sum(d_scores)
        d_am, d_lm = self._through_softmax(scales.both * d_sums, fits)
        hits_am, hits_lm = xp.zeros_like(d_am), xp.zeros_like(d_lm)
        for column, d_score in zip(self._row_columns, d_scores, strict=True):
            if column != LABEL_COLUMN:
                hits_am[:, column] += d_score.sum(axis=1)
                hits_lm[:, column] += d_score.sum(axis=0)
            else:  # at the last position its gradient is 0
                number, entries = xp.arange(len(hits_lm)), xp.zeros_like(hits_lm)
                entries[number, self._labels] = 1.0
                hits_am += d_score @ entries
                hits_lm[number, self._labels] += d_score.sum(axis=0)
        d_am += (scales.both + scales.am) * hits_am
        d_lm += (scales.both + scales.lm) * hits_lm
        if scales.lm:
            d_lm -= scales.lm * d_sums.sum(axis=0)[:, None] * _softmax(self._lm, xp)
        d_unigram = xp.zeros(self._am.shape[1])
        if self._unigram is not None:
            softmax = _softmax(self._am + self._unigram.logs, xp)
            of_frames = d_sums.sum(axis=1)[:, None] * softmax
            d_am -= scales.am * of_frames
            d_unigram = scales.am * (hits_am.sum(axis=0) - of_frames.sum(axis=0))
        return d_am, d_lm, d_unigram

    def _through_softmax(self, d_sums: DeviceArray, fits: bool) -> tuple[DeviceArray, DeviceArray]:
        """What the log-sum-exps of all cells pass on, given minus their gradient."""
        xp = self._xp
        if fits:
            shares = d_sums / self.products
            d_am = -(shares @ self._positions) * self._frames
            return d_am, -(shares.T @ self._frames) * self._positions
        d_am, d_lm = xp.empty_like(self._am), xp.zeros_like(self._lm)
        for t, frame in enumerate(self._am):
            of_cells = d_sums[t][:, None] * _softmax(frame + self._lm, xp)
            of_cells[d_sums[t] == 0] = 0.0  # where a softmax may be undefined
            d_am[t] = -of_cells.sum(axis=0)
            d_lm -= of_cells
        return d_am, d_lm


class Forms(NamedTuple):
    """What all samples of a call share, and how the log-sum-exps of each are computed."""

    unigram: Unigram | None
    fits: list[bool]  # whether they come from products

    @staticmethod
    @quiet
    def of(call: AdditiveCall) -> Forms:
        ops = call.ops
        unigram = Unigram.of(call.lm, ops.xp) if call.scales.am else None
        flags = ops.host(*(Sample(call, b, unigram).fits() for b in range(call.batch.size)))
        return Forms(unigram, [bool(flag) for flag in flags])


@quiet
def solved(call: AdditiveCall, forms: Forms, gradient: bool) -> tuple[DeviceArray, DeviceArray]:
    """Costs (B,), float64, and the gradient of each by the scores of its cells, (B, T, U + 1, K),
    if it is wanted."""
    ops, (batch, row) = call.ops, call.of_scores()
    rows = ops.zeros((*call.am.shape[:2], call.lm.shape[1], row.width), np.float64)
    unigram, fits = forms
    for b in range(batch.size):
        cells = rows[b, : batch.frames[b], : batch.positions[b]]
        Sample(call, b, unigram).write_scores(cells, fits[b])
    source = LogitsSource(batch, rows, row, rows if gradient else None)
    result = run(source, batch, call.options, np.ones(batch.size) if gradient else None)
    return result.costs, rows[..., call.columns] if gradient else None


@quiet
def write_gradients(
    call: AdditiveCall,
    forms: Forms,
    d_scores: DeviceArray,
    weights: DeviceArray,
    out: AdditiveGradients,
) -> None:
    """Write the gradients of `am` and `lm` to arrays of 0, for weights (B,) of the costs, given the
    gradients of the costs by the scores."""
    xp, positions = call.ops.xp, call.lm.shape[0] * call.lm.shape[1]
    unigram, fits = forms
    d_unigram = xp.zeros(call.am.shape[-1])
    d_lm = xp.zeros(call.lm.shape) if unigram is not None else out.lm
    for b in range(call.batch.size):
        T, S = int(call.batch.frames[b]), int(call.batch.positions[b])
        cells = d_scores[b, :T, :S] * weights[b]
        parts = Sample(call, b, unigram).gradients(cells, fits[b])
        has_gradient = cells.any()  # else a softmax may be undefined
        of_am, of_lm, of_unigram = (xp.where(has_gradient, part, 0.0) for part in parts)
        out.am[b, :T], d_lm[b, :S] = of_am, of_lm
        d_unigram += of_unigram
    if unigram is not None:
        slopes = xp.where(d_unigram == 0, 0.0, d_unigram / unigram.probs / positions)
        for b, of_sample in enumerate(call.lm):
            softmax = _softmax(of_sample.astype(np.float64), xp)
            d_lm[b] += softmax * (slopes - (softmax @ slopes)[:, None])
        out.lm[...] = d_lm


def occupancies(d_scores: DeviceArray, dtype: np.dtype) -> DeviceArray:
    """Of the scores of all cells, (B, T, U + 1, K) in the dtype of the loss; 0 at padding."""
    return 0.0 - d_scores.astype(compute_dtype(dtype))
