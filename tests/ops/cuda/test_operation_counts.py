"""How many operations a call asks a device for, by formula, so that they cannot creep back."""

import numpy as np
import pytest

from benchmarks import costs

from .operation_counts import CASES, DTYPES, count


@pytest.fixture
def emulator(gpu, monkeypatch):
    """Which counts operations."""
    if gpu.name == "cuda":
        pytest.skip("nobody counts what a real device is asked for")
    monkeypatch.setattr(gpu.xp.kernels.options, "races", False)  # others look for these
    return gpu.xp


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow
def test_operations_of_calls(emulator, dtype):
    """More calls than the formula has coefficients, which tell each of these from the others."""
    found = [count(case, dtype) for case in CASES]
    parts = np.array([each.parts for each in found])
    assert np.linalg.matrix_rank(parts) == len(costs.OPERATIONS) < len(CASES)
    assert [each.waits for each in found] == (parts @ costs.WAITS).tolist()
    more = [each.operations.total() - each.parts.total(costs.OPERATIONS) for each in found]
    assert max(more) <= 0


def test_operations_are_added_up_by_parts():
    parts = costs.Parts(1, 2, 3, 4, 5, 6, 7)
    assert parts.total(costs.Parts(*[1] * 7)) == 28
    assert parts.total(parts) == 140
