"""The array operations the engine is written in: their contracts, and the choice of a device.

The engine knows no device. It calls the operations below, which NumPy implements in
:mod:`cupy_rnnt.ops.numpy` and CuPy in :mod:`cupy_rnnt.ops.cuda`. What has an entry for each cell is
on the device, and so are costs; lengths are on the host, and all that follows from them alone.
Shapes use ``n`` for the rows of a tile (cells), ``V`` for the vocabulary, ``H`` for the
hidden size; "compute" is the dtype of the arithmetic (float32, or float64 for float64 input).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ..transducer import Row, Topology, Transducer
from .types import (
    Cells,
    DeviceArray,
    FrameTangents,
    HostArray,
    JointInputs,
    LogitRows,
    OutputSums,
    PositionTangents,
    RowPosteriors,
    Runs,
    Shape,
    Sizes,
    Tile,
)


class Workers(Protocol):
    """Runs the tiles of a pass."""

    def run(
        self,
        function: Callable[[int, Tile], None],
        tiles: Sequence[Tile],
        fixed: bool = False,
        report: Callable[[Tile], None] | None = None,
    ) -> None:
        """Call ``function(worker, tile)`` for every tile; return when all are done.

        With `fixed`, worker ``w`` of ``n`` runs tiles ``w, w + n, ...`` in this order, so that
        sums over its tiles come out the same in every run. Otherwise tiles go to whoever is free.
        The calling thread calls `report` with the tiles that worker 0 has done.
        """


class Lattice(Protocol):
    """The lattices of a group of samples, in float64, for the K scores of a topology."""

    def write(self, cells: Cells, scores: DeviceArray) -> None:
        """Store the scores (K, n) of cells; ``cells.sample`` counts within the group. That of a
        label is not read where there is none. What a delay penalty says is added to it."""

    def solve(self) -> Any:
        """Costs of the samples, float64, in nats (section 3.1 of Graves 2012). A sample with a NaN
        or +inf score costs NaN."""

    def keep(self, least: DeviceArray) -> Any:
        """Cells that paths with at least a posterior probability, (n,) by samples, lead through:
        their numbers in packed order, ascending, int64. Also cells that these paths read beside
        their own; then half of that probability does.

        :meth:`solve` must have gone before, of a lattice that was made with ``gradient=True``.
        """

    def occupancies(self, cells: DeviceArray, of_labels: float, dtype: np.dtype) -> Any:
        """Occupancies of the scores (K, n) of some cells, given by their numbers: the posterior
        probability of all arcs that a score is part of, those that emit a label taken `of_labels`
        times. After :meth:`keep`, of cells of samples whose cost is finite."""


class BoundedLattice(Lattice, Protocol):
    """Lattices that hold exact scores in the cells that were written, the set C, and upper bounds
    of scores in others; in the rest nothing, which is a probability of 0.

    :meth:`solve` and what follows are those of the paths inside C. Where an arc reads a second
    cell, both must be in C.
    """

    def bound(self, bounds: DeviceArray) -> None:
        """Store bounds of the scores, float64 (K, cells), in packed order; -inf where there are
        none."""

    def certify(self) -> tuple[DeviceArray, DeviceArray]:
        """Log-probability of the paths inside C, and a bound of that of the others, (n,)."""

    def candidates(self, thresholds: DeviceArray) -> Any:
        """Cells outside C through which paths of at least a log-probability may lead, by bounds of
        alpha and beta, given a threshold (n,) for each sample, and cells that these paths read
        beside their own: bool (cells,), in packed order.

        :meth:`certify` must have gone before.
        """


class Operations(Protocol):
    """What a device must implement."""

    xp: Any
    """NumPy, or what has its functions for arrays on the device."""
    sizes: Sizes
    slow_denormals: bool
    """Whether arithmetic is slower on numbers next to 0 than on others."""

    def device_of(self, array: DeviceArray) -> AbstractContextManager[Any]:
        """Makes the device of an array the current one."""

    def asarray(self, array: HostArray) -> Any:
        """An array of the host on the device."""

    def host(self, *arrays: Any) -> list[HostArray]:
        """Arrays of the device on the host, which waits for them: once, however many there are."""

    def indices(self, mask: DeviceArray, count: int | None = None) -> Any:
        """Where a mask is true, ascending, int64. The host has to wait unless it knows how many
        these are."""

    def repeat(self, values: DeviceArray, counts: HostArray) -> Any:
        """``values[i]`` as often as ``counts[i]`` says, one after the other."""

    def batch_table(self, offsets: HostArray, positions: HostArray, labels: HostArray) -> Any:
        """What :meth:`coordinates` needs of a batch: packed indices (B + 1,) of each sample's first
        cell, S of each sample (B,), and labels (B, any), all int64."""

    def coordinates(self, table: Any, packed: DeviceArray) -> Cells:
        """Where cells are, given their packed indices."""

    def block_rows(self, rows: int, width: int) -> int:
        """How many rows of a tile of logits to work on at once."""

    def scratch_rows(self, rows: int, width: int) -> int:
        """How many rows `scratch` must have where an operation on a tile of logits asks for it."""

    def threads(self) -> int:
        """How many workers the device can use at once."""

    def start_workers(self, count: int) -> Workers: ...

    def empty(self, shape: Shape, dtype: Any) -> Any: ...

    def zeros(self, shape: Shape, dtype: Any) -> Any: ...

    def device_row(self, row: Row) -> Any:
        """What operations on rows of logits take in the place of a row."""

    def exact_lattice(
        self,
        transducer: Transducer,
        frames: HostArray,
        positions: HostArray,
        gradient: bool,
        delay_penalty: float,
    ) -> Lattice: ...

    def bounded_lattice(
        self,
        transducer: Transducer,
        frames: HostArray,
        positions: HostArray,
        gradient: bool,
        delay_penalty: float,
    ) -> BoundedLattice: ...

    def lattice_nbytes(
        self, topology: Topology, diagonals: int, width: int, gradient: bool, bounded: bool
    ) -> int:
        """Bytes a lattice takes while it is solved."""

    def factor_dtype(self, dtype: np.dtype) -> np.dtype | None:
        """The dtype of factors that the device multiplies faster than those of the compute dtype,
        with sums of the latter; None if there is none for inputs of this dtype."""

    def gather(self, source: DeviceArray, index: tuple[DeviceArray, ...], out: DeviceArray) -> None:
        """``out[...] = source[index]``, (n, width), cast to the dtype of `out`."""

    def scatter(self, tile: DeviceArray, index: tuple[DeviceArray, ...], out: DeviceArray) -> None:
        """``out[index] = tile``, cast to the dtype of `out`."""

    def assign(self, values: DeviceArray, out: DeviceArray) -> None:
        """``out[...] = values``, cast to the dtype of `out`."""

    def hidden(
        self,
        inputs: JointInputs,
        cells: Cells,
        activation: str,
        pre: DeviceArray,
        out: DeviceArray,
    ) -> None:
        """``pre = encoder_out[sample, frame] + predictor_out[sample, position]``, (n, H) compute,
        and ``out = act(pre)``, the same; or, where there is a factor dtype, that as the sum of two
        vectors of it, one behind the other, (n, 2 H), which differ by rounding in size."""

    def activate(self, activation: str, pre: DeviceArray, out: DeviceArray) -> None:
        """``out = act(pre)``; `out` may be `pre`."""

    def label_softmax(self, rows: LogitRows) -> DeviceArray:
        """Overwrite logits by the softmax of logits + bias over the labels, 0 in other columns;
        return its log-sum-exp, float64 (n,)."""

    def row_dots(self, a: DeviceArray, b: DeviceArray) -> Any:
        """``(a * b).sum(axis=1)``, float64 (n,)."""

    def largest_row_sum(self, weight: DeviceArray) -> Any:
        """``abs(weight).sum(axis=1).max()``"""

    def means(
        self, array: DeviceArray, samples: HostArray, counts: HostArray, out: DeviceArray
    ) -> None:
        """Mean of the first ``counts[i]`` rows of ``array[samples[i]]``, (n, H) compute."""

    def magnitudes(self, array: DeviceArray, counts: HostArray) -> Any:
        """Largest magnitude in the first ``counts[b]`` rows of ``array[b]``, (B,)."""

    def upper_bounds(
        self,
        frames: FrameTangents,
        positions: PositionTangents,
        layout: Any,
        runs: Runs,
        out: DeviceArray,
    ) -> None:
        """Upper bounds of the scores in some frames of some samples, float64 (K, cells); never
        above 0, and 0, which says nothing, where a number that goes into them is NaN, but for the
        shifts of a row.

        The larger of both tangents and of the label's logit bounds the log-sum-exp over the labels
        from below. ``runs.slack`` is added to a score for each head that it is charged.
        """

    def row_scores(self, rows: LogitRows) -> tuple[DeviceArray, DeviceArray]:
        """Log-sum-exps (G, n) of the heads of each row of logits + bias, and its scores (K, n).

        Logits are left as they are. Results are float64; the log-sum-exp is kept in float64 so that
        a large common offset of a row costs no accuracy.
        """

    def logits_grad(
        self, rows: LogitRows, posteriors: RowPosteriors, out: DeviceArray | None = None
    ) -> None:
        """Overwrite logits by d cost / d logits: of each head its softmax times the occupancies
        that are charged it, less the occupancies at the columns of the scores. Where there is a
        factor dtype, it may go to `out`, of that dtype, instead. Logits under no head are not read.

        Softmax values below 3e-20 (float32) become 0 exactly: they are far under rounding of the
        others, and their products would be denormal numbers, which slow a GEMM tenfold.
        """

    def matmul(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
        """``out = a @ b``, compute, with both factors of the same dtype, compute or
        :meth:`factor_dtype`."""

    def add_output_grad(self, d_logits: DeviceArray, hidden: DeviceArray, sums: OutputSums) -> None:
        """``weight += d_logits.T @ hidden`` and ``bias += d_logits.sum(axis=0)``; the factors as
        for :meth:`matmul`."""

    def hidden_grad(
        self, d_hidden: DeviceArray, hidden: DeviceArray, pre: DeviceArray, activation: str
    ) -> None:
        """Multiply `d_hidden` by the derivative of the activation. `pre` is overwritten, `hidden`
        what :meth:`hidden` has written."""

    def add_rows(
        self, tile: DeviceArray, rows: DeviceArray, out: DeviceArray, scratch: DeviceArray
    ) -> None:
        """``out[rows[i]] += tile[i]`` for every i, in a fixed order; rows may repeat."""


def operations_for(array: DeviceArray) -> Operations:
    """The operations of the device an array lives on."""
    if is_on_cuda(array):
        from . import cuda

        return cuda
    from . import numpy as cpu

    return cpu


def is_on_cuda(array: DeviceArray) -> bool:
    """Whether it is an array of CuPy, which need not be installed, or whole."""
    return isinstance(array, getattr(sys.modules.get("cupy"), "ndarray", ()))


def on_host(*arrays: Any) -> list[HostArray]:
    """Arrays on the host, wherever they are, which waits for its device once at most."""
    elsewhere = [i for i, array in enumerate(arrays) if is_on_cuda(array)]
    found = list(arrays)
    if elsewhere:
        ops = operations_for(arrays[elsewhere[0]])
        for i, array in zip(elsewhere, ops.host(*(arrays[i] for i in elsewhere)), strict=True):
            found[i] = array
    return found
