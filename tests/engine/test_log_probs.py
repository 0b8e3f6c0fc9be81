"""Scores of all cells, and the gradient of any function of them."""

import numpy as np
import pytest
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import cupy_rnnt
from cupy_rnnt import reference
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS
from cupy_rnnt.ops.types import compute_dtype
from cupy_rnnt.topology import LABEL

from ..device_calls import (
    allocated,
    examples,
    joint_rnnt_log_probs,
    joint_rnnt_log_probs_grad,
    operations,
    to_device,
)
from ..helpers import least_budget, random_joint_case
from ..reference.cases import EXACT
from ..tolerances import (
    DTYPES,
    assert_costs_close,
    assert_gradients_close,
    gradient_tolerance,
    unit_roundoff,
)
from ..transducers.cases import TRANSDUCERS, transducers
from ..transducers.test_transducers import Joint
from .test_workspace import left_to_the_collector

MiB = 2**20
GRADIENT = {"rtol": 1e-10, "atol": 1e-11}
EXTENTS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3)


def with_nan_padding(joint):
    """Arguments whose padding holds NaN, as do the scores' gradients beside those of the cells."""
    encoder_out, predictor_out, *rest = joint.arguments
    encoder_out, predictor_out = encoder_out.copy(), predictor_out.copy()
    for b, sample in enumerate(joint.samples):
        t, s, _ = sample.logits.shape
        encoder_out[b, t:] = predictor_out[b, s:] = np.nan
    return encoder_out, predictor_out, *rest


def expected_scores(joint):
    """From the definition of every score; 0 where there is none."""
    size, frames, _ = joint.inputs[0].shape
    kinds = joint.samples[0].transducer.topology.scores
    padded = np.zeros((size, frames, joint.inputs[1].shape[1], len(kinds)))
    for b, sample in enumerate(joint.samples):
        scores = sample.scores()
        if LABEL in kinds:
            scores[kinds.index(LABEL), :, -1] = 0
        _, t, s = scores.shape
        padded[b, :t, :s] = np.moveaxis(scores, 0, -1)
    return padded


def random_upstream(joint, rng, zeros=0.3):
    """A gradient of the scores: some rows are 0, and what is no score is NaN."""
    kinds = joint.samples[0].transducer.topology.scores
    size, frames, _ = joint.inputs[0].shape
    grad = np.full((size, frames, joint.inputs[1].shape[1], len(kinds)), np.nan)
    for b, sample in enumerate(joint.samples):
        t, s, _ = sample.logits.shape
        grad[b, :t, :s] = rng.normal(size=(t, s, len(kinds))) * (rng.random((t, s, 1)) >= zeros)
        if LABEL in kinds:
            grad[b, :t, s - 1, kinds.index(LABEL)] = np.nan
    return grad


def expected_gradients(joint, grad):
    """By the derivative of each score, and the chain rule."""
    encoder_out, predictor_out, weight, bias = map(np.zeros_like, joint.inputs)
    for b, (sample, hidden) in enumerate(zip(joint.samples, joint.hidden, strict=True)):
        d_logits = np.zeros_like(sample.logits)
        for t, u in np.ndindex(*d_logits.shape[:2]):
            for score, upstream in zip(
                sample.transducer.topology.scores, grad[b, t, u], strict=True
            ):
                if score != LABEL or u < len(sample.labels):
                    d_logits[t, u] += upstream * sample.score(score, t, u)[1]
        weight += np.einsum("tuv,tuh->vh", d_logits, hidden)
        bias += d_logits.sum(axis=(0, 1))
        d_sum = (d_logits @ joint.inputs[2]) * (1 - hidden**2)
        encoder_out[b, : len(hidden)] = d_sum.sum(axis=1)
        predictor_out[b, : hidden.shape[1]] = d_sum.sum(axis=0)
    return encoder_out, predictor_out, weight, bias


def check_against_definitions(joint, options, rng):
    arguments = with_nan_padding(joint)
    found = joint_rnnt_log_probs(*arguments, **options)
    np.testing.assert_allclose(found, expected_scores(joint), **EXACT)
    grad = random_upstream(joint, rng)
    gradients = joint_rnnt_log_probs_grad(*arguments, grad=grad, **options)
    for one, other in zip(gradients, expected_gradients(joint, grad), strict=True):
        np.testing.assert_allclose(one, other, **GRADIENT)


