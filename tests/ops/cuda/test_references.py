"""References of tangents on CUDA, by NumPy's and by the formulas of the contract."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from cupy_rnnt.ops import cuda
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.ops.types import (
    Forms,
    JointInputs,
    Logistic,
    LogitRows,
    ReferenceRows,
    Rounding,
    TangentRows,
    compute_dtype,
)
from cupy_rnnt.transducer import NAMED

from ...helpers import layout_of, samples_of
from ...tolerances import DTYPES, unit_roundoff
from ...transducers.cases import TRANSDUCERS
from .. import row_cases
from ..row_cases import table_of
from .test_rows_memory import run_far, shifted, table_of_samples

WIDTHS = 1, 31, 32, 33, 100, 1025
FAR = 2**31 + 2**20
REGULAR = NAMED["regular"]
TANH, NONE = ("tanh", Logistic(2.0, -2.0, 1.0)), ("relu", Logistic(0.0, 1.0, 0.0))
ROUNDING = Rounding(0.5, 0.25, 0.125, 0.0625, 0.03125, 9.0, 40.0)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_compute_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_width = pytest.mark.parametrize("width", WIDTHS)


class Samples(NamedTuple):
    """Three of a batch of four."""

    numbers: np.ndarray = np.array([0, 2, 3])
    frames: np.ndarray = np.array([7, 1, 19])
    positions: np.ndarray = np.array([3, 4, 1])
    labels: np.ndarray = np.array([3, 1, 0, 2, 2, 4, 0, 0])  # the next one at each position

    def of(self, ops: ModuleType) -> Any:
        frames, positions = np.full((2, 4), 2)
        frames[self.numbers], positions[self.numbers] = self.frames, self.positions
        labels = np.full((4, max(positions)), 9)
        rows = np.repeat(self.numbers, self.positions)
        labels[rows, np.concatenate(list(map(np.arange, self.positions)))] = self.labels
        return samples_of(ops, frames, positions, labels).chosen(self.numbers)

    def rows(self, ops: ModuleType, side: int) -> ReferenceRows:
        """From the second one on."""
        stop = int((self.frames, self.positions)[side].sum())
        return ReferenceRows(self.of(ops), side, 2, stop)


SAMPLES = Samples()


def outputs(dtype, width, layout="dense"):
    """Of encoder and predictor, in some order in memory."""
    rng = np.random.default_rng(width)
    arrays = [rng.normal(size=(4, n, width)).astype(dtype) for n in (20, 5)]
    made = {
        "dense": lambda array: array,
        "fortran": np.asfortranarray,
        "strided": lambda array: np.repeat(array, 2, axis=2)[:, :, ::2],
    }[layout]
    return [made(array) for array in arrays]


def on_device(gpu, arrays):
    return [None if array is None else gpu.xp.array(array, order="K") for array in arrays]


@pytest.mark.parametrize("layout", ["dense", "fortran", "strided"])
@every_dtype
@every_width
def test_means_and_magnitudes(gpu, width, dtype, layout):
    arrays, compute = outputs(dtype, width, layout), compute_dtype(np.dtype(dtype))
    inputs = JointInputs(*on_device(gpu, arrays), None, None)
    means, magnitudes = cuda.means(inputs, SAMPLES.of(cuda))
    assert means.dtype == magnitudes.dtype == compute
    means, magnitudes = gpu.asnumpy(means), gpu.asnumpy(magnitudes).max(axis=-1)
    for side, counts in enumerate(SAMPLES[1:3]):
        for i, (b, count) in enumerate(zip(SAMPLES.numbers, counts, strict=True)):
            rows = arrays[side][b, :count].astype(float)
            rounding = 20 * unit_roundoff(compute)
            np.testing.assert_allclose(means[side, i], rows.mean(axis=0), rtol=0, atol=rounding)
            assert magnitudes[side, i] == abs(rows).max()


@every_dtype
def test_means_and_magnitudes_are_those_of_the_twin(gpu, dtype):
    arrays, compute = outputs(dtype, 45), compute_dtype(np.dtype(dtype))
    weight = np.empty((1, 45), compute)
    expected = cpu.means(JointInputs(*arrays, weight, None), SAMPLES.of(cpu))
    inputs = JointInputs(*on_device(gpu, (*arrays, weight)), None)
    means, magnitudes = map(gpu.asnumpy, cuda.means(inputs, SAMPLES.of(cuda)))
    np.testing.assert_allclose(means, expected[0], rtol=0, atol=20 * unit_roundoff(compute))
    np.testing.assert_array_equal(magnitudes.max(axis=-1), expected[1].max(axis=-1))


@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_magnitudes_that_are_not_finite(gpu, dtype, value):
    """Of one sample, wherever they are; padding is not looked at."""
    for place in (0, 0, 0), (0, 6, 39), (0, 3, 33):
        arrays = outputs(dtype, 40)
        arrays[0][place] = arrays[0][2, 3] = arrays[1][3, 1] = value
        inputs = JointInputs(*on_device(gpu, arrays), None, None)
        _, magnitudes = cuda.means(inputs, SAMPLES.of(cuda))
        found = gpu.asnumpy(magnitudes).max(axis=-1)
        assert np.isfinite(found).tolist() == [[False, True, True], [True] * 3]
        np.testing.assert_array_equal(found[0, 0], abs(value))


@pytest.mark.parametrize("order", "CF")
@every_dtype
@every_width
def test_row_sums(gpu, width, dtype, order):
    """Also of some columns of a matrix."""
    weight = np.random.default_rng(width).normal(size=(33, width)).astype(dtype)
    wide = gpu.xp.array(np.concatenate((weight, weight), axis=1), order=order)
    expected = np.abs(weight.astype(np.float64)).sum(axis=1)
    rounding = width * unit_roundoff(compute_dtype(np.dtype(dtype)))
    for matrix in wide[:, :width], wide[:, width:]:
        found = gpu.asnumpy(cuda.row_sums(matrix))
        np.testing.assert_allclose(found, expected, rtol=rounding)
    if dtype in (np.float32, np.float64):
        np.testing.assert_allclose(cpu.row_sums(weight), expected, rtol=rounding)


def expected_slack(magnitudes, row_sums, bias, row, form, rounding):
    """By the formulas of the contract; and which samples take the logistic form."""
    slack, fits, (_, logistic) = [], [], form
    firsts = SAMPLES.positions.cumsum() - SAMPLES.positions
    for i, (e, p) in enumerate(magnitudes.max(axis=-1).astype(float).T):
        weight, hidden = float(row_sums.max()), 1.0 if logistic.rate else e + p
        size = weight * hidden
        last = firsts[i] + SAMPLES.positions[i] - 1
        own = {column for column in row.columns if column >= 0} | {
            *SAMPLES.labels[firsts[i] : last].tolist()
        }
        biases = {} if bias is None else {v: b for v, b in enumerate(bias) if np.isfinite(b)}
        most = max(biases.values(), default=0)
        counted = [
            abs(float(b))
            for v, b in biases.items()
            if v in own or b >= most - 2 * size - rounding.masked
        ]
        total = rounding.per_size * size + rounding.per_bias * max(counted, default=0)
        off = np.maximum(rounding.per_hidden * hidden, rounding.least)
        slack.append(total + rounding.fixed + 2 * weight * off)
        exponents = abs(logistic.rate) * np.maximum(e, p)
        fits.append(bool(logistic.rate) and exponents <= rounding.largest_exponent)
    return slack, fits


@every_compute_dtype
@pytest.mark.parametrize("form", [TANH, NONE], ids=["tanh", "relu"])
@pytest.mark.parametrize("biases", ["none", "usual", "masked", "huge", "infinite", "all masked"])
@pytest.mark.parametrize("transducer", ["regular", "tdt"])
def test_slack(gpu, transducer, biases, form, dtype):
    rng, vocabulary = np.random.default_rng(1), 600
    row = TRANSDUCERS[transducer].row(vocabulary, 300)
    bias = rng.standard_normal(vocabulary).astype(dtype)
    if biases == "masked":
        bias[:250], bias[250:290] = -np.inf, -1e4
        bias[3] = -70.0  # a label of the first sample
    elif biases == "huge":
        bias[7] = 1e20
    elif biases == "infinite":
        bias[[3, 9, 300]] = np.inf, np.nan, -np.inf
    elif biases == "all masked":
        bias[:] = -np.inf
    bias = None if biases == "none" else bias
    magnitudes = rng.random((2, 3, 70)).astype(dtype)
    magnitudes[0, 1, 69], magnitudes[1, 2, 33] = 19.9, 20.1
    row_sums = rng.random(vocabulary).astype(dtype)
    expected = expected_slack(magnitudes, row_sums, bias, row, form, ROUNDING)
    sizes = magnitudes, row_sums, bias
    table = SAMPLES.of(cuda)
    found = cuda.slack(table, *on_device(gpu, sizes), layout_of(cuda, row), form, ROUNDING)
    table = SAMPLES.of(cpu)
    with np.errstate(all="ignore"):
        twin = cpu.slack(table, *sizes, row, form, ROUNDING)
    for slack, fits in (map(gpu.asnumpy, found), twin):
        np.testing.assert_allclose(slack, expected[0], rtol=1e-6 if dtype == np.float32 else 1e-12)
        assert fits.tolist() == expected[1]
    assert fits.tolist() == [form is TANH, form is TANH, False]


@every_compute_dtype
@pytest.mark.parametrize("form", [TANH, NONE], ids=["tanh", "relu"])
def test_slack_of_sizes_that_are_not_finite(gpu, form, dtype):
    magnitudes = np.ones((2, 3, 40), dtype)
    magnitudes[0, 0, 33], magnitudes[1, 1, 0] = np.nan, np.inf
    row, bias = REGULAR.row(9, 0), np.ones(9, dtype)
    for row_sums in np.ones(9, dtype), np.full(9, np.nan, dtype):
        sizes = magnitudes, row_sums, bias
        table = SAMPLES.of(cuda)
        found = cuda.slack(table, *on_device(gpu, sizes), layout_of(cuda, row), form, ROUNDING)
        with np.errstate(all="ignore"):
            expected = cpu.slack(SAMPLES.of(cpu), *sizes, row, form, ROUNDING)
        for ours, theirs in zip(map(gpu.asnumpy, found), expected, strict=True):
            np.testing.assert_allclose(ours, theirs)
        assert found[1].tolist() == [False, False, form is TANH]


@every_dtype
def test_reference_hidden(gpu, dtype):
    """Rounded to its type; test_rows.py has it of all activations and widths."""
    ours, theirs = (
        row_cases.reference_hidden(on, np.dtype(dtype), 45, np.random.default_rng(0))
        for on in (row_cases.Device(gpu.xp), row_cases.Host())
    )
    for actual, desired in zip(map(gpu.asnumpy, ours), theirs, strict=True):
        assert actual.dtype == dtype
        rounding = unit_roundoff(dtype) + 8 * unit_roundoff(desired.dtype)
        np.testing.assert_allclose(actual.astype(float), desired, rtol=0, atol=rounding)


def softmax_inputs(rows, width, dtype, biased):
    rng = np.random.default_rng(width)
    compute = compute_dtype(np.dtype(dtype))
    logits = (4 * rng.standard_normal((rows, width))).astype(compute)
    bias = rng.standard_normal(width).astype(compute) if biased else None
    return logits, bias, REGULAR.row(width, int(rng.integers(width)))


def softmax(gpu, dtype, logits, bias, row):
    """On the device: q times its sums, the constants and the sums."""
    arrays = on_device(gpu, (logits, bias))
    rows = LogitRows(*arrays, layout_of(cuda, row), None, None)
    q, *others = cuda.label_softmax(rows, np.dtype(dtype))
    assert q.dtype == dtype
    return [gpu.asnumpy(array).astype(float) for array in (q, *others)]


def twin_of_softmax(logits, bias, row):
    rows = LogitRows(logits.copy(), bias, row, None, np.empty_like(logits[:3]))
    with np.errstate(all="ignore"):
        return [array.astype(float) for array in cpu.label_softmax(rows, logits.dtype)]


def assert_softmax(gpu, dtype, logits, bias, row):
    """Constants are those of q as it was rounded, in float64; and q is a softmax, rounded. Bounds
    are as tight as the rounding of q lets them be.

    With q of the softmax p off by a share d of each element, the divergence of q and p is at most
    the mean of d squared, so u squared; and where an element is so small that it is off by half of
    the least number, at most as much of that as the element is.
    """
    q, constants, sums = softmax(gpu, dtype, logits, bias, row)
    labels = np.delete(np.arange(row.width), np.r_[tuple(slice(*ends) for ends in row.others)])
    assert not np.delete(q, labels, axis=1).any()
    np.testing.assert_allclose(sums, q.sum(axis=1), rtol=1e-13)
    q = q[:, labels] / sums[:, None]
    compute, z = compute_dtype(np.dtype(dtype)), logits[:, labels].astype(float)
    b = np.zeros(len(labels)) if bias is None else bias[labels].astype(float)
    with np.errstate(all="ignore"):
        terms = np.where(q > 0, q * (b - np.log(q)), 0)
        sizes = np.where(q > 0, q * (abs(b) + abs(np.log(q))), 0).sum(axis=1)
        top = (z + b).max(axis=1, keepdims=True)
        p = np.exp(z + b - top)
        lse = np.log(p.sum(axis=1)) + top[:, 0]
        p /= p.sum(axis=1, keepdims=True)
    # Of a term, and of sums in float64.
    off = 8 * unit_roundoff(compute) + row.width * unit_roundoff(np.float64)
    np.testing.assert_allclose(constants, terms.sum(axis=1), rtol=0, atol=off * sizes.max())
    u, least = unit_roundoff(dtype), float(ml_dtypes.finfo(np.dtype(dtype)).smallest_subnormal)
    off *= 1 + abs(z).max() + abs(b[np.isfinite(b)]).max()
    np.testing.assert_allclose(q, p, rtol=2 * u + off, atol=least)
    looseness = lse - (q * z).sum(axis=1) - constants
    assert looseness.min() >= -off
    assert looseness.max() <= u**2 + len(labels) * least / 2 + off
    return q


@every_dtype
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("width", [2, 31, 32, 33, 257, 2047, 2048, 2500])
def test_label_softmax(gpu, width, dtype, biased):
    case = softmax_inputs(11, width, dtype, biased)
    assert_softmax(gpu, dtype, *case)
    if dtype in (np.float32, np.float64):
        rounding = 32 * unit_roundoff(dtype)
        pairs = zip(softmax(gpu, dtype, *case), twin_of_softmax(*case), strict=True)
        for (ours, theirs), size in zip(pairs, (1, 20, width), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=rounding * size)


@every_dtype
@pytest.mark.parametrize("width", [60, 2500])
def test_label_softmax_between_blanks_and_durations(gpu, width, dtype):
    logits, bias, _ = softmax_inputs(5, width, dtype, True)
    logits /= 8  # no label's share vanishes
    several = TRANSDUCERS["tdt"].row(width, 40), TRANSDUCERS["multi-blank"].row(width, 2)
    for row in several:
        assert (assert_softmax(gpu, dtype, logits, bias, row) > 0).all()


@every_dtype
@pytest.mark.parametrize("width", [5, 2050])
def test_label_softmax_of_masked_and_of_large_biases(gpu, width, dtype):
    """A masked label has no share, and adds nothing to the constant."""
    logits, bias, row = softmax_inputs(6, width, dtype, True)
    labels = np.setdiff1d(np.arange(width), row.columns[0])
    bias[labels[::3]] = -np.inf
    assert_softmax(gpu, dtype, logits, bias, row)
    bias[labels[1]] = 300
    q = assert_softmax(gpu, dtype, logits, bias, row)
    assert (q[:, 1] == 1).all()


@every_dtype
@pytest.mark.parametrize("width", [5, 2050])
def test_label_softmax_of_what_is_not_finite(gpu, width, dtype):
    """It spoils the constants of its own rows, and a blank spoils none."""
    logits, bias, row = softmax_inputs(7, width, dtype, True)
    blank = row.columns[0]
    label = (blank + 1) % width
    logits[1, label], logits[2, label], logits[3] = np.inf, np.nan, -np.inf
    logits[4, blank], logits[5, blank] = np.inf, np.nan
    _, constants, _ = softmax(gpu, dtype, logits, bias, row)
    _, expected, _ = twin_of_softmax(logits, bias, row)
    assert np.isnan(constants).tolist() == [False, True, True, True, False, False, False]
    assert np.isnan(expected).tolist() == np.isnan(constants).tolist()
    for spoiled in np.inf, np.nan:
        bias[label] = spoiled
        assert np.isnan(softmax(gpu, dtype, logits, bias, row)[1]).all()


def tangents_of(
    on: Any, samples: Samples, side: int, dtype: np.dtype, transducer: str, form: Any, biased: bool
) -> list[Any]:
    """What `write_tangents` writes; `on` is a device, or None for NumPy."""
    rng, size, vocabulary = np.random.default_rng(side), 45, 20
    row, compute = TRANSDUCERS[transducer].row(vocabulary, 15), compute_dtype(np.dtype(dtype))
    weight = rng.standard_normal((vocabulary, size)).astype(dtype)
    bias = rng.standard_normal(vocabulary).astype(compute) if biased else None
    arrays, ops = [*outputs(dtype, size), weight, bias], cpu if on is None else cuda

    def array(values: Any) -> Any:
        return values if on is None or values is None else on.asarray(values)

    if on is None:
        arrays[2] = weight.astype(compute)
    else:
        arrays[2] = np.concatenate((weight, weight), axis=1)
    inputs = JointInputs(*map(array, arrays))
    inputs = inputs._replace(weight=inputs.weight[:, :size])
    rows = samples.rows(ops, side)
    count = rows.stop - rows.start
    slopes, sums = rng.standard_normal((count, size)).astype(compute), 1 + rng.random(count)
    tangents = tuple(map(array, (slopes, rng.standard_normal(count), sums)))
    vectors = sum(column >= 0 for column in row.columns) + 2 if side else 1
    out = [
        array(np.full(shape, 7.0, t))
        for shape, t in (
            ((rows.stop, size), compute),
            ((rows.stop, vectors, size), compute),
            ((rows.stop, vectors), np.float64),
        )
    ]
    forms = Forms(*form, array(np.array([True, False, True]) & (form is TANH)), None)
    ops.write_tangents(rows, inputs, layout_of(ops, row), forms, tangents, TangentRows(*out))
    return out if on is None else [on.asnumpy(each) for each in out]


@every_dtype
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("form", [TANH, NONE], ids=["tanh", "relu"])
@pytest.mark.parametrize(
    ("transducer", "biased"), [("regular", True), ("regular", False), ("multi-blank", True)]
)
def test_tangents(gpu, transducer, biased, form, side, dtype):
    """Rows in front of the first one are left alone."""
    case = SAMPLES, side, dtype, transducer, form, biased
    ours, theirs = tangents_of(gpu, *case), tangents_of(None, *case)
    rounding = 16 * unit_roundoff(compute_dtype(np.dtype(dtype)))
    scale = abs(theirs[0]).max()
    for actual, desired, size in zip(ours, theirs, (scale, 8, 8 + 45), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=0, atol=rounding * size)
        assert (actual[:2] == 7).all()
    if side:
        assert np.isneginf(ours[2]).nonzero()[0].tolist() == [2, 6, 7]


def test_far_rows():
    width, count = 40, 8
    x = np.random.default_rng(7).standard_normal((count, width), dtype=np.float32)
    sample = table_of_samples([FAR + count], [1])
    means, hidden = np.ones((2, 1, width), np.float32), np.empty_like(x)
    frames = np.int32(0), 0, shifted(x, FAR), 0, width, 1
    run_far(
        *("references.cu", "reference_hidden<float, Identity>", FAR // 8),
        *(*sample, *frames, means, FAR + count, width, 1, shifted(hidden, FAR)),
    )
    np.testing.assert_array_equal(hidden, x + 1)
    arrays, vectors = np.empty_like(x), np.empty((count, 1, width), np.float32)
    ones, constants = np.ones(count), np.empty((count, 1))
    to = (shifted(each, FAR) for each in (arrays, vectors, constants))
    unused = None, None, 0, 0, None, *table_of(REGULAR.row(9, 0)), np.int32(1)
    of_slopes = (shifted(each, FAR) for each in (2 * x, ones, ones))
    run_far(
        *("references.cu", "write_tangents<float>", 2 * FAR // 8),
        *(*sample, *frames[:2], FAR + count, None, *frames[2:], *unused[1:]),
        *(np.zeros(1, bool), 0.0, 1.0, 0.0, *of_slopes, width, np.int32(1), *to),
    )
    done = slice(0, count // 2)  # a warp for the vector of a frame, and one for its input
    np.testing.assert_array_equal(arrays[done], x[done])
    np.testing.assert_array_equal(vectors[done, 0], 2 * x[done])
    np.testing.assert_array_equal(constants[done], 1)
    q, row = x.copy(), REGULAR.row(width, 3)
    constants, sums = np.empty((2, count))
    to = [shifted(values, FAR) for values in (q, constants, sums)]
    args = to[0], None, np.array([[3, 4]]), 1, FAR + count, width, *to[1:]
    run_far("label_softmax.cu", "label_softmax<float, 32>", FAR // 8, *args)
    for ours, theirs in zip((q, constants, sums), twin_of_softmax(x, None, row), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_there_may_be_no_rows(gpu):
    none, row = gpu.xp.empty((0, 5), np.float32), layout_of(cuda, REGULAR.row(5, 0))
    q, *others = cuda.label_softmax(LogitRows(none, None, row, None, None), none.dtype)
    assert [len(each) for each in (q, *others)] == [0, 0, 0]


@every_dtype
def test_the_same_bits_for_any_schedule(gpu, monkeypatch, dtype):
    results = []
    compute = compute_dtype(np.dtype(dtype))
    logits, bias, row = softmax_inputs(9, 2100, dtype, True)
    weight = np.ones((9, 45), dtype)
    inputs = JointInputs(*on_device(gpu, (*outputs(dtype, 45), weight)), None)
    for seed, blocks in enumerate((2**16, 1, 3)):
        if gpu.name.startswith("emulated"):
            monkeypatch.setattr(gpu.xp.kernels.options, "seed", seed)
        monkeypatch.setattr(launch, "MOST_BLOCKS", blocks)
        means, magnitudes = cuda.means(inputs, SAMPLES.of(cuda))
        sums, layout = cuda.row_sums(inputs.weight), layout_of(cuda, REGULAR.row(9, 2))
        bias_of_row = gpu.asarray(np.ones(9, compute))
        table = SAMPLES.of(cuda)
        slack = cuda.slack(table, magnitudes, sums, bias_of_row, layout, TANH, ROUNDING)
        found = [gpu.asnumpy(each) for each in (means, magnitudes, sums, *slack)]
        found += softmax(gpu, dtype, logits, bias, row)
        found += tangents_of(gpu, SAMPLES, 1, dtype, "regular", TANH, True)
        results.append([each.tobytes() for each in found])
    assert results[0] == results[1] == results[2]
