"""The additive loss against the textbook on explicit logits and k2's values, and k2's ranges."""

from __future__ import annotations

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import reference

from .. import DATA
from ..device_calls import (
    additive_rnnt_loss,
    additive_rnnt_loss_and_grad,
    joint_rnnt_loss,
    rnnt_loss_and_grad,
    to_device,
)
from ..helpers import random_joint_case, random_logits_case
from ..tolerances import DTYPES, assert_costs_close, assert_gradient_close
from ..transducers.cases import HAT, TRANSDUCERS, multi_blank

FLOAT32 = {"rtol": 2e-6, "atol": 2e-6}
ONE_SOFTMAX = {name: TRANSDUCERS[name] for name in ("regular", "modified", "constrained")}
ONE_SOFTMAX["multi-blank"] = multi_blank((2, 4), 0.05)


def random_case(seed, transducer="regular", dtype=np.float64, scale=2.0):
    """`am`, `lm` and the rest; NaN in the padding of both."""
    rng = np.random.default_rng(seed)
    case = random_logits_case(rng, transducer=TRANSDUCERS[transducer])
    size, frames, positions, width = case.logits.shape
    shapes = (size, frames, width), (size, positions, width)
    am, lm = (scale * rng.normal(size=shape).astype(dtype).astype(np.float64) for shape in shapes)
    for b, (t, u) in enumerate(zip(case.logit_lengths, case.target_lengths, strict=True)):
        am[b, t:] = lm[b, u + 1 :] = np.nan
    return am.astype(dtype), lm.astype(dtype), case


def of_textbook(am, lm, case, **options):
    """From the explicit logits: each summand gets the sum over the other's axis."""
    logits = am[:, :, None].astype(np.float64) + lm[:, None].astype(np.float64)
    loss, grad = reference.rnnt_loss_and_grad(logits, *case[1:], **options)
    return loss, grad.sum(axis=2), grad.sum(axis=1)


