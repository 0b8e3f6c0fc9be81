"""Importing this module puts the stand-in, with values, in the place of CUDA for the process::

DIR/venv/bin/python benchmarks/first_light.py --small --import tests.standin.started
"""

from . import start

start(emulated=True)
