"""What calls ask of a device, by real CuPy on a stand-in without values.

No part of the tests that plain ``pytest`` runs. In the environment that build.sh makes::

    python -m pytest tests/standin/check_counts.py

``python -m tests.standin.check_counts`` writes counts.json anew, which it compares with: after a
change that is meant to need more operations, or fewer.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import standin

from .count import OPERATIONS, count, recording, replaying
from .joint_call import Call

STORED = Path(__file__).with_name("counts.json")
# A selection in some groups of samples, and all cells in one.
CALLS = (
    Call(batch=3, vocab=300, hidden=256, budget_mib=96),
    Call("fresh", 2, 100, 64, "float32", frames=40, labels=8),
)
COUNTED = (
    "own kernels",
    "CuPy kernels",
    *OPERATIONS[1:],
    "allocations",
    "synchronisations",
    "copies into pageable memory",
)
TOLERANCE = 0.03
"""Of a count, which may change by so much. A count below 34 is exact."""


def counts(call: Call) -> dict[str, int]:
    result = count(replaying(call, recording(call)))
    return {name: result[name] for name in COUNTED}


@pytest.fixture(scope="module", autouse=True)
def _started() -> None:
    standin.start()


def launch_twice() -> Counter:
    """What two launches of a kernel, one memset, and two copies to the host ask for."""
    import cupy
    import numpy as np

    source = 'extern "C" __global__ void twice(float* x) { *x *= 2; }'
    x = cupy.zeros(300, np.float32)
    before = standin.snapshot()
    kernel = cupy.RawKernel(source, "twice")
    for _ in range(2):
        kernel((1,), (1,), (x,))
    x.fill(0)
    x.get(), x[:5].get()
    return standin.snapshot() - before


def test_operations_are_counted():
    asked = launch_twice()
    assert (asked["launches"], asked["memsets"], asked["D2H"], asked["H2D"]) == (2, 1, 2, 0)
    assert asked["pageable_D2H"] == 2
    assert standin.launches()["twice"] == 2


def test_sorts_products_and_scans_are_counted():
    import cupy
    from cupy import cublas

    x = cupy.ones((15, 15))
    before = standin.snapshot()
    cupy.argsort(x.ravel())
    cublas.gemm("N", "T", x, x)
    cupy.cumsum(x)
    x.sum()
    asked = standin.snapshot() - before
    assert (asked["sorts"], asked["GEMMs"], asked["CUB"]) == (1, 1, 2)


@pytest.mark.parametrize(
    ("copies", "text"),
    [
        ([bytes(1200)], "copy 1 to the host is of 20 bytes, in the recording it is not there"),
        ([bytes(1200), bytes(4)], "copy 1 .* is of 20 bytes, in the recording it is of 4 bytes"),
        ([bytes(1200), bytes(20), b""], "the call copies 2 times to the host, not 3 times"),
    ],
)
def test_another_recording_is_refused(copies, text):
    import cupy

    standin.replay(copies)
    with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):  # of a copy that is refused
        launch_twice()
    with pytest.raises(standin.ReplayError, match=text):
        standin.replayed()
    standin.recorded()


def test_modules_are_kept_on_disk(monkeypatch):
    """A process that finds them there compiles nothing."""
    import cupy
    import numpy as np

    from cupy_rnnt.ops.cuda import launch

    from ..ops.cuda.trivial import SCALED

    class NothingIsCompiled:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise AssertionError("a module was compiled")

    def run() -> None:
        for cache in launch._function, launch._module:
            cache.cache_clear()
        cupy.clear_memo()
        x = cupy.ones(3, np.float32)
        SCALED[x.dtype](3, x, x, 3, 1.0)

    run()
    monkeypatch.setattr(cupy.cuda.compiler, "_NVRTCProgram", NothingIsCompiled)
    run()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.workload)
def test_calls_ask_for_what_they_did(call):
    stored = json.loads(STORED.read_text())["calls"]
    (expected,) = (each["counts"] for each in stored if Call(**each["call"]) == call)
    asked = counts(call)
    changed = {
        name: (asked[name], n)
        for name, n in expected.items()
        if abs(asked[name] - n) > TOLERANCE * n
    }
    assert not changed, f"asked for and stored: {changed}; {Path(__file__).name} says what to do"


def main() -> None:
    standin.start()
    calls = [{"call": call._asdict(), "counts": counts(call)} for call in CALLS]
    written = "by `python -m tests.standin.check_counts`, in the environment that build.sh makes"
    STORED.write_text(json.dumps({"written": written, "calls": calls}, indent=1) + "\n")


if __name__ == "__main__":
    main()
