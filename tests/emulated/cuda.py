"""``cupy.cuda``: two equal devices, streams that run everything at once, and their memory."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from ..ptxemu.compile import nvrtc_version
from . import arrays, cublas, memory
from .memory import (
    MemoryPointer,
    MemoryPool,
    PythonFunctionAllocator,
    UnownedMemory,
    using_allocator,
)

__all__ = [
    "Device",
    "Event",
    "MemoryPointer",
    "MemoryPool",
    "PythonFunctionAllocator",
    "Stream",
    "UnownedMemory",
    "alloc_pinned_memory",
    "compiler",
    "cublas",
    "device",
    "get_current_stream",
    "get_elapsed_time",
    "is_available",
    "nvrtc",
    "runtime",
    "using_allocator",
]

alloc_pinned_memory = bytearray
_DEVICES = 2
_MEMORY_BYTES = 16 << 30

properties = {
    "name": b"emulated device",
    "major": 8,
    "minor": 0,
    "multiProcessorCount": 108,
    "maxThreadsPerMultiProcessor": 2048,
    "sharedMemPerBlock": 48 << 10,
    "totalGlobalMem": _MEMORY_BYTES,
    "warpSize": 32,
}
"""Of both devices. Tests may set another compute capability."""


class Device:
    def __init__(self, device: int | Device | None = None) -> None:
        self.id = memory.devices[-1] if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __enter__(self) -> Device:
        memory.devices.append(self.id)
        return self

    def __exit__(self, *_: Any) -> None:
        memory.devices.pop()

    def use(self) -> None:
        memory.devices[-1] = self.id

    def synchronize(self) -> None:
        arrays.wait()

    @property
    def compute_capability(self) -> str:
        return f"{properties['major']}{properties['minor']}"

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "ClockRate": 1_410_000,
            "GlobalMemoryBusWidth": 5120,
            "MemoryClockRate": 1_593_000,
            "MultiProcessorCount": properties["multiProcessorCount"],
            "SingleToDoublePrecisionPerfRatio": 2,
        }

    @property
    def mem_info(self) -> tuple[int, int]:
        return runtime.memGetInfo()


class Stream:
    """Everything runs as it is launched; what matters is which stream was the current one."""

    null: Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds=False, priority=None
    ) -> None:
        self.ptr = 0 if null else id(self)

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        stream = cls()
        stream.ptr = obj.__cuda_stream__()[1]
        return stream

    def __enter__(self) -> Stream:
        _streams.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _streams.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def use(self) -> Stream:
        _streams[-1] = self
        return self

    def synchronize(self) -> None:
        arrays.wait()

    def record(self, event: Event | None = None) -> Event:
        return event or Event()

    def wait_event(self, event: Event) -> None:
        pass


Stream.null = Stream(null=True)
_streams = [Stream.null]


class Event:
    def __init__(self, block: bool = False, disable_timing=False, interprocess=False) -> None:
        self.done = True

    def record(self, stream: Stream | None = None) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        arrays.wait()


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds of the host, which does all the work."""
    return 1e3 * (end_event.seconds - start_event.seconds)


def get_current_stream(device_id: int = -1) -> Stream:
    return _streams[-1]


def is_available() -> bool:
    return True


class CUDARuntimeError(RuntimeError):
    pass


class CompileException(Exception):
    pass


device = SimpleNamespace(get_cublas_handle=cublas.get_cublas_handle)
runtime = SimpleNamespace(
    CUDA_R_16BF=cublas.TYPES["bfloat16"],
    CUDA_R_16F=cublas.TYPES["float16"],
    CUDA_R_32F=cublas.TYPES["float32"],
    CUDARuntimeError=CUDARuntimeError,
    deviceSynchronize=arrays.wait,
    driverGetVersion=lambda: 12090,
    getDevice=lambda: memory.devices[-1],
    getDeviceCount=lambda: _DEVICES,
    getDeviceProperties=lambda device: dict(properties),
    memGetInfo=lambda: (_MEMORY_BYTES - memory.default_pool.used_bytes(), _MEMORY_BYTES),
    runtimeGetVersion=lambda: 12090,
)
compiler = SimpleNamespace(CompileException=CompileException)
nvrtc = SimpleNamespace(getVersion=nvrtc_version)
