"""The engine against the float64 reference, whatever the shapes, the budget and the threads."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

import cupy_rnnt
from cupy_rnnt import reference
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS
from cupy_rnnt.options import REDUCTIONS

from ..device_calls import (
    examples,
    joint_rnnt_loss,
    joint_rnnt_loss_and_grad,
    rnnt_loss,
    rnnt_loss_and_grad,
    to_device,
    to_host,
)
from ..helpers import least_budget, random_joint_case, random_logits_case
from ..tolerances import (
    DTYPES,
    assert_costs_close,
    assert_gradient_close,
    assert_gradients_close,
    unit_roundoff,
)

SHAPES = {
    "size": st.integers(1, 5),
    "frames": st.integers(1, 13),
    "labels": st.integers(0, 11),
    "vocabulary": st.integers(2, 17),
}
OPTIONS = {
    "clamp": st.sampled_from([-1.0, 0.05]),
    "reduction": st.sampled_from(REDUCTIONS),
    "fastemit_lambda": st.sampled_from([0.0, 0.3]),
}
JOINT_OPTIONS = OPTIONS | {
    "activation": st.sampled_from(list(ACTIVATIONS)),
    "dropout": st.sampled_from([0.0, 0.3]),
    "seed": st.integers(0, 2**63 - 1),
}


@examples(
    120,
    3,
    shape=st.fixed_dictionaries({**SHAPES, "hidden": st.integers(1, 9) | st.just(131)}),
    options=st.fixed_dictionaries(JOINT_OPTIONS),
    dtype=st.sampled_from(DTYPES),
    blank=st.integers(-2, 1),
    bias=st.booleans(),
    spare_bytes=st.sampled_from([0, 2000, 20000, 10**9]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_joint_equals_reference(
    device, shape, options, dtype, blank, bias, spare_bytes, threads, seed
):
    case = random_joint_case(
        np.random.default_rng(seed), **shape, dtype=dtype, blank=blank, bias=bias
    )
    budget = least_budget(joint_rnnt_loss_and_grad, *case, **options) + spare_bytes
    with threadpool_limits(threads):
        loss, gradients, info = joint_rnnt_loss_and_grad(
            *case, **options, max_workspace_bytes=budget, return_info=True
        )
        alone = joint_rnnt_loss(*case, **options, max_workspace_bytes=budget)
    expected_loss, expected = reference.joint_rnnt_loss_and_grad(*case, **options)
    assert_costs_close(loss, expected_loss, dtype, case.length, shape["hidden"])
    assert_gradients_close(gradients, expected, dtype, case.length)
    assert info.workspace_bytes <= budget
    assert_costs_close(alone, expected_loss, dtype, case.length, shape["hidden"])
    assert [g.dtype for g in gradients if g is not None] == [dtype] * (4 if bias else 3)


@examples(
    120,
    5,
    shape=st.fixed_dictionaries(SHAPES),
    options=st.fixed_dictionaries(OPTIONS),
    dtype=st.sampled_from(DTYPES),
    blank=st.integers(-2, 1),
    fused=st.booleans(),
    overwrite=st.booleans(),
    spare_bytes=st.sampled_from([0, 2000, 20000, 10**9]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_logits_equal_reference(
    device, shape, options, dtype, blank, fused, overwrite, spare_bytes, threads, seed
):
    case = random_logits_case(np.random.default_rng(seed), **shape, dtype=dtype, blank=blank)
    if not fused:
        log_probs = log_softmax(case.logits.astype(np.float64), axis=-1)
        case = case._replace(logits=log_probs.astype(dtype))
    options["fused_log_softmax"] = fused
    expected_loss, expected = reference.rnnt_loss_and_grad(*case, **options)
    budget = least_budget(rnnt_loss_and_grad, *case, **options) + spare_bytes
    copy = to_device(case._replace(logits=case.logits.copy()))
    with threadpool_limits(threads):
        loss, grad = cupy_rnnt.rnnt_loss_and_grad(
            *copy, **options, overwrite_logits=overwrite, max_workspace_bytes=budget
        )
        alone = rnnt_loss(*case, **options, max_workspace_bytes=budget)
    assert (grad is copy.logits) == overwrite
    loss, grad = to_host((loss, grad))
    assert_costs_close(loss, expected_loss, dtype, case.length)
    assert_costs_close(alone, expected_loss, dtype, case.length)
    assert_gradient_close(grad, expected, dtype, case.length)
    if not overwrite:
        np.testing.assert_array_equal(to_host(copy.logits), case.logits)


def big_case(device):
    """Enough cells for several tiles a worker, and hidden units for logits to be stored."""
    shape = (6, 90, 23, 31, 129) if device.name == "numpy" else (6, 20, 9, 11, 129)
    return random_joint_case(np.random.default_rng(3), *shape, dtype=np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_from_run_to_run(device, threads):
    """Of several threads, and of several blocks, which an emulated device runs in random order."""
    case = big_case(device)
    with threadpool_limits(threads):
        first, second = (joint_rnnt_loss_and_grad(*case, reduction="none") for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    for one, other in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_batch_equals_its_samples_alone(device):
    case = big_case(device)
    weights = np.linspace(-1, 2, 6)
    costs, gradients = joint_rnnt_loss_and_grad(*case, reduction="none", cost_weights=weights)
    d_weight = np.zeros_like(case.weight, np.float64)
    for b in range(6):
        frames, columns = case.logit_lengths[b], case.target_lengths[b] + 1
        one = case._replace(
            encoder_out=case.encoder_out[b : b + 1, :frames],
            predictor_out=case.predictor_out[b : b + 1, :columns],
            targets=case.targets[b : b + 1, : columns - 1],
            logit_lengths=[frames],
            target_lengths=[columns - 1],
        )
        cost, gradient = joint_rnnt_loss_and_grad(*one, cost_weights=weights[b : b + 1])
        assert_costs_close(cost, costs[b], np.float32, frames + columns)
        for name in ("encoder_out", "predictor_out"):
            alone = getattr(gradient, name)[0]
            within = getattr(gradients, name)[b]
            assert_gradient_close(within[: len(alone)], alone, np.float32, case.length, name)
            assert not within[len(alone) :].any()
        d_weight += gradient.weight
    assert_gradient_close(gradients.weight, d_weight, np.float32, case.length)


def poisoned_padding(case):
    """The same case with NaN at every float and nonsense at every label that is padding."""
    inputs = {name: getattr(case, name).copy() for name in case._fields[:-3] if name != "bias"}
    inputs["targets"] = case.targets.copy()
    for b, (t, u) in enumerate(zip(case.logit_lengths, case.target_lengths, strict=True)):
        inputs["targets"][b, u:] = -(10**6)
        if "logits" in inputs:
            inputs["logits"][b, t:] = inputs["logits"][b, :, u + 1 :] = np.nan
        else:
            inputs["encoder_out"][b, t:] = inputs["predictor_out"][b, u + 1 :] = np.nan
    return case._replace(**inputs)


@pytest.mark.parametrize("overwrite", [False, True])
def test_padding_never_matters_to_logits(device, overwrite):
    case = random_logits_case(np.random.default_rng(0), 5, 8, 6, 10)
    loss, grad = rnnt_loss_and_grad(*case)
    other_loss, other_grad = rnnt_loss_and_grad(*poisoned_padding(case), overwrite_logits=overwrite)
    np.testing.assert_array_equal(other_loss, loss)
    np.testing.assert_array_equal(other_grad, grad)


def test_padding_never_matters_to_joint(device):
    case = random_joint_case(np.random.default_rng(0), 5, 8, 6, 10, 7)
    loss, gradients = joint_rnnt_loss_and_grad(*case)
    other_loss, others = joint_rnnt_loss_and_grad(*poisoned_padding(case))
    np.testing.assert_array_equal(other_loss, loss)
    for one, other in zip(gradients, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("frames", "labels"), [(400, 80), (3, 1500), (1500, 2), (1, 700)])
@pytest.mark.slow
def test_long_lattices(device, frames, labels):
    if device.name != "numpy" and min(frames, labels) > 20:
        frames, labels = frames // 3, labels // 2
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((1, frames, labels + 1, 3)).astype(np.float32)
    arguments = logits, np.zeros((1, labels), int), [frames], [labels]
    loss, grad = rnnt_loss_and_grad(*arguments)
    expected_loss, expected = reference.rnnt_loss_and_grad(*arguments)
    assert_costs_close(loss, expected_loss, np.float32, frames + labels)
    assert_gradient_close(grad, expected, np.float32, frames + labels)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1000, 0), (1, 10000)])
def test_gradient_error_is_absolute_and_tiny(device, scale, offset):
    frames, labels = (400, 80) if device.name == "numpy" else (90, 40)
    shape = 1, frames, labels + 1, 30
    logits = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    logits = logits * np.float32(scale) + np.float32(offset)
    arguments = logits, np.arange(labels)[None] % 29, [frames], [labels]
    _, grad = rnnt_loss_and_grad(*arguments)
    _, expected = reference.rnnt_loss_and_grad(*arguments)
    assert np.abs(grad - expected).max() <= 2e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tolerance", [None, 1e-2, 1e-4])
def test_what_is_dropped_is_bounded(device, dtype, tolerance):
    rng = np.random.default_rng(7)
    case = random_logits_case(rng, 3, 60, 20, 6, dtype=dtype, scale=4.0)
    used = tolerance or unit_roundoff(dtype)
    _, grad, info = rnnt_loss_and_grad(
        *case, reduction="sum", tolerance=tolerance, return_info=True
    )
    kept = 0
    for b in range(3):
        t, s = case.logit_lengths[b], case.target_lengths[b] + 1
        log_probs = case.logits[b, :t, :s].astype(np.float64)
        log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
        labels = np.append(case.targets[b, : s - 1], 0)
        of_label = np.take_along_axis(log_probs, labels[None, :, None], axis=2)[..., 0]
        of_scores, _ = reference.occupancies(np.stack([log_probs[..., case.blank], of_label]))
        occupancy = of_scores.sum(axis=0)
        dropped = ~grad[b, :t, :s].any(axis=-1)
        of_frame = used * (t + s - 1) / t
        assert dropped[occupancy < of_frame / s].all()
        assert (np.where(dropped, occupancy, 0.0).sum(axis=1) <= of_frame).all()
        kept += (~dropped).sum()
    assert info.kept == kept
    if tolerance == 1e-2:
        assert kept < info.cells / 2  # the filter has something to do


def test_tolerance_zero_keeps_every_cell(device):
    case = random_logits_case(np.random.default_rng(7), 3, 60, 20, 6, scale=4.0)
    *_, info = rnnt_loss_and_grad(*case, tolerance=0, return_info=True)
    assert info.kept == info.computed == info.cells
    *_, info = rnnt_loss(*case, return_info=True)
    assert info.kept == 0


def test_no_denormal_gradients(device):
    case = random_joint_case(
        np.random.default_rng(8), 2, 60, 20, 40, 16, dtype=np.float32, scale=40
    )
    logits = np.tanh(case.encoder_out[:, :, None] + case.predictor_out[:, None])
    logits = (logits @ case.weight.T + case.bias) * np.float32(2)
    _, grad = rnnt_loss_and_grad(logits, *case[4:])
    magnitudes = np.abs(grad[grad != 0])
    assert (grad == 0).any()
    assert magnitudes.min() > 1e-36


@pytest.mark.parametrize("function", [joint_rnnt_loss, joint_rnnt_loss_and_grad])
def test_progress_rises_to_the_number_of_cells(device, function):
    calls = []
    case = big_case(device)
    function(*case, progress=lambda done, total: calls.append((done, total)))
    cells = int((case.logit_lengths * (case.target_lengths + 1)).sum())
    assert calls == sorted(calls)
    assert calls[-1] == (cells, cells)


def test_an_error_in_a_tile_surfaces(device):
    def stop(done, total):
        raise RuntimeError("enough")

    with threadpool_limits(2), pytest.raises(RuntimeError, match="enough"):
        joint_rnnt_loss(*big_case(device), progress=stop)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_types_are_as_good_as_their_storage(device, dtype):
    """From the truth of the unrounded inputs, the cost is off by no more than their rounding."""
    case = random_joint_case(np.random.default_rng(9), 3, 40, 12, 20, 16, dtype=np.float32)
    truth, _ = reference.joint_rnnt_loss_and_grad(*case)
    rounded = case._replace(
        **{name: getattr(case, name).astype(dtype) for name in case._fields[:4]}
    )
    loss = joint_rnnt_loss(*rounded)
    assert loss.dtype == np.float32
    assert abs(loss - truth) <= 2 * unit_roundoff(dtype) * abs(truth)


@pytest.mark.parametrize("clamp", [-1.0, 0.3])
@pytest.mark.parametrize(("weight", "size", "scale"), [(1e5, 1e-2, 0.03), (1e-6, 1e3, 1e-3)])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_cost_weights_of_any_size(device, dtype, weight, size, scale, clamp):
    """The gradient of the logits, which float16 may not hold, is not seen."""
    rng = np.random.default_rng(8)
    case = random_joint_case(rng, dtype=dtype, bias=False, scale=scale)
    case = case._replace(
        encoder_out=case.encoder_out * dtype(size), predictor_out=case.predictor_out * dtype(size)
    )
    weights = weight * rng.uniform(-1, 1, len(case.targets))
    options = {"activation": "identity", "cost_weights": weights, "clamp": clamp}
    _, expected = reference.joint_rnnt_loss_and_grad(*case, **options)
    _, gradients = joint_rnnt_loss_and_grad(*case, **options)
    ours, theirs = (found.weight.astype(float) for found in (gradients, expected))
    largest = np.abs(theirs).max()
    assert_gradient_close(ours / largest, theirs / largest, dtype, case.length)
