"""What the figures of the documentation are made of.

Scripts import this module by its name, beside them. It makes the modules of ``benchmarks/`` and of
``examples/`` known, which are no packages.
"""

import sys
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("benchmarks", "examples"))

import minimal
import selection_figures
import style
import workloads

__all__ = ["minimal", "selection_figures", "style", "workloads"]
