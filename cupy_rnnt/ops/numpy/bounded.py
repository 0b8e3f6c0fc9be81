"""Lattices that hold exact log-probs in some cells, the set C, and upper bounds in the others.

Sweeps over both kinds of cells bound the true alpha and beta of every cell from above. The alpha of
paths that never leave C needs exact log-probs only. Where such a path first steps out of C, alpha
times the upper bound of beta bounds all its continuations. The sum over all such cells bounds the
probability of the paths that leave C; its terms are positive, so nothing cancels.

If an arc of a cell reads a second cell, the first is inside C only if both are in C.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..types import HostArray, PathMass
from .lattice import Lattice
from .sweeps import Sweeps

_BLOCK = 2**15  # entries of some diagonals


class BoundedSweeps(Sweeps):
    """Parameters are those of :class:`Sweeps`."""

    def __init__(self, *parameters: Any) -> None:
        super().__init__(*parameters)
        self._exact = np.zeros(self._scores.shape[1:], bool)
        self._inside_sweep: tuple[HostArray, HostArray] | None = None
        self._upper_beta: HostArray | None = None

    def bound(self, sample: int, bounds: HostArray) -> None:
        """Store bounds (K, cells) of the scores of a sample, in packed order."""
        frames, positions = self.grid.frames[sample], self.grid.positions[sample]
        for score, values, stored in zip(self._row_of, bounds, self._scores, strict=True):
            view = self.grid.view(stored, sample)
            view[...] = values.reshape(frames, positions)
            if score.kind == "label" and self._delay_penalty:
                view += self._delay(frames, np.arange(frames)[:, None])

    def leave_out(self, sample: int, first: HostArray, stop: HostArray) -> None:
        super().leave_out(sample, first, stop)
        self._exact |= self._left_out

    def write(self, sample: HostArray, frame: HostArray, position: HostArray, *rest: Any) -> None:
        super().write(sample, frame, position, *rest)
        self._upper_beta = None
        self._exact.reshape(-1)[self.grid.places(sample, frame, position)] = True

    def _is_inside(self) -> HostArray:
        """Cells whose arcs are exact, (rows, width)."""
        exact, grid = self._exact[: self.grid.rows], self.grid
        inside = exact
        for labels in {arc.labels for arc in self._topology.arcs if arc.then is not None}:
            # Beside the last position there is no cell, and no arc that would read it.
            offset = grid.offset(0, labels)
            aside = self._exact.reshape(-1)[offset : offset + exact.size].reshape(exact.shape)
            inside = inside & (aside | ~self._emits())
        return inside

    def _emits(self) -> HostArray:
        """Cells before the last position, (rows, width)."""
        grid = self.grid
        emits = np.zeros((grid.rows, grid.width), bool)
        for sample in range(len(grid.first)):
            grid.view(emits, sample)[:, :-1] = True
        return emits

    def certify(self) -> PathMass:
        """See :class:`cupy_rnnt.ops.lattices.BoundedLattice`."""
        grid = self.grid
        with np.errstate(all="ignore"):
            self._upper_beta = self._upper()
            total = self._upper_beta.reshape(-1)[grid.first]
            if not self._exact.any():
                return PathMass(np.full_like(total, -np.inf), total, total)
            inside = self._is_inside()
            log_prob, alpha = self._inside_sweep = self._forward(True, inside)
            # Shares of the upper bound of all paths are at most 1, so they are added up without
            # logarithms. The least float64 for every cell makes up for shares that underflow.
            base = grid.repeat(np.where(total > -np.inf, total, 0.0), 0.0)
            shares = np.full(grid.width, np.finfo(np.float64).tiny * grid.rows)
            for rows in self._blocks():
                share = alpha[rows] + self._upper_beta[: grid.rows][rows]
                share -= base
                np.exp(share, out=share)
                np.copyto(share, 0.0, where=inside[rows])
                shares += share.sum(axis=0)
                np.copyto(alpha[rows], -np.inf, where=~inside[rows])
            return PathMass(log_prob, np.log(grid.sums(shares)) + base[grid.first], total)

    def _upper(self) -> HostArray:
        """Upper bounds of log beta."""
        return self._backward(cap=self._cap)

    def _blocks(self) -> Iterator[slice]:
        """Slices of the diagonals, of at most about ``_BLOCK`` entries each."""
        rows = max(1, _BLOCK // self.grid.width)
        return (slice(start, start + rows) for start in range(0, self.grid.rows, rows))

    def _cap(self, row: int, below: list[HostArray], out: HostArray) -> HostArray:
        """The most that beta can be in a row, given its upper bounds where each arc leads to.

        The probabilities of the arcs that leave a cell add up to at most
        :attr:`cupy_rnnt.transducer.Transducer.most_mass`, apart from a delay penalty. So beta is at
        most this mass times the largest beta that an arc leads to, with the penalty behind labels.
        """
        if self._delay_penalty:
            delays = self._delays(row)[: len(out)]
            pairs = zip(self._steps, below, strict=True)
            below = [beta + delays if step.arc.labels else beta for step, beta in pairs]
        most, *others = below
        for beta in others:
            most = np.maximum(most, beta, out=out)
        return most if self._most_mass == 1 else np.add(most, np.log(self._most_mass), out=out)

    def _delays(self, row: int) -> HostArray:
        """What the delay penalty adds to the label scores of a row."""
        grid = self.grid
        column = np.arange(grid.width) - grid.repeat(grid.first, 0)
        frame = column if grid.flipped else row - column
        return self._delay(grid.repeat(grid.frames, 1), frame)

    def candidates(self, least: HostArray) -> list[HostArray]:
        """See :class:`cupy_rnnt.ops.lattices.BoundedLattice`: bool (cells,) of each sample."""
        self._inside_sweep = None  # C will grow, and the memory is needed
        grid = self.grid
        chosen = np.empty((grid.rows, grid.width), bool)
        with np.errstate(all="ignore"):
            if self._upper_beta is None:
                self._upper_beta = self._upper()
            limits = grid.repeat(least + self._upper_beta.reshape(-1)[grid.first], np.inf)
            _, alpha = self._forward(True)
            for rows in self._blocks():
                beta = self._upper_beta[: grid.rows][rows]
                np.greater_equal(alpha[rows] + beta, limits, out=chosen[rows])
        views = [grid.view(chosen, sample) for sample in range(len(grid.first))]
        if self._topology.looks_aside:  # a cell is inside only if the cell that its arcs read is
            for view in views:
                view[:, 1:] |= view[:, :-1].copy()
        chosen &= ~self._exact[: grid.rows]
        return [view.ravel() for view in views]

    def outside(self, sample: int) -> HostArray:
        """Mask of the cells of a sample that are not exact, (cells,), in packed order."""
        outside: HostArray = ~self.grid.view(self._exact, sample).ravel()
        return outside

    def solve(self) -> HostArray:
        np.copyto(self._scores, -np.inf, where=~self._exact)
        self._upper_beta = None  # makes room for beta
        return super().solve()

    def _inside(self) -> tuple[HostArray, HostArray]:
        # The last certify() has swept, unless no cell of these samples was exact.
        return self._inside_sweep or self._forward(True, self._is_inside())

    def _outside(self) -> HostArray:
        inside = self._is_inside() if self._topology.looks_aside else None
        return self._backward(passing=inside)


class BoundedLattice(Lattice):
    """See :class:`cupy_rnnt.ops.lattices.BoundedLattice`."""

    sweeps = BoundedSweeps

    def bound(self, bounds: HostArray) -> None:
        for sweeps, samples in self._used():
            for number, sample in enumerate(samples.tolist()):
                first = self._first[sample]
                sweeps.bound(number, bounds[:, first : first + self._cells[sample]])

    def certify(self) -> PathMass:
        mass = PathMass(*np.empty((3, len(self._cells))))
        for sweeps, samples in self._used():
            for array, values in zip(mass, sweeps.certify(), strict=True):
                array[samples] = values
        return mass

    def candidates(self, least: HostArray) -> tuple[HostArray, HostArray]:
        chosen: list[Any] = [None] * len(self._cells)
        for sweeps, samples in self._used():
            of_samples = sweeps.candidates(least[samples])
            for sample, cells in zip(samples.tolist(), of_samples, strict=True):
                chosen[sample] = cells
        return np.concatenate(chosen), np.array(list(map(np.count_nonzero, chosen)))

    def complete(self, marks: HostArray, samples: HostArray) -> None:
        for sample in np.flatnonzero(samples).tolist():
            first, sweeps = self._first[sample], self._sides[self._side[sample]]
            cells = slice(first, first + self._cells[sample])
            marks[cells] |= sweeps.outside(self._number[sample])
