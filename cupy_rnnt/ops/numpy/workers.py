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
from queue import Empty, SimpleQueue
from typing import Any
from weakref import ref

import numpy as np
from threadpoolctl import ThreadpoolController

from ..types import Tile

_LOOK_SECONDS = 1.0  # after which to look whether the threads live


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

    Python takes a lock and enters its ``with`` block in one step. A condition takes two, and an
    interrupt between them would leave it locked for ever. The lock is reentrant, as a finalizer may
    call the library while its thread holds the lock.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._users: set[int] = set()  # threads whose tiles are under way
        self._forking: set[int] = set()  # threads
        self._allowed: list[int] = []  # threads of each library without our limit, while it lasts

    def allowed(self) -> int:
        """How many threads BLAS may use while no tile is computed.

        It takes no lock: a signal handler may call the library meanwhile, and would wait for
        workers that wait for the lock. Every limit has a list of its own.
        """
        while True:
            allowed = self._allowed
            counts = allowed or self._counts()
            if self._allowed is allowed:  # no limit has begun or ended meanwhile
                return max(counts, default=os.cpu_count() or 1)

    def _counts(self) -> list[int]:
        return [library.num_threads or 1 for library in _blas().lib_controllers]

    def __enter__(self) -> None:
        with self._lock:
            self._changed.wait_for(lambda: not self._forking)
            counts = self._counts()
            if not self._users:
                self._allowed = counts.copy()
            for i, library in enumerate(_blas().lib_controllers):
                if counts[i] > 1:  # the first tile, or a limit of other code ended meanwhile
                    self._allowed[i] = counts[i]
                    _set_threads(library, 1)
            self._users.add(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """The thread computes no tile, whether it did or not."""
        with self._lock:
            self._users.discard(threading.get_ident())
            if not self._users:
                for library, count in zip(_blas().lib_controllers, self._allowed, strict=False):
                    if count > 1 and library.num_threads == 1:  # else other code has set it
                        _set_threads(library, count)
                self._allowed = []
                self._changed.notify_all()

    def before_fork(self) -> None:
        with self._lock:
            self._forking.add(threading.get_ident())
            self._changed.wait_for(lambda: not self._users)

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
    without a :class:`threading.Thread`, whose ``start`` waits on a condition. A thread may die
    without a word where no memory is left. So it is looked for from time to time, and its tiles
    count as done only if it says so at their end.
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
        active = range(min(self._count, len(tiles)))
        complete = [False] * len(active)
        running = [threading.Lock() for _ in active]  # each held while its thread works
        registry = threading.Lock()
        stopped = False

        def work(worker: int) -> None:
            nonlocal stopped
            try:
                assigned = (tiles[i] for i in range(worker, len(tiles), self._count))
                with np.errstate(all="ignore"):
                    for tile in assigned if fixed else shared:
                        with _single_threaded_blas:
                            if stopped:
                                return
                            function(worker, tile)
                        if worker == 0:
                            finished.put(tile)
                complete[worker] = True
            except BaseException as error:
                stopped = True
                errors.append(error)
            finally:
                finished.put(None)

        def work_in_thread(worker: int, _: _Life) -> None:
            with registry:
                if stopped:  # nobody waits for a thread that begins now
                    finished.put(None)
                    return
                running[worker].acquire()
            try:
                work(worker)
            finally:
                running[worker].release()

        try:
            lives = []
            for worker in active:
                life = _Life()
                lives.append(ref(life))
                try:
                    start_new_thread(work_in_thread, (worker, life))
                except RuntimeError:
                    try:
                        work(worker)
                    finally:
                        _single_threaded_blas.end()  # as an interrupt may keep a tile from doing
                del life
            for tile in _until_ended(finished, lives):
                if report is not None:
                    report(tile)
        finally:
            with registry:
                stopped = True
            for lock in running:
                with lock:
                    pass
        try:
            if not all(complete):
                raise errors[0] if errors else MemoryError("a worker ran out of memory")
        finally:
            errors.clear()  # or their tracebacks would refer to themselves


class _Life:
    """Exists as long as its thread."""


def _until_ended(finished: SimpleQueue[Tile | None], lives: Sequence[ref[_Life]]) -> Iterator[Tile]:
    """The tiles of a queue, until each thread has put None or has died."""
    left = len(lives)
    while left:
        try:
            tile = finished.get(timeout=_LOOK_SECONDS)
        except Empty:
            if all(life() is None for life in lives) and finished.empty():
                return
        else:
            if tile is None:
                left -= 1
            else:
                yield tile


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
