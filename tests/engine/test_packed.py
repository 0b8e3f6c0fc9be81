"""Packed logits: the numbers of padded ones, a row for each cell, and no padding."""

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.special import log_softmax

import cupy_rnnt

from ..device_calls import (
    examples,
    rnnt_alignment,
    rnnt_loss,
    rnnt_loss_and_grad,
    rnnt_posteriors,
)
from ..helpers import least_budget, random_logits_case
from ..tolerances import DTYPES
from ..transducers.cases import TRANSDUCERS, batch_of, blanks_of, random_sample, transducers
from .test_workspace import left_to_the_collector, peak_beyond_results


def packed(array, logit_lengths, target_lengths):
    """The rows of the cells, in packed order."""
    lengths = zip(array, logit_lengths, target_lengths, strict=True)
    return np.concatenate([x[:t, : u + 1].reshape(-1, array.shape[-1]) for x, t, u in lengths])


def packed_case(case):
    return case._replace(logits=packed(case.logits, case.logit_lengths, case.target_lengths))


def assert_same(case, **options):
    """The same bits as of padded logits; the gradient overwrites them, or does not."""
    loss, grad = rnnt_loss_and_grad(*case, **options)
    wanted = packed(grad, case.logit_lengths, case.target_lengths)
    rows = packed_case(case)
    before = rows.logits.copy()
    for overwrite in False, True:
        found = rnnt_loss_and_grad(*rows, **options, overwrite_logits=overwrite)
        np.testing.assert_array_equal(found[0], loss)
        np.testing.assert_array_equal(found[1], wanted, strict=True)
        if not overwrite:
            np.testing.assert_array_equal(rows.logits, before)
    alone = {name: value for name, value in options.items() if name != "cost_weights"}
    rows = rows._replace(logits=before)
    np.testing.assert_array_equal(rnnt_loss(*rows, **alone), rnnt_loss(*case, **alone))


def test_what_is_read_off_them(device):
    """Dense posteriors have as many frames as the longest sample."""
    case = random_logits_case(np.random.default_rng(4), 3, 7, 4, 6)
    rows, longest = packed_case(case), max(case.logit_lengths)
    for found, wanted in zip(rnnt_alignment(*rows), rnnt_alignment(*case), strict=True):
        np.testing.assert_array_equal(found, wanted)
    wanted = rnnt_posteriors(*case)[:, :longest]
    np.testing.assert_array_equal(rnnt_posteriors(*rows), wanted)


