"""The array operations the engine is written in: their contracts, and the choice of a device.

The engine knows no device. It calls the operations below, which NumPy implements in
:mod:`cupy_rnnt.ops.cpu`. An implementation for another device is one more module with the same
names. Shapes use ``n`` for the rows of a tile (cells), ``V`` for the vocabulary, ``H`` for the
hidden size; "compute" is the dtype of the arithmetic (float32, or float64 for float64 input).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ..batch import Cells

Shape = tuple[int, ...]
Tile = tuple[int, int]


class Workers(Protocol):
    """Runs the tiles of a pass."""

    def run(
        self, function: Callable[[int, Tile], None], tiles: Sequence[Tile], fixed: bool = False
    ) -> None:
        """Call ``function(worker, tile)`` for every tile; return when all are done.

        With `fixed`, worker ``w`` of ``n`` runs tiles ``w, w + n, ...`` in this order, so that
        sums over its tiles come out the same in every run. Otherwise tiles go to whoever is free.
        """


class Lattice(Protocol):
    """The lattices of a group of samples, in float64."""

    def write(self, cells: Cells, blank: np.ndarray, label: np.ndarray) -> None:
        """Store both transition log-probs of cells; ``cells.sample`` counts within the group."""

    def solve(self) -> np.ndarray:
        """Costs of the samples, float64, in nats (section 3.1 of Graves 2012).

        If the lattice was made with ``gradient=True``, the occupancies take the place of the
        log-probs; those of a sample whose cost is not finite are 0. A sample with a NaN or +inf
        log-prob costs NaN.
        """

    def occupancies(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """Blank and label occupancies of a sample, float64 (T, S)."""


class BoundedLattice(Lattice, Protocol):
    """Lattices that hold exact log-probs in the cells that were written, the set C, and upper
    bounds of log-probs in others; in the rest nothing, which is a probability of 0.

    :meth:`solve` and :meth:`occupancies` are those of the paths inside C.
    """

    def bound(self, sample: int, blank: np.ndarray, label: np.ndarray) -> None:
        """Store bounds of all log-probs of a sample, float64 (T, S)."""

    def certify(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of the paths inside C, and a bound of that of the others, (n,)."""

    def likely(self, thresholds: np.ndarray) -> np.ndarray:
        """Cells outside C through which paths of at least a log-probability may lead, by bounds of
        alpha and beta, given a threshold (n,) for each sample: bool (cells,), in packed order.

        :meth:`certify` must have gone before.
        """


