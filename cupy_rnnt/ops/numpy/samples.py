"""The tables of a call on NumPy."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ...transducer import Row
from ..types import Coordinates, HostArray

__all__ = ["Samples", "coordinates", "tables"]


class Samples:
    """See :class:`cupy_rnnt.ops.types.Samples`.

    Parameters
    ----------
    numbers : shape (n,)
        In the batch.
    frames, positions : shape (n,)
    cells : shape (n,)
        The packed index of the first cell of each sample.
    labels : shape (n, any)
    """

    def __init__(
        self,
        numbers: HostArray,
        frames: HostArray,
        positions: HostArray,
        cells: HostArray,
        labels: HostArray,
    ) -> None:
        self.numbers, self.frames, self.positions = numbers, frames, positions
        self.cells, self.labels = cells, labels

    def __len__(self) -> int:
        return len(self.numbers)

    def run(self, start: int, stop: int) -> Samples:
        return self._of(slice(start, stop))

    def chosen(self, numbers: HostArray) -> Samples:
        return self._of(numbers)

    def _of(self, index: HostArray | slice) -> Samples:
        arrays = self.numbers, self.frames, self.positions, self.cells, self.labels
        return Samples(*(array[index] for array in arrays))

    @property
    def counts(self) -> tuple[HostArray, HostArray]:
        """Rows of each sample: frames (side 0) and positions (1)."""
        return self.frames, self.positions

    @cached_property
    def ends(self) -> tuple[HostArray, ...]:
        """Where the frames of each sample, and its positions, end among those of all samples."""
        return tuple(counts.cumsum() for counts in self.counts)

    @property
    def rows(self) -> tuple[int, int]:
        frames, positions = self.ends
        return int(frames[-1]), int(positions[-1])

    @cached_property
    def firsts(self) -> tuple[HostArray, ...]:
        """Where they begin."""
        return tuple(end - count for end, count in zip(self.ends, self.counts, strict=True))

    @cached_property
    def next_labels(self) -> HostArray:
        """The next label at each position of all samples."""
        labels: HostArray = self.labels[np.arange(self.labels.shape[1]) < self.positions[:, None]]
        return labels

    def with_rows(self, side: int, rows: HostArray) -> HostArray:
        """The sample of each frame (`side` 0) or position (1), by its number among these."""
        numbers: HostArray = self.ends[side].searchsorted(rows, side="right")
        return numbers


def tables(
    row: Row, frames: HostArray, positions: HostArray, labels: HostArray
) -> tuple[Row, Samples]:
    cells = frames * positions
    first = cells.cumsum() - cells
    return row, Samples(np.arange(len(frames)), frames, positions, first, labels)


def coordinates(samples: Samples, packed: HostArray) -> Coordinates:
    sample = samples.cells.searchsorted(packed, side="right") - 1
    positions = samples.positions[sample]
    within = packed - samples.cells[sample]
    frame = within // positions
    position = within - frame * positions
    label = samples.labels[sample, position]
    return Coordinates(sample, frame, position, label, position < positions - 1)
