"""Calls from threads, interrupted, in forked children, at exit: programs of test_threads.py.

Each is run on its own, ``python -m tests.engine.thread_programs NAME``, with two threads for BLAS.
"""

import atexit
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

import cupy_rnnt
from cupy_rnnt.ops.numpy import workers

WARNINGS = np.geterr()
CHILD_SECONDS = 60  # in which a forked child has to be done; it needs some hundredths of one


def inputs(size, frames, labels, vocabulary, hidden):
    rng = np.random.default_rng(0)
    shapes = (size, frames, hidden), (size, labels + 1, hidden), (vocabulary, hidden), (vocabulary,)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    targets = rng.integers(0, vocabulary - 1, (size, labels))
    return *arrays, targets, [frames] * size, [labels] * size


def bits(arguments, **options):
    loss, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(*arguments, **options)
    return b"".join(array.tobytes() for array in (loss, *gradients))


def blas_threads():
    return [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]


def all_as_before(others=0):
    """BLAS and the library have two threads each, and Python has no thread of a call."""
    assert set(blas_threads()) == {2}, blas_threads()
    assert workers.threads() == 2, workers.threads()
    deadline = time.monotonic() + 10  # a thread whose work is done takes a moment to end
    while len(sys._current_frames()) > 1 + others and time.monotonic() < deadline:
        time.sleep(0)
    assert len(sys._current_frames()) <= 1 + others, sys._current_frames()


SMALL = inputs(1, 12, 4, 30, 16)
THREADED = inputs(2, 100, 20, 500, 256)  # OpenBLAS would share these products among its threads


def overlapping_calls():
    first_runs, second_runs, first_ended = (threading.Event() for _ in range(3))
    counts = []

    def first(done, cells):
        first_runs.set()
        assert second_runs.wait(60)

    def second(done, cells):
        second_runs.set()
        counts.append(workers.threads())
        assert first_ended.wait(60)

    with ThreadPoolExecutor(2) as pool:  # its threads live on, as those of a server do
        one = pool.submit(bits, THREADED, progress=first)
        assert first_runs.wait(60)
        other = pool.submit(bits, THREADED, progress=second)
        one = one.result()
        first_ended.set()
        assert one == other.result() == bits(THREADED)
        assert set(counts) == {2}
        all_as_before(others=2)
        with threadpool_limits(1):
            assert set(blas_threads()) == {1}
    all_as_before()


def the_same_bits_in_every_thread():
    expected = bits(THREADED)
    with ThreadPoolExecutor(2) as pool:
        assert pool.submit(bits, THREADED).result() == expected
        assert set(pool.map(bits, [THREADED] * 6)) == {expected}
    assert child_is_right(THREADED, expected)


def limits_of_the_caller():
    start, started = workers.start_new_thread, set()

    def noted(work, arguments):
        started.add(arguments[0])
        start(work, arguments)

    workers.start_new_thread = noted
    bits(THREADED)
    assert started == {0, 1}
    started.clear()
    with threadpool_limits(1):
        assert workers.threads() == 1
        bits(THREADED)
        assert set(blas_threads()) == {1}
    assert started == {0}
    all_as_before()


def a_limit_that_ends_during_a_call():
    limit = threadpool_limits(1)
    bits(THREADED, progress=lambda *_: limit.restore_original_limits())
    all_as_before()


def interrupts():
    expected = bits(SMALL)
    start = time.perf_counter()
    for _ in range(10):
        bits(SMALL)
    duration = (time.perf_counter() - start) / 10
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    rng = np.random.default_rng(0)
    during = 0
    for _ in range(300):
        returned = False
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, duration))
            bits(SMALL)
            returned = True
            time.sleep(4 * duration)  # Python itself swallows an interrupt now and then
        except KeyboardInterrupt:
            during += not returned
        all_as_before()
        assert np.geterr() == WARNINGS or np.__version__ < "2"  # where it is not of a context
        assert bits(SMALL) == expected
    assert during > 30, during


