"""Upper bounds of scores on CuPy arrays, and what they are made from."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from ..numpy.activations import ACTIVATIONS
from ..types import DeviceArray, FrameTangents, LogitRows, PositionTangents, Runs
from .launch import BLOCK, WARP, Kernel, cupy
from .rows import DeviceRow

__all__ = ["label_softmax", "row_dots", "upper_bounds"]

_COMPUTE = (("float",), ("double",))
_FORMS: dict[str | None, str] = {
    None: "Quotient",
    **{name: name.capitalize() for name in ACTIVATIONS},
}
_TILE_FRAMES, _TILE_POSITIONS = 64, 16  # as in bounds.cu
_VECTORS = 3  # of a launch, as in bounds.cu
_LONG_ROW = 2048  # elements from which on a row is shared by a block

_RUN = np.dtype(  # as in bounds.cu
    {
        "names": ["tile", "cell", "frame", "position", "frames", "positions", "slack"],
        "formats": ["i8", "i8", "i8", "i8", "i4", "i4", "f8"],
    }
)

_EXACT_LOGITS, _BOUNDS = (
    Kernel(
        name,
        "bounds.cu",
        threads=BLOCK,
        block=128,
        variants=tuple((form, *c) for form, c in product(_FORMS.values(), _COMPUTE)),
    )
    for name in ("exact_logits", "bounds")
)
_SHORT_SOFTMAX, _LONG_SOFTMAX = (
    Kernel(
        "label_softmax", "label_softmax.cu", shared_by, variants=tuple((*c, n) for c in _COMPUTE)
    )
    for shared_by, n in ((WARP, "32"), (BLOCK, "256"))
)
_ROW_DOTS = Kernel("row_dots", "row_dots.cu", threads=WARP, variants=_COMPUTE)


def label_softmax(rows: LogitRows) -> DeviceArray:
    logits, bias, layout, *_ = rows
    count, width = logits.shape
    lse = cupy().empty(count)
    kernel, threads = (_LONG_SOFTMAX, 256) if width >= _LONG_ROW else (_SHORT_SOFTMAX, 32)
    others = layout.others
    kernel[logits.dtype, threads](count, logits, bias, others, len(others), count, width, lse)
    return lse


def row_dots(a: DeviceArray, b: DeviceArray) -> Any:
    rows, width = a.shape
    dots = cupy().empty(rows)
    _ROW_DOTS[a.dtype](rows, a, b, rows, width, dots)
    return dots


def upper_bounds(
    frames: FrameTangents,
    positions: PositionTangents,
    layout: DeviceRow,
    runs: Runs,
    out: DeviceArray,
) -> None:
    tiles = -(-runs.frames // _TILE_FRAMES) * -(-runs.positions // _TILE_POSITIONS)
    table = np.empty(len(tiles), _RUN)
    table["tile"] = np.cumsum(tiles) - tiles
    for name, values in zip(runs._fields, runs, strict=True):
        table[name] = values
    encoder, width, label = frames.encoder, positions.vectors.shape[1], np.int32(layout.label)
    count, variant = int(tiles.sum()), (_FORMS[frames.activation], encoder.dtype)
    on_device = cupy().asarray(table.view("i8").reshape(len(table), -1))
    tiles_of_runs = count, len(table), on_device, encoder.shape[1]
    of_positions = *positions, np.int32(width)
    cells = out.shape[1]
    for first in range(0, width - _VECTORS, _VECTORS):
        group = np.int32(first), np.int32(min(_VECTORS, width - _VECTORS - first))
        _EXACT_LOGITS[variant](
            count, *tiles_of_runs, encoder, *of_positions, *group, label, cells, out
        )
    of_frames = encoder, frames.slopes, frames.constants
    _BOUNDS[variant](
        count, *tiles_of_runs, *of_frames, *of_positions, *layout.table, label, cells, out
    )
