"""The engine with certified selection, on joints of any size: results, plans, workspace."""

from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from cupy_rnnt import engine, reference
from cupy_rnnt.engine import passes
from cupy_rnnt.engine.joint_source import JointSource
from cupy_rnnt.engine.sources import Kept

from ...device_calls import examples, joint_rnnt_loss, joint_rnnt_loss_and_grad, operations, to_host
from ...helpers import least_budget
from ...tolerances import DTYPES, assert_costs_close, assert_gradients_close, unit_roundoff
from ..test_engine import JOINT_OPTIONS
from ..test_workspace import MiB, every_shape, peak_beyond_results, shape_for
from .cases import (
    below,
    checked_call,
    computed_cells,
    first_choice,
    least_selecting_budget,
    selecting,
)
from .joints import aligned_case, shapes, with_padding

loss, loss_and_grad = joint_rnnt_loss, joint_rnnt_loss_and_grad


def trained(seed=0, size=4, frames=30, labels=9, hidden=16, *, sharpness=5.0, **options):
    """A batch many of whose cells are left out."""
    rng = np.random.default_rng(seed)
    return aligned_case(rng, size, frames, labels, 12, hidden, sharpness=sharpness, **options)


def selected(function, *args, astray=False, **kwargs):
    """A call with selection switched on; led astray, it starts with too few cells."""
    with ExitStack() as stack:
        stack.enter_context(selecting())
        if astray:
            stack.enter_context(first_choice(below(3.0)))
        return function(*args, **kwargs)


# Values