@examples(
    100,
    2,
    transducer=transducers(),
    extents=EXTENTS,
    scale=st.sampled_from([0.3, 1.0, 4.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_transducer(device, transducer, extents, scale, seed):
    joint = Joint(transducer, extents, seed, scale)
    check_against_definitions(joint, {"transducer": transducer}, np.random.default_rng(seed))


@pytest.mark.parametrize("name", TRANSDUCERS)
@pytest.mark.thinned(2)
def test_named_transducers(device, name):
    joint = Joint(TRANSDUCERS[name], [(9, 3), (5, 6), (1, 0)], 1)
    options = {"transducer": TRANSDUCERS[name]}
    check_against_definitions(joint, options, np.random.default_rng(2))


@examples(30, 2, transducer=transducers(), seed=st.integers(0, 2**32 - 1))
def test_gradients_are_those_of_finite_differences(device, transducer, seed):
    """Of a function that is not linear in the scores."""
    rng = np.random.default_rng(seed)
    joint = Joint(transducer, [(4, 2), (3, 3)], seed)
    factors = rng.normal(size=expected_scores(joint).shape)
    directions = [rng.normal(size=array.shape) for array in joint.inputs]

    def scores(step):
        moved = (x + step * d for x, d in zip(joint.inputs, directions, strict=True))
        return joint_rnnt_log_probs(*moved, *joint.arguments[4:], transducer=transducer)

    ahead, back = ((factors * np.sin(scores(step))).sum() for step in (1e-5, -1e-5))
    gradients = joint_rnnt_log_probs_grad(
        *joint.arguments, transducer=transducer, grad=factors * np.cos(scores(0))
    )
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose((ahead - back) / 2e-5, slope, rtol=1e-6, atol=1e-6)


# The loss from its scores


def of_loss(scores, case):
    """Costs, and their gradient by the scores, from the textbook's recursions."""
    costs, grad = [], np.full(scores.shape, np.nan, scores.dtype)
    for b, (t, u) in enumerate(zip(case.logit_lengths, case.target_lengths, strict=True)):
        of_sample = np.moveaxis(scores[b, :t, : u + 1], -1, 0).astype(np.float64)
        of_sample[1, :, u] = -np.inf
        occupancies, log_prob = reference.occupancies(of_sample)
        costs.append(-log_prob)
        grad[b, :t, : u + 1] = -np.moveaxis(occupancies, 0, -1)
    return costs, grad


SHAPES = {
    "size": st.integers(1, 4),
    "frames": st.integers(1, 12),
    "labels": st.integers(0, 9),
    "vocabulary": st.integers(1, 40),
    "hidden": st.integers(1, 9) | st.just(131),
}


@examples(
    100,
    2,
    shape=st.fixed_dictionaries(SHAPES),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(list(ACTIVATIONS)),
    dropout=st.sampled_from([0.0, 0.3]),
    bias=st.booleans(),
    spare_bytes=st.sampled_from([0, 2000, 20000, 10**9]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_loss_rebuilt(
    device, shape, dtype, activation, dropout, bias, spare_bytes, threads, seed
):
    if shape["vocabulary"] == 1:
        shape["labels"] = 0  # only the blank
    case = random_joint_case(np.random.default_rng(seed), **shape, dtype=dtype, bias=bias)
    options = {"activation": activation, "dropout": dropout, "seed": seed}
    expected = reference.joint_rnnt_loss_and_grad(*case, **options, reduction="none")
    with threadpool_limits(threads):
        budget = least_budget(joint_rnnt_log_probs, *case, **options) + spare_bytes
        scores = joint_rnnt_log_probs(*case, **options, max_workspace_bytes=budget)
        costs, grad = of_loss(scores, case)
        options["grad"] = grad
        budget = least_budget(joint_rnnt_log_probs_grad, *case, **options) + spare_bytes
        gradients = joint_rnnt_log_probs_grad(*case, **options, max_workspace_bytes=budget)
    assert scores.dtype == compute_dtype(dtype)
    assert_costs_close(costs, expected[0], dtype, case.length, shape["hidden"])
    assert_gradients_close(gradients, expected[1], dtype, case.length)
    assert [g.dtype for g in gradients if g is not None] == [dtype] * (4 if bias else 3)


def plain_case(dtype=np.float64, shape=(3, 9, 4, 12, 10)):
    case = random_joint_case(np.random.default_rng(0), *shape, dtype=dtype)
    grad = np.random.default_rng(1).normal(size=(shape[0], shape[1], shape[2] + 1, 2))
    return case, grad.astype(compute_dtype(dtype))


def check_size(dtype, exponent):
    """Gradients are linear in the gradient of the scores."""
    case, grad = plain_case(dtype)
    grad = np.ldexp(grad, exponent)
    found = joint_rnnt_log_probs_grad(*case, grad=grad)
    wide = (x.astype(np.float64) for x in case[:4])
    expected = joint_rnnt_log_probs_grad(*wide, *case[4:], grad=grad.astype(np.float64))
    least = np.finfo(dtype).smallest_subnormal
    for one, other in zip(found, expected, strict=True):
        atol = gradient_tolerance(dtype, case.length) * abs(other).max() + least
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)
        assert one.any()


@pytest.mark.parametrize("exponent", [-100, -30, 0, 30, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_any_size(device, dtype, exponent):
    check_size(dtype, exponent)


def test_gradients_that_are_denormal_numbers():
    check_size(np.float32, -140)


def test_elements_far_below_the_largest_count_for_their_sample(device):
    case, grad = plain_case(np.float32)
    expected = joint_rnnt_log_probs_grad(*case, grad=grad)
    grad[1:] *= np.float32(2.0**-40)
    found = joint_rnnt_log_probs_grad(*case, grad=grad)
    for one, other in zip(found[:2], expected[:2], strict=True):
        bound = gradient_tolerance(np.float32, case.length) * abs(other[1:]).max()
        np.testing.assert_allclose(one[1:] * 2.0**40, other[1:], rtol=0, atol=bound)


def test_half_gradients_do_not_overflow_before_the_end(device):
    """The products of the two factors of half types would be infinite."""
    for dtype in DTYPES[2:]:
        case, grad = plain_case(dtype)
        found = joint_rnnt_log_probs_grad(*case, grad=grad * np.float32(2.0**14))
        expected = joint_rnnt_log_probs_grad(*case, grad=grad)
        for one, other in zip(found, expected, strict=True):
            one, other = one.astype(np.float64) * 2.0**-14, other.astype(np.float64)
            fits = np.isfinite(one)
            np.testing.assert_allclose(
                one[fits], other[fits], rtol=2 * unit_roundoff(dtype), atol=1e-4
            )


# Numbers that are not finite


def test_cells_without_a_gradient_are_not_read(device):
    case, grad = plain_case()
    spoilt = case.encoder_out.copy()
    spoilt[0, 2] = np.nan
    grad[0, 2] = 0
    gradients = joint_rnnt_log_probs_grad(*case._replace(encoder_out=spoilt), grad=grad)
    expected = joint_rnnt_log_probs_grad(*case, grad=grad)
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, **EXACT)


def test_nan_in_a_gradient_stays_with_its_cell(device):
    case, grad = plain_case()
    expected = joint_rnnt_log_probs_grad(*case, grad=grad)
    grad[0, 2, 1, 0] = np.nan
    found = joint_rnnt_log_probs_grad(*case, grad=grad)
    assert np.isnan(found.encoder_out[0, 2]).all()
    assert np.isnan(found.predictor_out[0, 1]).all()
    for one, other in zip(found[:2], expected[:2], strict=True):
        spoilt = np.isnan(one).any(axis=-1)
        assert spoilt.sum() == 1
        np.testing.assert_allclose(one[~spoilt], other[~spoilt], **GRADIENT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_in_an_input_stays_with_its_cells(device, dtype):
    """If their scores have a gradient."""
    case, grad = plain_case(dtype)
    expected = joint_rnnt_log_probs_grad(*case, grad=grad)
    spoilt = case.encoder_out.copy()
    spoilt[0, 2] = np.nan
    found = joint_rnnt_log_probs_grad(*case._replace(encoder_out=spoilt), grad=grad)
    assert np.isnan(found.encoder_out[0, 2]).all()
    found.encoder_out[0, 2] = expected.encoder_out[0, 2]
    assert_gradients_close(
        (*(x[1:] for x in found[:2]), None, None),
        cupy_rnnt.JointGradients(*(x[1:] for x in expected[:2]), None, None),
        dtype,
        case.length,
    )
    np.testing.assert_allclose(found.encoder_out[0], expected.encoder_out[0], rtol=1e-4, atol=1e-4)
    assert np.isnan(found.weight).all()


def test_scores_that_are_not_finite(device):
    """A masked symbol has the log-probability -inf, and NaN stays in its cell."""
    case, _ = plain_case()
    bias, encoder_out = case.bias.copy(), case.encoder_out.copy()
    label = case.targets[0, 0]
    bias[label], encoder_out[1, 0] = -np.inf, np.nan
    case = case._replace(bias=bias, encoder_out=encoder_out)
    scores = joint_rnnt_log_probs(*case)
    frames, positions = case.logit_lengths[0], case.target_lengths[0]
    masked = case.targets[0, :positions] == label
    assert (scores[0, :frames, :positions, 1][:, masked] == -np.inf).all()
    assert np.isnan(scores[1, 0, : case.target_lengths[1] + 1, 0]).all()
    assert np.isfinite(scores[..., 0]).sum() == scores[..., 0].size - case.target_lengths[1] - 1


def test_no_gradient(device):
    case, grad = plain_case()
    gradients = joint_rnnt_log_probs_grad(*case, grad=np.zeros_like(grad))
    assert not any(gradient.any() for gradient in gradients)


# Workspace, order, progress


def peak_beyond_results(function, *args, **kwargs):
    args, kwargs = to_device(args), {name: to_device(value) for name, value in kwargs.items()}
    if operations() is cpu:
        function(*args, **kwargs)  # caches, imports
    with allocated() as peak:
        result = function(*args, **kwargs)
    arrays = result if isinstance(result, tuple) else (result,)
    return peak.bytes - sum(peak.size(array.nbytes) for array in arrays)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spare", [0, MiB // 4, 100 * MiB])
@pytest.mark.parametrize("shape", [(1, 50, 20, 70, 40), (12, 9, 4, 2000, 20), (3, 9, 60, 30, 8)])
@pytest.mark.thinned(9)
def test_calls_stay_within_their_budget(device, shape, spare, threads):
    if device.name != "numpy":
        size, frames, labels, *widths = shape
        shape = min(size, 4), frames // 8 + 2, labels // 8 + 2, *widths
    case, grad = plain_case(np.float32, shape)
    with threadpool_limits(threads):
        for function, options in (
            (cupy_rnnt.joint_rnnt_log_probs, {}),
            (cupy_rnnt.joint_rnnt_log_probs_grad, {"grad": grad}),
        ):
            moved = to_device(case), {name: to_device(value) for name, value in options.items()}
            budget = least_budget(function, *moved[0], **moved[1]) + spare
            peak = peak_beyond_results(function, *case, **options, max_workspace_bytes=budget)
            assert peak <= budget


def test_the_workspace_does_not_grow_with_the_lattice():
    """Only by vectors of length H for the frames and positions of a sample, and by its lengths."""

    def least(shape):
        case, grad = plain_case(np.float32, shape)
        return [
            least_budget(joint_rnnt_log_probs, *case),
            least_budget(joint_rnnt_log_probs_grad, *case, grad=grad),
        ]

    small, large = least((2, 20, 10, 50, 8)), least((4, 200, 100, 50, 8))
    cells = 4 * 200 * 101
    growth = 4 * 8 * (180 + 90), 4 * 8 * (180 + 90) + 2 * (1024 + 160) + 3 * 8 * 4 * 101
    assert large[0] - small[0] <= growth[1] < cells
    assert large[1] - small[1] <= growth[0] + growth[1] < cells


def test_the_same_bits_in_every_run(device):
    shape = (3, 60, 20, 40, 30) if device.name == "numpy" else (3, 9, 4, 12, 10)
    case, grad = plain_case(np.float32, shape)
    with threadpool_limits(2):
        runs = [
            (joint_rnnt_log_probs(*case), *joint_rnnt_log_probs_grad(*case, grad=grad))
            for _ in range(3)
        ]
    for run in runs[1:]:
        for one, other in zip(run, runs[0], strict=True):
            assert one.tobytes() == other.tobytes()


def test_progress(device):
    case, grad = plain_case()
    cells = int((case.logit_lengths * (case.target_lengths + 1)).sum())
    for function, options in (
        (joint_rnnt_log_probs, {}),
        (joint_rnnt_log_probs_grad, {"grad": grad}),
    ):
        calls = []
        function(*case, **options, progress=lambda *call: calls.append(call))  # noqa: B023
        done = [count for count, _ in calls]
        assert done == sorted(done)
        assert calls[-1] == (cells, cells)
        assert {total for _, total in calls} == {cells}


@pytest.mark.usefixtures("collector")
def test_buffers_end_with_the_call(device):
    case, grad = plain_case(np.float32)

    def grad_of(*arguments):
        return joint_rnnt_log_probs_grad(*arguments, grad=grad)

    for function in joint_rnnt_log_probs, grad_of:
        assert not left_to_the_collector(function, *case)


def test_strided_gradients(device):
    case, grad = plain_case()
    expected = joint_rnnt_log_probs_grad(*case, grad=grad)
    for same in np.asfortranarray(grad), np.repeat(grad, 2, axis=-1)[..., ::2]:
        found = joint_rnnt_log_probs_grad(*case, grad=same)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


# Bad input


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ValueError, "but (B, T, U + 1, K) is needed", lambda grad: grad[0]),
        (ValueError, "but (3, 9, 5, 2) is needed", lambda grad: grad[:, :-1]),
        (ValueError, "but (3, 9, 5, 2) is needed", lambda grad: grad[..., :1]),
        (TypeError, "float32, but float64 is needed, as of the scores", np.float32),
        (TypeError, "grad has dtype int64", lambda grad: grad.astype(np.int64)),
        (TypeError, "grad is a builtins.NoneType", lambda grad: None),
    ],
)
def test_gradients_that_are_refused(device, error, words, change):
    """Before any work, of which progress would tell."""
    case, grad = plain_case()

    def progress(*_):
        raise AssertionError

    with pytest.raises(error) as caught:
        joint_rnnt_log_probs_grad(*case, grad=change(grad), progress=progress)
    assert words in str(caught.value)


def test_half_inputs_have_scores_of_float32(device):
    case, grad = plain_case(np.float16)
    with pytest.raises(TypeError, match="grad has dtype float16, but float32 is needed"):
        joint_rnnt_log_probs_grad(*case, grad=grad.astype(np.float16))


@pytest.mark.parametrize("name", ["clamp", "reduction", "tolerance", "fastemit_lambda"])
def test_keywords_of_losses_are_refused(name):
    case, _ = plain_case()
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        joint_rnnt_log_probs(*case, **{name: 1})


def test_other_arguments_are_checked_as_those_of_the_loss(device):
    case, grad = plain_case()
    for function, options in (
        (joint_rnnt_log_probs, {}),
        (joint_rnnt_log_probs_grad, {"grad": grad}),
    ):
        with pytest.raises(ValueError, match=r"logit_lengths\[0\] is 10"):
            function(*case._replace(logit_lengths=[10, 1, 1]), **options)
        with pytest.raises(ValueError, match="transducer is 'irregular'"):
            function(*case, **options, transducer="irregular")


def test_one_frame_one_symbol(device):
    """The only symbol has the probability 1, and no gradient."""
    inputs = np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.ones((1, 2)), None
    lattice = np.zeros((1, 0), int), [1], [0]
    np.testing.assert_array_equal(joint_rnnt_log_probs(*inputs, *lattice), np.zeros((1, 1, 1, 2)))
    gradients = joint_rnnt_log_probs_grad(*inputs, *lattice, grad=np.ones((1, 1, 1, 2)))
    assert gradients.bias is None
    np.testing.assert_allclose(np.concatenate([g.ravel() for g in gradients[:3]]), 0, atol=1e-15)
