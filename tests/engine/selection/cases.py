"""What the tests of certified selection share: spies, and the checks.

Selection is meant for large joints; :func:`selecting` switches it on for those of the tests. The
checks compare with float64 log-probs that nothing under test has computed, and raise AssertionError
so that the tests of mutations can see them fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

import numpy as np

import cupy_rnnt
from cupy_rnnt import joint, reference
from cupy_rnnt.engine import joint_source, selection
from cupy_rnnt.engine.joint_source import JointSource
from cupy_rnnt.engine.plan import Tiles, make_plan
from cupy_rnnt.topology import LABEL
from cupy_rnnt.transducer import Transducer

from ...device_calls import joint_rnnt_loss, joint_rnnt_loss_and_grad, to_device, to_host
from ...helpers import JointCase, least_budget
from ...tolerances import cost_tolerance
from ...transducers.cases import PLAIN, Sample
from .joints import shapes
from .lattices import BoundedSample, log_prob_of_paths


class LogProbs(NamedTuple):
    """Of one sample: scores (K, T, S), without what a delay penalty adds; and the largest sum of
    the absolute values of what a logit is the sum of, or 1."""

    scores: np.ndarray
    size: float
    transducer: Transducer
    delay_penalty: float

    @property
    def whole(self) -> BoundedSample:
        """With all cells in C."""
        mask = np.ones(self.scores.shape[1:], bool)
        return BoundedSample(self.scores, self.scores, mask, self.transducer, self.delay_penalty)

    def of_paths(self, mask: np.ndarray | None = None) -> float:
        """log P of the paths inside a set of cells, or of all, by the recursion."""
        whole, topology = self.whole, self.transducer.topology
        if mask is None:
            return whole.log_prob()
        inside = whole._replace(mask=mask).inside
        return log_prob_of_paths(whole.delayed(self.scores), topology, inside)

    def rounding(self) -> float:
        """Error of a cost in float64: that of the table of tolerances, which is for logits of
        moderate size, in units of their size if it is larger than the cost."""
        tolerance = cost_tolerance(np.float64, sum(self.scores.shape[1:]) - 1)
        full = self.of_paths()
        return tolerance * max(self.size, abs(full) if np.isfinite(full) else 1.0)


def exact_log_probs(
    case: JointCase, activation="tanh", transducer=PLAIN, delay_penalty=0.0
) -> Iterator[LogProbs]:
    """In float64 throughout."""
    apply = reference.ACTIVATIONS[activation]
    encoder_out, predictor_out, weight = (array.astype(np.float64) for array in case[:3])
    bias = np.zeros(len(weight)) if case.bias is None else case.bias.astype(np.float64)
    for b, (t, s) in enumerate(shapes(case)):
        hidden, _ = apply(encoder_out[b, :t, None] + predictor_out[b, :s])
        labels = case.targets[b, : s - 1].tolist()
        sample = Sample(hidden @ weight.T + bias, labels, transducer, case.blank)
        terms = abs(hidden) @ abs(weight).T
        size = (terms + np.where(np.isfinite(bias), abs(bias), 0.0)).max(initial=1.0)
        yield LogProbs(sample.scores(), float(size), transducer, delay_penalty)


# Selection, switched on, led astray and watched


@contextmanager
def selecting(most: float = 1.0, surely: bool = True) -> Iterator[None]:
    """Select in joints of any size; give up on samples that need more than the share `most`."""
    elements = 0 if surely else 2**62
    with ExitStack() as stack:
        for module, name, value in (
            (joint_source, "_SELECTING_ELEMENTS", 0),
            (joint_source, "_SURELY_GAINING_ELEMENTS", elements),
            (joint_source, "_SURELY_GAINING_WIDTH", 0),
            (selection, "_WORTH_REFERENCES", 0.0),
            (selection, "_MOST", most),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


@contextmanager
def first_choice(choose: Callable[..., np.ndarray]) -> Iterator[None]:
    """Let ``choose(lattice, frames, columns)`` choose the cells of the first round: a mask of all
    cells in packed order."""

    original = selection.next_cells

    def next_cells(lattice, lengths, computed, least, rounds):
        if rounds:
            return original(lattice, lengths, computed, least, rounds)
        return listed(choose(lattice, lengths.frames, lengths.positions), lengths)

    with mock.patch.object(selection, "next_cells", next_cells):
        yield


def listed(marks, lengths) -> tuple[np.ndarray, np.ndarray]:
    """The marked cells of some samples, and how many each sample has."""
    marks, starts = to_host(marks), np.cumsum(lengths.cells) - lengths.cells
    assert marks.shape == (lengths.cells.sum(),)
    counts = np.add.reduceat(marks, starts, dtype=np.int64)
    return to_device(lengths.first + np.flatnonzero(marks)), counts


def below(nats: float) -> Callable[..., np.ndarray]:
    """Cells through which a path may lead that is at most `nats` below the bound of log P."""
    return lambda lattice, frames, columns: lattice.candidates(np.full(len(frames), -nats))[0]


def with_holes(share: float, seed: int) -> Callable[..., np.ndarray]:
    """A selection as it might be, less some random cells."""
    rng = np.random.default_rng(seed)

    def choose(lattice, frames, columns):
        new, _ = lattice.candidates(np.full(len(frames), -10.0))
        there = to_device(rng.random(new.shape) >= share)
        return new & there | no_path(lattice, frames, columns)

    return choose


def a_subset(share: float, seed: int) -> Callable[..., np.ndarray]:
    """Random cells of each sample, the last one among them."""
    rng = np.random.default_rng(seed)

    def choose(lattice, frames, columns):
        last = no_path(lattice, frames, columns)
        return last | to_device(rng.random(last.shape) < share)

    return choose


def one_path(seed: int) -> Callable[..., np.ndarray]:
    """The cells of one random path of each sample."""
    rng = np.random.default_rng(seed)

    def choose(lattice, frames, columns):
        masks = []
        for t, s in zip(frames, columns, strict=True):
            labels = rng.permutation(np.arange(t + s - 2) < s - 1)
            u = np.concatenate([[0], labels.cumsum()])
            mask = np.zeros((t, s), bool)
            mask[np.arange(len(u)) - u, u] = True
            masks.append(mask.ravel())
        return to_device(np.concatenate(masks))

    return choose


def no_path(lattice, frames, columns) -> np.ndarray:
    """The last cell of each sample alone, where no path inside gets to unless there is no other."""
    new = np.zeros((frames * columns).sum(), bool)
    new[np.cumsum(frames * columns) - 1] = True
    return to_device(new)


class Computed:
    """Which cells pass 1 has computed."""

    def __init__(self) -> None:
        self._cells: list[np.ndarray] = []

    def add(self, cells) -> None:
        self._cells.append(np.stack(to_host((cells.sample, cells.frame, cells.position))))

    def masks(self, case: JointCase) -> list[np.ndarray]:
        """Of each sample, (T, S); no cell may have been computed twice."""
        counts = [np.zeros(shape, int) for shape in shapes(case)]
        for b, t, u in np.concatenate(self._cells, axis=1).T:
            counts[b][t, u] += 1
        assert all((count <= 1).all() for count in counts)
        return [count > 0 for count in counts]


@contextmanager
def computed_cells() -> Iterator[Computed]:
    """Watch pass 1 over a joint."""
    computed, original = Computed(), JointSource.write_scores

    def write_scores(self, lattice, cells, *rest):
        computed.add(cells)
        original(self, lattice, cells, *rest)

    with mock.patch.object(JointSource, "write_scores", write_scores):
        yield computed


# The checks


class Bounds(NamedTuple):
    """Of the scores of one sample, (K, T, S); what was added to them for rounding."""

    scores: np.ndarray
    slack: float


def checked_call(case: JointCase, **options) -> joint.JointCall:
    *arrays, blank = to_device(case)
    return joint.checked(*arrays, blank=blank, reduction="none", **options)


def least_selecting_budget(case: JointCase, gradient: bool) -> int:
    """The smallest budget of which a plan with selection can be made."""
    with selecting():
        call = checked_call(case)
        source = call.source(gradient)

        def selects(budget: int) -> bool:
            options = checked_call(case, max_workspace_bytes=budget).options
            plan = make_plan(source, call.batch, options, gradient, store=gradient)
            return plan.selecting

        function = joint_rnnt_loss_and_grad if gradient else joint_rnnt_loss
        low = least_budget(function, *case)
        high = low + 2**30
        assert selects(high)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if selects(middle) else (middle + 1, high)
    return high


def bounds_of(case: JointCase, activation="tanh", rows=7, transducer=PLAIN) -> list[Bounds]:
    """What :class:`~cupy_rnnt.engine.tangents.Tangents` says of each sample, by tiles of rows."""
    call = checked_call(case, activation=activation, transducer=transducer)
    source = call.source(gradient=False)
    tangents, scratch = source.tangents(np.arange(call.batch.size)), source.scratch(rows)
    scores = len(transducer.topology.scores)
    bounds = to_device(np.full((scores, call.batch.cell_count), np.nan))
    with np.errstate(all="ignore"):  # as of the workers
        for tile in Tiles(tangents.frames + tangents.positions, rows, 1):
            tangents.linearize(*tile, scratch)
        for tile in Tiles(tangents.frames, min(rows, 3), 1):
            tangents.upper_bounds(*tile, scratch, 0, bounds)
    slack = to_host(tangents._forms.slack)
    of_samples = np.split(to_host(bounds), call.batch.offsets[1:-1], axis=1)
    return [
        Bounds(values.reshape(scores, *shape), float(slack))
        for values, shape, slack in zip(of_samples, shapes(case), slack, strict=True)
    ]


def check_bounds(case: JointCase, activation="tanh", rows=7, transducer=PLAIN) -> list[Bounds]:
    """No bound is below the truth, nor above 0, and those of a cell are of one distribution.

    Without slack, exp(blank) + exp(label) of the plain transducer would not exceed 1 by more than
    the rounding of a few float64 operations, which slack is far above.
    """
    bounds = bounds_of(case, activation, rows, transducer)
    log_probs = exact_log_probs(case, activation, transducer)
    kinds = transducer.topology.scores
    for (scores, slack), exact in zip(bounds, log_probs, strict=True):
        assert (scores >= exact.scores).all()
        assert scores.max() <= 0
        if LABEL in kinds:
            assert (scores[kinds.index(LABEL), :, -1] == -np.inf).all()
        if transducer == PLAIN:
            assert np.exp(scores).sum(axis=0).max() <= np.exp(min(2 * slack, 1.0))
    return bounds


class Certified(NamedTuple):
    """Of one sample: what was computed, the certificate, and what it bounds."""

    computed: np.ndarray
    certificate: float
    error: float


def check_certificate(
    case: JointCase,
    tolerance: float,
    choose: Callable[..., np.ndarray] | None = None,
    activation="tanh",
    most: float = 1.0,
    transducer=PLAIN,
    delay_penalty: float = 0.0,
) -> tuple[list[Certified], cupy_rnnt.Info]:
    """Costs are those of the paths inside what was computed, and what they miss is below the
    certificate, which is at most half the tolerance.

    Log-probs of float64 inputs are as exact here as there, so that both may be off by the rounding
    of a cost, and no more.
    """
    with ExitStack() as stack:
        stack.enter_context(selecting(most))
        if choose is not None:
            stack.enter_context(first_choice(choose))
        computed = stack.enter_context(computed_cells())
        options = {"transducer": transducer, "delay_penalty": delay_penalty}
        options |= {"activation": activation, "reduction": "none", "return_info": True}
        costs, info = joint_rnnt_loss(*case, tolerance=tolerance, **options)
    masks = computed.masks(case)
    assert info.computed == sum(mask.sum() for mask in masks)
    assert info.cells == sum(mask.size for mask in masks)
    assert 1 <= info.rounds <= 3
    assert info.certificate.shape == costs.shape
    found = []
    log_probs = exact_log_probs(case, activation, transducer, delay_penalty)
    for cost, certificate, mask, exact in zip(
        costs, info.certificate, masks, log_probs, strict=True
    ):
        inside, rounding = exact.of_paths(mask), exact.rounding()
        if mask.all():
            assert certificate == 0
            error = 0.0
        else:
            assert 0 < certificate <= tolerance / 2
            error = float(np.expm1(exact.of_paths() - inside))
            assert -rounding <= error <= certificate + rounding
        np.testing.assert_allclose(cost, -inside, rtol=0, atol=rounding)
        found.append(Certified(mask, float(certificate), error))
    return found, info
