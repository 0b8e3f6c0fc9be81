"""The cells of a sample by the textbook: their scores, and the gradient of their rows of logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from ..topology import LABEL, Topology
from ..transducer import LABEL_COLUMN, Row
from .lattice import FloatArray, occupancies, quiet

IntArray = NDArray[np.int64]
Band = tuple[ArrayLike, ArrayLike] | None


class Cells:
    """The scores of the cells of one sample, and the gradient of its rows of logits.

    `frames` starts a sweep over the frames of logits, (S, V) each; it is called twice.
    """

    def __init__(
        self,
        frames: Callable[[], Iterable[FloatArray]],
        labels: IntArray,
        row: Row,
        topology: Topology,
        delay_penalty: float,
    ) -> None:
        self.frames, self.labels, self.row, self.topology = frames, labels, row, topology
        # The column of each score at each position; at the last one, that of the label is any.
        of_label = np.append(labels, 0)
        self.columns = [of_label if c == LABEL_COLUMN else of_label * 0 + c for c in row.columns]
        self.scores = np.stack([self.scores_of(frame) for frame in frames()], axis=1)
        if LABEL in topology.scores:
            of_labels = self.scores[topology.scores.index(LABEL)]
            of_labels[:, -1] = -np.inf
            T = len(of_labels)
            of_labels += delay_penalty * ((T - 1) / 2 - np.arange(T)[:, None])

    def within(self, band: Band, b: int) -> Cells:
        """These cells, of which those outside the band of sample b have no probability."""
        if band is not None:
            first, width = band
            _, T, S = self.scores.shape
            u = np.arange(S) - np.asarray(first)[b, :T, None]
            self.scores[
                :, (u < 0) | (u >= np.broadcast_to(width, np.shape(first)[:1])[b])
            ] = -np.inf
        return self

    @quiet
    def log_sum_exps(self, logits: FloatArray) -> FloatArray:
        """The log-sum-exp of each head, (G, S)."""
        sums = np.empty((len(self.row.heads), len(logits)))
        for of_head, head in zip(sums, self.row.heads, strict=True):
            parts = [logits[:, start:stop] for start, stop in head.ranges]
            parts.append(np.full((len(logits), 1), 0.0 if head.zero else -np.inf))
            of_head[:] = logsumexp(np.concatenate(parts, axis=1), axis=1)
        return sums

    @quiet
    def scores_of(self, logits: FloatArray) -> FloatArray:
        """The scores of the cells of a frame, (K, S)."""
        positions, sums = np.arange(len(logits)), self.log_sum_exps(logits)
        kinds = zip(self.columns, self.row.charged, self.row.shifts, strict=True)
        return np.array(
            [
                logits[positions, columns] - sum(sums[g] for g in charged) - shift
                for columns, charged, shift in kinds
            ]
        )

    def gradients(self, clamp: float, of_labels: float) -> tuple[float, Iterator[FloatArray]]:
        """Cost of the sample, and its gradient frame by frame; no frames if it is not finite."""
        if np.isnan(self.scores).any():
            return np.nan, iter(())
        of_cells, log_prob = occupancies(self.scores, self.topology, of_labels)
        if not np.isfinite(log_prob):
            return -log_prob, iter(())

        def frames() -> Iterator[FloatArray]:
            for logits, of_frame in zip(self.frames(), of_cells.swapaxes(0, 1), strict=True):
                grad = self.gradient_of(logits, of_frame)
                yield np.clip(grad, -clamp, clamp) if clamp > 0 else grad

        return -log_prob, frames()

    def gradient_of(self, logits: FloatArray, of_frame: FloatArray) -> FloatArray:
        """The gradient of the logits (S, V) of a frame, from its occupancies (K, S)."""
        grad, sums = np.zeros_like(logits), self.log_sum_exps(logits)
        for g, head in enumerate(self.row.heads):
            of_head = [o for o, c in zip(of_frame, self.row.charged, strict=True) if g in c]
            mass = sum(of_head, np.zeros(len(grad)))
            # A cell that no path visits has gradient 0, even where its softmax is undefined.
            visited = np.flatnonzero(mass > 0)
            for start, stop in head.ranges:
                softmax = np.exp(logits[visited, start:stop] - sums[g, visited, None])
                grad[visited, start:stop] = mass[visited, None] * softmax
        for columns, of_score in zip(self.columns, of_frame, strict=True):
            grad[np.arange(len(grad)), columns] -= of_score
        return grad
