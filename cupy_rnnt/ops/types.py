"""What operations are given and return: plain types, on no device."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

HostArray: TypeAlias = np.ndarray
"""Of NumPy."""
DeviceArray: TypeAlias = Any
"""Of NumPy or CuPy, on the device whose operations work on it."""
ArrayLike: TypeAlias = Any
"""What a caller has for an array: of any library that speaks DLPack, or nested lists."""
Shape: TypeAlias = tuple[int, ...]
Tile: TypeAlias = tuple[int, int]
"""The first entry of a list, and the one behind the last."""

FLOATING_DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The dtypes of logits and of the inputs of a joint network, by name."""


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype the arithmetic runs in: float64 for float64, float32 for everything narrower."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


class Cells(NamedTuple):
    """Some cells of a batch, one entry each: the coordinates every operation works from."""

    sample: Any
    frame: Any
    position: Any
    label: Any  # the label that leaves the cell; 0 where none is left
    has_label: Any


class Sizes(NamedTuple):
    """What a device likes to work on."""

    tile_elements: int
    """Of the logits of a tile, if these are more than `full_rows`."""
    full_rows: int
    most_rows: int
    tile_share: float
    """Of the budget, for tiles that are larger than the smallest; the rest is for groups."""
    small_elements: int
    """A smaller tile, of fewer than `small_rows`, is not worth another worker."""
    small_rows: int
    group_cells: int
    """A group has no more samples than that many cells a worker, on diagonals of `group_width`, ask
    for."""
    group_width: int
    slab_elements: int
    """Of a weight gradient: what is added to it at once."""
    stored_bytes: int
    """Of logits that pass 2 finds stored, at most."""
    cuts_groups: bool
    """Whether lattices of fewer samples are solved in less time, so that a group may be cut into
    parts whose logits can all be stored."""


class Runs(NamedTuple):
    """Some frames of some samples, an entry a sample, on the host: where things are.

    Each has `frames` rows of the encoder from row `frame` on, all its `columns` rows of the
    predictor from row `prefix` on, and its cells, in packed order, from `cell` on.
    """

    frame: np.ndarray
    frames: np.ndarray
    prefix: np.ndarray
    columns: np.ndarray
    cell: np.ndarray
    slack: np.ndarray
