"""Tiles on the cores of the CPU: whole tiles in worker threads, each with a single-threaded BLAS.

NumPy and its BLAS release the GIL, so threads are enough. This beat splitting the rows of one tile
over the threads: the working set of a tile stays in the caches of one core.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

Tile = tuple[int, int]


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def threads() -> int:
    """As many workers as NumPy's BLAS may use threads.

    ``OPENBLAS_NUM_THREADS``, ``OMP_NUM_THREADS`` and :func:`threadpoolctl.threadpool_limits` are
    honoured thereby. While a call holds BLAS to one thread, others see what it may use otherwise.
    """
    with _single_threaded_blas.lock:
        if _single_threaded_blas.users:
            return _single_threaded_blas.threads
        allowed = [library.num_threads or 1 for library in _blas().lib_controllers]
        return max(allowed, default=os.cpu_count() or 1)


class _SingleThreadedBlas:
    """Limits BLAS to one thread while any call is running.

    The limit belongs to the process, so overlapping calls from several threads share one: the
    first sets it, the last restores what the first found.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0
        self.threads = 1

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.threads = threads()
                self._limit = _blas().limit(limits=1)
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self._limit.restore_original_limits()


_single_threaded_blas = _SingleThreadedBlas()


class ThreadWorkers:
    """The calling thread and a pool of ``count - 1`` more; see :class:`cupy_rnnt.ops.Workers`."""

    def __init__(self, count: int, pool: ThreadPoolExecutor | None) -> None:
        self._count = count
        self._pool = pool

    def run(
        self, function: Callable[[int, Tile], None], tiles: Sequence[Tile], fixed: bool = False
    ) -> None:
        shared = _Shared(tiles)
        failed = threading.Event()

        def work(worker: int) -> None:
            own = (tiles[i] for i in range(worker, len(tiles), self._count))
            mine: Iterable[Tile] = own if fixed else shared
            try:
                with np.errstate(all="ignore"):
                    for tile in mine:
                        if failed.is_set():
                            return
                        function(worker, tile)
            except BaseException:
                failed.set()
                raise

        others = [self._pool.submit(work, w) for w in range(1, self._count)] if self._pool else []
        try:
            work(0)
        finally:
            errors = [future.exception() for future in others]
        for error in errors:
            if error is not None:
                raise error


class _Shared:
    """An iterator several threads may advance."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self._tiles = iter(tiles)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Tile]:
        return self

    def __next__(self) -> Tile:
        with self._lock:
            return next(self._tiles)


@contextmanager
def workers(count: int) -> Iterator[ThreadWorkers]:
    """Workers for the length of a call; BLAS runs single-threaded meanwhile."""
    with _single_threaded_blas:
        if count == 1:
            yield ThreadWorkers(1, None)
        else:
            with ThreadPoolExecutor(count - 1, thread_name_prefix="cupy_rnnt") as pool:
                yield ThreadWorkers(count, pool)
