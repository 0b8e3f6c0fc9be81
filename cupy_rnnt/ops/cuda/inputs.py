"""Hidden vectors from the two inputs of a joint network, and gradients back to them, on CuPy."""

from __future__ import annotations

from itertools import chain, product
from typing import NamedTuple

import numpy as np

from ..numpy.activations import ACTIVATIONS
from ..types import Cells, DeviceArray, Dropout, HiddenRows, HostArray, InputSums
from .launch import BLOCK, FLOATS, WARP, Kernel, cupy, element_strides
from .rows import shares_of

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


class GroupTable(NamedTuple):
    """The samples of a group, as kernels read them, see ``kernels/input_grads.cu``."""

    entries: DeviceArray  # int64: of frames, then of positions
    samples: int
    start: int
    frames: int
    positions: int


def group_table(
    start: int, cells: HostArray, frames: HostArray, positions: HostArray
) -> GroupTable:
    of_frames, of_positions = frames.cumsum(), positions.cumsum()
    words = np.empty((2, len(frames), 5), np.int64)
    first, frame, *others = np.moveaxis(words, -1, 0)
    first[0] = frame[...] = of_frames - frames
    first[1] = of_positions - positions
    for column, values in zip(others, (cells, frames, positions), strict=True):
        column[...] = values
    totals = int(of_frames[-1]), int(of_positions[-1])
    return GroupTable(cupy().asarray(words), len(frames), start, *totals)


def hidden(rows: HiddenRows) -> None:
    """As the contract says, without `pre`."""
    (encoder, predictor, *_), cells, activation, pre, out, dropout = rows
    items, shares = shares_of(pre.shape)
    arrays = encoder, *element_strides(encoder), predictor, *element_strides(predictor)
    of_rows = *arrays, cells.packed, *cells.table, *shares, *(dropout or NO_DROPOUT), out
    _HIDDEN[encoder.dtype, FUNCTORS[activation]](items, *of_rows)


def add_input_grad(
    d_hidden: DeviceArray, rows: HiddenRows, table: GroupTable, sums: InputSums
) -> None:
    encoder, predictor, *_ = rows.inputs
    count, width = d_hidden.shape
    cells = rows.cells
    of_list = cells.whole.packed, cells.start, count, _frame_starts(cells.whole, table)
    pack = 16 // d_hidden.itemsize
    strides = *element_strides(encoder), *element_strides(predictor)
    places = *(strides[k] for k in (0, 1, 3, 4)), width
    pointers = (array.data.ptr // array.itemsize for array in (encoder, predictor))
    if strides[2] != 1 or strides[5] != 1 or any(p % pack for p in (*places, *pointers)):
        pack = 1
    strips = -(-width // (_INPUT_GRADS.block * pack))
    _INPUT_GRADS[encoder.dtype, FUNCTORS[rows.activation], pack](
        (table.frames + table.positions) * strips,
        *(d_hidden, encoder, *strides[:3], predictor, *strides[3:], *of_list),
        *(*table, width, strips, *(rows.dropout or NO_DROPOUT), *sums),
    )


def _frame_starts(cells: Cells, table: GroupTable) -> DeviceArray:
    """Where the cells of each frame of a group begin in a list, int64 (frames + 1,)."""
    starts = cells.known.get("frame_starts")
    if starts is None:
        starts = cells.known["frame_starts"] = cupy().empty(table.frames + 1, np.int64)
        of_list = cells.packed, len(cells), table.entries, table.samples
        _FRAME_STARTS[()](table.frames + 1, table.frames, *of_list, starts)
    return starts


def write_input_grads(
    sums: InputSums,
    table: GroupTable,
    scale: DeviceArray | None,
    encoder: DeviceArray,
    predictor: DeviceArray,
) -> None:
    size, width = table.samples, encoder.shape[2]
    gradients = [(len(g[0]), g, *element_strides(g)) for g in (encoder, predictor)]
    items = size * sum(rows for rows, *_ in gradients)
    of_group = table.entries, size, table.start, width
    _WRITE_INPUT_GRADS[encoder.dtype](items, *sums, scale, *of_group, *chain(*gradients))
