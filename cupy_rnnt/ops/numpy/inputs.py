"""Hidden vectors from the two inputs of a joint network, and gradients back to them, on NumPy."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from ..types import HiddenRows, HostArray, InputSums
from .activations import ACTIVATIONS
from .casts import assign, gather
from .dropout import drop
from .samples import Samples


def hidden(rows: HiddenRows) -> None:
    inputs, cells, activation, pre, out, dropout = rows
    gather(inputs.encoder_out, (cells.sample, cells.frame), pre)
    gather(inputs.predictor_out, (cells.sample, cells.position), out)
    pre += out
    ACTIVATIONS[activation].apply(pre, out)
    if dropout is not None:
        drop(dropout, cells.sample, cells.frame, cells.position, out)


def add_input_grad(
    d_hidden: HostArray, rows: HiddenRows, samples: Samples, sums: InputSums
) -> None:
    _, cells, activation, pre, value, dropout = rows
    if dropout is not None:
        value *= value.dtype.type(1 / dropout.scale)
    ACTIVATIONS[activation].derivative(pre, value)
    d_hidden *= pre
    if dropout is not None:  # dropped units pass nothing back, whatever the derivative
        drop(dropout, cells.sample, cells.frame, cells.position, d_hidden)
    sample = cells.sample - samples.numbers[0]
    frames = samples.firsts[0][sample] + cells.frame
    positions = samples.firsts[1][sample] + cells.position
    _add_rows(d_hidden, frames, sums.frames, pre)
    _add_rows(d_hidden, positions, sums.positions, pre)


def _add_rows(tile: HostArray, rows: HostArray, out: HostArray, scratch: HostArray) -> None:
    """``out[rows[i]] += tile[i]`` for every i, in a fixed order; rows may repeat."""
    # A sparse matrix of ones times the tile: 13 times faster than np.add.reduceat, and it needs no
    # sorted copy of the tile.
    order = np.argsort(rows, kind="stable")
    targets, starts = np.unique(rows[order], return_index=True)
    ends = np.append(starts, len(rows))
    ones = np.ones(len(rows), tile.dtype)
    sums = csr_array((ones, order, ends), shape=(len(targets), len(rows))) @ tile
    held = scratch[: len(targets)]
    np.take(out, targets, axis=0, out=held, mode="clip")
    held += sums
    out[targets] = held


def write_input_grads(
    sums: InputSums, samples: Samples, scale: None, encoder: HostArray, predictor: HostArray
) -> None:
    for side, (total, gradient) in enumerate(zip(sums, (encoder, predictor), strict=True)):
        places = samples.numbers, samples.counts[side], samples.firsts[side]
        for b, count, first in zip(*(numbers.tolist() for numbers in places), strict=True):
            assign(total[first : first + count], gradient[b, :count])
            gradient[b, count:] = 0
