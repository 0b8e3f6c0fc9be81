"""CuPy as a guest of PyTorch: on its stream, in its memory, on its tensors.

Lines marked "GPU" call into the CUDA half of PyTorch or CuPy. The tests run these lines against
stand-ins with the signatures of both libraries; they have not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..ops.cuda.launch import cupy
from ..ops.types import DeviceArray


def is_on_cuda(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


class _Stream:
    """A stream of PyTorch with the method that CuPy needs, which older releases lack."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream  # GPU


@contextmanager
def guest_on(device: torch.device) -> Iterator[None]:
    """Let CuPy work on a device, on PyTorch's current stream there, in memory of PyTorch's caching
    allocator."""
    cuda = cupy().cuda
    allocator = cuda.PythonFunctionAllocator(_allocate, _free)
    stream = cuda.Stream.from_external(_Stream(torch.cuda.current_stream(device)))  # GPU
    with (
        torch.cuda.device(device),  # GPU
        cuda.Device(device.index),
        stream,
        cuda.using_allocator(allocator.malloc),
    ):
        yield


def _allocate(size: int, device: int) -> int:
    pointer: int = torch.cuda.caching_allocator_alloc(size, device)  # GPU
    return pointer


def _free(pointer: int, device: int) -> None:
    torch.cuda.caching_allocator_delete(pointer)  # type: ignore[no-untyped-call]  # GPU


def view(tensor: Tensor) -> DeviceArray:
    """The memory of a tensor as an array of CuPy."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return view(tensor.view(torch.int16)).view(ml_dtypes.bfloat16)
    return cupy().from_dlpack(tensor)  # GPU
