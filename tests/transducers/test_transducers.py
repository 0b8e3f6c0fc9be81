"""Losses of transducers of any arcs and heads, by the list of all paths and by published values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_rnnt import reference
from cupy_rnnt.transducer import NAMED, Transducer

from .. import DATA, device_calls
from ..device_calls import examples, joint_rnnt_loss, joint_rnnt_loss_and_grad, rnnt_loss_and_grad
from ..reference.cases import EXACT
from .cases import (
    HAT,
    PLAIN,
    TRANSDUCERS,
    Joint,
    Sample,
    batch_of,
    blanks_of,
    enumerated,
    multi_blank,
    padded_grads,
    random_sample,
    tdt,
    transducers,
)

GRADIENT = {"rtol": 1e-11, "atol": 1e-12}
K2 = "modified", "constrained"

every_implementation = pytest.mark.parametrize(
    "package", [reference, device_calls], ids=["reference", "engine"]
)
every_transducer = pytest.mark.parametrize("transducer", TRANSDUCERS.values(), ids=TRANSDUCERS)

EXTENTS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3)
DRAWN = {
    "transducer": transducers(),
    "extents": EXTENTS,
    "delay_penalty": st.sampled_from([0.0, 0.0, 0.3, -0.2]),
    "fastemit": st.sampled_from([0.0, 0.2]),
    "scale": st.sampled_from([0.3, 1.0, 4.0]),
    "seed": st.integers(0, 2**32 - 1),
}


def drawn_samples(transducer, extents, seed, **options):
    rng = np.random.default_rng(seed)
    blank = int(rng.choice(blanks_of(transducer, 3)))
    return [random_sample(rng, transducer, t, u, blank=blank, **options) for t, u in extents]


# The oracle itself


@settings(max_examples=60, deadline=None)
@given(
    transducer=transducers(),
    T=st.integers(1, 3),
    U=st.integers(0, 2),
    delay_penalty=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_enumerated_gradients_are_those_of_finite_differences(
    transducer, T, U, delay_penalty, seed
):
    """A central difference of step 1e-5 is off by its square times a third derivative, and by the
    rounding of a cost of order 10 over the step: 1e-9 at most."""
    rng = np.random.default_rng(seed)
    sample = random_sample(rng, transducer, T, U, delay_penalty=delay_penalty)
    cost, grad = enumerated(sample)
    if not np.isfinite(cost):
        assert not grad.any()
        return
    direction = rng.normal(size=grad.shape)
    there, back = (
        enumerated(sample._replace(logits=sample.logits + step * direction))[0]
        for step in (1e-5, -1e-5)
    )
    slope = (grad * direction).sum()
    np.testing.assert_allclose((there - back) / 2e-5, slope, rtol=1e-7, atol=1e-7)


# Given logits


@examples(200, 4, **DRAWN, fused=st.booleans(), tolerance=st.sampled_from([0.0, None]))
def test_logits_of_any_transducer(
    device, transducer, extents, delay_penalty, fastemit, scale, seed, fused, tolerance
):
    samples = drawn_samples(
        transducer, extents, seed, scale=scale, fused=fused, delay_penalty=delay_penalty
    )
    *arguments, blank = batch_of(samples)
    options = {
        "reduction": "none",
        "fused_log_softmax": fused,
        "transducer": transducer,
        "delay_penalty": delay_penalty,
        "fastemit_lambda": fastemit,
    }
    costs, grads = zip(*(enumerated(sample, fastemit) for sample in samples), strict=True)
    expected = costs, padded_grads(samples, grads, arguments[0])
    of_textbook = reference.rnnt_loss_and_grad(*arguments, blank, **options)
    with warnings.catch_warnings():  # of rows that are no distribution, if there is no head
        warnings.simplefilter("ignore")
        found = rnnt_loss_and_grad(*arguments, blank, **options, tolerance=tolerance)
    for loss, grad in of_textbook, found:
        np.testing.assert_allclose(loss, expected[0], **EXACT)
        np.testing.assert_allclose(grad, expected[1], **GRADIENT)


# Joint networks


@examples(120, 4, **DRAWN)
def test_joint_of_any_transducer(device, transducer, extents, delay_penalty, fastemit, scale, seed):
    joint = Joint(transducer, extents, seed, scale, delay_penalty=delay_penalty)
    options = {
        "reduction": "none",
        "transducer": transducer,
        "delay_penalty": delay_penalty,
        "fastemit_lambda": fastemit,
    }
    costs, grads = joint.expected(fastemit)
    of_textbook = reference.joint_rnnt_loss_and_grad(*joint.arguments, **options)
    found = joint_rnnt_loss_and_grad(*joint.arguments, **options)
    for loss, gradients in of_textbook, found:
        np.testing.assert_allclose(loss, costs, **EXACT)
        for one, other in zip(gradients, grads, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)


@examples(40, 2, transducer=transducers(), seed=st.integers(0, 2**32 - 1))
def test_joint_gradients_are_those_of_finite_differences(device, transducer, seed):
    rng = np.random.default_rng(seed)
    joint = Joint(transducer, [(4, 2), (3, 3)], seed)
    options = {"reduction": "none", "transducer": transducer, "delay_penalty": 0.1}
    loss, gradients = joint_rnnt_loss_and_grad(*joint.arguments, **options)
    finite = np.isfinite(loss)
    directions = [rng.normal(size=array.shape) for array in joint.inputs]
    there, back = (
        joint_rnnt_loss(
            *(x + step * d for x, d in zip(joint.inputs, directions, strict=True)),
            *joint.arguments[4:],
            **options,
        )
        for step in (1e-5, -1e-5)
    )
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    numeric = ((there[finite] - back[finite]) / 2e-5).sum()
    np.testing.assert_allclose(numeric, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
@every_transducer
def test_transducers_in_use(device, transducer, delay_penalty):
    """Both fronts, in larger lattices than paths can be listed of."""
    rng = np.random.default_rng(0)
    blank = blanks_of(transducer, 5)[-1]
    samples = [
        random_sample(rng, transducer, t, u, 5, blank=blank) for t, u in ((20, 7), (9, 3), (5, 6))
    ]
    options = {"transducer": transducer, "delay_penalty": delay_penalty, "reduction": "none"}
    *arguments, _ = batch_of(samples)
    found = rnnt_loss_and_grad(*arguments, blank, **options)
    expected = reference.rnnt_loss_and_grad(*arguments, blank, **options)
    np.testing.assert_allclose(found[0], expected[0], **EXACT)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-10, atol=1e-12)
    joint = Joint(transducer, [(20, 7), (9, 3), (5, 6)], 1)
    found = joint_rnnt_loss_and_grad(*joint.arguments, **options)
    expected = reference.joint_rnnt_loss_and_grad(*joint.arguments, **options)
    np.testing.assert_allclose(found[0], expected[0], **EXACT)
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", NAMED)
def test_names_and_texts_do_as_well(device, name):
    samples = [random_sample(np.random.default_rng(0), NAMED[name], 5, 3, fused=True)]
    arguments = batch_of(samples)
    losses = [
        device_calls.rnnt_loss(*arguments, transducer=value)
        for value in (name, NAMED[name], str(NAMED[name]))
    ]
    assert losses[0] == losses[1] == losses[2]
    assert (device_calls.rnnt_loss(*arguments) == losses[0]) == (name == "regular")


# Published values


def of_source(case) -> tuple[Transducer, dict[str, float]]:
    if "rnnt_type" in case:
        name = str(case["rnnt_type"])
        return NAMED[name], {"delay_penalty": float(case["delay_penalty"])}
    sigma = float(case["sigma"])
    if "durations" in case:
        return tdt(case["durations"].tolist(), sigma), {}
    return multi_blank(case["big_blank_durations"].tolist(), sigma), {}


# Those of fast_rnnt were computed in float32: some roundings of 6e-8 of a loss near 25, and of
# gradients below 1. NeMo's are in float64, where it takes -1000 for log 0.
PUBLISHED = {
    "fast_rnnt_modified_dp0.3_blank3": (4e-7, 1e-6),
    "fast_rnnt_constrained_dp0_blank0": (4e-7, 1e-6),
    "tdt_d0-1-2_sigma0.05": (1e-13, 1e-13),
    "tdt_d1-2_sigma0": (1e-13, 1e-13),
    "multiblank_2-4_sigma0.05": (1e-13, 1e-13),
}


@every_implementation
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses_and_gradients(device, name, package):
    case = np.load(DATA / f"golden_{name}.npz")
    transducer, options = of_source(case)
    loss, grad = package.rnnt_loss_and_grad(
        case["logits"].astype(np.float64),
        *(case[name] for name in ("targets", "logit_lengths", "target_lengths")),
        int(case["blank"]),
        reduction="none",
        transducer=transducer,
        **options,
    )
    of_loss, of_grad = PUBLISHED[name]
    np.testing.assert_allclose(loss, case["loss"], rtol=of_loss)
    np.testing.assert_allclose(grad, case["grad"], rtol=0, atol=of_grad)
    np.testing.assert_allclose(loss, case["ref64_loss"], **EXACT)
    np.testing.assert_allclose(grad, case["ref64_grad"], **EXACT)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values_of_a_joint(device, name):
    """Hidden vectors that are 1 in the unit of their cell and 0 in others: a column of the weight
    is the row of logits of a cell, and has its gradient."""
    case = np.load(DATA / f"golden_{name}.npz")
    (B, T, S, V), (transducer, options) = case["logits"].shape, of_source(case)
    of_cells = np.eye(B * T * S).reshape(B, T, S, -1)
    inputs = of_cells.sum(axis=2) - 0.5, of_cells.sum(axis=1) - 0.5
    loss, gradients = joint_rnnt_loss_and_grad(
        *inputs,
        case["logits"].astype(np.float64).reshape(-1, V).T,
        None,
        *(case[name] for name in ("targets", "logit_lengths", "target_lengths")),
        int(case["blank"]),
        reduction="none",
        activation="relu",
        transducer=transducer,
        **options,
    )
    of_loss, of_grad = PUBLISHED[name]
    found = gradients.weight.T.reshape(B, T, S, V)
    np.testing.assert_allclose(loss, case["loss"], rtol=of_loss)
    np.testing.assert_allclose(found, case["grad"], rtol=0, atol=of_grad)
    np.testing.assert_allclose(loss, case["ref64_loss"], **EXACT)
    np.testing.assert_allclose(found, case["ref64_grad"], **EXACT)


@every_implementation
def test_published_additive_joint_with_a_delay_penalty(device, package):
    case = np.load(DATA / "golden_simple_regular_dp0.1.npz")
    loss, grads = package.joint_rnnt_loss_and_grad(
        case["am"].astype(np.float64),
        case["lm"].astype(np.float64),
        np.eye(case["am"].shape[-1]),
        None,
        *(case[name] for name in ("targets", "logit_lengths", "target_lengths")),
        int(case["blank"]),
        reduction="none",
        activation="identity",
        delay_penalty=float(case["delay_penalty"]),
    )
    for actual, name in (
        (loss, "loss"),
        (grads.encoder_out, "grad_am"),
        (grads.predictor_out, "grad_lm"),
    ):
        np.testing.assert_allclose(actual, case[name], rtol=4e-7, atol=2e-6)
    np.testing.assert_allclose(loss, case["ref64_loss_"], **EXACT)
    np.testing.assert_allclose(grads.encoder_out, case["ref64_grad_am"], **EXACT)
    np.testing.assert_allclose(grads.predictor_out, case["ref64_grad_lm"], **EXACT)


# Facts


def test_a_delay_penalty_favours_early_labels(device):
    """And one of 0 nothing; in the middle of the frames it adds nothing."""
    sample = Sample(np.zeros((5, 2, 3)), [0], PLAIN)
    *arguments, blank = batch_of([sample])
    lag = []
    for penalty in -0.5, 0.0, 0.5:
        _, grad = rnnt_loss_and_grad(*arguments, blank, delay_penalty=penalty)
        of_label = grad[0, :5, 0, 1] - grad[0, :5, 0, 0]  # whose softmax is the same
        np.testing.assert_allclose(of_label.sum(), 1, rtol=1e-12)
        lag.append((np.arange(5) * of_label).sum())
    assert lag[0] > lag[1] > lag[2]
    one_frame = Sample(np.zeros((1, 2, 3)), [0], PLAIN)
    losses = [
        device_calls.rnnt_loss(*batch_of([one_frame]), delay_penalty=penalty)
        for penalty in (0.0, 0.7)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("penalty", [np.nan, np.inf, -np.inf])
def test_a_delay_penalty_is_finite(penalty):
    with pytest.raises(ValueError, match=f"delay_penalty is {penalty}, but it must be finite"):
        device_calls.rnnt_loss(
            *batch_of([Sample(np.zeros((2, 2, 3)), [0], PLAIN)]), delay_penalty=penalty
        )


@pytest.mark.parametrize("front", ["logits", "joint"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("name", K2)
def test_more_labels_than_frames_that_they_take(device, name, zero_infinity, front):
    """Such a sample has no path; the others are not touched by it."""
    transducer = NAMED[name]
    extents = [(4, 2), (2, 3), (3, 3)]
    options = {"reduction": "none", "transducer": name, "zero_infinity": zero_infinity}
    if front == "joint":
        joint = Joint(transducer, extents, 0)
        costs, gradients = joint_rnnt_loss_and_grad(*joint.arguments, **options)
        expected, grads = joint.expected()
        for one, other in zip(gradients, grads, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)
        grad = gradients.encoder_out
    else:
        samples = drawn_samples(transducer, extents, 0)
        costs, grad = rnnt_loss_and_grad(*batch_of(samples), **options)
        expected, grads = zip(*map(enumerated, samples), strict=True)
        np.testing.assert_allclose(grad[0, :4, :3], grads[0], **GRADIENT)
        np.testing.assert_allclose(grad[2, :3, :4], grads[2], **GRADIENT)
    assert expected[1] == np.inf
    assert costs[1] == (0.0 if zero_infinity else np.inf)
    assert not grad[1].any()
    np.testing.assert_allclose(costs[[0, 2]], np.array(expected)[[0, 2]], **EXACT)


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_each_label_is_emitted_once_and_each_frame_consumed_once(name):
    """Whatever the arcs: with their numbers of frames, arcs of a path add up to T."""
    transducer = TRANSDUCERS[name]
    sample = random_sample(np.random.default_rng(1), transducer, 9, 3)
    topology = transducer.topology
    found, _ = reference.occupancies(sample.scores(), topology)
    of_label = found[topology.scores.index(("label", 0))]
    np.testing.assert_allclose(of_label[:, :-1].sum(axis=0), 1, rtol=1e-12)
    if name in ("regular", "hat"):
        np.testing.assert_allclose(found[0].sum(axis=1), 1, rtol=1e-12)
    if name in K2:
        np.testing.assert_allclose(
            (found[0].sum(axis=1) + (name == "modified") * of_label.sum(axis=1)), 1, rtol=1e-12
        )


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
@pytest.mark.parametrize("name", TRANSDUCERS)
@pytest.mark.thinned(3)
def test_which_cells_are_kept(device, name, tolerance):
    """A cell's share is that of a path of the fewest arcs over all cells, or a smaller one where a
    score is charged several heads; half of that where a score is read from another cell. The limit
    of the cells of a frame is that of all of them together, halved while the cells below it hold
    more together."""
    transducer = TRANSDUCERS[name]
    sample = random_sample(np.random.default_rng(2), transducer, 30, 9, scale=4.0)
    *_, info = rnnt_loss_and_grad(
        *batch_of([sample]), transducer=transducer, tolerance=tolerance, return_info=True
    )
    topology, scores = transducer.topology, sample.scores()
    alpha, beta = reference.alphas(scores, topology), reference.betas(scores, topology)
    mass = np.exp(alpha + beta - beta[0, 0])
    fewest = {"modified": 30, "constrained": 30, "tdt": 9 + 6, "multi-blank": 9 + 8}
    charges = 2 if transducer is HAT else 1
    least = tolerance * 2 / (1 + charges) * fewest.get(name, 39) / mass.size
    if name == "constrained":
        least /= 2
    most = least * mass.shape[1]
    kept = []
    for of_frame in mass:
        limits = np.maximum(most / 2.0 ** np.arange(9), least)
        limit = next(limit for limit in limits if of_frame[of_frame < limit].sum() < most)
        kept.append(of_frame >= limit)
    kept = np.array(kept)
    if name == "constrained":
        kept[:, 1:] |= kept[:, :-1].copy()
    assert info.kept == kept.sum() < 0.9 * mass.size
