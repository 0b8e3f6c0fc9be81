"""What every kernel takes of every device: registers, shared memory, occupancy. Needs no GPU.

``python -m tests.ops.cuda.kernel_resources`` writes a page of docs/kernels for each NVRTC that is
installed.
"""

from __future__ import annotations

import functools
import re
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from cupy_rnnt.ops.cuda import launch

from ... import ROOT
from ...ptxemu.compile import compile_with, libraries, nvrtc_version

PAGES = ROOT / "docs" / "kernels"

# What CuPy adds to the options of a module.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


class Multiprocessor(NamedTuple):
    """The limits of one multiprocessor: section "Compute Capabilities" of the CUDA C++ guide."""

    threads: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int = 1024  # of the shared memory, a block
    shared_unit: int = 128
    registers: int = 2**16


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 << 10, reserved_bytes=0, shared_unit=256),
    80: Multiprocessor(2048, 32, 164 << 10),
    86: Multiprocessor(1536, 16, 100 << 10),
    89: Multiprocessor(1536, 24, 100 << 10),
    90: Multiprocessor(2048, 32, 228 << 10),
    100: Multiprocessor(2048, 32, 228 << 10),
    120: Multiprocessor(1536, 24, 100 << 10),
}


class Resources(NamedTuple):
    """Of a kernel: registers of a thread, the rest in bytes."""

    registers: int
    shared: int
    stack: int
    spilled: int


def kernels() -> list[launch.Kernel]:
    """All that the package declares."""
    return [kernel for kernel in launch.KERNELS if not Path(kernel.source).is_absolute()]


Compiled = tuple[dict[str, Resources], str]


def compiled(library: str, source: str, arch: int) -> Compiled:
    """Machine code of all kernels of a source by an NVRTC library: resources by name expression,
    and the warnings."""
    return _started(library, source)[arch].result()


@functools.cache
def _started(library: str, source: str) -> dict[int, Future[Compiled]]:
    """For all devices at once: whoever asks for one asks for the others next."""
    expressions = [name for unit in launch.units(source).values() for name in unit]
    code, pool = launch.source_text(source), _pool()
    return {
        arch: pool.submit(_compiled, library, code, expressions, arch) for arch in MULTIPROCESSORS
    }


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """NVRTC compiles one program at a time in a process."""
    return ProcessPoolExecutor(mp_context=get_context("spawn"))


def _compiled(library: str, code: str, expressions: list[str], arch: int) -> Compiled:
    from cupy._core.core import assemble_cupy_compiler_options  # its folders of headers

    options = assemble_cupy_compiler_options(launch.OPTIONS)
    options += (*CUPY_OPTIONS, f"-arch=sm_{arch}", "--ptxas-options=-v")
    _, lowered_names, log = compile_with(library, code, options, expressions)
    lowered = {lowered: name for name, lowered in lowered_names.items()}
    warnings, report = re.match(r"(.*?)((?:^ptxas info .*)?)\Z", log, re.DOTALL | re.M).groups()
    return {lowered[name]: found for name, found in _parsed(report)}, warnings.strip()


def _parsed(report: str) -> list[tuple[str, Resources]]:
    """The resources of each entry function in the report of ptxas."""
    found = []
    for part in report.split("Compiling entry function '")[1:]:
        stack, *spilled = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        ).groups()
        registers = re.search(r"Used (\d+) registers", part)[1]
        shared = re.search(r"(\d+) bytes smem", part)
        numbers = registers, shared[1] if shared else 0, stack, sum(map(int, spilled))
        found.append((part[: part.index("'")], Resources(*map(int, numbers))))
    return found


def occupancy(kernel: launch.Kernel, resources: Resources, arch: int) -> float:
    """Share of the threads of a multiprocessor that blocks of the kernel can fill.

    As in cuda_occupancy.h: four warps at a time are given registers in units of 256.
    """
    limits = MULTIPROCESSORS[arch]
    warps = -(-kernel.block // launch.WARP)
    registers = -(-resources.registers * launch.WARP // 256) * 256
    shared = resources.shared + kernel.shared_bytes + limits.reserved_bytes
    shared = -(-shared // limits.shared_unit) * limits.shared_unit
    blocks = min(
        limits.blocks,
        limits.threads // (warps * launch.WARP),
        limits.registers // 4 // registers * 4 // warps,
        limits.shared_bytes // shared if shared else limits.blocks,
    )
    return blocks * warps * launch.WARP / limits.threads


def compiler(library: str) -> str:
    """Its name and version."""
    return "NVRTC {}.{}".format(*nvrtc_version(library))


def page(library: str) -> Path:
    """Where the table of a compiler is."""
    return PAGES / f"{compiler(library).replace(' ', '_').lower()}.rst"


def table(library: str) -> str:
    """As reStructuredText."""
    title = compiler(library)
    heads = ", ".join(f"sm_{arch}" for arch in MULTIPROCESSORS)
    rows = "\n".join(f"    {_row(library, kernel, variant)}" for kernel, variant in _ordered())
    return f"""\
.. Written by ``python -m tests.ops.cuda.kernel_resources``.

{title}
{"=" * len(title)}

.. csv-table::
    :header: kernel, threads, shared, {heads}

{rows}
"""


def _ordered() -> list[tuple[launch.Kernel, tuple[str, ...]]]:
    order = sorted(kernels(), key=lambda kernel: (kernel.source, kernel.name, kernel.block))
    return [(kernel, variant) for kernel in order for variant in kernel.variants]


def _row(library: str, kernel: launch.Kernel, variant: tuple[str, ...]) -> str:
    name = kernel.expression(variant)
    cells = []
    for arch in MULTIPROCESSORS:
        found = compiled(library, kernel.source, arch)[0][name]
        cells.append(f"{found.registers}: {occupancy(kernel, found, arch):.0%}")
    return ", ".join(
        [f'"``{name}``"', f"{kernel.block}, {found.shared + kernel.shared_bytes}", *cells]
    )


if __name__ == "__main__":
    for nvrtc in libraries():
        page(nvrtc).write_text(table(nvrtc))
