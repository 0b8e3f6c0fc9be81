"""Calls of the package on a device, with NumPy arrays in and out, and examples for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings

import cupy_rnnt

from .devices import Device


def on(device: Device, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the package as one of NumPy arrays."""

    def run(*args: Any, **kwargs: Any) -> Any:
        moved = {name: to_device(device, value) for name, value in kwargs.items()}
        return to_host(device, function(*to_device(device, args), **moved))

    return run


def to_device(device: Device, value: Any) -> Any:
    """The arrays in it on the device, in the same order in memory."""
    if isinstance(value, tuple):
        made = [to_device(device, item) for item in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if not isinstance(value, np.ndarray) or device.name == "numpy":
        return value
    return device.xp.array(value, order="K")


def to_host(device: Device, value: Any) -> Any:
    """Results, which must have been on the device, on the host."""
    if isinstance(value, tuple):
        made = [to_host(device, item) for item in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, cupy_rnnt.Info):
        certificate = to_host(device, value.certificate)
        return dataclasses.replace(value, certificate=certificate)
    if value is None or device.name == "numpy":
        return value
    assert isinstance(value, device.xp.ndarray)
    return device.asnumpy(value)


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
