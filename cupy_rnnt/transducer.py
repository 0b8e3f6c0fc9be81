"""What a transducer is, as values: scores, arcs and heads. No arrays and no device.

A row of logits gives a cell ``(t, u)`` a few *scores*: log-probabilities of blanks, of the next
label, of durations. An *arc* leads from the cell to another one and adds up some scores. A *head*
is a softmax over a part of the row. The transducer of Graves has two scores, two arcs and one head.
A new transducer is a new value, made of its arcs and heads, and needs no other code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

KINDS = "blank", "label", "duration"
LABEL_COLUMN = -1
"""In :attr:`Row.columns`: the column of the next label of the cell, which differs by row."""


class Score(NamedTuple):
    """A log-probability of a cell: its kind, and its number among the scores of that kind.

    Kinds are ``"blank"``, ``"label"``, which has the number 0 only, and ``"duration"``.
    """

    kind: str
    number: int = 0


BLANK, LABEL = Score("blank"), Score("label")


class Arc(NamedTuple):
    """A transition from ``(t, u)`` to ``(t + frames, u + labels)``.

    Its log-probability is the sum of `scores` at ``(t, u)`` and, unless it is None, of the score
    `then` at ``(t, u + labels)``. A path is complete at ``(T, U)``, which is no cell; an arc
    without `ends` may not lead there.
    """

    frames: int
    labels: int
    scores: tuple[Score, ...]
    then: Score | None = None
    ends: bool = True


class Head(NamedTuple):
    """A softmax over the columns of some kinds of scores, and a logit of 0 if there is a `zero`.

    Its log-sum-exp is subtracted from the scores of the kinds in `charges`, by default `kinds`.

    Examples
    --------
    The probability of the blank is a logistic sigmoid; the rest is left for the labels:

    >>> from cupy_rnnt import Head
    >>> Head(("blank",), zero=True, charges=("blank", "label")).charged
    ('blank', 'label')
    """

    kinds: tuple[str, ...]
    zero: bool = False
    charges: tuple[str, ...] | None = None

    @property
    def charged(self) -> tuple[str, ...]:
        return self.kinds if self.charges is None else self.charges


SOFTMAX = (Head(KINDS),)
"""One softmax over the whole row."""


@dataclass(frozen=True)
class Topology:
    """The arcs that leave every cell.

    Raises
    ------
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
        unknown = [score for score in scores if score.kind not in KINDS or score.number < 0]
        if arc.frames < 0 or arc.labels not in (0, 1) or arc.frames + arc.labels == 0:
            ahead = f"leads {arc.frames} frames and {arc.labels} labels ahead"
            return f"{ahead}, but must lead at least one of them ahead, and at most one label"
        if unknown:
            return f"has the score {unknown[0]}, but kinds are {KINDS}"
        if any(score.kind == "label" and score != LABEL for score in scores):
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


class RowHead(NamedTuple):
    """A softmax over columns ``start`` to ``stop - 1`` of each of `ranges`, and a logit of 0 if
    there is a `zero`; `labels` says whether labels are among these columns."""

    ranges: tuple[tuple[int, int], ...]
    zero: bool
    labels: bool


class Row(NamedTuple):
    """How K scores come out of a row of logits: ``scores[k] = logits[columns[k]] - sum(lse[g] for g
    in charged[k]) - shifts[k]``, with the log-sum-exps of G heads.

    The first `tokens` columns are those of tokens; `others` are the ranges that hold no labels.
    """

    width: int
    columns: tuple[int, ...]
    heads: tuple[RowHead, ...]
    charged: tuple[tuple[int, ...], ...]
    shifts: tuple[float, ...]
    tokens: int
    others: tuple[tuple[int, int], ...]

    @property
    def under_no_head(self) -> list[tuple[int, int]]:
        """Ranges of columns that no softmax is over."""
        ranges, behind = [], 0
        for start, stop in sorted(span for head in self.heads for span in head.ranges):
            if start > behind:
                ranges.append((behind, start))
            behind = stop
        return [*ranges, (behind, self.width)] if behind < self.width else ranges