class Operations(Protocol):
    """What a device must implement."""

    def threads(self) -> int:
        """How many workers the device can use at once."""

    def workers(self, count: int) -> AbstractContextManager[Workers]: ...

    def empty(self, shape: Shape, dtype: Any) -> Any: ...

    def zeros(self, shape: Shape, dtype: Any) -> Any: ...

    def lattice(self, frames: np.ndarray, columns: np.ndarray, gradient: bool) -> Lattice: ...

    def bounded_lattice(
        self, frames: np.ndarray, columns: np.ndarray, gradient: bool
    ) -> BoundedLattice: ...

    def lattice_nbytes(self, diagonals: int, width: int, gradient: bool, bounded: bool) -> int:
        """Bytes a lattice takes while it is solved."""

    def gather(self, source: Any, index: tuple[np.ndarray, ...], out: Any) -> None:
        """``out[...] = source[index]``, (n, width), cast to the dtype of `out`."""

    def scatter(self, tile: Any, index: tuple[np.ndarray, ...], out: Any) -> None:
        """``out[index] = tile``, cast to the dtype of `out`."""

    def hidden(
        self,
        encoder: Any,
        predictor: Any,
        cells: Cells,
        activation: str,
        pre: Any,
        out: Any,
    ) -> None:
        """``pre = encoder[sample, frame] + predictor[sample, position]``, ``out = act(pre)``, both
        (n, H) compute."""

    def activate(self, activation: str, pre: Any, out: Any) -> None:
        """``out = act(pre)``; `out` may be `pre`."""

    def label_softmax(self, logits: Any, bias: Any | None, blank: int, scratch: Any) -> np.ndarray:
        """Overwrite `logits` (n, V) compute by the softmax of logits + bias over the labels, 0 at
        the blank; return its log-sum-exp, float64 (n,)."""

    def row_dots(self, a: Any, b: Any) -> np.ndarray:
        """``(a * b).sum(axis=1)``, float64 (n,)."""

    def largest_row_sum(self, weight: Any) -> float:
        """``abs(weight).sum(axis=1).max()``"""

    def bounds(
        self,
        encoder: Any,
        predictor: Any,
        activation: str | None,
        slopes: Any,
        constants: np.ndarray,
        vectors: Any,
        vector_constants: np.ndarray,
        slack: float,
        scratch: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Upper bounds of the log-probs of blank and label in some frames of a sample, float64
        (n, S); never above 0, and 0, which says nothing, where a number that goes into them is NaN.

        With a hidden vector ``h = act(encoder[t] + predictor[u])``, or ``predictor[u] /
        (predictor[u] + encoder[t])`` if there is no activation, the logits are ``vectors[u, 0] . h
        + vector_constants[u, 0]`` of the blank and the same with 1 of the label, and two bounds of
        the log-sum-exp over the labels are that with 2 and ``slopes[t] . h + constants[t]``.
        `slack` is added to the bounds of both log-probs.
        """

    def row_log_probs(
        self,
        logits: Any,
        bias: Any | None,
        blank: int,
        labels: np.ndarray,
        scratch: Any,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-sum-exp of each row of logits + bias, and the log-probs of blank and label.

        `logits` (n, V) compute is left as it is. Results are float64 (n,); the log-sum-exp is kept
        in float64 so that a large common offset of a row costs no accuracy.
        """

    def logits_grad(
        self,
        logits: Any,
        bias: Any | None,
        lse: np.ndarray,
        blank_occupancy: np.ndarray,
        label_occupancy: np.ndarray,
        blank: int,
        labels: np.ndarray,
        clamp: float,
        weights: np.ndarray | None,
        scratch: Any,
    ) -> None:
        """Overwrite `logits` (n, V) by d cost / d logits (design: occupancy times softmax, less
        the occupancies at blank and label).

        Elements are bounded to ``[-clamp, clamp]`` if ``clamp > 0``, then multiplied by `weights`
        (n,). Softmax values below 3e-20 (float32) become 0 exactly: they are far under rounding of
        the others, and their products would be denormal numbers, which slow a GEMM tenfold.
        """

    def pick_log_probs(
        self, log_probs: Any, blank: int, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:meth:`row_log_probs` of rows that are normalised already: their log-sum-exp is 0."""

    def log_probs_grad(
        self,
        log_probs: Any,
        blank_occupancy: np.ndarray,
        label_occupancy: np.ndarray,
        blank: int,
        labels: np.ndarray,
        clamp: float,
        weights: np.ndarray | None,
    ) -> None:
        """Overwrite `log_probs` (n, V) by d cost / d log_probs: the occupancies at blank and label,
        negative, and 0 elsewhere; bounded and weighted as by :meth:`logits_grad`."""

    def matmul(self, a: Any, b: Any, out: Any) -> None:
        """``out = a @ b``"""

    def add_weight_grad(self, d_logits: Any, hidden: Any, out: Any, scratch: Any) -> None:
        """``out += d_logits.T @ hidden``, (V, H) compute, through slabs of `scratch`."""

    def add_column_sum(self, d_logits: Any, out: Any) -> None:
        """``out += d_logits.sum(axis=0)``, (V,) compute."""

    def hidden_grad(self, d_hidden: Any, hidden: Any, pre: Any, activation: str) -> None:
        """Multiply `d_hidden` by the derivative of the activation. `pre` is overwritten."""

    def add_rows(self, tile: Any, rows: np.ndarray, out: Any, scratch: Any) -> None:
        """``out[rows[i]] += tile[i]`` for every i, in a fixed order; rows may repeat."""


def operations_for(array: Any) -> Operations:
    """The operations of the device an array lives on."""
    from . import cpu

    return cpu
