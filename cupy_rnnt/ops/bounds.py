"""Upper bounds of transition log-probs on NumPy arrays, from four dot products a cell."""

from __future__ import annotations

import numpy as np

from . import Runs
from .activations import ACTIVATIONS
from .lattice import logaddexp

_BLOCK_ELEMENTS = 2**17  # hidden values at once, which stay in the inner caches


def means(array: np.ndarray, samples: np.ndarray, counts: np.ndarray, out: np.ndarray) -> None:
    for mean, b, count in zip(out, samples, counts, strict=True):
        array[b, :count].mean(axis=0, dtype=out.dtype, out=mean)


def magnitudes(array: np.ndarray, counts: np.ndarray) -> np.ndarray:
    found = np.empty(len(counts))
    for b, count in enumerate(counts):
        rows = array[b, :count]
        found[b] = np.maximum(rows.max(), -rows.min())
    return found


def largest_row_sum(weight: np.ndarray) -> np.ndarray:
    sums = [abs(weight[v : v + 64]).sum(axis=1).max() for v in range(0, len(weight), 64)]
    largest: np.ndarray = np.array(sums).max()
    return largest


def label_softmax(
    logits: np.ndarray, bias: np.ndarray | None, blank: int, scratch: np.ndarray
) -> np.ndarray:
    lse = np.empty(len(logits))
    for start in range(0, len(logits), len(scratch)):
        rows = slice(start, start + len(scratch))
        x = logits[rows]
        if bias is not None:
            x += bias
        x[:, blank] = -np.inf
        top = x.max(axis=1)
        x -= top[:, None]
        exponentials = np.exp(x, out=scratch[: len(x)])
        of_rows = np.log(exponentials.sum(axis=1, dtype=np.float64))
        x -= of_rows.astype(x.dtype)[:, None]
        np.exp(x, out=x)
        lse[rows] = of_rows + top
    return lse


def row_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    dots: np.ndarray = np.einsum("nh,nh->n", a, b)
    return dots.astype(np.float64)


def bounds(
    encoder: np.ndarray,
    predictor: np.ndarray,
    activation: str | None,
    slopes: np.ndarray,
    constants: np.ndarray,
    vectors: np.ndarray,
    vector_constants: np.ndarray,
    runs: Runs,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    hidden = scratch[: max(1, _BLOCK_ELEMENTS // scratch.shape[1])]
    for frame, frames, prefix, columns, cell, slack in zip(*runs, strict=True):
        mine = slice(prefix, prefix + columns)
        of_prefixes = predictor[mine], vectors[mine], vector_constants[mine]
        rows = max(1, len(scratch) // columns)
        for start in range(frame, frame + frames, rows):
            some = slice(start, min(start + rows, frame + frames))
            of_frames = encoder[some], slopes[some], constants[some]
            both = _bounds(of_frames, of_prefixes, activation, slack, hidden)
            place = cell + (start - frame) * columns
            for values, to in zip(both, out, strict=True):
                to[place : place + values.size] = values.reshape(-1)


def _bounds(
    of_frames: tuple[np.ndarray, np.ndarray, np.ndarray],
    of_prefixes: tuple[np.ndarray, np.ndarray, np.ndarray],
    activation: str | None,
    slack: float,
    scratch: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Of blank and label in some frames of a sample, (n, S)."""
    encoder, slopes, constants = of_frames
    predictor, vectors, vector_constants = of_prefixes
    shape = len(encoder), len(predictor)
    of_frame = np.empty((*shape, 1), encoder.dtype)
    of_prefix = np.empty((3, *shape), encoder.dtype)
    widest = min(len(predictor), len(scratch))
    for first in range(0, len(predictor), widest):
        columns = slice(first, first + widest)
        here = predictor[columns]
        frames = len(scratch) // len(here)
        for start in range(0, len(encoder), frames):
            rows = slice(start, start + frames)
            there = encoder[rows]
            hidden = scratch[: len(there) * len(here)].reshape(len(there), len(here), -1)
            np.add(there[:, None], here, out=hidden)
            if activation is None:
                np.divide(here, hidden, out=hidden)
            else:
                ACTIVATIONS[activation].apply(hidden, hidden)
            np.matmul(hidden, slopes[rows, :, None], out=of_frame[rows, columns])
            dots = np.matmul(hidden.transpose(1, 0, 2), vectors[columns].transpose(0, 2, 1))
            of_prefix[:, rows, columns] = dots.transpose(2, 1, 0)
    blank, label, tangent = of_prefix + vector_constants.T[:, None]
    np.maximum(tangent, of_frame[..., 0] + constants[:, None], out=tangent)
    np.maximum(tangent, label, out=tangent)
    denominator = np.empty(shape)
    logaddexp(blank, tangent, denominator, np.empty(shape))
    for numerator in blank, label:
        numerator -= denominator
        numerator += slack
        np.fmin(numerator, 0.0, out=numerator)  # of NaN and 0 that is 0
    return blank, label
