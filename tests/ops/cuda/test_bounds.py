"""Bounds of log-probs on CUDA against those on NumPy, and against log-probs."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupy_rnnt.batch import Batch
from cupy_rnnt.engine.tangents import Tangents
from cupy_rnnt.ops import cuda
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.cuda import bounds as cuda_bounds
from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.ops.cuda.inputs import NO_DROPOUT
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS
from cupy_rnnt.ops.types import (
    Dropout,
    Forms,
    JointInputs,
    ReferenceRows,
    TangentRows,
    compute_dtype,
)
from cupy_rnnt.reference.dropout import dropout_factors
from cupy_rnnt.tokens import Tokens
from cupy_rnnt.transducer import LABEL_COLUMN, NAMED, Row

from ...helpers import layout_of, random_joint_case, samples_of
from ...tolerances import DTYPES, unit_roundoff
from ...transducers.cases import TRANSDUCERS, Sample, tdt, transducers, width_of
from ..row_cases import table_of
from .test_rows_memory import run_far, shifted

FORMS = None, "mixed", *ACTIVATIONS
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


class Inputs(NamedTuple):
    """Arguments of `upper_bounds`, on the host."""

    frames: TangentRows
    positions: TangentRows
    row: Row
    lengths: np.ndarray  # T and S of each sample, (n, 2); no bounds of the first are computed
    forms: Forms
    base: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the bounds; some cells in front belong to the first sample."""
        return len(self.row.columns), int(self.lengths.prod(axis=1).sum()) - self.base

    def samples(self, ops: ModuleType) -> Any:
        return samples_of(ops, *self.lengths.T).run(1, len(self.lengths))


def random_inputs(rng, size, dtype, form=None, lengths=LENGTHS, spare=3, row=None):
    """With a form of None or "mixed", all or some samples of tanh take the logistic one."""
    row = row or row_of(REGULAR)
    label = len(set(row.columns) - {LABEL_COLUMN})  # behind the vectors of other scores
    frames, positions = np.array(lengths).T
    encoder, slopes = rng.standard_normal((2, frames.sum(), size))
    predictor = rng.standard_normal((positions.sum(), size))
    vectors = rng.standard_normal((len(predictor), label + 2, size))
    fits = np.full(len(lengths), form in (None, "mixed"))
    fits[1::2] &= form is None
    for outputs, counts, rate in ((encoder, frames, 2), (predictor, positions, -2)):
        outputs[:] = np.where(np.repeat(fits, counts)[:, None], np.exp(rate * outputs), outputs)
    vector_constants = rng.standard_normal((len(predictor), label + 2))
    vector_constants[positions.cumsum() - 1, label] = -np.inf
    constants = rng.standard_normal((len(encoder), 1))
    scale = 1 / np.sqrt(size)
    of_type = encoder, scale * slopes[:, None], predictor, scale * vectors
    encoder, slopes, predictor, vectors = (array.astype(dtype) for array in of_type)
    base, slack = 20, rng.random(len(lengths)) / 100
    return Inputs(
        TangentRows(encoder, slopes, constants),
        TangentRows(predictor, vectors, vector_constants),
        row,
        np.array([(base + spare, 1), *lengths]),
        Forms("tanh" if form in (None, "mixed") else form, None, fits, slack),
        base,
    )


def on_host(inputs):
    frames, positions, row, _, forms, base = inputs
    encoder = frames.inputs
    rows = ReferenceRows(inputs.samples(cpu), 0, 0, len(encoder))
    out, scratch = np.full(inputs.shape, np.nan), np.empty((99, encoder.shape[1]), encoder.dtype)
    with np.errstate(all="ignore"):
        cpu.upper_bounds(rows, frames, positions, row, forms, base, scratch, out)
    return out


def on_gpu(gpu, inputs, stops=()):
    """By one launch, or by some that take the frames up to each of `stops`."""
    frames, positions, row, _, forms, base = inputs
    frames, positions = (TangentRows(*map(gpu.asarray, rows)) for rows in (frames, positions))
    forms = forms._replace(fits=gpu.asarray(forms.fits), slack=gpu.asarray(forms.slack))
    samples, layout = inputs.samples(cuda), layout_of(cuda, row)
    out = gpu.xp.empty(inputs.shape)
    out[:, : int(inputs.lengths[0].prod()) - base] = np.nan
    for start, stop in pairwise([0, *stops, len(frames.inputs)]):
        rows = ReferenceRows(samples, 0, start, stop)
        cuda_bounds.upper_bounds(rows, frames, positions, layout, forms, base, None, out)
    return gpu.asnumpy(out)


