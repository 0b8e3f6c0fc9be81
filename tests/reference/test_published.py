"""Reference and engine, held against published numbers."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt import reference

from .. import DATA, device_calls
from .cases import EXACT

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

both_implementations = pytest.mark.parametrize(
    "package", [reference, device_calls], ids=["reference", "engine"]
)


@both_implementations
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses_and_gradients(device, name, package):
    case = np.load(DATA / f"published_{name}.npz")
    # Those whose inputs are log-probabilities differentiate with respect to them.
    fused = "log_probs" not in case
    loss, grad = package.rnnt_loss_and_grad(
        case["logits" if fused else "log_probs"].astype(np.float64),
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


@both_implementations
@pytest.mark.parametrize("name", ["small", "big"])
def test_published_additive_joint(device, name, package):
    case = np.load(DATA / f"published_awni_transducer_{name}.npz")
    V = case["emissions"].shape[-1]
    loss, grads = package.joint_rnnt_loss_and_grad(
        case["emissions"].astype(np.float64),
        case["predictions"].astype(np.float64),
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
