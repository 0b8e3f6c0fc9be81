"""Operations on CuPy arrays that are no kernels of their own, and folds of rows, by NumPy's."""

import numpy as np
import pytest

from cupy_rnnt.batch import Batch, Coordinates
from cupy_rnnt.engine.plan import Tiles
from cupy_rnnt.ops import cuda, is_on_cuda, on_host, operations_for
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.ops.types import compute_dtype

from ...tolerances import DTYPES, unit_roundoff

WIDTHS = [1, 31, 32, 33, 100, 1025]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def rows(dtype, width, layout):
    """Of three samples with seven rows each, in some order in memory."""
    array = np.random.default_rng(width).normal(size=(3, 7, width)).astype(dtype)
    return {"dense": array, "fortran": np.asfortranarray(array), "strided": array[:, :, ::2]}[
        layout
    ]


every_layout = pytest.mark.parametrize("layout", ["dense", "fortran", "strided"])


@every_layout
@every_dtype
@pytest.mark.parametrize("width", WIDTHS)
def test_means(gpu, width, dtype, layout):
    array, samples, counts = rows(dtype, width, layout), np.array([2, 0]), np.array([7, 3])
    expected = np.empty((2, array.shape[2]), np.result_type(dtype, np.float32))
    cpu.means(array, samples, counts, expected)
    out = gpu.xp.empty(expected.shape, expected.dtype)
    cuda.means(gpu.xp.array(array), samples, counts, out)
    np.testing.assert_allclose(gpu.asnumpy(out), expected, atol=8 * unit_roundoff(out.dtype))


@every_layout
@every_dtype
@pytest.mark.parametrize("width", WIDTHS)
def test_magnitudes(gpu, monkeypatch, width, dtype, layout):
    """Also where not all samples are looked at together."""
    monkeypatch.setattr("cupy_rnnt.ops.cuda.samples._CHUNK_ELEMENTS", 2 * width)
    array, counts = rows(dtype, width, layout), np.array([7, 3, 1])
    expected = cpu.magnitudes(array, counts)
    np.testing.assert_array_equal(
        gpu.asnumpy(cuda.magnitudes(gpu.xp.array(array), counts)), expected
    )


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_largest_row_sum(gpu, width, dtype, order):
    weight = np.random.default_rng(width).normal(size=(33, width)).astype(dtype)
    found = cuda.largest_row_sum(gpu.xp.array(weight, order=order))
    expected = np.abs(weight.astype(np.float64)).sum(axis=1).max()
    np.testing.assert_allclose(float(found), expected, rtol=width * unit_roundoff(dtype))


def test_every_fold_is_launched(gpu, launched):
    """By what the library calls; weights come in the compute dtype."""
    for dtype in DTYPES:
        array = gpu.xp.array(rows(dtype, 5, "dense"))
        out = gpu.xp.empty((1, 5), compute_dtype(dtype))
        cuda.means(array, np.array([1]), np.array([3]), out)
        cuda.magnitudes(array, np.array([7, 3, 1]))
        cuda.largest_row_sum(out)
    (folds,) = (kernel for kernel in launch.KERNELS if kernel.name == "fold_rows")
    assert launched == {("fold_rows", variant) for variant in folds.variants}


@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_magnitudes_that_are_not_finite(gpu, dtype, value):
    """Of one sample, wherever they are; padding is not looked at."""
    array, counts = rows(dtype, 40, "dense"), np.array([7, 3, 5])
    for place in (0, 0, 0), (0, 6, 39), (0, 3, 33):
        bad = array.copy()
        bad[place] = bad[1, 3] = value
        found = gpu.asnumpy(cuda.magnitudes(gpu.xp.array(bad), counts))
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(found, cpu.magnitudes(bad, counts))
        assert np.isfinite(found).tolist() == [False, True, True]


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
    batch = Batch(rng.integers(1, 9, (6, 5)), frames, labels, (6, 9, 6), 9, 0)
    packed = np.arange(batch.cell_count)[::2]
    expected = Coordinates(batch, cpu).of(packed)
    found = Coordinates(batch, cuda).of(gpu.asarray(packed))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(gpu.asnumpy(one), other)


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