@dataclass(frozen=True)
class Transducer:
    """A topology, the heads that its scores are charged, and `sigma`, which is subtracted from the
    scores of tokens.

    Tokens come first in a row of logits: the labels, the blank and, in front of the blank, the
    second, third and further blanks. Durations follow. V is the number of tokens, and an index of
    the blank below 0 counts from their end.

    Raises
    ------
    ValueError
        If a kind of score is in two heads, or is unknown, if a head is over no column, or if
        `sigma` is not finite or below 0.

    Examples
    --------
    A transducer with a second blank, of two frames, which is the column in front of the blank:

    >>> import numpy as np, cupy_rnnt
    >>> from cupy_rnnt import Arc, Score, Topology, Transducer
    >>> blank, label, of_two = Score("blank"), Score("label"), Score("blank", 1)
    >>> arcs = Arc(1, 0, (blank,)), Arc(2, 0, (of_two,)), Arc(0, 1, (label,))
    >>> transducer = Transducer(Topology(arcs))
    >>> logits = np.zeros((1, 2, 1, 4))  # two frames and no label: one blank, or two
    >>> loss = cupy_rnnt.rnnt_loss(
    ...     logits, np.zeros((1, 0), int), [2], [0], blank=3, transducer=transducer)
    >>> bool(np.isclose(loss, -np.log(1 / 4 + 1 / 4**2)))
    True
    """

    topology: Topology
    heads: tuple[Head, ...] = SOFTMAX
    sigma: float = 0.0

    def __post_init__(self) -> None:
        kinds = [kind for head in self.heads for kind in head.kinds]
        twice = {kind for kind in kinds if kinds.count(kind) > 1 or kind not in KINDS}
        if twice:
            raise ValueError(
                f"heads name {sorted(twice)}, but each of {', '.join(KINDS)} may be in one head"
            )
        absent = set() if self.durations else {"duration"}
        for g, head in enumerate(self.heads):
            if not head.kinds:
                raise ValueError(f"heads[{g}] is over no kinds, but needs some of {KINDS}")
            if not head.zero and not set(head.kinds) - absent:
                raise ValueError(f"heads[{g}] is over the columns of {head.kinds}, but none exists")
            unknown = set(head.charged) - set(KINDS)
            if unknown:
                raise ValueError(f"heads[{g}] charges {sorted(unknown)}, but kinds are {KINDS}")
        if not 0 <= self.sigma < np.inf:
            raise ValueError(f"sigma is {self.sigma}, but it must be finite and at least 0")

    @cached_property
    def blanks(self) -> int:
        """How many tokens are blanks: at least 1, even if no arc reads the score of a blank."""
        return max(1, self._count("blank"))

    @cached_property
    def durations(self) -> int:
        """How many columns of durations follow the tokens."""
        return self._count("duration")

    def _count(self, kind: str) -> int:
        numbers = [score.number for score in self.topology.scores if score.kind == kind]
        return 1 + max(numbers, default=-1)

    @cached_property
    def normalises(self) -> bool:
        """Whether no score is above 0: each is charged the head that its column is under, and
        another head only if that has a zero, so that its log-sum-exp is above 0."""
        charges = [(head, kind) for head in self.heads for kind in head.charged]
        own = {kind for head, kind in charges if kind in head.kinds}
        above = {kind for head, kind in charges if kind not in head.kinds and not head.zero}
        return {score.kind for score in self.topology.scores} <= own - above

    @cached_property
    def most_mass(self) -> int:
        """A bound of the sum of the probabilities of all arcs that leave a cell, if the transducer
        `normalises`: 1 if the arcs exclude each other, as those of all named transducers do."""
        return self._most_mass([arc.scores for arc in self.topology.arcs])

    def _most_mass(self, products: Iterable[tuple[Score, ...]]) -> int:
        """The same of some products: those with different scores of one head exclude each other."""
        ended, following = 0, dict[Score, list[tuple[Score, ...]]]()
        for scores in products:
            if scores:
                following.setdefault(scores[0], []).append(scores[1:])
            else:
                ended += 1
        groups: list[list[Score]] = []
        for score in following:
            for group in groups:
                if all(self._exclude_each_other(score, other) for other in group):
                    group.append(score)
                    break
            else:
                groups.append([score])
        masses = (max(self._most_mass(following[score]) for score in group) for group in groups)
        return ended + sum(masses)

    def _exclude_each_other(self, a: Score, b: Score) -> bool:
        """Whether both are shares of one softmax: of two columns, or of a column and the zero."""
        for head in self.heads:
            charged = [score for score in (a, b) if score.kind in head.charged]
            own = sum(score.kind in head.kinds for score in charged)
            if len(charged) == 2 and own + head.zero >= 2:
                return True
        return False

    def row(self, width: int, blank: int, normalised: bool = False) -> Row:
        """The scores in a row of `width` logits whose blank is column `blank`; without heads if the
        logits are `normalised`, that is, log-probabilities already."""
        tokens, blanks = width - self.durations, self.blanks
        of_kind = {
            "blank": [(blank - blanks + 1, blank + 1)],
            "label": [(0, blank - blanks + 1), (blank + 1, tokens)],
            "duration": [(tokens, width)],
        }
        first = {"blank": blank, "label": LABEL_COLUMN, "duration": tokens}
        step = {"blank": -1, "label": 0, "duration": 1}
        scores = self.topology.scores
        heads = () if normalised else self.heads
        return Row(
            width,
            tuple(first[score.kind] + step[score.kind] * score.number for score in scores),
            tuple(
                RowHead(
                    _joined(of_kind[kind] for kind in head.kinds), head.zero, "label" in head.kinds
                )
                for head in heads
            ),
            tuple(
                tuple(g for g, head in enumerate(heads) if score.kind in head.charged)
                for score in scores
            ),
            tuple(0.0 if score.kind == "duration" else self.sigma for score in scores),
            tokens,
            _joined((of_kind["blank"], of_kind["duration"])),
        )

    def __str__(self) -> str:
        names = (name for name, transducer in NAMED.items() if transducer == self)
        return next(names, json.dumps(astuple(self)))

    @staticmethod
    def parse(text: str) -> Transducer:
        """The inverse of :func:`str`."""
        if text in NAMED:
            return NAMED[text]
        (arcs,), heads, sigma = json.loads(text)
        return Transducer(Topology(tuple(map(_arc, arcs))), tuple(map(_head, heads)), sigma)


