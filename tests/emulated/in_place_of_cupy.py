"""Imported first in a process, this puts the emulated CuPy in the place of CuPy."""

import sys

from tests import emulated

emulated.kernels.options.races = False  # others look for these
sys.modules["cupy"] = emulated