def assert_twins(gpu, inputs):
    expected, actual = on_host(inputs), on_gpu(gpu, inputs)
    frames, positions, row, *_ = inputs
    e, slopes, p, vectors = (
        np.where(np.isfinite(each), abs(each), 0) for each in (*frames[:2], *positions[:2])
    )
    largest = vectors.sum(axis=-1).max() + slopes.sum(axis=-1).max()
    hidden = 1 if inputs.forms.fits.all() else max(e.max() + p.max(), 1)
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
    inputs.positions.vectors[2], inputs.positions.constants[3] = np.nan, -np.inf
    assert_twins(gpu, inputs)


@every_dtype
def test_bounds_of_what_is_not_finite(gpu, dtype):
    inputs = random_inputs(np.random.default_rng(1), 40, dtype, lengths=[(30, 20)], spare=0)
    encoder, slopes, constants = inputs.frames
    slopes = slopes[:, 0]
    predictor, vectors, vector_constants = inputs.positions
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


def bounds_and_scores(gpu, case, transducer, activation, dtype, dropout=None):
    """Bounds (K, cells) of the scores of a joint network, and these."""
    from cupy_rnnt.ops import cuda

    arrays = [array.astype(dtype) for array in case[:4]]
    arrays[3][2] = -np.inf
    shape, vocabulary = (len(case.targets), *(array.shape[1] for array in case[:2])), len(arrays[3])
    tokens = Tokens(vocabulary - transducer.durations)
    batch = Batch(case.targets, case.logit_lengths, case.target_lengths, shape, case.blank, tokens)
    compute, hidden_size = compute_dtype(arrays[0].dtype), arrays[2].shape[1]
    inputs = JointInputs(*map(gpu.asarray, (*arrays[:3], arrays[3].astype(compute))))
    row = transducer.row(vocabulary, case.blank)
    layout, samples = cuda.tables(row, batch.frames, batch.positions, batch.labels)
    rows = row, layout, cuda.row_sums(inputs.weight)
    tangents = Tangents(samples, inputs, activation, dropout, *rows)
    logits, pre, hidden = (
        gpu.xp.empty((64, width), compute) for width in (vocabulary, hidden_size, hidden_size)
    )
    factors = gpu.xp.empty((64, hidden_size), arrays[0].dtype)

    def rows_of(n):
        return SimpleNamespace(logits=logits[:n], pre=pre[:n], factors=factors[:n], block=None)

    scratch = SimpleNamespace(rows=rows_of, hidden=hidden)
    tangents.linearize(0, tangents.frames + tangents.positions, scratch)
    out = gpu.asarray(np.full((len(row.columns), batch.cell_count), np.nan))
    for start, stop in ((0, 5), (5, tangents.frames)):
        tangents.upper_bounds(start, stop, scratch, 0, out)
    encoder, predictor, weight, bias = (array.astype(float) for array in arrays)
    exact = []
    for b, (frames, columns) in enumerate(zip(batch.frames, batch.positions, strict=True)):
        hidden = encoder[b, :frames, None] + predictor[b, None, :columns]
        ACTIVATIONS[activation].apply(hidden, hidden)
        if dropout is not None:
            for t in range(frames):
                sizes = hidden.shape[1:]
                hidden[t] *= dropout_factors(0.3, dropout.seed, b, t, *sizes)
        labels = case.targets[b, : columns - 1].tolist()
        of_sample = Sample(hidden @ weight.T + bias, labels, transducer, case.blank).scores()
        exact.append(of_sample.reshape(len(of_sample), -1))
    return gpu.asnumpy(out), np.concatenate(exact, axis=1)


def joint_case(scale, labels=8, blank=-1, vocabulary=None):
    case = random_joint_case(
        np.random.default_rng(3), 3, 14, 9, vocabulary or labels, 19, scale=scale, blank=blank
    )
    return case._replace(predictor_out=0.3 * case.predictor_out)


