"""Certified selection at its edges: least shapes, masks, what is not finite, fresh models."""

import numpy as np
import pytest

from cupy_rnnt import reference
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS

from ...device_calls import joint_rnnt_loss, joint_rnnt_loss_and_grad
from ...helpers import random_joint_case
from ...tolerances import assert_costs_close, assert_gradients_close
from .cases import below, check_certificate, computed_cells, first_choice, selecting
from .joints import aligned_case, any_case, shapes, with_padding

every_arithmetic = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def selected(case, **options):
    """Costs, gradients, info, and of each sample the share of its cells that was computed."""
    with selecting(), computed_cells() as computed:
        results = joint_rnnt_loss_and_grad(*case, reduction="none", return_info=True, **options)
    return *results, [mask.mean() for mask in computed.masks(case)]


def trained(seed=0, dtype=np.float64):
    """Samples of full length, of which cells are left out."""
    lengths = np.array([20, 24, 22]), np.array([8, 7, 8])
    rng = np.random.default_rng(seed)
    return aligned_case(rng, 3, 24, 8, 12, 16, dtype=dtype, sharpness=8.0, lengths=lengths)


def repeated(case):
    return case._replace(targets=np.repeat(case.targets[:, :1], case.targets.shape[1], axis=1))


LEAST = {
    "one frame": (1, 7, 9),
    "no label": (8, 0, 9),
    "one cell": (1, 0, 9),
    "two entries": (12, 6, 2),
    "two entries, one frame": (1, 4, 2),
    "one label": (12, 1, 9),
    "two frames": (2, 9, 9),
}


@pytest.mark.parametrize("choose", [None, below(0.0), below(3.0)], ids=["bounds", "0", "3 nats"])
@pytest.mark.parametrize("shape", LEAST.values(), ids=LEAST)
@pytest.mark.thinned(2)
def test_least_shapes(device, shape, choose):
    frames, labels, vocabulary = shape
    for seed in range(6 if device.name == "numpy" else 2):
        rng = np.random.default_rng(seed)
        lengths = np.full(3, frames), np.full(3, labels)
        sizes = 3, frames, labels, vocabulary, 8
        case = (aligned_case if seed % 2 else any_case)(rng, *sizes)
        case = case._replace(logit_lengths=lengths[0], target_lengths=lengths[1])
        check_certificate(case, 1e-2, choose)
        check_certificate(repeated(case), 1e-2, choose)
        _, gradients, *_ = selected(case, tolerance=1e-12)
        _, expected = reference.joint_rnnt_loss_and_grad(*case, reduction="none")
        for one, other in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * max(1, abs(other).max()))


@every_arithmetic
def test_repeated_labels(device, dtype):
    case = repeated(trained(dtype=dtype))
    costs, gradients, info, _ = selected(case)
    expected_costs, expected = reference.joint_rnnt_loss_and_grad(*case, reduction="none")
    assert info.computed < info.cells
    assert_costs_close(costs, expected_costs, dtype, case.length)
    assert_gradients_close(gradients, expected, dtype, case.length)


@every_arithmetic
def test_masked_vocabulary(device, dtype):
    case = trained(dtype=dtype)
    masked = np.setdiff1d(np.arange(11), case.targets[:, :6])[:3]
    bias = case.bias.copy()
    bias[masked] = -np.inf
    case = case._replace(
        bias=bias, targets=np.where(np.isin(case.targets, masked), 10, case.targets)
    )
    costs, gradients, info, _ = selected(case)
    expected_costs, expected = reference.joint_rnnt_loss_and_grad(*case, reduction="none")
    assert len(masked)
    assert info.computed < info.cells
    assert_costs_close(costs, expected_costs, dtype, case.length)
    assert_gradients_close(gradients, expected, dtype, case.length)
    assert not gradients.weight[masked].any()
    assert not gradients.bias[masked].any()


@pytest.mark.parametrize("masked", ["blank", "target"])
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_probability_zero(device, zero_infinity, masked):
    """Without the blank nobody gets to the end; without a label those who need it do not."""
    case = trained()
    targets, bias = np.minimum(case.targets, 9), case.bias.copy()
    targets[1, 3] = 10
    bias[11 if masked == "blank" else 10] = -np.inf
    case = case._replace(targets=targets, bias=bias)
    costs, gradients, info, shares = selected(case, zero_infinity=zero_infinity)
    expected_costs, expected = reference.joint_rnnt_loss_and_grad(
        *case, reduction="none", zero_infinity=zero_infinity
    )
    impossible = np.array([masked == "blank", True, masked == "blank"])
    np.testing.assert_array_equal(costs[impossible], 0.0 if zero_infinity else np.inf)
    assert_costs_close(costs, expected_costs, np.float64, case.length)
    assert_gradients_close(gradients, expected, np.float64, case.length)
    np.testing.assert_array_equal(np.array(shares) == 1, info.certificate == 0)
    assert np.array(shares)[impossible].min(initial=1) == 1
    assert not gradients.encoder_out[impossible].any()
    if masked == "target":
        assert info.computed < info.cells


def test_an_impossible_sample_beside_one_that_needs_repair(device):
    """Neither the log of its probability nor that of its bound is in the way of the others."""
    case = trained()
    targets, bias = np.minimum(case.targets, 9), case.bias.copy()
    targets[1, 3] = 10
    bias[10] = -np.inf
    with first_choice(below(3.0)):
        costs, _, info, shares = selected(case._replace(targets=targets, bias=bias))
    assert info.rounds > 1
    assert costs[1] == np.inf
    assert shares[1] == 1
    assert min(shares) < 1


BAD = {
    "encoder_out": (1, 4, 3),
    "predictor_out": (1, 2, 3),
    "weight": (4, 5),
    "bias": (4,),
}


