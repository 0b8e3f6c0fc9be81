"""CuPy as a guest of PyTorch: on its stream, in its memory, on its tensors.

Lines marked "GPU" call into the CUDA half of PyTorch or CuPy. The tests run these lines against
stand-ins with the signatures of both libraries; they have not run on a GPU.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    allocator, which gets all of it back in the end.

    A pool of CuPy takes that memory in few pieces, 35 for the 189 arrays of a call of 4 samples,
    since each of them goes through Python. Arrays made in the context should be dead at its end.
    What an error still holds goes back when the next call ends.
    """
    library = cupy()
    cuda, pool = library.cuda, _pool(library)
    stream = cuda.Stream.from_external(_Stream(torch.cuda.current_stream(device)))  # GPU
    with (
        torch.cuda.device(device),  # GPU
        cuda.Device(device.index),
        stream,
        cuda.using_allocator(functools.partial(_take, pool)),
    ):
        try:
            yield
        except BaseException as error:
            _let_go_of_arrays(error)
            raise
        finally:
            pool.free_all_blocks()


@functools.cache
def _pool(library: Any) -> Any:
    """A pool of CuPy, empty between calls. If it died, it would keep the blocks that are free."""
    allocator = library.cuda.PythonFunctionAllocator(_allocate, _free)
    return library.cuda.MemoryPool(allocator.malloc)


def _take(pool: Any, size: int) -> Any:
    """Memory of a pool, which gives back what is free before it fails."""
    try:
        return pool.malloc(size)
    except torch.OutOfMemoryError:
        pool.free_all_blocks()
        return pool.malloc(size)


def _let_go_of_arrays(error: BaseException | None) -> None:
    """Clear the frames that an error has left, for their arrays would outlive the call. Closures
    of these frames stay."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


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
