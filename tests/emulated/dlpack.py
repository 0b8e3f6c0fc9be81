"""DLPack as CuPy speaks it, over memory of the host that says it is on a device."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .. import capsules, ptxemu
from . import arrays, cuda, memory


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> arrays.ndarray:
    device_type, device_id = array.__dlpack_device__()
    if device_type != capsules.CUDA:
        raise TypeError(f"Unsupported array type: {device_type}")
    with cuda.Device(device_id):
        stream = cuda.get_current_stream().ptr or 1
        try:
            capsule = array.__dlpack__(stream=stream, max_version=(1, 0), copy=copy)
        except TypeError:
            capsule = array.__dlpack__(stream=stream)
    tensor = capsules.managed_in(capsule).tensor
    device_type, device_id = tensor.device
    if device_type != capsules.CUDA:
        raise RuntimeError("CuPy is built against CUDA, the DLPack tensor is elsewhere")
    if tensor.code == capsules.BFLOAT:
        raise NotImplementedError("CuPy does not support bfloat16 yet")
    return arrays.ndarray.of(_on_device(capsules.seen(capsule), device_id))


def _on_device(array: np.ndarray, device_id: int) -> np.ndarray:
    """The array as part of an allocation of a device, all of it written."""
    pairs = list(zip(array.strides, array.shape, strict=True))
    first = sum(min(stride * (extent - 1), 0) for stride, extent in pairs)
    last = sum(max(stride * (extent - 1), 0) for stride, extent in pairs)
    size = last - first + array.itemsize
    found = (ctypes.c_uint8 * size).from_address(array.ctypes.data + first)
    found.owner = array
    root = memory.Allocation((size,), np.uint8, found)
    root.device_id = device_id
    ptxemu.mark_written(root)
    return np.ndarray(array.shape, array.dtype, root, -first, array.strides)


def device_of(array: arrays.ndarray) -> tuple[int, int]:
    return capsules.CUDA, array.device.id


def capsule_of(array: arrays.ndarray, **kwargs: Any) -> Any:
    if array.dtype.kind not in capsules.CODES:
        raise BufferError("dtype is not supported for dlpack export")
    exporter = capsules.NewExporter(memory.checked(array.host), device_of(array))
    exporter.fields = {"flags": 0}  # CuPy knows no read-only arrays
    return exporter.__dlpack__(**kwargs)