every_input = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_input
@every_form
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.slow
def test_they_are_bounds(gpu, form, dtype, scale):
    """Above the exact log-probs, by the slack that is proven, and not far above all of them."""
    case = joint_case(scale, blank=7)
    beyond = {"mixed": slice(1, 2), "tanh": slice(None)}.get(form, slice(0))  # the exponentials
    encoder_out = case.encoder_out.copy()
    encoder_out[beyond] *= 30
    activation = "tanh" if form in (None, "mixed") else form
    case = case._replace(encoder_out=encoder_out)
    found, exact = bounds_and_scores(gpu, case, REGULAR, activation, dtype)
    assert (found >= exact).all()
    finite = np.isfinite(exact)
    above = found[finite] - exact[finite]
    assert above.max() > 0
    assert np.median(above) < (0.5 if scale == 1 else 60)


@every_input
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_they_are_bounds_after_dropout(gpu, activation, dtype):
    """Of logits and of more than three exact scores; references are without dropout."""
    for transducer in REGULAR, tdt((0, 1, 2, 3), 0.1):
        case = joint_case(1.0, blank=8, vocabulary=9 + transducer.durations)
        case = case._replace(targets=case.targets % 8)
        dropout = Dropout.of(0.3, 2**40 + 17)
        found, exact = bounds_and_scores(gpu, case, transducer, activation, dtype, dropout)
        assert (found >= exact).all()
        finite = np.isfinite(exact)
        assert np.median(found[finite] - exact[finite]) < 1


@every_input
@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("large", ["inputs", "weights", "biases"])
def test_they_are_bounds_of_numbers_as_large_as_can_be(gpu, activation, large, dtype):
    """Whatever overflows on the way; exact scores of such hidden vectors are finite."""
    most, case = float(ml_dtypes.finfo(dtype).max) ** 0.45, joint_case(1.0, blank=7)
    if large == "inputs":
        case = case._replace(encoder_out=most * case.encoder_out)
    elif large == "weights":
        case = case._replace(weight=most * case.weight)
    else:
        bias = most**2 * np.linspace(-1, 1, len(case.bias))
        case = case._replace(bias=bias[[3, 0, 5, 7, 1, 6, 2, 4]])
    found, exact = bounds_and_scores(gpu, case, REGULAR, activation, dtype)
    assert (found >= exact).all()
    assert (found <= 0).all()


@every_input
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
@pytest.mark.parametrize("form", ["mixed", "identity"])
@pytest.mark.slow
def test_the_same_bits_for_any_schedule(gpu, monkeypatch, form, dtype):
    """And however many launches the frames are cut into."""
    inputs = random_inputs(np.random.default_rng(4), 34, dtype, form, [(70, 20), (3, 17)])
    results = []
    for seed, (blocks, stops) in enumerate(((2**16, ()), (1, (5, 71)), (3, (64, 65)))):
        if gpu.name.startswith("emulated"):
            monkeypatch.setattr(gpu.xp.kernels.options, "seed", seed)
        monkeypatch.setattr(launch, "MOST_BLOCKS", blocks)
        results.append(on_gpu(gpu, inputs, stops).tobytes())
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("transducer", [REGULAR, tdt(range(2))], ids=["regular", "tdt"])
def test_far_rows_and_cells(transducer):
    (frames, positions), tile, row = (20, 9), 2**24, row_of(transducer)
    inputs = random_inputs(np.random.default_rng(6), 40, np.float32, None, [(20, 9)], 0, row)
    vectors, slack = inputs.positions.vectors, np.repeat(inputs.forms.slack, 2)
    before = [FAR, FAR, FAR, 1, tile, FAR, 1]
    own = [frames * positions, frames, positions, 1, 1, positions, 1]
    totals = np.cumsum([np.zeros(7, int), before, own], axis=0)
    out = np.full((len(row.columns), frames * positions), np.nan)
    of_tiles = totals, 2, 0, tile + 1, FAR, FAR + frames, np.ones(2, bool)
    width = np.int32(vectors.shape[1])
    of_frames, of_positions = (
        [shifted(values, FAR) for values in rows] for rows in (inputs.frames, inputs.positions)
    )
    table, label = table_of(row), np.int32(row.columns.index(LABEL_COLUMN))
    to = label, 0, out.shape[1], shifted(out.reshape(-1), FAR)
    if width > 3:
        group = np.int32(0), np.int32(width - 3)
        args = *of_tiles, 40, of_frames[0], *of_positions, width, *NO_DROPOUT, *group, *to
        run_far("bounds.cu", "exact_logits<Tanh, float>", tile, *args)
    args = *of_tiles, slack, 40, *of_frames, *of_positions, width, *NO_DROPOUT, *table, *to
    run_far("bounds.cu", "bounds<Tanh, float>", tile, *args)
    np.testing.assert_allclose(out, on_host(inputs), atol=1e-5)
