"""Several processes that train one model, by PyTorch's own engines, on the CPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_are_those_of_one_process(size, tmp_path):
    from . import processes as torch_processes

    torch.multiprocessing.spawn(torch_processes.main, (size, tmp_path), nprocs=size)
    assert len(list(tmp_path.glob("done*"))) == size
