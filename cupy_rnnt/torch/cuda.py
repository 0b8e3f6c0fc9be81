"""CuPy as a guest of PyTorch: on its stream, in its memory, on its tensors.

What is marked "GPU" calls into the CUDA half of PyTorch or CuPy. The tests run these lines against
stand-ins with the signatures of both; they have not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..ops.cuda.launch import cupy


def is_on_cuda(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


class _Stream:
    """A stream of PyTorch as CuPy asks for it; PyTorch's own does so only of late."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream  # GPU


@contextmanager
def guest_on(device: torch.device) -> Iterator[None]:
    """CuPy works on a device meanwhile, on PyTorch's current stream there, and takes what memory it
    needs from PyTorch's caching allocator."""
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


def view(tensor: Tensor) -> Any:
    """The memory of a tensor as an array of CuPy."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return view(tensor.view(torch.int16)).view(ml_dtypes.bfloat16)
    return cupy().from_dlpack(tensor)  # GPU
