"""Each operation on rows as a function of the device: the same calls on NumPy and on CUDA."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cupy_rnnt.ops import cuda
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS
from cupy_rnnt.ops.types import (
    Cells,
    Dropout,
    HiddenRows,
    InputSums,
    JointInputs,
    LogitRows,
    OutputSums,
    ReferenceRows,
    RowPosteriors,
    compute_dtype,
)
from cupy_rnnt.reference.dropout import dropout_factors
from cupy_rnnt.transducer import LABEL_COLUMN, NAMED, Head, Row, Transducer

from .. import devices
from ..helpers import layout_of, samples_of
from ..transducers.cases import TRANSDUCERS, multi_blank, tdt

HALF = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
COMPUTE = np.dtype(np.float32), np.dtype(np.float64)
ALL = COMPUTE + HALF
ROWS = 11


class Host:
    """Where the arrays of a case live: here in NumPy, whose operations want the compute dtype."""

    ops: ModuleType = cpu

    def array(self, values: Any, dtype: Any = None) -> Any:
        return np.array(values, dtype)

    def empty(self, shape: Any, dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def computed(self, values: Any, dtype: Any) -> Any:
        """Rows that were rounded to a dtype, in one that the operations take."""
        return np.asarray(values, dtype).astype(compute_dtype(dtype))


class Device:
    """In the memory of CuPy, some elements behind an aligned address."""

    ops: ModuleType = cuda

    def __init__(self, xp: Any, offset: int = 0) -> None:
        self.xp, self._offset = xp, offset

    def array(self, values: Any, dtype: Any = None) -> Any:
        values = np.asarray(values, dtype)
        new = self.empty(values.shape, values.dtype)
        new[...] = self.xp.asarray(values)
        return new

    def empty(self, shape: Any, dtype: Any) -> Any:
        buffer = self.xp.empty(math.prod(shape) + self._offset, dtype)
        return buffer[self._offset :].reshape(shape)

    computed = array


REGULAR = NAMED["regular"]
BESIDE_NO_HEAD = Transducer(REGULAR.topology, (Head(("label",)),))


def rows_of(width: int, rng: Any) -> list[Row]:
    """One head, none, two with a zero and in two ranges, columns under no head; and, where there
    are as many columns, some blanks and durations."""
    blank = int(rng.integers(width))
    rows = [REGULAR.row(width, blank), REGULAR.row(width, blank, normalised=True)]
    rows += [one.row(width, blank) for one in (TRANSDUCERS["hat"], BESIDE_NO_HEAD)]
    if width > 4:
        several = tdt((0, 1, 3), 0.25), multi_blank((2,), 0.5)
        rows += [one.row(width, max(1, blank - 3)) for one in several]
    return rows


def table_of(row: Row) -> tuple[Any, ...]:
    """What kernels read."""
    with devices.emulated() as gpu:
        words, *counts = layout_of(cuda, row).table
        return gpu.asnumpy(words), *counts


def gradient_inputs(
    on: Any, rng: Any, compute: np.dtype, row: Row, samples: np.ndarray
) -> tuple[Any, Cells]:
    """Occupancies and cells; one label is in the column of the first score, without an
    occupancy."""
    labels = rng.integers(0, row.width, ROWS)
    occupancies = rng.random((len(row.columns), ROWS))
    labels[3], occupancies[row.columns.index(LABEL_COLUMN), 3] = row.columns[0], 0
    return on.array(occupancies, compute), labelled(on, labels, samples)


def cells_at(
    on: Any, sample: np.ndarray, frame: np.ndarray, position: np.ndarray, lengths: tuple[int, ...]
) -> Cells:
    """Cells of a batch of equal samples: so many of them, T and S."""
    size, frames, positions = lengths
    samples = samples_of(on.ops, np.full(size, frames), np.full(size, positions))
    packed = np.ravel_multi_index((sample, frame, position), lengths)
    return Cells(on.array(packed), samples, on.ops.coordinates)


def labelled(on: Any, labels: np.ndarray, samples: np.ndarray | None = None) -> Cells:
    """A cell for each label, of a batch whose samples have one frame and all of the labels."""
    of_cells = np.zeros(len(labels), np.int64) if samples is None else samples
    size, positions = int(of_cells.max(initial=0)) + 1, len(labels) + 1
    lengths = np.ones(size), np.full(size, positions)
    batch = samples_of(on.ops, *lengths, np.tile(np.append(labels, 0), (size, 1)))
    packed = of_cells * positions + np.arange(len(labels))
    return Cells(on.array(packed), batch, on.ops.coordinates)


def gather(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    source = on.array(3 * rng.standard_normal((2, 3, 4, width)), dtype)
    index = tuple(on.array(rng.integers(0, extent, ROWS)) for extent in (2, 3, 4))
    rows, again = (on.empty((ROWS, width), compute_dtype(dtype)) for _ in range(2))
    on.ops.gather(source, index, rows)
    on.ops.gather(source.reshape(24, width), (on.array(np.arange(ROWS)),), again)
    return [rows, again]


def scatter(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    tile = on.array(rng.standard_normal((ROWS, width)), compute_dtype(dtype))
    target = on.array(np.zeros((2, 3, 4, width)), dtype)
    index = np.unravel_index(rng.permutation(24)[:ROWS], (2, 3, 4))
    on.ops.scatter(tile, tuple(map(on.array, index)), target)
    return [target]


def hidden(
    on: Any,
    dtype: np.dtype,
    width: int,
    rng: Any,
    name: str = "tanh",
    dropout: Dropout | None = None,
) -> list[Any]:
    encoder = on.array(rng.standard_normal((3, 5, width)), dtype)
    predictor = on.array(rng.standard_normal((3, 4, width)), dtype)
    index = (rng.integers(0, most, ROWS) for most in (3, 5, 4))
    cells = cells_at(on, *index, (3, 5, 4))
    compute = compute_dtype(dtype)
    halves = 1 if on.ops is cpu or dtype == compute else 2
    out = on.empty((ROWS, halves * width), dtype if halves == 2 else compute)
    inputs = JointInputs(encoder, predictor, None, None)
    rows = inputs, cells, name, on.empty((ROWS, width), compute), out
    on.ops.hidden(HiddenRows(*rows, dropout))
    return [sum(out[:, k * width : (k + 1) * width].astype(compute) for k in range(halves))]


def row_scores(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    """Heads over columns that labels are not among are no matter: a label may be in any column."""
    compute, results = compute_dtype(dtype), []
    logits = on.computed(4 * rng.standard_normal((ROWS, width)), dtype)
    bias = on.array(rng.standard_normal(width), compute)
    scratch = on.empty((4, width), compute)
    for row in rows_of(width, rng):
        rest = layout_of(on.ops, row), labelled(on, rng.integers(0, width, ROWS)), scratch
        with np.errstate(divide="ignore"):  # of heads without a column
            for added in None, bias:
                results.extend(on.ops.row_scores(LogitRows(logits, added, *rest)))
    return results


def picked_scores(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    """Of log-probabilities, which no head is over."""
    log_probs = on.computed(rng.standard_normal((ROWS, width)), dtype)
    cells, scratch = labelled(on, rng.integers(0, width, ROWS)), on.empty((4, width), np.float32)
    row = layout_of(on.ops, REGULAR.row(width, width // 2, normalised=True))
    return list(on.ops.row_scores(LogitRows(log_probs, None, row, cells, scratch)))


def logits_grad(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    values = (4 * rng.standard_normal((ROWS, width))).astype(dtype)
    bias, results = rng.standard_normal(width).astype(dtype), []
    weights, scratch = on.array(rng.standard_normal(3)), on.empty((4, width), dtype)
    samples, order = rng.integers(0, 3, ROWS), rng.permutation(2 * ROWS)[:ROWS]
    for row in rows_of(width, rng):
        exponentials = np.exp(values.astype(float) + bias.astype(float))
        under = [[v for bounds in head.ranges for v in range(*bounds)] for head in row.heads]
        sums = [
            exponentials[:, columns].sum(axis=1) + head.zero
            for columns, head in zip(under, row.heads, strict=True)
        ]
        with np.errstate(divide="ignore"):
            lse = np.log(np.array(sums).reshape(-1, ROWS))
        occupancies, cells = gradient_inputs(on, rng, dtype, row, samples)
        rest, of_rows = (layout_of(on.ops, row), cells, scratch), (on.array(lse), occupancies)
        for clamp in -1.0, 0.1:
            posteriors = RowPosteriors(*of_rows, weights, clamp)
            with_bias, without = on.array(values), on.array(values + bias)
            for logits, added in (with_bias, on.array(bias)), (without, None):
                on.ops.logits_grad(LogitRows(logits, added, *rest), posteriors)
                results.append(logits)
            stored = np.full((2 * ROWS, width), np.nan, dtype)
            stored[order] = values + bias
            rows, grad = LogitRows(on.array(stored), None, *rest), on.empty((ROWS, width), dtype)
            on.ops.logits_grad(rows, posteriors, grad, on.array(order))
            results.append(grad)
    return results


def bias_grad(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    """Columns of two tiles, added up."""
    compute, results = compute_dtype(dtype), []
    row = layout_of(on.ops, REGULAR.row(width, 0))
    for tiles in (1, 2), (40, 67):
        sums = OutputSums(
            on.array(np.zeros((width, 1)), compute),
            on.array(np.zeros((on.ops.bias_rows(max(tiles)), width)), compute),
            on.empty((3, 1), compute),
        )
        for count in tiles:
            rest = row, labelled(on, rng.integers(0, width, count)), on.empty((4, width), compute)
            rows = LogitRows(on.array(np.zeros((count, width)), compute), None, *rest)
            d_logits = on.empty((count, width), on.ops.factor_dtype(dtype) or compute)
            posteriors = RowPosteriors(
                on.array(np.full((1, count), np.log(width))),
                on.array(rng.random((2, count)), compute),
                *(on.array(np.ones(1)), -1.0),
            )
            on.ops.logits_grad(rows, posteriors, d_logits, on.array(np.arange(count)), sums)
            on.ops.add_output_grad(d_logits, on.array(np.ones((count, 1)), d_logits.dtype), sums)
        results.append(sums.bias.sum(axis=0))
    return results


def write_output_grads(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    """Integers, whose sums are exact, and a scale; sums of the bias with padding behind them."""
    compute, gradients, scale = compute_dtype(dtype), [], 8.0
    for parts in 1, 3, 100:
        sums = [rng.integers(-99, 99, shape) for shape in ((width, 7), (parts, width + 3))]
        written = [on.empty((width, 7), dtype), on.empty((width,), dtype)]
        if on.ops is cpu:
            weight, bias = (on.array(values / scale, compute) for values in sums)
            on.ops.write_output_grads(weight, bias.sum(axis=0)[None, :width], None, *written)
        else:
            weight, bias = (on.array(values, compute) for values in sums)
            of_bias = bias[:, :width], on.array([scale])
            on.ops.write_output_grads(weight, *of_bias, *written)
        gradients += written
    return gradients


def scaled_weights(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    """For inputs of a half type; the twin is written down here."""
    values = rng.standard_normal(width) * 2.0 ** rng.integers(-99, 99, width)
    values[rng.random(width) < 0.1] = 0
    if on.ops is not cpu:
        weights, scale = on.ops.scaled_weights(on.array(values), 1.5, dtype)
        return [weights, scale]
    most = 1.5 * abs(values).max()
    scale = 2.0 ** (14 - math.ceil(math.log2(most))) if most else 1.0
    return [values * scale, np.array([scale])]


def log_probs_grad(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    """The gradient under no head, which reads no logits."""
    compute, results = compute_dtype(dtype), []
    row = REGULAR.row(width, int(rng.integers(width)), normalised=True)
    samples = rng.integers(0, 3, ROWS)
    occupancies, cells = gradient_inputs(on, rng, compute, row, samples)
    rest = None, layout_of(on.ops, row), cells, on.empty((4, width), compute)
    lse = on.array(np.empty((0, ROWS)))
    weights = on.array([1.0, -2.0, 0.5])
    for clamp in -1.0, 0.3:
        grad = on.computed(np.full((ROWS, width), np.nan), dtype)
        posteriors = RowPosteriors(lse, occupancies, weights, clamp)
        on.ops.logits_grad(LogitRows(grad, *rest), posteriors)
        results.append(grad)
    return results


def reference_hidden(
    on: Any, dtype: np.dtype, width: int, rng: Any, name: str = "tanh"
) -> list[Any]:
    """Of some frames and positions, from the second one to the last of three samples."""
    compute, results = compute_dtype(dtype), []
    frames, positions = np.array([[5, 4], [2, 2], [1, 3], [3, 1]]).T
    samples = samples_of(on.ops, frames, positions).chosen(np.array([0, 2, 3]))
    means = on.array(rng.standard_normal((2, 3, width)), compute)
    inputs = JointInputs(
        *(on.array(rng.standard_normal((4, n, width)), dtype) for n in (5, 4)), None, None
    )
    for side, (start, stop) in enumerate(((5, 9), (3, 8))):
        out, pre = (on.empty((stop - start, width), compute) for _ in range(2))
        if on.ops is not cpu:
            out = on.empty(out.shape, dtype)
        rows = ReferenceRows(samples, side, start, stop)
        on.ops.reference_hidden(rows, inputs, means, name, pre, out)
        results.append(out)
    return results


def applied(on: Any, activation: str, pre: np.ndarray) -> Any:
    """An activation: the hidden vector of a reference that is a frame, with a mean of 0."""
    means = on.array(np.zeros((2, 1, len(pre))), pre.dtype)
    inputs = JointInputs(on.array(pre[None, None]), None, None, None)
    out, work = (on.empty((1, len(pre)), pre.dtype) for _ in range(2))
    rows = ReferenceRows(samples_of(on.ops, [1], [1]), 0, 0, 1)
    on.ops.reference_hidden(rows, inputs, means, activation, work, out)
    return out[0]


FRAMES, POSITIONS = np.array([5, 1, 3]), np.array([4, 3, 1])
"""Of a group of samples, those from the second one of a batch on."""
KEPT = np.array([0, 1, 3, 4, 6, 7, 12, 13, 14, 15, 19, 20, 22, 23, 24])
"""Cells of the group, in packed order: no frame, one, and all of a frame."""
CELLS_BEFORE = 9


def of_group(on: Any) -> tuple[Any, Any]:
    """The samples of a batch, the first of which has nine cells; and those of the group."""
    samples = samples_of(on.ops, [3, *FRAMES], [3, *POSITIONS])
    return samples, samples.run(1, 4)


class InputGrad(NamedTuple):
    """The gradient of hidden vectors, on the host."""

    encoder: np.ndarray
    predictor: np.ndarray
    index: tuple[np.ndarray, np.ndarray, np.ndarray]  # sample, frame, position
    d_hidden: np.ndarray

    def pre(self) -> np.ndarray:
        sample, frame, position = self.index
        rows = self.encoder[sample, frame], self.predictor[sample, position]
        return np.add(*rows, dtype=compute_dtype(self.encoder.dtype))


def input_grad_of(dtype: np.dtype, width: int, rng: Any) -> InputGrad:
    sizes = FRAMES * POSITIONS
    sample = np.repeat(np.arange(3), sizes)[KEPT]
    within = KEPT - (sizes.cumsum() - sizes)[sample]
    index = 1 + sample, within // POSITIONS[sample], within % POSITIONS[sample]
    encoder, predictor = (rng.standard_normal((4, n, width)).astype(dtype) for n in (6, 4))
    d_hidden = rng.standard_normal((len(KEPT), width)).astype(compute_dtype(dtype))
    return InputGrad(encoder, predictor, index, d_hidden)


def factors_of(dropout: Dropout, index: tuple[np.ndarray, ...], width: int) -> np.ndarray:
    """What hidden values of cells are multiplied by, of the reference."""
    probability = dropout.threshold / 2**32
    return np.array(
        [
            dropout_factors(probability, dropout.seed, sample, frame, position + 1, width)[-1]
            for sample, frame, position in zip(*index, strict=True)
        ]
    )


def add_input_grad(
    on: Any,
    dtype: np.dtype,
    width: int,
    rng: Any,
    name: str = "tanh",
    dropout: Dropout | None = None,
) -> list[Any]:
    case, compute = input_grad_of(dtype, width, rng), compute_dtype(dtype)
    inputs = JointInputs(on.array(case.encoder), on.array(case.predictor), None, None)
    batch, group = of_group(on)
    cells = Cells(on.array(CELLS_BEFORE + KEPT), batch, on.ops.coordinates)
    pre, out = case.pre(), np.empty_like(case.d_hidden)
    ACTIVATIONS[name].apply(pre, out)
    if dropout is not None:
        out *= factors_of(dropout, case.index, width)
    sums = InputSums(
        *(on.array(rng.standard_normal((n.sum(), width)), compute) for n in (FRAMES, POSITIONS))
    )
    for tile in slice(0, 9), slice(9, len(KEPT)):
        of_tile = on.array(pre[tile]), on.array(out[tile])
        rows = HiddenRows(inputs, cells.part(tile), name, *of_tile, dropout)
        on.ops.add_input_grad(on.array(case.d_hidden[tile]), rows, group, sums)
    return list(sums)


def write_input_grads(on: Any, dtype: np.dtype, width: int, rng: Any) -> list[Any]:
    totals, compute = [FRAMES, POSITIONS], compute_dtype(dtype)
    sums = InputSums(*(on.array(rng.standard_normal((n.sum(), width)), compute) for n in totals))
    gradients = [on.array(np.full((5, n, width), 7.0), dtype) for n in (6, 4)]
    on.ops.write_input_grads(sums, of_group(on)[1], None, *gradients)
    return gradients


def slopes(on: Any, activation: str, pre: np.ndarray) -> Any:
    """Derivatives of an activation: gradients of the inputs of one cell."""
    value, none = np.empty_like(pre), np.zeros((1, 1, len(pre)), pre.dtype)
    with np.errstate(all="ignore"):
        ACTIVATIONS[activation].apply(pre, value)
    inputs = JointInputs(on.array(pre[None, None]), on.array(none), None, None)
    none_yet = np.zeros(1, np.int64)
    cells = cells_at(on, none_yet, none_yet, none_yet, (1, 1, 1))
    rows = HiddenRows(inputs, cells, activation, on.array(pre[None]), on.array(value[None]))
    sums = InputSums(*(on.array(np.zeros_like(none[0])) for _ in range(2)))
    on.ops.add_input_grad(on.array(np.ones_like(none[0])), rows, cells.samples, sums)
    return sums.frames[0]


class Operation(NamedTuple):
    case: Callable[..., list[Any]]
    dtypes: tuple[np.dtype, ...]
    exact: bool = False  # nothing is rounded


OPERATIONS = {
    operation.case.__name__: operation
    for operation in (
        Operation(add_input_grad, ALL),
        Operation(bias_grad, ALL),
        Operation(gather, ALL, True),
        Operation(hidden, ALL),
        Operation(log_probs_grad, ALL, True),
        Operation(logits_grad, COMPUTE),
        Operation(picked_scores, ALL, True),
        Operation(reference_hidden, ALL),
        Operation(row_scores, ALL),
        Operation(scaled_weights, HALF, True),
        Operation(scatter, ALL, True),
        Operation(write_input_grads, ALL, True),
        Operation(write_output_grads, ALL, True),
    )
}
