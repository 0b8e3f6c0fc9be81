"""Upper bounds of scores on CuPy arrays, and the softmax and dot products that tangents need."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..types import DeviceArray, FrameTangents, LogitRows, PositionTangents, Runs
from .inputs import FUNCTORS
from .launch import BLOCK, COMPUTE, WARP, Kernel, cupy
from .rows import DeviceRow, by_width

__all__ = ["label_softmax", "row_dots", "upper_bounds"]

_FORMS = {name: FUNCTORS[name] if name else "Quotient" for name in (None, *FUNCTORS)}
_TILE_FRAMES, _TILE_POSITIONS = 64, 16  # as in bounds.cu
_VECTORS = 3  # of a launch, as in bounds.cu

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
        variants=tuple((form, *c) for form, c in product(_FORMS.values(), COMPUTE)),
    )
    for name in ("exact_logits", "bounds")
)
_label_softmax = by_width("label_softmax", "label_softmax.cu", COMPUTE)
_ROW_DOTS = Kernel("row_dots", "row_dots.cu", threads=WARP, variants=COMPUTE)


def label_softmax(rows: LogitRows) -> DeviceArray:
    logits, bias, layout, *_ = rows
    count, width = logits.shape
    lse = cupy().empty(count)
    inputs = logits, bias, layout.others, len(layout.others), count, width
    _label_softmax(logits.dtype, width)(count, *inputs, lse)
    return lse


def row_dots(a: DeviceArray, b: DeviceArray) -> DeviceArray:
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
    for name, column in zip(runs._fields, runs, strict=True):
        table[name] = column
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
