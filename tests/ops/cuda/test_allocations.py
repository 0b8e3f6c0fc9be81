"""An allocation of device memory that fails: the call raises, and leaves nothing behind."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import cupy_rnnt

from ...device_calls import running_on, to_device, to_host
from ...emulated.memory import MemoryPool
from ...engine.selection.cases import selecting
from ...engine.selection.test_engine import trained

STEP = 9
"""Every so many allocations, from each of the first, one fails."""


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, STEP + 1, 3))
@pytest.mark.usefixtures("collector")
def test_the_nth_allocation_fails(gpu, monkeypatch, first):
    """Arguments are as before, no memory stays in use, and the next call is as the one before."""
    if gpu.name == "cuda":
        pytest.skip("a real device has memory enough")
    monkeypatch.setattr(gpu.xp.kernels.options, "races", False)  # others look for these
    lengths = np.array([12, 9]), np.array([5, 3])
    case = trained(size=2, frames=12, labels=5, lengths=lengths, dtype=np.float32)
    take, pool = MemoryPool._take, gpu.xp.get_default_memory_pool()
    taken, failing = [0], [0]

    def counting(self: MemoryPool, size: int) -> None:
        taken[0] += size > 0
        if taken[0] == failing[0]:
            raise MemoryError
        take(self, size)

    with running_on(gpu), selecting():
        arguments = to_device(case)
        before = pool.used_bytes()

        def run():
            taken[0] = 0
            results = cupy_rnnt.joint_rnnt_loss_and_grad(*arguments)
            return [to_host(array) for array in (results[0], *results[1]) if array is not None]

        expected = run()
        monkeypatch.setattr(MemoryPool, "_take", counting)
        run()
        count = taken[0]
        assert count > 40
        for failing[0] in range(first, count + 1, STEP):
            with pytest.raises(MemoryError):
                run()
            gc.collect()
            assert pool.used_bytes() == before
            for array, original in zip(arguments[:4], case[:4], strict=True):
                np.testing.assert_array_equal(to_host(array), original)
        failing[0] = 0
        for result, value in zip(run(), expected, strict=True):
            np.testing.assert_array_equal(result, value)
