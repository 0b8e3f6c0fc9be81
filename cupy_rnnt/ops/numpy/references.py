"""References of tangents, and what belongs to them, on NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ...transducer import LABEL_COLUMN, Row
from ..types import (
    Forms,
    HostArray,
    JointInputs,
    Logistic,
    LogitRows,
    ReferenceRows,
    Rounding,
    TangentRows,
)
from .activations import ACTIVATIONS
from .casts import gather
from .samples import Samples


def _places(rows: ReferenceRows) -> tuple[HostArray, HostArray, HostArray]:
    """For each row: the number of its sample among these, the number of its sample in the batch,
    and its own number in the sample."""
    samples, side, start, stop = rows
    numbers = np.arange(start, stop)
    sample = samples.with_rows(side, numbers)
    return sample, samples.numbers[sample], numbers - samples.firsts[side][sample]


def means(inputs: JointInputs, samples: Samples) -> tuple[HostArray, HostArray]:
    shape = 2, len(samples)
    mean_rows = np.empty((*shape, inputs.weight.shape[1]), inputs.weight.dtype)
    magnitudes = np.empty((*shape, 1), inputs.weight.dtype)
    for side, counts in enumerate(samples.counts):
        for i, (b, count) in enumerate(zip(samples.numbers, counts, strict=True)):
            rows = inputs[:2][side][b, :count]
            rows.mean(axis=0, dtype=mean_rows.dtype, out=mean_rows[side, i])
            magnitudes[side, i] = np.maximum(rows.max(), -rows.min())
    return mean_rows, magnitudes


def row_sums(weight: HostArray) -> HostArray:
    return np.concatenate([abs(weight[v : v + 64]).sum(axis=1) for v in range(0, len(weight), 64)])


def slack(
    samples: Samples,
    magnitudes: HostArray,
    row_sums: HostArray,
    bias: HostArray | None,
    layout: Row,
    form: tuple[str, Logistic],
    rounding: Rounding,
) -> tuple[HostArray, HostArray]:
    _, logistic = form
    largest = magnitudes.max(axis=-1).astype(np.float64)
    weight = float(row_sums.max())
    hidden = np.ones(len(samples)) if logistic.rate else largest.sum(axis=0)
    size = weight * hidden
    biases = np.zeros(len(size))
    if bias is not None:
        for i, of_sample in enumerate(size.tolist()):
            biases[i] = _largest_bias(samples, i, bias, layout, 2 * of_sample + rounding.masked)
    total = rounding.per_size * size + rounding.per_bias * biases + rounding.fixed
    total += 2 * weight * np.maximum(rounding.per_hidden * hidden, rounding.least)
    exponents = abs(logistic.rate) * largest.max(axis=0)
    return total, (logistic.rate != 0) & (exponents <= rounding.largest_exponent)


def _largest_bias(samples: Samples, i: int, bias: HostArray, layout: Row, below: float) -> float:
    finite = np.isfinite(bias)
    matters = bias >= float(bias.max(initial=-np.inf, where=finite)) - below
    matters[samples.labels[i, : samples.positions[i] - 1]] = True
    matters[_exact(layout)] = True
    return float(abs(bias[matters & finite]).max(initial=0.0))


def _exact(layout: Row) -> list[int]:
    """The columns of the scores that are no label's."""
    return [column for column in layout.columns if column != LABEL_COLUMN]


def reference_hidden(
    rows: ReferenceRows,
    inputs: JointInputs,
    means: HostArray,
    activation: str,
    pre: HostArray,
    out: HostArray,
) -> None:
    of_sample, *index = _places(rows)
    gather(inputs[:2][rows.side], tuple(index), pre)
    for sample, part in _runs(of_sample):
        pre[part] += means[1 - rows.side, sample]
    ACTIVATIONS[activation].apply(pre, out)


def label_softmax(rows: LogitRows, dtype: np.dtype) -> tuple[HostArray, HostArray, HostArray]:
    """As the entropy of a softmax is ``lse - q . (logits + bias)``, the constant is ``lse - q .
    logits``."""
    logits, bias, row, _, scratch = rows
    constants, sums = np.empty((2, len(logits)))
    for start in range(0, len(logits), len(scratch)):
        part = slice(start, start + len(scratch))
        x, q = logits[part], scratch[: len(logits[part])]
        np.copyto(q, x) if bias is None else np.add(x, bias, out=q)
        for first, stop in row.others:
            q[:, first:stop] = -np.inf
        top = q.max(axis=1)
        q -= top[:, None]
        np.exp(q, out=q)
        q.sum(axis=1, dtype=np.float64, out=sums[part])
        for first, stop in row.others:
            x[:, first:stop] = 0  # 0 times infinity would be NaN
        constants[part] = np.log(sums[part]) + top - np.einsum("nv,nv->n", q, x) / sums[part]
        x[...] = q
    return logits, constants, sums


def write_tangents(
    rows: ReferenceRows,
    inputs: JointInputs,
    layout: Row,
    forms: Forms,
    tangents: tuple[HostArray, HostArray, HostArray],
    out: TangentRows,
) -> None:
    samples, side, *ends = rows
    slopes, of_slopes, sums = tangents
    of_sample, *index = _places(rows)
    arrays, vectors, constants = (array[slice(*ends)] for array in out)
    gather(inputs[:2][side], tuple(index), arrays)
    if side == 1:
        weight, bias = inputs.weight, inputs.bias
        for i, v in enumerate((*_exact(layout), samples.next_labels[slice(*ends)])):
            vectors[:, i], constants[:, i] = weight[v], 0.0 if bias is None else bias[v]
        constants[index[1] == samples.positions[of_sample] - 1, -2] = -np.inf
    np.multiply(slopes, (1 / sums).astype(slopes.dtype)[:, None], out=vectors[:, -1])
    constants[:, -1] = of_slopes
    rate, scale, shift = forms.logistic
    for fits, part in _runs(forms.fits[of_sample]):
        if fits:
            # Twice as fast as np.sum.
            sums_of_vectors = np.einsum("nvh->nv", vectors[part], dtype=np.float64)
            constants[part] += shift * sums_of_vectors
            vectors[part] *= scale
            arrays[part] *= -rate if side else rate
            np.exp(arrays[part], out=arrays[part])


def _runs(values: HostArray) -> Iterator[tuple[Any, slice]]:
    """The value and the place of each run of equal values."""
    edges = 1 + np.flatnonzero(values[1:] != values[:-1])
    for start, stop in pairwise([0, *edges.tolist(), len(values)]):
        yield values[start], slice(start, stop)
