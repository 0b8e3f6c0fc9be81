"""The method in a page of NumPy, against the library and the textbook."""

from __future__ import annotations

import runpy

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import reference

from . import ROOT
from .helpers import random_joint_case

PATH = ROOT / "examples" / "minimal.py"
MOST_LINES = 175


@pytest.fixture(scope="module")
def minimal():
    return runpy.run_path(str(PATH))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [0.0, 2.0**-24, 1e-2])
def test_it_is_the_loss(minimal, seed, tolerance):
    """Paths left out add at most tolerance / 2 to the cost, and to the mass of T + U arcs that the
    gradient has at each element of the logits; weights of some 2 carry that on to the inputs."""
    rng = np.random.default_rng(seed)
    case = random_joint_case(rng, 1, 12, 5, 9, 6, blank=0, scale=6.0)
    frames, labels = int(case.logit_lengths[0]), int(case.target_lengths[0])
    encoder, predictor = case.encoder_out[0, :frames], case.predictor_out[0, : labels + 1]
    inputs = encoder, predictor, case.weight, case.bias
    cost, gradients, (inside, kept, certificate) = minimal["loss_and_gradients"](
        *inputs, case.targets[0, :labels], tolerance=tolerance
    )
    assert certificate <= tolerance / 2
    assert not (kept & ~inside).any()
    batch = encoder[None], predictor[None], case.weight, case.bias
    integers = case.targets[:1, :labels], [frames], [labels]
    expected, expected_gradients = reference.joint_rnnt_loss_and_grad(*batch, *integers, blank=0)
    assert -1e-9 <= cost - expected <= np.log1p(tolerance / 2) + 1e-9
    allowed = 4 * tolerance * (frames + labels) * abs(case.weight).sum() + 1e-9
    pairs = zip(gradients, expected_gradients, strict=True)
    assert all(abs(one - np.reshape(other, one.shape)).max() <= allowed for one, other in pairs)
    ours, _ = cupy_rnnt.joint_rnnt_loss_and_grad(*batch, *integers, blank=0, tolerance=tolerance)
    assert abs(cost - ours) <= np.log1p(tolerance / 2) + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_bounds_are_above_scores(minimal, seed):
    """Also where no label is left, and the entry in the place of one is the blank."""
    rng = np.random.default_rng(seed)
    shapes = (12, 6), (5, 6), (9, 6), (9,)
    inputs = tuple(2.0 * rng.standard_normal(shape) for shape in shapes)
    inputs[-1][0] = 5.0  # a likely blank
    labels = np.append(rng.integers(1, 9, 4), 0)
    upper = minimal["bounds"](inputs, labels, 0)
    exact = np.empty_like(upper)
    minimal["compute"](exact, np.ones((12, 5), bool), inputs, labels, 0)
    assert (upper >= exact).all()


def test_it_leaves_out_cells_and_fits_a_page(minimal, capsys):
    runpy.run_path(str(PATH), run_name="__main__")
    said = capsys.readouterr().out
    first, second = said.splitlines()
    assert first.split(" nats")[0].split()[-1] == second.split()[-1]
    assert PATH.read_text().count("\n") <= MOST_LINES
