"""Products of float32 that tensor cores form, as TF32."""

import numpy as np
import pytest

from cupy_rnnt import reference
from cupy_rnnt.ops import cuda
from cupy_rnnt.ops.cuda import launch, products

from ... import devices
from ...device_calls import joint_rnnt_loss_and_grad, running_on
from ...emulated.memory import UninitialisedRead
from ...engine.selection.cases import check_bounds, selecting
from ...engine.selection.joints import aligned_case
from ...engine.test_workspace import peak_beyond_results
from ...helpers import least_budget, random_joint_case
from ...ptxemu import KernelError
from ...tolerances import assert_costs_close, assert_gradients_close, cost_tolerance
from . import test_rows_faults

kernels = test_rows_faults.kernels
U = 2.0**-24
LARGEST = np.float32(np.finfo(np.float32).max)
SPECIAL = [np.inf, -np.inf, np.nan, LARGEST, -LARGEST, 0.0, -0.0, 1e-30, 1 + 2.0**-11, 3.0]


@pytest.fixture
def every_product(gpu, monkeypatch):
    """Of any size; those of another device are not split."""
    monkeypatch.setattr(products, "_LEAST_SIZE", 0)


def in_order(gpu, values, order):
    """Dense, or as some columns of a wider array."""
    if order != "columns":
        return gpu.xp.array(values, order=order)
    wide = np.full((len(values), 2 * values.shape[1] + 1), np.nan, np.float32)
    wide[:, 1 : 1 + values.shape[1]] = values
    return gpu.asarray(wide)[:, 1 : 1 + values.shape[1]]


def random(rng, *shape):
    """Numbers of all sizes."""
    return (rng.normal(size=shape) * np.exp2(rng.integers(-20, 20, shape))).astype(np.float32)


def check_parts(gpu, rows=5, depth=12, columns=36, left="C", right="F"):
    """Each number is the sum of two that TF32 holds, up to 2**-22; what is not finite is whole."""
    rng = np.random.default_rng(0)
    factors = [random(rng, rows, depth), random(rng, depth, columns)]
    for factor in factors:
        factor.reshape(-1)[: len(SPECIAL)] = SPECIAL
    arrays = map(in_order, [gpu] * 2, factors, (left, right))
    a, b = map(gpu.asnumpy, products._split(*arrays))
    for x, parts, is_right in (factors[0].T, a.T, False), (factors[1], b, True):
        parts = parts.reshape(3, *x.shape)
        assert not (np.ascontiguousarray(parts).view(np.int32) & 0x1FFF)[~np.isnan(parts)].any()
        low, high = (parts[1], parts[0]) if is_right else (parts[0], parts[1])
        finite = np.isfinite(x)
        np.testing.assert_array_equal(parts[2][~finite], x[~finite])
        np.testing.assert_array_equal(parts[2][finite], high[finite])
        assert not high[~finite].any()
        assert not low[~finite].any()
        assert np.isfinite(high).all()
        off = abs(high.astype(float) + low - x)[finite] / np.maximum(abs(x[finite]), 1e-40)
        assert (off <= np.where(abs(x[finite]) < LARGEST, 2.0**-22, 2.0**-21)).all()


@pytest.mark.parametrize("left", ["C", "F", "columns"])
@pytest.mark.parametrize("right", ["C", "F", "columns"])
def test_parts(gpu, left, right):
    for sizes in (5, 12, 36), (33, 132, 4), (3, 5, 7):
        check_parts(gpu, *sizes, left, right)


@pytest.mark.parametrize("order", ["C", "F", "columns"])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(5, 4, 8), (1, 24, 36), (33, 132, 4)])
def test_products(every_product, gpu, launched, rows, depth, columns, order):
    """Terms are off by 3 * 2**-22 of their magnitude. Their sums are cut off every 8 of them, and
    those of small terms as well, which add little to that."""
    rng = np.random.default_rng(depth)
    a, b = random(rng, rows, depth), random(rng, depth, columns)
    found = gpu.xp.empty((rows, columns), np.float32)
    cuda.matmul(gpu.asarray(a), in_order(gpu, b, order), found)
    assert cuda.splits(a.dtype) == (("split", ()) in launched)
    sizes = abs(a).astype(float) @ abs(b).astype(float)
    off = abs(gpu.asnumpy(found) - a.astype(float) @ b.astype(float))
    assert (off <= (12 + depth if gpu.name == "cuda" else 12 + depth / 4 + 2) * U * sizes).all()


