"""A plugin of pytest, ``-p tests.standin.pytest_device``: CuPy has a device, an emulated one."""

import pytest

from . import start


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    start(emulated=True)
