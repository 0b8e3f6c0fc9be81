"""What is read off the lattice, of tensors: no adapter is needed, and nothing is differentiated."""

import numpy as np
import pytest

import cupy_rnnt

from ..helpers import random_joint_case, random_logits_case

torch = pytest.importorskip("torch")


def tensors(case, requires_grad):
    return [
        torch.tensor(value).requires_grad_(requires_grad and value.dtype.kind == "f")
        if isinstance(value, np.ndarray)
        else value
        for value in case
    ]


def assert_same(found, desired):
    for tensor, array in zip(found, desired, strict=True):
        if array is None:
            assert tensor is None
            continue
        assert isinstance(tensor, torch.Tensor)
        assert not tensor.requires_grad
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("grad_enabled", [False, True])
@pytest.mark.parametrize("front", ["rnnt", "joint_rnnt"])
def test_alignments(front, requires_grad, grad_enabled):
    make = random_joint_case if front == "joint_rnnt" else random_logits_case
    case = make(np.random.default_rng(0), dtype=np.float32)
    function = getattr(cupy_rnnt, f"{front}_alignment")
    with torch.set_grad_enabled(grad_enabled):
        found = function(*tensors(case, requires_grad))
    assert_same(found, function(*case))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("front", ["rnnt", "joint_rnnt"])
def test_posteriors(front, requires_grad):
    make = random_joint_case if front == "joint_rnnt" else random_logits_case
    case = make(np.random.default_rng(0), dtype=np.float32)
    function = getattr(cupy_rnnt, f"{front}_posteriors")
    arguments = tensors(case, requires_grad)
    assert_same([function(*arguments)], [function(*case)])
    assert_same(function(*arguments, dense=False), function(*case, dense=False))
