"""CuPy as a guest of PyTorch: results, and whose stream, memory and device it works with."""

from __future__ import annotations

import inspect

import pytest

from cupy_rnnt import engine
from cupy_rnnt.engine import passes

from ..tolerances import assert_costs_close, assert_gradient_close
from .cases import (
    DTYPES,
    adapter,
    cuda,
    every_kind,
    every_reduction,
    gradients,
    loss_of,
    made,
    numpy,
    operators,
    torch,
)
from .guest import DEVICE, PLACES, STREAM, guest

SIZES = {"size": 3, "frames": 5, "labels": 3, "vocabulary": 6}


@pytest.fixture
def host():
    with guest() as found:
        yield found


def step(kind, batch, **options):
    loss = loss_of(kind)(*batch.leaves, *batch.rest, **options)
    return loss, gradients(loss, batch.leaves, grad_outputs=torch.full_like(loss, -2.5))


def assert_left_alone(host):
    """The state of CuPy and PyTorch is what it was before, and nothing is held, not even until a
    collection of garbage."""
    assert host.live == {}
    cuda = host.xp.cuda
    assert cuda.get_current_stream() == cuda.Stream.null
    assert cuda.Device().id == 0
    assert len(host.devices) % 2 == 0
    pool = host.xp.get_default_memory_pool()
    used, asked = pool.used_bytes(), len(host.sizes)
    array = host.xp.ones(1000)
    assert pool.used_bytes() > used
    assert len(host.sizes) == asked
    del array


# Results


def assert_as_on_the_cpu(place, kind, dtype=torch.float64, **options):
    batch = made(kind, dtype=dtype, **SIZES)
    expected, wanted = step(kind, batch, **options)
    with place() as there:
        batch.leaves = [there.moved(leaf) for leaf in batch.leaves]
        batch.rest = (*map(there.moved, batch.rest[:-1]), batch.rest[-1])
        loss, found = step(kind, batch, **options)
        assert loss.dtype == expected.dtype
        assert_costs_close(numpy(loss.cpu()), numpy(expected), DTYPES[dtype], batch.length)
        for leaf, one, other in zip(batch.leaves, found, wanted, strict=True):
            assert (one.dtype, one.device) == (dtype, leaf.device)
            assert_gradient_close(numpy(one.cpu()), numpy(other), DTYPES[dtype], batch.length)


every_place = pytest.mark.parametrize("place", PLACES)


@every_place
@every_kind
@every_reduction
def test_results_are_those_of_the_cpu(place, kind, reduction):
    assert_as_on_the_cpu(place, kind, reduction=reduction)


@every_place
@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types(place, kind, dtype):
    assert_as_on_the_cpu(place, kind, dtype)


@every_kind
def test_no_cell_may_be_kept(host, kind):
    batch = made(kind, **SIZES)
    with torch.no_grad():
        batch.leaves[0].fill_(torch.nan)
    loss, found = step(kind, batch, reduction="none")
    assert loss.isnan().all()
    assert not any(gradient.any() for gradient in found)
    assert_left_alone(host)


def test_information_is_in_tensors(host):
    batch = made("joint", **SIZES)
    _, info = adapter.joint_rnnt_loss(*batch.leaves, *batch.rest, return_info=True)
    assert isinstance(info.certificate, torch.Tensor)
    assert info.kept <= info.computed <= info.cells == 19


def test_arguments_on_different_devices(host, monkeypatch):
    batch = made("joint", **SIZES)
    on_cuda, weight = cuda.is_on_cuda, batch.leaves[2]
    monkeypatch.setattr(
        cuda, "is_on_cuda", lambda x: x.data_ptr() != weight.data_ptr() and on_cuda(x)
    )
    with pytest.raises(ValueError, match="weight is on the CPU, but encoder_out is on device 1"):
        adapter.joint_rnnt_loss(*batch.leaves, *batch.rest)
    assert_left_alone(host)


# Memory, stream and device


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_the_memory_of_tensors(host, kind, dtype):
    for leaf in made(kind, dtype=dtype, **SIZES).leaves:
        strided = leaf.repeat_interleave(2, -1)[..., ::2]
        with cuda.guest_on(DEVICE):
            array = operators.array("x", strided)
        assert array.host.ctypes.data == strided.data_ptr()
        assert array.dtype == DTYPES[dtype]
        assert array.device.id == DEVICE.index
        assert array.host.astype(float).tolist() == strided.tolist()


