"""``rnnt_loss`` against what torchaudio 2.8.0 returned for the same arguments, call by call.

Run as a program where torchaudio has the loss, this file computes its data anew::

    python tests/torch/test_torchaudio.py tests/data/torchaudio.npz
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from .. import DATA

torch = pytest.importorskip("torch")

FRAMES, LABELS = [5, 3, 4], [3, 0, 2]
UPSTREAM = [0.5, -2.0, 3.0]
CALLS = {
    "defaults": {},
    **{
        "_".join(map(str, values)): dict(
            zip(("blank", "clamp", "reduction", "fused_log_softmax"), values, strict=True)
        )
        for values in itertools.product(
            [0, -1], [-1, 0, 0.05], ["none", "mean", "sum"], [True, False]
        )
    },
}


def arguments(options):
    """The largest lengths are the extents, and integers are int32, as torchaudio demands."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(3, 5, 4, 6)), dtype=torch.float32)
    if not options.get("fused_log_softmax", True):
        logits = logits.log_softmax(-1)
    targets = rng.integers(1, 5, (3, 3))  # neither the first nor the last is a label
    integers = (torch.tensor(x, dtype=torch.int32) for x in (targets, FRAMES, LABELS))
    return logits.requires_grad_(), *integers


def results(function, options):
    logits, *integers = arguments(options)
    loss = function(logits, *integers, **options)
    loss.backward(torch.tensor(UPSTREAM) if loss.ndim else torch.tensor(UPSTREAM[0]))
    return loss.detach().numpy(), logits.grad.numpy()


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_means_what_it_means_there(name):
    from cupy_rnnt.torch import rnnt_loss

    from ..tolerances import assert_costs_close, assert_gradient_close

    expected = np.load(DATA / "torchaudio.npz")
    loss, gradient = results(rnnt_loss, CALLS[name])
    assert loss.dtype == expected[f"{name}/loss"].dtype
    assert loss.shape == expected[f"{name}/loss"].shape
    length = max(map(sum, zip(FRAMES, LABELS, strict=True)))
    assert_costs_close(loss, expected[f"{name}/loss"], np.float32, length)
    assert_gradient_close(gradient, expected[f"{name}/gradient"], np.float32, length)


@pytest.mark.parametrize("name", CALLS)
def test_modules_take_the_same_arguments(name):
    from cupy_rnnt.torch import RNNTLoss, rnnt_loss

    options = CALLS[name]
    loss, gradient = results(rnnt_loss, options)
    function = results(lambda *tensors, **given: RNNTLoss(**given)(*tensors), options)
    np.testing.assert_array_equal(function[0], loss)
    np.testing.assert_array_equal(function[1], gradient)


if __name__ == "__main__":
    from torchaudio.functional import rnnt_loss

    arrays = {}
    for name, options in CALLS.items():
        arrays[f"{name}/loss"], arrays[f"{name}/gradient"] = results(rnnt_loss, options)
    np.savez_compressed(sys.argv[1], **arrays)