@pytest.mark.parametrize("astray", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.thinned(13)
def test_what_is_not_finite(device, activation, name, bad, astray):
    """Costs are what they are without selection: a sample with a NaN costs NaN, and is computed
    whole; others are not touched by it."""
    case = trained()
    array = getattr(case, name).copy()
    array[BAD[name]] = bad
    case = case._replace(**{name: array})
    if astray:
        with first_choice(below(3.0)):
            costs, gradients, info, shares = selected(case, activation=activation)
    else:
        costs, gradients, info, shares = selected(case, activation=activation)
    expected, whole = joint_rnnt_loss_and_grad(
        *case, reduction="none", activation=activation, tolerance=0
    )
    assert_costs_close(costs, expected, np.float64, case.length)
    if name in ("encoder_out", "predictor_out"):
        assert np.isfinite(costs[[0, 2]]).all()
        assert np.isnan(bad) <= np.isnan(costs[1])
    shares = np.array(shares)
    assert (shares[~np.isfinite(costs)] == 1).all()
    np.testing.assert_array_equal(info.certificate == 0, shares == 1)
    if name != "weight" or np.isnan(bad):  # 0 times inf is NaN in the gradient of a hidden value
        assert_gradients_close(gradients, whole, np.float64, case.length)


@every_arithmetic
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.thinned(5)
def test_inputs_as_large_as_they_can_be(device, activation, dtype):
    """Their means overflow; a sample that has them may cost anything, and touches no other."""
    case = trained(dtype=dtype)
    healthy, *_ = selected(case, activation=activation)
    encoder_out = case.encoder_out.copy()
    encoder_out[1, :3] = np.finfo(dtype).max
    encoder_out[1, 3:6] = -np.finfo(dtype).max
    case = case._replace(encoder_out=encoder_out)
    costs, *_ = selected(case, activation=activation)
    expected = joint_rnnt_loss(*case, reduction="none", activation=activation, tolerance=0)
    # To rounding, as more cells of this sample move those of others to other rows of a product.
    assert_costs_close(costs[[0, 2]], healthy[[0, 2]], dtype, case.length)
    assert_costs_close(costs, expected, dtype, case.length)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_padding_that_is_not_finite(device, value):
    case = trained()
    costs, gradients, info, _ = selected(case)
    others = selected(with_padding(case, value))
    np.testing.assert_array_equal(costs, others[0])
    np.testing.assert_array_equal(info.certificate, others[2].certificate)
    for one, other in zip(gradients, others[1], strict=True):
        np.testing.assert_array_equal(one, other)


@every_arithmetic
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_inputs_beyond_the_exponentials(device, activation, dtype):
    """A sample with outputs above 20, which bounds of products of exponentials are not for."""
    case = trained(dtype=dtype)
    encoder_out, predictor_out = case.encoder_out.copy(), case.predictor_out.copy()
    encoder_out[0, 3] = 25.0
    encoder_out[2, :, ::2] += 60.0  # the predictor takes it back
    predictor_out[2, :, ::2] -= 60.0
    case = case._replace(encoder_out=encoder_out, predictor_out=predictor_out)
    costs, gradients, info, _ = selected(case, activation=activation)
    expected_costs, expected = reference.joint_rnnt_loss_and_grad(
        *case, reduction="none", activation=activation
    )
    assert info.computed < info.cells
    assert_costs_close(costs, expected_costs, dtype, case.length)
    assert_gradients_close(gradients, expected, dtype, case.length)


@pytest.mark.parametrize("tolerance", [5e-324, 1e-320, 1e-300, 1e-17, 1 - 1e-16])
def test_extreme_tolerances(device, tolerance):
    """The least ask for every cell but those that no path leads through; the largest leaves out no
    more than it says."""
    case = trained()
    costs, _, info, _ = selected(case, tolerance=tolerance)
    expected = reference.joint_rnnt_loss(*case, reduction="none")
    assert info.certificate.max() <= tolerance / 2
    assert (costs >= expected - 1e-11).all()
    assert (costs <= expected + np.log1p(info.certificate) + 1e-11).all()


# Models that have learned nothing, and transcripts of something else


@every_arithmetic
@pytest.mark.parametrize("most", [0.8, 1.0])
@pytest.mark.parametrize("scale", [0.0, 0.01, 0.3])
@pytest.mark.thinned(5)
def test_fresh_models_are_computed_whole(device, scale, most, dtype):
    """Their posteriors are spread over the lattice, and so are the bounds."""
    case = random_joint_case(np.random.default_rng(0), 4, 14, 9, 30, 16, dtype=dtype, scale=scale)
    with selecting(most):
        loss, gradients, info = joint_rnnt_loss_and_grad(*case, return_info=True)
    expected, whole = joint_rnnt_loss_and_grad(*case, tolerance=0)
    assert info.rounds == 1
    if most < 1:
        assert info.computed == info.cells
    assert_costs_close(loss, expected, dtype, case.length)
    assert_gradients_close(gradients, whole, dtype, case.length)


@every_arithmetic
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.thinned(3)
def test_wrong_transcripts(device, seed, dtype):
    """Whatever the bounds are worth where every alignment is unlikely, the loss is that of all."""
    case = trained(seed, dtype)
    case = case._replace(targets=case.targets[:, ::-1] % 10 + 1)
    loss, gradients, info, _ = selected(case)
    expected, whole = joint_rnnt_loss_and_grad(*case, reduction="none", tolerance=0)
    right = joint_rnnt_loss(*trained(seed, dtype), reduction="none", tolerance=0)
    assert (expected > right + 20).all()
    assert_costs_close(loss, expected, dtype, case.length)
    assert_gradients_close(gradients, whole, dtype, case.length)
    assert info.cells == sum(t * s for t, s in shapes(case))
