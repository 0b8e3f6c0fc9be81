"""Device memory: allocations of an emulated device, their sizes, and what has been written."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import ptxemu
from ..ptxemu.machine import DeviceMemory

_UNIT = 512  # bytes; a pool hands out multiples of it


class UninitialisedRead(RuntimeError):
    """Something that is no kernel read device memory that nobody had written."""


class MemoryPool:
    """Counts bytes as CuPy's pool does, and keeps blocks of an allocator, by device and size."""

    def __init__(self, allocator: Allocator | None = None) -> None:
        self._used = self._peak = 0
        self._allocator = allocator
        self._free: dict[int, list[PooledMemory]] = {}

    def malloc(self, size: int) -> MemoryPointer:
        size = -(-size // _UNIT) * _UNIT
        if self._allocator is None or not size:
            return MemoryPointer(PooledMemory(self, size), 0)
        free = self._free.setdefault(devices[-1], [])
        fitting = [block for block in free if block.size == size]
        block = fitting[0] if fitting else self._allocator(size).mem
        if fitting:
            free.remove(block)
        return MemoryPointer(PooledMemory(_Block(self, block, free), size), 0)

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        """The most bytes in use at a time since :meth:`free_all_blocks`."""
        return self._peak

    def free_all_blocks(self, stream: Any = None) -> None:
        """Of the current device."""
        self._peak = self._used
        free = self._free.get(devices[-1], [])
        while free:
            block = free.pop()
            block.pool._give_back(block.size)

    def _take(self, size: int) -> None:
        self._used += size
        self._peak = max(self._peak, self._used)

    def _give_back(self, size: int) -> None:
        self._used -= size


class PooledMemory(NamedTuple):
    """What a pool promises to hold for an allocation."""

    pool: MemoryPool | _Block | _Lent
    size: int


class UnownedMemory(NamedTuple):
    """What another library has allocated."""

    ptr: int
    size: int
    owner: Any
    device_id: int = -1


class MemoryPointer(NamedTuple):
    mem: PooledMemory | UnownedMemory
    offset: int


class _Block:
    """A block of a pool, in use, and the list of free ones that it goes back to."""

    def __init__(self, pool: MemoryPool, block: PooledMemory, free: list[PooledMemory]) -> None:
        self._pool, self._block, self._list = pool, block, free

    def _take(self, size: int) -> None:
        self._pool._take(size)

    def _give_back(self, size: int) -> None:
        self._pool._give_back(size)
        self._list.append(self._block)


class _Lent:
    """An allocation that somebody else answers for."""

    def __init__(self, free: Callable[[], Any]) -> None:
        self._free = free

    def _take(self, size: int) -> None:
        pass

    def _give_back(self, size: int) -> None:
        self._free()


class PythonFunctionAllocator:
    def __init__(self, malloc_func: Callable[..., int], free_func: Callable[..., Any]) -> None:
        self._functions = malloc_func, free_func

    def malloc(self, size: int) -> MemoryPointer:
        malloc, free = self._functions
        device = devices[-1]
        lent = _Lent(partial(free, malloc(size, device), device))
        return MemoryPointer(PooledMemory(lent, size), 0)


Allocator = Callable[[int], MemoryPointer]
default_pool = MemoryPool()
_allocators: list[Allocator] = [default_pool.malloc]
devices: list[int] = [0]
"""The current one is the last."""


@contextmanager
def using_allocator(allocator: Allocator | None = None) -> Iterator[None]:
    _allocators.append(allocator or default_pool.malloc)
    try:
        yield
    finally:
        _allocators.pop()


class Allocation(np.ndarray):
    """The whole of an allocation. Everything else on the device is a view of one."""

    device_id: int


def allocate(shape: Any, dtype: Any, order: str = "C") -> np.ndarray:
    """Memory of the current device, poisoned: what reads it before it was written, fails."""
    root = Allocation(shape, dtype, order=order)
    root.device_id = devices[-1]
    pointer = _allocators[-1](root.nbytes)
    pool, size = pointer.mem
    pool._take(size)
    weakref.finalize(root, pool._give_back, size).atexit = False
    ptxemu.poison(root)
    return root.view(np.ndarray)


def array_at(pointer: MemoryPointer, shape: Any, dtype: Any) -> np.ndarray:
    """In memory that is on the device already."""
    address, size, _, device_id = pointer.mem
    root, start = ptxemu.allocation_at(address + pointer.offset)
    assert isinstance(root, Allocation)
    assert root.device_id == device_id
    found = root.view(np.ndarray).reshape(-1).view(np.uint8)[start : start + size]
    return found.view(dtype).reshape(shape)


def allocation_of(array: np.ndarray) -> Allocation | None:
    """None if the array is on the host."""
    root = DeviceMemory.root_of(array)
    return root if isinstance(root, Allocation) else None


def checked(array: np.ndarray, key: Any = ...) -> np.ndarray:
    """The array, if what ``array[key]`` reads was written."""
    if not ptxemu.written(array)[key].all():
        raise UninitialisedRead(f"uninitialised device memory: {array.dtype}{list(array.shape)}")
    return array


def mark_written(array: np.ndarray, key: Any = ...) -> None:
    """Of ``array[key] = ...``."""
    where = np.zeros(array.shape, bool)
    where[key] = True
    ptxemu.mark_written(array, where)
