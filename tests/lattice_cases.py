"""Groups of lattices with random log-probs, on NumPy and on CUDA."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from cupy_rnnt.batch import Cells
from cupy_rnnt.ops import bounded, cuda_lattice, lattice

RAGGED = (5, 5), (4, 5), (1, 1), (1, 9), (9, 1), (7, 2), (12, 3), (3, 40)
"""(T, S) of the samples of a small group."""


class Case(NamedTuple):
    """A group of samples. What has an entry for each cell is in packed order."""

    frames: np.ndarray
    columns: np.ndarray
    cells: Cells
    blank: np.ndarray
    label: np.ndarray
    bounds: np.ndarray
    """Of blank and label, (2, cells)."""

    @property
    def starts(self) -> np.ndarray:
        counts = self.frames * self.columns
        return np.cumsum(counts) - counts


class Side:
    """A case in the memory of the host, or of a GPU if it is given."""

    def __init__(self, case: Case, gpu: Any = None) -> None:
        numpys = SimpleNamespace(Lattice=lattice.Lattice, BoundedLattice=bounded.BoundedLattice)
        self.case, self.ops = case, numpys if gpu is None else cuda_lattice
        self.asarray = np.asarray if gpu is None else gpu.asarray
        self.asnumpy = np.asarray if gpu is None else gpu.asnumpy

    def exact(self, gradient: bool = True) -> Any:
        """A lattice of all log-probs."""
        made = self.ops.Lattice(self.case.frames, self.case.columns, gradient)
        self.write(made, slice(None))
        return made

    def bounded(self, gradient: bool = True) -> Any:
        """A lattice of bounds."""
        made = self.ops.BoundedLattice(self.case.frames, self.case.columns, gradient)
        made.bound(self.asarray(self.case.bounds))
        return made

    def write(self, to: Any, some: Any) -> None:
        """Log-probs of some cells."""
        cells = Cells(*(self.asarray(values[some]) for values in self.case.cells))
        to.write(cells, self.asarray(self.case.blank[some]), self.asarray(self.case.label[some]))

    def costs(self, of: Any) -> np.ndarray:
        return self.asnumpy(of.solve())

    def occupancies(self, of: Any) -> np.ndarray:
        """Of blank and label, (2, cells), behind :meth:`costs`."""
        packed, *both = map(self.asnumpy, of.keep(self.asarray(np.zeros(len(self.case.frames)))))
        np.testing.assert_array_equal(packed, np.arange(len(self.case.blank)))
        return np.array(both)

    def certify(self, of: Any) -> np.ndarray:
        return np.array([self.asnumpy(values) for values in of.certify()])

    def likely(self, of: Any, thresholds: np.ndarray) -> np.ndarray:
        return self.asnumpy(of.likely(self.asarray(thresholds)))


def random_case(rng: Any, shapes: Any, holes: float = 0.0) -> Case:
    """Of samples of given (T, S), with a share of log-probs that are -inf."""
    frames, columns = np.array(shapes).T
    counts = frames * columns
    sample = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    frame, position = np.divmod(within, columns[sample])
    has_label = position < columns[sample] - 1
    cells = Cells(sample, frame, position, np.ones_like(sample), has_label)
    log_probs = np.log(rng.dirichlet([1, 1, 1], counts.sum()).T[:2].copy())
    log_probs[rng.random(log_probs.shape) < holes] = -np.inf
    bounds = np.minimum(log_probs + rng.exponential(0.5, log_probs.shape), 0)
    bounds[1, ~has_label] = -np.inf
    return Case(frames, columns, cells, *log_probs, bounds)
