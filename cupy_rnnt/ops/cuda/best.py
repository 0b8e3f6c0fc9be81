"""The likeliest path of each sample of a group on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...transducer import Transducer
from ..types import BestPaths, DeviceArray, HostArray
from .lattice import TOPOLOGIES, BoundedLattice
from .launch import BLOCK, Kernel, cupy, host
from .samples import Samples

__all__ = ["BestLattice"]

_SWEEP = Kernel("best_sweep", "best.cu", BLOCK, variants=TOPOLOGIES, any_first=True)
_PATH = Kernel("best_path", "best.cu", variants=TOPOLOGIES, any_first=True)

_INSIDE, _ALPHA, _, _BETA = range(4)  # the ways to sweep, as in best.cu
_IN_LOG = 2  # kBeyondWide of lattice.cuh
_AS_THEY_ARE = np.int32(-1)  # scores, for kernels that write words


class BestLattice(BoundedLattice):
    """See :class:`cupy_rnnt.ops.lattices.BestLattice`, and for parameters :class:`Lattice`."""

    def __init__(self, transducer: Transducer, samples: Samples, *parameters: Any) -> None:
        super().__init__(transducer, samples, *parameters)
        kinds, label, _, delay_penalty = self._kinds
        self._kinds = kinds, label, _AS_THEY_ARE, delay_penalty
        self._flags.fill(_IN_LOG)
        self._labels = int(samples.lengths[1].max()) - 1

    def leave_out(self, first: HostArray, stop: HostArray) -> None:
        super().leave_out(first, stop)
        for scores in self._words:  # in which the kernel wrote 0, as in words
            scores[self._left_out] = -np.inf

    def certify(self) -> BestPaths:  # type: ignore[override]
        self._sweep(_INSIDE, _BETA)
        self.solve()
        return BestPaths(*host(self._totals[_INSIDE], self._totals[_BETA], self._proven))

    def solve(self) -> DeviceArray:
        if self._costs is None:
            if _BETA not in self._sums:
                self._sweep(_BETA)
            library, samples = cupy(), self._samples
            self._path = library.empty((2, samples, self._labels), np.int64)
            self._proven = library.empty(samples, np.bool_)
            self._costs = library.empty(samples)
            _PATH[self._topology.cpp](
                samples,
                *(*self._of.table, self._flags, self._words, self._cells, self._exact),
                *(self._sums[_BETA], self._totals, self._labels, *self._path),
                *(self._proven, self._costs, self._narrow),
            )
        return self._costs

    def path(self) -> tuple[DeviceArray, DeviceArray]:
        """See :meth:`cupy_rnnt.ops.lattices.BestLattice.path`."""
        self.solve()
        frames, durations = self._path
        return frames, durations

    def _sweep(self, *ways: int) -> None:
        library = cupy()
        for way in ways:
            self._sums[way] = library.empty(self._cells)
        sweeps, sums = self._samples * len(ways), self._sums
        _SWEEP[self._topology.cpp](
            sweeps,
            *(sweeps, np.int32(sum(1 << way for way in ways)), *self._of.table),
            *(self._words, self._cells, self._exact),
            *(sums.get(_INSIDE), sums.get(_ALPHA), sums.get(_BETA), self._totals),
        )
        self._costs = None
