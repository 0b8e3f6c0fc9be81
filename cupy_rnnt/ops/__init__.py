"""The array operations the engine is written in: their contracts, and the choice of a device.

The engine knows no device. It calls the operations below, which NumPy implements in
:mod:`cupy_rnnt.ops.numpy` and CuPy in :mod:`cupy_rnnt.ops.cuda`. Arrays with an entry for each cell
are on the device, and so are costs; lengths, and all that follows from lengths alone, are on the
host. Shapes use ``n`` for the rows of a tile (cells), ``V`` for the vocabulary, ``H`` for the
hidden size; "compute" is the dtype of the arithmetic (float32, or float64 for float64 input).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from ..topology import Topology
from ..transducer import Row
from .lattices import BestLattice, BoundedLattice, Lattice, MakeLattice
from .types import (
    Coordinates,
    DeviceArray,
    Forms,
    HiddenRows,
    HostArray,
    InputSums,
    JointInputs,
    Layout,
    Logistic,
    LogitRows,
    OutputSums,
    ReferenceRows,
    Rounding,
    RowPosteriors,
    Samples,
    Shape,
    Sizes,
    TangentRows,
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
        sums over its tiles come out the same in every run. Without it, a tile goes to the next
        worker that is free. The calling thread calls `report` with each tile that worker 0 has
        done.
        """


