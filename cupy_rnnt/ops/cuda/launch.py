"""The one place that compiles CUDA kernels and launches them.

A kernel is declared once, as a constant of the module whose operation it implements::

    _ROW_MAX = Kernel("row_max", "rows.cu", threads=WARP)

    def row_max(logits):
        rows, width = logits.shape
        out = cupy().empty(rows, logits.dtype)
        _ROW_MAX[logits.dtype](rows, logits, out, rows, width)
        return out

``kernels/rows.cu`` holds ``template <typename T> __global__ void row_max(const T* logits, T* out,
long long rows, long long width)``. ``kernel[...]`` takes the template arguments (a dtype stands for
the C++ type of its elements) and gives the function, which is called with the number of its items
and then the arguments of the kernel. It runs on the current device and the current stream.

*Geometry.* ``threads`` says how many threads share an item: 1 (the default), `WARP` or `BLOCK`. The
grid has enough blocks for all items, up to a limit, so that a kernel must stride over the grid::

    for (long long row = first_item; row < rows; row += item_stride) ...

No item, no launch.

*Arguments.* Arrays are passed as pointers to their first element, whatever their strides; None is a
null pointer. As everywhere in CuPy, a Python int is a ``long long``, a float is a ``double``, and a
bool is a ``bool``, of one byte; wrap in ``np.int32(...)`` or ``np.float32(...)`` for other
parameters.

*Sources.* The text of a file beside the source replaces the first ``#include "x.cuh"`` of it. CuPy
finds CUDA's own headers (``cuda_fp16.h``, ``cuda_bf16.h``), which it needs itself. All kernels of a
source with the same first template argument are compiled together, at first use. From version 14.2
on, CuPy keeps them on disk; earlier versions compile modules with name expressions in every
process. CuPy flushes denormal floats (not doubles) to 0.

Every kernel declared is in `KERNELS`, from which the tests compile all of them for all devices.

*What may be missing.* If kernels cannot run, the error is one sentence that says how to mend it.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from ..types import DeviceArray, HostArray

WARP = 32
BLOCK = 0
"""Stands for a number of threads: all threads of a block."""

LEAST_CAPABILITY = 7, 5
MOST_BLOCKS = 2**16
"""Blocks of a launch: more than any device runs at once; kernels stride over the further items."""
MOST_SHARED_BYTES = 48 * 2**10
"""Shared memory of a block without a request to the device for more."""

_MOST_PINNED = 2**20  # bytes

OPTIONS = ("-std=c++17",)
ELEMENTS = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
    "int32": "int",
    "int64": "long long",
    "bool": "bool",
}
"""The C++ types of the elements of arrays, by the names of their dtypes."""
FLOATS = tuple((ELEMENTS[name],) for name in ("float16", "bfloat16", "float32", "float64"))
COMPUTE = ("float",), ("double",)
TemplateArgument: TypeAlias = np.dtype | str | int
_INSTALL = "install cupy-cuda12x[ctk] or cupy-cuda13x[ctk]"


def cupy() -> Any:
    """CuPy, imported at first use."""
    loaded = sys.modules.get("cupy")
    if loaded is not None:
        return loaded
    try:
        import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            text = f"CUDA arrays need CuPy: {_INSTALL}, as the driver allows"
        else:
            text = f"CuPy is installed but cannot be imported: {error.__cause__ or error}"
        raise ImportError(text) from error
    return cupy


def cublas() -> Any:
    """The module of CuPy that multiplies matrices."""
    try:
        from cupy import cublas
    except ImportError as error:
        raise RuntimeError(f"CuPy finds no cuBLAS: {_INSTALL}") from error
    return cublas


def check() -> None:
    """Raise an error if kernels cannot be compiled for the current device."""
    library = cupy()
    _check_capability(library, _device(library))


@dataclass(frozen=True, eq=False)
class Kernel:
    """A ``__global__`` function of a source file, and how it is launched.

    Parameters
    ----------
    name : str
        Of the function or function template.
    source : str
        File in ``kernels/``.
    threads : int
        How many threads share an item: 1, another divisor of `block` such as `WARP`, or `BLOCK`.
    block : int
        Threads of a block, the bound in the function's ``__launch_bounds__``.
    variants : tuple of tuples of str
        All template arguments that are used. A function that is no template has ``((),)``.
    shared_bytes : int
        The most dynamic shared memory that a block is given.
    any_first : bool
        Whether the first template argument may be one that `variants` does not name.
    """

    name: str
    source: str
    threads: int = 1
    block: int = 256
    variants: tuple[tuple[str, ...], ...] = FLOATS
    shared_bytes: int = 0
    any_first: bool = False

    def __post_init__(self) -> None:
        KERNELS.append(self)

    def __getitem__(self, arguments: TemplateArgument | tuple[TemplateArgument, ...]) -> Launch:
        return _launch(self, *(arguments if isinstance(arguments, tuple) else (arguments,)))

    def has(self, variant: tuple[str, ...]) -> bool:
        """Whether the kernel may be launched with these template arguments."""
        tails = {declared[1:] for declared in self.variants}
        return variant in self.variants or (self.any_first and variant[1:] in tails)

    def expression(self, variant: tuple[str, ...]) -> str:
        """``name<float, 4>``"""
        return f"{self.name}<{', '.join(variant)}>" if variant else self.name

    def grid(self, items: int) -> int:
        """Blocks for a number of items."""
        items_per_block = self.block // (self.threads or self.block)
        return min(-(-items // items_per_block), MOST_BLOCKS)


KERNELS: list[Kernel] = []
"""Every kernel that was declared by the modules imported so far."""


@dataclass(frozen=True)
class Launch:
    """A kernel with its template arguments."""

    kernel: Kernel
    variant: tuple[str, ...]

    def __call__(self, items: int, *arguments: Any, shared_bytes: int = 0) -> None:
        """Run the kernel for a number of items, with dynamic `shared_bytes` for each block."""
        kernel = self.kernel
        if shared_bytes > kernel.shared_bytes:
            raise ValueError(f"{kernel.name} was not declared with {shared_bytes} shared bytes")
        if not items:
            return
        library = cupy()
        function = _function(library, _device(library), kernel, self.variant)
        function((kernel.grid(items),), (kernel.block,), arguments, shared_mem=shared_bytes)


def device_bytes() -> int:
    """Of the memory of the current device."""
    library = cupy()
    return _device_bytes(library, _device(library))


@functools.cache
def _device_bytes(library: ModuleType, device: int) -> int:
    return int(library.cuda.runtime.getDeviceProperties(device)["totalGlobalMem"])


def host(*arrays: DeviceArray) -> list[HostArray]:
    """Bring arrays to the host, which waits for their devices once."""
    copies = [array.get(out=_memory_for(array), blocking=False) for array in arrays]
    for device in {array.device.id for array in arrays}:
        with cupy().cuda.Device(device):
            cupy().cuda.get_current_stream().synchronize()
    return copies


def _memory_for(array: DeviceArray) -> HostArray | None:
    """Pinned memory, as a copy to other memory is a wait of its own. CuPy keeps it for later, and
    so has none for a large array."""
    if array.nbytes > _MOST_PINNED:
        return None
    memory = cupy().cuda.alloc_pinned_memory(max(array.nbytes, 1))
    return np.ndarray(array.shape, array.dtype, memory)


def element_strides(array: DeviceArray) -> tuple[int, ...]:
    """The strides of an array in elements."""
    size = array.itemsize
    return tuple([stride // size for stride in array.strides])


@functools.lru_cache(maxsize=None, typed=True)  # for True and 1 are equal
def _launch(kernel: Kernel, *arguments: TemplateArgument) -> Launch:
    """A launch takes the host 2.1 us through this cache, and 4.4 us without (real CuPy, no GPU)."""
    return Launch(kernel, template_arguments(*arguments))


def template_arguments(*arguments: TemplateArgument) -> tuple[str, ...]:
    """Template arguments as C++ spells them, with the element type for a dtype.

    >>> template_arguments(np.dtype(np.float16), "Tanh", 4, True)
    ('__half', 'Tanh', '4', 'true')
    """
    return tuple(map(_spelled, arguments))


def _spelled(argument: TemplateArgument) -> str:
    if isinstance(argument, np.dtype):
        return ELEMENTS[argument.name]
    return str(argument).lower() if isinstance(argument, bool) else str(argument)


def units(source: str) -> dict[tuple[str, ...], list[str]]:
    """The name expressions that are compiled together, by their first template argument."""
    kernels = [kernel for kernel in KERNELS if kernel.source == source]
    firsts = dict.fromkeys(variant[:1] for kernel in kernels for variant in kernel.variants)
    return {first: compiled_with(source, first) for first in firsts}


def compiled_with(source: str, first: tuple[str, ...]) -> list[str]:
    """The name expressions with a first template argument, or, for (), of functions without."""
    kernels = [kernel for kernel in KERNELS if kernel.source == source]
    return [
        kernel.expression(variant)
        for kernel in kernels
        for variant in dict.fromkeys((*first, *declared[1:]) for declared in kernel.variants)
        if bool(first) == bool(kernel.variants[0]) and kernel.has(variant)
    ]


@functools.cache
def source_text(name: str) -> str:
    """The text of a source of ``kernels/``, with the text of the files that it includes."""
    return "\n".join(_lines(name, set()))


def _lines(name: str, seen: set[str]) -> Iterator[str]:
    """The lines of a file and of the files that it includes, each file once, with ``#line``."""
    if name in seen:
        return
    seen.add(name)
    yield f'#line 1 "{name}"'
    for number, line in enumerate(_folder().joinpath(name).read_text().splitlines(), 1):
        included = re.match(r'\s*#include "(.+)"', line)
        if included:
            yield from _lines(included[1], seen)
            yield f'#line {number + 1} "{name}"'
        elif line.strip() != "#pragma once":
            yield line


