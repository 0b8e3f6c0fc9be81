"""Bounds of log-probs on CUDA, and what they are made from, against those on NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupy_rnnt.batch import Batch
from cupy_rnnt.engine.tangents import Magnitudes, Tangents
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.cuda import bounds as cuda_bounds
from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.ops.cuda import rows as cuda_rows
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS
from cupy_rnnt.ops.types import FrameTangents, JointInputs, LogitRows, PositionTangents, Runs
from cupy_rnnt.transducer import LABEL_COLUMN, NAMED

from ...helpers import random_joint_case
from ...tolerances import unit_roundoff
from ...transducers.cases import TRANSDUCERS, Sample, tdt, transducers, width_of
from ..row_cases import table_of
from .test_rows_memory import run_far, shifted

FORMS = None, *ACTIVATIONS
HIDDEN_SIZES = 1, 31, 33, 257, 640
LENGTHS = (70, 20), (1, 1), (3, 17), (64, 16), (9, 5)
FAR = 2**31 + 2**20

REGULAR = NAMED["regular"]
SEVERAL = {**TRANSDUCERS, "tdt of eight durations": tdt(range(8))}

every_form = pytest.mark.parametrize("form", FORMS)
every_transducer = pytest.mark.parametrize("transducer", SEVERAL.values(), ids=SEVERAL)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
random_rows = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def row_of(transducer, normalised=False):
    """With the blank behind some labels and in front of others."""
    return transducer.row(width_of(transducer, 9), 6, normalised)


def random_inputs(rng, size, dtype, form=None, lengths=LENGTHS, spare=3, row=None):
    """Arguments of `bounds` but the last one. Some rows and cells belong to no sample."""
    row = row or row_of(REGULAR)
    label = len(set(row.columns) - {LABEL_COLUMN})  # behind the vectors of other scores
    frames, columns = np.array(lengths).T
    starts = [np.cumsum(counts) - counts + spare for counts in (frames, columns, frames * columns)]
    slack = rng.random(len(frames)) / 100
    runs = Runs(starts[0], frames, starts[1], columns, starts[2], slack)
    rows, prefixes = frames.sum() + 2 * spare, columns.sum() + 2 * spare
    encoder, slopes = rng.standard_normal((2, rows, size))
    predictor = rng.standard_normal((prefixes, size))
    vectors = rng.standard_normal((prefixes, label + 2, size))
    if form is None:
        encoder, predictor = np.exp(2 * encoder), np.exp(-2 * predictor)
    vector_constants = rng.standard_normal((prefixes, label + 2))
    vector_constants[starts[1] + columns - 1, label] = -np.inf
    constants = rng.standard_normal(rows)
    scale = 1 / np.sqrt(size)
    of_type = encoder, predictor, scale * slopes, scale * vectors
    encoder, predictor, slopes, vectors = (array.astype(dtype) for array in of_type)
    frames = FrameTangents(encoder, slopes, constants, form, None)
    return frames, PositionTangents(predictor, vectors, vector_constants), row, runs


def shape_of_bounds(row, runs):
    return len(row.columns), int((runs.cell + runs.frames * runs.positions).max())


def on_host(inputs):
    frames, positions, row, runs = inputs
    frames = frames._replace(scratch=np.empty((99, frames.encoder.shape[1]), frames.encoder.dtype))
    out = np.full(shape_of_bounds(row, runs), np.nan)
    with np.errstate(all="ignore"):
        cpu.upper_bounds(frames, positions, row, runs, out)
    return out


def on_gpu(gpu, inputs):
    frames, positions, row, runs = inputs
    frames = FrameTangents(*map(gpu.asarray, frames[:3]), frames.activation, None)
    positions = PositionTangents(*map(gpu.asarray, positions))
    out = gpu.xp.empty(shape_of_bounds(row, runs))
    out[:, : runs.cell[0]] = np.nan
    cuda_bounds.upper_bounds(frames, positions, cuda_rows.device_row(row), runs, out)
    return gpu.asnumpy(out)


def assert_twins(gpu, inputs):
    expected, actual = on_host(inputs), on_gpu(gpu, inputs)
    frames, positions, row, _ = inputs
    e, slopes, p, vectors = (
        np.where(np.isfinite(each), abs(each), 0) for each in (*frames[:2], *positions[:2])
    )
    largest = vectors.sum(axis=-1).max() + slopes.sum(axis=-1).max()
    hidden = max(e.max() + p.max(), 1) if frames.activation else 1
    dots = 1 + max(map(len, row.charged))  # of which a bound is made
    rounding = unit_roundoff(e.dtype) * (e.shape[1] + 16) * dots / 2
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
@every_transducer
def test_transducers(gpu, transducer, dtype):
    """Also of logits that are under no head."""
    for normalised in False, True:
        row = row_of(transducer, normalised)
        found = assert_twins(
            gpu, random_inputs(np.random.default_rng(8), 36, dtype, None, [(20, 9), (5, 2)], 3, row)
        )
        limits = -np.array(row.shifts)[:, None]
        written = found[:, 3:]
        assert (written <= limits).all()
        assert (written.min(axis=1, where=written > -np.inf, initial=0) < limits[:, 0]).all()


@random_rows
@given(transducer=transducers(), form=st.sampled_from([None, "relu"]))
def test_transducers_that_nobody_has_invented(gpu, transducer, form):
    lengths, row = [(3, 4), (1, 2)], row_of(transducer)
    inputs = random_inputs(np.random.default_rng(9), 5, np.float64, form, lengths, 0, row)
    inputs[1].vectors[2], inputs[1].constants[3] = np.nan, -np.inf
    assert_twins(gpu, inputs)


@every_dtype
def test_bounds_of_what_is_not_finite(gpu, dtype):
    inputs = random_inputs(np.random.default_rng(1), 40, dtype, lengths=[(30, 20)], spare=0)
    encoder, slopes, constants, *_ = inputs[0]
    predictor, vectors, vector_constants = inputs[1]
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


def bounds_and_scores(gpu, case, transducer, activation, dtype):
    """Bounds (K, cells) of the scores of a joint network, and these."""
    from cupy_rnnt.ops import cuda

    arrays = [array.astype(dtype) for array in case[:4]]
    arrays[3][2] = -np.inf
    shape, vocabulary = (len(case.targets), *(array.shape[1] for array in case[:2])), len(arrays[3])
    tokens = vocabulary - transducer.durations
    batch = Batch(case.targets, case.logit_lengths, case.target_lengths, shape, tokens, case.blank)
    inputs, row = JointInputs(*map(gpu.asarray, arrays)), transducer.row(vocabulary, case.blank)
    rows, magnitudes = (row, cuda.device_row(row)), Magnitudes.of(cuda, batch, inputs)
    tangents = Tangents(cuda, batch, np.arange(3), inputs, activation, *rows, magnitudes)
    widths = vocabulary, vocabulary, *[arrays[2].shape[1]] * 2
    tiles = [gpu.xp.empty((64, width), dtype) for width in widths]
    scratch = SimpleNamespace(
        rows=lambda n: [tile[:n] for tile in tiles], pre=tiles[2], hidden=tiles[3]
    )
    for side, count in enumerate(tangents.references):
        tangents.linearize(side, 0, count, scratch)
    out = gpu.asarray(np.full((len(row.columns), batch.cell_count), np.nan))
    for start, stop in ((0, 5), (5, tangents.references[0])):
        tangents.upper_bounds(start, stop, scratch, 0, out)
    encoder, predictor, weight, bias = (array.astype(float) for array in arrays)
    exact = []
    for b, (frames, columns) in enumerate(zip(batch.frames, batch.positions, strict=True)):
        hidden = encoder[b, :frames, None] + predictor[b, None, :columns]
        ACTIVATIONS[activation].apply(hidden, hidden)
        labels = case.targets[b, : columns - 1].tolist()
        of_sample = Sample(hidden @ weight.T + bias, labels, transducer, case.blank).scores()
        exact.append(of_sample.reshape(len(of_sample), -1))
    return gpu.asnumpy(out), np.concatenate(exact, axis=1)


def joint_case(scale, labels=8, blank=-1, vocabulary=None):
    case = random_joint_case(
        np.random.default_rng(3), 3, 14, 9, vocabulary or labels, 19, scale=scale, blank=blank
    )
    return case._replace(predictor_out=0.3 * case.predictor_out)


@every_dtype
@every_form
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.slow
def test_they_are_bounds(gpu, form, dtype, scale):
    """Above the exact log-probs, by the slack that is proven, and not far above all of them."""
    case = joint_case(scale, blank=7)
    if form == "tanh":  # beyond the exponentials
        case = case._replace(encoder_out=30 * case.encoder_out)
    found, exact = bounds_and_scores(gpu, case, REGULAR, form or "tanh", dtype)
    assert (found >= exact).all()
    finite = np.isfinite(exact)
    above = found[finite] - exact[finite]
    assert above.max() > 0
    assert np.median(above) < (0.5 if scale == 1 else 60)


@every_dtype
@every_transducer
def test_they_are_bounds_for_every_transducer(gpu, transducer, dtype):
    vocabulary = width_of(transducer, 8)
    tokens = vocabulary - transducer.durations
    case = joint_case(1.0, blank=tokens - 1, vocabulary=vocabulary)
    rng = np.random.default_rng(5)
    case = case._replace(targets=rng.integers(0, 8, case.targets.shape))
    found, exact = bounds_and_scores(gpu, case, transducer, "tanh", dtype)
    assert (found >= exact).all()
    for bound, score in zip(found, exact, strict=True):
        finite = np.isfinite(score)
        assert np.median(bound[finite] - score[finite]) < 0.5


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


@pytest.mark.parametrize("transducer", [REGULAR, tdt(range(2))], ids=["regular", "tdt"])
def test_far_rows_and_cells(transducer):
    lengths, tile, row = (20, 9), 2**24, row_of(transducer)
    inputs = random_inputs(np.random.default_rng(6), 40, np.float32, None, [lengths], 0, row)
    frames, positions, _, runs = inputs
    vectors = positions.vectors
    run = np.array([(tile, FAR, FAR, FAR, *lengths, *runs.slack)], cuda_bounds._RUN)
    out = np.full((len(row.columns), 20 * 9), np.nan)
    of_tiles, width = (tile + 1, 1, run.view("i8"), 40), np.int32(vectors.shape[1])
    of_frames = [shifted(values, FAR) for values in frames[:3]]
    of_prefixes = [shifted(values, FAR) for values in positions]
    table, label = table_of(row), np.int32(row.columns.index(LABEL_COLUMN))
    to = label, out.shape[1], shifted(out.reshape(-1), FAR)
    if width > 3:
        group = np.int32(0), np.int32(width - 3)
        args = *of_tiles, of_frames[0], *of_prefixes, width, *group, *to
        run_far("bounds.cu", "exact_logits<Quotient, float>", tile, *args)
    args = *of_tiles, *of_frames, *of_prefixes, width, *table, *to
    run_far("bounds.cu", "bounds<Quotient, float>", tile, *args)
    np.testing.assert_allclose(out, on_host(inputs), atol=1e-5)


@pytest.fixture
def softmax_inputs():
    def made(rows, width, dtype, biased):
        rng = np.random.default_rng(width)
        logits = 4 * rng.standard_normal((rows, width))
        bias = rng.standard_normal(width).astype(dtype) if biased else None
        return logits.astype(dtype), bias, REGULAR.row(width, int(rng.integers(width)))

    return made


def assert_softmax_twins(gpu, logits, bias, row):
    expected, actual = logits.copy(), gpu.asarray(logits)
    with np.errstate(all="ignore"):
        rows = LogitRows(expected, bias, row, None, np.empty_like(logits))
        expected_lse = cpu.label_softmax(rows)
    biases = None if bias is None else gpu.asarray(bias)
    rows = LogitRows(actual, biases, cuda_rows.device_row(row), None, None)
    lse = gpu.asnumpy(cuda_bounds.label_softmax(rows))
    found = gpu.asnumpy(actual)
    rounding = 32 * unit_roundoff(logits.dtype)
    np.testing.assert_allclose(lse, expected_lse, rtol=rounding, atol=rounding)
    others = np.r_[tuple(slice(*bounds) for bounds in row.others)]
    assert not found[:, others].any()
    labels = np.delete(np.arange(row.width), others)
    np.testing.assert_allclose(found[:, labels], expected[:, labels], rtol=0, atol=rounding)
    return found, lse


@every_dtype
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("width", [2, 31, 32, 33, 257, 2047, 2048, 2500])
def test_label_softmax(gpu, softmax_inputs, width, dtype, biased):
    logits, bias, row = softmax_inputs(11, width, dtype, biased)
    found, _ = assert_softmax_twins(gpu, logits, bias, row)
    assert not found[:, row.columns[0]].any()
    sums = found.sum(axis=1, dtype=float)
    np.testing.assert_allclose(sums, 1, rtol=12 * unit_roundoff(dtype))


@every_dtype
@pytest.mark.parametrize("width", [60, 2500])
def test_label_softmax_between_blanks_and_durations(gpu, softmax_inputs, width, dtype):
    logits, bias, _ = softmax_inputs(5, width, dtype, True)
    several = TRANSDUCERS["tdt"].row(width, 40), TRANSDUCERS["multi-blank"].row(width, 2)
    for row, others in zip(several, ([40, -3, -2, -1], [0, 1, 2]), strict=True):
        found, _ = assert_softmax_twins(gpu, logits, bias, row)
        assert not found[:, others].any()
        assert (np.delete(found, others, axis=1) > 0).all()


@every_dtype
@pytest.mark.parametrize("width", [5, 2050])
def test_label_softmax_of_what_is_not_finite_or_large(gpu, softmax_inputs, width, dtype):
    logits, bias, row = softmax_inputs(8, width, dtype, True)
    blank = row.columns[0]
    label = (blank + 1) % width
    logits[1, label], logits[2, label], logits[3, label] = -np.inf, np.inf, np.nan
    logits[4] = -np.inf
    logits[5, blank] = np.inf
    logits[6] += dtype(1e6)
    logits[7, label] = 1e30
    assert_softmax_twins(gpu, logits, bias, row)


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
    expression, others = "label_softmax<float, 32>", np.array([[3, 4]])
    rest = None, others, len(others), FAR + rows, width
    run_far("label_softmax.cu", expression, FAR // 8, far[3], *rest, far[4])
    np.testing.assert_allclose(dots, cpu.row_dots(a, b), atol=1e-5)
    expected, row = a.copy(), REGULAR.row(width, 3)
    on_cpu = LogitRows(expected, None, row, None, a.copy())
    np.testing.assert_allclose(lse, cpu.label_softmax(on_cpu), rtol=1e-6)
    np.testing.assert_allclose(q, expected, atol=1e-6)


def test_there_may_be_no_rows(gpu):
    none = gpu.xp.empty((0, 5), np.float32)
    assert len(cuda_bounds.row_dots(none, none)) == 0
    row = cuda_rows.device_row(REGULAR.row(5, 0))
    assert len(cuda_bounds.label_softmax(LogitRows(none, None, row, None, None))) == 0
