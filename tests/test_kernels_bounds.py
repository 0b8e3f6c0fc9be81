"""Bounds of log-probs on CUDA, and what they are made from, against those on NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax

from cupy_rnnt.batch import Batch
from cupy_rnnt.ops import Runs, cpu, cuda_bounds, launch
from cupy_rnnt.ops.activations import ACTIVATIONS
from cupy_rnnt.results import JointGradients
from cupy_rnnt.tangents import Magnitudes, Tangents

from .helpers import random_joint_case
from .test_kernels_rows_memory import run_far, shifted
from .tolerances import unit_roundoff

FORMS = None, *ACTIVATIONS
HIDDEN_SIZES = 1, 31, 33, 257, 640
LENGTHS = (70, 20), (1, 1), (3, 17), (64, 16), (9, 5)
FAR = 2**31 + 2**20

every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def random_inputs(rng, size, dtype, form=None, lengths=LENGTHS, spare=3):
    """Arguments of `bounds` but the last two. Some rows and cells belong to no sample."""
    frames, columns = np.array(lengths).T
    starts = [np.cumsum(counts) - counts + spare for counts in (frames, columns, frames * columns)]
    slack = rng.random(len(frames)) / 100
    runs = Runs(starts[0], frames, starts[1], columns, starts[2], slack)
    rows, prefixes = frames.sum() + 2 * spare, columns.sum() + 2 * spare
    encoder, slopes = rng.standard_normal((2, rows, size))
    predictor, vectors = rng.standard_normal((prefixes, size)), rng.normal(size=(prefixes, 3, size))
    if form is None:
        encoder, predictor = np.exp(2 * encoder), np.exp(-2 * predictor)
    vector_constants = rng.standard_normal((prefixes, 3))
    vector_constants[starts[1] + columns - 1, 1] = -np.inf
    constants = rng.standard_normal(rows)
    scale = 1 / np.sqrt(size)
    arrays = encoder, predictor, form, scale * slopes, constants, scale * vectors, vector_constants
    return [
        array.astype(dtype) if i in (0, 1, 3, 5) else array for i, array in enumerate(arrays)
    ] + [runs]


def on_host(inputs):
    cells = int((inputs[-1].cell + inputs[-1].frames * inputs[-1].columns).max())
    out = np.full((2, cells), np.nan)
    with np.errstate(all="ignore"):
        cpu.bounds(*inputs, np.empty((99, inputs[0].shape[1]), inputs[0].dtype), out)
    return out


def on_gpu(gpu, inputs):
    *arrays, runs = inputs
    out = gpu.xp.empty((2, int((runs.cell + runs.frames * runs.columns).max())))
    out[:, : runs.cell[0]] = np.nan
    arrays = [gpu.asarray(each) if isinstance(each, np.ndarray) else each for each in arrays]
    cuda_bounds.bounds(*arrays, runs, None, out)
    return gpu.asnumpy(out)


def assert_twins(gpu, inputs):
    expected, actual = on_host(inputs), on_gpu(gpu, inputs)
    e, p, form, slopes, _, vectors, *_ = [
        np.where(np.isfinite(each), abs(each), 0) if isinstance(each, np.ndarray) else each
        for each in inputs[:-1]
    ]
    largest = vectors.sum(axis=-1).max() + slopes.sum(axis=-1).max()
    hidden = max(e.max() + p.max(), 1) if form else 1
    rounding = unit_roundoff(e.dtype) * (e.shape[1] + 16)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rounding * largest * hidden)
    return actual


@every_dtype
@pytest.mark.parametrize("size", HIDDEN_SIZES)
@pytest.mark.slow
def test_hidden_sizes(gpu, size, dtype):
    found = assert_twins(gpu, random_inputs(np.random.default_rng(size), size, dtype))
    assert np.nanmin(found[0]) < np.nanmax(found[0]) <= 0


@every_dtype
@every_form
@pytest.mark.slow
def test_forms(gpu, form, dtype):
    lengths = (20, 9), (5, 2)
    assert_twins(gpu, random_inputs(np.random.default_rng(0), 36, dtype, form, lengths))


@every_dtype
def test_bounds_of_what_is_not_finite(gpu, dtype):
    inputs = random_inputs(np.random.default_rng(1), 40, dtype, lengths=[(30, 20)], spare=0)
    encoder, predictor, _, slopes, constants, vectors, vector_constants, _ = inputs
    encoder[3, 1], predictor[4, 2] = np.nan, np.nan
    slopes[5, 7], constants[6], constants[7] = np.nan, np.nan, -np.inf
    vectors[5, 0, 3], vectors[6, 1, 9], vectors[7, 2, 8] = np.nan, np.nan, np.nan
    vector_constants[8], vector_constants[9, 0], vector_constants[10, 2] = np.nan, -np.inf, -np.inf
    slopes[9, 0], vectors[11, 0, 0] = np.inf, -np.inf
    found = assert_twins(gpu, inputs).reshape(2, 30, 20)
    assert not np.isnan(found).any()
    assert not found[:, [3, 5, 6]].any()
    assert not found[:, :, [4, 5, 6, 7, 8]].any()
    assert (found[0, 10:, 9] == -np.inf).all()
    assert (found <= 0).all()


@pytest.mark.parametrize("off", [-np.inf, 0, np.inf])
def test_a_newton_step_is_as_good_as_a_division(off):
    """If the reciprocal that it starts from is off by a unit in the last place."""
    divisor = np.exp(np.random.default_rng(2).uniform(-40, 40, 10**6)).astype(np.float32)
    exact = 1 / divisor.astype(float)
    start = exact.astype(np.float32)
    if off:
        start = np.nextafter(start, np.float32(off))
    start = start.astype(float)  # which holds the products below exactly
    rest = (1 - divisor * start).astype(np.float32)
    found = (start + rest * start).astype(np.float32)
    assert np.abs(found / exact - 1).max() <= 1.001 * unit_roundoff(np.float32)


@every_dtype
@every_form
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.slow
def test_they_are_bounds(gpu, form, dtype, scale):
    """Above the exact log-probs, by the slack that is proven, and not far above all of them."""
    from cupy_rnnt.ops import cuda

    activation = form or "tanh"
    case = random_joint_case(np.random.default_rng(3), 3, 14, 9, 8, 19, scale=scale)
    case = case._replace(
        encoder_out=case.encoder_out * (30 if form == "tanh" else 1),  # beyond the exponentials
        predictor_out=0.3 * case.predictor_out,
    )
    arrays = [array.astype(dtype) for array in case[:4]]
    arrays[3][2] = -np.inf
    shape = case.encoder_out.shape[0], *(array.shape[1] for array in case[:2])
    batch = Batch(case.targets, case.logit_lengths, case.target_lengths, shape, 8, case.blank)
    inputs = JointGradients(*map(gpu.asarray, arrays))
    tangents = Tangents(
        cuda, batch, np.arange(3), inputs, activation, Magnitudes.of(cuda, batch, inputs)
    )
    tiles = [gpu.xp.empty((64, width), dtype) for width in (8, 8, 19, 19)]
    scratch = SimpleNamespace(
        rows=lambda n: [tile[:n] for tile in tiles], pre=tiles[2], hidden=tiles[3]
    )
    for side, count in enumerate(tangents.references):
        tangents.refer(side, 0, count, scratch)
    out = gpu.asarray(np.full((2, batch.cell_count), np.nan))
    for start, stop in ((0, 5), (5, tangents.references[0])):
        tangents.bound(start, stop, scratch, 0, out)
    found, exact = gpu.asnumpy(out), np.empty((2, batch.cell_count))
    encoder, predictor, weight, bias = (array.astype(float) for array in arrays)
    for b, (frames, columns) in enumerate(zip(batch.frames, batch.columns, strict=True)):
        hidden = encoder[b, :frames, None] + predictor[b, None, :columns]
        ACTIVATIONS[activation].apply(hidden, hidden)
        log_probs = log_softmax(hidden @ weight.T + bias, axis=-1)
        labels = np.append(case.targets[b, : columns - 1], 0)
        mine = slice(batch.offsets[b], batch.offsets[b + 1])
        exact[0, mine] = log_probs[..., case.blank].ravel()
        of_labels = np.take_along_axis(log_probs, np.tile(labels, (frames, 1))[..., None], 2)
        of_labels[:, -1] = -np.inf
        exact[1, mine] = of_labels.ravel()
    assert (found >= exact).all()
    finite = np.isfinite(exact)
    above = found[finite] - exact[finite]
    assert above.max() > 0
    assert np.median(above) < (0.5 if scale == 1 else 60)


@every_dtype
@pytest.mark.parametrize("form", [None, "identity"])
@pytest.mark.slow
def test_the_same_bits_for_any_schedule(gpu, monkeypatch, form, dtype):
    inputs = random_inputs(np.random.default_rng(4), 34, dtype, form, [(70, 20), (3, 17)])
    results = []
    for seed, blocks in enumerate((2**16, 1, 3)):
        if gpu.name.startswith("emulated"):
            monkeypatch.setattr(gpu.xp.kernels.options, "seed", seed)
        monkeypatch.setattr(launch, "MOST_BLOCKS", blocks)
        results.append(on_gpu(gpu, inputs).tobytes())
    assert results[0] == results[1] == results[2]


def test_far_rows_and_cells():
    lengths, tile = (20, 9), 2**24
    inputs = random_inputs(np.random.default_rng(6), 40, np.float32, None, [lengths], 0)
    encoder, predictor, _, slopes, constants, vectors, vector_constants, runs = inputs
    run = np.array([(tile, FAR, FAR, FAR, *lengths, *runs.slack)], cuda_bounds._RUN)
    out = np.full((2, 20 * 9), np.nan)
    run_far(
        "bounds.cu",
        "bounds<Quotient, float>",
        tile,
        *(tile + 1, 1, run.view("i8"), 40),
        *(shifted(values, FAR) for values in (encoder, slopes, constants)),
        *(shifted(values, FAR) for values in (predictor, vectors, vector_constants)),
        *(shifted(values, FAR) for values in out),
    )
    np.testing.assert_allclose(out, on_host(inputs), atol=1e-5)


@pytest.fixture
def softmax_inputs():
    def made(rows, width, dtype, biased):
        rng = np.random.default_rng(width)
        logits = 4 * rng.standard_normal((rows, width))
        bias = rng.standard_normal(width).astype(dtype) if biased else None
        return logits.astype(dtype), bias, int(rng.integers(width))

    return made


def assert_softmax_twins(gpu, logits, bias, blank):
    expected, actual = logits.copy(), gpu.asarray(logits)
    with np.errstate(all="ignore"):
        expected_lse = cpu.label_softmax(expected, bias, blank, np.empty_like(logits))
    biases = None if bias is None else gpu.asarray(bias)
    lse = gpu.asnumpy(cuda_bounds.label_softmax(actual, biases, blank, None))
    found = gpu.asnumpy(actual)
    rounding = 32 * unit_roundoff(logits.dtype)
    np.testing.assert_allclose(lse, expected_lse, rtol=rounding, atol=rounding)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)
    return found, lse


@every_dtype
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("width", [2, 31, 32, 33, 257, 2047, 2048, 2500])
def test_label_softmax(gpu, softmax_inputs, width, dtype, biased):
    logits, bias, blank = softmax_inputs(11, width, dtype, biased)
    found, _ = assert_softmax_twins(gpu, logits, bias, blank)
    assert not found[:, blank].any()
    sums = found.sum(axis=1, dtype=float)
    np.testing.assert_allclose(sums, 1, rtol=12 * unit_roundoff(dtype))


@every_dtype
@pytest.mark.parametrize("width", [5, 2050])
def test_label_softmax_of_what_is_not_finite_or_large(gpu, softmax_inputs, width, dtype):
    logits, bias, blank = softmax_inputs(8, width, dtype, True)
    label = (blank + 1) % width
    logits[1, label], logits[2, label], logits[3, label] = -np.inf, np.inf, np.nan
    logits[4] = -np.inf
    logits[5, blank] = np.inf
    logits[6] += dtype(1e6)
    logits[7, label] = 1e30
    assert_softmax_twins(gpu, logits, bias, blank)


@every_dtype
@pytest.mark.parametrize("width", [1, 33, 257, 640])
def test_row_dots(gpu, width, dtype):
    a, b = np.random.default_rng(width).standard_normal((2, 11, width)).astype(dtype)
    a[3, 0] = np.nan
    found = gpu.asnumpy(cuda_bounds.row_dots(gpu.asarray(a), gpu.asarray(b)))
    assert found.dtype == np.float64
    rounding = 2 * width * unit_roundoff(dtype)
    np.testing.assert_allclose(found, cpu.row_dots(a, b), rtol=0, atol=4 * rounding)


def test_far_rows():
    width, rows = 40, 8
    a, b = np.random.default_rng(7).standard_normal((2, rows, width)).astype(np.float32)
    dots, lse, q = np.empty(rows), np.empty(rows), a.copy()
    far = [shifted(values, FAR) for values in (a, b, dots, q, lse)]
    run_far("row_dots.cu", "row_dots<float>", FAR // 8, *far[:2], FAR + rows, width, far[2])
    expression, rest = "label_softmax<float, 32>", (None, 3, FAR + rows, width)
    run_far("label_softmax.cu", expression, FAR // 8, far[3], *rest, far[4])
    np.testing.assert_allclose(dots, cpu.row_dots(a, b), atol=1e-5)
    expected = a.copy()
    np.testing.assert_allclose(lse, cpu.label_softmax(expected, None, 3, a.copy()), rtol=1e-6)
    np.testing.assert_allclose(q, expected, atol=1e-6)


def test_there_may_be_no_rows(gpu):
    none = gpu.xp.empty((0, 5), np.float32)
    assert len(cuda_bounds.row_dots(none, none)) == 0
    assert len(cuda_bounds.label_softmax(none, None, 0, None)) == 0
