"""Certified selection for transducers of any arcs and heads: bounds, certificates and gradients.

``CUPY_RNNT_MANY_JOINTS`` is how many random joints the last tests draw; 5,000 take some minutes.
"""

from __future__ import annotations

import os
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st

from cupy_rnnt import reference
from cupy_rnnt.engine import selection
from cupy_rnnt.ops.numpy.bounded import BoundedSweeps
from cupy_rnnt.transducer import NAMED, Transducer

from ...device_calls import examples, joint_rnnt_loss, joint_rnnt_loss_and_grad
from ...tolerances import assert_costs_close, assert_gradients_close
from ...transducers.cases import TRANSDUCERS, blanks_of, transducers, width_of
from .cases import a_subset, below, check_bounds, check_certificate, no_path, selecting, with_holes
from .joints import aligned_case, any_case
from .lattices import check_lattice, random_samples

MANY = int(os.environ.get("CUPY_RNNT_MANY_JOINTS", "200"))
CHOICES = {
    "by bounds": lambda seed: None,
    "holes": lambda seed: with_holes(0.02, seed),
    "3 nats": lambda seed: below(3.0),
    "a tenth": lambda seed: a_subset(0.1, seed),
    "nine tenths": lambda seed: a_subset(0.9, seed),
    "no path": lambda seed: no_path,
}
NORMALISING = transducers(normalising=True)
EXTENTS = st.lists(st.tuples(st.integers(1, 13), st.integers(1, 13)), min_size=1, max_size=4)

every_transducer = pytest.mark.parametrize("name", TRANSDUCERS)


def joint_of(rng, transducer, make=any_case, size=2, frames=12, labels=6, hidden=8, **options):
    """A joint of a random kind with six labels in its vocabulary."""
    width = width_of(transducer, 6)
    blank = int(rng.choice(blanks_of(transducer, 6)))
    shape = size, frames, labels, width, hidden
    return make(rng, *shape, blank=blank, transducer=transducer, **options)


def trained(seed, transducer, **options):
    """Samples of full length, of which cells are left out."""
    rng, lengths = np.random.default_rng(seed), (np.array([24, 22]), np.array([8, 7]))
    options = {"sharpness": 6.0, "lengths": lengths, **options}
    return joint_of(rng, transducer, aligned_case, 2, 24, 8, 16, **options)


# Lattices


@examples(
    120,
    4,
    transducer=NORMALISING,
    extents=EXTENTS,
    delay_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.1]),
    gradient=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_lattices_of_any_transducer(device, transducer, extents, delay_penalty, gradient, seed):
    rng = np.random.default_rng(seed)
    check_lattice(random_samples(rng, extents, transducer, delay_penalty), gradient)


@every_transducer
def test_lattices_of_transducers_in_use(device, name):
    for seed, delay_penalty in enumerate((0.0, 0.5, -0.2)):
        extents = [(9, 7), (4, 8), (1, 5), (12, 3)]
        rng = np.random.default_rng(seed)
        check_lattice(random_samples(rng, extents, TRANSDUCERS[name], delay_penalty))


# What holds for the plain transducer and must not be forgotten for others


def lattices_checked(name, delay_penalty=0.0):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        check_lattice(random_samples(rng, [(9, 7), (4, 8)], NAMED[name], delay_penalty))


def test_no_cap_of_beta_forgets_the_delay_penalty(monkeypatch):
    """Probabilities may exceed 1 by what it adds."""
    monkeypatch.setattr(BoundedSweeps, "_delays", lambda self, row: np.zeros(self.grid.width))
    with pytest.raises(AssertionError):
        lattices_checked("modified", 1.0)


def test_no_cell_is_inside_without_what_it_reads_aside(monkeypatch):
    monkeypatch.setattr(BoundedSweeps, "_is_inside", lambda self: self._exact[: self.grid.rows])
    with pytest.raises(AssertionError):
        lattices_checked("constrained")


@pytest.mark.parametrize(("name", "most"), {"tdt": 24 + 8, "multi-blank": 24 + 8}.items())
def test_thresholds_go_by_the_most_arcs_of_a_path(device, name, most):
    """And not by the fewest, which for long blanks are far fewer."""
    case, found = trained(0, TRANSDUCERS[name]), []
    original = selection.next_cells

    def next_cells(lattice, lengths, *others):
        found.append(lengths.most_arcs.max())
        return original(lattice, lengths, *others)

    with selecting(), mock.patch.object(selection, "next_cells", next_cells):
        joint_rnnt_loss(*case, transducer=TRANSDUCERS[name])
    assert {*found} == {most}


