"""References of tangents, and what belongs to them, on CuPy arrays."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..types import (
    DeviceArray,
    Forms,
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
from .samples import Samples

__all__ = [
    "label_softmax",
    "means",
    "reference_hidden",
    "row_sums",
    "slack",
    "write_tangents",
]

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


def means(inputs: JointInputs, samples: Samples) -> tuple[DeviceArray, DeviceArray]:
    encoder, predictor, *_ = inputs
    width, dtype = encoder.shape[2], compute_dtype(encoder.dtype)
    means, magnitudes = cupy().empty((2, 2, samples.size, width), dtype)
    arrays = encoder, *element_strides(encoder), predictor, *element_strides(predictor)
    items = 2 * samples.size * -(-width // WARP)
    _FOLD_ROWS[encoder.dtype](items, *arrays, *samples.table, width, means, magnitudes)
    return means, magnitudes


def row_sums(weight: DeviceArray) -> DeviceArray:
    sums = cupy().empty(len(weight), compute_dtype(weight.dtype))
    _ROW_SUMS[weight.dtype](len(weight), weight, *element_strides(weight), *weight.shape, sums)
    return sums


def slack(
    samples: Samples,
    magnitudes: DeviceArray,
    row_sums: DeviceArray,
    bias: DeviceArray | None,
    layout: DeviceRow,
    form: tuple[str, Logistic],
    rounding: Rounding,
) -> tuple[DeviceArray, DeviceArray]:
    slack, fits = cupy().empty(samples.size), cupy().empty(samples.size, np.bool_)
    sizes = magnitudes, magnitudes.shape[2], row_sums, len(row_sums), bias
    _SLACK[magnitudes.dtype](
        samples.size,
        *samples.table,
        samples.labels,
        *sizes,
        *layout.table,
        form[1].rate,
        *rounding,
        slack,
        fits,
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
    samples, side, start, _ = rows
    array, (items, shares) = inputs[:2][side], shares_of(out.shape)
    _REFERENCE_HIDDEN[array.dtype, FUNCTORS[activation]](
        *(items, *samples.table, np.int32(side), start),
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
    (samples, side, start, stop), (*arrays, weight, bias) = rows, inputs
    array, (rate, scale, shift) = arrays[side], forms.logistic
    _, vectors, width = out.vectors.shape
    _WRITE_TANGENTS[array.dtype](
        (stop - start) * (vectors + 1),
        *(*samples.table, np.int32(side), start, stop - start, samples.labels),
        *(array, *element_strides(array), weight, *element_strides(weight), bias),
        *(*layout.table, np.int32(layout.label), forms.fits),
        *(-rate if side else rate, scale, shift, *tangents, width, np.int32(vectors), *out),
    )
