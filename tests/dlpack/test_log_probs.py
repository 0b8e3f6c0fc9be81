"""Scores of arrays of other libraries, and gradients from theirs."""

from __future__ import annotations

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.ops.types import compute_dtype

from ..arguments.cases import OF_JOINT, arguments, float_names
from .cases import assert_read, every_dtype, of


@every_dtype
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_of_the_kind(library, dtype, bias):
    given = arguments(OF_JOINT[0])
    given |= {name: given[name].astype(dtype) for name in float_names(OF_JOINT[0])}
    if not bias:
        given["bias"] = None
    scores = cupy_rnnt.joint_rnnt_log_probs(**given)
    assert scores.dtype == compute_dtype(dtype)
    assert_read(library, cupy_rnnt.joint_rnnt_log_probs(**library.given(given)), scores)
    given["grad"] = np.exp(scores)
    expected = cupy_rnnt.joint_rnnt_log_probs_grad(**given)
    found = cupy_rnnt.joint_rnnt_log_probs_grad(**library.given(given))
    assert isinstance(found, cupy_rnnt.JointGradients)
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
        else:
            assert_read(library, one, other)


@of("torch")
def test_a_gradient_that_is_differentiated_is_refused(library):
    given = arguments(OF_JOINT[0])
    given["grad"] = library.make(cupy_rnnt.joint_rnnt_log_probs(**given)).requires_grad_()
    with pytest.raises(TypeError, match=r"use cupy_rnnt\.torch for that"):
        cupy_rnnt.joint_rnnt_log_probs_grad(**given)
