import pytest

from .compile import CompileError, find_nvrtc


@pytest.fixture(scope="session", autouse=True)
def _nvrtc():
    try:
        find_nvrtc()
    except CompileError as error:
        pytest.skip(str(error))