@pytest.mark.parametrize("depth", [640, 1024])
def test_long_sums(every_product, gpu, depth):
    """Of numbers that are all above 0, which lose the same share whenever they are cut off: a cost
    allows for as much."""
    rng = np.random.default_rng(depth)
    a, b = (abs(rng.normal(size=shape)).astype(np.float32) for shape in ((4, depth), (depth, 8)))
    found, expected = gpu.xp.empty((4, 8), np.float32), a.astype(float) @ b.astype(float)
    cuda.matmul(gpu.asarray(a), gpu.asarray(b), found)
    rtol = cost_tolerance(np.float32, 1, depth)
    np.testing.assert_allclose(gpu.asnumpy(found), expected, rtol=rtol)


def test_what_is_not_finite(every_product, gpu):
    """Is what it is in products of float32."""
    a, b = np.ones((4, 8), np.float32), np.full((8, 4), 1 / 3, np.float32)
    a[0, 0], a[1, 1], a[2, :2], b[3, 3] = np.inf, np.nan, (np.inf, -np.inf), -np.inf
    found = gpu.xp.empty((4, 4), np.float32)
    cuda.matmul(gpu.asarray(a), gpu.asarray(b), found)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(gpu.asnumpy(found), a @ b, rtol=1e-6)


def test_which_products(gpu):
    """Large ones, whose sums are not too long, in rows that are aligned."""
    splits = cuda.splits(np.dtype(np.float32))
    assert not any(map(cuda.splits, (np.dtype(np.float64), np.dtype(np.float16))))
    for *shape, gains in (
        (512, 16, 512, True),
        (511, 16, 512, False),
        (512, 14, 512, False),
        (512, 16, 514, False),
        (2**20, 1028, 512, False),
    ):
        expected = 12 * shape[1] * (shape[0] + shape[2]) if splits and gains else 0
        assert cuda.product_bytes(np.dtype(np.float32), *shape) == expected


@pytest.mark.parametrize("capability", ["75", "86", "89", "90", "120"])
def test_devices(capability):
    """Data centres have those that gain."""
    with devices.emulated(capability):
        assert cuda.splits(np.dtype(np.float32)) == (capability == "90")


@pytest.mark.parametrize("order", "CF")
def test_whole_calls(every_product, gpu, launched, order):
    """Costs, gradients and memory are as good as those of float32."""
    for sharpness in 1.0, 6.0:
        shape = 3, 12, 6, 33, 24
        case = aligned_case(np.random.default_rng(0), *shape, dtype=np.float32, sharpness=sharpness)
        case = case._replace(weight=np.asarray(case.weight, order=order))
        budget = least_budget(joint_rnnt_loss_and_grad, *case) + 10**4
        loss, expected = reference.joint_rnnt_loss_and_grad(*case)
        with selecting():
            found, gradients = joint_rnnt_loss_and_grad(*case, max_workspace_bytes=budget)
        assert_costs_close(found, loss, np.float32, case.length, 24)
        assert_gradients_close(gradients, expected, np.float32, case.length)
    assert cuda.splits(np.dtype(np.float32)) == (("split", ()) in launched)


@pytest.mark.parametrize("spare", [0, 2**20])
def test_memory(every_product, gpu, spare):
    case = random_joint_case(np.random.default_rng(0), 1, 16, 5, 70, 40, dtype=np.float32)
    budget = least_budget(joint_rnnt_loss_and_grad, *case) + spare
    peak, info = peak_beyond_results(joint_rnnt_loss_and_grad, *case, max_workspace_bytes=budget)
    assert peak <= info.workspace_bytes <= budget


def test_bounds(every_product, gpu):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        check_bounds(aligned_case(rng, 2, 9, 6, 33, 24, dtype=np.float32, sharpness=10.0))


# What is replaced by what in the kernel
FAULTS = {
    "cut off": ("up = bits + 0x1000", "up = bits"),
    "to infinity": ("(up & 0x7f800000) == 0x7f800000", "false"),
    "a low part that TF32 does not hold": ("rounded(x.x[k] - high[k])", "x.x[k] - high[k]"),
    "infinity in each part": ("is_finite ? rounded(x.x[k]) : 0", "rounded(x.x[k])"),
    "a low part of infinity": ("is_finite ? rounded(x.x[k] - high[k]) : 0", "x.x[k] - high[k]"),
    "factors exchanged": ("is_right ? high : low", "is_right ? low : high"),
    "a part on the other": ("first + 2 * factor.part", "first + factor.part"),
    "a row too many": ("i < a_rows + b_rows", "i <= a_rows + b_rows"),
    "rows of the other factor": ("is_right ? i - a_rows : i", "i"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(kernels, monkeypatch, fault):
    sound, broken = FAULTS[fault]
    text = (kernels / "split.cu").read_text()
    assert text.count(sound) == 1
    (kernels / "split.cu").write_text(text.replace(sound, broken))
    monkeypatch.setattr(launch, "MOST_BLOCKS", 2)
    with (
        devices.emulated() as gpu,
        pytest.raises((AssertionError, KernelError, UninitialisedRead)),
        running_on(gpu),
    ):
        check_parts(gpu)
