"""What a transducer is, as values: scores, arcs and heads. No arrays and no device.

A row of logits gives a cell ``(t, u)`` a few *scores*: log-probabilities of blanks, of the next
label, of durations. An *arc* leads from the cell to another one and adds up some scores. A *head*
is a softmax over a part of the row. The transducer of Graves has two scores, two arcs and one head.
A new transducer is a new value, made of its arcs and heads, and needs no other code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .topology import BLANK, KINDS, LABEL, Arc, Score, Topology, boolean, check_entries, integers

LABEL_COLUMN = -1
"""In :attr:`Row.columns`: the column of the next label of the cell, which differs by row."""


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
    scores of tokens, also from log-probabilities that are given as such.

    Tokens come first in a row of logits: labels and blanks. Score ``("blank", i)`` is in column
    ``blank - i`` or, with `blank_columns`, for i above 0 in column ``blank_columns[i - 1]``.
    Durations follow: score ``("duration", i)`` is in the i-th column behind the tokens. The largest
    numbers in the arcs say how many columns of either kind there are. V is the number of tokens,
    and the index of a blank below 0 counts from their end.

    By default one head is a softmax over the whole row. A kind of score that no head charges counts
    as it is in the row.

    Raises
    ------
    TypeError
        If an argument is not of its type.
    ValueError
        If a kind of score is in two heads, or is unknown, if a head is over no column, if `sigma`
        is not finite or below 0, or if there is not one of `blank_columns` for each blank but the
        first. A loss refuses columns that are out of range or not distinct.

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
    blank_columns: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, kind in ("topology", self.topology, Topology), ("sigma", self.sigma, Real):
            if not isinstance(value, kind):
                raise TypeError(f"{name} is {value!r}, but a {kind.__name__} is needed")
        check_entries("heads", self.heads, Head, "a tuple of heads")
        heads = tuple(map(_head_of, range(len(self.heads)), self.heads))
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "sigma", float(self.sigma))
        kinds = [kind for head in heads for kind in head.kinds]
        twice = {kind for kind in kinds if kinds.count(kind) > 1}
        if twice:
            raise ValueError(
                f"heads name {sorted(twice)} twice, but a kind may be in one head only"
            )
        absent = set() if self.durations else {"duration"}
        for g, head in enumerate(heads):
            if not head.kinds:
                raise ValueError(f"heads[{g}] is over no kinds, but needs some of {KINDS}")
            if not head.zero and not set(head.kinds) - absent:
                raise ValueError(f"heads[{g}] is over the columns of {head.kinds}, but none exists")
        if not 0 <= self.sigma < np.inf:
            raise ValueError(f"sigma is {self.sigma}, but it must be finite and at least 0")
        if self.blank_columns is not None:
            columns = integers("blank_columns", self.blank_columns)
            object.__setattr__(self, "blank_columns", columns)
            if len(columns) != self.blanks - 1:
                raise ValueError(
                    f"blank_columns is {columns}, but {self.blanks - 1} are needed: one for each "
                    "blank but the first"
                )

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

    def within(self, frames: int) -> Transducer:
        """What it is for samples of at most so many frames."""
        topology = self.topology.within(frames)
        return self if topology is self.topology else replace(self, topology=topology)

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

    def columns_of_blanks(self, tokens: int, blank: int) -> tuple[int, ...]:
        """Which of the tokens are blanks, in the order of their numbers."""
        if self.blank_columns is None:
            return tuple(range(blank, blank - self.blanks, -1))
        return blank, *(v + tokens if v < 0 else v for v in self.blank_columns)

    def row(self, width: int, blank: int, normalised: bool = False) -> Row:
        """The scores in a row of `width` logits whose blank is column `blank`; without heads if the
        logits are `normalised`, that is, log-probabilities already."""
        tokens = width - self.durations
        blanks = self.columns_of_blanks(tokens, blank)
        ends = sorted(blanks)
        of_kind = {
            "blank": [(column, column + 1) for column in blanks],
            "label": list(zip((0, *(end + 1 for end in ends)), (*ends, tokens), strict=True)),
            "duration": [(tokens, width)],
        }
        columns = {"blank": blanks, "label": (LABEL_COLUMN,), "duration": range(tokens, width)}
        scores = self.topology.scores
        heads = () if normalised else self.heads
        return Row(
            width,
            tuple(columns[score.kind][score.number] for score in scores),
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
        try:
            (arcs,), heads, sigma, columns = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"text is {text!r}, but that of a transducer is needed") from None
        topology = Topology(tuple(map(_arc, arcs)))
        return Transducer(topology, tuple(map(_head, heads)), sigma, columns)


def _arc(fields: list[Any]) -> Arc:
    frames, labels, scores, then, ends = fields
    return Arc(frames, labels, tuple(Score(*s) for s in scores), then and Score(*then), ends)


def _head(fields: list[Any]) -> Head:
    kinds, zero, charges = fields
    return Head(tuple(kinds), zero, None if charges is None else tuple(charges))


def _head_of(g: int, head: Any) -> Head:
    """A head with tuples of kinds, as it must be to be hashed."""
    for name, kinds in ("kinds", head.kinds), ("charges", head.charged):
        check_entries(f"heads[{g}].{name}", kinds, str, "a tuple of kinds")
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"heads[{g}].{name} has {unknown[0]!r}, but kinds are {KINDS}")
    charges = None if head.charges is None else tuple(head.charges)
    return Head(tuple(head.kinds), boolean(f"heads[{g}].zero", head.zero), charges)


def _joined(kinds: Iterable[list[tuple[int, int]]]) -> tuple[tuple[int, int], ...]:
    """The ranges of all kinds in ascending order, adjacent ones joined, without empty ones."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(span for ranges in kinds for span in ranges if span[0] < span[1]):
        if joined and joined[-1][1] == start:
            start, _ = joined.pop()
        joined.append((start, stop))
    return tuple(joined)


_WAIT, _EMIT = Arc(1, 0, (BLANK,)), Arc(0, 1, (LABEL,))
NAMED = {
    # Graves 2012, arXiv 1211.3711.
    "regular": Transducer(Topology((_WAIT, _EMIT))),
    # Of k2: a label takes a frame, too, and may be the last arc.
    "modified": Transducer(Topology((_WAIT, Arc(1, 1, (LABEL,))))),
    # Of k2: a label is followed by a blank of the same frame.
    "constrained": Transducer(Topology((_WAIT, Arc(1, 1, (LABEL,), then=BLANK)))),
    # Variani 2020, arXiv 2003.07705: a sigmoid for the blank, a softmax for what it leaves.
    "hat": Transducer(
        Topology((_WAIT, _EMIT)),
        (Head(("blank",), zero=True, charges=("blank", "label")), Head(("label",))),
    ),
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
        raise ValueError(
            f"{name} is {value!r}, but one of {', '.join(NAMED)} is needed, or a Transducer, as "
            "tdt() and multi_blank() return"
        ) from None
