"""The emulated CuPy in the place of CuPy, for programs that are no tests."""

import sys

from tests import emulated


def start() -> None:
    """To be called before anything imports CuPy."""
    emulated.kernels.options.races = False  # others look for these
    sys.modules["cupy"] = emulated