@every_kind
@every_reduction
@pytest.mark.slow
def test_memory_and_stream_are_those_of_pytorch(host, kind, reduction):
    batch = made(kind, **SIZES)
    pool = host.xp.get_default_memory_pool()
    used = pool.used_bytes()
    pool.free_all_blocks()
    loss = loss_of(kind)(*batch.leaves, *batch.rest, reduction=reduction)
    of_forward = len(host.sizes)
    assert of_forward > 4
    assert_left_alone(host)  # kept cells are PyTorch's own
    loss.sum().backward()
    of_gradients = len(host.sizes) - of_forward
    assert (of_gradients > 4) == (kind == "logits" or reduction == "none")
    assert pool.total_bytes() <= used + 8192  # of the test itself
    launches = host.xp.kernels.launches
    assert len(launches) > 5
    assert {launched.stream.ptr for launched in launches} == {STREAM}
    assert set(host.devices) == {DEVICE, None}


@every_kind
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("during", ["first", "second"])
@pytest.mark.slow
def test_interrupts_leave_nothing_behind(host, kind, error, during, monkeypatch):
    """In the forward and in the backward pass, while memory is in use."""
    batch = made(kind, **SIZES)
    original = getattr(passes.Passes, during)

    def interrupted(self, *args):
        assert host.live
        assert host.xp.cuda.get_current_stream().ptr == STREAM
        original(self, *args)
        raise error("stop")

    with monkeypatch.context() as patch:
        patch.setattr(passes.Passes, during, interrupted)
        with pytest.raises(error, match="stop"):
            loss_of(kind)(*batch.leaves, *batch.rest, reduction="none").sum().backward()
    assert_left_alone(host)
    step(kind, batch)  # and the next call is as ever


@every_kind
@pytest.mark.parametrize("once", [True, False])
def test_pytorch_may_be_out_of_memory(host, kind, once):
    """Once, the call goes on with what it gives back; else it fails, and the next one is right and
    leaves nothing behind."""
    batch = made(kind, **SIZES)
    before, (loss, found) = [leaf.clone() for leaf in batch.leaves], step(kind, batch)
    for allocation in 0, 1, 3:
        first = len(host.sizes) + allocation
        host.failing = range(first, first + 1 if once else 10**9)
        if not once:
            with pytest.raises(torch.OutOfMemoryError):
                step(kind, batch)
            host.failing = ()
        again, gradients = step(kind, batch)
        assert_left_alone(host)
        assert again == loss
        assert all(map(torch.equal, gradients, found))
    assert all(map(torch.equal, batch.leaves, before))


def test_calls_may_be_nested_in_others_streams_and_allocators(host):
    batch = made("joint", **SIZES)
    stream = host.xp.cuda.Stream()
    pool = host.xp.cuda.MemoryPool()
    with stream, host.xp.cuda.using_allocator(pool.malloc), host.xp.cuda.Device(1):
        step("joint", batch)
        assert host.xp.cuda.get_current_stream() == stream
        before = pool.used_bytes()
        kept = host.xp.ones(1000)
        assert pool.used_bytes() > before
        assert kept.device.id == 1
    assert_left_alone(host)


# The packages


def test_what_pytorch_and_cupy_ask_of_each_other():
    """Beyond signatures of Python, which the stand-ins have."""
    cupy = pytest.importorskip("cupy")
    assert "self.cuda_stream" in inspect.getsource(torch.cuda.Stream)
    assert list(inspect.signature(cupy.cuda.Stream.from_external).parameters) == ["obj"]
    assert "__cuda_stream__" in cupy.cuda.Stream.from_external.__doc__
    allocator = cupy.cuda.PythonFunctionAllocator
    assert allocator.__doc__.startswith("PythonFunctionAllocator(malloc_func, free_func)")
    assert "``malloc(int, int) -> int``" in allocator.__doc__
    assert "``free(int, int)``" in allocator.__doc__
    assert allocator.malloc.__doc__.startswith("PythonFunctionAllocator.malloc(self, size_t size)")


def test_there_is_one_place_for_cuda():
    """The losses themselves ask PyTorch for nothing of CUDA."""
    for module in adapter, operators, engine:
        assert "torch.cuda." not in inspect.getsource(module)
