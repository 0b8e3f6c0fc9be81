"""Certified selection on a model and utterances of real speech: it is tight there, and at no cost.

The joint network is that of a small transducer; see ``benchmarks/data/README.rst``.
"""

from unittest import mock

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import reference
from cupy_rnnt.engine import passes, selection

from ... import ROOT
from ...helpers import JointCase
from ...tolerances import assert_costs_close, assert_gradients_close, unit_roundoff
from ..test_workspace import MiB, peak_beyond_results
from .cases import computed_cells, exact_log_probs, least_selecting_budget
from .joints import shapes

DATA = ROOT / "benchmarks" / "data" / "speech_trained.npz"
UNIT = unit_roundoff(np.float32)

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the data of the benchmarks is not here")


def utterances(*names):
    """Some utterances as a batch, with NaN for padding."""
    with np.load(DATA) as stored:
        rows = [[stored[f"{kind}{name}"] for name in names] for kind in ("enc", "pred", "y")]
        weight, bias = stored["W"], stored["b"]
    inputs = []
    for arrays, fill in zip(rows, (np.nan, np.nan, 0), strict=True):
        most = max(map(len, arrays))
        shape = len(arrays), most, *arrays[0].shape[1:]
        inputs.append(np.full(shape, fill, arrays[0].dtype))
        for padded, array in zip(inputs[-1], arrays, strict=True):
            padded[: len(array)] = array
    encoder_out, predictor_out, targets = inputs
    lengths = ([len(array) for array in arrays] for arrays in (rows[0], rows[2]))
    return JointCase(
        encoder_out, predictor_out, weight, bias, targets, *map(np.array, lengths), blank=0
    )


@pytest.fixture(scope="module")
def case():
    return utterances("3", "1")


@pytest.fixture(scope="module")
def selected(case):
    with computed_cells() as computed:
        costs, gradients, info = cupy_rnnt.joint_rnnt_loss_and_grad(
            *case, reduction="none", return_info=True
        )
    return costs, gradients, info, computed.masks(case)


def test_costs_and_gradients_are_those_of_all_cells(case, selected):
    costs, gradients, info, _ = selected
    whole, expected, all_info = cupy_rnnt.joint_rnnt_loss_and_grad(
        *case, reduction="none", tolerance=0, return_info=True
    )
    assert all_info.computed == info.cells == sum(t * s for t, s in shapes(case))
    assert_costs_close(costs, whole, np.float32, case.length)
    assert_gradients_close(gradients, expected, np.float32, case.length)


def test_selection_is_tight(case, selected):
    """One round is enough, and few more cells are computed than hold any of the posterior: no
    method could leave out one of the latter. Certificates are not far above the true error."""
    _, _, info, masks = selected
    assert info.rounds == 1
    assert info.certificate.min() > 0
    assert info.certificate.max() <= UNIT / 2
    assert info.computed < 0.3 * info.cells
    assert info.computed <= 1.4 * info.kept
    needed = 0
    for exact, mask, certificate in zip(
        exact_log_probs(case), masks, info.certificate, strict=True
    ):
        of_scores, full = reference.occupancies(exact.scores)
        occupancy = of_scores.sum(axis=0)
        needed += (occupancy >= UNIT * occupancy.sum() / occupancy.size).sum()
        # The log-probs that the certificate was computed from are off by some float32 roundings of
        # logits of order 10, 1e-6 each on at most 500 transitions.
        error = np.expm1(full - exact.of_paths(mask))
        assert 0.1 * certificate < error < 1.001 * certificate
    assert needed <= info.computed <= 1.4 * needed


def test_a_cost_alone_takes_no_more(case, selected):
    costs, info = cupy_rnnt.joint_rnnt_loss(*case, reduction="none", return_info=True)
    assert (info.computed, info.rounds) == (selected[2].computed, 1)
    assert_costs_close(costs, selected[0], np.float32, case.length)


def test_wider_tolerance_leaves_out_more(case, selected):
    options = {"reduction": "none", "tolerance": 1e-3, "return_info": True}
    costs, info = cupy_rnnt.joint_rnnt_loss(*case, **options)
    assert info.computed < 0.8 * selected[2].computed
    assert info.certificate.max() <= 5e-4
    exact = [-log_probs.of_paths() for log_probs in exact_log_probs(case)]
    rounding = 1e-5 * np.array(exact)
    assert (costs >= exact - rounding).all()
    assert (costs <= exact + np.log1p(info.certificate) + rounding).all()