@examples(
    80,
    4,
    shape=st.tuples(st.integers(1, 4), st.integers(1, 60), st.integers(0, 11)),
    vocabulary=st.integers(2, 17),
    hidden=st.integers(1, 9) | st.just(131),
    options=st.fixed_dictionaries(JOINT_OPTIONS),
    dtype=st.sampled_from(DTYPES),
    blank=st.integers(-2, 1),
    bias=st.booleans(),
    spare_bytes=st.sampled_from([0, 2000, 20000, 10**5, 10**9]),
    threads=st.integers(1, 3),
    astray=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_joint_equals_reference(
    device,
    shape,
    vocabulary,
    hidden,
    options,
    dtype,
    blank,
    bias,
    spare_bytes,
    threads,
    astray,
    seed,
):
    """As without selection, in one round or more. Logits are of the size that tolerances are for,
    so that it takes many frames for cells to be left out."""
    rng = np.random.default_rng(seed)
    case = aligned_case(
        rng,
        *shape,
        vocabulary,
        hidden,
        dtype=dtype,
        blank=blank,
        bias=bias,
        sharpness=1.0,
        noise=0.3,
    )
    budget = selected(least_budget, loss_and_grad, *case, **options) + spare_bytes
    limits = {"max_workspace_bytes": budget, "return_info": True, "astray": astray}
    with threadpool_limits(threads):
        value, gradients, info = selected(loss_and_grad, *case, **options, **limits)
        alone, info_alone = selected(loss, *case, **options, **limits)
    expected_value, expected = reference.joint_rnnt_loss_and_grad(*case, **options)
    assert_costs_close(value, expected_value, dtype, case.length)
    assert_costs_close(alone, expected_value, dtype, case.length)
    assert_gradients_close(gradients, expected, dtype, case.length)
    assert [g.dtype for g in gradients if g is not None] == [dtype] * (4 if bias else 3)
    assert info_alone.kept == 0 < info.kept <= info.computed
    for one in info, info_alone:
        assert one.workspace_bytes <= budget
        assert one.computed <= one.cells == sum(t * s for t, s in shapes(case))
        assert one.certificate.shape == shape[:1]
        assert one.certificate.dtype == np.float64
        assert one.certificate.min() >= 0
        assert one.certificate.max() <= min(unit_roundoff(dtype), 2.0**-24) / 2
        assert one.certificate.any() == (one.computed < one.cells)
        assert 1 <= one.rounds <= 3


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
@pytest.mark.parametrize("astray", [False, True])
def test_what_is_left_out_is_bounded(device, astray, tolerance):
    """Costs are too large by log1p(certificate) at most. The gradient with respect to the logits
    lacks 4 n eps / (1 + eps) of the paths outside and 2 n (tolerance - eps) of cells not kept, in
    sum of absolute values, for n = T + U; that of the output layer is the sum of it times hidden
    values of at most 1."""
    case = trained(frames=40, sharpness=4.0)
    options = {"reduction": "none", "tolerance": tolerance, "return_info": True}
    costs, gradients, info = selected(loss_and_grad, *case, astray=astray, **options)
    expected_costs, expected = reference.joint_rnnt_loss_and_grad(*case, reduction="none")
    assert info.kept <= info.computed < 0.8 * info.cells
    missing = costs - expected_costs
    assert (missing >= -1e-11).all()
    assert (missing <= np.log1p(info.certificate) + 1e-11).all()
    assert missing.max() > 1e-4 * tolerance
    eps, n = info.certificate, case.logit_lengths + case.target_lengths
    most = (n * (4 * eps / (1 + eps) + 2 * (tolerance - eps))).sum()
    assert abs(gradients.bias - expected.bias).sum() <= most
    assert abs(gradients.weight - expected.weight).max() <= most


@pytest.mark.parametrize("hidden", [16, 130], ids=["computed again", "stored"])
@pytest.mark.parametrize("astray", [False, True])
def test_fused_forward_alone_and_two_phases_agree(device, astray, hidden):
    """They plan differently, but select the same cells; only products of different tiles round
    differently."""
    case = trained(hidden=hidden)
    weights, tolerance = np.array([0.5, -2.0, 0.0, 3.0]), {"tolerance": 1e-3}
    options = {"reduction": "none", "return_info": True, "astray": astray, **tolerance}
    with computed_cells() as of_fused:
        costs, gradients, info = selected(loss_and_grad, *case, cost_weights=weights, **options)
    with computed_cells() as of_forward:
        alone, info_alone = selected(loss, *case, **options)
    call = checked_call(case, **tolerance)
    source = selected(call.source, gradient=True)
    with computed_cells() as of_first:
        cells = engine.KeptCells()
        result = selected(engine.scan, source, call.batch, call.options, cells, astray=astray)
    fields = zip(*cells.parts, strict=True)
    kept = Kept(*(operations().xp.concatenate(values, axis=-1) for values in fields))
    engine.backward(source, call.batch, call.options, kept, weights)
    info_two = to_host(result.info())
    assert info.computed < info.cells
    assert info.rounds == 1 + astray
    for other, its_info, cells in (
        (alone, info_alone, of_forward),
        (to_host(result.costs), info_two, of_first),
    ):
        np.testing.assert_allclose(other, costs, rtol=1e-12)
        np.testing.assert_allclose(its_info.certificate, info.certificate, rtol=1e-8)
        assert its_info.rounds == info.rounds
        for one, same in zip(cells.masks(case), of_fused.masks(case), strict=True):
            np.testing.assert_array_equal(one, same)
    assert info_two.kept == info.kept
    assert_gradients_close(to_host(source.gradients), gradients, np.float64, case.length)


@pytest.mark.parametrize("function", [loss, loss_and_grad])
def test_tolerance_zero_computes_every_cell(device, function):
    case = trained()
    with mock.patch.object(JointSource, "tangents") as tangents:
        *_, info = selected(function, *case, tolerance=0, return_info=True)
    assert not tangents.called
    assert info.computed == info.cells
    assert info.rounds == 1
    assert not info.certificate.any()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("astray", [False, True])
@pytest.mark.thinned(5)
def test_same_bits_from_run_to_run(device, astray, threads):
    case = trained(size=6, frames=60, labels=20, hidden=130, dtype=np.float32)
    with threadpool_limits(threads):
        first, second = (
            selected(loss_and_grad, *case, reduction="none", astray=astray, return_info=True)
            for _ in range(2)
        )
    assert first[2].computed < first[2].cells
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[2].certificate, second[2].certificate)
    for one, other in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(one, other)


