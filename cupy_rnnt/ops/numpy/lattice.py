"""The lattice recursion on NumPy: all samples of a group, one anti-diagonal at a time, in float64.

Samples with more labels than frames lie the other way round in memory, in a grid of their own
(:mod:`cupy_rnnt.ops.numpy.grid`), so a group has one or two :class:`Sweeps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ...topology import Arc, Topology
from ...transducer import Transducer
from ..types import Cells, HostArray
from .grid import Grid
from .log_space import logsumexp

_KEEP_CHUNK = 2**14  # cells; bounds what choosing the kept cells allocates
_NONE = np.empty(0, np.int64)


def lattice_nbytes(
    topology: Topology, diagonals: int, width: int, gradient: bool, bounded: bool
) -> int:
    scores, arcs, reach = len(topology.scores), len(topology.arcs), topology.reach
    arrays = scores + 2 if gradient or bounded else scores
    masks = 2 * bounded
    vectors = 32 + 2 * arcs + (reach + 1) * (arrays + 2)
    return (width + reach) * ((8 * arrays + masks) * diagonals + 8 * vectors)


class _Step(NamedTuple):
    """An arc in memory: it leads `ahead` rows down and `shift` columns to the right."""

    arc: Arc
    ahead: int
    shift: int
    first: HostArray  # its first score, flat
    added: list[tuple[HostArray, int]]  # its other scores, and how far behind the cell they are

    def weights(self, start: int, count: int, out: HostArray) -> HostArray:
        """The log-probs of the arc from `count` places; `out` holds them if scores are added up."""
        weights = self.first[start : start + count]
        if self.added:
            for scores, behind in self.added:
                addends = scores[start + behind : start + behind + count]
                weights = np.add(weights, addends, out=out)
        return weights


class Sweeps:
    """The samples of a group that lie the same way round, and the sweeps over their diagonals.

    Parameters
    ----------
    transducer : Transducer
    frames, positions : numpy.ndarray, shape (n,), int64
        T and S = U + 1 of each sample.
    flipped : bool
        Whether there are fewer frames than positions.
    gradient : bool
        Whether occupancies are wanted. If not, alpha is kept for a few diagonals only.
    delay_penalty : float
    """

    _together = staticmethod(logsumexp)  # of the paths over different arcs

    def __init__(
        self,
        transducer: Transducer,
        frames: HostArray,
        positions: HostArray,
        flipped: bool,
        gradient: bool,
        delay_penalty: float,
    ) -> None:
        topology = self._topology = transducer.topology
        self._most_mass = transducer.most_mass
        self._gradient, self._delay_penalty = gradient, delay_penalty
        spare = max(arc.frames if flipped else arc.labels for arc in topology.arcs)
        self.grid = grid = Grid(frames, positions, flipped, spare)
        self._row_of = {score: k for k, score in enumerate(topology.scores)}
        self._poisoned = np.zeros(len(frames), bool)
        self._left_out: HostArray | None = None
        rows = grid.rows + 2 * topology.looks_aside  # an arc of the last cells may read beside them
        self._memory, self._scores = grid.full(rows, len(self._row_of))
        self._steps = [self._step(arc) for arc in topology.arcs]
        # For each row, the arcs that lead from there to (T, U): number of the arc, sample, column.
        self._endings: dict[int, list[tuple[int, int, int]]] = {}
        for i, arc in enumerate(topology.arcs):
            places = grid.exit - grid.offset(arc.frames, arc.labels)
            exists = (frames >= arc.frames) & (positions > arc.labels) & (arc.frames > 0)
            for sample in np.flatnonzero(exists).tolist():
                row, column = divmod(int(places[sample]), grid.width)
                self._endings.setdefault(row, []).append((i, sample, column))

    def leave_out(self, sample: int, first: HostArray, stop: HostArray) -> None:
        """Leave out the cells of a sample outside ``first[t]`` to ``stop[t] - 1``."""
        if self._left_out is None:
            self._left_out = np.zeros(self._scores.shape[1:], bool)
        frames, positions = int(self.grid.frames[sample]), np.arange(self.grid.positions[sample])
        left_out = (positions < first[:frames, None]) | (positions >= stop[:frames, None])
        self.grid.view(self._left_out, sample)[...] = left_out
        for stored in self._scores:
            self.grid.view(stored, sample)[left_out] = -np.inf

    def write(
        self,
        sample: HostArray,
        frame: HostArray,
        position: HostArray,
        has_label: HostArray,
        scores: HostArray,
    ) -> None:
        """Store the scores (K, n) of cells, without that of a label at the last position."""
        places = self.grid.places(sample, frame, position)
        kinds = [score.kind for score in self._row_of]
        rows = [
            np.where(has_label, values, -np.inf) if kind == "label" else values
            for kind, values in zip(kinds, scores, strict=True)
        ]
        is_valid = np.logical_and.reduce([values < np.inf for values in rows])
        if not is_valid.all():
            self._poisoned[sample[~is_valid]] = True
            rows = [np.where(is_valid, values, -np.inf) for values in rows]
        for kind, values, stored in zip(kinds, rows, self._scores, strict=True):
            if kind == "label" and self._delay_penalty:
                values = values + self._delay(self.grid.frames[sample], frame)
            stored.reshape(-1)[places] = values

    def _delay(self, frames: HostArray, frame: HostArray) -> HostArray:
        """What the delay penalty (k2) adds to the log-prob of a label."""
        delay: HostArray = self._delay_penalty * ((frames - 1) / 2 - frame)
        return delay

    def solve(self) -> HostArray:
        """Costs of the samples. If a gradient is wanted, :meth:`keep` may be called then."""
        with np.errstate(all="ignore"):
            self._log_prob, self._alpha = self._inside()
            costs: HostArray = np.where(self._poisoned, np.nan, -self._log_prob)
            if self._gradient:
                self._beta = self._outside()
        return costs

    def _inside(self) -> tuple[HostArray, HostArray]:
        """Log-probs of the samples, and log alpha."""
        return self._forward(self._gradient)

    def _outside(self) -> HostArray:
        """Log beta."""
        return self._backward()

    def _step(self, arc: Arc) -> _Step:
        grid, (first, *rest) = self.grid, (self._memory[self._row_of[s]] for s in arc.scores)
        added = [(scores, 0) for scores in rest]
        if arc.then is not None:
            added.append((self._memory[self._row_of[arc.then]], grid.offset(0, arc.labels)))
        return _Step(arc, arc.frames + arc.labels, grid.shift(arc), first, added)

    def _forward(self, keep: bool, passing: HostArray | None = None) -> tuple[HostArray, HostArray]:
        """Sweep log alpha forward; return the log-probs of the samples, and log alpha: of all
        diagonals with `keep`, else of the last few.

        With a mask `passing`, (rows, width), no path goes on from a cell where it is false.
        """
        grid, steps, starts = self.grid, self._steps, self.grid.starts
        turns = grid.rows if keep else self._topology.reach + 1
        passed_on, alpha = grid.full(turns)
        if passing is not None:
            turns = self._topology.reach + 1
            passed_on, masked = grid.full(turns)
        log_prob = np.full(len(grid.first), -np.inf)
        spare, work = np.empty((len(steps), grid.width)), np.empty(grid.width)
        alpha[0, grid.first] = 0.0
        for d, n in enumerate(grid.ends[: grid.rows]):
            row = alpha[d % len(alpha), :n]
            terms = []
            for step, out in zip(steps, spare, strict=True):
                before = d - step.ahead
                if before >= 0:
                    term, shift = out[:n], step.shift
                    weights = step.weights(starts[before] - shift, n, term)
                    start = starts[before % turns] - shift
                    terms.append(np.add(passed_on[start : start + n], weights, term))
            if terms:
                self._together(terms, row, work[:n])
            if passing is not None:
                row = masked[d % turns]
                row[:n] = np.where(passing[d, :n], alpha[d, :n], -np.inf)
            for i, sample, column in self._endings.get(d, ()):
                step = steps[i]
                if step.arc.ends:
                    weight = step.weights(starts[d] + column, 1, work[:1])[0]
                    log_prob[sample] = np.logaddexp(log_prob[sample], row[column] + weight)
        return log_prob, alpha

    def _backward(
        self,
        passing: HostArray | None = None,
        cap: Callable[[int, list[HostArray], HostArray], HostArray] | None = None,
    ) -> HostArray:
        """Sweep log beta back: (rows + reach, width); no cell is in the last `reach` rows.

        With a mask `passing`, (rows, width), beta is -inf where it is false. ``cap(row, below,
        out)`` is the most that beta may be in a row, given beta where each arc leads to; it may use
        `out`.
        """
        grid, steps, starts = self.grid, self._steps, self.grid.starts
        memory, beta = grid.full(grid.rows + self._topology.reach)
        beta.reshape(-1)[grid.exit] = 0.0
        spare, work = np.empty((len(steps), grid.width)), np.empty(grid.width)
        for d in range(grid.rows - 1, -1, -1):
            n, start = grid.ends[d], starts[d]
            below, terms = [], []
            for step, out in zip(steps, spare, strict=True):
                behind, term = starts[d + step.ahead] + step.shift, out[:n]
                below.append(memory[behind : behind + n])
                terms.append(np.add(step.weights(start, n, term), below[-1], term))
            for i, _, column in self._endings.get(d, ()):
                if not steps[i].arc.ends:
                    terms[i][column] = -np.inf
            row = beta[d, :n]
            self._together(terms, row, work[:n])
            if cap is not None:
                np.minimum(row, cap(d, below, work[:n]), out=row)
            if passing is not None:
                np.copyto(row, -np.inf, where=~passing[d, :n])
        return beta

    def keep(self, least: HostArray) -> list[HostArray]:
        """The cells to keep of each sample, numbered in packed order from 0 in each sample."""
        with np.errstate(all="ignore"):
            bounds = np.log(least) + self._log_prob
            if self._topology.looks_aside:
                bounds -= np.log(2)  # half for paths through a cell, half for arcs that read it
        keeps = least < np.inf
        return [self._holding(i, bounds[i]) if keeps[i] else _NONE for i in range(len(least))]

    def _holding(self, sample: int, bound: float) -> HostArray:
        """The cells where alpha + beta reaches a bound, and the cells that their arcs read."""
        alpha, beta = (self.grid.view(values, sample) for values in (self._alpha, self._beta))
        frames, positions = alpha.shape
        rows = max(1, _KEEP_CHUNK // positions)
        cells = []
        for start in range(0, frames, rows):
            part = slice(start, start + rows)
            mask = alpha[part] + beta[part] >= bound
            if self._topology.looks_aside:
                mask[:, 1:] |= mask[:, :-1].copy()
            if self._left_out is not None:
                mask &= ~self.grid.view(self._left_out, sample)[part]
            cells.append(start * positions + np.flatnonzero(mask))
        return np.concatenate(cells)

    def occupancies(
        self, sample: HostArray, frame: HostArray, position: HostArray, of_labels: float
    ) -> HostArray:
        """Occupancies (K, n) of the scores of cells: the posterior probability of all arcs that add
        up the score. An arc that emits a label counts `of_labels` times."""
        grid, occupancies = self.grid, np.zeros((len(self._row_of), len(sample)))
        places = grid.places(sample, frame, position)
        share = self._alpha.reshape(-1)[places]
        with np.errstate(all="ignore"):
            share -= self._log_prob[sample]
            for arc in self._topology.arcs:
                times = of_labels if arc.labels else 1.0
                taken = self._taken(arc, sample, places, share)
                taken *= times
                for score in arc.scores:
                    occupancies[self._row_of[score]] += taken
                if arc.then is not None:  # cells `arc.labels` positions before read this score
                    read = np.flatnonzero(position >= arc.labels)
                    readers = places[read] - grid.offset(0, arc.labels)
                    share_read = self._alpha.reshape(-1)[readers] - self._log_prob[sample[read]]
                    taken = self._taken(arc, sample[read], readers, share_read)
                    occupancies[self._row_of[arc.then], read] += times * taken
        return occupancies

    def _taken(self, arc: Arc, sample: HostArray, places: HostArray, share: HostArray) -> HostArray:
        """The posterior probability of an arc from some places, given ``share``, which is log alpha
        there less the log-prob of the sample."""
        weights = self._onward(arc, sample, places, self._beta)
        weights += share
        taken: HostArray = np.exp(weights, out=weights)
        return taken

    def _onward(self, arc: Arc, sample: HostArray, places: HostArray, beta: HostArray) -> HostArray:
        """The log-prob of an arc from some places plus log beta where it leads to."""
        first, *rest = (self._scores[self._row_of[score]].reshape(-1) for score in arc.scores)
        weights: HostArray = first[places]
        for scores in rest:
            weights += scores[places]
        if arc.then is not None:
            aside = self._scores[self._row_of[arc.then]].reshape(-1)
            weights += aside[places + self.grid.offset(0, arc.labels)]
        targets = places + self.grid.offset(arc.frames, arc.labels)
        weights += beta.reshape(-1)[targets]
        if not arc.ends:
            weights[targets == self.grid.exit[sample]] = -np.inf
        return weights


class Lattice:
    """See :class:`cupy_rnnt.ops.lattices.Lattice`."""

    sweeps: type[Sweeps] = Sweeps

    def __init__(
        self,
        transducer: Transducer,
        frames: HostArray,
        positions: HostArray,
        gradient: bool,
        delay_penalty: float,
        dtype: np.dtype,
        start: int = 0,
        first: int = 0,
    ) -> None:
        self._scores = len(transducer.topology.scores)
        self._dtype, self._start, self._first_cell = dtype, start, first
        self._cells = frames * positions
        self._first = np.cumsum(self._cells) - self._cells
        self._lse: HostArray | None = None
        self._positions = positions
        flipped = positions > frames
        self._side = flipped.astype(np.intp)
        self._samples = [np.flatnonzero(flipped == side) for side in (False, True)]
        self._number = np.empty(len(frames), np.intp)  # of a sample within its side
        self._sides: list[Any] = []
        for side, samples in enumerate(self._samples):
            self._number[samples] = np.arange(len(samples))
            lengths = frames[samples], positions[samples]
            self._sides.append(
                self.sweeps(transducer, *lengths, bool(side), gradient, delay_penalty)
                if len(samples)
                else None
            )

    def _used(self) -> Iterator[tuple[Any, HostArray]]:
        """The sides that have samples, and their samples."""
        pairs = zip(self._sides, self._samples, strict=True)
        return (pair for pair in pairs if pair[0] is not None)

    def _split(self, sample: HostArray) -> Iterator[tuple[Any, Any]]:
        """The sides that have some of the cells, and which cells."""
        side = self._side[sample]
        if side.any() and not side.all():
            yield from ((self._sides[i], np.flatnonzero(side == i)) for i in (0, 1))
        elif len(side):
            yield self._sides[side[0]], slice(None)

    def write(self, cells: Cells, lse: HostArray, scores: HostArray) -> None:
        if self._lse is None:
            self._lse = np.empty((len(lse), int(self._cells.sum())))
        self._lse[:, cells.packed - self._first_cell] = lse
        sample = cells.sample - self._start
        for sweeps, part in self._split(sample):
            coordinates = cells.frame[part], cells.position[part], cells.has_label[part]
            sweeps.write(self._number[sample[part]], *coordinates, scores[:, part])

    def leave_out(self, first: HostArray, stop: HostArray) -> None:
        for sweeps, samples in self._used():
            for number, sample in enumerate(samples.tolist()):
                sweeps.leave_out(number, first[sample], stop[sample])

    def solve(self) -> HostArray:
        costs = np.empty(len(self._cells))
        for sweeps, samples in self._used():
            costs[samples] = sweeps.solve()
        with np.errstate(over="ignore"):
            reported = costs.astype(self._dtype)
        self._costs = np.where(np.isfinite(reported), costs, reported)
        return self._costs

    def keep(self, least: HostArray) -> HostArray:
        least = np.where(np.isfinite(self._costs), least, np.inf)
        cells: list[HostArray] = [_NONE] * len(self._cells)
        for sweeps, samples in self._used():
            for sample, numbers in zip(samples.tolist(), sweeps.keep(least[samples]), strict=True):
                cells[sample] = self._first_cell + self._first[sample] + numbers
        return np.concatenate(cells)

    def posteriors(
        self, packed: HostArray, of_labels: float, dtype: np.dtype, least: float
    ) -> tuple[HostArray, HostArray]:
        occupancies, cells = np.empty((self._scores, len(packed)), dtype), packed - self._first_cell
        for start in range(0, len(cells), _KEEP_CHUNK):
            chunk = cells[start : start + _KEEP_CHUNK]
            sample = np.searchsorted(self._first, chunk, side="right") - 1
            frame, position = np.divmod(chunk - self._first[sample], self._positions[sample])
            out = occupancies[:, start : start + len(chunk)]
            for sweeps, part in self._split(sample):
                coordinates = self._number[sample[part]], frame[part], position[part]
                out[:, part] = sweeps.occupancies(*coordinates, of_labels)
        occupancies[occupancies < least] = 0
        assert self._lse is not None
        return self._lse[:, cells], occupancies
