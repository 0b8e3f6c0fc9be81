"""Operations on CuPy arrays that are no kernels of their own, by NumPy's."""

import numpy as np
import pytest

from cupy_rnnt.batch import Batch, CellsOf
from cupy_rnnt.engine.plan import Tiles
from cupy_rnnt.ops import cuda, is_on_cuda, on_host, operations_for
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.ops.types import Coordinates, compute_dtype
from cupy_rnnt.tokens import Tokens

from ...helpers import samples_of
from ...tolerances import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", "CF")
def test_products(gpu, order, dtype):
    """Of half types with float32 sums; factors may be columns of wider arrays."""
    rng, dtype = np.random.default_rng(0), np.dtype(dtype)
    compute = compute_dtype(dtype)
    hidden, weight, d_logits = (
        rng.normal(size=shape).astype(dtype) for shape in ((7, 5), (3, 5), (7, 3))
    )
    sums = rng.normal(size=(3, 5)).astype(compute)
    logits, total = gpu.xp.empty((7, 3), compute), gpu.asarray(sums)
    cuda.matmul(gpu.asarray(hidden), gpu.xp.array(weight, order=order).T, logits)
    cuda.add_matmul(gpu.asarray(d_logits).T, gpu.asarray(hidden), total)
    hidden, weight, d_logits = (a.astype(np.float64) for a in (hidden, weight, d_logits))
    bound = 8 * np.finfo(compute).eps  # 7 products and sums of numbers around 1
    np.testing.assert_allclose(gpu.asnumpy(logits), hidden @ weight.T, bound, bound)
    np.testing.assert_allclose(gpu.asnumpy(total), sums + d_logits.T @ hidden, bound, bound)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_of_some_columns(gpu, dtype):
    rng = np.random.default_rng(0)
    wide, d_logits = (rng.normal(size=shape).astype(dtype) for shape in ((3, 10), (7, 3)))
    d_hidden = gpu.xp.empty((7, 5), np.float32)
    cuda.matmul(gpu.asarray(d_logits), gpu.asarray(wide)[:, 5:], d_hidden)
    expected = d_logits.astype(np.float64) @ wide[:, 5:].astype(np.float64)
    bound = 8 * np.finfo(np.float32).eps
    np.testing.assert_allclose(gpu.asnumpy(d_hidden), expected, bound, bound)


def test_coordinates(gpu):
    rng = np.random.default_rng(0)
    frames, labels = rng.integers(1, 9, 6), rng.integers(0, 6, 6)
    batch = Batch(rng.integers(1, 9, (6, 5)), frames, labels, (6, 9, 6), 0, Tokens(9))
    packed = np.arange(batch.cell_count)[::2]
    lengths = batch.frames, batch.positions, batch.labels
    expected = CellsOf(cpu, samples_of(cpu, *lengths))(packed)
    found = CellsOf(cuda, samples_of(cuda, *lengths))(gpu.asarray(packed))
    for name in Coordinates._fields:
        actual, desired = (getattr(cells, name) for cells in (found, expected))
        np.testing.assert_array_equal(gpu.asnumpy(actual), desired)


@pytest.mark.parametrize(("memory", "workspace"), [(24 << 30, 1 << 30), (80 << 30, 5 << 29)])
def test_the_workspace_is_a_share_of_the_memory(gpu, monkeypatch, memory, workspace):
    runtime = gpu.xp.cuda.runtime
    monkeypatch.setattr(runtime, "getDeviceProperties", lambda _: {"totalGlobalMem": memory})
    launch._device_bytes.cache_clear()
    assert cuda.workspace_bytes() == workspace
    launch._device_bytes.cache_clear()


def test_tiles_run_in_order():
    calls = []
    cuda.start_workers(1).run(lambda *call: calls.append(call), Tiles(10, 3, 1))
    assert [worker for worker, _ in calls] == [0] * len(calls)
    assert [tile for _, tile in calls] == list(Tiles(10, 3, 1))


def test_arrays_choose_their_operations(gpu):
    assert operations_for(gpu.xp.zeros(1)) is cuda
    assert operations_for(np.zeros(1)) is cpu
    assert not is_on_cuda([1.0])
    arrays = np.arange(3), gpu.asarray(np.arange(4.0)), gpu.asarray(np.arange(2))
    for one, other in zip(
        on_host(*arrays), (np.arange(3), np.arange(4), np.arange(2)), strict=True
    ):
        assert isinstance(one, np.ndarray)
        np.testing.assert_array_equal(one, other)
