"""The lattice recursion on NumPy: a group of samples, one anti-diagonal at a time, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...topology import Arc
from ...transducer import Transducer
from ..types import HostArray
from .grid import Grid
from .log_space import logsumexp

KEEP_CHUNK = 2**14  # cells; bounds what choosing the kept cells allocates
NO_CELLS = np.empty(0, np.int64)
_SUMMED = 2**12  # cells whose masses are added up at a time, for the same reason
ROWS = 16  # diagonals whose weights are added up or masked at a time


class _Step(NamedTuple):
    """An arc in memory: it leads `ahead` rows down and `shift` columns to the right."""

    arc: Arc
    ahead: int
    shift: int
    first: HostArray  # its first score, flat
    added: list[tuple[HostArray, int]]  # its other scores, and how far behind the cell they are

    def log_prob(self, place: int) -> float:
        """The log-prob of the arc from one place."""
        added = (scores[place + behind] for scores, behind in self.added)
        return float(sum(added, self.first[place]))


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

    def _runs(self, most: int) -> list[tuple[int, int, int]]:
        """Runs of at most `most` diagonals that the same arcs reach and that have the same `n`
        columns in use: (start, stop, n).

        The views of the rows of a run are made together. On short rows they took as long as all
        arithmetic when each row had its own.
        """
        ends, rows = self.grid.ends, self.grid.rows
        cuts = {*range(min(self._topology.reach + 1, rows)), rows}
        cuts.update(d for d in range(1, rows) if ends[d] != ends[d - 1])
        runs = []
        for start, stop in itertools.pairwise(sorted(cuts)):
            parts = [*range(start, stop, most), stop]
            runs += [(*part, ends[start]) for part in itertools.pairwise(parts)]
        return runs

    def _weights(
        self,
        step: _Step,
        place: int,
        extents: tuple[int, int],
        stopped: HostArray | None,
        out: HostArray,
    ) -> HostArray:
        """The log-probs of an arc from a block of cells, as a view of the scores if they are
        stored, else in `out`. They are -inf where `stopped`, a mask that may lack columns of the
        block in front of the first cells, where they are -inf anyway."""
        count, n = extents
        block, out = partial(self.grid.block, extents=extents), out[:count, :n]
        weights = block(step.first, place)
        for scores, behind in step.added:
            weights = np.add(weights, block(scores, place + behind), out=out)
        if stopped is not None:
            if not step.added:
                np.copyto(out, weights)
            np.copyto(out[:, n - stopped.shape[1] :], -np.inf, where=stopped)
            weights = out
        return weights

    def _forward(self, keep: bool, passing: HostArray | None = None) -> tuple[HostArray, HostArray]:
        """Sweep log alpha forward; return the log-probs of the samples, and log alpha: of all
        diagonals with `keep`, else of the last few.

        With a mask `passing`, (rows, width), no path goes on from a cell where it is false.
        """
        grid, starts, reach = self.grid, self.grid.starts, self._topology.reach
        runs, spare, work = self._work(keep and passing is None)
        memory, alpha = grid.full(grid.rows if keep else reach + ROWS)
        log_prob = np.full(len(grid.first), -np.inf)
        alpha.reshape(-1)[grid.first + (0 if keep else reach * grid.width)] = 0.0
        for start, stop, n in runs:
            top = 0 if keep else start - reach  # the diagonal in the first row of alpha
            count = stop - start
            terms: list[HostArray] = []
            arcs: list[Iterable[Any]] = []
            for step, out in zip(self._steps, spare, strict=True):
                before = start - step.ahead
                if before < 0:
                    continue
                terms.append(work[1 + len(terms), :n])
                sources = grid.block(memory, starts[before - top] - step.shift, (count, n))
                stopped = None
                if passing is not None:
                    stopped = ~passing[before : before + count, : n - step.shift]
                place = starts[before] - step.shift
                weights = self._weights(step, place, (count, n), stopped, out)
                arcs.append(zip(sources, weights, itertools.repeat(terms[-1])))
            rows: list[Iterable[Any]] = [range(start, stop), alpha[start - top : stop - top, :n]]
            for d, row, *sums in zip(*rows, *arcs, strict=True):
                for arc in sums:
                    np.add(*arc)
                if terms:
                    self._together(terms, row, work[0, :n])
                for i, sample, column in self._endings.get(d, ()):
                    if self._steps[i].arc.ends and (passing is None or passing[d, column]):
                        ending = row[column] + self._steps[i].log_prob(starts[d] + column)
                        log_prob[sample] = np.logaddexp(log_prob[sample], ending)
            if not keep:
                alpha[:reach] = alpha[count : count + reach]
                alpha[reach:] = -np.inf
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
        grid, starts = self.grid, self.grid.starts
        runs, spare, work = self._work(passing is None)
        memory, beta = grid.full(grid.rows + self._topology.reach)
        beta.reshape(-1)[grid.exit] = 0.0
        for start, stop, n in reversed(runs):
            count, terms = stop - start, list(work[1:, :n])
            arcs: list[Iterable[Any]] = []
            stopped = None if passing is None else ~passing[start:stop, :n]
            for step, out, term in zip(self._steps, spare, terms, strict=True):
                place = starts[start + step.ahead] + step.shift
                below = grid.block(memory, place, (count, n))
                weights = self._weights(step, starts[start], (count, n), stopped, out)
                arcs.append(zip(below[::-1], weights[::-1], itertools.repeat(term)))
            rows: list[Iterable[Any]] = [range(start, stop)[::-1], beta[start:stop, :n][::-1]]
            for d, row, *sums in zip(*rows, *arcs, strict=True):
                for arc in sums:
                    np.add(*arc)
                for i, _, column in self._endings.get(d, ()):
                    if not self._steps[i].arc.ends:
                        terms[i][column] = -np.inf
                self._together(terms, row, work[0, :n])
                if cap is not None:
                    np.minimum(row, cap(d, [arc[0] for arc in sums], work[0, :n]), out=row)
        return beta

    def _work(self, whole: bool) -> tuple[list[tuple[int, int, int]], HostArray, HostArray]:
        """The runs of a sweep, memory for weights of a run, (arcs, rows, width), and a row for the
        sum and for each of its terms. Unless all is in memory as a `whole`, runs are short."""
        arcs, width = len(self._steps), self.grid.width
        whole = whole and not any(step.added for step in self._steps)
        spare = np.empty((arcs, 0 if whole else ROWS, width))
        return self._runs(self.grid.rows if whole else ROWS), spare, np.empty((1 + arcs, width))

    def keep(self, least: HostArray) -> list[HostArray]:
        """The cells to keep of each sample, numbered in packed order from 0 in each sample."""
        if self._topology.looks_aside:
            least = least / 2  # half for paths through a cell, half for arcs that read it
        with np.errstate(all="ignore"):
            return [
                self._holding(sample, share) if share < np.inf else NO_CELLS
                for sample, share in enumerate(least.tolist())
            ]

    def _holding(self, sample: int, share: float) -> HostArray:
        """The cells of a sample but the least likely of each frame, which hold together less than
        `share` for each cell of the frame; and the cells that their arcs read."""
        alpha, beta = (self.grid.view(values, sample) for values in (self._alpha, self._beta))
        frames, positions = alpha.shape
        left_out = None if self._left_out is None else self.grid.view(self._left_out, sample)
        rows = max(1, _SUMMED // positions)
        cells = []
        for start in range(0, frames, rows):
            part = slice(start, start + rows)
            masses = alpha[part] + beta[part]
            masses -= self._log_prob[sample]
            np.exp(masses, out=masses)
            count: Any = positions
            if left_out is not None:
                count = np.count_nonzero(~left_out[part], axis=1, keepdims=True)
            mask = masses >= _limits(masses, share, share * count)
            if self._topology.looks_aside:
                mask[:, 1:] |= mask[:, :-1].copy()
            if left_out is not None:
                mask &= ~left_out[part]
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


def _limits(masses: HostArray, share: float, most: Any) -> HostArray:
    """For each row of masses the first of `most`, a half of it, a quarter, and so on, such that the
    smaller masses add up to less than `most`; `share` if it comes first."""
    limits = np.full((len(masses), 1), most)
    while True:
        smaller = (masses * (masses < limits)).sum(axis=1, keepdims=True)
        too_much = (smaller >= most) & (limits > share)
        if not too_much.any():
            return limits
        limits[too_much] = np.maximum(limits[too_much] / 2, share)
