"""The checks of certified selection notice what they are there for: each fails under a mutation.

Cases are those that pass without one, which the last test makes sure of.
"""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.engine import selection
from cupy_rnnt.engine.tangents import Tangents
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.numpy.bounded import BoundedSweeps

from .cases import below, check_bounds, check_certificate, with_holes
from .joints import aligned_case, any_case
from .lattices import check_lattice, random_samples


def bounds_checked():
    """Of joints of any kind, in both arithmetics."""
    for seed in range(12):
        for dtype in (np.float32, np.float64):
            rng = np.random.default_rng(seed)
            check_bounds(any_case(rng, 2, 9, 6, 12, 8, dtype=dtype))
            check_bounds(aligned_case(rng, 2, 20, 6, 12, 8, dtype=dtype))


def certificates_checked():
    """Of joints that leave out much, with and without repair."""
    for seed in range(8):
        case = aligned_case(np.random.default_rng(seed), 2, 30, 9, 12, 16, sharpness=6.0)
        for choose in (None, below(3.0), with_holes(0.02, seed)):
            check_certificate(case, 1e-2, choose)


def lattices_checked():
    for seed in range(12):
        check_lattice(random_samples(np.random.default_rng(seed), [(9, 7), (4, 8), (1, 5)]))


CHECKS = {
    "bounds": bounds_checked,
    "certificates": certificates_checked,
    "lattices": lattices_checked,
}


def slopes_of_the_next_frame():
    """What is no tangent of anything."""
    original = cpu.upper_bounds

    def upper_bounds(rows, frames, *others):
        frames = frames._replace(vectors=np.roll(frames.vectors, 1, axis=0))
        return original(rows, frames, *others)

    return mock.patch.object(cpu, "upper_bounds", upper_bounds)


def constants_too_high():
    """A line above the tangent of a prefix."""
    original = Tangents.linearize

    def linearize(self, start, stop, scratch):
        original(self, start, stop, scratch)
        start, stop = (max(number - self.frames, 0) for number in (start, stop))
        self._tangents[1].constants[start:stop, -1] += 0.1

    return mock.patch.object(Tangents, "linearize", linearize)


def tangents_that_count_the_blank():
    """Its logit is added to them, so that it counts twice."""

    def label_softmax(rows, dtype):
        ((blank, _),) = rows.layout.others
        other = 0 if blank else 1
        layout = rows.layout._replace(others=((other, other + 1),))
        return original(rows._replace(layout=layout), dtype)

    original = cpu.label_softmax
    return mock.patch.object(cpu, "label_softmax", label_softmax)


def negative_slack():
    original = cpu.slack

    def slack(*arguments):
        values, fits = original(*arguments)
        return np.full_like(values, -1e-2), fits

    return mock.patch.object(cpu, "slack", slack)


def nothing_leaves():
    """All that is not computed is forgotten as soon as something is."""
    original = BoundedSweeps.certify

    def certify(self):
        mass = original(self)
        return mass._replace(leaving=np.where(self._exact.any(), -np.inf, mass.leaving))

    return mock.patch.object(BoundedSweeps, "certify", certify)


def nothing_is_known_outside():
    """Bounds outside C are forgotten when it comes to certify it, as if they were of 0."""
    original = BoundedSweeps.certify

    def certify(self):
        if self._exact.any():
            np.copyto(self._scores, -np.inf, where=~self._exact)
        return original(self)

    return mock.patch.object(BoundedSweeps, "certify", certify)


def betas_too_low():
    """What leaves C is taken for less than it may be."""
    original = BoundedSweeps._backward

    def backward(self, passing=None, cap=None):
        beta = original(self, passing, cap)
        if cap is not None and self._exact.any():
            beta -= 1.0
        return beta

    return mock.patch.object(BoundedSweeps, "_backward", backward)


def any_certificate_will_do():
    """What is too large is let through."""
    original = selection.Certified.first

    def first(self, work, group):
        selected = original(self, work, group)
        return selected and selected._replace(goal=selection.Mass(np.inf))

    return mock.patch.object(selection.Certified, "first", first)


MUTATIONS = [
    (slopes_of_the_next_frame, "bounds"),
    (constants_too_high, "bounds"),
    (tangents_that_count_the_blank, "bounds"),
    (negative_slack, "bounds"),
    (slopes_of_the_next_frame, "certificates"),
    (constants_too_high, "certificates"),
    (tangents_that_count_the_blank, "certificates"),
    (negative_slack, "certificates"),
    (nothing_leaves, "certificates"),
    (nothing_leaves, "lattices"),
    (nothing_is_known_outside, "certificates"),
    (nothing_is_known_outside, "lattices"),
    (betas_too_low, "certificates"),
    (betas_too_low, "lattices"),
    (any_certificate_will_do, "certificates"),
]


@pytest.mark.parametrize(
    ("mutation", "check"), MUTATIONS, ids=[f"{m.__name__}-{check}" for m, check in MUTATIONS]
)
def test_mutation_is_noticed(mutation, check):
    with mutation(), pytest.raises(AssertionError) as caught:
        CHECKS[check]()
    package = Path(cupy_rnnt.__file__).parent  # nothing in there has noticed
    assert package not in caught.traceback[-1].path.parents


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_is_noticed_otherwise(check):
    CHECKS[check]()
