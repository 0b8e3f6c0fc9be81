"""Calls that are disturbed: what they leave behind, and what the next call gives."""

from __future__ import annotations

import gc
import multiprocessing
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from unittest import mock

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from ..emulated import kernels, memory
from . import calls, cases

THREADS = 24
INTERRUPTS = 5
"""Of a case."""
CASES_OF_PROCESS = 10
SECONDS_TO_END = 1
SECONDS = 300
"""After which a process is taken to hang."""
Failures = Iterator[tuple[int, BaseException]]
"""A seed, and what went wrong."""


def state() -> tuple[list[int], list[str]]:
    """What a call must leave as it was: threads of BLAS, and threads of its own. One that was about
    to begin at an interrupt ends at once, and nothing waits for it."""
    for thread in threading.enumerate():
        if thread.name.startswith("cupy_rnnt") and thread.is_alive():
            thread.join(SECONDS_TO_END)
    blas = [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]
    names = [thread.name for thread in threading.enumerate() if thread.is_alive()]
    return blas, [name for name in names if name.startswith("cupy_rnnt")]


def undisturbed(call: calls.Call, before: object, expected: bytes) -> None:
    """The arguments are as before, and so are the process and the next call."""
    call.left_its_arguments()
    assert state() == before, f"{before} became {state()}"
    assert call().bits == expected, "the next call gives other bits"


# Allocations


@contextmanager
def allocations(refused: int, emulated: bool) -> Iterator[list[int]]:
    """Count what is allocated, and refuse one of it: of the device, or on a CPU by ``numpy.empty``
    and ``zeros``."""
    count = [0]

    def counting(allocate: Callable[..., object], *args: object, **options: object) -> object:
        count[0] += 1
        if count[0] == refused:
            raise MemoryError
        return allocate(*args, **options)

    def taking(pool: memory.MemoryPool, size: int) -> None:
        if size:
            counting(take, pool, size)

    if emulated:
        take = memory.MemoryPool._take
        with (
            mock.patch.object(memory.MemoryPool, "_take", taking),
            mock.patch.object(kernels.options, "races", False),  # other tests look for these
        ):
            yield count
    else:
        empty, zeros = partial(counting, np.empty), partial(counting, np.zeros)
        with mock.patch.multiple(np, empty=empty, zeros=zeros):
            yield count


def of_allocations(seeds: Iterable[int], counts: Counter[str], emulated: bool) -> Failures:
    """Each allocation of a call is refused, one after the other."""
    for seed in seeds:
        case = cases.drawn(seed, emulated)._replace(framework="numpy", spare_bytes=None)
        call = calls.Call(case)
        try:
            with calls.conditions(case):
                before, expected = state(), call().bits
                used = memory.default_pool.used_bytes()
                with allocations(0, emulated) as count:
                    call()
                for refused in range(1, count[0] + 1):
                    with allocations(refused, emulated):
                        try:
                            call()
                        except MemoryError:
                            counts["allocations refused"] += 1
                        else:
                            raise AssertionError(f"allocation {refused} was not needed")
                    call.left_its_arguments()
                    if emulated:
                        gc.collect()
                        assert memory.default_pool.used_bytes() == used, "memory stays in use"
                undisturbed(call, before, expected)
        except Exception as error:
            yield seed, error


# Interrupts


def of_interrupts(seeds: Iterable[int], counts: Counter[str], emulated: bool) -> Failures:
    """A call is interrupted at random points, as by Ctrl-C."""
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for seed in seeds:
            case = cases.drawn(seed, emulated)
            if case.framework == "jax":  # XLA runs the callbacks, and they are not interrupted
                continue
            call = calls.Call(case)
            try:
                with calls.conditions(case):
                    interrupted(call, random.Random(seed), counts)
            except Exception as error:
                yield seed, error
    finally:
        signal.signal(signal.SIGALRM, old)


def interrupted(call: calls.Call, rng: random.Random, counts: Counter[str]) -> None:
    call()
    start = time.perf_counter()
    before, expected = state(), call().bits
    seconds = time.perf_counter() - start
    for _ in range(INTERRUPTS):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, seconds))
            call()
            counts["calls that ended first"] += 1
            time.sleep(2 * seconds)
        except KeyboardInterrupt:
            counts["interrupts"] += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        undisturbed(call, before, expected)


# Threads and processes


def of_threads(seeds: Iterable[int], counts: Counter[str], emulated: bool) -> Failures:
    """Calls at the same time, in many threads, give the same bits as alone."""
    all_calls = [calls.Call(cases.drawn(seed, emulated)) for seed in seeds]
    with threadpool_limits(2), calls.quiet():
        before = state()
        expected = [call().bits for call in all_calls]
        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(call) for call in all_calls]
        for call, future, bits in zip(all_calls, futures, expected, strict=True):
            counts["calls"] += 1
            try:
                assert future.result().bits == bits, "other bits than alone"
                call.left_its_arguments()
                assert state() == before, f"{before} became {state()}"
            except Exception as error:
                yield call.case.seed, error


def digests(seeds: list[int]) -> list[str]:
    """Of the results of the cases, in this process."""
    with threadpool_limits(2), calls.quiet():
        return [sha256(calls.Call(cases.drawn(s))().bits).hexdigest() for s in seeds]


def of_processes(
    method: str, seeds: Iterable[int], counts: Counter[str], emulated: bool
) -> Failures:
    """Processes that are started while other threads run calls give the same bits as this one.
    Frameworks have threads that a fork does not survive: forked processes do without them."""
    left = [s for s in seeds if method != "fork" or cases.drawn(s).framework == "numpy"]
    parts = [left[i : i + CASES_OF_PROCESS] for i in range(0, len(left), CASES_OF_PROCESS)]
    ended = threading.Event()

    def busy() -> None:
        while not ended.is_set():
            digests(parts[0][:1])

    expected = [digests(part) for part in parts]
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(busy) for _ in range(2)]
        try:
            for part, wanted in zip(parts, expected, strict=True):
                counts["processes"] += 1
                counts["calls"] += len(part)
                with multiprocessing.get_context(method).Pool(1) as pool:
                    try:
                        found = pool.apply_async(digests, [part]).get(SECONDS)
                    except Exception as error:
                        yield part[0], error
                        continue
                for seed, one, other in zip(part, found, wanted, strict=True):
                    if one != other:
                        yield seed, AssertionError("other bits than in the parent process")
        finally:
            ended.set()
    for future in running:
        future.result()


DISTURBANCES: dict[str, Callable[[Iterable[int], Counter[str], bool], Failures]] = {
    "allocations": of_allocations,
    "interrupts": of_interrupts,
    "threads": of_threads,
    "fork": partial(of_processes, "fork"),
    "spawn": partial(of_processes, "spawn"),
}
