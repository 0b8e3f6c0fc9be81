"""Sphinx configuration. Build with ``sphinx-build -W -b html docs docs/_build/html``."""

import doctest
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cupy_rnnt

project = "cupy_rnnt"
author = "the cupy_rnnt developers"
copyright = "2026, the cupy_rnnt developers"
version = release = cupy_rnnt.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
default_role = None

autodoc_mock_imports = ["espnet2", "nemo", "transformers"]  # toolkits, which need not be installed
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name types, shapes and dtypes
napoleon_google_docstring = False
napoleon_use_rtype = False

doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
doctest_global_setup = """
import numpy as np
import torch
import cupy_rnnt, cupy_rnnt.reference, cupy_rnnt.torch
"""

# sphinx-build -b linkcheck docs docs/_build/linkcheck
linkcheck_anchors = False  # line numbers and sections of GitHub are made by scripts
linkcheck_retries = 2
linkcheck_timeout = 20
linkcheck_workers = 4
# Figures, by the scripts in figures/.
plot_formats = [("png", 120)]
plot_html_show_formats = plot_html_show_source_link = False

# The notebook runs when the documentation is built; an error in it fails the build.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/notebook",
    "gallery_dirs": "notebook",
    "filename_pattern": "",
    "capture_repr": (),
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
}

html_theme = "furo"
html_title = f"cupy_rnnt {release}"