def _folder() -> Any:
    """``kernels/``, inside the installed package or beside it in a checkout."""
    package: Any = files("cupy_rnnt")
    inside = package / "kernels"
    return inside if (inside / "common.cuh").is_file() else package.parent / "kernels"


def _device(library: ModuleType) -> int:
    """The current device."""
    runtime = library.cuda.runtime
    try:
        return int(runtime.getDevice())
    except runtime.CUDARuntimeError as error:
        raise RuntimeError(_without_device(runtime, str(error))) from error


def _without_device(runtime: Any, error: str) -> str:
    """What an error of the CUDA runtime means, and what to do."""
    driver, compiled_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if not driver:
        return "CUDA arrays need NVIDIA's driver and a GPU, but there is no driver: install it"
    if "cudaErrorInsufficientDriver" in error:
        update = "update the driver, or install a CuPy for an older CUDA"
        versions = f"CUDA {dotted(driver)}, too old for CuPy's {dotted(compiled_for)}"
        return f"NVIDIA's driver is for {versions}: {update}"
    if "cudaErrorNoDevice" in error:
        look = "see what nvidia-smi lists, and CUDA_VISIBLE_DEVICES if that is set"
        return f"NVIDIA's driver finds no CUDA device: {look}"
    return f"CUDA cannot be used: {error}"


