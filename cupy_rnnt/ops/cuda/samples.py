"""The tables of a call on CUDA: of the samples of its batch, and of a row of its logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...transducer import Row
from ..types import Coordinates, DeviceArray, HostArray
from .launch import Kernel, cupy
from .rows import DeviceRow, row_words

__all__ = ["Samples", "coordinates", "tables"]

_TILE_FRAMES, _TILE_POSITIONS = 64, 16  # as in bounds.cu
_CELL, _FRAME, _POSITION, _COLUMN, _TILE, _LABEL, _NUMBER = range(7)  # as in samples.cuh
_COORDINATES = Kernel("coordinates", "coordinates.cu", variants=((),))


class Samples(NamedTuple):
    """See :class:`cupy_rnnt.ops.types.Samples`."""

    words: DeviceArray  # int64: a table of kernels/samples.cuh, from the first sample on
    labels: DeviceArray  # int64: the next label at each position of the batch
    totals: HostArray  # int64, (n + 1, 7): the table on the host

    @property
    def size(self) -> int:
        return len(self.totals) - 1

    @property
    def table(self) -> tuple[DeviceArray, int]:
        """A Samples of kernels/samples.cuh."""
        return self.words, self.size

    @property
    def batch(self) -> tuple[DeviceArray, int, DeviceArray]:
        """A Batch of kernels/coordinates.cuh, of all samples."""
        return self.words, self.size, self.labels

    @property
    def first_cell(self) -> int:
        return int(self.totals[0, _CELL])

    @property
    def start(self) -> int:
        """The number of the first sample in the batch."""
        return int(self.totals[0, _NUMBER])

    @property
    def cells(self) -> int:
        return self._total(_CELL)

    @property
    def rows(self) -> tuple[int, int]:
        return self._total(_FRAME), self._total(_POSITION)

    @property
    def columns(self) -> int:
        """Of the lattices of all samples."""
        return self._total(_COLUMN)

    @property
    def lengths(self) -> HostArray:
        """Frames, positions and columns of each sample, (3, n)."""
        return np.diff(self.totals[:, _FRAME : _COLUMN + 1].T)

    def _total(self, column: int) -> int:
        return int(self.totals[-1, column] - self.totals[0, column])

    def run(self, start: int, stop: int) -> Samples:
        if (start, stop) == (0, self.size):
            return self
        totals = self.totals[start : stop + 1]
        return self._replace(words=self.words[totals.shape[1] * start :], totals=totals)

    def chosen(self, numbers: HostArray) -> Samples:
        first, last = numbers[[0, -1]].tolist()
        if last - first == len(numbers) - 1:
            return self.run(first, last + 1)
        frames, positions, _ = self.lengths[:, numbers]
        totals = _totals(frames, positions)
        own = [_CELL, _LABEL, _NUMBER]
        totals[:-1, own] = self.totals[numbers][:, own]
        return Samples(cupy().asarray(totals.reshape(-1)), self.labels, totals)

    def tiles(self, start: int, stop: int) -> tuple[int, int]:
        """The first tile of cells of frames `start` to ``stop - 1``, and how many there are."""
        totals = (self.totals - self.totals[0]).T
        frames = totals[_FRAME]
        first, last = frames[:-1].searchsorted([start, stop - 1], side="right") - 1
        across = -(-np.diff(totals[_POSITION]) // _TILE_POSITIONS)
        begin = totals[_TILE, first] + (start - frames[first]) // _TILE_FRAMES * across[first]
        down = (stop - 1 - frames[last]) // _TILE_FRAMES + 1
        return int(begin), int(totals[_TILE, last] + down * across[last] - begin)


def _totals(frames: HostArray, positions: HostArray) -> HostArray:
    """The words of a batch of samples."""
    totals = np.zeros((len(frames) + 1, 7), np.int64)
    tiles = -(-frames // _TILE_FRAMES) * -(-positions // _TILE_POSITIONS)
    counts = frames * positions, frames, positions, np.minimum(frames, positions), tiles
    np.stack(counts, axis=1).cumsum(axis=0, out=totals[1:, : len(counts)])
    totals[:, _LABEL] = totals[:, _POSITION]
    totals[:, _NUMBER] = np.arange(len(totals))
    return totals


def tables(
    row: Row, frames: HostArray, positions: HostArray, labels: HostArray
) -> tuple[DeviceRow, Samples]:
    """See the contract. Both tables go to the device in one copy, which takes the host 24 us."""
    totals, words = _totals(frames, positions), row_words(row)
    flat = labels[np.arange(labels.shape[1]) < positions[:, None]]
    copy = cupy().asarray(np.concatenate((totals.reshape(-1), flat, words.host), dtype=np.int64))
    on_device = copy[totals.size :]
    samples = Samples(copy, on_device[: len(flat)], totals)
    return words.on_device(on_device[len(flat) :]), samples


def coordinates(samples: Samples, packed: DeviceArray) -> Coordinates:
    count = len(packed)
    results, has_label = cupy().empty((4, count), np.int64), cupy().empty(count, np.bool_)
    _COORDINATES[()](count, count, packed, *samples.batch, results, has_label)
    sample, frame, position, label = results
    return Coordinates(sample, frame, position, label, has_label)