@pytest.mark.parametrize("kind", ["wrong transcript", "fresh output layer"])
def test_what_is_not_tight_is_still_right(kind):
    case = utterances("3")._replace(logit_lengths=np.array([160]), target_lengths=np.array([30]))
    if kind == "fresh output layer":
        rng = np.random.default_rng(0)
        weight = 0.02 * rng.standard_normal(case.weight.shape, np.float32)
        case = case._replace(weight=weight, bias=np.zeros_like(case.bias))
    else:
        case = case._replace(targets=case.targets[:, ::-1].copy())
    options = {"reduction": "none", "return_info": True}
    costs, gradients, info = cupy_rnnt.joint_rnnt_loss_and_grad(*case, **options)
    whole, expected, _ = cupy_rnnt.joint_rnnt_loss_and_grad(*case, **options, tolerance=0)
    assert info.computed > 0.4 * info.cells
    assert info.certificate.max() <= UNIT / 2
    assert_costs_close(costs, whole, np.float32, case.length)
    assert_gradients_close(gradients, expected, np.float32, case.length)


@pytest.mark.parametrize("spare", [0, MiB])
def test_workspace_is_a_promise(case, spare):
    function = cupy_rnnt.joint_rnnt_loss_and_grad
    budget = least_selecting_budget(case, gradient=True) + spare
    peak, info = peak_beyond_results(function, *case, max_workspace_bytes=budget)
    assert info.computed < info.cells
    assert peak <= info.workspace_bytes <= budget


@pytest.mark.parametrize("mask", [-1e4, -1e9, -1e30])
def test_a_finite_mask_is_as_good_as_an_infinite_one(case, mask):
    """Entries that no softmax gives a share to do not widen the slack, whatever their bias."""
    unused = np.setdiff1d(np.arange(1, len(case.bias)), case.targets)[:20]
    shares = []
    for value in (-np.inf, mask):
        bias = case.bias.copy()
        bias[unused] = value
        _, info = cupy_rnnt.joint_rnnt_loss(*case._replace(bias=bias), return_info=True)
        shares.append(info.computed / info.cells)
    assert shares[1] == shares[0] < 0.3


def test_a_masked_label_widens_the_slack(case):
    """What rounds a logit that matters counts: a label at -1e9 is off by some nats in float32."""
    bias = case.bias.copy()
    bias[case.targets[0, 3]] = -1e9
    costs, info = cupy_rnnt.joint_rnnt_loss(
        *case._replace(bias=bias), reduction="none", return_info=True
    )
    assert costs[0] > 1e8
    assert info.certificate[0] == 0  # computed whole


def test_alignments_are_those_of_all_cells(case, selected):
    """Of a fraction of the cells that the loss takes."""
    found, info = cupy_rnnt.joint_rnnt_alignment(*case, return_info=True)
    with mock.patch.object(passes, "selection_of", return_value=selection.Everything()):
        full, all_info = cupy_rnnt.joint_rnnt_alignment(*case, return_info=True)
    assert all_info.computed == info.cells
    assert info.rounds == 1
    assert info.computed < 0.4 * selected[2].computed
    assert not found.certificate.any()
    np.testing.assert_array_equal(found.frames, full.frames)
    assert_costs_close(-found.log_prob, -full.log_prob, np.float32, case.length)
    for frames, count in zip(found.frames, case.target_lengths, strict=True):
        assert (np.diff(frames[:count]) >= 0).all()


def test_log_probs_of_alignments_are_those_of_their_arcs(case):
    """By the scores of the textbook: blanks of all frames, and labels where they are emitted."""
    found = cupy_rnnt.joint_rnnt_alignment(*case)
    for b, exact in enumerate(exact_log_probs(case)):
        blank, label = exact.scores
        frames = found.frames[b, : case.target_lengths[b]]
        positions = np.searchsorted(frames, np.arange(len(blank)), side="right")
        total = blank[np.arange(len(blank)), positions].sum()
        total += label[frames, np.arange(len(frames))].sum()
        assert_costs_close(-found.log_prob[b], -total, np.float32, case.length)
