"""Tiles on the cores of the CPU: whole tiles in worker threads, each with a single-threaded BLAS.

NumPy and its BLAS release the GIL, so threads are enough. A tile stays in the caches of one core.
The tiles could also take turns, each with all threads of BLAS, but a thread of OpenBLAS waits for
the others in a loop. With other processes on both cores, a product of 1024 x 1024 x 512 took 40 ms
on two threads and 8 ms on one, and a whole call 4.5 times as long.
"""

from __future__ import annotations

import os
import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from queue import SimpleQueue
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from ..types import Tile


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _set_threads(library: Any, count: int) -> None:
    """Set how many threads a BLAS library may use, from any thread.

    From version 3.8 on, threadpoolctl lets one thread control OpenBLAS and ignores all others in
    silence, until it is told to forget which thread that is.
    """
    forget = getattr(library, "clear_controlling_thread", lambda force: None)
    forget(force=True)
    library.set_num_threads(count)
    forget(force=True)


class _SingleThreadedBlas:
    """Holds BLAS to one thread while tiles are computed, and holds up forks meanwhile.

    The limit belongs to the process, so all tiles share it: the first tile sets it, and the last
    one restores the number of threads that BLAS had. Our own threads compute the tiles, and Python
    runs signal handlers in the main thread only, so no interrupt keeps BLAS from being restored.

    A fork waits for the tiles under way, and new tiles wait for the fork. So BLAS has no limit of
    ours in the child process, and no thread that the child lacks holds a lock of BLAS.

    Python takes a plain lock and enters its ``with`` block in one step. It does not do so for a
    condition, which an interrupt between the two steps would leave locked for ever.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.users = 0  # tiles under way
        self._forking: set[int] = set()  # threads
        self._allowed: list[int] = []  # threads of each library without our limit

    def allowed(self) -> int:
        """How many threads BLAS may use while no tile is computed."""
        with self._lock:
            counts = self._allowed if self.users else self._counts()
            return max(counts, default=os.cpu_count() or 1)

    def _counts(self) -> list[int]:
        return [library.num_threads or 1 for library in _blas().lib_controllers]

    def __enter__(self) -> None:
        with self._lock:
            self._changed.wait_for(lambda: not self._forking)
            counts = self._counts()
            if self.users == 0:
                self._allowed = counts
            for i, library in enumerate(_blas().lib_controllers):
                if counts[i] > 1:  # the first tile, or a limit of other code ended meanwhile
                    self._allowed[i] = counts[i]
                    _set_threads(library, 1)
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.users -= 1
            if self.users == 0:
                for library, count in zip(_blas().lib_controllers, self._allowed, strict=True):
                    if count > 1 and library.num_threads == 1:  # else other code has set it
                        _set_threads(library, count)
                self._changed.notify_all()

    def before_fork(self) -> None:
        with self._lock:
            self._forking.add(threading.get_ident())
            self._changed.wait_for(lambda: self.users == 0)

    def after_fork_in_parent(self) -> None:
        with self._lock:
            self._forking.discard(threading.get_ident())  # an interrupt may have kept it out
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        self._start()


_single_threaded_blas = _SingleThreadedBlas()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_single_threaded_blas.before_fork,
        after_in_parent=_single_threaded_blas.after_fork_in_parent,
        after_in_child=_single_threaded_blas.after_fork_in_child,
    )


def threads() -> int:
    """As many workers as NumPy's BLAS may use threads, whatever calls are running.

    So ``OPENBLAS_NUM_THREADS``, ``OMP_NUM_THREADS`` and :func:`threadpoolctl.threadpool_limits`
    limit the workers, too.
    """
    return _single_threaded_blas.allowed()


class ThreadWorkers:
    """As many threads as there are workers; see :class:`cupy_rnnt.ops.Workers`.

    The threads live as long as one call of :meth:`run`. The calling thread only waits, so a call
    works the same from every thread, and an interrupt reaches it at once. If Python starts no
    thread, because it is about to end, the calling thread runs the tiles of that worker.

    The calling thread uses nothing that an interrupt leaves half done: plain locks, and threads
    without a :class:`threading.Thread`, whose ``start`` waits on a condition.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def run(
        self,
        function: Callable[[int, Tile], None],
        tiles: Sequence[Tile],
        fixed: bool = False,
        report: Callable[[Tile], None] | None = None,
    ) -> None:
        shared = _Shared(tiles)
        finished: SimpleQueue[Tile | None] = SimpleQueue()  # None: a worker is done
        errors: list[BaseException] = []
        running: list[threading.Lock] = []  # of threads, each held until its thread is done
        registry = threading.Lock()
        stopped = False

        def work(worker: int) -> None:
            nonlocal stopped
            assigned = (tiles[i] for i in range(worker, len(tiles), self._count))
            try:
                with np.errstate(all="ignore"):
                    for tile in assigned if fixed else shared:
                        with _single_threaded_blas:
                            if stopped:
                                return
                            function(worker, tile)
                        if worker == 0:
                            finished.put(tile)
            except BaseException as error:
                errors.append(error)
                stopped = True
            finally:
                finished.put(None)

        def work_in_thread(worker: int) -> None:
            done = threading.Lock()
            with done:
                with registry:
                    if stopped:  # nobody waits for a thread that begins now
                        finished.put(None)
                        return
                    running.append(done)
                work(worker)

        active = range(min(self._count, len(tiles)))
        try:
            for worker in active:
                try:
                    start_new_thread(work_in_thread, (worker,))
                except RuntimeError:
                    work(worker)
            for _ in active:
                while (tile := finished.get()) is not None:
                    if report is not None:
                        report(tile)
        finally:
            with registry:
                stopped = True
            for done in running:
                with done:
                    pass
        try:
            if errors:
                raise errors[0]
        finally:
            errors.clear()  # or their tracebacks would refer to themselves


class _Shared:
    """An iterator that several threads may advance."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self._tiles = iter(tiles)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Tile]:
        return self

    def __next__(self) -> Tile:
        with self._lock:
            return next(self._tiles)


start_workers = ThreadWorkers
