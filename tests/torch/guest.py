"""What stands for the CUDA half of PyTorch where there is no GPU: tensors of the CPU that say they
are on an emulated device, and functions of ``torch.cuda`` that record their calls."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from .. import devices
from ..device_calls import running_on
from ..emulated import arrays, memory
from .cases import arguments, cuda, torch

DEVICE = torch.device("cuda", 1)
STREAM = 4321


class Guest:
    """Records what PyTorch is asked for."""

    def __init__(self, xp):
        self.xp = xp
        self.live = {}  # bytes of each allocation, by its address
        self.sizes = []
        self.failing = ()  # the numbers of allocations for which there is no memory
        self.devices = []  # those made current; None where one is left
        self.host_tensors = []

    def moved(self, tensor):
        return tensor

    def current_stream(self, device):
        assert device == DEVICE
        return SimpleNamespace(cuda_stream=STREAM)

    @contextmanager
    def device(self, device):
        self.devices.append(device)
        try:
            yield
        finally:
            self.devices.append(None)

    def caching_allocator_alloc(self, size, device):
        assert device == DEVICE.index
        self.sizes.append(size)
        if len(self.sizes) - 1 in self.failing:
            raise torch.OutOfMemoryError
        address = len(self.sizes)
        self.live[address] = size
        return address

    def caching_allocator_delete(self, mem_ptr):
        del self.live[mem_ptr]

    def from_dlpack(self, array):
        """All memory that a tensor reaches becomes an allocation of the current device."""
        if array.requires_grad or array.dtype == torch.bfloat16:
            raise BufferError("PyTorch exports no such tensor, or CuPy does not import it")
        found = array.numpy()
        if found.size == 0:
            return self.xp.empty(found.shape, found.dtype)
        reach = sum((n - 1) * s for n, s in zip(found.shape, found.strides, strict=True))
        size = reach + found.itemsize
        buffer = (ctypes.c_uint8 * size).from_address(array.data_ptr())
        root = memory.Allocation(size, np.uint8, buffer)
        root.device_id, root.owner = memory.devices[-1], array
        return arrays.ndarray.of(np.ndarray(found.shape, found.dtype, root, 0, found.strides))

    def is_on_cuda(self, tensor):
        return all(tensor.data_ptr() != other.data_ptr() for other in self.host_tensors)


def moved(tensor):
    """To a GPU, where there is one."""
    return tensor.detach().cuda().requires_grad_() if tensor.is_floating_point() else tensor.cuda()


@contextmanager
def gpu() -> Iterator[Any]:
    """A real one."""
    with devices.cuda() as device, running_on(device):
        yield SimpleNamespace(moved=moved)


@contextmanager
def guest() -> Iterator[Guest]:
    """All tensors but labels and lengths are on the second emulated device."""
    with (
        devices.emulated() as device,
        running_on(device),
        pytest.MonkeyPatch.context() as patch,
    ):
        found = Guest(device.xp)
        for name in ("current_stream", "caching_allocator_alloc", "caching_allocator_delete"):
            patch.setattr(torch.cuda, name, _like(getattr(torch.cuda, name), getattr(found, name)))
        patch.setattr(torch.cuda, "device", _like(torch.cuda.device, found.device))
        patch.setattr(device.xp, "from_dlpack", found.from_dlpack, raising=False)
        patch.setattr(cuda, "is_on_cuda", found.is_on_cuda)
        guest_on, on_host = cuda.guest_on, arguments.on_host
        patch.setattr(cuda, "guest_on", lambda _: guest_on(DEVICE))

        def remembered(name, value):
            found.host_tensors.append(on_host(name, value))
            return found.host_tensors[-1]

        patch.setattr(arguments, "on_host", remembered)
        yield found


def _like(original, replacement):
    """Takes no arguments that the original does not take."""
    signature = inspect.signature(original)

    def function(*args, **kwargs):
        signature.bind(*args, **kwargs)
        return replacement(*args, **kwargs)

    return function


PLACES = [guest, *[gpu] * (devices.has_gpu() and torch.cuda.is_available())]