# Batches


@pytest.mark.parametrize("tolerance", [1e-6, 1e-2])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.thinned(3)
def test_batch_equals_its_samples_alone(device, seed, tolerance):
    """In a batch the same cells are computed of a sample as alone, whatever the padding holds."""
    case = with_padding(trained(seed, size=6, frames=36, labels=11, sharpness=8.0), np.nan)
    options = {"reduction": "none", "tolerance": tolerance, "return_info": True}
    with computed_cells() as cells:
        costs, info = selected(loss, *case, **options)
    masks = cells.masks(case)
    assert info.computed < 0.8 * info.cells
    for b, (t, s) in enumerate(shapes(case)):
        one = case._replace(
            encoder_out=case.encoder_out[b : b + 1, :t],
            predictor_out=case.predictor_out[b : b + 1, :s],
            targets=case.targets[b : b + 1, : s - 1],
            logit_lengths=np.array([t]),
            target_lengths=np.array([s - 1]),
        )
        with computed_cells() as of_one:
            (cost,), alone = selected(loss, *one, **options)
        np.testing.assert_array_equal(of_one.masks(one)[0], masks[b])
        np.testing.assert_allclose(cost, costs[b], rtol=1e-12)
        np.testing.assert_allclose(alone.certificate, info.certificate[b], rtol=1e-8)
        assert alone.rounds <= info.rounds


