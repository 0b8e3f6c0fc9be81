"""No call has an effect on the process that outlives it, whatever thread it is made in."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cupy_rnnt import joint_rnnt_loss_and_grad
from cupy_rnnt.engine.plan import Tiles
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.numpy import workers

from .. import ROOT
from . import thread_programs


def run(program, interpreter=sys.executable):
    """What a program prints; it fails if that is an error, also one that Python only reports."""
    result = subprocess.run(
        [interpreter, "-m", "tests.engine.thread_programs", program],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "2", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert "Error" not in result.stderr, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "program",
    [
        "overlapping_calls",
        "the_same_bits_in_every_thread",
        "limits_of_the_caller",
        "a_limit_that_ends_during_a_call",
        "interrupts",
        "interrupts_of_the_limit",
        "interrupts_without_threads",
        "handlers_that_call",
        "forks",
        "forks_with_larger_arrays",
        "jax_steps_at_exit",
        "jax_on_two_devices",
    ],
)
def test_nothing_outlives_a_call(program):
    run(program)


@pytest.mark.parametrize(
    "program", ["after_the_main_thread", "first_call_after_the_main_thread", "at_exit"]
)
def test_calls_while_python_ends(program):
    assert run(program) == "right\n"


def test_a_call_without_threads_has_the_same_bits(monkeypatch):
    """Workers own the sums, not threads: Python starts no thread when it is about to end."""
    arguments = thread_programs.THREADED
    monkeypatch.setattr("cupy_rnnt.ops.numpy.threads", lambda: 3)
    expected = thread_programs.bits(arguments)
    starts = []

    def refused(work, worker):
        starts.append(worker[0])
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(workers, "start_new_thread", refused)
    assert thread_programs.bits(arguments) == expected
    assert set(starts) == {0, 1, 2}


def test_the_first_failure_stops_the_other_workers():
    tiles = Tiles(1000, 1, 2)
    done, failed = [], threading.Event()

    def tile(worker, part):
        if worker == 1:
            failed.set()
            raise LookupError("of worker 1")
        assert failed.wait(60)
        done.append(part)

    with pytest.raises(LookupError, match="of worker 1"):
        cpu.start_workers(2).run(tile, tiles, fixed=True)
    assert len(done) < len(tiles) // 2


def test_a_failure_before_the_other_workers_have_started(monkeypatch):
    failed, start = threading.Event(), workers.start_new_thread

    def late(work, worker):
        if worker[0] == 1:
            assert failed.wait(60)
            time.sleep(0.1)
        start(work, worker)

    def tile(worker, part):
        failed.set()
        raise LookupError("of worker 0")

    monkeypatch.setattr(workers, "start_new_thread", late)
    caller = threading.Thread(target=lambda: errors.append(failure(tile)), daemon=True)
    errors = []
    caller.start()
    caller.join(60)
    assert errors == ["of worker 0"]


@pytest.mark.parametrize("dead", [{0}, {1}, {0, 1}])
def test_a_thread_that_dies_without_a_word(dead, monkeypatch):
    """As it does if Python finds no memory to begin with."""
    start = workers.start_new_thread

    def starts(work, arguments):
        start((lambda *_: None) if arguments[0] in dead else work, arguments)

    monkeypatch.setattr(workers, "start_new_thread", starts)
    for fixed in False, True:
        with pytest.raises(MemoryError, match="a worker ran out of memory"):
            cpu.start_workers(2).run(lambda *_: None, Tiles(1000, 1, 2), fixed)


def failure(tile):
    try:
        cpu.start_workers(2).run(tile, Tiles(1000, 1, 2))
    except LookupError as error:
        return str(error)


def test_progress_is_reported_in_the_calling_thread():
    callers = set()
    joint_rnnt_loss_and_grad(
        *thread_programs.SMALL, progress=lambda *_: callers.add(threading.get_ident())
    )
    assert callers == {threading.get_ident()}


def test_tiles_are_given_out_once_and_fixed_ones_in_turn():
    tiles = Tiles(1000, 10, 3)
    for fixed in False, True:
        calls = []
        cpu.start_workers(3).run(lambda *call: calls.append(call), tiles, fixed)  # noqa: B023
        assert sorted(part for _, part in calls) == list(tiles)
    of_workers = [[part for worker, part in calls if worker == w] for w in range(3)]
    assert of_workers == [list(tiles)[w::3] for w in range(3)]


def test_invalid_values_raise_no_warning_in_a_worker():
    cpu.start_workers(2).run(lambda *_: np.log(np.float64(-1.0)), Tiles(10, 1, 2))