@examples(
    100,
    2,
    size=st.integers(1, 5),
    frames=st.integers(1, 13),
    labels=st.integers(0, 11),
    vocabulary=st.integers(2, 40),
    dtype=st.sampled_from(DTYPES),
    clamp=st.sampled_from([-1.0, 0.05]),
    weight=st.sampled_from([1.0, 1e-30, -3.0]),
    tolerance=st.sampled_from([None, 0.0, 0.1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_batch(device, size, frames, labels, vocabulary, dtype, clamp, weight, tolerance, seed):
    shape = size, frames, labels, vocabulary
    case = random_logits_case(np.random.default_rng(seed), *shape, dtype=dtype)
    weights = np.full(size, weight)
    assert_same(case, clamp=clamp, cost_weights=weights, tolerance=tolerance, reduction="none")


@pytest.mark.parametrize("name", TRANSDUCERS)
@pytest.mark.thinned(3)
def test_named_transducers(device, name):
    check_transducer(TRANSDUCERS[name], [(9, 3), (5, 6), (1, 0)], 0)


@pytest.mark.filterwarnings("ignore:the probabilities of blank and label:UserWarning")
@examples(
    40,
    1,
    transducer=transducers(),
    extents=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_transducer(device, transducer, extents, seed):
    check_transducer(transducer, extents, seed)


def check_transducer(transducer, extents, seed):
    rng = np.random.default_rng(seed)
    blank = blanks_of(transducer, 3)[-1]
    samples = [random_sample(rng, transducer, t, u, blank=blank) for t, u in extents]
    logits, targets, *lengths, blank = batch_of(samples)
    options = {"transducer": transducer, "reduction": "none"}
    loss, grad = rnnt_loss_and_grad(logits, targets, *lengths, blank, **options)
    rows = packed(logits, *lengths)
    found = rnnt_loss_and_grad(rows, targets, *lengths, blank, **options)
    np.testing.assert_array_equal(found[0], loss)
    np.testing.assert_array_equal(found[1], packed(grad, *lengths))


def test_log_probs(device):
    case = random_logits_case(np.random.default_rng(0))
    assert_same(case._replace(logits=log_softmax(case.logits, -1)), fused_log_softmax=False)
    with pytest.warns(UserWarning, match="these are no log-probabilities"):
        rnnt_loss(*packed_case(case), fused_log_softmax=False)


def test_strided_rows(device):
    case = random_logits_case(np.random.default_rng(0))
    rows = packed_case(case)
    loss, grad = rnnt_loss_and_grad(*rows)
    for same in np.asfortranarray(rows.logits), np.repeat(rows.logits, 2, axis=1)[:, ::2]:
        found = rnnt_loss_and_grad(*rows._replace(logits=same))
        np.testing.assert_array_equal(found[0], loss)
        np.testing.assert_array_equal(found[1], grad)


def test_a_sample_that_is_not_finite(device):
    """It has a gradient of 0, and the others are as they were."""
    case = random_logits_case(np.random.default_rng(0))
    case.logits[1, 0, 0, 0] = np.nan
    assert_same(case, reduction="none")


def test_calls_stay_within_their_budget(device):
    """Which does not grow with the logits: they are not copied."""
    shape = (3, 60, 25, 500) if device.name == "numpy" else (3, 20, 8, 2000)
    case = random_logits_case(np.random.default_rng(0), *shape, dtype=np.float32)
    rows = packed_case(case)
    budget = least_budget(rnnt_loss_and_grad, *rows) + 2**18
    assert budget < rows.logits.nbytes
    peak, info = peak_beyond_results(rnnt_loss_and_grad, *rows, max_workspace_bytes=budget)
    assert peak <= info.workspace_bytes <= budget
    assert info.cells == len(rows.logits)
    assert not left_to_the_collector(rnnt_loss_and_grad, *rows)


# Bad input


def test_the_wrong_number_of_rows(device):
    """The error says what was expected, and nothing is overwritten."""
    rows = packed_case(random_logits_case(np.random.default_rng(0), 2, 4, 3, 5))
    cells, width = rows.logits.shape
    for wrong in rows.logits[:-1], np.concatenate((rows.logits, rows.logits)):
        before = wrong.copy()
        text = rf"logits has shape \({len(wrong)}, 5\), but \({cells}, 5\) is needed: packed"
        for function, options in (
            (rnnt_loss, {}),
            (rnnt_loss_and_grad, {"overwrite_logits": True}),
        ):
            with pytest.raises(ValueError, match=text):
                function(wrong, *rows[1:], **options)
        np.testing.assert_array_equal(wrong, before)
    assert width == 5


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (r"logits has 3 dimensions .* but \(B, T, U \+ 1, V\) or \(cells, V\) is needed", 0),
        (r"targets has 1 dimensions \(3,\), but \(B, U\) is needed", 1),
        (r"targets has shape \(0, 3\): axis B is empty", 2),
        (r"logit_lengths has shape \(1,\), but \(2,\) is needed", 3),
        (r"target_lengths\[0\] is 4, but it must be between 0 and 3", 4),
        (r"logit_lengths\[0\] is 0, but it must be between 1", 5),
        (r"logits has shape \(0, 5\): axis cells is empty", 6),
    ],
)
def test_other_errors(words, change):
    rows = packed_case(random_logits_case(np.random.default_rng(0), 2, 4, 3, 5))
    changes = [
        {"logits": rows.logits[:, None]},
        {"targets": rows.targets[0]},
        {"targets": rows.targets[:0]},
        {"logit_lengths": rows.logit_lengths[:1]},
        {"target_lengths": [4, 0]},
        {"logit_lengths": [0, 1]},
        {"logits": rows.logits[:0]},
    ]
    with pytest.raises(ValueError, match=words):
        cupy_rnnt.rnnt_loss(*rows._replace(**changes[change]))


def test_lists():
    rows = packed_case(random_logits_case(np.random.default_rng(0), 2, 4, 3, 5))
    assert cupy_rnnt.rnnt_loss(rows.logits.tolist(), *rows[1:]) == cupy_rnnt.rnnt_loss(*rows)
