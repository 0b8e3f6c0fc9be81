"""Every kernel compiles to machine code for every device, without a GPU, and fits it well.

By every NVRTC that is installed: those of CUDA 12 and 13 are in wheels with names of their own.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("cupy")

from ...ptxemu.compile import libraries
from .kernel_resources import (
    MULTIPROCESSORS,
    ROOT,
    compiled,
    compiler,
    kernels,
    occupancy,
    page,
    table,
)

SOURCES = sorted({kernel.source for kernel in kernels()})
WELL_FILLED = 80, 90
# A block a sample with all the shared memory it may have: there are more blocks than fit a device
# only in large batches, and a sweep waits for its own last step, not for memory.
SWEEPS = "lattice_sweep", "best_sweep"
# A thread of `bounds` has 8 cells with 4 sums each (`exact_logits` 3): enough that do not wait for
# each other. Of doubles, two blocks have the registers that dropout takes, and three of floats.
LESS = dict.fromkeys(SWEEPS, 0.0) | dict.fromkeys(("bounds", "exact_logits"), 1 / 8)
LESS_OF_DOUBLES = dict.fromkeys(("hidden", "input_grads", "row_scores"), 3 / 8)
FUNCTION = re.compile(
    r"""__global__ \s+ (?:__launch_bounds__\(.*?\) \s+)? void \s+
        (?:__launch_bounds__\(.*?\) \s+)? (\w+) \s* \(""",
    re.VERBOSE,
)

every_library = pytest.mark.parametrize("library", libraries(), ids=compiler)
every_source = pytest.mark.parametrize("source", SOURCES)
every_arch = pytest.mark.parametrize("arch", MULTIPROCESSORS, ids="sm_{}".format)


@every_arch
@every_source
@every_library
@pytest.mark.slow
def test_it_compiles_and_spills_nothing(library, source, arch):
    """Where ptxas spills to fit one more block, __launch_bounds__ can say how many are enough."""
    functions, warnings = compiled(library, source, arch)
    assert not warnings
    assert not {name: found for name, found in functions.items() if found.stack or found.spilled}


@every_arch
@every_source
@every_library
def test_it_fills_the_device(library, source, arch):
    functions, _ = compiled(library, source, arch)
    for kernel in kernels():
        if kernel.source == source:
            for name in map(kernel.expression, kernel.variants):
                less = LESS | LESS_OF_DOUBLES if "double" in name else LESS
                least = less.get(kernel.name, 0.5) if arch in WELL_FILLED else 0.0
                share = occupancy(kernel, functions[name], arch)
                assert share > 0, name
                assert share >= least, name


def test_every_function_is_declared():
    for path in (ROOT / "kernels").glob("*.cu*"):
        text = path.read_text()
        names = FUNCTION.findall(text)
        assert len(names) == text.count("__global__"), path.name
        assert set(names) == {kernel.name for kernel in kernels() if kernel.source == path.name}


@pytest.mark.parametrize(
    "library", [each for each in libraries() if page(each).exists()], ids=compiler
)
def test_the_table_is_that_of_these_kernels(library):
    assert page(library).read_text() == table(library), (
        "python -m tests.ops.cuda.kernel_resources writes it"
    )
