"""The package on the device of the running test, with NumPy arrays in and out.

``joint_rnnt_loss`` and the others here are those of the package. With the fixture `device`, tests
run on one device after the other; without it, on NumPy.
"""

from __future__ import annotations

import dataclasses
import functools
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from hypothesis import given, settings

import cupy_rnnt
from cupy_rnnt.ops import Operations
from cupy_rnnt.ops import numpy as cpu

from .devices import Device

_devices = [Device("numpy", np)]


@contextmanager
def running_on(device: Device) -> Iterator[None]:
    _devices.append(device)
    try:
        yield
    finally:
        _devices.pop()


def operations() -> Operations:
    """Those of the device."""
    if _devices[-1].name == "numpy":
        return cpu
    from cupy_rnnt.ops import cuda

    return cuda


def to_device(value: Any) -> Any:
    """The arrays in it on the device, in the same order in memory."""
    device = _devices[-1]
    if isinstance(value, tuple):
        made = map(to_device, value)
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if not isinstance(value, np.ndarray) or device.name == "numpy":
        return value
    return device.xp.array(value, order="K")


def to_host(value: Any) -> Any:
    """Results, whose arrays must be on the device, on the host."""
    device = _devices[-1]
    if isinstance(value, tuple):
        made = map(to_host, value)
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, cupy_rnnt.Info):
        return dataclasses.replace(value, certificate=to_host(value.certificate))
    if value is None or device.name == "numpy":
        return value
    assert isinstance(value, device.xp.ndarray)
    return device.asnumpy(value)


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        moved = {name: to_device(value) for name, value in kwargs.items()}
        return to_host(function(*to_device(args), **moved))

    return run


rnnt_loss = _on_device(cupy_rnnt.rnnt_loss)
rnnt_loss_and_grad = _on_device(cupy_rnnt.rnnt_loss_and_grad)
additive_rnnt_loss = _on_device(cupy_rnnt.additive_rnnt_loss)
additive_rnnt_loss_and_grad = _on_device(cupy_rnnt.additive_rnnt_loss_and_grad)
joint_rnnt_loss = _on_device(cupy_rnnt.joint_rnnt_loss)
joint_rnnt_loss_and_grad = _on_device(cupy_rnnt.joint_rnnt_loss_and_grad)
joint_rnnt_log_probs = _on_device(cupy_rnnt.joint_rnnt_log_probs)
joint_rnnt_log_probs_grad = _on_device(cupy_rnnt.joint_rnnt_log_probs_grad)
rnnt_alignment = _on_device(cupy_rnnt.rnnt_alignment)
rnnt_posteriors = _on_device(cupy_rnnt.rnnt_posteriors)
joint_rnnt_posteriors = _on_device(cupy_rnnt.joint_rnnt_posteriors)
joint_rnnt_alignment = _on_device(cupy_rnnt.joint_rnnt_alignment)


def examples(many: int, few: int, **strategies: Any) -> Callable[..., Callable[[Device], None]]:
    """Run a test with many examples of the strategies on NumPy, and with few on a GPU, which may be
    an emulated one."""

    def decorate(test: Callable[..., None]) -> Callable[[Device], None]:
        def run(device: Device) -> None:
            def check(**drawn: Any) -> None:
                test(device, **drawn)

            check.__qualname__ = check.__name__ = test.__name__
            count = many if device.name == "numpy" else few
            settings(max_examples=count, deadline=None)(given(**strategies)(check))()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


class Peak:
    """What was allocated on the device, the most at a time."""

    def __init__(self, unit: int = 1) -> None:
        self.bytes = self._used = 0
        self._unit = unit

    def size(self, nbytes: int) -> int:
        """Of an allocation of so many bytes."""
        return -(-nbytes // self._unit) * self._unit

    def add(self, nbytes: int) -> None:
        self._used += nbytes
        self.bytes = max(self.bytes, self._used)


@contextmanager
def allocated() -> Iterator[Peak]:
    """What is allocated meanwhile."""
    device = _devices[-1]
    if device.name == "numpy":
        peak = Peak()
        tracemalloc.start()
        try:
            yield peak
            peak.bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    elif hasattr(device.xp.cuda, "MemoryHook"):
        peak = Peak(unit=512)
        with _hook(device.xp.cuda.MemoryHook, peak)():
            yield peak
    else:
        peak, pool = Peak(unit=512), device.xp.get_default_memory_pool()
        before = pool.used_bytes()
        pool.free_all_blocks()
        yield peak
        peak.bytes = pool.total_bytes() - before


def _hook(base: Any, peak: Peak) -> Any:
    class Hook(base):  # type: ignore[misc]
        name = "peak"

        def malloc_postprocess(self, *, mem_size: int, **_: Any) -> None:
            peak.add(mem_size)

        def free_postprocess(self, *, mem_size: int, **_: Any) -> None:
            peak.add(-mem_size)

    return Hook
