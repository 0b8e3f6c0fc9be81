"""The arguments and results of operations: plain types, on no device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

HostArray: TypeAlias = np.ndarray
"""An array of NumPy."""
DeviceArray: TypeAlias = Any
"""An array of NumPy or CuPy, on the device whose operations work on it."""
ArrayLike: TypeAlias = Any
"""A caller's array, of any library that speaks DLPack, or nested lists."""
Shape: TypeAlias = tuple[int, ...]
Tile: TypeAlias = tuple[int, int]
"""Entries ``start`` to ``stop - 1`` of a list of cells."""
Layout: TypeAlias = Any
"""A row as the operations of a device read it: the first result of `tables`."""
Samples: TypeAlias = Any
"""Some samples of a batch as the operations of a device read them. The second result of `tables` is
all of them. ``samples.run(start, stop)`` is number `start` to ``stop - 1`` of some samples, and
``samples.chosen(numbers)`` is others of them, whose numbers ascend. ``samples.rows`` is how many
frames and positions they have."""

FLOATING_DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The dtypes of logits and of the inputs of a joint network, by name."""


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype the arithmetic runs in: float64 for float64, float32 for everything narrower."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


class JointInputs(NamedTuple):
    """The arguments of a joint network and its output layer."""

    encoder_out: DeviceArray  # (B, T, H)
    predictor_out: DeviceArray  # (B, U + 1, H)
    weight: DeviceArray  # (V, H)
    bias: DeviceArray | None  # (V,)


class Coordinates(NamedTuple):
    """Where cells of a batch are, (n,) each."""

    sample: DeviceArray
    frame: DeviceArray
    position: DeviceArray
    label: DeviceArray  # the next label to emit; 0 at the last position
    has_label: DeviceArray


class Cells:
    """A list of cells of a batch, or a part of one.

    Kernels find the coordinates of a cell themselves. Other operations read them here, where they
    are computed when the first of them is read.

    Parameters
    ----------
    packed : int64, shape (n,)
        The indices of the cells in packed order.
    samples : Samples
        Those of the batch.
    locate : callable
        The operation `coordinates`.
    whole : Cells, optional
        The list that the cells are a part of; by default they are all of it.
    start : int
        Where the part begins in the list.
    """

    def __init__(
        self,
        packed: DeviceArray,
        samples: Samples,
        locate: Callable[[Samples, DeviceArray], Coordinates],
        whole: Cells | None = None,
        start: int = 0,
    ) -> None:
        self.packed, self.samples, self._locate = packed, samples, locate
        self._whole, self.start = whole, start
        self.known: dict[str, Any] = {}
        """What operations have found out about the list, by their names."""
        self._coordinates: Coordinates | None = None

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def whole(self) -> Cells:
        return self if self._whole is None else self._whole

    def part(self, rows: slice) -> Cells:
        """The cells at a slice, whose start is given."""
        of_list = self.whole, self.start + rows.start
        return Cells(self.packed[rows], self.samples, self._locate, *of_list)

    def _located(self) -> Coordinates:
        if self._coordinates is None:
            self._coordinates = self._locate(self.samples, self.packed)
        return self._coordinates

    @property
    def sample(self) -> DeviceArray:
        return self._located().sample

    @property
    def frame(self) -> DeviceArray:
        return self._located().frame

    @property
    def position(self) -> DeviceArray:
        return self._located().position

    @property
    def label(self) -> DeviceArray:
        return self._located().label

    @property
    def has_label(self) -> DeviceArray:
        return self._located().has_label


class LogitRows(NamedTuple):
    """A tile of rows of logits, without the bias."""

    logits: DeviceArray  # compute, (n, V)
    bias: DeviceArray | None  # compute, (V,)
    layout: Layout
    cells: Cells | None  # None if no score is computed
    scratch: DeviceArray  # compute, (`scratch_rows`, V): working memory


class RowPosteriors(NamedTuple):
    """The further arguments of the gradient of a tile of rows of logits."""

    lse: DeviceArray  # float64, (G, n)
    occupancies: DeviceArray  # compute, (K, n)
    weights: DeviceArray  # float64, (B,), factors of the rows of a sample, applied behind the clamp
    clamp: float  # bounds elements to [-clamp, clamp], if it is above 0

    def part(self, rows: slice) -> RowPosteriors:
        """The posteriors of a slice of the rows."""
        lse, occupancies, weights, clamp = self
        return RowPosteriors(lse[:, rows], occupancies[:, rows], weights, clamp)


class Dropout(NamedTuple):
    """Which hidden values are 0, and the factor of the others.

    Each unit of each cell of a batch has a random number of 32 bits. That of unit j is word ``j %
    4`` of Philox4x32 with 7 rounds, whose counter is ``(j // 4, position, frame, sample)`` and
    whose key is `seed`, the low half first. A unit is dropped if its number is below the threshold.
    """

    threshold: int
    seed: int
    scale: float

    @staticmethod
    def of(probability: float, seed: int) -> Dropout | None:
        """With which a unit is dropped; None if that is never."""
        threshold = min(round(probability * 2**32), 2**32 - 1)
        return Dropout(threshold, seed, 1 / (1 - probability)) if threshold else None


class HiddenRows(NamedTuple):
    """A tile of hidden vectors, (n, H): ``out = activation(pre)``, with ``pre = encoder_out[sample,
    frame] + predictor_out[sample, position]``, after dropout.

    If the inputs have a factor dtype, `out` has it, and is (n, 2 H): hidden vectors rounded, and
    behind them the rounding errors.
    """

    inputs: JointInputs
    cells: Cells
    activation: str
    pre: DeviceArray  # compute, (n, H): working memory, left as it is until the gradient
    out: DeviceArray
    dropout: Dropout | None = None


class InputSums(NamedTuple):
    """The gradients of the hidden inputs of a group so far, sample by sample."""

    frames: DeviceArray  # compute, (frames of the group, H)
    positions: DeviceArray  # compute, (positions of the group, H)


class OutputSums(NamedTuple):
    """The gradient of an output layer so far, and memory for the operation that adds to it."""

    weight: DeviceArray  # compute, (V, H)
    bias: DeviceArray  # compute, (`bias_rows`, V): its rows add up to the gradient; or no row
    slab: DeviceArray  # compute, (any, H): working memory


class ReferenceRows(NamedTuple):
    """Frames (`side` 0) or positions (1) of some samples, from number `start` to ``stop - 1``.

    They are numbered sample by sample.
    """

    samples: Samples
    side: int
    start: int
    stop: int


class Logistic(NamedTuple):
    """An activation as ``scale / (1 + exp(rate * x)) + shift``.

    With ``x = e + p`` this is ``scale * q / (q + exp(rate * e)) + shift``, ``q = exp(-rate * p)``:
    only encoder and predictor outputs need exponentials, and no cell does.
    """

    rate: float  # 0: not logistic
    scale: float
    shift: float


class Rounding(NamedTuple):
    """The slack of a sample from how large its inputs are, see `slack` in the contract."""

    per_size: float
    per_bias: float
    fixed: float
    per_hidden: float  # largest error of an element of a hidden vector, relative and absolute
    least: float
    masked: float  # an entry so many nats below another has no share in a softmax
    largest_exponent: float


class Forms(NamedTuple):
    """In which form the hidden vectors of each sample are computed, and how exactly."""

    activation: str
    logistic: Logistic
    fits: DeviceArray  # bool, (n,): whether a sample takes the logistic form
    slack: DeviceArray  # float64, (n,)
    dropout: Dropout | None = None  # of samples that do not take the logistic form


class TangentRows(NamedTuple):
    """Frames or positions, and linear functions of the hidden vector there.

    ``vectors[r, i] . h + constants[r, i]`` is, for the last i, a tangent. A position has more: the
    logit of the i-th score that is no label, then the logit of the next label.

    In a sample that takes the logistic form, `inputs` are ``exp(rate * encoder)`` or ``exp(-rate *
    predictor)``, and h is ``predictor[u] / (predictor[u] + encoder[t])`` of these. Otherwise they
    are the rows of encoder or predictor, and h is ``activation(encoder[t] + predictor[u])``.
    """

    inputs: DeviceArray  # compute, (n, H)
    vectors: DeviceArray  # compute, (n, i, H)
    constants: DeviceArray  # float64, (n, i)


class PathMass(NamedTuple):
    """What is known of the paths of n samples when the set C is exact: logarithms of the
    probability of all paths inside C, of an upper bound of that of the paths that leave C, and of
    an upper bound of that of all paths; float64, (n,) each, on the host."""

    inside: HostArray
    leaving: HostArray
    upper: HostArray


class BestPaths(NamedTuple):
    """What is known of the likeliest paths of n samples when the set C is exact: their
    log-probabilities inside C, upper bounds of those of all paths, and whether the likeliest path
    of all is proven to be inside C; (n,) each, on the host."""

    inside: HostArray
    upper: HostArray
    proven: HostArray


class Sizes(NamedTuple):
    """The sizes of the work that a device is given at once."""

    tile_elements: int
    """A tile has ``max(tile_elements // V, full_rows)`` rows, but `most_rows` at most."""
    full_rows: int
    most_rows: int
    tile_share: float
    """The share of the workspace for tiles above the least size; groups take the rest."""
    small_elements: int
    """Tiles below ``max(small_elements // V, small_rows)`` rows are not worth another worker."""
    small_rows: int
    group_cells: int
    """A group is full when it has this many cells a worker and diagonals of `group_width` cells."""
    group_width: int
    columns: int
    """The rows of logits of a joint network have a multiple of so many columns. Products are slow
    where rows do not begin at multiples of 16 bytes."""
    slab_elements: int
    """The elements of a weight gradient that one product is added to."""
    stored_bytes: int
    """The most bytes of logits that pass 1 stores for pass 2."""
    least_stored: int
    """Rows of logits: fewer, if they are not those of all cells, are not worth storing."""
    group_share: float
    """The share of the workspace without tiles that a group of several samples takes at most. The
    rest stores logits."""
    list_bytes: int
    """What a cell takes up at most in lists of cells, and while these are made."""
    cuts_groups: bool
    """Whether fewer samples take less time to solve, so that a group may be cut into parts whose
    logits can all be stored."""
