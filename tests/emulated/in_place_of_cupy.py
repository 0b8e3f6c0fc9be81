"""The emulated CuPy in the place of CuPy: a plugin of pytest, or called by programs that are no
tests, before anything imports CuPy."""

import sys

import pytest

from tests import emulated


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    emulated.kernels.options.races = False  # others look for these
    sys.modules["cupy"] = emulated
