"""The devices that tests run on: option ``--devices`` and fixture ``device`` of conftest.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest


class Device(NamedTuple):
    """Where arrays are: NumPy, CuPy or what stands for it."""

    name: str
    xp: Any

    def asarray(self, array: Any, dtype: Any = None) -> Any:
        """On the device."""
        return self.xp.asarray(array, dtype)

    def asnumpy(self, array: Any) -> np.ndarray:
        """On the host."""
        return np.asarray(array) if self.xp is np else self.xp.asnumpy(array)


@contextmanager
def numpy() -> Iterator[Device]:
    yield Device("numpy", np)


@contextmanager
def emulated(capability: str = "80") -> Iterator[Device]:
    """In the place of CuPy; it compiles for a compute capability."""
    from .ptxemu.compile import CompileError, find_nvrtc

    try:
        find_nvrtc()
    except CompileError as error:
        pytest.skip(str(error))
    from cupy_rnnt.ops import cuda as ops
    from cupy_rnnt.ops.cuda import launch

    from . import emulated as xp

    with pytest.MonkeyPatch.context() as patch:
        # CuPy puts off loading cupyx. Hypothesis looks at all modules, which loads it, and that
        # fails while CuPy is replaced.
        getattr(sys.modules.get("cupyx"), "__file__", None)
        patch.setitem(sys.modules, "cupy", xp)
        patch.setitem(xp.cuda.properties, "major", int(capability[:-1]))
        patch.setitem(xp.cuda.properties, "minor", int(capability[-1]))
        # Each with memory of its own, so that the emulator finds a kernel that leaves its array.
        patch.setattr(ops, "empties", lambda *shapes: [ops.empty(*shape) for shape in shapes])
        launch._function.cache_clear()
        xp.kernels.launches.clear()
        yield Device("emulated", xp)


@contextmanager
def cuda() -> Iterator[Device]:
    yield Device("cuda", importlib.import_module("cupy"))


_DEVICES = {
    "numpy": numpy,
    "emulated": emulated,
    "emulated75": partial(emulated, "75"),
    "emulated90": partial(emulated, "90"),
    "cuda": cuda,
}


def factory(name: str) -> Callable[[], AbstractContextManager[Device]]:
    """Of a device of the table, or ``module:function``."""
    if name in _DEVICES:
        return _DEVICES[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise pytest.UsageError(f"--devices knows {', '.join(_DEVICES)}, not {name}")
    return getattr(importlib.import_module(module), function)


def default_names() -> list[str]:
    """NumPy, the emulator, and a GPU if there is one."""
    return ["numpy", "emulated"] + ["cuda"] * has_gpu()


@cache
def has_gpu() -> bool:
    try:
        import cupy

        return cupy.cuda.is_available()
    except ImportError:
        return False
