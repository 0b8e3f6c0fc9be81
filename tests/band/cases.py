"""Bands, and what samples cost within them by the list of all paths."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..transducers.cases import Sample, Topology, every_path


class BandedSample(NamedTuple):
    """A sample for :func:`tests.transducers.cases.enumerated`, of which some cells exist."""

    sample: Sample
    inside: np.ndarray
    """Bool (T, S)."""

    logits = property(lambda self: self.sample.logits)
    labels = property(lambda self: self.sample.labels)
    transducer = property(lambda self: self.sample.transducer)
    delay_penalty = property(lambda self: self.sample.delay_penalty)

    def score(self, score, t, u):
        if not self.inside[t, u]:
            return -np.inf, np.zeros(self.logits.shape[-1])
        return self.sample.score(score, t, u)

    def scores(self):
        return np.where(self.inside, self.sample.scores(), -np.inf)

    @property
    def poisoned(self) -> Sample:
        """With NaN for the logits of cells that do not exist."""
        return self.sample._replace(logits=np.where(self.inside[..., None], self.logits, np.nan))


def random_bands(rng, shapes, frames=None, wide=4):
    """First positions (B, T) and widths (B,) for samples of given (T, S), with nonsense behind the
    last frame of each. They climb, or are anywhere."""
    frames = frames or max(T for T, _ in shapes)
    first = np.full((len(shapes), frames), -99)
    for row, (T, S) in zip(first, shapes, strict=True):
        row[:T] = rng.integers(0, S, T)
        if rng.random() < 0.7:
            row[:T].sort()
            row[0] = 0
    return first, rng.integers(1, wide + 1, len(shapes))


def masks(first, width, shapes):
    """The cells in a band, bool (T, S) of each sample."""
    for row, w, (T, S) in zip(first, np.broadcast_to(width, len(shapes)), shapes, strict=True):
        u = np.arange(S) - row[:T, None]
        yield (u >= 0) & (u < w)


def cells_of_paths(topology: Topology, T: int, U: int) -> list[set[tuple[int, int]]]:
    """The cells that each path leads through or reads."""
    return [
        {
            cell
            for t, u, arc in path
            for cell in [(t, u), *([(t, u + arc.labels)] if arc.then is not None else [])]
        }
        for path in every_path(topology, T, U)
    ]
