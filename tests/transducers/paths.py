"""The likeliest path of a sample, from the list of all its paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cupy_rnnt.topology import LABEL

from .cases import Sample, every_path


class Path(NamedTuple):
    """The frames at which labels are emitted, the frames that their arcs take, its log-prob."""

    frames: list[int]
    durations: list[int]
    log_prob: float


def paths_of(sample: Sample) -> Iterator[Path]:
    """All paths of a sample, those first whose first arcs are first in the topology. Sums begin at
    the end of a path."""
    topology, scores = sample.transducer.topology, sample.scores()
    (T, S), number = scores.shape[1:], topology.scores.index
    if LABEL in topology.scores:
        delays = sample.delay_penalty * ((T - 1) / 2 - np.arange(T))
        scores[number(LABEL)] += delays[:, None]
    for path in every_path(topology, T, S - 1):
        log_prob = 0.0
        for t, u, arc in reversed(path):
            first, *rest = [scores[number(score), t, u] for score in arc.scores]
            rest += [scores[number(arc.then), t, u + arc.labels]] if arc.then else []
            log_prob = sum(rest, first) + log_prob
        labels = [(t, arc.frames) for t, _, arc in path if arc.labels]
        yield Path([t for t, _ in labels], [frames for _, frames in labels], log_prob)


def likeliest(sample: Sample, margin: float = 0.0) -> list[Path]:
    """The paths whose log-prob is the largest, or at most a margin below; no impossible ones."""
    paths = [path for path in paths_of(sample) if path.log_prob > -np.inf]
    best = max((path.log_prob for path in paths), default=-np.inf)
    return [path for path in paths if path.log_prob >= best - margin]


def found_in(alignment, b: int, labels: int) -> Path:
    """The path of a sample in an alignment, behind whose labels there must be -1."""
    frames = alignment.frames[b]
    durations = frames if alignment.durations is None else alignment.durations[b]
    assert (frames[labels:] == -1).all()
    assert (durations[labels:] == -1).all()
    parts = (array[:labels].tolist() for array in (frames, durations))
    return Path(*parts, float(alignment.log_prob[b]))
