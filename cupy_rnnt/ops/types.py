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


class JointInputs(NamedTuple):
    """What goes into a joint network and its output layer."""

    encoder_out: DeviceArray
    predictor_out: DeviceArray
    weight: DeviceArray
    bias: DeviceArray | None


class Cells(NamedTuple):
    """Some cells of a batch, one entry each: the coordinates every operation works from."""

    sample: DeviceArray
    frame: DeviceArray
    position: DeviceArray
    label: DeviceArray  # the label that leaves the cell; 0 where none is left
    has_label: DeviceArray


class LogitRows(NamedTuple):
    """A tile of rows of logits, which the bias is still to be added to."""

    logits: DeviceArray  # compute, (n, V)
    bias: DeviceArray | None  # compute, (V,)
    layout: Any  # where the scores are: what `device_row` made of a row
    labels: DeviceArray  # int64, (n,), of the cells; None where no score is asked for
    scratch: DeviceArray  # compute, (`scratch_rows`, V): working memory


class RowPosteriors(NamedTuple):
    """What the gradient of a tile of rows follows from, beside the rows themselves."""

    lse: DeviceArray  # float64, (G, n)
    occupancies: DeviceArray  # compute, (K, n)
    clamp: float  # bounds elements to [-clamp, clamp], if it is above 0
    weights: DeviceArray | None  # (n,), what bounded elements are multiplied by

    def part(self, some: slice) -> RowPosteriors:
        """Those of some rows."""
        weights = None if self.weights is None else self.weights[some]
        return RowPosteriors(self.lse[:, some], self.occupancies[:, some], self.clamp, weights)


class OutputSums(NamedTuple):
    """The gradient of an output layer so far, and what is needed to add to it."""

    weight: DeviceArray  # compute, (V, H)
    bias: DeviceArray  # compute, (V,)
    slab: DeviceArray  # compute, (any, H): working memory
    scratch: DeviceArray  # compute, (`scratch_rows`, V): working memory


class FrameTangents(NamedTuple):
    """Some frames, and a tangent of each: ``slopes[t] . h + constants[t]``.

    With an activation, a hidden vector is ``h = activation(encoder[t] + predictor[u])``; without
    one it is ``predictor[u] / (predictor[u] + encoder[t])``.
    """

    encoder: DeviceArray  # compute, (n, H)
    slopes: DeviceArray  # compute, (n, H)
    constants: DeviceArray  # float64, (n,)
    activation: str | None
    scratch: DeviceArray  # compute, (n, H): working memory


class PositionTangents(NamedTuple):
    """Some positions, and what is linear in a hidden vector there: ``vectors[u, i] . h +
    constants[u, i]`` is the logit of score i, in the order of the scores and without that of the
    label, which comes behind them; and the last one is a tangent."""

    predictor: DeviceArray  # compute, (n, H)
    vectors: DeviceArray  # compute, (n, i, H)
    constants: DeviceArray  # float64, (n, i)


class Sizes(NamedTuple):
    """What a device likes to work on."""

    workspace_bytes: int
    """That a call may allocate beyond its arguments and results, by default."""
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
    group_share: float
    """Of the budget, without tiles and what does not depend on them: what a group of more than one
    sample takes at most. Logits are stored in the rest."""
    cuts_groups: bool
    """Whether lattices of fewer samples are solved in less time, so that a group may be cut into
    parts whose logits can all be stored."""


class Runs(NamedTuple):
    """Some frames of some samples, an entry a sample, on the host: where things are.

    Each has `frames` rows of the encoder from row `frame` on, all its `positions` rows of
    the predictor from row `position` on, and its cells, in packed order, from `cell` on.
    """

    frame: HostArray
    frames: HostArray
    position: HostArray
    positions: HostArray
    cell: HostArray
    slack: HostArray
