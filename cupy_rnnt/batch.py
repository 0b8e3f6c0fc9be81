"""The ragged batch: validated lengths and labels, and the packed order of its cells."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from . import checks
from .band import Band
from .ops import Operations
from .ops.types import ArrayLike, Cells, DeviceArray, HostArray, Samples
from .tokens import Tokens
from .topology import Topology

INTEGERS = "targets", "logit_lengths", "target_lengths"
"""The integer arguments of every loss, in order."""
BandLike: TypeAlias = tuple[ArrayLike, ArrayLike] | None
"""A band as the caller gives it: first positions (B, T), and a width, or one for each sample."""


class Batch:
    """Lengths, labels and cell offsets of a batch, valid by construction, on the host.

    Cells are numbered in packed order: sample by sample, then frame by frame, then position by
    position, so cell ``(b, t, u)`` is ``offsets[b] + t * positions[b] + u``.

    Parameters
    ----------
    targets : array_like, shape (B, U), any integer type
    logit_lengths, target_lengths : array_like, shape (B,), any integer type
    shape : (B, T, U + 1)
        Extents of the padded lattice; no length may exceed them.
    blank : int
        Index in ``[-V, V)``.
    tokens : Tokens
        What a row of logits holds.
    band : (first, width), optional
        Of integers: in frame t of sample b, the `width` positions from ``first[b, t]`` on exist.
        By default all of them do.
    topology : Topology, optional
        Needed with a band, which is widened where it holds no path.

    Attributes
    ----------
    frames, positions : numpy.ndarray, shape (B,), int64
        ``logit_lengths`` and ``target_lengths + 1``.
    labels : numpy.ndarray, shape (B, max(positions)), intp
        The targets with 0 wherever there is no label, padding included.
    offsets : numpy.ndarray, shape (B + 1,), int64
    most_labels : int
        The padded extent U.
    band : Band, optional
    blank : int
        Index in ``[0, V)``.
    """

    def __init__(
        self,
        targets: Any,
        logit_lengths: Any,
        target_lengths: Any,
        shape: tuple[int, int, int],
        blank: int,
        tokens: Tokens,
        *,
        band: Any = None,
        topology: Topology | None = None,
    ) -> None:
        size, frames, positions = shape
        self.most_labels = positions - 1
        self.blank = tokens.blank(blank)
        targets, logit_lengths, target_lengths, *of_band = checks.integers(
            ("targets", targets, (size, positions - 1)),
            ("logit_lengths", logit_lengths, (size,)),
            ("target_lengths", target_lengths, (size,)),
            *([] if band is None else checks.band(band, size, frames)),
        )
        self.frames = checks.lengths("logit_lengths", logit_lengths, 1, frames)
        label_counts = checks.lengths("target_lengths", target_lengths, 0, positions - 1)
        self.positions = label_counts + 1
        checks.cell_count(self.frames, self.positions)
        self.offsets = np.concatenate(([0], np.cumsum(self.frames * self.positions)))
        longest = int(label_counts.max())
        targets = targets[:, :longest]
        valid = np.arange(longest) < label_counts[:, None]
        tokens.check_labels(targets, valid, self.blank)
        self.labels = np.zeros((size, longest + 1), np.intp)
        np.copyto(self.labels[:, :-1], targets, where=valid, casting="unsafe")
        self.band: Band | None = None
        if of_band and topology is not None:
            first, width = checks.within_band(of_band, self.frames, label_counts)
            self.band = Band.of(first, width, self.frames, self.positions, topology)

    @property
    def size(self) -> int:
        return len(self.frames)

    @property
    def label_counts(self) -> HostArray:
        return self.positions - 1

    @property
    def cell_count(self) -> int:
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Peak bytes that building this object takes, temporaries included."""
        of_band = 0 if self.band is None else 6 * self.band.first.nbytes
        return 3 * self.labels.nbytes + 160 * self.size + of_band

    def run(self, start: int, stop: int) -> range:
        """Packed indices of all cells of samples ``start`` to ``stop - 1``."""
        return range(int(self.offsets[start]), int(self.offsets[stop]))

    def counts(self, start: int, stop: int) -> HostArray:
        """How many cells each of samples ``start`` to ``stop - 1`` has, within its band."""
        samples = slice(start, stop)
        if self.band is not None:
            return self.band.counts(samples)
        counts: HostArray = self.frames[samples] * self.positions[samples]
        return counts


class CellsOf:
    """Makes lists of cells of a batch on a device."""

    def __init__(self, ops: Operations, samples: Samples) -> None:
        self._locate, self._samples = ops.coordinates, samples

    def __call__(self, packed: DeviceArray) -> Cells:
        """Cells, from their packed indices (n,)."""
        return Cells(packed, self._samples, self._locate)
