"""Real CuPy on a stand-in with values computes what NumPy computes, its own kernels included.

No part of the tests that plain ``pytest`` runs. In the environment that build.sh makes::

    python -m pytest -p tests.standin.pytest_device --devices cuda tests/standin/check_values.py
"""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

SOURCE = """extern "C" __global__ void twice(const float* x, float* y, long long n) {
    for (long long i = blockIdx.x * 64 + threadIdx.x; i < n; i += 128) y[i] = 2 * x[i]; }"""


@pytest.fixture
def x(gpu):
    assert gpu.xp.__name__ == "cupy"
    assert gpu.xp.cuda.Device().compute_capability == "90"
    return gpu.xp.arange(300, dtype=np.float32)


def test_a_kernel(gpu, x):
    y = gpu.xp.empty_like(x)
    gpu.xp.RawKernel(SOURCE, "twice")((2,), (64,), (x, y, 300))
    assert y.get().tolist() == list(range(0, 600, 2))


def test_an_error_of_a_kernel(gpu, x):
    with pytest.raises(gpu.xp.cuda.driver.CUDADriverError):
        gpu.xp.RawKernel(SOURCE, "twice")((1,), (64,), (x, None, 300))


def test_reductions_scans_and_sorts(gpu, x):
    host = x.get()
    assert float(x.sum()) == host.sum(dtype=np.float64)
    assert int(x.argmax()) == 299
    np.testing.assert_array_equal(x.reshape(3, 100).max(axis=1).get(), [99, 199, 299])
    np.testing.assert_array_equal(gpu.xp.cumsum(x).get(), host.cumsum())
    np.testing.assert_array_equal(gpu.xp.argsort(-x, kind="stable").get(), host[::-1])
    np.testing.assert_array_equal(gpu.xp.sort(-x).get(), -host[::-1])
    assert gpu.xp.flatnonzero(x > 290).get().tolist() == list(range(291, 300))


def test_half_types(x):
    np.testing.assert_array_equal(
        x.astype(ml_dtypes.bfloat16).get(), x.get().astype(ml_dtypes.bfloat16)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product(gpu, x, dtype):
    """Of integers that are exact in float32."""
    from cupy import cublas

    a = x[:35].reshape(5, 7).astype(dtype)
    product, host = cublas.gemm("N", "T", a, a).get(), a.get()
    np.testing.assert_array_equal(product, host @ host.T)


def output(code):
    """Of a Python without the stand-in."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_it_starts_before_cupy():
    said = output("import cupy; from tests import standin; standin.start()")
    assert "start() comes before the first import of cupy" in said


def test_an_emulator_that_compiles_first_does_no_harm():
    """NVRTC 13 looks for its builtins once in a process."""
    said = output("""if True:
        from tests import ptxemu
        ptxemu.Module('extern "C" __global__ void of_ptxemu(float* x) { *x = tanhf(*x); }')
        from cupy.cuda.compiler import _NVRTCProgram
        code = 'extern "C" __global__ void of_cupy(float* x) { *x = tanhf(*x); }'
        ptx, _ = _NVRTCProgram(code).compile(("-arch=compute_90",))
        print("of_cupy" in str(ptx))
    """)
    assert said == "True\n"
