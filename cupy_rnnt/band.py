"""Which cells exist: in each frame of a sample, a run of positions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .ops.types import HostArray
from .topology import Arc, Topology

_CHUNK = 2**18  # cells of the samples whose paths are sought at once


class Band(NamedTuple):
    """The positions ``first[b, t]`` to ``stop[b, t] - 1`` exist, at least one in every frame of a
    sample and none behind its last frame; int64 (B, most frames), on the host."""

    first: HostArray
    stop: HostArray

    @staticmethod
    def of(
        first: HostArray,
        width: HostArray,
        frames: HostArray,
        positions: HostArray,
        topology: Topology,
    ) -> Band:
        """The band of first positions (B, any) and widths (B,), widened where it holds no path."""
        is_frame = np.arange(frames.max()) < frames[:, None]
        first = np.where(is_frame, first[:, : frames.max()], 0)
        most = positions[:, None]
        stop = np.where(is_frame, first + np.minimum(width[:, None], most - first), 0)
        band = Band(first, stop)
        band._widen(frames, positions, topology)
        return band

    def counts(self, samples: slice) -> HostArray:
        """How many cells each of some samples has."""
        counts: HostArray = (self.stop[samples] - self.first[samples]).sum(axis=1)
        return counts

    def packed(self, samples: slice, offsets: HostArray, positions: HostArray) -> HostArray:
        """Packed indices of the cells of some samples, given the index of the first cell and the
        number of positions of each."""
        frames = np.arange(self.first.shape[1])
        places = (offsets[:, None] + frames * positions[:, None] + self.first[samples]).ravel()
        counts = (self.stop[samples] - self.first[samples]).ravel()
        before = np.cumsum(counts) - counts
        packed: HostArray = np.arange(counts.sum())
        packed += np.repeat(places - before, counts)
        return packed

    def _widen(self, frames: HostArray, positions: HostArray, topology: Topology) -> None:
        """Widen the band of each sample that has paths, but none within the band.

        The distance of a cell from the band is how many positions it is off in its frame. Of all
        paths, take one whose cells have the least sum of distances, and widen the band of each
        frame as far as this path needs.
        """
        widened = []
        for samples in self._doubtful(frames, positions, topology):
            for b, path in _nearest_paths(self, samples, frames, positions, topology):
                for t, u in path:
                    self.first[b, t] = min(self.first[b, t], u)
                    self.stop[b, t] = max(self.stop[b, t], u + 1)
                widened.append(b)
        if widened:
            also = f", and so was that of {len(widened) - 1} more" if len(widened) > 1 else ""
            text = f"the band of sample {widened[0]} holds no path and was widened{also}"
            warnings.warn(text, stacklevel=7)  # of the caller of a loss

    def _doubtful(
        self, frames: HostArray, positions: HostArray, topology: Topology
    ) -> Iterator[HostArray]:
        """Samples of which it takes more than a look to say that a path is within, in chunks."""
        doubtful = np.arange(len(frames))
        arcs = topology.arcs
        if any(arc[:2] == (0, 1) for arc in arcs) and any(_waits(arc) for arc in arcs):
            # Such a path goes to the next frame as soon as it has reached a position there.
            reached = np.maximum.accumulate(self.first, axis=1)
            inside = reached < self.stop
            inside[:, 1:] &= reached[:, 1:] < self.stop[:, :-1]
            inside |= self.stop == 0  # behind the last frame
            last = self.stop[doubtful, frames - 1]
            doubtful = np.flatnonzero(
                ~inside.all(axis=1) | (self.first[:, 0] > 0) | (last < positions)
            )
        count = max(1, _CHUNK // int(frames.max() * positions.max()))
        yield from (doubtful[i : i + count] for i in range(0, len(doubtful), count))


def _waits(arc: Arc) -> bool:
    """Whether an arc takes a frame, may end a path, and reads no other cell."""
    return arc[:2] == (1, 0) and arc.ends


def _nearest_paths(
    band: Band, samples: HostArray, frames: HostArray, positions: HostArray, topology: Topology
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Of the samples that have paths, but none within the band: the cells that a nearest one leads
    through or reads."""
    frames, positions = frames[samples], positions[samples]
    distances = _distances(band, samples, frames, positions)
    nearest = _nearest(distances, topology)
    for i, b in enumerate(samples.tolist()):
        T, S = int(frames[i]), int(positions[i])
        if 0 < nearest[i, T - 1, S - 1] < np.inf:
            yield b, list(_cells_of(nearest[i, :T, :S], distances[i, :T, :S], topology))


def _distances(
    band: Band, samples: HostArray, frames: HostArray, positions: HostArray
) -> HostArray:
    """Of all cells from the band, (n, T, S), counted from the last cell of each sample backwards;
    inf beyond its first cell."""
    T, S = int(frames.max()), int(positions.max())
    row, column = np.arange(len(samples))[:, None], frames[:, None] - 1 - np.arange(T)
    u = positions[:, None, None] - 1 - np.arange(S)
    first = band.first[samples][row, column][..., None]
    stop = band.stop[samples][row, column][..., None]
    distances: HostArray = np.maximum(np.maximum(first - u, u - stop + 1), 0).astype(np.float64)
    distances[(column[..., None] < 0) | (u < 0)] = np.inf
    return distances


def _nearest(distances: HostArray, topology: Topology) -> HostArray:
    """The least sum of distances of a path from each cell to the end, (n, T, S)."""
    nearest = np.full_like(distances, np.inf)
    of_no_frame = [arc for arc in topology.arcs if arc.frames == 0]
    for t, own in enumerate(distances.swapaxes(0, 1)):
        behind = nearest[:, t]
        for arc in topology.arcs:
            if arc.frames > 0:
                labels, sums = arc.labels, np.full_like(own, np.inf)
                if arc.frames <= t:
                    ahead = nearest[:, t - arc.frames]
                    sums[:, labels:] = ahead[:, : ahead.shape[1] - labels]
                elif arc.frames == t + 1 and arc.ends and labels < own.shape[1]:
                    sums[:, labels] = 0.0
                if arc.then is not None and labels:
                    sums[:, labels:] += own[:, : own.shape[1] - labels]
                np.minimum(behind, sums, out=behind)
        behind += own
        if of_no_frame:
            for u in range(1, own.shape[1]):
                np.minimum(behind[:, u], behind[:, u - 1] + own[:, u], out=behind[:, u])
    return nearest


def _cells_of(
    nearest: HostArray, distances: HostArray, topology: Topology
) -> Iterator[tuple[int, int]]:
    """The cells that the nearest path of a sample leads through or reads; distances are counted
    backwards."""
    last_frame, last_position = nearest.shape[0] - 1, nearest.shape[1] - 1
    t, u = last_frame, last_position  # to go

    def beyond(arc: Arc) -> float:
        to = t - arc.frames, u - arc.labels
        at_end = to == (-1, 0) and arc.ends
        if min(to) < 0 and not at_end:
            return np.inf
        reads_aside = arc.then is not None and arc.frames and arc.labels
        aside = distances[t, to[1]] if reads_aside else 0.0
        return float(aside if at_end else aside + nearest[to])

    while t >= 0:
        yield last_frame - t, last_position - u
        arc = min(topology.arcs, key=beyond)
        if arc.then is not None:
            yield last_frame - t, last_position - u + arc.labels
        t, u = t - arc.frames, u - arc.labels
