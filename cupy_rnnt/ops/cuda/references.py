"""References of tangents, and what belongs to them, on CuPy arrays."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from ..types import (
    DeviceArray,
    Forms,
    HostArray,
    JointInputs,
    Logistic,
    LogitRows,
    ReferenceRows,
    Rounding,
    TangentRows,
    compute_dtype,
)
from .inputs import FUNCTORS
from .launch import BLOCK, COMPUTE, FLOATS, WARP, Kernel, cupy, element_strides
from .rows import DeviceRow, by_width, shares_of

__all__ = [
    "label_softmax",
    "means",
    "reference_hidden",
    "reference_table",
    "row_sums",
    "slack",
    "write_tangents",
]

_TILE_FRAMES, _TILE_POSITIONS = 64, 16  # as in bounds.cu

_FOLD_ROWS = Kernel("fold_rows", "fold_rows.cu", threads=BLOCK)
_ROW_SUMS = Kernel("row_sums", "fold_rows.cu", threads=WARP)
_SLACK = Kernel("slack", "slack.cu", threads=BLOCK, variants=COMPUTE)
_REFERENCE_HIDDEN = Kernel(
    "reference_hidden",
    "references.cu",
    threads=WARP,
    variants=tuple((*t, name) for t, name in product(FLOATS, FUNCTORS.values())),
)
_WRITE_TANGENTS = Kernel("write_tangents", "references.cu", threads=WARP)
_label_softmax = by_width("label_softmax", "label_softmax.cu", FLOATS)


class ReferenceTable(NamedTuple):
    """Some samples, as kernels read them, see ``kernels/samples.cuh``."""

    samples: DeviceArray  # int64, (n, 7)
    labels: DeviceArray  # int64: the next label at each position
    on_host: HostArray  # as `samples`

    @property
    def size(self) -> int:
        return len(self.on_host)

    def tiles_of(self, start: int, stop: int) -> tuple[int, int]:
        """The first tile of cells of frames `start` to ``stop - 1``, and how many there are."""
        firsts, tiles, positions = self.on_host[:, [0, 2, 6]].T
        first, last = firsts.searchsorted([start, stop - 1], side="right") - 1
        begin = tiles[first] + (start - firsts[first]) // _TILE_FRAMES * _across(positions[first])
        down = (stop - 1 - firsts[last]) // _TILE_FRAMES + 1
        return int(begin), int(tiles[last] + down * _across(positions[last]) - begin)


def _across(positions: HostArray) -> HostArray:
    return -(-positions // _TILE_POSITIONS)


def reference_table(
    samples: HostArray, frames: HostArray, positions: HostArray, cells: HostArray, labels: HostArray
) -> ReferenceTable:
    tiles = -(-frames // _TILE_FRAMES) * _across(positions)
    firsts = [counts.cumsum() - counts for counts in (frames, positions, tiles)]
    on_host = np.stack([*firsts, cells, samples, frames, positions], axis=1).astype(np.int64)
    words = cupy().asarray(np.concatenate((on_host.reshape(-1), labels), dtype=np.int64))
    return ReferenceTable(words[: on_host.size], words[on_host.size :], on_host)


def means(inputs: JointInputs, table: ReferenceTable) -> tuple[DeviceArray, DeviceArray]:
    encoder, predictor, *_ = inputs
    width, dtype = encoder.shape[2], compute_dtype(encoder.dtype)
    means, magnitudes = cupy().empty((2, 2, table.size, width), dtype)
    arrays = encoder, *element_strides(encoder), predictor, *element_strides(predictor)
    items = 2 * table.size * -(-width // WARP)
    _FOLD_ROWS[encoder.dtype](items, *arrays, table.samples, table.size, width, means, magnitudes)
    return means, magnitudes


def row_sums(weight: DeviceArray) -> DeviceArray:
    sums = cupy().empty(len(weight), compute_dtype(weight.dtype))
    _ROW_SUMS[weight.dtype](len(weight), weight, *element_strides(weight), *weight.shape, sums)
    return sums


def slack(
    table: ReferenceTable,
    magnitudes: DeviceArray,
    row_sums: DeviceArray,
    bias: DeviceArray | None,
    layout: DeviceRow,
    form: tuple[str, Logistic],
    rounding: Rounding,
) -> tuple[DeviceArray, DeviceArray]:
    slack, fits = cupy().empty(table.size), cupy().empty(table.size, np.bool_)
    samples = table.samples, table.size, table.labels
    sizes = magnitudes, magnitudes.shape[2], row_sums, len(row_sums), bias
    _SLACK[magnitudes.dtype](
        table.size, *samples, *sizes, *layout.table, form[1].rate, *rounding, slack, fits
    )
    return slack, fits


def reference_hidden(
    rows: ReferenceRows,
    inputs: JointInputs,
    means: DeviceArray,
    activation: str,
    pre: DeviceArray,
    out: DeviceArray,
) -> None:
    table, side, start, _ = rows
    array, (items, shares) = inputs[:2][side], shares_of(out.shape)
    _REFERENCE_HIDDEN[array.dtype, FUNCTORS[activation]](
        *(items, table.samples, table.size, np.int32(side), start),
        *(array, *element_strides(array), means, *shares, out),
    )


def label_softmax(rows: LogitRows, dtype: np.dtype) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    logits, bias, layout, *_ = rows
    count, width = logits.shape
    constants, sums = cupy().empty((2, count))
    inputs = logits, bias, layout.others, len(layout.others), count, width
    _label_softmax(dtype, width)(count, *inputs, constants, sums)
    return logits.view(dtype)[:, :width], constants, sums


def write_tangents(
    rows: ReferenceRows,
    inputs: JointInputs,
    layout: DeviceRow,
    forms: Forms,
    tangents: tuple[DeviceArray, DeviceArray, DeviceArray],
    out: TangentRows,
) -> None:
    (table, side, start, stop), (*arrays, weight, bias) = rows, inputs
    array, (rate, scale, shift) = arrays[side], forms.logistic
    _, vectors, width = out.vectors.shape
    _WRITE_TANGENTS[array.dtype](
        (stop - start) * (vectors + 1),
        *(table.samples, table.size, np.int32(side), start, stop - start, table.labels),
        *(array, *element_strides(array), weight, *element_strides(weight), bias),
        *(*layout.table, np.int32(layout.label), forms.fits),
        *(-rate if side else rate, scale, shift, *tangents, width, np.int32(vectors), *out),
    )
