"""What is read off the lattice, of arrays of JAX, which has integers of 32 bits unless told."""

import numpy as np
import pytest

import cupy_rnnt

from ..helpers import random_joint_case

jax = pytest.importorskip("jax")
pytestmark = pytest.mark.usefixtures("jax_on_cpu")


def test_alignments():
    case = random_joint_case(np.random.default_rng(0), dtype=np.float32)
    found = cupy_rnnt.joint_rnnt_alignment(*map(jax.numpy.asarray, case[:-1]), case.blank)
    desired = cupy_rnnt.joint_rnnt_alignment(*case)
    assert found.durations is None
    for name in "frames", "log_prob", "certificate":
        array = getattr(found, name)
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(array, getattr(desired, name))


def test_posteriors():
    case = random_joint_case(np.random.default_rng(0), dtype=np.float32)
    arrays = [*map(jax.numpy.asarray, case[:-1]), case.blank]
    for dense in True, False:
        found = cupy_rnnt.joint_rnnt_posteriors(*arrays, dense=dense)
        desired = cupy_rnnt.joint_rnnt_posteriors(*case, dense=dense)
        pairs = [(found, desired)] if dense else zip(found, desired, strict=True)
        for array, of_numpy in pairs:
            assert isinstance(array, jax.Array)
            np.testing.assert_array_equal(array, of_numpy)


def test_what_is_traced_is_refused():
    logits = jax.numpy.zeros((1, 2, 2, 3))
    with pytest.raises(TypeError, match=r"logits is .* traced: use cupy_rnnt.jax"):
        jax.jit(lambda x: cupy_rnnt.rnnt_alignment(x, [[0]], [2], [1]))(logits)
