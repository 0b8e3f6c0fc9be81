"""Upper bounds of scores on NumPy arrays: for a blank and a label, four dot products a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ...transducer import LABEL_COLUMN, Row, RowHead
from ..types import Forms, HostArray, ReferenceRows, TangentRows
from .activations import ACTIVATIONS
from .dropout import drop
from .log_space import logaddexp
from .rows import block_rows

# Positions in a block of hidden vectors. With more, a block has few frames, and products over these
# are calls more than arithmetic: bounds of 152 positions took 1.6 times as long.
_COLUMNS = 64


def upper_bounds(
    rows: ReferenceRows,
    frames: TangentRows,
    positions: TangentRows,
    layout: Row,
    forms: Forms,
    base: int,
    scratch: HostArray,
    out: HostArray,
) -> None:
    samples, _, start, stop = rows
    hidden = scratch[: block_rows(*scratch.shape)]
    first_sample, last_sample = samples.with_rows(0, np.array([start, stop - 1])).tolist()
    for i in range(first_sample, last_sample + 1):
        (first, prefix), width = (firsts[i] for firsts in samples.firsts), samples.positions[i]
        of_positions = _part(positions, prefix, prefix + width)
        apply = None if forms.fits[i] else partial(_apply, forms, int(samples.numbers[i]))
        most, end = max(1, len(scratch) // width), min(samples.ends[0][i], stop)
        for begin in range(max(first, start), end, most):
            of_frames = _part(frames, begin, min(begin + most, end))
            logits, tangent = _dots(of_frames, of_positions, begin - first, apply, hidden)
            place = samples.cells[i] + (begin - first) * width - base
            cells = slice(place, place + tangent.size)
            for bound, row in zip(
                _bounds(logits, tangent, layout, forms.slack[i]), out, strict=True
            ):
                row[cells] = bound.reshape(-1)


def _part(rows: TangentRows, start: int, stop: int) -> TangentRows:
    return TangentRows(*(array[start:stop] for array in rows))


def _apply(forms: Forms, sample: int, frame: int, position: int, hidden: HostArray) -> None:
    """Activation and dropout, in place, of cells of a sample from a frame and a position on,
    (frames, positions, H)."""
    ACTIVATIONS[forms.activation].apply(hidden, hidden)
    if forms.dropout is not None:
        rows = hidden.reshape(-1, hidden.shape[-1])
        t, u = np.divmod(np.arange(len(rows)), hidden.shape[1])
        drop(forms.dropout, np.full(len(rows), sample), frame + t, position + u, rows)


def _dots(
    of_frames: TangentRows,
    of_positions: TangentRows,
    first_frame: int,
    apply: Callable[[int, int, HostArray], object] | None,
    scratch: HostArray,
) -> tuple[list[HostArray], HostArray]:
    """The exact logits, a list of (frames, positions) with the label's last, and the larger of both
    tangents, (frames, positions). Without an activation, the form is the logistic one."""
    encoder, slopes, constants = of_frames
    predictor, vectors, vector_constants = of_positions
    shape = len(encoder), len(predictor)
    of_frame = np.empty((*shape, 1), encoder.dtype)
    of_position = np.empty((vectors.shape[1], *shape), encoder.dtype)
    widest = min(len(predictor), len(scratch), _COLUMNS)
    for first in range(0, len(predictor), widest):
        columns = slice(first, first + widest)
        of_columns = predictor[columns]
        frames = len(scratch) // len(of_columns)
        for start in range(0, len(encoder), frames):
            rows = slice(start, start + frames)
            of_rows = encoder[rows]
            cells = len(of_rows) * len(of_columns)
            hidden = scratch[:cells].reshape(len(of_rows), len(of_columns), -1)
            np.add(of_rows[:, None], of_columns, out=hidden)
            if apply is None:
                np.divide(of_columns, hidden, out=hidden)
            else:
                apply(first_frame + start, first, hidden)
            np.matmul(hidden, slopes[rows].transpose(0, 2, 1), out=of_frame[rows, columns])
            dots = np.matmul(hidden.transpose(1, 0, 2), vectors[columns].transpose(0, 2, 1))
            of_position[:, rows, columns] = dots.transpose(2, 1, 0)
    *logits, tangent = of_position + vector_constants.T[:, None]
    np.maximum(tangent, of_frame[..., 0] + constants, out=tangent)
    return logits, tangent


def _bounds(
    logits: list[HostArray], tangent: HostArray, row: Row, slack: float
) -> Iterator[HostArray]:
    """The upper bound of each score, from the exact logits and the larger of both tangents."""
    *exact, label = logits
    next_exact = iter(exact)
    of_scores = [label if column == LABEL_COLUMN else next(next_exact) for column in row.columns]
    np.maximum(tangent, label, out=tangent)
    lower = [_lower_lse(of_scores, tangent, row, head) for head in row.heads]
    for logit, charged, shift in zip(of_scores, row.charged, row.shifts, strict=True):
        for g in charged:
            logit -= lower[g]
        logit += slack * max(1, len(charged))
        np.fmin(logit, 0.0, out=logit)  # fmin(NaN, 0) is 0
        yield logit - shift if shift else logit


def _lower_lse(
    of_scores: list[HostArray], tangent: HostArray, row: Row, head: RowHead
) -> HostArray:
    """A lower bound of the log-sum-exp of a head: over its scores, the bound for labels, a zero."""
    terms = [
        logit
        for logit, column in zip(of_scores, row.columns, strict=True)
        if any(start <= column < stop for start, stop in head.ranges)
    ]
    terms += [tangent] * head.labels + [np.zeros_like(tangent)] * head.zero
    if len(terms) == 1:
        return terms[0].copy()
    lower = np.full_like(tangent, -np.inf) if not terms else terms[0]
    for term in terms[1:]:
        total, work = np.empty((2, *tangent.shape))
        logaddexp(lower, term, total, work)
        lower = total
    return lower