class Operations(Protocol):
    """What a device must implement."""

    xp: ModuleType
    """NumPy, or a module with the functions of NumPy for arrays on the device."""
    sizes: Sizes
    slow_denormals: bool
    """Whether arithmetic is slower on denormal numbers than on others."""

    fuses: bool
    """Whether operations keep what lies between hidden inputs and results in registers: `pre` and
    other working memory of rows of hidden values are not used."""

    def device_of(self, array: DeviceArray) -> AbstractContextManager[Any]:
        """A context in which the device of the array is the current one."""

    def asarray(self, array: HostArray) -> DeviceArray:
        """Bring an array of the host to the device."""

    def host(self, *arrays: DeviceArray) -> list[HostArray]:
        """Bring arrays to the host, which waits for the device once for all of them."""

    def indices(self, mask: DeviceArray, count: int, first: int = 0) -> DeviceArray:
        """``first`` plus the places where a mask is true, ascending, int64; `count` of them are."""

    def tables(
        self, row: Row, frames: HostArray, positions: HostArray, labels: HostArray
    ) -> tuple[Layout, Samples]:
        """What operations read of a call: a row of its logits, and the samples of its batch, of
        which T and S, (B,), and labels, (B, max(S)), are int64."""

    def coordinates(self, samples: Samples, packed: DeviceArray) -> Coordinates:
        """Where cells are, given their packed indices, if these are all samples of the batch."""

    def places(self, numbers: DeviceArray, values: DeviceArray) -> DeviceArray:
        """``numpy.searchsorted(numbers, values)`` of int64."""

    def found_first(
        self, numbers: DeviceArray, values: DeviceArray
    ) -> tuple[DeviceArray, DeviceArray, int]:
        """The `values` that are among ascending `numbers` in front of those that are not, each in
        their order; their places among the numbers, (n,); and how many are among them."""

    def block_rows(self, rows: int, width: int) -> int:
        """How many rows of a tile of logits to work on at once."""

    def scratch_rows(self, rows: int, width: int) -> int:
        """How many rows the `scratch` of a tile of logits must have."""

    def bias_rows(self, rows: int) -> int:
        """How many rows the sums of a bias must have if tiles have so many."""

    def threads(self) -> int:
        """How many workers the device can use at once."""

    def start_workers(self, count: int) -> Workers: ...

    def empty(self, shape: Shape, dtype: DTypeLike) -> DeviceArray: ...

    def empties(self, *shapes: tuple[Shape, np.dtype]) -> Sequence[DeviceArray]:
        """Arrays as :meth:`empty` makes them, maybe in one block of memory, where an array takes up
        to 256 bytes more."""

    def result(self, shape: Shape, dtype: DTypeLike) -> DeviceArray:
        """An array to return, whose elements may be anything yet."""

    def zeros(self, shape: Shape, dtype: DTypeLike) -> DeviceArray: ...

    @property
    def exact_lattice(self) -> MakeLattice[Lattice]: ...

    @property
    def bounded_lattice(self) -> MakeLattice[BoundedLattice]: ...

    @property
    def best_lattice(self) -> MakeLattice[BestLattice]:
        """It takes no more memory than the lattice of the same kind, exact or bounded, with
        `gradient`, which does not matter here."""

    def workspace_bytes(self) -> int:
        """That a call may allocate beyond its arguments and results, by default."""

    def lattice_nbytes(
        self,
        topology: Topology,
        diagonals: int,
        width: int,
        cells: int,
        gradient: bool,
        bounded: bool,
    ) -> int:
        """Bytes that a lattice takes while it is solved: of so many diagonals, and of samples of so
        many columns and cells in all."""

    def factor_dtype(self, dtype: np.dtype) -> np.dtype | None:
        """For inputs of a dtype, the narrower dtype in which the device multiplies matrices faster,
        with sums in the compute dtype; None if it has none."""

    def splits(self, dtype: np.dtype) -> bool:
        """Whether :meth:`matmul` may form three products of narrower factors for one of factors of
        a dtype, float32: each term is off by 3 * 2**-22 of its magnitude at most."""

    def product_bytes(self, dtype: np.dtype, rows: int, depth: int, columns: int) -> int:
        """Bytes that :meth:`matmul` of (rows, depth) and (depth, columns) allocates meanwhile, for
        inputs of a dtype."""

    def gather(self, source: DeviceArray, index: tuple[DeviceArray, ...], out: DeviceArray) -> None:
        """``out[...] = source[index]``, (n, width), cast to the dtype of `out`."""

    def scatter(self, tile: DeviceArray, index: tuple[DeviceArray, ...], out: DeviceArray) -> None:
        """``out[index] = tile``, cast to the dtype of `out`."""

    def hidden(self, rows: HiddenRows) -> None:
        """Write ``rows.out``."""

    def means(self, inputs: JointInputs, samples: Samples) -> tuple[DeviceArray, DeviceArray]:
        """Of the encoder and predictor rows of each sample, the mean (2, n, H) and magnitudes (2,
        n, any) of which the largest is that of the sample, both compute."""

    def row_sums(self, weight: DeviceArray) -> DeviceArray:
        """``abs(weight).sum(axis=1)``, compute (V,)"""

    def slack(
        self,
        samples: Samples,
        magnitudes: DeviceArray,
        row_sums: DeviceArray,
        bias: DeviceArray | None,
        layout: Layout,
        form: tuple[str, Logistic],
        rounding: Rounding,
    ) -> tuple[DeviceArray, DeviceArray]:
        """For each sample, what is added to its bounds, float64 (n,), and whether it takes the
        logistic form, bool (n,).

        Let e and p be the largest magnitudes of encoder and predictor outputs, ``hidden`` 1 for a
        logistic activation and e + p for others, ``weight`` the largest row sum, ``size = weight *
        hidden``, and ``bias`` the largest magnitude of a finite bias among the scores that are no
        labels, the labels of the sample, and all entries that are not below ``largest bias - 2 size
        - masked``. Then the slack is ``per_size * size + per_bias * bias + fixed + 2 * weight *
        max(per_hidden * hidden, least)``. The logistic form fits if its exponents, ``rate * max(e,
        p)``, are at most `largest_exponent`.
        """

    def reference_hidden(
        self,
        rows: ReferenceRows,
        inputs: JointInputs,
        means: DeviceArray,
        activation: str,
        pre: DeviceArray,
        out: DeviceArray,
    ) -> None:
        """``out = activation(pre)``, (n, H), of a dtype that :meth:`matmul` takes. A row of `pre`
        is that of a frame plus the mean of the positions of its sample, or that of a position plus
        the mean of the frames. `pre`, compute (n, H), is working memory."""

    def label_softmax(
        self, rows: LogitRows, dtype: np.dtype
    ) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        """A softmax q of logits + bias over the labels, 0 in other columns, and what a tangent
        takes from it: ``q . bias + entropy(q)``, float64 (n,), where a q of 0 counts 0.

        The first result is ``q * sums``, rounded to a dtype that :meth:`matmul` takes, in the
        memory of the logits. The last result is these sums, float64 (n,): as it was rounded, q adds
        up to 1.
        """

    def write_tangents(
        self,
        rows: ReferenceRows,
        inputs: JointInputs,
        layout: Layout,
        forms: Forms,
        tangents: tuple[DeviceArray, DeviceArray, DeviceArray],
        out: TangentRows,
    ) -> None:
        """Write the rows of `out`. `tangents` are ``slopes * sums``, compute (n, H), the constants
        and the sums, float64 (n,). At a last position the constant of the label is -inf. In the
        logistic form vectors become ``scale * vectors``, with ``shift * sum(vectors)`` added to
        constants."""

    def upper_bounds(
        self,
        rows: ReferenceRows,
        frames: TangentRows,
        positions: TangentRows,
        layout: Layout,
        forms: Forms,
        base: int,
        scratch: DeviceArray,
        out: DeviceArray,
    ) -> None:
        """Upper bounds of the scores of all cells of some frames, float64, to ``out[:, packed -
        base]``; `scratch`, compute (any, H), is working memory.

        ``min(0, z_k - sum(lower_g for charged heads g) + slack * max(1, charged heads)) - shift_k``
        with the logit z_k of the score. A bound that NaN goes into is ``0 - shift_k``. The lower
        bound of the log-sum-exp of a head is exact in all its columns but the labels; for the
        labels it takes ``max(both tangents, logit of the next label)``.
        """

    def row_scores(self, rows: LogitRows) -> tuple[DeviceArray, DeviceArray]:
        """Log-sum-exps (G, n) of the heads of each row of logits + bias, and its scores (K, n).

        Logits are not changed. Results are float64, so that a large common offset of a row costs no
        accuracy.
        """

    def scaled_weights(
        self, weights: DeviceArray, largest: float, dtype: np.dtype
    ) -> tuple[DeviceArray, DeviceArray | None]:
        """Weights, float64 (B,), of the gradients of inputs of a dtype, and the power of two that
        they hold, float64 (1,), or None if it is 1.

        No element of the gradient of logits is above `largest` times its weight. The power of two
        takes all of them to at most 2**14, and some above 2**13, where the gradient of logits may
        be float16, in which it must neither overflow nor vanish.
        """

    def logits_grad(
        self,
        rows: LogitRows,
        posteriors: RowPosteriors,
        out: DeviceArray | None = None,
        stored: DeviceArray | None = None,
        sums: OutputSums | None = None,
    ) -> None:
        """Overwrite logits by d cost / d logits, or write it to `out`, compute or of
        :meth:`factor_dtype`. With `stored`, int64 (n,), the logits of the rows are
        ``logits[stored]``, which are left as they are.

        If `sums` are not None, a device may do a part of :meth:`add_output_grad` here.

        ``sum(occupancies[k] for scores k charged g) * softmax_g`` under head g, 0 under no head
        (such logits are not read); then ``occupancies[k]`` is subtracted in the column of score k.

        Softmax values below 3e-20 (float32) become 0 exactly: they are far below the rounding error
        of the others, and their products would be denormal numbers, which slow a GEMM tenfold.
        """

    def matmul(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
        """``out = a @ b``, compute. Both factors are of one dtype: compute or
        :meth:`factor_dtype`."""

    def add_output_grad(self, d_logits: DeviceArray, hidden: DeviceArray, sums: OutputSums) -> None:
        """``weight += d_logits.T @ hidden`` and ``bias[0] += d_logits.sum(axis=0)``, but for what
        :meth:`logits_grad` has added; the dtypes of the factors are as for :meth:`matmul`."""

    def write_output_grads(
        self,
        weight_sums: DeviceArray,
        bias_sums: DeviceArray,
        scale: DeviceArray | None,
        weight: DeviceArray,
        bias: DeviceArray | None,
    ) -> None:
        """Write sums, (V, H) and (`bias_rows`, V), the latter added up, divided by `scale`, to the
        gradients of weight and bias, cast to their dtype. Rows of the latter need not follow each
        other at once."""

    def add_input_grad(
        self, d_hidden: DeviceArray, rows: HiddenRows, samples: Samples, sums: InputSums
    ) -> None:
        """Add the gradient of hidden vectors, (n, H) compute, to those of the inputs of a group of
        samples, in a fixed order. `rows` are as :meth:`hidden` has left them, their cells in packed
        order. The operation may overwrite `d_hidden` and `rows`."""

    def write_input_grads(
        self,
        sums: InputSums,
        samples: Samples,
        scale: DeviceArray | None,
        encoder: DeviceArray,
        predictor: DeviceArray,
    ) -> None:
        """Write the sums of a group, divided by `scale`, to its samples in gradients (B, T, H) and
        (B, U + 1, H), cast to the dtype of these gradients; and 0 to their padding."""


def operations_for(array: DeviceArray) -> Operations:
    """The operations of the device an array lives on."""
    if is_on_cuda(array):
        from . import cuda

        return cuda
    from . import numpy as cpu

    return cpu


def is_on_cuda(array: DeviceArray) -> bool:
    """Whether the array is CuPy's. CuPy may be missing, or an empty namespace package."""
    return isinstance(array, getattr(sys.modules.get("cupy"), "ndarray", ()))


def on_host(*arrays: DeviceArray) -> list[HostArray]:
    """Bring arrays to the host, wherever they are; the host waits for a device once at most."""
    on_device = [array for array in arrays if is_on_cuda(array)]
    copies = iter(operations_for(on_device[0]).host(*on_device) if on_device else ())
    return [next(copies) if is_on_cuda(array) else array for array in arrays]