def interrupts_without_threads():
    """Python starts no thread, so that the calling thread computes the tiles."""

    def refused(work, arguments):
        raise RuntimeError("can't start new thread")

    workers.start_new_thread = refused
    interrupts()
    assert child_is_right(SMALL, bits(SMALL))


def handlers_that_call():
    """A signal handler that calls the library, and forks, while it interrupts a call."""
    expected, calls = bits(SMALL), []

    def handler(*_):
        calls.append(
            child_is_right(SMALL, expected) if len(calls) % 4 == 3 else bits(SMALL) == expected
        )

    signal.signal(signal.SIGALRM, handler)
    rng = np.random.default_rng(0)
    while len(calls) < 100:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 2e-3))
        assert bits(SMALL) == expected
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert all(calls)
    all_as_before()


def interrupts_of_the_limit():
    """Interrupts that come while the number of threads of BLAS is set, or restored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    expected = bits(SMALL)
    set_threads = workers._set_threads
    for nth in range(1, 9):
        calls = []

        def interrupted(library, count, nth=nth, calls=calls):
            calls.append(count)
            set_threads(library, count)
            if len(calls) == nth:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        workers._set_threads = interrupted
        try:
            bits(SMALL)
            interrupt_came = False
        except KeyboardInterrupt:
            interrupt_came = True
        workers._set_threads = set_threads
        assert interrupt_came == (len(calls) >= nth), (interrupt_came, len(calls), nth)
        all_as_before()
        assert bits(SMALL) == expected


def child_is_right(arguments, expected):
    child = os.fork()
    if child == 0:
        signal.alarm(CHILD_SECONDS)
        right = bits(arguments) == expected
        all_as_before()
        os._exit(0 if right else 1)
    return os.waitpid(child, 0)[1] == 0


def forks(arguments=SMALL, count=100):
    expected = bits(arguments)
    ended = threading.Event()

    def run():
        while not ended.is_set():
            bits(arguments)

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(run)
        results = [child_is_right(arguments, expected) for _ in range(count)]
        ended.set()
    assert all(results), results
    assert bits(arguments) == expected
    all_as_before()


def forks_with_larger_arrays():
    forks(THREADED, 10)


def _later(expected):
    """A call when the main thread has ended."""
    threading.main_thread().join()
    print("right" if bits(THREADED) == expected() else "wrong", flush=True)


def after_the_main_thread():
    expected = bits(THREADED)
    threading.Thread(target=_later, args=(lambda: expected,)).start()


def first_call_after_the_main_thread():
    threading.Thread(target=_later, args=(lambda: bits(THREADED),)).start()


def at_exit():
    expected = bits(THREADED)
    atexit.register(lambda: print("right" if bits(THREADED) == expected else "wrong", flush=True))


RESULTS = []  # are held to the end


def jax_steps_at_exit():
    import jax

    import cupy_rnnt.jax

    @jax.jit
    @jax.grad
    def step(weight):
        encoder, predictor, _, *others = THREADED
        return cupy_rnnt.jax.joint_rnnt_loss(encoder, predictor, weight, *others)

    step(THREADED[2]).block_until_ready()
    RESULTS.extend(step(THREADED[2]) for _ in range(6))


def jax_on_two_devices():
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    import jax
    from jax.sharding import AxisType
    from jax.sharding import PartitionSpec as Spec

    import cupy_rnnt.jax

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    samples, shared = Spec("batch"), Spec()

    def loss(*arguments):
        return jax.lax.pmean(cupy_rnnt.jax.joint_rnnt_loss(*arguments), "batch")

    specs = samples, samples, shared, shared, samples, samples, samples
    step = jax.jit(jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=shared))
    arguments = [jax.numpy.asarray(argument) for argument in THREADED]
    losses = {float(step(*arguments)) for _ in range(12)}
    assert len(losses) == 1, losses
    all_as_before()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
