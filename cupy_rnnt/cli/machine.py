"""What the command line tells of the machine: versions, processor, GPU, threads."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

from ..ops import cuda
from ..ops import numpy as cpu_operations
from ..ops.cuda import launch
from .terminal import counted, heading, nbytes, row

_PACKAGES = ["numpy", "scipy", "threadpoolctl", "cupy-cuda12x", "cupy-cuda13x", "torch", "jax"]
_THREAD_VARIABLES = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


def print_report() -> None:
    """Print what `info` says of the machine; a broken part is a row, not an error."""
    row("Python", f"{platform.python_version()} ({platform.python_implementation()})")
    for name in _PACKAGES:
        row(name, _version(name))
    heading("CPU")
    affinity = getattr(os, "sched_getaffinity", None)  # not on every platform
    usable = len(affinity(0)) if affinity else os.cpu_count()
    row("platform", platform.platform())
    row("cpu", f"{_cpu_name()}, {os.cpu_count()} cores, {usable} for this process")
    heading("GPU")
    _print_gpu()
    heading("Threads and memory")
    row("workers of a call", f"at most {cpu_operations.threads()}")
    for library in ThreadpoolController().info():
        count = counted(library["num_threads"], "thread")
        name = f"{library['internal_api']} {library['version'] or ''}".rstrip()
        row(library["user_api"], f"{name}, {count}")
    for name in _THREAD_VARIABLES:
        row(name, os.environ.get(name, "not set"))
    row("max_workspace_bytes", f"{nbytes(cpu_operations.workspace_bytes())} by default on the CPU")


def cpu() -> str:
    """The processor, and how many threads a call may use."""
    return f"the CPU ({_cpu_name()}, {counted(cpu_operations.threads(), 'thread')})"


def gpu() -> str:
    """The current device of CuPy."""
    runtime = launch.cupy().cuda.runtime
    device = runtime.getDeviceProperties(runtime.getDevice())
    capability = f"compute capability {device['major']}.{device['minor']}"
    return f"{device['name'].decode()} ({nbytes(device['totalGlobalMem'])}, {capability})"


def gpu_fault() -> str | None:
    """A sentence that says why no GPU can be used; None if one can.

    A kernel and a product of two matrices are run, so that a missing part is noticed here and not
    in the first call.
    """
    try:
        launch.check()
        matrix = cuda.asarray(np.ones((1, 1), np.float32))
        cuda.row_sums(matrix)
        cuda.matmul(matrix, matrix, cuda.empty((1, 1), matrix.dtype))
        cuda.host(matrix)
    except (ImportError, RuntimeError) as error:
        return str(error)
    except Exception as error:  # a broken installation may raise anything
        return f"CuPy fails with {type(error).__name__}: {error}"
    return None


def _print_gpu() -> None:
    fault = gpu_fault()
    row("can be used", " ".join(f"no: {fault}".split()) if fault else "yes")
    try:
        library = launch.cupy()
    except Exception:
        return

    def memory() -> str:
        free, total = map(nbytes, library.cuda.runtime.memGetInfo())
        return f"{total}, {free} free"

    def driver() -> str:
        version = library.cuda.runtime.driverGetVersion()
        return launch.dotted(version) if version else "not found"

    facts = {
        "CuPy": lambda: library.__version__,
        "device": gpu,
        "memory": memory,
        "workspace": lambda: f"{nbytes(cuda.workspace_bytes())} by default",
        "CUDA driver": driver,
        "CUDA runtime": lambda: launch.dotted(library.cuda.runtime.runtimeGetVersion()),
        "NVRTC": lambda: ".".join(map(str, library.cuda.nvrtc.getVersion())),
        "kernel cache": _kernel_cache,
    }
    for name, fact in facts.items():
        try:
            text = fact()
        except Exception:
            text = "not found"
        row(name, text)


def _kernel_cache() -> str:
    """Where CuPy keeps compiled kernels."""
    if os.environ.get("CUPY_CACHE_IN_MEMORY") == "1":
        return "in memory only, as CUPY_CACHE_IN_MEMORY says"
    return os.environ.get("CUPY_CACHE_DIR") or str(Path("~/.cupy/kernel_cache").expanduser())


def _version(package: str) -> str:
    try:
        return metadata.version(package)  # without importing it
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        model = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        model = None
    return model[1] if model else platform.processor() or platform.machine()
