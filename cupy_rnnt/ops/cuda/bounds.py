"""Upper bounds of scores on CuPy arrays."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..types import DeviceArray, Forms, ReferenceRows, TangentRows
from .inputs import FUNCTORS, NO_DROPOUT
from .launch import BLOCK, COMPUTE, Kernel
from .rows import DeviceRow

__all__ = ["upper_bounds"]

_VECTORS = 3  # of a launch, as in bounds.cu

_EXACT_LOGITS, _BOUNDS = (
    Kernel(
        name,
        "bounds.cu",
        threads=BLOCK,
        block=128,
        variants=tuple((form, *c) for form, c in product(FUNCTORS.values(), COMPUTE)),
    )
    for name in ("exact_logits", "bounds")
)


def upper_bounds(
    rows: ReferenceRows,
    frames: TangentRows,
    positions: TangentRows,
    layout: DeviceRow,
    forms: Forms,
    base: int,
    scratch: DeviceArray,
    out: DeviceArray,
) -> None:
    samples, _, *ends = rows
    first, count = samples.tiles(*ends)
    width, label = positions.vectors.shape[1], np.int32(layout.label)
    variant = FUNCTORS[forms.activation], frames.inputs.dtype
    work = *samples.table, first, count, *ends, forms.fits
    dropout = forms.dropout or NO_DROPOUT
    of_positions = *positions, np.int32(width)
    to = label, base, out.shape[1], out
    size = frames.inputs.shape[1]
    for vector in range(0, width - _VECTORS, _VECTORS):
        group = np.int32(vector), np.int32(min(_VECTORS, width - _VECTORS - vector))
        exact = size, frames.inputs, *of_positions, *dropout, *group
        _EXACT_LOGITS[variant](count, *work, *exact, *to)
    rest = forms.slack, size, *frames, *of_positions, *dropout, *layout.table
    _BOUNDS[variant](count, *work, *rest, *to)
