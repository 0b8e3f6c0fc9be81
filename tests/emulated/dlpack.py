"""DLPack as CuPy speaks it, over memory of the host that says it is on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dlpack import capsules
from . import arrays, cuda, memory


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> arrays.ndarray:
    device_type, device_id = array.__dlpack_device__()
    if device_type not in (capsules.CUDA, capsules.CUDA_MANAGED):
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
    allocated, array = capsules.taken(capsule)
    root = memory.Allocation((len(allocated),), np.uint8, allocated)  # none of it poisoned
    root.device_id = device_id
    offset = array.ctypes.data - root.ctypes.data
    return arrays.ndarray.of(np.ndarray(array.shape, array.dtype, root, offset, array.strides))


def device_of(array: arrays.ndarray) -> tuple[int, int]:
    return capsules.CUDA, array.device.id


def capsule_of(array: arrays.ndarray, **kwargs: Any) -> Any:
    if array.dtype.kind not in capsules.CODES:
        raise BufferError("dtype is not supported for dlpack export")
    exporter = capsules.NewExporter(memory.checked(array.host), device_of(array))
    exporter.fields = {"flags": 0}  # CuPy knows no read-only arrays
    return exporter.__dlpack__(**kwargs)
