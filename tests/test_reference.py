"""The specification, held against enumeration, finite differences and published numbers."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, logsumexp, softmax

from cupy_rnnt import reference
from cupy_rnnt.reference import (
    joint_rnnt_loss,
    joint_rnnt_loss_and_grad,
    occupancies,
    rnnt_loss,
    rnnt_loss_and_grad,
)

# A few float64 operations on values of order 10, and no more than that.
EXACT = {"rtol": 1e-12, "atol": 1e-13}

# Central differences with step h err by about h**2 and by round-off / h: 1e-10 each at this step.
STEP = 1e-5
DIFFERENCES = {"rtol": 1e-7, "atol": 1e-8}

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: x * (x > 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    # (1 + tanh(y)) / 2 = sigmoid(2 y) gives the tanh approximation another face.
    "gelu": lambda x: x * expit(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "identity": lambda x: x,
}


def every_path(T, U):
    """All alignments, each a list of (t, u, is_label); the last transition is always a blank."""
    for emitting in combinations(range(T + U - 1), U):
        t = u = 0
        path = []
        for step in range(T + U):
            is_label = step in emitting
            path.append((t, u, is_label))
            t, u = (t, u + 1) if is_label else (t + 1, u)
        assert (t, u) == (T, U)
        yield path


def enumerated(logits, labels, blank, fused=True, fastemit=0.0):
    """Cost and gradient of one sample from the list of its paths, without any recursion."""
    T, S, _ = logits.shape
    paths = [
        [(t, u, labels[u] if is_label else blank, is_label) for t, u, is_label in path]
        for path in every_path(T, S - 1)
    ]
    log_probs = log_softmax(logits, axis=-1) if fused else logits
    scores = [sum(log_probs[t, u, k] for t, u, k, _ in path) for path in paths]
    grad = np.zeros(logits.shape)
    for path, posterior in zip(paths, softmax(scores), strict=True):
        for t, u, k, is_label in path:
            share = posterior * (1 + fastemit) if is_label else posterior
            grad[t, u, k] -= share
            if fused:
                grad[t, u] += share * softmax(logits[t, u])
    return -logsumexp(scores), grad


def random_batch(seed=0, B=3, T=4, U=2, V=5, blank=-1):
    """Logits, targets and lengths of samples that all differ, with padding beyond every length."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(B, T + 1, U + 2, V))
    labels = np.delete(np.arange(V), blank)
    targets = rng.choice(labels, size=(B, U + 1))
    logit_lengths = np.array([T, T - 1, 1, *rng.integers(1, T + 1, B)])[:B]
    target_lengths = np.array([U - 1, U, U, *rng.integers(0, U + 1, B)])[:B]
    return logits, targets, logit_lengths, target_lengths


def random_joint(seed=0, H=6, **shape):
    """Inputs of the joint and the rest of a batch; every extent differs from every other."""
    logits, *rest = random_batch(seed, **shape)
    B, T, S, V = logits.shape
    rng = np.random.default_rng(seed + 1)
    inputs = tuple(rng.normal(size=size) for size in ((B, T, H), (B, S, H), (V, H), (V,)))
    return inputs, rest


def padding(logits, logit_lengths, target_lengths):
    """True where a cell (b, t, u) is padding."""
    _, t, u = np.indices(logits.shape[:3])
    outside_time = t >= np.asarray(logit_lengths)[:, None, None]
    return outside_time | (u > np.asarray(target_lengths)[:, None, None])


def central_differences(function, array):
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[index] += STEP
        down[index] -= STEP
        gradient[index] = (function(up) - function(down)) / (2 * STEP)
    return gradient


