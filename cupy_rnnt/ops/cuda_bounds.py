"""Upper bounds of transition log-probs on CuPy arrays, and what they are made from."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from .activations import ACTIVATIONS
from .launch import BLOCK, WARP, Kernel, cupy

__all__ = ["bounds", "bounds_of_samples", "label_softmax", "row_dots"]

_COMPUTE = (("float",), ("double",))
_FORMS: dict[str | None, str] = {
    None: "Quotient",
    **{name: name.capitalize() for name in ACTIVATIONS},
}
_TILE_FRAMES, _TILE_POSITIONS = 64, 16  # as in bounds.cu
_LONG_ROW = 2048  # elements from which on a row is shared by a block

# A sample as in bounds.cu: its first tile, cell and rows, its lengths.
_FIRSTS = "tile", "cell", "frame", "prefix"
_RUN = np.dtype([*((name, "i8") for name in _FIRSTS), ("T", "i4"), ("S", "i4"), ("slack", "f8")])

_BOUNDS = Kernel(
    "bounds",
    "bounds.cu",
    threads=BLOCK,
    block=128,
    variants=tuple((form, *c) for form, c in product(_FORMS.values(), _COMPUTE)),
)
_SHORT_SOFTMAX, _LONG_SOFTMAX = (
    Kernel(
        "label_softmax", "label_softmax.cu", shared_by, variants=tuple((*c, n) for c in _COMPUTE)
    )
    for shared_by, n in ((WARP, "32"), (BLOCK, "256"))
)
_ROW_DOTS = Kernel("row_dots", "row_dots.cu", threads=WARP, variants=_COMPUTE)


def label_softmax(logits: Any, bias: Any | None, blank: int, scratch: Any) -> Any:
    """As the contract says; `scratch` is not used."""
    rows, width = logits.shape
    lse = cupy().empty(rows)
    kernel, threads = (_LONG_SOFTMAX, 256) if width >= _LONG_ROW else (_SHORT_SOFTMAX, 32)
    kernel[logits.dtype, threads](rows, logits, bias, blank, rows, width, lse)
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
    slopes: Any,
    constants: Any,
    vectors: Any,
    vector_constants: Any,
    slack: float,
    scratch: Any,
) -> tuple[Any, Any]:
    """As the contract says; `scratch` is not used."""
    frames, columns = len(encoder), len(predictor)
    both = bounds_of_samples(
        encoder,
        predictor,
        activation,
        slopes,
        constants,
        vectors,
        vector_constants,
        *map(np.array, ([frames], [columns], [slack])),
    )
    blank, label = both.reshape(2, frames, columns)
    return blank, label


def bounds_of_samples(
    encoder: Any,
    predictor: Any,
    activation: str | None,
    slopes: Any,
    constants: Any,
    vectors: Any,
    vector_constants: Any,
    frames: np.ndarray,
    columns: np.ndarray,
    slack: np.ndarray,
) -> Any:
    """Bounds of several samples in one launch: :meth:`cupy_rnnt.ops.Operations.bounds` of each.

    Parameters
    ----------
    encoder, slopes, constants : cupy.ndarray
        Rows of the frames of one sample after the other.
    predictor, vectors, vector_constants : cupy.ndarray
        Rows of their prefixes.
    frames, columns, slack : numpy.ndarray, shape (n,)
        Of each sample, on the host.

    Returns
    -------
    cupy.ndarray, shape (2, cells), float64
        Of blank and label, in packed order.
    """
    tiles = -(-frames // _TILE_FRAMES) * -(-columns // _TILE_POSITIONS)
    cells = frames * columns
    runs = np.empty(len(frames), _RUN)
    for name, sizes in zip(_FIRSTS, (tiles, cells, frames, columns), strict=True):
        runs[name] = np.cumsum(sizes) - sizes
    runs["T"], runs["S"], runs["slack"] = frames, columns, slack
    count, size = int(tiles.sum()), encoder.shape[1]
    both = cupy().empty((2, int(cells.sum())))
    _BOUNDS[_FORMS[activation], encoder.dtype](
        count,
        count,
        len(runs),
        cupy().asarray(runs.view("i8").reshape(len(runs), -1)),
        size,
        encoder,
        slopes,
        constants,
        predictor,
        vectors,
        vector_constants,
        *both,
    )
    return both
