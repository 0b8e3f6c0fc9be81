"""Transducers in use and ones that nobody has invented, and what a sample costs by all its paths.

The sums over paths are written down from the definitions. Of the package, they use the values
alone: which arcs and which heads there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from cupy_rnnt import multi_blank, tdt
from cupy_rnnt.topology import BLANK, KINDS, LABEL, Arc, Score, Topology
from cupy_rnnt.transducer import NAMED, Head, Transducer, transducer_of

PLAIN = NAMED["regular"]
WAIT, EMIT = Arc(1, 0, (BLANK,)), Arc(0, 1, (LABEL,))


HAT = NAMED["hat"]

TRANSDUCERS = {
    **NAMED,
    "tdt": tdt((0, 1, 2), 0.05),
    "multi-blank": multi_blank((2, 4), 0.05),
}


# A row of logits


class Columns(NamedTuple):
    """Of a row of logits, by kinds of scores."""

    of: dict[str, list[int]]

    @staticmethod
    def in_a_row(transducer: Transducer, width: int, blank: int) -> Columns:
        count = {"blank": 1, "label": 0, "duration": 0}
        for arc in transducer.topology.arcs:
            for score in (*arc.scores, *([arc.then] if arc.then else [])):
                count[score.kind] = max(count[score.kind], score.number + 1)
        tokens = list(range(width))[: width - count["duration"]]
        blanks = [tokens[blank] - i for i in range(count["blank"])]
        if transducer.blank_columns is not None:
            blanks[1:] = [tokens[column] for column in transducer.blank_columns]
        return Columns(
            {
                "blank": blanks,
                "label": [v for v in tokens if v not in blanks],
                "duration": list(range(width))[len(tokens) :],
            }
        )

    def one(self, score: Score, label: int | None) -> int:
        return label if score == LABEL else self.of[score.kind][score.number]


class Sample(NamedTuple):
    """Logits (T, S, V) and labels of a sample, and what it is a sample of."""

    logits: np.ndarray
    labels: list[int]
    transducer: Transducer
    blank: int = -1
    fused: bool = True
    delay_penalty: float = 0.0

    @property
    def columns(self) -> Columns:
        return Columns.in_a_row(self.transducer, self.logits.shape[-1], self.blank)

    def score(self, score: Score, t: int, u: int) -> tuple[float, np.ndarray]:
        """A log-probability and its derivative (V,) by the logits of the cell."""
        row, columns = self.logits[t, u], self.columns
        column = columns.one(score, self.labels[u] if score == LABEL else None)
        value, slope = row[column], np.eye(len(row))[column]
        for head in self.transducer.heads if self.fused else ():
            if score.kind not in (head.kinds if head.charges is None else head.charges):
                continue
            under = [v for kind in head.kinds for v in columns.of[kind]]
            logits = np.append(row[under], [0.0] * head.zero)
            value -= logsumexp(logits)
            slope[under] -= softmax(logits)[: len(under)]
        return value - (score.kind != "duration") * self.transducer.sigma, slope

    def scores(self) -> np.ndarray:
        """Of all cells, (K, T, S); where there is no label, -inf."""
        (T, S, _), columns = self.logits.shape, self.columns
        kinds = self.transducer.topology.scores
        found = np.full((len(kinds), T, S), -np.inf)
        for score, values in zip(kinds, found, strict=True):
            if score == LABEL:
                positions = np.arange(S - 1)
                values[:, :-1] = self.logits[:, positions, self.labels[: S - 1]]
            else:
                values[...] = self.logits[..., columns.one(score, None)]
        for head in self.transducer.heads if self.fused else ():
            under = [v for kind in head.kinds for v in columns.of[kind]]
            zeros = np.full((T, S, 1), 0.0 if head.zero else -np.inf)
            sums = logsumexp(np.concatenate((self.logits[..., under], zeros), axis=-1), axis=-1)
            for score, values in zip(kinds, found, strict=True):
                if score.kind in (head.kinds if head.charges is None else head.charges):
                    values -= sums
        for score, values in zip(kinds, found, strict=True):
            values -= (score.kind != "duration") * self.transducer.sigma
        return found


# Paths


def every_path(topology: Topology, T: int, U: int) -> Iterator[list[tuple[int, int, Arc]]]:
    """All paths from (0, 0) to (T, U): lists of cells and the arcs that leave them."""

    def behind(t: int, u: int) -> Iterator[list[tuple[int, int, Arc]]]:
        for arc in topology.arcs:
            to = t + arc.frames, u + arc.labels
            if to == (T, U):
                if arc.ends:
                    yield [(t, u, arc)]
            elif to[0] < T and to[1] <= U:
                for path in behind(*to):
                    yield [(t, u, arc), *path]

    return behind(0, 0)


def enumerated(sample: Sample, fastemit: float = 0.0) -> tuple[float, np.ndarray]:
    """Cost and gradient (T, S, V) of a sample from the list of its paths, without any recursion."""
    T, S, _ = sample.logits.shape
    grad = np.zeros(sample.logits.shape)
    paths = list(every_path(sample.transducer.topology, T, S - 1))
    if not paths:
        return np.inf, grad
    weights: dict[tuple[int, int, Arc], float] = {}
    slopes: dict[tuple[int, int, Arc], list[tuple[int, int, np.ndarray]]] = {}
    for t, u, arc in {step for path in paths for step in path}:
        read = [(t, u, score) for score in arc.scores]
        read += [(t, u + arc.labels, arc.then)] if arc.then else []
        found = [sample.score(score, *cell) for *cell, score in read]
        delay = sample.delay_penalty * ((T - 1) / 2 - t) if arc.labels else 0.0
        weights[t, u, arc] = sum(value for value, _ in found) + delay
        slopes[t, u, arc] = [
            (*cell, slope) for (*cell, _), (_, slope) in zip(read, found, strict=True)
        ]
    log_probs = np.array([sum(weights[step] for step in path) for path in paths])
    if not (log_probs > -np.inf).any():
        return np.inf, grad
    for path, posterior in zip(paths, softmax(log_probs), strict=True):
        for step in path:
            share = posterior * (1 + fastemit * step[2].labels)
            for t, u, slope in slopes[step]:
                grad[t, u] -= share * slope
    return float(-logsumexp(log_probs)), grad


# Drawing

SCORES = st.sampled_from(
    [Score("blank"), Score("blank", 1), Score("duration"), Score("duration", 1)]
)


@st.composite
def topologies(draw) -> Topology:
    """Arcs of 0 to 3 frames and 0 or 1 labels, with and without `then` and `ends`; at least one
    waits and may end a path."""
    arcs = [
        Arc(draw(st.integers(1, 3)), 0, draw(st.sampled_from([(BLANK,), (Score("duration"),)])))
    ]
    for _ in range(draw(st.integers(1, 4))):
        labels = draw(st.integers(0, 1))
        others = draw(st.lists(SCORES, min_size=1 - labels, max_size=2, unique=True))
        arc = Arc(
            draw(st.integers(1 - labels, 3)),
            labels,
            (*[LABEL] * labels, *others),
            draw(st.none() | SCORES),
            draw(st.booleans()),
        )
        if arc not in arcs:
            arcs.append(arc)
    return Topology(tuple(draw(st.permutations(arcs))))


def kinds_in(topology: Topology) -> tuple[str, ...]:
    """Those that there are columns of."""
    return KINDS[: 2 + any(score.kind == "duration" for score in topology.scores)]


@st.composite
def heads(draw, kinds) -> tuple[Head, ...]:
    """A partition of the kinds, or of some of them, and what is charged."""
    groups: dict[int, list[str]] = {}
    for kind in kinds:
        groups.setdefault(draw(st.integers(0, 3)), []).append(kind)
    groups.pop(3, None)  # under no head
    charges = st.none() | st.lists(st.sampled_from(KINDS), unique=True).map(tuple)
    return tuple(
        Head(tuple(kinds), draw(st.booleans()), draw(charges)) for kinds in groups.values()
    )


@st.composite
def transducers(draw, normalising=False) -> Transducer:
    """With `normalising`, every score is charged the head that its column is under, and others only
    if they have a zero."""
    topology, sigma = draw(topologies()), draw(st.sampled_from([0.0, 0.0, 0.1]))
    kinds = kinds_in(topology)
    chosen = list(draw(heads(kinds)))
    if normalising:
        rest = set(kinds).difference(*(head.kinds for head in chosen))
        chosen += [Head(tuple(sorted(rest)))] * bool(rest)
        for g, head in enumerate(chosen):
            others = (head.charges or ()) if head.zero else ()
            charges = dict.fromkeys((*head.kinds, *others))
            chosen[g] = head._replace(charges=tuple(charges))
    columns = draw(st.none() | st.permutations([0, 1, -1, -2]))
    if columns is not None:
        columns = columns[: Transducer(topology, tuple(chosen)).blanks - 1]
    return Transducer(topology, tuple(chosen), sigma, columns)


def width_of(transducer: Transducer, labels: int) -> int:
    """Of a row with so many labels."""
    columns = Columns.in_a_row(transducer, 99, -1).of
    return labels + len(columns["blank"]) + len(columns["duration"])


def blanks_of(transducer: Transducer, labels: int) -> list[int]:
    """Where the blank may be in it: the others are in front of it, or where they are said to be."""
    blanks = len(Columns.in_a_row(transducer, 99, -1).of["blank"])
    if transducer.blank_columns is None:
        return [*range(max(blanks - 1, 0), labels + blanks)]
    tokens = range(labels + blanks)
    return sorted({*tokens} - {tokens[column] for column in transducer.blank_columns})


def random_sample(
    rng, transducer, T, U, labels=3, *, scale=1.0, blank=None, fused=True, delay_penalty=0.0
) -> Sample:
    width = width_of(transducer, labels)
    if blank is None:
        blank = int(rng.choice(blanks_of(transducer, labels)))
    logits = scale * rng.normal(size=(T, U + 1, width))
    if not fused:
        logits -= logsumexp(logits, axis=-1, keepdims=True)
    of_labels = Columns.in_a_row(transducer, width, blank).of["label"]
    return Sample(
        logits, rng.choice(of_labels, U).tolist(), transducer, blank, fused, delay_penalty
    )


# Batches


def batch_of(samples: list[Sample]) -> tuple[np.ndarray, ...]:
    """Samples of one kind as the first arguments of a loss, with NaN for padding; the blank is the
    last."""
    shapes = [sample.logits.shape for sample in samples]
    T, S, width = map(max, zip(*shapes, strict=True))
    logits = np.full((len(samples), T + 1, S, width), np.nan)
    targets = np.full((len(samples), S - 1), -9)
    for padded, labels, sample in zip(logits, targets, samples, strict=True):
        t, s, _ = sample.logits.shape
        padded[:t, :s], labels[: s - 1] = sample.logits, sample.labels
    lengths = np.array([(t, s - 1) for t, s, _ in shapes]).T
    return logits, targets, *lengths, samples[0].blank


def padded_grads(samples: list[Sample], grads: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    """Gradients of samples as that of a batch."""
    padded = np.zeros_like(like)
    for one, grad in zip(padded, grads, strict=True):
        one[: grad.shape[0], : grad.shape[1]] = grad
    return padded


class Joint:
    """Samples of a joint network, and by the chain rule what their logits' gradients make."""

    def __init__(self, transducer, extents, seed, scale=1.0, **options):
        rng = np.random.default_rng(seed)
        self.blank = int(rng.choice(blanks_of(transducer, 3)))
        size, hidden, width = len(extents), 5, width_of(transducer, 3)
        T, U = map(max, zip(*extents, strict=True))
        shapes = (size, T + 1, hidden), (size, U + 1, hidden), (width, hidden), (width,)
        self.inputs = [scale * rng.normal(size=shape) for shape in shapes]
        encoder_out, predictor_out, weight, bias = self.inputs
        self.hidden, self.samples = [], []
        self.targets = np.zeros((size, U), int)
        for b, (t, u) in enumerate(extents):
            self.hidden.append(np.tanh(encoder_out[b, :t, None] + predictor_out[b, : u + 1]))
            sample = random_sample(rng, transducer, t, u, blank=self.blank, **options)
            sample = sample._replace(logits=self.hidden[-1] @ weight.T + bias)
            self.targets[b, :u] = sample.labels
            self.samples.append(sample)
        self.arguments = *self.inputs, self.targets, *np.array(extents).T, self.blank

    def expected(self, fastemit=0.0):
        """Costs, and gradients of the sum of those that are finite."""
        grads = [np.zeros_like(array) for array in self.inputs]
        costs = []
        for b, (sample, hidden) in enumerate(zip(self.samples, self.hidden, strict=True)):
            cost, d_logits = enumerated(sample, fastemit)
            costs.append(cost)
            grads[2] += np.einsum("tuv,tuh->vh", d_logits, hidden)
            grads[3] += d_logits.sum(axis=(0, 1))
            d_sum = (d_logits @ self.inputs[2]) * (1 - hidden**2)
            grads[0][b, : len(hidden)] = d_sum.sum(axis=1)
            grads[1][b, : hidden.shape[1]] = d_sum.sum(axis=0)
        return costs, grads


OPTIONS = {
    "modified": {"transducer": "modified", "delay_penalty": 0.2},
    "constrained": {"transducer": "constrained"},
    "a penalty": {"delay_penalty": 0.3},
    "hat": {"transducer": "hat", "delay_penalty": -0.1},
    "a text": {"transducer": str(multi_blank((2, 4), 0.05))},
    "a value": {"transducer": tdt((0, 1, 2), 0.05)},
}
"""For the tests of adapters."""


def value_of(options) -> Transducer:
    return transducer_of("transducer", options.get("transducer", "regular"))
