"""Rows of logits on NumPy: scores of cells, and the gradient of rows.

A :class:`cupy_rnnt.transducer.Row` says which columns are under which softmax (a *head*), which
columns hold the scores, and which heads each score is charged.
"""

from __future__ import annotations

import numpy as np

from ...transducer import LABEL_COLUMN, Row, RowHead
from ..types import HostArray, LogitRows, OutputSums, RowPosteriors

_BLOCK_ELEMENTS = 2**17  # so many stay in the inner caches from one pass over them to the next

# Softmax values below exp(-45) = 3e-20 are flushed to 0. The occupancy that multiplies a larger
# value is 0 or at least 1e-14 (eps**2), so no product comes near the denormals below 1e-38.
EXPONENT_FLOOR = {"float32": -45.0, "float64": -300.0}


def block_rows(rows: int, width: int) -> int:
    return min(rows, max(1, _BLOCK_ELEMENTS // width))


def row_scores(rows: LogitRows) -> tuple[HostArray, HostArray]:
    logits, bias, row, cells, scratch = rows
    n, block = len(logits), len(scratch)
    sums = np.empty((len(row.heads), n), logits.dtype)
    ones = np.ones(row.width, logits.dtype)
    for start in range(0, n, block) if row.heads else ():
        x = logits[start : start + block]
        work = scratch[: len(x)]
        if bias is not None:
            x = np.add(x, bias, out=work)
        np.exp(x, out=work)
        for head, of_head in zip(row.heads, sums, strict=True):
            _sum_columns(work, head, ones, of_head[start : start + block])
    lse = np.log(sums, dtype=np.float64)
    # Few rows need their maximum taken out, and doing that takes as long as all the rest.
    limits = np.finfo(logits.dtype)
    safe = (sums > limits.tiny / limits.eps) & (sums < limits.max * limits.eps)
    for head, of_head, is_safe in zip(row.heads, lse, safe, strict=True):
        unsafe = np.flatnonzero(~is_safe)
        for start in range(0, len(unsafe), block):
            part = unsafe[start : start + block]
            work = np.take(logits, part, axis=0, out=scratch[: len(part)], mode="clip")
            if bias is not None:
                work += bias
            of_head[part] = _log_sum_exp(work, head)
    assert cells is not None
    return lse, _scores(logits, bias, row, cells.label, lse)


def _sum_columns(values: HostArray, head: RowHead, ones: HostArray, out: HostArray) -> None:
    """Sums of rows over the columns of a head; its zero counts as 1."""
    if not head.ranges:
        out.fill(0)
    for i, (start, stop) in enumerate(head.ranges):
        if i == 0:
            np.dot(values[:, start:stop], ones[start:stop], out=out)
        else:
            out += np.dot(values[:, start:stop], ones[start:stop])
    if head.zero:
        out += 1


def _log_sum_exp(x: HostArray, head: RowHead) -> HostArray:
    """Log-sum-exps of rows with their maximum taken out; overwrites the rows."""
    parts = [x[:, start:stop] for start, stop in head.ranges]
    tops = [part.max(axis=1) for part in parts] + [np.zeros(len(x), x.dtype)] * head.zero
    top: HostArray = np.maximum.reduce(tops, initial=-np.inf)
    total = np.exp(-top) if head.zero else np.zeros_like(top)
    for part in parts:
        part -= top[:, None]
        np.exp(part, out=part)
        total += part.sum(axis=1)
    sums: HostArray = np.log(total, dtype=np.float64) + top
    return sums


def _scores(
    logits: HostArray, bias: HostArray | None, row: Row, labels: HostArray, lse: HostArray
) -> HostArray:
    scores = np.empty((len(row.columns), len(logits)))
    for score, column, charged, shift in zip(
        scores, row.columns, row.charged, row.shifts, strict=True
    ):
        columns = labels if column == LABEL_COLUMN else column
        logit = logits[np.arange(len(logits)), columns]
        if bias is not None:  # rounded as in the sum, so that a softmax near 1 has a log near 0
            logit = logit + bias[columns]
        score[...] = logit
        for g in charged:
            score -= lse[g]
        if shift:
            score -= shift
    return scores


def logits_grad(
    rows: LogitRows,
    posteriors: RowPosteriors,
    out: HostArray | None = None,
    stored: HostArray | None = None,
    sums: OutputSums | None = None,
) -> None:
    logits, bias, row, cells, scratch = rows
    assert cells is not None
    if stored is not None:
        logits = np.take(logits, stored, axis=0, out=out, mode="clip")
    lse, occupancies, weights, clamp = posteriors
    of_rows = weights[cells.sample].astype(occupancies.dtype)
    if clamp <= 0:  # gradients are linear in the occupancies
        occupancies = of_rows * occupancies
    block = len(scratch)
    masses = np.zeros((len(row.heads), len(logits)), occupancies.dtype)
    for occupancy, charged in zip(occupancies, row.charged, strict=True):
        for g in charged:
            masses[g] += occupancy
    for start in range(0, len(logits), block):
        part = slice(start, start + block)
        x = logits[part]
        if bias is not None:
            x += bias
        for g, head in enumerate(row.heads):
            without_mass = masses[g, part] == 0  # whose log-sum-exp may be NaN or infinite
            for first, stop in head.ranges:
                columns = slice(first, stop)
                _softmax_times(x[:, columns], lse[g, part], masses[g, part], scratch[:, columns])
                if without_mass.any():
                    x[without_mass, columns] = 0
        for first, stop in row.under_no_head:
            x[:, first:stop] = 0
    for occupancy, column in zip(occupancies, row.columns, strict=True):
        if column == LABEL_COLUMN:
            logits[np.arange(len(logits)), cells.label] -= occupancy
        else:
            logits[:, column] -= occupancy
    if clamp > 0:
        np.clip(logits, -clamp, clamp, out=logits)
        logits *= of_rows[:, None]


def scaled_weights(weights: HostArray, largest: float, dtype: np.dtype) -> tuple[HostArray, None]:
    return weights, None


def _softmax_times(x: HostArray, lse: HostArray, factor: HostArray, floor: HostArray) -> None:
    """``x = exp(x - lse[:, None]) * factor[:, None]``; `floor` is working memory of rows."""
    dtype = x.dtype
    least = EXPONENT_FLOOR[dtype.name]
    if abs(lse).max() < -least and x.min() > lse.max() + least:
        np.exp(x, out=x)  # nothing overflows, and nothing is small enough to be flushed
        x *= (np.exp(-lse) * factor).astype(dtype)[:, None]
        return
    # exp(x - lse) with lse split into what the dtype holds and the rest: the difference is exact
    # where the softmax is large, whatever the offset of the row.
    shift = lse.astype(dtype)
    x -= shift[:, None]
    # np.maximum is three times faster with an array than with a scalar.
    floor.fill(least)
    np.maximum(x, floor[: len(x)], out=x)
    np.exp(x, out=x)
    x -= np.exp(floor[:1, :1])
    x *= (np.exp(shift - lse) * factor).astype(dtype)[:, None]
