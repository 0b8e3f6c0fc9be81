"""Random batches as tensors, and what the tests of the PyTorch adapter do with its results."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from cupy_rnnt import reference
from cupy_rnnt.options import REDUCTIONS

from ..helpers import divisor, random_joint_case, random_logits_case
from ..tolerances import assert_gradient_close, assert_gradients_close

torch = pytest.importorskip("torch")
# Its first operator in Python would, and look through all modules, CuPy's among them: not while
# another is in the place of that.
pytest.importorskip("torch._dynamo")
F = torch.nn.functional

import cupy_rnnt.torch as adapter  # noqa: E402
from cupy_rnnt.torch import arguments, cuda, operators  # noqa: E402, F401

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softsign": F.softsign,
    "identity": lambda x: x,
}
DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}
WEIGHTS = np.array([0.75, -2.0, 0.0, 3.0])  # what comes from above: of any sign, or nothing
KINDS = "logits", "joint"

every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def tensor(array, dtype=None):
    """A tensor of its own of the values of an array."""
    if array is None:
        return None
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.tensor(array, dtype=dtype)


def numpy(value):
    return value.detach().double().numpy()


def made(kind, seed=0, *, dtype=torch.float64, **options):
    """A batch as NumPy arguments and as leaves (those with a gradient) and the other arguments."""
    make = random_joint_case if kind == "joint" else random_logits_case
    case = make(np.random.default_rng(seed), dtype=DTYPES[dtype], **options)
    count = 4 if kind == "joint" else 1
    leaves = [None if x is None else tensor(x).requires_grad_() for x in case[:count]]
    rest = (*map(torch.from_numpy, case[count:-1]), case.blank)
    return SimpleNamespace(case=case, leaves=leaves, rest=rest, length=case.length)


def loss_of(kind):
    return adapter.joint_rnnt_loss if kind == "joint" else adapter.rnnt_loss


def reference_of(kind):
    if kind == "joint":
        return reference.joint_rnnt_loss_and_grad
    return reference.rnnt_loss_and_grad


def gradients(loss, leaves, **options):
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None], **options)


def assert_gradients_match(kind, actual, desired, dtype, length):
    if kind == "logits":
        assert_gradient_close(numpy(actual[0]), desired, dtype, length)
    else:
        actual = [numpy(one) for one in actual] + [None] * (4 - len(actual))
        assert_gradients_close(actual, desired, dtype, length)


def assert_equal_bits(actual, desired):
    for one, other in zip(actual, desired, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def reduced(costs, reduction, case):
    whole = costs if reduction == "none" else costs.sum()
    return whole / divisor(reduction, case.target_lengths)
