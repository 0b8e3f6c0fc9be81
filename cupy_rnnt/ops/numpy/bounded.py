"""Lattices that hold exact log-probs in some cells, the set C, and upper bounds in the others.

With both, sweeps over the anti-diagonals bound the true alpha and beta of every cell from above.
The alpha of paths that never leave C needs exact log-probs only; where such a path first steps out
of C, alpha times the bound of beta is a bound of all its continuations. Their sum over the edge of
C bounds the probability of all paths that are not inside: positive terms, nothing cancels.

Where an arc reads a second cell, a cell counts as inside C if both are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..types import HostArray
from .lattice import Lattice, Sweeps

_BLOCK = 2**15  # entries of some diagonals


class BoundedSweeps(Sweeps):
    """Parameters are those of :class:`Sweeps`."""

    def __init__(self, *parameters: Any) -> None:
        super().__init__(*parameters)
        self._exact = np.zeros(self._scores.shape[1:], bool)
        self._found: tuple[HostArray, HostArray] | None = None

    def bound(self, sample: int, bounds: HostArray) -> None:
        """Store bounds (K, cells) of the scores of a sample, in packed order."""
        frames, positions = self.grid.frames[sample], self.grid.positions[sample]
        for score, values, stored in zip(self._row_of, bounds, self._scores, strict=True):
            view = self.grid.view(stored, sample)
            view[...] = values.reshape(frames, positions)
            if score.kind == "label" and self._delay_penalty:
                view += self._delay(frames, np.arange(frames)[:, None])

    def write(self, sample: HostArray, frame: HostArray, position: HostArray, *others: Any) -> None:
        super().write(sample, frame, position, *others)
        self._exact.reshape(-1)[self.grid.places(sample, frame, position)] = True

    def _is_inside(self) -> HostArray:
        """Cells whose arcs are exact, (rows, width)."""
        exact, grid = self._exact[: self.grid.rows], self.grid
        inside = exact
        for labels in {arc.labels for arc in self._topology.arcs if arc.then is not None}:
            # Aside of a cell without a label to emit is no cell, which nothing is read of.
            offset = grid.offset(0, labels)
            aside = self._exact.reshape(-1)[offset : offset + exact.size].reshape(exact.shape)
            inside = inside & (aside | ~self._emits())
        return inside

    def _emits(self) -> HostArray:
        """Cells that have a label to emit, (rows, width)."""
        grid = self.grid
        emits = np.zeros((grid.rows, grid.width), bool)
        for sample in range(len(grid.first)):
            grid.view(emits, sample)[:, :-1] = True
        return emits

    def certify(self) -> tuple[HostArray, HostArray]:
        """See :class:`cupy_rnnt.ops.BoundedLattice`."""
        grid = self.grid
        with np.errstate(all="ignore"):
            self._upper_beta = self._backward(cap=self._cap)
            total = self._upper_beta.reshape(-1)[grid.first]
            if not self._exact.any():
                return np.full_like(total, -np.inf), total
            inside = self._is_inside()
            log_prob, alpha = self._found = self._forward(True, inside)
            # Shares of the bound of all paths: linear, as none is above 1. Those that vanish in
            # float64 are made up for by the least number for every cell.
            base = grid.repeat(np.where(total > -np.inf, total, 0.0), 0.0)
            shares = np.full(grid.width, np.finfo(np.float64).tiny * grid.rows)
            for rows in self._blocks():
                share = alpha[rows] + self._upper_beta[: grid.rows][rows]
                share -= base
                np.exp(share, out=share)
                np.copyto(share, 0.0, where=inside[rows])
                shares += share.sum(axis=0)
                np.copyto(alpha[rows], -np.inf, where=~inside[rows])
            return log_prob, np.log(grid.sums(shares)) + base[grid.first]

    def _blocks(self) -> Iterator[slice]:
        """Some diagonals at a time: what is worked on stays small."""
        rows = max(1, _BLOCK // self.grid.width)
        return (slice(start, start + rows) for start in range(0, self.grid.rows, rows))

    def _cap(self, row: int, below: list[HostArray], out: HostArray) -> HostArray:
        """The most that bounds of beta can be in a row, given those that each arc leads to.

        The probabilities of the arcs that leave a cell add up to no more than 1 (or a small number,
        see :attr:`cupy_rnnt.transducer.Transducer.most_mass`), but for what a delay penalty adds.
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
        """What the delay penalty adds to labels in a row."""
        grid = self.grid
        column = np.arange(grid.width) - grid.repeat(grid.first, 0)
        frame = column if grid.flipped else row - column
        delays: HostArray = self._delay(grid.repeat(grid.frames, 1), frame)
        return delays

    def candidates(self, thresholds: HostArray) -> list[HostArray]:
        """See :class:`cupy_rnnt.ops.BoundedLattice`: bool (cells,) of each sample."""
        self._found = None  # cells will be added, and its memory is needed
        grid = self.grid
        least = grid.repeat(thresholds, np.inf)
        chosen = np.empty((grid.rows, grid.width), bool)
        with np.errstate(all="ignore"):
            _, alpha = self._forward(True)
            for rows in self._blocks():
                beta = self._upper_beta[: grid.rows][rows]
                np.greater_equal(alpha[rows] + beta, least, out=chosen[rows])
        views = [grid.view(chosen, sample) for sample in range(len(grid.first))]
        if self._topology.looks_aside:  # to be inside, a cell needs the one that is read beside it
            for view in views:
                view[:, 1:] |= view[:, :-1].copy()
        chosen &= ~self._exact[: grid.rows]
        return [view.ravel() for view in views]

    def solve(self) -> HostArray:
        np.copyto(self._scores, -np.inf, where=~self._exact)
        del self._upper_beta  # which makes room for beta
        return super().solve()

    def _inside(self) -> tuple[HostArray, HostArray]:
        # The last certify() has found it, but where nothing is exact on this side.
        return self._found or self._forward(True, self._is_inside())

    def _outside(self) -> HostArray:
        inside = self._is_inside() if self._topology.looks_aside else None
        return self._backward(passing=inside)


class BoundedLattice(Lattice):
    """See :class:`cupy_rnnt.ops.BoundedLattice`."""

    sweeps = BoundedSweeps

    def bound(self, bounds: HostArray) -> None:
        for sweeps, samples in self._used():
            for number, sample in enumerate(samples.tolist()):
                first = self._first[sample]
                sweeps.bound(number, bounds[:, first : first + self._cells[sample]])

    def certify(self) -> tuple[HostArray, HostArray]:
        log_inside, log_outside = np.empty((2, len(self._cells)))
        for sweeps, samples in self._used():
            log_inside[samples], log_outside[samples] = sweeps.certify()
        return log_inside, log_outside

    def candidates(self, thresholds: HostArray) -> HostArray:
        chosen: list[Any] = [None] * len(self._cells)
        for sweeps, samples in self._used():
            of_samples = sweeps.candidates(thresholds[samples])
            for sample, cells in zip(samples.tolist(), of_samples, strict=True):
                chosen[sample] = cells
        return np.concatenate(chosen)
