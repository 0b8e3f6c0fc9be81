"""The certificate against what it bounds: of lattices, and of joints that are led astray."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st

from cupy_rnnt import reference
from cupy_rnnt.engine import selection
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS

from ...device_calls import (
    examples,
    joint_rnnt_loss,
    joint_rnnt_loss_and_grad,
    to_device,
    to_host,
)
from ...helpers import occupancies
from .cases import (
    a_subset,
    below,
    check_certificate,
    computed_cells,
    exact_log_probs,
    listed,
    no_path,
    one_path,
    selecting,
    with_holes,
)
from .joints import aligned_case, any_case
from .lattices import PACKED, BoundedSample, check_lattice, made, plain, random_samples

EXTENTS = st.lists(st.tuples(st.integers(1, 13), st.integers(1, 13)), min_size=1, max_size=6)

# Lattices


@examples(100, 6, extents=EXTENTS, gradient=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_lattices(device, extents, gradient, seed):
    check_lattice(random_samples(np.random.default_rng(seed), extents), gradient)


def test_lattices_of_wide_groups(device):
    """Long diagonals take another logaddexp."""
    rng = np.random.default_rng(6)
    shares = check_lattice(random_samples(rng, [(30, 25), (25, 31), (8, 40)] * 12))
    assert sum(1e-3 < share < 10 for share in shares) > 3


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_certificate_is_the_missing_share_if_bounds_are_the_log_probs(device, scale):
    """Then what leaves is what all paths have beyond those inside, to the last digits; any bound
    above makes it larger."""
    rng = np.random.default_rng(1)
    found = []
    for sample in random_samples(rng, [(9, 7)] * 30):
        above = np.minimum(sample.exact + scale, 0.0)
        lattice = made(
            [sample._replace(bounds=above, mask=sample.mask | (rng.random((9, 7)) < 0.7))]
        )
        inside, leaving, _ = np.exp(np.concatenate(lattice.certify()))
        full = np.exp(reference.betas(sample.exact)[0, 0])
        if leaving > 1e-6 * full > 0:
            found.append((inside + leaving) / full)
    assert len(found) > 5
    if scale:
        assert min(found) > 1 + 1e-6
    else:
        np.testing.assert_allclose(found, 1, rtol=PACKED)


def test_occupancies_get_close_to_their_bound(device):
    """Two paths of one half each that share a single transition, and one of them is C: by eps = 1,
    posteriors may be one half apart in total variation, and they are, in all others."""
    frames, columns = 2, 41
    exact = np.log(np.full((2, frames, columns), 0.5))
    exact[1, :, -1] = -np.inf
    mask = np.zeros((frames, columns), bool)
    mask[0, 0] = True
    mask[1] = True  # the path that leaves its first frame at once; the other does so at the end
    exact[0, 0, 1:-1] = -np.inf
    (eps,) = check_lattice([BoundedSample(exact, exact, mask)])
    np.testing.assert_allclose(eps, 1.0)
    lattice = made([BoundedSample(exact, exact, mask)])
    lattice.certify()
    (of_paths,) = occupancies(lattice, to_host(lattice.solve()), [frames], [columns])
    expected, _ = reference.occupancies(exact)
    error = abs(of_paths - expected).sum()
    bound = 2 * (frames + columns - 1) * eps / (1 + eps)
    np.testing.assert_allclose(error, bound * (1 - 1 / (frames + columns - 1)))


@examples(50, 4, extents=EXTENTS, seed=st.integers(0, 2**32 - 1))
def test_before_anything_is_exact_the_bound_is_that_of_all_paths(device, extents, seed):
    rng = np.random.default_rng(seed)
    samples = [
        sample._replace(mask=np.zeros_like(sample.mask)) for sample in random_samples(rng, extents)
    ]
    lattice = made(samples)
    inside, leaving, upper = lattice.certify()
    assert (inside == -np.inf).all()
    assert lattice.candidates(np.full(len(samples), -np.inf))[0].all()
    assert not lattice.candidates(np.full(len(samples), np.inf))[0].any()
    some = upper > -700  # what leaves is made up to no less than the least float64
    np.testing.assert_allclose(leaving[some], upper[some], rtol=PACKED, atol=PACKED)
    for sample, total in zip(samples, upper, strict=True):
        np.testing.assert_allclose(total, plain(sample).leaving, rtol=1e-13, atol=1e-14)
        full = reference.betas(sample.exact)[0, 0]
        assert full == -np.inf or full <= total + 1e-12 * max(1.0, abs(total))


@pytest.mark.parametrize("nats", [10.0, 100.0, 700.0, 5000.0])
def test_shares_that_vanish_are_not_forgotten(device, nats):
    """What leaves may be far below the least float64 number, be it alone or of many cells."""
    exact = np.full((2, 12, 9), -nats)
    exact[0, :, 0] = exact[1, -1] = 0.0
    exact[0, -1] = -nats
    exact[0, -1, -1] = 0.0
    exact[1, :, -1] = -np.inf
    mask = np.zeros((12, 9), bool)
    mask[:, 0] = mask[-1] = True
    lattice = made([BoundedSample(exact, exact, mask)])
    inside, leaving, _ = lattice.certify()
    assert inside == 0
    outside = plain(BoundedSample(exact, exact, mask)).leaving
    assert outside < -2 * nats + 10
    assert leaving >= outside - 1e-9
    assert leaving <= max(outside + 1e-9, -690)


def test_a_group_keeps_its_samples_apart(device):
    """A sample that is whole, one whose labels are impossible, one with a NaN, and a usual one."""
    samples = random_samples(np.random.default_rng(3), [(6, 5), (9, 4), (4, 9), (7, 7)])
    samples[0].mask[:] = samples[2].mask[:] = True
    samples[1].exact[:, :, 2] = samples[1].bounds[:, :, 2] = -np.inf
    alone = [made([sample]).certify() for sample in samples]
    samples[2].exact[0, 1, 3] = np.nan
    inside, leaving, _ = made(samples).certify()
    for i in (0, 1, 3):
        np.testing.assert_allclose(inside[i], alone[i][0][0], rtol=1e-13)
        shares = np.exp(leaving[i]), np.exp(alone[i][1][0])
        np.testing.assert_allclose(*shares, rtol=1e-12, atol=1e-300)
    costs = made(samples)
    costs.certify()
    np.testing.assert_array_equal(np.isnan(to_host(costs.solve())), [False, False, True, False])


# Joints

CHOICES = {
    "by bounds": lambda seed: None,
    "holes": lambda seed: with_holes(0.02, seed),
    "0 nats": lambda seed: below(0.0),
    "3 nats": lambda seed: below(3.0),
    "a tenth": lambda seed: a_subset(0.1, seed),
    "nine tenths": lambda seed: a_subset(0.9, seed),
    "one path": one_path,
    "no path": lambda seed: no_path,
}


@examples(
    200,
    5,
    size=st.integers(1, 4),
    extents=st.tuples(st.integers(1, 24), st.integers(0, 12)),
    vocabulary=st.sampled_from([2, 3, 9, 20]),
    hidden=st.sampled_from([1, 8, 16]),
    trained=st.booleans(),
    choice=st.sampled_from(list(CHOICES)),
    tolerance=st.sampled_from([1e-2, 1e-4, 6e-8]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    most=st.sampled_from([0.8, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_joints(
    device, size, extents, vocabulary, hidden, trained, choice, tolerance, activation, most, seed
):
    rng = np.random.default_rng(seed)
    shape = size, *extents, vocabulary, hidden
    if trained:
        sharpness, noise = rng.choice([4.0, 8.0, 20.0]), rng.choice([0.1, 0.3, 1.0])
        case = aligned_case(rng, *shape, sharpness=sharpness, noise=noise)
    else:
        case = any_case(rng, *shape)
    check_certificate(case, tolerance, CHOICES[choice](seed), activation, most)


def trained_cases(count, **options):
    for seed in range(count):
        yield aligned_case(np.random.default_rng(seed), 2, 30, 9, 12, 16, sharpness=6.0, **options)


@pytest.mark.parametrize("choice", ["by bounds", "3 nats", "holes"])
@pytest.mark.thinned(3)
@pytest.mark.slow
def test_the_checks_have_something_to_see(device, choice):
    """True errors are far above rounding and not far below their certificates, and rounds of repair
    run, so that a certificate too small would be noticed."""
    found, rounds = [], []
    for seed, case in enumerate(trained_cases(8)):
        samples, info = check_certificate(case, 1e-2, CHOICES[choice](seed))
        found += [sample for sample in samples if not sample.computed.all()]
        rounds.append(info.rounds)
    assert max(rounds) == 1 + (choice != "by bounds")
    assert len(found) > 5
    assert max(sample.error for sample in found) > 1e-4
    assert max(sample.error / sample.certificate for sample in found) > 0.5


def test_third_round(device):
    """Loose bounds and a bad first choice take all three rounds; the third is the last, and need
    not compute everything."""
    found = {}
    for seed in range(40 if device.name == "numpy" else 3):
        rng = np.random.default_rng(seed)
        case = aligned_case(rng, 1, 36, 10, 40, 16, sharpness=10.0, noise=2.0)
        (sample,), info = check_certificate(case, 1e-2, below(3.0))
        found.setdefault(info.rounds, []).append(sample.computed.mean())
    assert min(found[2]) < 0.8
    assert min(found[3]) < 0.8


# The gradient


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu", "silu", "softsign", "identity"])
@pytest.mark.thinned(4)
def test_gradient_is_that_of_the_paths_inside(device, activation):
    """Finite differences at a fixed C, in a random direction of each input.

    A central difference of step 1e-4 is off by the third derivative times 1e-8 / 6, which counts in
    proportion to the gradient, and by the rounding of costs over the step, 1e-13 / 1e-4 for those
    of order 100. C leaves out so much that the gradient of all paths is told apart.
    """
    rng = np.random.default_rng(0)
    lengths = np.array([16, 12]), np.array([6, 4])
    case = aligned_case(rng, 2, 16, 6, 9, 12, sharpness=3.0, lengths=lengths)
    with selecting(), computed_cells() as computed:
        joint_rnnt_loss(*case, activation=activation, tolerance=0.9)
    fixed = np.concatenate([mask.ravel() for mask in computed.masks(case)])
    assert fixed.mean() < 0.6

    def next_cells(lattice, lengths, computed, least, rounds):
        return listed(to_device(fixed), lengths)

    def certificates(mass, computed, lengths):
        return np.zeros(len(computed))

    options = {"activation": activation, "reduction": "sum", "tolerance": 1e-300}
    mocks = {"next_cells": next_cells, "certificates": certificates}
    with selecting(), mock.patch.multiple(selection, **mocks):
        loss, gradients, info = joint_rnnt_loss_and_grad(*case, **options, return_info=True)
        assert info.computed == fixed.sum() < info.cells
        _, full = reference.joint_rnnt_loss_and_grad(*case, activation=activation, reduction="sum")
        apart = []
        for name, gradient in gradients._asdict().items():
            direction = rng.normal(size=gradient.shape)
            direction /= np.linalg.norm(direction)
            there, back = (
                joint_rnnt_loss(
                    *case._replace(**{name: getattr(case, name) + step * direction}), **options
                )
                for step in (1e-4, -1e-4)
            )
            slope = (there - back) / 2e-4
            scale = max(1.0, np.linalg.norm(gradient))
            np.testing.assert_allclose(
                (gradient * direction).sum(), slope, rtol=0, atol=1e-8 * scale, err_msg=name
            )
            apart.append(abs((getattr(full, name) * direction).sum() - slope) / scale)
    assert max(apart) > 1e-4
    inside = [
        exact.of_paths(mask)
        for exact, mask in zip(exact_log_probs(case, activation), computed.masks(case), strict=True)
    ]
    np.testing.assert_allclose(loss, -sum(inside), rtol=1e-12)