@pytest.mark.parametrize("name", ["regular", "modified", "constrained", "multi-blank"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.thinned(6)
def test_against_the_textbook(device, name, dtype):
    am, lm, case = random_case(1, name, dtype)
    options = {
        "transducer": TRANSDUCERS[name],
        "delay_penalty": 0.2,
        "fastemit_lambda": 0.1,
        "cost_weights": np.array([1.0, -0.5, 2.0, 0.0]),
    }
    for reduction in "none", "mean":
        expected, d_am, d_lm = of_textbook(am, lm, case, reduction=reduction, **options)
        found, grads = additive_rnnt_loss_and_grad(
            am, lm, *case[1:], reduction=reduction, **options
        )
        assert_costs_close(found, expected, dtype, case.length)
        assert_gradient_close(grads.am, d_am, dtype, case.length)
        assert_gradient_close(grads.lm, d_lm, dtype, case.length)
        assert (grads.am.dtype, grads.lm.dtype) == (dtype, dtype)
    del options["cost_weights"]
    alone = additive_rnnt_loss(am, lm, *case[1:], **options)
    np.testing.assert_allclose(alone, found, rtol=1e-6)


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e5])
def test_logits_far_apart(device, scale):
    """Where exponentials of both summands underflow together, cells are summed one by one."""
    am, lm, case = random_case(2, scale=scale)
    expected, d_am, d_lm = of_textbook(am, lm, case, reduction="none")
    found, grads = additive_rnnt_loss_and_grad(am, lm, *case[1:], reduction="none")
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(grads.am, d_am, atol=1e-15 * scale + 1e-10)
    np.testing.assert_allclose(grads.lm, d_lm, atol=1e-15 * scale + 1e-10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_values_stay_in_their_sample(device, value):
    am, lm, case = random_case(3)
    expected = additive_rnnt_loss_and_grad(am, lm, *case[1:], reduction="none")
    am[1, 0, 2] = value
    loss, grads = additive_rnnt_loss_and_grad(am, lm, *case[1:], reduction="none")
    assert np.isnan(loss[1])
    assert not grads.am[1].any()
    others = [0, 2, 3]
    np.testing.assert_array_equal(loss[others], expected[0][others])
    np.testing.assert_array_equal(grads.lm[others], expected[1].lm[others])


def test_symbols_that_are_impossible(device):
    am, lm, case = random_case(4)
    unused = next(v for v in range(9) if v not in case.targets and v != 8)
    am[..., unused] = -np.inf
    expected, d_am, d_lm = of_textbook(am, lm, case)
    found, grads = additive_rnnt_loss_and_grad(am, lm, *case[1:])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(grads.am, d_am, atol=1e-12)
    np.testing.assert_allclose(grads.lm, d_lm, atol=1e-12)


def test_a_band():
    am, lm, case = random_case(5)
    first = np.minimum(np.arange(7) * 3 // 6, np.maximum(case.target_lengths[:, None] - 3, 0))
    options = {"band": (first, np.array([4, 4, 5, 4])), "reduction": "none"}
    expected, d_am, d_lm = of_textbook(am, lm, case, **options)
    found, grads = additive_rnnt_loss_and_grad(am, lm, *case[1:], **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(grads.am, d_am, atol=1e-12)
    np.testing.assert_allclose(grads.lm, d_lm, atol=1e-12)


# Values of k2 (fast_rnnt)


def published(name):
    data = np.load(DATA / f"golden_{name}.npz")
    batch = [data[key] for key in ("targets", "logit_lengths", "target_lengths")]
    return data, (data["am"], data["lm"], *batch, int(data["blank"]))


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("simple_regular_dp0.1", {}),
        ("smoothed_regular_lm0.25_am0.15_dp0", {"lm_scale": 0.25, "am_scale": 0.15}),
    ],
)
def test_values_of_k2(device, name, scales):
    data, arguments = published(name)
    options = {"delay_penalty": float(data["delay_penalty"]), "reduction": "none", **scales}
    loss, grads, occupancies = additive_rnnt_loss_and_grad(
        *arguments, **options, return_occupancies=True
    )
    np.testing.assert_allclose(loss, data["loss"], **FLOAT32)
    np.testing.assert_allclose(grads.am, data["grad_am"], **FLOAT32)
    np.testing.assert_allclose(grads.lm, data["grad_lm"], **FLOAT32)
    assert loss.dtype == grads.am.dtype == occupancies.dtype == np.float32
    if "px_grad" in data:  # of the negative loss, by symbols and frames
        blank, label = np.moveaxis(occupancies, -1, 0).swapaxes(2, 3)
        np.testing.assert_allclose(-blank, data["py_grad"], **FLOAT32)
        np.testing.assert_allclose(-label[:, :-1], data["px_grad"][..., :-1], **FLOAT32)


@pytest.mark.parametrize("scales", [{"lm_scale": 0.3}, {"am_scale": 0.2}, {"lm_scale": 1.0}])
@pytest.mark.parametrize("name", ["regular", "constrained"])
def test_smoothed_gradients_are_those_of_finite_differences(name, scales):
    """A central difference of step 1e-5; every position counts, those of the padding too."""
    rng = np.random.default_rng(6)
    am, lm, case = random_case(6, name)
    am, lm = (np.where(np.isnan(x), rng.normal(size=x.shape), x) for x in (am, lm))
    lengths = {"logit_lengths": np.array([7, 6, 5, 7]), "target_lengths": case.target_lengths}
    case = case._replace(**lengths)
    options = {"transducer": name, "reduction": "sum", **scales}
    _, grads = cupy_rnnt.additive_rnnt_loss_and_grad(am, lm, *case[1:-1], case.blank, **options)
    directions = [rng.normal(size=x.shape) for x in (am, lm)]

    def loss(step):
        moved = (x + step * d for x, d in zip((am, lm), directions, strict=True))
        return cupy_rnnt.additive_rnnt_loss(*moved, *case[1:-1], case.blank, **options)

    slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    np.testing.assert_allclose((loss(1e-5) - loss(-1e-5)) / 2e-5, slope, rtol=1e-7)


def test_ranges_and_the_pruned_loss_of_k2(device):
    data, arguments = published("pruned_regular_s3")
    *_, targets, frames, labels, blank = arguments
    loss, occupancies = additive_rnnt_loss(*arguments, reduction="none", return_occupancies=True)
    np.testing.assert_allclose(loss, data["loss_simple"], **FLOAT32)
    given = np.stack([data["py_grad"], np.zeros_like(data["py_grad"])], axis=-1)
    given[:, :-1, :, 1] = data["px_grad"][..., :-1]
    for posteriors in occupancies, given.swapaxes(1, 2):
        band = cupy_rnnt.prune_ranges(
            to_device(np.ascontiguousarray(posteriors)), frames, labels, 3
        )
        np.testing.assert_array_equal(band[0], data["ranges"][..., 0])
        assert band[1] == 3
    index = np.arange(3)[:, None, None], np.arange(10)[:, None], data["ranges"]
    logits = np.full((3, 10, 6, 8), np.nan, np.float32)
    logits[index] = data["logits"]
    arguments = logits, targets, frames, labels, blank
    pruned, grad = rnnt_loss_and_grad(*arguments, reduction="none", band=band)
    np.testing.assert_allclose(pruned, data["loss"], **FLOAT32)
    np.testing.assert_allclose(grad[index], data["grad"], **FLOAT32)


# Ranges


@pytest.mark.parametrize("transducer", ["regular", "modified", "constrained"])
def test_ranges_hold_a_path(transducer):
    """Of any posteriors; so no band is widened, where steps reach the end at all."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        case = random_joint_case(rng, 3, 9, 6, 5, 4)
        frames, labels = np.array([9, 8, 7]), rng.integers(0, 7, 3)
        posteriors = rng.random((3, 9, 7, 2))
        width = int(rng.integers(2, 9))
        band = cupy_rnnt.prune_ranges(posteriors, frames, labels, width, transducer)
        case = case._replace(logit_lengths=frames, target_lengths=labels)
        loss = joint_rnnt_loss(*case, reduction="none", transducer=transducer, band=band)
        assert np.isfinite(loss).all()  # a warning would be an error
        first = band[0]
        for row, t, u in zip(first, frames, labels, strict=True):
            assert row[0] == 0
            assert row[t - 1] + band[1] > u
            step = 1 if transducer != "regular" else band[1] - 1
            assert ((np.diff(row) >= 0) & (np.diff(row) <= step)).all()


def test_a_wide_range_is_all():
    case = random_joint_case(np.random.default_rng(0))
    posteriors = np.ones((4, 7, 6, 2))
    first, width = cupy_rnnt.prune_ranges(posteriors, *case[5:7], 99)
    assert width == 6
    assert not first.any()


# Arguments


def refused(error, text, function=cupy_rnnt.additive_rnnt_loss, **changes):
    am, lm, case = random_case(7)
    given = {"am": am, "lm": lm, **case._asdict()} | changes
    del given["logits"]
    with pytest.raises(error) as caught:
        function(**given)
    assert text in str(caught.value)


def test_wrong_arguments():
    am, lm, _ = random_case(7)
    refused(ValueError, "am has 2 dimensions", am=am[0])
    refused(TypeError, "lm has dtype float32, but float64 is needed", lm=lm.astype(np.float32))
    refused(ValueError, "lm has shape (4, 5, 9), but (4, 6, 9) is needed", lm=lm[:, 1:])
    refused(ValueError, "lm has shape (4, 6, 8), but (4, 6, 9) is needed", lm=lm[..., 1:])
    refused(TypeError, "lm_scale is '1', but a number is needed", lm_scale="1")
    refused(ValueError, "am_scale is nan", am_scale=np.nan)
    refused(ValueError, "needs one with a single softmax", transducer=HAT)
    refused(TypeError, "return_occupancies is 1", return_occupancies=1)
    refused(TypeError, "unexpected keyword argument 'clamp'", clamp=1.0)


def test_wrong_ranges():
    def wrong(error, text, **changes):
        given = {"occupancies": np.ones((2, 4, 3, 2)), "logit_lengths": [4, 4]}
        given |= {"target_lengths": [2, 2], "s_range": 2}
        with pytest.raises(error) as caught:
            cupy_rnnt.prune_ranges(**given | changes)
        assert text in str(caught.value)

    wrong(ValueError, "s_range is 1, but it must be at least 2", s_range=1)
    wrong(TypeError, "s_range is 2.0, but an integer is needed", s_range=2.0)
    wrong(ValueError, "occupancies has shape (2, 4, 3, 3), but (2, 4, 3, 2) is needed",
          occupancies=np.ones((2, 4, 3, 3)))  # fmt: skip
    wrong(ValueError, "logit_lengths[1] is 5", logit_lengths=[4, 5])
    cupy_rnnt.prune_ranges(np.ones((1, 4, 3, 2)), [4], [2], 1, "modified")


# PyTorch


@pytest.mark.parametrize("scales", [{}, {"lm_scale": 0.25, "am_scale": 0.15}])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_torch(reduction, scales):
    torch = pytest.importorskip("torch")
    adapter = pytest.importorskip("cupy_rnnt.torch")
    _, arguments = published("simple_regular_dp0.1")
    weights = np.array([0.5, -1.0, 2.0]) if reduction == "none" else None
    loss, grads, occupancies = cupy_rnnt.additive_rnnt_loss_and_grad(
        *arguments, reduction, **scales, return_occupancies=True, cost_weights=weights
    )
    lattice, blank = [torch.tensor(x) for x in arguments[2:5]], arguments[5]

    def call(am, lm):
        return adapter.additive_rnnt_loss(
            am, lm, *lattice, blank, reduction, **scales, return_occupancies=True
        )

    for run in call, torch.compile(call, fullgraph=True, backend="aot_eager"):
        inputs = [torch.tensor(x, requires_grad=True) for x in arguments[:2]]
        found, posteriors = run(*inputs)
        upstream = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        found.backward(upstream)
        np.testing.assert_allclose(found.detach(), loss, rtol=1e-6)
        np.testing.assert_allclose(posteriors, occupancies, atol=1e-7)
        for x, grad in zip(inputs, grads, strict=True):
            np.testing.assert_allclose(x.grad, grad, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        alone = adapter.additive_rnnt_loss(*inputs, *lattice, blank, reduction, **scales)
    np.testing.assert_allclose(alone, loss, rtol=1e-6)
    band = cupy_rnnt.prune_ranges(posteriors, *lattice[1:], 3)
    logits = (inputs[0][:, :, None] + inputs[1][:, None]).detach()
    pruned = adapter.rnnt_loss(logits, *lattice, blank, band=band)
    assert pruned > adapter.rnnt_loss(logits, *lattice, blank)


@pytest.mark.parametrize("padding", [7.0, np.nan])
def test_padding_chooses_no_band(padding):
    lengths, rng = ([6, 4], [4, 2]), np.random.default_rng(0)
    logits = 3 * rng.standard_normal((2, 6, 5, 6))
    posteriors = cupy_rnnt.rnnt_posteriors(logits, [[0, 1, 2, 3], [3, 2, 0, 0]], *lengths)
    expected, _ = cupy_rnnt.prune_ranges(posteriors, *lengths, 2)
    posteriors[1, :, 3:] = posteriors[1, 4:] = padding
    first, _ = cupy_rnnt.prune_ranges(posteriors, *lengths, 2)
    np.testing.assert_array_equal(first, expected)