def assert_all_close(actual, desired, **tolerance):
    for one, other in zip(actual, desired, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


# Enumeration


def test_every_path_counts_the_alignments():
    # U labels among the T + U - 1 transitions before the last blank.
    assert len(list(every_path(4, 3))) == 20
    assert len(list(every_path(1, 3))) == len(list(every_path(4, 0))) == 1


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    T=st.integers(1, 4),
    U=st.integers(0, 3),
    V=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    fused=st.booleans(),
    fastemit=st.sampled_from([0.0, 0.3]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    data=st.data(),
)
def test_loss_and_gradient_are_those_of_the_enumerated_paths(
    T, U, V, seed, fused, fastemit, scale, data
):
    blank = data.draw(st.integers(-V, V - 1), label="blank")
    labels = data.draw(st.lists(st.integers(0, V - 1), min_size=U, max_size=U), label="labels")
    logits = scale * np.random.default_rng(seed).normal(size=(T, U + 1, V))
    cost, grad = enumerated(logits, labels, blank, fused, fastemit)

    batch = logits[None], np.array([labels], int), [T], [U], blank, -1.0, "sum", fused
    loss, grad_logits = rnnt_loss_and_grad(*batch, fastemit_lambda=fastemit)
    np.testing.assert_allclose(loss, cost, **EXACT)
    np.testing.assert_allclose(grad_logits[0], grad, rtol=1e-11, atol=1e-12)
    assert rnnt_loss(*batch, fastemit_lambda=fastemit) == loss


def test_unreachable_paths_count_for_nothing():
    logits = np.random.default_rng(3).normal(size=(4, 3, 5))
    logits[1, 0, 0] = logits[2, 1, 3] = -np.inf
    cost, grad = enumerated(logits, [1, 3], 0)
    loss, grad_logits = rnnt_loss_and_grad(logits[None], [[1, 3]], [4], [2], 0, reduction="sum")
    np.testing.assert_allclose(loss, cost, **EXACT)
    np.testing.assert_allclose(grad_logits[0], grad, **EXACT)


def test_alphas_betas_and_occupancies_tell_one_story():
    rng = np.random.default_rng(5)
    T, U = 6, 4
    blank_log_probs, label_log_probs = np.log(rng.random((T, U + 1))), np.log(rng.random((T, U)))
    alpha = reference.alphas(blank_log_probs, label_log_probs)
    beta = reference.betas(blank_log_probs, label_log_probs)
    blank, label, log_prob = occupancies(blank_log_probs, label_log_probs)

    np.testing.assert_allclose(alpha[-1, -1] + blank_log_probs[-1, -1], log_prob, **EXACT)
    # Every path crosses every anti-diagonal once.
    for n in range(T + U):
        cells = [(t, n - t) for t in range(T) if 0 <= n - t <= U]
        total = logsumexp([alpha[cell] + beta[cell] for cell in cells])
        np.testing.assert_allclose(total, log_prob, **EXACT)
    np.testing.assert_allclose(blank.sum(axis=1), 1.0, **EXACT)
    np.testing.assert_allclose(label.sum(axis=0), 1.0, **EXACT)


# Finite differences


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("blank", [0, 2, -1])
def test_gradient_of_logits_by_finite_differences(fused, blank):
    logits, *rest = random_batch(blank=blank)
    weights = np.array([0.5, -2.0, 3.0])

    def weighted(logits):
        return weights @ rnnt_loss(logits, *rest, blank, -1.0, "none", fused)

    _, grad = rnnt_loss_and_grad(logits, *rest, blank, -1.0, "mean", fused, cost_weights=weights)
    np.testing.assert_allclose(grad, central_differences(weighted, logits), **DIFFERENCES)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_joint_by_finite_differences(activation, with_bias):
    inputs, rest = random_joint(B=2, T=3, U=2, V=4, H=7)
    inputs = inputs if with_bias else (*inputs[:3], None)
    weights = np.array([0.5, -2.0])
    _, grads = joint_rnnt_loss_and_grad(*inputs, *rest, activation=activation, cost_weights=weights)
    assert grads._fields == ("encoder_out", "predictor_out", "weight", "bias")
    assert (grads.bias is None) == (not with_bias)

    # Without a bias nothing differs but its absence: one input is enough.
    for i in range(4) if with_bias else [2]:

        def weighted(array, i=i):
            changed = (*inputs[:i], array, *inputs[i + 1 :])
            costs = joint_rnnt_loss(*changed, *rest, reduction="none", activation=activation)
            return weights @ costs

        differences = central_differences(weighted, inputs[i])
        np.testing.assert_allclose(grads[i], differences, **DIFFERENCES, err_msg=grads._fields[i])


@pytest.mark.parametrize("clamp", [-1.0, 0.05])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_joint_is_the_loss_of_its_logits(activation, clamp):
    (encoder_out, predictor_out, weight, bias), rest = random_joint(seed=7, blank=1)
    pre_activation = encoder_out[:, :, None] + predictor_out[:, None]
    hidden = ACTIVATIONS[activation](pre_activation)
    common = {"fastemit_lambda": 0.2, "cost_weights": [1.0, 0.0, -3.0]}
    loss, d_logits = rnnt_loss_and_grad(hidden @ weight.T + bias, *rest, 1, clamp, **common)

    inputs = encoder_out, predictor_out, weight, bias
    joint_loss, grads = joint_rnnt_loss_and_grad(
        *inputs, *rest, 1, clamp, activation=activation, **common
    )
    np.testing.assert_allclose(joint_loss, loss, **EXACT)
    np.testing.assert_allclose(
        joint_rnnt_loss(*inputs, *rest, 1, clamp, activation=activation), loss, **EXACT
    )
    slope = (
        ACTIVATIONS[activation](pre_activation + STEP)
        - ACTIVATIONS[activation](pre_activation - STEP)
    ) / (2 * STEP)
    d_sum = d_logits @ weight * slope
    np.testing.assert_allclose(grads.bias, d_logits.sum(axis=(0, 1, 2)), **EXACT)
    np.testing.assert_allclose(
        grads.weight, np.einsum("btuv,btuh->vh", d_logits, hidden), rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(grads.encoder_out, d_sum.sum(axis=2), **DIFFERENCES)
    np.testing.assert_allclose(grads.predictor_out, d_sum.sum(axis=1), **DIFFERENCES)


# Published numbers

DATA = Path(__file__).parent / "data"

# Tolerances of loss and gradient: half a unit of the last printed digit, or a whole one where it
# was cut off and not rounded. Most sources computed in float32, whose round-off is in what they
# print beyond seven digits: 5e-7 is one ulp of a loss near 5, and gradients below 1 add up a few
# roundings of 3e-8 each.
PUBLISHED = {
    "B1_T2_U3_D5_blank_last": (5e-7, 4e-7),
    "B2_T4_U3_D3": (1e-13, 2e-7),  # the loss was computed in float64
    "warp_rnnt_batch": (2e-8, 1e-8),
    "warp_transducer_options_test": (1e-13, 5e-7),
    "warp_transducer_small": (1e-6, 2e-7),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses_and_gradients(name):
    case = np.load(DATA / f"published_{name}.npz")
    # Those whose inputs are log-probabilities differentiate with respect to them.
    fused = "log_probs" not in case
    loss, grad = rnnt_loss_and_grad(
        case["logits" if fused else "log_probs"],
        case["targets"],
        case["logit_lengths"],
        case["target_lengths"],
        int(case["blank"]),
        reduction="none",
        fused_log_softmax=fused,
    )
    loss_tolerance, grad_tolerance = PUBLISHED[name]
    np.testing.assert_allclose(loss, case["loss"], rtol=0, atol=loss_tolerance)
    np.testing.assert_allclose(grad, case["grad"], rtol=0, atol=grad_tolerance)
    np.testing.assert_allclose(loss, case["ref64_loss"], **EXACT)
    np.testing.assert_allclose(grad, case["ref64_grad"], **EXACT)


@pytest.mark.parametrize("name", ["small", "big"])
def test_published_additive_joint(name):
    case = np.load(DATA / f"published_awni_transducer_{name}.npz")
    V = case["emissions"].shape[-1]
    loss, grads = joint_rnnt_loss_and_grad(
        case["emissions"],
        case["predictions"],
        np.eye(V),
        None,
        case["targets"],
        case["logit_lengths"],
        case["target_lengths"],
        int(case["blank"]),
        reduction="none",
        activation="identity",
    )
    # float32 sources, the gradients being sums over the frames or the columns.
    for ours, theirs in (
        (loss, "loss"),
        (grads.encoder_out, "grad_emissions"),
        (grads.predictor_out, "grad_predictions"),
    ):
        np.testing.assert_allclose(ours, case[theirs], rtol=0, atol=5e-7)
    np.testing.assert_allclose(loss, case["ref64_loss_"], **EXACT)
    np.testing.assert_allclose(grads.encoder_out, case["ref64_grad_emissions"], **EXACT)
    np.testing.assert_allclose(grads.predictor_out, case["ref64_grad_predictions"], **EXACT)


# Facts


@pytest.mark.parametrize("fastemit", [0.0, 0.4])
def test_gradient_rows_sum_to_zero_and_row_constants_change_nothing(fastemit):
    logits, *rest = random_batch(seed=2, B=4, T=6, U=3, V=7)
    shifted = logits + np.random.default_rng(9).normal(size=(*logits.shape[:3], 1))
    loss, grad = rnnt_loss_and_grad(logits, *rest, fastemit_lambda=fastemit)
    np.testing.assert_allclose(grad.sum(axis=-1), 0.0, atol=1e-14)
    assert np.abs(grad).max() > 0.01
    assert_all_close(
        rnnt_loss_and_grad(shifted, *rest, fastemit_lambda=fastemit), (loss, grad), **EXACT
    )


@pytest.mark.parametrize("fused", [True, False])
def test_padding_is_never_read(fused):
    logits, targets, logit_lengths, target_lengths = random_batch()
    is_padding = padding(logits, logit_lengths, target_lengths)
    assert is_padding.any(axis=(1, 2)).all()
    spoiled = np.where(is_padding[..., None], np.nan, logits)
    beyond = np.arange(targets.shape[1]) >= target_lengths[:, None]
    spoiled_targets = np.where(beyond, -(2**30), targets)
    lengths = logit_lengths, target_lengths, -1, -1.0, "none", fused
    loss, grad = rnnt_loss_and_grad(logits, targets, *lengths)
    spoiled_loss, spoiled_grad = rnnt_loss_and_grad(spoiled, spoiled_targets, *lengths)
    np.testing.assert_array_equal(spoiled_loss, loss)
    np.testing.assert_array_equal(spoiled_grad, grad)
    assert np.all(grad[is_padding] == 0)
    assert np.isfinite(loss).all()


def test_padding_of_the_joint_is_never_read():
    inputs, (targets, logit_lengths, target_lengths) = random_joint()
    encoder_out, predictor_out, weight, bias = inputs
    frames = np.arange(encoder_out.shape[1]) >= logit_lengths[:, None]
    columns = np.arange(predictor_out.shape[1]) > target_lengths[:, None]
    spoiled = (
        np.where(frames[..., None], np.nan, encoder_out),
        np.where(columns[..., None], np.inf, predictor_out),
    )
    rest = targets, logit_lengths, target_lengths
    loss, grads = joint_rnnt_loss_and_grad(*inputs, *rest)
    spoiled_loss, spoiled_grads = joint_rnnt_loss_and_grad(*spoiled, weight, bias, *rest)
    assert spoiled_loss == loss
    for spoiled_grad, grad in zip(spoiled_grads, grads, strict=True):
        np.testing.assert_array_equal(spoiled_grad, grad)
    assert np.all(grads.encoder_out[frames] == 0)
    assert np.all(grads.predictor_out[columns] == 0)


def test_samples_do_not_depend_on_their_batch():
    logits, targets, logit_lengths, target_lengths = random_batch()
    losses, grad = rnnt_loss_and_grad(
        logits, targets, logit_lengths, target_lengths, reduction="none"
    )
    for b, (T, U) in enumerate(zip(logit_lengths, target_lengths, strict=True)):
        cost, sample_grad = rnnt_loss_and_grad(
            logits[b : b + 1, :T, : U + 1], targets[b : b + 1, :U], [T], [U], reduction="sum"
        )
        assert cost == losses[b]
        np.testing.assert_array_equal(sample_grad[0], grad[b, :T, : U + 1])


# Costs that are not finite


def impossible(logits):
    """The last blank of the first sample of `random_batch` can no longer be taken."""
    changed = logits.copy()
    changed[0, 3, 1, -1] = -np.inf
    return changed


def undefined(logits):
    changed = logits.copy()
    changed[0, 1, 0, 2] = np.nan
    return changed


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize(("spoil", "cost"), [(impossible, np.inf), (undefined, np.nan)])
def test_cost_that_is_not_finite_has_no_gradient_and_stays_alone(spoil, cost, zero_infinity):
    logits, *rest = random_batch()
    losses, grad = rnnt_loss_and_grad(logits, *rest, reduction="none")
    # The weight of such a sample must not matter either.
    spoiled_losses, spoiled_grad = rnnt_loss_and_grad(
        spoil(logits),
        *rest,
        reduction="none",
        zero_infinity=zero_infinity,
        cost_weights=[np.inf, 1.0, 1.0],
    )
    np.testing.assert_array_equal(spoiled_losses, [0.0 if zero_infinity else cost, *losses[1:]])
    np.testing.assert_array_equal(spoiled_grad[0], 0.0)
    np.testing.assert_array_equal(spoiled_grad[1:], grad[1:])
    mean = rnnt_loss(spoil(logits), *rest, zero_infinity=zero_infinity)
    # A sample counted as 0 is still counted.
    np.testing.assert_allclose(mean, losses[1:].sum() / 3 if zero_infinity else cost, **EXACT)


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_undefined_sample_of_the_joint_stays_alone(zero_infinity):
    inputs, rest = random_joint()
    encoder_out, *others = inputs
    spoiled = encoder_out.copy()
    spoiled[0, 1, 2] = np.nan
    common = {"reduction": "none", "zero_infinity": zero_infinity}
    losses, _ = joint_rnnt_loss_and_grad(*inputs, *rest, **common)
    _, without_first = joint_rnnt_loss_and_grad(
        *inputs, *rest, **common, cost_weights=[0.0, 1.0, 1.0]
    )
    spoiled_losses, grads = joint_rnnt_loss_and_grad(spoiled, *others, *rest, **common)
    np.testing.assert_array_equal(spoiled_losses, [0.0 if zero_infinity else np.nan, *losses[1:]])
    assert_all_close(grads, without_first, **EXACT)


def test_logits_of_minus_infinity_off_every_path_are_harmless():
    logits, targets, *lengths = random_batch(V=7)
    targets = targets % 3
    logits[..., 4] = -np.inf
    loss, grad = rnnt_loss_and_grad(logits, targets, *lengths)
    smaller_loss, smaller_grad = rnnt_loss_and_grad(np.delete(logits, 4, -1), targets, *lengths)
    np.testing.assert_allclose(loss, smaller_loss, **EXACT)
    np.testing.assert_allclose(np.delete(grad, 4, -1), smaller_grad, **EXACT)
    assert np.all(grad[..., 4] == 0)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_logit_of_plus_infinity_closes_the_cells_of_other_symbols():
    logits = np.random.default_rng(6).normal(size=(1, 4, 2, 5))
    logits[0, 2, 0, 3] = np.inf
    loss, grad = rnnt_loss_and_grad(logits, [[1]], [4], [1])
    closed = logits.copy()
    closed[0, 2, 0] = [0.0, -np.inf, 0.0, 0.0, -np.inf]
    expected_loss, expected_grad = rnnt_loss_and_grad(closed, [[1]], [4], [1])
    np.testing.assert_allclose(loss, expected_loss, **EXACT)
    np.testing.assert_allclose(grad, expected_grad, **EXACT)
    assert np.all(grad[0, 2, 0] == 0)


# Options


def test_blank_counts_from_the_end_when_negative():
    logits, *rest = random_batch(V=5, blank=1)
    positive = rnnt_loss_and_grad(logits, *rest, 1)
    negative = rnnt_loss_and_grad(logits, *rest, -4)
    assert_all_close(negative, positive, rtol=0, atol=0)
    assert positive[0] != rnnt_loss(logits, *rest, 2)


def test_moving_the_blank_moves_the_gradient():
    logits, targets, *lengths = random_batch(V=5, blank=0)
    loss, grad = rnnt_loss_and_grad(logits, targets, *lengths, 0)
    moved = np.roll(logits, -1, axis=-1), targets - 1
    moved_loss, moved_grad = rnnt_loss_and_grad(*moved, *lengths)
    np.testing.assert_allclose(moved_loss, loss, **EXACT)
    np.testing.assert_allclose(np.roll(moved_grad, 1, axis=-1), grad, **EXACT)


def test_clamp_bounds_the_gradient_at_unit_scale():
    logits, *rest = random_batch()
    weights = np.array([5.0, 0.1, -2.0])
    loss, grad = rnnt_loss_and_grad(logits, *rest, reduction="sum", fastemit_lambda=0.5)
    bound = np.median(np.abs(grad[grad != 0]))
    clamped_loss, clamped = rnnt_loss_and_grad(
        logits, *rest, clamp=bound, fastemit_lambda=0.5, reduction="sum", cost_weights=weights
    )
    assert clamped_loss == loss
    expected = weights[:, None, None, None] * np.clip(grad, -bound, bound)
    np.testing.assert_allclose(clamped, expected, **EXACT)
    # Zero is no bound.
    np.testing.assert_array_equal(
        rnnt_loss_and_grad(logits, *rest, clamp=0.0, reduction="sum", fastemit_lambda=0.5)[1], grad
    )


def test_fastemit_scales_labels_in_the_gradient_only():
    logits, *rest = random_batch()
    log_probs = log_softmax(logits, axis=-1)
    loss, plain = rnnt_loss_and_grad(log_probs, *rest, fused_log_softmax=False)
    fast_loss, fast = rnnt_loss_and_grad(
        log_probs, *rest, fused_log_softmax=False, fastemit_lambda=0.25
    )
    assert fast_loss == loss
    np.testing.assert_array_equal(fast[..., -1], plain[..., -1])
    np.testing.assert_allclose(fast[..., :-1], 1.25 * plain[..., :-1], **EXACT)
    assert np.any(plain[..., :-1] != 0)


def test_log_probs_as_given_cost_the_same_as_logits():
    logits, *rest = random_batch()
    log_probs = log_softmax(logits, axis=-1)
    loss, grad = rnnt_loss_and_grad(log_probs, *rest, fused_log_softmax=False)
    fused_loss, fused_grad = rnnt_loss_and_grad(logits, *rest)
    np.testing.assert_allclose(loss, fused_loss, **EXACT)
    # The chain rule of log_softmax leads from one gradient to the other.
    chained = grad - np.exp(log_probs) * grad.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(chained, fused_grad, **EXACT)
    # Nothing normalises what is given: a constant adds up along the T + U transitions.
    _, logit_lengths, target_lengths = rest
    moved = rnnt_loss(log_probs + 0.5, *rest, reduction="none", fused_log_softmax=False)
    expected = rnnt_loss(logits, *rest, reduction="none") - 0.5 * (logit_lengths + target_lengths)
    np.testing.assert_allclose(moved, expected, **EXACT)


def test_reductions_and_cost_weights():
    logits, *rest = random_batch()
    costs, each = rnnt_loss_and_grad(logits, *rest, reduction="none")
    assert costs.shape == (3,)
    assert len(set(costs)) == 3
    for reduction, weight in (("mean", 1 / 3), ("sum", 1.0)):
        loss, grad = rnnt_loss_and_grad(logits, *rest, reduction=reduction)
        np.testing.assert_allclose(loss, weight * costs.sum(), **EXACT)
        np.testing.assert_allclose(grad, weight * each, **EXACT)
        assert loss.dtype == grad.dtype == np.float64
    weights = np.array([2.0, 0.0, -0.5])
    for reduction in ("none", "mean", "sum"):
        loss, grad = rnnt_loss_and_grad(logits, *rest, reduction=reduction, cost_weights=weights)
        np.testing.assert_array_equal(loss, rnnt_loss(logits, *rest, reduction=reduction))
        np.testing.assert_allclose(grad, weights[:, None, None, None] * each, **EXACT)


def test_joint_reduces_like_the_loss():
    inputs, rest = random_joint()
    costs, each = joint_rnnt_loss_and_grad(*inputs, *rest, reduction="none")
    total, summed = joint_rnnt_loss_and_grad(*inputs, *rest, reduction="sum")
    mean, averaged = joint_rnnt_loss_and_grad(*inputs, *rest)
    np.testing.assert_allclose([total, mean], [costs.sum(), costs.mean()], **EXACT)
    assert_all_close(summed, each, **EXACT)
    assert_all_close(averaged, [grad / 3 for grad in each], **EXACT)


# Corners


def test_no_labels_is_a_chain_of_blanks():
    logits = np.random.default_rng(1).normal(size=(1, 4, 1, 3))
    loss, grad = rnnt_loss_and_grad(logits, np.zeros((1, 0), int), [4], [0], 1)
    np.testing.assert_allclose(loss, -log_softmax(logits, -1)[..., 1].sum(), **EXACT)
    np.testing.assert_allclose(grad, softmax(logits, -1) - np.eye(3)[1], **EXACT)


def test_one_frame_is_a_chain_of_labels():
    logits = np.random.default_rng(1).normal(size=(1, 1, 4, 5))
    chain = [2, 0, 2, 4]  # three labels, then the blank
    loss, grad = rnnt_loss_and_grad(logits, [chain[:3]], [1], [3])
    np.testing.assert_allclose(loss, -log_softmax(logits[0, 0], -1)[range(4), chain].sum(), **EXACT)
    np.testing.assert_allclose(grad, softmax(logits, -1) - np.eye(5)[chain], **EXACT)


def test_more_labels_than_frames():
    logits = np.random.default_rng(4).normal(size=(1, 2, 7, 4))
    labels = [0, 1, 2, 0, 0, 1]
    cost, grad = enumerated(logits[0], labels, -1)
    assert_all_close(
        rnnt_loss_and_grad(logits, [labels], [2], [6]), (cost, grad[None]), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_inputs_are_widened_and_left_alone(dtype):
    (*inputs, bias), rest = random_joint()
    narrow = [array.astype(dtype) for array in (*inputs, bias)]
    wide = [array.astype(np.float64) for array in narrow]
    loss, grads = joint_rnnt_loss_and_grad(*narrow, *rest)
    wide_loss, wide_grads = joint_rnnt_loss_and_grad(*wide, *rest)
    assert loss == wide_loss
    assert_all_close(grads, wide_grads, rtol=0, atol=0)
    assert all(grad.dtype == np.float64 for grad in grads)
    assert all(map(np.array_equal, narrow, wide))

    logits, *rest = random_batch()
    logits = logits.astype(dtype)
    assert rnnt_loss(logits, *rest) == rnnt_loss(logits.astype(np.float64), *rest)


def test_long_and_improbable():
    # exp(-cost) underflows by far, occupancies must not.
    T, U, V = 150, 40, 3
    logits = 20 * np.random.default_rng(0).normal(size=(1, T, U + 1, V))
    loss, grad = rnnt_loss_and_grad(
        logits, np.arange(U)[None] % 2, [T], [U], fused_log_softmax=False
    )
    assert np.isfinite(loss)
    blank_occupancy, label_occupancy = -grad[0, ..., 2], -grad[0, :, :-1, :2].sum(axis=-1)
    np.testing.assert_allclose(blank_occupancy.sum(axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(label_occupancy.sum(axis=0), 1.0, rtol=1e-9)


def test_unknown_reduction_is_refused():
    with pytest.raises(KeyError, match="average"):
        rnnt_loss(*random_batch(), reduction="average")
