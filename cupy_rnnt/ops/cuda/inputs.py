"""Hidden vectors from the two inputs of a joint network, and gradients back to them, on CuPy."""

from __future__ import annotations

from itertools import chain, product

import numpy as np

from ..numpy.activations import ACTIVATIONS
from ..types import Cells, DeviceArray, Dropout, HiddenRows, InputSums
from .launch import BLOCK, FLOATS, WARP, Kernel, cupy, element_strides
from .rows import shares_of
from .samples import Samples

FUNCTORS = {name: name.title().replace("_", "") for name in ACTIVATIONS}
"""The types of kernels/activations.cuh, by the names of the activations."""
NO_DROPOUT = Dropout(0, 0, 1.0)
_HIDDEN = Kernel(
    "hidden",
    "hidden.cu",
    threads=WARP,
    variants=tuple((*t, name) for t, name in product(FLOATS, FUNCTORS.values())),
)
_FRAME_STARTS = Kernel("frame_starts", "input_grads.cu", variants=((),))
_INPUT_GRADS = Kernel(
    "input_grads",
    "input_grads.cu",
    threads=BLOCK,
    variants=tuple(
        (t, name, pack)
        for (t,), name in product(FLOATS, FUNCTORS.values())
        for pack in ("1", "2" if t == "double" else "4")
    ),
)
_WRITE_INPUT_GRADS = Kernel("write_input_grads", "input_grads.cu", threads=WARP)


def hidden(rows: HiddenRows) -> None:
    """As the contract says, without `pre`."""
    (encoder, predictor, *_), cells, activation, pre, out, dropout = rows
    items, shares = shares_of(pre.shape)
    arrays = encoder, *element_strides(encoder), predictor, *element_strides(predictor)
    of_rows = *arrays, cells.packed, *cells.samples.batch, *shares, *(dropout or NO_DROPOUT), out
    _HIDDEN[encoder.dtype, FUNCTORS[activation]](items, *of_rows)


def add_input_grad(
    d_hidden: DeviceArray, rows: HiddenRows, samples: Samples, sums: InputSums
) -> None:
    encoder, predictor, *_ = rows.inputs
    count, width = d_hidden.shape
    cells = rows.cells
    of_list = cells.whole.packed, cells.start, count, _frame_starts(cells.whole, samples)
    pack = 16 // d_hidden.itemsize
    strides = *element_strides(encoder), *element_strides(predictor)
    places = *(strides[k] for k in (0, 1, 3, 4)), width
    pointers = (array.data.ptr // array.itemsize for array in (encoder, predictor))
    if strides[2] != 1 or strides[5] != 1 or any(p % pack for p in (*places, *pointers)):
        pack = 1
    strips = -(-width // (_INPUT_GRADS.block * pack))
    _INPUT_GRADS[encoder.dtype, FUNCTORS[rows.activation], pack](
        sum(samples.rows) * strips,
        *(d_hidden, encoder, *strides[:3], predictor, *strides[3:], *of_list),
        *(*samples.table, *samples.rows, width, strips, *(rows.dropout or NO_DROPOUT), *sums),
    )


def _frame_starts(cells: Cells, samples: Samples) -> DeviceArray:
    """Where the cells of each frame of a group begin in a list, int64 (frames + 1,)."""
    starts = cells.known.get("frame_starts")
    if starts is None:
        frames, _ = samples.rows
        starts = cells.known["frame_starts"] = cupy().empty(frames + 1, np.int64)
        of_list = cells.packed, len(cells), *samples.table
        _FRAME_STARTS[()](frames + 1, frames, *of_list, starts)
    return starts


def write_input_grads(
    sums: InputSums,
    samples: Samples,
    scale: DeviceArray | None,
    encoder: DeviceArray,
    predictor: DeviceArray,
) -> None:
    width = encoder.shape[2]
    gradients = [(len(g[0]), g, *element_strides(g)) for g in (encoder, predictor)]
    items = samples.size * sum(rows for rows, *_ in gradients)
    of_group = *samples.table, width
    _WRITE_INPUT_GRADS[encoder.dtype](items, *sums, scale, *of_group, *chain(*gradients))
