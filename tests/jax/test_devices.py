"""The JAX adapter on several devices of one host, from several threads at once."""

from __future__ import annotations

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from .. import ROOT
from ..tolerances import (
    assert_costs_close,
    assert_gradient_close,
    gradient_tolerance,
    unit_roundoff,
)
from .cases import reference_of
from .shards import SIZE, WEIGHTS, case_of

SECONDS = 300  # more is a hang


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "results.npz"
    flags = f"--xla_force_host_platform_device_count={request.param}"
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.jax.shards", str(path)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert process.returncode == 0, process.stderr
    results = np.load(path)
    assert results["devices"] == request.param
    return results


every_dtype = pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])


def assert_matches(results, name, dtype, cost_weights):
    """Those of the whole batch in the textbook. Gradients of parameters are rounded on each device,
    and so is every sum of them."""
    case, devices = case_of(dtype), int(results["devices"])
    loss, *gradients = (results[f"{np.dtype(dtype).name} {name} {i}"] for i in range(5))
    costs, _ = reference_of("joint")(*case, reduction="none")
    assert_costs_close(loss, cost_weights @ costs, dtype, case.length)
    _, wanted = reference_of("joint")(*case, cost_weights=cost_weights)
    for one, other in zip(gradients[:2], wanted[:2], strict=True):
        assert_gradient_close(one, other, dtype, case.length)
    owners = np.arange(SIZE) * devices // SIZE
    parts = [
        reference_of("joint")(*case, cost_weights=np.where(owners == i, cost_weights, 0))[1]
        for i in range(devices)
    ]
    for i in 2, 3:
        scale = sum(np.abs(part[i]).max(initial=1.0) for part in parts)
        tolerance = gradient_tolerance(dtype, case.length) + devices * unit_roundoff(dtype)
        np.testing.assert_allclose(gradients[i], wanted[i], rtol=0, atol=tolerance * scale)


@every_dtype
@pytest.mark.parametrize("name", ["outside", "unchecked", "inside", "automatic"])
@pytest.mark.slow
def test_the_gradient_is_that_of_the_whole_batch(found, name, dtype):
    assert_matches(found, name, dtype, np.full(SIZE, 1 / SIZE))


@every_dtype
@pytest.mark.slow
def test_cotangents_of_each_cost(found, dtype):
    assert_matches(found, "weighted", dtype, WEIGHTS)


@every_dtype
@pytest.mark.slow
def test_a_device_that_skips_its_part(found, dtype):
    empty = np.arange(SIZE) >= SIZE - SIZE // found["devices"]
    assert_matches(found, "skipped", dtype, np.where(empty, 0, WEIGHTS))


@every_dtype
@pytest.mark.slow
def test_costs_of_each_device(found, dtype):
    case = case_of(dtype)
    wanted, _ = reference_of("joint")(*case, reduction="none")
    assert_costs_close(found[f"{np.dtype(dtype).name} costs"], wanted, dtype, case.length)


@every_dtype
@pytest.mark.slow
def test_an_error_of_one_device(found, dtype):
    text = f"targets[{SIZE // found['devices'] - 1}, 0] is 9, but the vocabulary has 9 entries"
    assert text in str(found[f"{np.dtype(dtype).name} error"])