def dotted(version: int) -> str:
    """A version of CUDA, from the number that CUDA has for it.

    >>> dotted(12090)
    '12.9'
    """
    return f"{version // 1000}.{version % 1000 // 10}"


@functools.cache
def _function(library: ModuleType, device: int, kernel: Kernel, variant: tuple[str, ...]) -> Any:
    """The ``cupy.cuda.Function`` of a kernel, compiled for a device."""
    if not kernel.has(variant):
        raise TypeError(f"no kernel {kernel.expression(variant)} was declared")
    _check_capability(library, device)
    try:
        expressions = tuple(compiled_with(kernel.source, variant[:1]))
        module = _module(library, kernel.source, expressions)
        return module.get_function(kernel.expression(variant))
    except library.cuda.compiler.CompileException as error:
        if "open source file" in str(error):  # NVRTC says "could not" or "cannot" before it
            raise RuntimeError(f"CuPy finds no CUDA headers: {_INSTALL}") from error
        raise


@functools.cache
def _module(library: ModuleType, source: str, expressions: tuple[str, ...]) -> Any:
    code = source_text(source)
    return library.RawModule(code=code, options=OPTIONS, name_expressions=expressions)


def _check_capability(library: ModuleType, device: int) -> None:
    text = library.cuda.Device(device).compute_capability
    capability = int(text[:-1]), int(text[-1])
    if capability < LEAST_CAPABILITY:
        least, has = (".".join(map(str, pair)) for pair in (LEAST_CAPABILITY, capability))
        text = f"CUDA device {device} has compute capability {has}, but {least} or more is needed"
        raise RuntimeError(text)
    try:
        library.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        raise RuntimeError(f"CuPy finds no NVRTC: {_INSTALL}") from error
