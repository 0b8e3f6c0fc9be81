"""Kernels on the emulated device, through the names of CuPy."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .. import ptxemu
from ..ops.cuda.kernel_resources import CUPY_OPTIONS
from ..ptxemu.compile import CompileError
from . import cuda, memory
from .arrays import ndarray, operations

_SCALARS = {np.dtype(code).type for code in "?bhilqBHILQefdFD"}
_MOST_LAUNCHES = 10_000


class Launched(NamedTuple):
    """A launch that was run."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    stream: Any
    report: ptxemu.Report


launches: deque[Launched] = deque(maxlen=_MOST_LAUNCHES)
"""Oldest first."""

options = SimpleNamespace(races=True, counters=False, max_lanes=16384, seed=0, latencies=None)
"""Of launches. Blocks run in a random order that the seed chooses."""


class RawModule:
    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: None = None,
    ) -> None:
        if not isinstance(options, tuple):
            raise TypeError("options must be a tuple")
        self.code = Path(path).read_text() if code is None and path is not None else code
        self.options, self.backend = options, backend
        self.name_expressions = tuple(name_expressions or ())
        self._modules: dict[str, ptxemu.Module] = {}

    def get_function(self, name: str) -> RawKernel:
        capability = cuda.Device().compute_capability
        if capability not in self._modules:
            try:
                self._modules[capability] = ptxemu.Module(
                    self.code,
                    f"compute_{capability}",
                    options=(*self.options, *CUPY_OPTIONS),
                    name_expressions=self.name_expressions,
                )
            except CompileError as error:
                raise cuda.compiler.CompileException(str(error)) from error
        return RawKernel._of(self, name, self._modules[capability].get_function(name))


class RawKernel:
    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        *,
        enable_cooperative_groups: bool = False,
        jitify: None = None,
    ) -> None:
        module = RawModule(code, options=options, backend=backend)
        self.__dict__ = module.get_function(name).__dict__

    @classmethod
    def _of(cls, module: RawModule, name: str, function: ptxemu.Function) -> RawKernel:
        new = object.__new__(cls)
        new.module, new.name, new._function = module, name, function
        return new

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._function.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, value: int) -> None:
        self._function.max_dynamic_shared_size_bytes = value

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], *, shared_mem=0
    ) -> None:
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block must be tuples")
        grid, block = (tuple(max(1, n) for n in (*sizes, 1, 1)[:3]) for sizes in (grid, block))
        report = self._function(
            grid,
            block,
            [_argument(arg) for arg in args],
            shared_mem=shared_mem,
            races=options.races,
            counters=options.counters,
            max_lanes=options.max_lanes,
            block_order=options.seed + len(launches),
            latencies=options.latencies,
        )
        stream = cuda.get_current_stream()
        operations["kernels"] += 1
        launches.append(Launched(self.name, grid, block, shared_mem, stream, report))
        if report.warnings:
            raise RuntimeError("\n".join(map(str, report.warnings)))


def _argument(value: Any) -> Any:
    """What CuPy makes of an argument: its bytes must fit the parameter."""
    if isinstance(value, ndarray):
        owner = memory.allocation_of(value.host).device_id
        if owner != cuda.Device().id:
            raise ValueError(f"a kernel on device {cuda.Device().id} is given memory of {owner}")
        return value.host
    if value is None or type(value) in {bool, *_SCALARS}:
        return value
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float64(value)
    raise TypeError(f"Unsupported type {type(value)}")
