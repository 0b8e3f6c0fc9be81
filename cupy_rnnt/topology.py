"""Paths through a lattice, as values: the arcs that leave every cell, and their scores."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

KINDS = "blank", "label", "duration"


class Score(NamedTuple):
    """A log-probability of a cell: its kind, and its number among the scores of that kind.

    Kinds are ``"blank"``, ``"label"``, which has the number 0 only, and ``"duration"``. The number
    says which column of a row the score is in, see :class:`Transducer`; it is not one of frames.

    Examples
    --------
    >>> from cupy_rnnt import Score
    >>> Score("blank") == Score("blank", 0)
    True
    """

    kind: str
    number: int = 0


BLANK, LABEL = Score("blank"), Score("label")


class Arc(NamedTuple):
    """A transition from ``(t, u)`` to ``(t + frames, u + labels)``.

    Its log-probability is the sum of `scores` at ``(t, u)`` and, unless it is None, of the score
    `then` at ``(t, u + labels)``. A path is complete at ``(T, U)``, which is no cell; an arc
    without `ends` may not lead there.

    Examples
    --------
    A label that takes a frame, and a blank of two frames, which is the second kind of blank:

    >>> from cupy_rnnt import Arc, Score
    >>> Arc(frames=1, labels=1, scores=(Score("label"),)).ends
    True
    >>> Arc(frames=2, labels=0, scores=(Score("blank", 1),)).scores
    (Score(kind='blank', number=1),)
    """

    frames: int
    labels: int
    scores: tuple[Score, ...]
    then: Score | None = None
    ends: bool = True


@dataclass(frozen=True)
class Topology:
    """The arcs that leave every cell.

    Raises
    ------
    TypeError
        If an arc is not made of integers and scores.
    ValueError
        If an arc does not lead ahead, if its scores do not fit the labels that it emits, or if no
        arc can end a path.

    Examples
    --------
    >>> from cupy_rnnt import Arc, Score, Topology
    >>> wait, emit = Arc(1, 0, (Score("blank"),)), Arc(1, 1, (Score("label"),))
    >>> topology = Topology((wait, emit))
    >>> topology.reach
    2
    """

    arcs: tuple[Arc, ...]

    def __post_init__(self) -> None:
        check_entries("arcs", self.arcs, Arc, "a tuple of arcs")
        object.__setattr__(self, "arcs", tuple(map(_arc_of, range(len(self.arcs)), self.arcs)))
        for i, arc in enumerate(self.arcs):
            fault = self._fault_of(arc)
            if arc in self.arcs[:i]:
                fault = f"is the same as arcs[{self.arcs.index(arc)}]"
            if fault:
                raise ValueError(f"arcs[{i}] {fault}")
        if not any(arc.ends and arc.frames for arc in self.arcs):
            raise ValueError("no arc leads to the end of a path: one with frames must end paths")

    def _fault_of(self, arc: Arc) -> str:
        scores = self.read_by(arc)
        if arc.frames < 0 or arc.labels not in (0, 1) or arc.frames + arc.labels == 0:
            ahead = f"leads {arc.frames} frames and {arc.labels} labels ahead"
            return f"{ahead}, but must lead at least one of them ahead, and at most one label"
        for score in scores:
            if score.kind not in KINDS:
                return f"has the score {score}, but kinds are {KINDS}"
            if score.number < 0:
                return f"has the score {score}, but numbers begin at 0"
            if score.kind == "label" and score != LABEL:
                return "has a second score of the label, but there is one column for it"
        if not arc.scores or len(set(arc.scores)) < len(arc.scores):
            return f"has the scores {arc.scores}, but must have at least one, and none twice"
        if arc.scores.count(LABEL) != arc.labels or arc.then == LABEL:
            emits = f"emits {arc.labels} labels, but its scores are {arc.scores} then {arc.then}"
            return f"{emits}: that of the label must be among the first once for each label"
        return ""

    @staticmethod
    def read_by(arc: Arc) -> tuple[Score, ...]:
        return arc.scores if arc.then is None else (*arc.scores, arc.then)

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """The K different scores: blanks, the label, durations."""
        different = {score for arc in self.arcs for score in self.read_by(arc)}
        return tuple(sorted(different, key=lambda score: (KINDS.index(score.kind), score.number)))

    @cached_property
    def reach(self) -> int:
        """How many anti-diagonals ``t + u`` the longest arc crosses."""
        return max(arc.frames + arc.labels for arc in self.arcs)

    def within(self, frames: int) -> Topology:
        """The same scores, and the arcs that can be on a path of at most so many frames: lattices
        hold as much as the longest arc crosses. If none can end a path, the only arc is one that
        does not fit either."""
        arcs = tuple(arc for arc in self.arcs if arc.frames <= frames)
        if arcs == self.arcs:
            return self
        if not any(arc.ends and arc.frames for arc in arcs):
            shortest = min((arc for arc in self.arcs if arc.ends), key=lambda arc: arc.frames)
            arcs = (shortest._replace(frames=1 << frames.bit_length()),)  # of few lengths
        within = Topology(arcs)
        within.__dict__["scores"] = self.scores  # in the place of the cached ones
        return within

    @cached_property
    def looks_aside(self) -> bool:
        """Whether some arc reads the score of a second cell."""
        return any(arc.then is not None and arc.labels > 0 for arc in self.arcs)

    @cached_property
    def cpp(self) -> str:
        """The template argument of kernels, see ``kernels/topology.cuh``."""
        return f"Topology<{', '.join(map(self._cpp_of, self.arcs))}>"

    def _cpp_of(self, arc: Arc) -> str:
        number = self.scores.index
        then = -1 if arc.then is None else number(arc.then)
        values = arc.frames, arc.labels, str(arc.ends).lower(), then, *map(number, arc.scores)
        return f"Arc<{', '.join(map(str, values))}>"

    def path_arcs(self, frames: Any, labels: Any) -> tuple[Any, Any]:
        """Bounds of the fewest and the most arcs of a path of so many frames and labels, exact if
        all arcs with a label take equally many frames, and all arcs without one do."""
        emitting = [arc.frames for arc in self.arcs if arc.labels] or [0]
        waiting = [arc.frames for arc in self.arcs if not arc.labels]
        if not waiting:
            return labels, labels
        least, most = (np.maximum(frames - labels * take(emitting), 0) for take in (max, min))
        return labels - (-least // max(waiting)), labels + most // min(waiting)


def _arc_of(i: int, arc: Any) -> Arc:
    """An arc of integers and a tuple of scores, as it must be to be hashed."""
    frames, labels = (
        integer(f"arcs[{i}].{name}", getattr(arc, name)) for name in ("frames", "labels")
    )
    check_entries(f"arcs[{i}].scores", arc.scores, Score, "a tuple of scores")
    then = () if arc.then is None else (arc.then,)
    check_entries(f"arcs[{i}].then", then, Score, "a Score or None")
    for score in (*arc.scores, *then):
        integer(f"arcs[{i}]: the number of {score}", score.number)
    return Arc(frames, labels, tuple(arc.scores), arc.then, boolean(f"arcs[{i}].ends", arc.ends))


def check_entries(name: str, values: Any, kind: type, needed: str) -> None:
    """Refuse what is no tuple or list of values of a kind, which may be tuples themselves."""
    if isinstance(values, kind) or not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} is {values!r}, but {needed} is needed")
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise TypeError(f"{name}[{i}] is {value!r}, but {kind.__name__} is needed")


def boolean(name: str, value: Any) -> bool:
    """True or False, and no other type: the text ``"False"`` would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}, but True or False is needed")
    return bool(value)


def integers(name: str, values: Any) -> tuple[int, ...]:
    """Integers of any iterable."""
    try:
        listed = list(values)
    except TypeError:
        raise TypeError(f"{name} is {values!r}, but a list of integers is needed") from None
    for i, value in enumerate(listed):
        if isinstance(value, bool):
            raise TypeError(f"{name}[{i}] is {value!r}, but an integer is needed")
    return tuple(integer(f"{name}[{i}]", value) for i, value in enumerate(listed))


def integer(name: str, value: Any) -> int:
    try:
        if not isinstance(value, np.bool_):  # an index in older NumPy, which warns
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} is {value!r}, but an integer is needed")