@pytest.mark.parametrize("astray", [False, True])
def test_padding_never_matters(device, astray):
    case = trained(hidden=130)
    options = {"reduction": "none", "return_info": True, "astray": astray}
    costs, gradients, info = selected(loss_and_grad, *case, **options)
    there, others, other_info = selected(loss_and_grad, *with_padding(case, np.nan), **options)
    assert info.computed < info.cells
    np.testing.assert_array_equal(costs, there)
    np.testing.assert_array_equal(info.certificate, other_info.certificate)
    for one, other in zip(gradients, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("spare", [0, 10**5, 10**6])
@pytest.mark.parametrize("astray", [False, True])
@pytest.mark.thinned(5)
@pytest.mark.slow
def test_groups_and_parts(device, astray, spare):
    """Many groups, each cut into parts whose logits fit, are no other batch."""
    case = trained(size=30, frames=24, labels=8, hidden=130, dtype=np.float32, sharpness=4.0)
    budget = least_selecting_budget(case, gradient=True) + spare
    options = {"reduction": "none", "return_info": True, "max_workspace_bytes": budget}
    second = passes.Passes.second
    with mock.patch.object(passes.Passes, "second", autospec=True, side_effect=second) as parts:
        costs, gradients, info = selected(loss_and_grad, *case, astray=astray, **options)
    assert info.computed < info.cells
    assert parts.call_count > 1
    expected_costs, expected = reference.joint_rnnt_loss_and_grad(*case, reduction="sum")
    assert_costs_close(costs.sum(), expected_costs, np.float32, case.length)
    assert_gradients_close(gradients, expected, np.float32, case.length)


# Whether to select at all


def pilots(sizes, sharpness):
    """Numbers of frames of the samples for which tangents were made, where it is worth it only if
    enough is left out; and what the call says of itself."""
    lengths = np.array(sizes), np.full(len(sizes), 15)
    case = trained(
        size=len(sizes), frames=max(sizes), labels=15, sharpness=sharpness, lengths=lengths
    )
    made, original = [], JointSource.tangents

    def tangents(self, samples):
        made.append(case.logit_lengths[samples].tolist())
        return original(self, samples)

    with selecting(surely=False), mock.patch.object(JointSource, "tangents", tangents):
        _, info = loss(*case, tolerance=1e-2, return_info=True)
    return made, info


def test_a_pilot_decides_where_gain_is_not_sure(device):
    """The smallest sample is tried; if it leaves out enough, all follow, and else none."""
    sizes = [40, 35, 40, 30, 40, 40, 40, 40, 40, 40]
    made, info = pilots(sizes, 12.0)
    assert made == [[30], sizes]
    assert info.computed < 0.5 * info.cells
    made, info = pilots(sizes, 0.1)
    assert made == [[30]]
    assert info.computed == info.cells
    made, info = pilots(sizes[:6], 12.0)  # too few to be worth a trial
    assert made == []
    assert info.computed == info.cells


# Workspace and progress


def trained_of_shape(size, frames, labels, vocabulary, hidden):
    rng, options = np.random.default_rng(0), {"dtype": np.float32, "sharpness": 8.0}
    return aligned_case(rng, size, frames, labels, vocabulary, hidden, **options)


@pytest.mark.parametrize(
    ("astray", "threads"), [(False, 1), (True, 2)], ids=["one round", "two rounds, two threads"]
)
@pytest.mark.parametrize("function", [loss, loss_and_grad])
@every_shape
@pytest.mark.thinned(4)
@pytest.mark.slow
def test_workspace_is_a_promise(device, shape, function, astray, threads):
    """At the least budget that has room for selection, and with more."""
    case = trained_of_shape(*shape_for(device, shape))
    with threadpool_limits(threads):
        least = least_selecting_budget(case, gradient=function is loss_and_grad)
        for budget in least, least + MiB, least + 100 * MiB:
            peak, info = peak_beyond_results(
                selected, function, *case, astray=astray, max_workspace_bytes=budget
            )
            assert info.computed < info.cells
            assert peak <= info.workspace_bytes <= budget


@examples(
    25,
    2,
    shape=st.tuples(st.integers(1, 6), st.integers(1, 60), st.integers(1, 40)),
    vocabulary=st.integers(2, 400),
    hidden=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(["tanh", "gelu"]),
    astray=st.booleans(),
    spare=st.sampled_from([0, 10**4, 10**6]),
    seed=st.integers(0, 100),
)
def test_any_shape_keeps_the_promise(
    device, shape, vocabulary, hidden, dtype, activation, astray, spare, seed
):
    rng = np.random.default_rng(seed)
    case = aligned_case(rng, *shape, vocabulary, hidden, dtype=dtype, sharpness=6.0)
    budget = least_selecting_budget(case, gradient=True) + spare
    options = {"activation": activation, "astray": astray, "max_workspace_bytes": budget}
    peak, info = peak_beyond_results(selected, loss_and_grad, *case, **options)
    assert peak <= info.workspace_bytes <= budget


@every_shape
@pytest.mark.thinned(2)
def test_selection_is_given_up_rather_than_the_call(device, shape):
    """Where it does not fit, every cell is computed, in no more memory than without."""
    case = trained_of_shape(*shape_for(device, shape))
    for function in loss, loss_and_grad:
        least = least_budget(function, *case)
        assert selected(least_budget, function, *case) == least
        assert least_selecting_budget(case, gradient=function is loss_and_grad) > least
    *_, info = selected(loss, *case, max_workspace_bytes=least, return_info=True)
    assert info.computed == info.cells
    assert info.workspace_bytes <= least


@pytest.mark.parametrize("function", [loss, loss_and_grad])
@pytest.mark.parametrize("astray", [False, True])
@pytest.mark.thinned(3)
def test_progress_rises_to_the_number_of_cells(device, astray, function):
    calls, case = [], trained(size=6, frames=60, labels=20, dtype=np.float32, sharpness=8.0)
    options = {
        "progress": lambda *call: calls.append(call),
        "return_info": True,
        "max_workspace_bytes": least_selecting_budget(case, gradient=function is loss_and_grad),
    }
    *_, info = selected(function, *case, astray=astray, **options)
    assert info.rounds > 1 or not astray
    assert len(calls) > 3
    assert calls == sorted(calls)
    assert calls[-1] == (info.cells, info.cells)
