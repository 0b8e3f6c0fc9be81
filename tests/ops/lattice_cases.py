"""Groups of lattices with random scores, on NumPy and on CUDA."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from cupy_rnnt.ops import cuda
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.cuda import best as cuda_best
from cupy_rnnt.ops.cuda import lattice as cuda_lattice
from cupy_rnnt.ops.numpy import best, bounded, lattice
from cupy_rnnt.ops.types import Cells, Coordinates
from cupy_rnnt.topology import LABEL
from cupy_rnnt.transducer import NAMED, Transducer

from ..helpers import samples_of

RAGGED = (5, 5), (4, 5), (1, 1), (1, 9), (9, 1), (7, 2), (12, 3), (3, 40)
"""(T, S) of the samples of a small group."""


LEAST = 1e-300
"""A share that every cell has on a path inside C."""


class Case(NamedTuple):
    """A group of samples. What has an entry for each cell is in packed order."""

    transducer: Transducer
    frames: np.ndarray
    columns: np.ndarray
    cells: Coordinates
    scores: np.ndarray
    bounds: np.ndarray
    """Of the scores, (K, cells) like these."""
    delay_penalty: float = 0.0

    @property
    def starts(self) -> np.ndarray:
        counts = self.frames * self.columns
        return np.cumsum(counts) - counts

    @property
    def label(self) -> int:
        """The number of its score; that behind the last if there is none."""
        return (*self.transducer.topology.scores, LABEL).index(LABEL)

    def beside(self, chosen: np.ndarray) -> np.ndarray:
        """A mask of cells, and of those that the arcs of these read beside their own."""
        if not self.transducer.topology.looks_aside:
            return chosen
        aside = chosen.copy()
        aside[1:] |= chosen[:-1] & self.cells.has_label[:-1]
        return aside


class Side:
    """A case in the memory of the host, or of a GPU if it is given. On a GPU, sums of float64 are
    logarithms, and those of float32 are not."""

    def __init__(self, case: Case, gpu: Any = None, dtype: Any = np.float32) -> None:
        exact, between, likeliest = (
            (lattice, bounded, best) if gpu is None else (cuda_lattice, cuda_lattice, cuda_best)
        )
        self.ops = SimpleNamespace(
            Lattice=exact.Lattice,
            BoundedLattice=between.BoundedLattice,
            BestLattice=likeliest.BestLattice,
        )
        self.dtype = dtype  # of the costs that are reported
        self.case = case
        self.asarray = np.asarray if gpu is None else gpu.asarray
        self.asnumpy = np.asarray if gpu is None else gpu.asnumpy

    def made(self, kind: str, gradient: bool) -> Any:
        case, make = self.case, getattr(self.ops, kind)
        form = gradient, case.delay_penalty, np.dtype(self.dtype)
        return make(case.transducer, self.samples, *form)

    @property
    def samples(self) -> Any:
        ops = cpu if self.asarray is np.asarray else cuda
        return samples_of(ops, self.case.frames, self.case.columns)

    def exact(self, gradient: bool = True) -> Any:
        """A lattice of all scores."""
        of = self.made("Lattice", gradient)
        self.write(of, slice(None))
        return of

    def bounded(self, gradient: bool = True) -> Any:
        """A lattice of bounds."""
        of = self.made("BoundedLattice", gradient)
        of.bound(self.asarray(self.case.bounds))
        return of

    def write(self, to: Any, some: Any) -> None:
        """Scores of some cells."""
        lse = self.asarray(np.arange(len(self.case.cells.sample))[None, some] / 8)
        scores = self.asarray(np.ascontiguousarray(self.case.scores[:, some]))
        to.write(self.cells(some), lse, scores)

    def cells(self, some: Any = slice(None)) -> Cells:
        locate = (cpu if self.asarray is np.asarray else cuda).coordinates
        packed = np.arange(len(self.case.cells.sample))
        return Cells(self.asarray(packed[some]), self.samples, locate)

    def costs(self, of: Any) -> np.ndarray:
        return self.asnumpy(of.solve())

    def kept(self, of: Any, costs: np.ndarray, share: float = 0.0) -> np.ndarray:
        """The cells that hold a share of what their samples hold, behind :meth:`costs`."""
        return self.asnumpy(of.keep(np.full(len(costs), share)))

    def occupancies(self, of: Any, costs: np.ndarray, of_labels: float = 1.0) -> np.ndarray:
        """Of the scores, (K, cells), behind :meth:`costs`; 0 of samples without any. A share of 0
        keeps every cell, and in bounded lattices not all of them were written."""
        cells = self.kept(of, costs, LEAST if hasattr(of, "bound") else 0.0)
        every = np.isfinite(costs)[self.case.cells.sample]
        if not hasattr(of, "bound"):
            np.testing.assert_array_equal(cells, np.flatnonzero(every))
        dense = np.zeros(self.case.scores.shape)
        packed, dtype = self.asarray(cells), np.dtype(np.float64)
        lse, found = of.posteriors(packed, of_labels, dtype, 0.0)
        dense[:, cells] = self.asnumpy(found)
        np.testing.assert_array_equal(self.asnumpy(lse), [cells / 8])
        return dense

    def certify(self, of: Any) -> np.ndarray:
        return np.array(of.certify())

    def candidates(self, of: Any, least: np.ndarray) -> np.ndarray:
        marks, counts = map(self.asnumpy, of.candidates(least))
        per_sample = np.add.reduceat(marks, self.case.starts, dtype=np.int64)
        np.testing.assert_array_equal(counts, per_sample)
        return marks


def random_case(
    rng: Any,
    shapes: Any,
    holes: float = 0.0,
    transducer: Transducer = NAMED["regular"],
    delay_penalty: float = 0.0,
) -> Case:
    """Of samples of given (T, S), with a share of scores that are -inf."""
    frames, columns = np.array(shapes).T
    counts = frames * columns
    sample = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    frame, position = np.divmod(within, columns[sample])
    has_label = position < columns[sample] - 1
    cells = Coordinates(sample, frame, position, np.ones_like(sample), has_label)
    kinds = len(transducer.topology.scores)
    scores = np.log(rng.dirichlet([1] * (kinds + 1), counts.sum()).T[:kinds].copy())
    scores[rng.random(scores.shape) < holes] = -np.inf
    bounds = np.minimum(scores + rng.exponential(0.5, scores.shape), 0)
    case = Case(transducer, frames, columns, cells, scores, bounds, delay_penalty)
    bounds[case.label :][:1, ~has_label] = -np.inf
    return case
