"""Upper bounds of scores on CuPy arrays, and what they are made from."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from ..numpy.activations import ACTIVATIONS
from ..types import Runs
from .launch import BLOCK, WARP, Kernel, cupy
from .rows import DeviceRow

__all__ = ["bounds", "label_softmax", "row_dots"]

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
        "names": ["tile", "cell", "frame", "prefix", "frames", "columns", "slack"],
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


def label_softmax(logits: Any, bias: Any | None, row: DeviceRow, scratch: Any) -> Any:
    """As the contract says; `scratch` is not used."""
    rows, width = logits.shape
    lse = cupy().empty(rows)
    kernel, threads = (_LONG_SOFTMAX, 256) if width >= _LONG_ROW else (_SHORT_SOFTMAX, 32)
    kernel[logits.dtype, threads](rows, logits, bias, row.others, len(row.others), rows, width, lse)
    return lse


def row_dots(a: Any, b: Any) -> Any:
    rows, width = a.shape
    dots = cupy().empty(rows)
    _ROW_DOTS[a.dtype](rows, a, b, rows, width, dots)
    return dots


def bounds(
    encoder: Any,
    predictor: Any,
    activation: str | None,
    row: DeviceRow,
    slopes: Any,
    constants: Any,
    vectors: Any,
    vector_constants: Any,
    runs: Runs,
    scratch: Any,
    out: Any,
) -> None:
    """As the contract says; `scratch` is not used."""
    tiles = -(-runs.frames // _TILE_FRAMES) * -(-runs.columns // _TILE_POSITIONS)
    table = np.empty(len(tiles), _RUN)
    table["tile"] = np.cumsum(tiles) - tiles
    for name, values in zip(runs._fields, runs, strict=True):
        table[name] = values
    count, variant = int(tiles.sum()), (_FORMS[activation], encoder.dtype)
    on_device = cupy().asarray(table.view("i8").reshape(len(table), -1))
    tiles_of_runs = count, len(table), on_device, encoder.shape[1]
    width, label, cells = vectors.shape[1], np.int32(row.label), out.shape[1]
    of_prefixes = predictor, vectors, vector_constants, np.int32(width)
    for first in range(0, width - _VECTORS, _VECTORS):
        group = np.int32(first), np.int32(min(_VECTORS, width - _VECTORS - first))
        _EXACT_LOGITS[variant](
            count, *tiles_of_runs, encoder, *of_prefixes, *group, label, cells, out
        )
    of_frames = encoder, slopes, constants
    _BOUNDS[variant](count, *tiles_of_runs, *of_frames, *of_prefixes, *row.table, label, cells, out)