def _arc(fields: list[Any]) -> Arc:
    frames, labels, scores, then, ends = fields
    return Arc(frames, labels, tuple(Score(*s) for s in scores), then and Score(*then), ends)


def _head(fields: list[Any]) -> Head:
    kinds, zero, charges = fields
    return Head(tuple(kinds), zero, None if charges is None else tuple(charges))


def _joined(kinds: Iterable[list[tuple[int, int]]]) -> tuple[tuple[int, int], ...]:
    """The ranges of all kinds in ascending order, adjacent ones joined, without empty ones."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(span for ranges in kinds for span in ranges if span[0] < span[1]):
        if joined and joined[-1][1] == start:
            start, _ = joined.pop()
        joined.append((start, stop))
    return tuple(joined)


_WAIT = Arc(1, 0, (BLANK,))
NAMED = {
    # Graves 2012, arXiv 1211.3711.
    "regular": Transducer(Topology((_WAIT, Arc(0, 1, (LABEL,))))),
    # Of k2: a label takes a frame, too, and may be the last arc.
    "modified": Transducer(Topology((_WAIT, Arc(1, 1, (LABEL,))))),
    # Of k2: a label is followed by a blank of the same frame.
    "constrained": Transducer(Topology((_WAIT, Arc(1, 1, (LABEL,), then=BLANK)))),
}
"""The transducers that have a name."""


def transducer_of(name: str, value: Any) -> Transducer:
    """The transducer that the argument `name` is, or says by name or by text."""
    if isinstance(value, Transducer):
        return value
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, but a name or a Transducer is needed")
    try:
        return Transducer.parse(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, but one of {', '.join(NAMED)} is needed") from None
