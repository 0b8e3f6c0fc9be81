"""Times on a GPU: of a call by the clock and by CUDA events, and of every kernel of it."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from cupy_rnnt.ops.cuda import products as cuda_products
from cupy_rnnt.ops.cuda.launch import KERNELS, Launch, cupy

PRODUCTS = "products"
_REPEATS = 5
_FILLED_BYTES = {False: 2**28, True: 2**10}  # 0.09 ms of an H100's memory, five times its cache


class Interval(NamedTuple):
    """What the GPU did, in seconds from some start."""

    name: str
    start: float
    end: float


def wait() -> None:
    cupy().cuda.Device().synchronize()


def wall_seconds(function: Callable[[], Any]) -> float:
    """From an idle GPU to an idle GPU."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def event_seconds(function: Callable[[], Any]) -> float:
    """Between two CUDA events around a call on the current stream."""
    start, stop = _event(), cupy().cuda.Event()
    function()
    stop.record()
    stop.synchronize()
    return _between(start, stop)


def _event() -> Any:
    event = cupy().cuda.Event()
    event.record()
    return event


def _between(start: Any, stop: Any) -> float:
    return float(cupy().cuda.get_elapsed_time(start, stop)) / 1e3


@contextmanager
def timed_launches(small: bool) -> Iterator[list[tuple[str, Any, Any]]]:
    """The package's own launches and products meanwhile: names, and events before and after.

    Memory is filled before each of them, long enough for the host to launch what comes next
    meanwhile: no interval holds a wait of the GPU, and nothing is in its cache.
    """
    launches: list[tuple[str, Any, Any]] = []
    filled = cupy().empty(_FILLED_BYTES[small], "u1")

    def timed(function: Callable[..., Any], name: Callable[[Any], str]) -> Callable[..., Any]:
        def run(first: Any, *arguments: Any, **options: Any) -> None:
            filled.fill(0)
            start = _event()
            function(first, *arguments, **options)
            launches.append((name(first), start, _event()))

        return run

    own = timed(Launch.__call__, lambda launch: launch.kernel.name)
    gemm = timed(cuda_products._gemm, lambda _: PRODUCTS)
    with (
        mock.patch.object(Launch, "__call__", own),
        mock.patch.object(cuda_products, "_gemm", gemm),
    ):
        yield launches


def kernel_seconds(function: Callable[[], Any], small: bool) -> dict[str, float]:
    """Median over the calls of a function of the seconds of each kernel, all its launches
    together."""
    function()
    samples: dict[str, list[float]] = {}
    for _ in range(1 if small else _REPEATS):
        for row in by_name(by_events(function, small)):
            samples.setdefault(row["name"], []).append(row["seconds"])
    return {name: statistics.median(values) for name, values in samples.items()}


def profiled(function: Callable[[], Any]) -> list[Interval]:
    """All that the GPU did in a call, whoever launched it, by CUPTI through PyTorch's profiler."""
    import torch
    from torch.autograd import DeviceType

    torch.cuda.init()
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA]
    for _ in range(2):  # the first time, CUPTI is loaded
        with torch.profiler.profile(activities=activities) as profile:
            function()
            wait()
    events = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    if not events:
        raise RuntimeError("the profiler saw nothing on the GPU")
    return [
        Interval(short(event.name), event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in events
    ]


def by_events(function: Callable[[], Any], small: bool) -> list[Interval]:
    """The package's own launches and products in a call, by CUDA events."""
    first = _event()
    with timed_launches(small) as launches:
        function()
    wait()
    return [
        Interval(name, _between(first, start), _between(first, stop))
        for name, start, stop in launches
    ]


def short(name: str) -> str:
    """The name of a kernel without its arguments, and without template arguments of our own."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    own = re.match(r"\w+", name)
    if own and own[0] in {kernel.name for kernel in KERNELS}:
        return own[0]
    return name.partition("(")[0].strip()[:80]


def rate(amount: float, seconds: float) -> float:
    """A second; 0 where no time is measured, as on a stand-in for a GPU."""
    return amount / seconds if seconds > 0 else 0.0


def busy_seconds(intervals: Iterable[Interval]) -> float:
    """In which at least one of them ran."""
    total, reached = 0.0, float("-inf")
    for _, start, end in sorted(intervals, key=lambda interval: interval.start):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def by_name(intervals: Iterable[Interval]) -> list[dict[str, Any]]:
    """Count and seconds of each name, the longest first."""
    rows: dict[str, dict[str, Any]] = {}
    for name, start, end in intervals:
        row = rows.setdefault(name, {"name": name, "count": 0, "seconds": 0.0})
        row["count"] += 1
        row["seconds"] += end - start
    return sorted(rows.values(), key=lambda row: -row["seconds"])