# Joints


@every_transducer
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_of_transducers_in_use(device, name, dtype):
    transducer = TRANSDUCERS[name]
    for seed in range(8 if device.name == "numpy" else 2):
        rng = np.random.default_rng(seed)
        check_bounds(joint_of(rng, transducer, dtype=dtype), transducer=transducer)
        check_bounds(trained(seed, transducer, dtype=dtype), transducer=transducer)


@every_transducer
@pytest.mark.parametrize("choice", ["by bounds", "3 nats", "holes"])
@pytest.mark.thinned(3)
def test_certificates_of_transducers_in_use(device, name, choice):
    """They leave out cells, and true errors are seen."""
    transducer, samples = TRANSDUCERS[name], []
    for seed in range(6 if device.name == "numpy" else 2):
        for delay_penalty in 0.0, 0.1:
            found, _ = check_certificate(
                trained(seed, transducer),
                1e-2,
                CHOICES[choice](seed),
                transducer=transducer,
                delay_penalty=delay_penalty,
            )
            samples += found
    left_out = [sample for sample in samples if not sample.computed.all()]
    assert len(left_out) > len(samples) / 4
    assert max(sample.error for sample in left_out) > 1e-5


@every_transducer
@pytest.mark.parametrize("delay_penalty", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.thinned(3)
def test_losses_and_gradients_are_those_of_all_cells(device, name, delay_penalty, dtype):
    transducer = TRANSDUCERS[name]
    case = trained(1, transducer, dtype=dtype)
    options = {
        "reduction": "none",
        "transducer": transducer,
        "delay_penalty": delay_penalty,
        "fastemit_lambda": 0.1,
    }
    with selecting():
        costs, gradients, info = joint_rnnt_loss_and_grad(*case, **options, return_info=True)
    expected, whole = reference.joint_rnnt_loss_and_grad(*case, **options)
    assert info.computed < info.cells
    assert info.certificate.max() > 0
    assert_costs_close(costs, expected, dtype, case.length)
    assert_gradients_close(gradients, whole, dtype, case.length)


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("name", ["modified", "constrained"])
def test_a_sample_without_a_path(device, name, zero_infinity):
    """It is computed whole, costs inf, and touches no other."""
    lengths = np.array([24, 6]), np.array([8, 7])
    case = trained(0, NAMED[name], lengths=lengths)
    options = {"reduction": "none", "transducer": name, "zero_infinity": zero_infinity}
    with selecting():
        costs, gradients, info = joint_rnnt_loss_and_grad(*case, **options, return_info=True)
    expected, whole = reference.joint_rnnt_loss_and_grad(*case, **options)
    assert costs[1] == (0.0 if zero_infinity else np.inf)
    assert not gradients.encoder_out[1].any()
    assert info.certificate[1] == 0
    assert info.computed < info.cells
    assert_costs_close(costs, expected, np.float64, case.length)
    assert_gradients_close(gradients, whole, np.float64, case.length)


def test_scores_that_are_no_probabilities_are_not_bounded(device):
    """Without a head they may be anything: every cell is computed."""
    transducer = Transducer(NAMED["regular"].topology, ())
    case = trained(0, transducer)
    with selecting():
        costs, info = joint_rnnt_loss(
            *case, reduction="none", transducer=transducer, return_info=True
        )
    assert info.computed == info.cells
    expected = reference.joint_rnnt_loss(*case, reduction="none", transducer=transducer)
    assert_costs_close(costs, expected, np.float64, case.length)


# Random joints over random topologies


@examples(
    MANY,
    3,
    transducer=NORMALISING,
    frames=st.integers(1, 14),
    labels=st.integers(0, 7),
    hidden=st.sampled_from([1, 8]),
    choice=st.sampled_from(list(CHOICES)),
    tolerance=st.sampled_from([1e-2, 1e-4, 6e-8]),
    delay_penalty=st.sampled_from([0.0, 0.0, 0.2, -0.1]),
    activation=st.sampled_from(["tanh", "relu", "sigmoid"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_bound_is_below_the_truth_and_no_error_above_its_certificate(
    device,
    transducer,
    frames,
    labels,
    hidden,
    choice,
    tolerance,
    delay_penalty,
    activation,
    seed,
):
    rng = np.random.default_rng(seed)
    case = joint_of(rng, transducer, frames=frames, labels=labels, hidden=hidden)
    check_bounds(case, activation, transducer=transducer)
    options = {"transducer": transducer, "delay_penalty": delay_penalty}
    check_certificate(case, tolerance, CHOICES[choice](seed), activation, **options)
