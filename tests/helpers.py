"""Random ragged batches, the arguments of a loss in order: ``rnnt_loss(*case)``; least budgets;
what a lattice has found."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest

from .device_calls import to_host
from .transducers.cases import PLAIN, Columns


class LogitsCase(NamedTuple):
    logits: np.ndarray
    targets: np.ndarray
    logit_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int

    @property
    def length(self) -> int:
        """Transitions on a path of the longest sample."""
        return int((self.logit_lengths + self.target_lengths).max())


class JointCase(NamedTuple):
    encoder_out: np.ndarray
    predictor_out: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    targets: np.ndarray
    logit_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int

    length = LogitsCase.length


def random_lengths(rng, size, frames, labels):
    """Lengths of `size` samples below the padded extents. The first samples are the corner cases:
    the longest, no label, one frame (and, if it may be, fewer frames than labels)."""
    most_frames, most_labels = max(frames - 1, 1), max(labels - 1, 0)
    logit_lengths = np.array([most_frames, most_frames, 1, *rng.integers(1, most_frames + 1, size)])
    target_lengths = np.array(
        [most_labels, 0, most_labels, *rng.integers(0, most_labels + 1, size)]
    )
    return logit_lengths[:size], target_lengths[:size]


def random_targets(rng, size, labels, vocabulary, blank, transducer=PLAIN):
    """Labels that are no blank and no duration; there is none to choose from if V = 1."""
    symbols = Columns.in_a_row(transducer, vocabulary, blank).of["label"]
    return rng.choice(symbols, (size, labels)) if len(symbols) else np.zeros((size, labels), int)


def random_logits_case(
    rng,
    size=4,
    frames=7,
    labels=5,
    vocabulary=9,
    *,
    dtype=np.float64,
    blank=-1,
    scale=2.0,
    transducer=PLAIN,
) -> LogitsCase:
    logits = rng.normal(scale=scale, size=(size, frames, labels + 1, vocabulary)).astype(dtype)
    targets = random_targets(rng, size, labels, vocabulary, blank, transducer)
    return LogitsCase(logits, targets, *random_lengths(rng, size, frames, labels), blank)


def random_joint_case(
    rng,
    size=4,
    frames=7,
    labels=5,
    vocabulary=9,
    hidden=11,
    *,
    dtype=np.float64,
    blank=-1,
    bias=True,
    scale=2.0,
    transducer=PLAIN,
) -> JointCase:
    shapes = (size, frames, hidden), (size, labels + 1, hidden), (vocabulary, hidden), (vocabulary,)
    inputs = [rng.normal(size=shape) for shape in shapes]
    inputs[2] *= scale / np.sqrt(hidden)
    inputs = [array.astype(dtype) for array in inputs]
    if not bias:
        inputs[3] = None
    targets = random_targets(rng, size, labels, vocabulary, blank, transducer)
    return JointCase(*inputs, targets, *random_lengths(rng, size, frames, labels), blank)


def least_budget(function, *args, **kwargs) -> int:
    """The bytes that the error for a budget of 0 asks for."""
    with pytest.raises(ValueError, match="max_workspace_bytes is 0") as error:
        function(*args, **kwargs, max_workspace_bytes=0)
    return int(re.search(r"at least (\d+) bytes", str(error.value))[1])


def samples_of(ops, frames, positions, labels=None):
    """Samples of a batch, as the operations of a device read them; by default of labels 0."""
    frames, positions = np.asarray(frames, np.int64), np.asarray(positions, np.int64)
    if labels is None:
        labels = np.zeros((len(frames), positions.max()), np.int64)
    return ops.tables(PLAIN.row(2, 0), frames, positions, labels)[1]


def layout_of(ops, row):
    """A row of logits, as the operations of a device read it."""
    one = np.ones(1, np.int64)
    return ops.tables(row, one, one, np.zeros((1, 1), np.int64))[0]


def occupancies(lattice, costs, frames, positions, of_labels=1.0):
    """Occupancies of the scores of each sample, (K, T, S), given costs; 0 if one is not finite."""
    counts, has_some = np.multiply(frames, positions), np.isfinite(costs)
    # A share of 0 keeps every cell, and in bounded lattices not all of them were written.
    is_bounded = hasattr(lattice, "bound")
    cells = lattice.keep(np.full(len(costs), 1e-300 if is_bounded else 0.0))
    kept = to_host(cells)
    if not is_bounded:
        np.testing.assert_array_equal(kept, np.flatnonzero(np.repeat(has_some, counts)))
    of_kept = to_host(lattice.posteriors(cells, of_labels, np.dtype(np.float64), 0.0)[1])
    every = np.zeros((len(of_kept), counts.sum()))
    every[:, kept] = of_kept
    of_samples = np.split(every, counts.cumsum()[:-1], axis=1)
    return [
        values.reshape(-1, t, s) for values, t, s in zip(of_samples, frames, positions, strict=True)
    ]


def divisor(reduction, target_lengths):
    """What a reduction divides the sum of the costs by."""
    volume = max(int(np.sum(np.asarray(target_lengths))), 1)
    return {"mean": len(target_lengths), "mean_volume": volume}.get(reduction, 1)
