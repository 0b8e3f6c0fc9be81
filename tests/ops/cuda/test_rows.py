"""The operations on rows on CUDA against those on NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.ops.cuda.inputs import FUNCTORS
from cupy_rnnt.ops.numpy import activations
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS
from cupy_rnnt.ops.types import (
    Cells,
    Dropout,
    HiddenRows,
    InputSums,
    JointInputs,
    LogitRows,
    OutputSums,
    RowPosteriors,
    compute_dtype,
)

from ...devices import Device as OnHost
from ...helpers import layout_of, samples_of
from ...tolerances import unit_roundoff
from ..row_cases import (
    ALL,
    COMPUTE,
    OPERATIONS,
    REGULAR,
    Device,
    Host,
    add_input_grad,
    applied,
    cells_at,
    hidden,
    input_grad_of,
    labelled,
    reference_hidden,
    rows_of,
    slopes,
)

# Around the elements of a pack, a warp and a block, and primes; and elements behind an alignment.
WIDTHS = 1, 2, 31, 32, 33, 257, 1023, 1024, 1025, 2049
SHAPES = [*((width, 0) for width in WIDTHS), (5, 1), (32, 3), (257, 1), (1024, 1), (2048, 3)]

# Sums of some tens of terms in another order, and functions of a few units in the last place.
ROUNDINGS = 32
# Of a tanh, in units of the last place, each at most one rounding of a number below 1: CUDA's is
# off by 1 in double and 2 in float (CUDA C++ Programming Guide, "Mathematical Functions"), and
# NumPy's by no more than 2.
TANH_UNITS = 4

WIDTH = 45
ACTIVATED = {
    hidden: "hidden",
    add_input_grad: "input_grads",
    reference_hidden: "reference_hidden",
}
"""Cases, and the kernels that apply an activation in them."""

every_width = pytest.mark.parametrize("width", WIDTHS)
every_shape = pytest.mark.parametrize(("width", "offset"), SHAPES)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_compute_dtype = pytest.mark.parametrize("dtype", COMPUTE, ids=str)
every_dtype = pytest.mark.parametrize("dtype", ALL, ids=str)
every_operation = pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name, operation in OPERATIONS.items() for dtype in operation.dtypes],
    ids=str,
)


def assert_twins(actual, desired, gpu, dtype, exact=False, roundings=ROUNDINGS):
    """The same on both devices, to some roundings of the compute dtype, and to what two numbers of
    half a type leave of their sum."""
    left = unit_roundoff(dtype) ** 2 if dtype.itemsize == 2 else 0.0
    tolerance = 0 if exact else roundings * min(map(unit_roundoff, (dtype, np.float32))) + left
    for ours, theirs in zip(map(gpu.asnumpy, actual), desired, strict=True):
        assert ours.shape == theirs.shape
        theirs = theirs.astype(ours.dtype)
        scale = np.abs(theirs).max(initial=1.0, where=np.isfinite(theirs))
        np.testing.assert_allclose(
            ours.astype(float), theirs.astype(float), rtol=0, atol=tolerance * float(scale)
        )


@every_shape
@every_operation
@pytest.mark.thinned(2)
def test_it_does_what_its_twin_does(gpu, name, dtype, width, offset):
    operation = OPERATIONS[name]
    actual, desired = (
        operation.case(on, dtype, width, np.random.default_rng(width))
        for on in (Device(gpu.xp, offset), Host())
    )
    count = roundings(operation.case, dtype, "tanh", width)
    assert_twins(actual, desired, gpu, dtype, operation.exact, count)


def roundings(case, dtype, activation, seed):
    """How many, in the tests of activations.

    The derivative of gelu is ((1 - g^2) s + g + 1) / 2, with a tanh g and a polynomial s, which is
    large where x is. An error of g reaches it multiplied by 1 / 2 - g s. A hidden vector of a
    reference is rounded to its type, to either of two neighbours.
    """
    if case is reference_hidden:
        return ROUNDINGS + 2 * unit_roundoff(dtype) / unit_roundoff(compute_dtype(dtype))
    if case is not add_input_grad or activation != "gelu":
        return ROUNDINGS
    inputs = input_grad_of(dtype, WIDTH, np.random.default_rng(seed))
    x = inputs.pre()
    s = np.sqrt(2 / np.pi) * x * (1 + 3 * 0.044715 * x**2)
    terms = np.bincount(inputs.index[0] * 100 + inputs.index[2]).max()  # of a position
    return ROUNDINGS + TANH_UNITS * terms * float(np.abs((np.abs(s) + 0.5) * inputs.d_hidden).max())


def of_activations(variants):
    """Of kernels that apply an activation: their types, and the activation."""
    return {(name, variant[:2]) for name, variant in variants if name in ACTIVATED.values()}


@every_activation
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, t) for case in ACTIVATED for t in OPERATIONS[case.__name__].dtypes],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_it_knows_every_activation(gpu, launched, case, dtype, activation):
    actual, desired = (
        case(on, dtype, WIDTH, np.random.default_rng(0), activation)
        for on in (Device(gpu.xp), Host())
    )
    count = roundings(case, dtype, activation, 0)
    assert_twins(actual, desired, gpu, dtype, roundings=count)
    arguments = launch.ELEMENTS[dtype.name], FUNCTORS[activation]
    assert of_activations(launched) == {(ACTIVATED[case], arguments)}


@every_dtype
@pytest.mark.parametrize("case", [hidden, add_input_grad])
@pytest.mark.parametrize(("width", "offset"), [(1, 0), (45, 0), (64, 0), (64, 1), (260, 3)])
def test_dropout(gpu, case, dtype, width, offset):
    """Of packs that begin with any unit; dropped units are 0, not small."""
    dropout = Dropout.of(0.4, 2**62 + 12345)
    actual, desired = (
        case(on, dtype, width, np.random.default_rng(width), "relu", dropout)
        for on in (Device(gpu.xp, offset), Host())
    )
    assert_twins(actual, desired, gpu, dtype)
    for ours, theirs in zip(map(gpu.asnumpy, actual), desired, strict=True):
        np.testing.assert_array_equal(ours == 0, theirs == 0)


def test_every_activation_is_launched():
    """By the test above, of all types that are declared."""
    tested = {
        (name, (launch.ELEMENTS[dtype.name], FUNCTORS[activation]))
        for case, name in ACTIVATED.items()
        for dtype in OPERATIONS[case.__name__].dtypes
        for activation in ACTIVATIONS
    }
    declared = {(kernel.name, variant) for kernel in launch.KERNELS for variant in kernel.variants}
    assert of_activations(declared) == tested


@pytest.mark.parametrize("towards", [-np.inf, np.inf])
@every_compute_dtype
def test_gelu_may_have_a_tanh_that_is_off_by_one_unit(monkeypatch, dtype, towards):
    """As CUDA documents it: no right derivative is refused."""
    exact, gate = Host(), activations._gelu_gate
    for seed in range(20):
        monkeypatch.setattr(activations, "_gelu_gate", gate)
        desired = add_input_grad(exact, dtype, WIDTH, np.random.default_rng(seed), "gelu")
        monkeypatch.setattr(
            activations, "_gelu_gate", lambda pre: np.nextafter(gate(pre), dtype.type(towards))
        )
        actual = add_input_grad(exact, dtype, WIDTH, np.random.default_rng(seed), "gelu")
        count = roundings(add_input_grad, dtype, "gelu", seed)
        assert_twins(actual, desired, OnHost("numpy", np), dtype, roundings=count)


@every_activation
@every_compute_dtype
def test_activations_of_numbers_that_are_not_finite_or_large(gpu, dtype, activation):
    pre = np.array([np.nan, np.inf, -np.inf, 0.0, 90.0, -90.0, 1e30, -1e30], dtype)
    with np.errstate(all="ignore"):
        actual, desired = (
            [function(on, activation, pre) for function in (applied, slopes)]
            for on in (Device(gpu.xp), Host())
        )
    assert_twins(actual, desired, gpu, dtype)


@every_dtype
def test_inputs_may_have_strides(gpu, dtype):
    rng, on = np.random.default_rng(1), Device(gpu.xp)
    encoder, predictor = rng.standard_normal((3, 45, 5)), rng.standard_normal((2, 4, 45))
    encoder, predictor = encoder.astype(dtype), predictor.astype(dtype)
    index = [rng.integers(0, extent, 7) for extent in (2, 3, 4)]
    sample, frame, _ = map(on.array, index)
    cells = cells_at(on, *index, (2, 3, 4))
    compute = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    pre, out = on.empty((7, 45), compute), on.empty((7, 45), compute)
    halves = on.empty((7, 90), dtype) if dtype.itemsize == 2 else out
    # A transposed encoder, every other frame of it, and one predictor for all samples.
    frames = on.array(encoder).transpose(0, 2, 1)[:, ::2]
    prefixes = gpu.xp.broadcast_to(on.array(predictor)[:1], (3, 4, 45))
    inputs = JointInputs(frames, prefixes, None, None)
    on.ops.hidden(HiddenRows(inputs, cells, "identity", pre, halves))
    sums = encoder.transpose(0, 2, 1)[index[0], 2 * index[1]].astype(compute)
    sums += predictor[0, index[2]]
    assert_twins([halves[:, :45]], [sums], gpu, dtype, exact=True)
    on.ops.gather(frames, (sample, frame), out)
    assert_twins(
        [out], [encoder.transpose(0, 2, 1)[index[0], 2 * index[1]]], gpu, dtype, exact=True
    )
    target, rows = on.array(encoder), on.array(rng.standard_normal((3, 45)), compute)
    on.ops.scatter(rows, (on.array([0, 1, 2]), on.array([4, 2, 2])), target.transpose(0, 2, 1))
    encoder[[0, 1, 2], :, [4, 2, 2]] = gpu.asnumpy(rows).astype(dtype)
    assert_twins([target], [encoder], gpu, dtype, exact=True)


@pytest.mark.parametrize("width", [5, 1025, 2050])
@pytest.mark.parametrize("biased", [False, True])
@every_dtype
def test_rows_of_logits_that_are_not_finite_or_large(gpu, dtype, width, biased):
    rng, on = np.random.default_rng(2), Device(gpu.xp)
    compute = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    logits = rng.standard_normal((9, width)).astype(dtype)
    logits[1, ::2] = -np.inf
    logits[2] = -np.inf
    logits[3, 3], logits[4, 3] = np.nan, np.inf
    logits[5] = np.nan
    logits[6] += np.asarray(300 if dtype == np.float16 else 1e5, dtype)
    logits[7, 2], logits[8] = -300, np.finfo(compute).min if dtype == compute else -3e4
    bias, labels = np.zeros(width, compute) if biased else None, rng.integers(0, width, 9)
    # A sum of exponentials is off by parts of it, and its logarithm by as much, however small.
    scratch, rounding = np.empty((4, width), compute), ROUNDINGS * unit_roundoff(compute)
    for row in rows_of(width, rng):
        biases = None if bias is None else on.array(bias)
        rest = layout_of(on.ops, row), labelled(on, labels), None
        results = on.ops.row_scores(LogitRows(on.array(logits), biases, *rest))
        with np.errstate(all="ignore"):
            cells = labelled(Host(), labels)
            rows = LogitRows(logits.astype(compute), bias, row, cells, scratch)
            expected = cpu.row_scores(rows)
        for lse, head in zip(expected[0], row.heads, strict=True):
            if not head.zero:  # NaN on the CPU; it makes the scores NaN on both
                lse[2] = -np.inf
        for actual, desired in zip(map(gpu.asnumpy, results), expected, strict=True):
            np.testing.assert_allclose(actual, desired, rtol=rounding, atol=rounding)


@every_compute_dtype
def test_small_softmax_values_are_flushed_and_nan_stays(gpu, dtype):
    on, width = Device(gpu.xp), 11
    least = -45.0 if dtype == np.float32 else -300.0
    logits = np.linspace(1.5 * least, 0, 3 * width).reshape(3, width).astype(dtype)
    logits[1, 4], logits[2, 5] = -np.inf, np.nan
    lse, ones = np.array([0.25, 0.0, -0.25]), np.ones(3, dtype)
    row, labels = REGULAR.row(width, 1), np.array([2, 3, 4])
    given = lse[None], np.stack((ones, ones / 3)), np.array([1.0, 2.0, -1.0])
    expected, actual = logits.copy(), on.array(logits)
    cells, on_device = (labelled(side, labels, np.arange(3)) for side in (Host(), on))
    rows = LogitRows(expected, None, row, cells, np.empty((2, width), dtype))
    cpu.logits_grad(rows, RowPosteriors(*given, 0.9))
    rows = LogitRows(actual, None, layout_of(on.ops, row), on_device, None)
    on.ops.logits_grad(rows, RowPosteriors(*map(on.array, given), 0.9))
    assert_twins([actual], [expected], gpu, dtype)
    others = np.ones(logits.shape, bool)
    others[:, 1] = others[np.arange(3), labels] = False
    small = others & (logits - lse[:, None] < least)
    assert small.any()
    assert not gpu.asnumpy(actual)[small].any()
    assert np.isnan(gpu.asnumpy(actual)[2, 5])


@every_width
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_gradient_may_go_to_a_narrower_type(gpu, dtype, width):
    rng, on = np.random.default_rng(3), Device(gpu.xp, 1)
    dtype = next(each for each in ALL if each.name == dtype)
    logits = rng.standard_normal((5, width)).astype(np.float32)
    given = np.zeros((1, 5)), np.ones((2, 5), np.float32), np.ones(1)
    posteriors = RowPosteriors(*map(on.array, given), -1.0)
    row, cells = layout_of(on.ops, REGULAR.row(width, 0)), labelled(on, rng.integers(0, width, 5))
    in_place, kept, narrow = on.array(logits), on.array(logits), on.empty(logits.shape, dtype)
    on.ops.logits_grad(LogitRows(in_place, None, row, cells, None), posteriors)
    on.ops.logits_grad(LogitRows(kept, None, row, cells, None), posteriors, narrow)
    assert_twins([narrow, kept], [gpu.asnumpy(in_place), logits], gpu, dtype, exact=True)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_gradients_of_inputs_of_any_cells(gpu, data):
    """Of integers, whose sums are exact."""
    samples = data.draw(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 5)), min_size=1))
    frames, positions = np.array(samples, np.int64).T
    sizes = frames * positions
    first = sizes.cumsum() - sizes
    rng, on = np.random.default_rng(int(sizes.sum())), Device(gpu.xp)
    kept = np.flatnonzero(rng.random(sizes.sum()) < data.draw(st.sampled_from([0, 0.1, 0.9, 1])))
    sample = np.repeat(np.arange(len(sizes)), sizes)[kept]
    frame, position = np.divmod(kept - first[sample], positions[sample])
    d_hidden = rng.integers(-99, 99, (len(kept), 3)).astype(np.float32)
    expected = [rng.integers(-99, 99, (n.sum(), 3)).astype(np.float32) for n in (frames, positions)]
    sums = InputSums(*map(on.array, expected))
    for total, counts, row in zip(expected, (frames, positions), (frame, position), strict=True):
        np.add.at(total, (counts.cumsum() - counts)[sample] + row, d_hidden)
    shapes = (len(sizes), frames.max(), 3), (len(sizes), positions.max(), 3)
    inputs = JointInputs(*(on.array(np.zeros(shape, np.float32)) for shape in shapes), None, None)
    batch = samples_of(on.ops, frames, positions)
    cells = Cells(on.array(kept), batch, on.ops.coordinates)
    rows = HiddenRows(inputs, cells, "identity", on.array(d_hidden), on.array(d_hidden))
    on.ops.add_input_grad(on.array(d_hidden), rows, batch, sums)
    for actual, desired in zip(sums, expected, strict=True):
        np.testing.assert_array_equal(gpu.asnumpy(actual), desired)


@every_compute_dtype
def test_sums_of_inputs_are_written_without_their_scale(gpu, dtype):
    on, counts = Device(gpu.xp), (np.array([2, 1]), np.array([1, 2]))
    sums = InputSums(*(on.array(8.0 * np.ones((3, 5)), dtype) for _ in counts))
    gradients = [on.array(np.zeros((2, 2, 5)), dtype) for _ in counts]
    on.ops.write_input_grads(sums, samples_of(on.ops, *counts), on.array([4.0]), *gradients)
    for gradient, rows in zip(gradients, counts, strict=True):
        expected = 2.0 * (np.arange(2)[None, :, None] < rows[:, None, None]) * np.ones(5)
        np.testing.assert_array_equal(gpu.asnumpy(gradient), expected)


@every_compute_dtype
def test_there_may_be_no_rows(gpu, dtype):
    on = Device(gpu.xp)
    none, nothing = on.empty((0, 5), dtype), on.array([], np.int64)
    out = on.array(np.ones((1, 5)), dtype)
    on.ops.gather(on.array(np.ones((2, 5)), dtype), (nothing,), none)
    row, empty = layout_of(on.ops, REGULAR.row(5, 0)), [on.empty((n, 0), dtype) for n in (1, 2)]
    no_rows = LogitRows(none, None, row, labelled(on, np.zeros(0, np.int64)), None)
    posteriors = RowPosteriors(*empty, on.array(np.ones(2)), -1.0)
    on.ops.logits_grad(no_rows, posteriors, none, nothing, OutputSums(None, out, None))
    scores = on.ops.row_scores(no_rows)
    assert [each.shape for each in scores] == [(1, 0), (2, 0)]
    np.testing.assert_array_equal(gpu.asnumpy(out), np.ones((1, 5), dtype))
