"""The emulated device in the place of XLA's."""

import pytest

DEVICE = 1


@pytest.fixture
def emulator(gpu):
    if gpu.name == "cuda":
        pytest.skip("stand-ins are for the emulated device")
    with gpu.xp.cuda.Device(DEVICE):
        gpu.xp.kernels.launches.clear()
        yield gpu.xp
