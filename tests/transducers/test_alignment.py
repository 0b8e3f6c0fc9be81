"""Alignments of transducers of any arcs and heads, by the list of all paths."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import strategies as st

from cupy_rnnt.transducer import NAMED

from ..device_calls import (
    examples,
    joint_rnnt_alignment,
    joint_rnnt_loss,
    rnnt_alignment,
    rnnt_loss,
)
from ..engine.selection.cases import computed_cells, selecting
from ..engine.selection.joints import aligned_case
from ..helpers import random_joint_case, random_logits_case
from ..reference.cases import EXACT
from .cases import TRANSDUCERS, Sample, batch_of, tdt, transducers
from .paths import found_in, likeliest
from .test_transducers import DRAWN, EXTENTS, Joint, drawn_samples

# Sums of a few log-probs of order 10 in another order, of logits that were summed in another one.
MARGIN = 1e-11
PATHS = {name: DRAWN[name] for name in ("transducer", "extents", "delay_penalty", "scale", "seed")}


def check(alignment, samples, margin=MARGIN):
    """The path of each sample is a likeliest one, the first of them where the margin is 0."""
    assert alignment.frames.dtype == np.int64
    assert (alignment.durations is None) == (samples[0].transducer.durations == 0)
    assert not alignment.certificate.any()
    for b, sample in enumerate(samples):
        paths = likeliest(sample, margin)
        found = found_in(alignment, b, len(sample.labels) if paths else 0)
        if not paths:
            assert found.log_prob == -np.inf
            continue
        matching = [
            path
            for path in (paths if margin else paths[:1])
            if path.frames == found.frames
            and (alignment.durations is None or path.durations == found.durations)
        ]
        assert matching
        best = max(path.log_prob for path in paths)
        np.testing.assert_allclose(found.log_prob, best, **EXACT)


@examples(200, 2, **PATHS, fused=st.booleans())
def test_logits_of_any_transducer(device, transducer, extents, delay_penalty, scale, seed, fused):
    samples = drawn_samples(
        transducer, extents, seed, scale=scale, fused=fused, delay_penalty=delay_penalty
    )
    options = {"transducer": transducer, "delay_penalty": delay_penalty}
    with warnings.catch_warnings():  # of rows that are no distribution, if there is no head
        warnings.simplefilter("ignore")
        found = rnnt_alignment(*batch_of(samples), **options, fused_log_softmax=fused)
    check(found, samples)


@examples(150, 2, **PATHS | {"transducer": transducers(normalising=True)})
def test_joint_of_any_transducer(device, transducer, extents, delay_penalty, scale, seed):
    """With selection."""
    joint = Joint(transducer, extents, seed, scale, delay_penalty=delay_penalty)
    options = {"transducer": transducer, "delay_penalty": delay_penalty}
    with selecting():
        found, info = joint_rnnt_alignment(*joint.arguments, **options, return_info=True)
    check(found, joint.samples)
    assert info.rounds <= 2
    assert not info.certificate.any()


@examples(
    150,
    2,
    transducer=transducers() | st.sampled_from(list(TRANSDUCERS.values())),
    extents=EXTENTS,
    delay_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_of_equal_paths_the_first_arcs_count(device, transducer, extents, delay_penalty, seed):
    """Scores are small multiples of 1/4, whose sums are exact in any order: many paths are equal.
    Sigma is no such number."""
    rng = np.random.default_rng(seed)
    transducer = type(transducer)(transducer.topology, transducer.heads)
    options = {"fused": False, "delay_penalty": delay_penalty}
    samples = [
        sample._replace(logits=rng.integers(-3, 0, sample.logits.shape) / 4)
        for sample in drawn_samples(transducer, extents, seed, **options)
    ]
    with warnings.catch_warnings():  # such rows are no distributions
        warnings.simplefilter("ignore")
        found = rnnt_alignment(
            *batch_of(samples),
            transducer=transducer,
            delay_penalty=delay_penalty,
            fused_log_softmax=False,
        )
    check(found, samples, margin=0.0)


def test_a_label_of_equal_paths_comes_late(device):
    """As the blank is the first arc."""
    logits = np.zeros((1, 4, 3, 3))
    assert rnnt_alignment(logits, [[0, 1]], [4], [2]).frames.tolist() == [[3, 3]]
    found = rnnt_alignment(logits, [[0, 1]], [4], [2], transducer="modified")
    assert found.frames.tolist() == [[2, 3]]


def test_durations(device):
    """Labels of two frames, but for the last one, behind which there must be a blank."""
    transducer = tdt((1, 2))
    logits = np.zeros((1, 6, 3, 3 + 2))
    logits[:, :3, :, 4] = 9.0  # two frames ahead
    logits[:, 3:, :, 3] = 9.0
    logits[:, :, 0, 0] = logits[:, :, 1, 1] = 9.0
    found = rnnt_alignment(logits, [[0, 1]], [6], [2], transducer=transducer)
    assert found.frames.tolist() == [[0, 2]]
    assert found.durations.tolist() == [[2, 2]]


def test_batches_of_mixed_lengths(device):
    """U = 0, T = 1 < U, and padding that holds NaN."""
    case = random_logits_case(np.random.default_rng(1), 5, 7, 5)
    padded = case.logits.copy()
    for b, (t, u) in enumerate(zip(case.logit_lengths, case.target_lengths, strict=True)):
        padded[b, t:] = padded[b, :, u + 1 :] = np.nan
    found = rnnt_alignment(padded, *case[1:])
    samples = [
        Sample(case.logits[b, :t, : u + 1], case.targets[b, :u].tolist(), NAMED["regular"])
        for b, (t, u) in enumerate(zip(case.logit_lengths, case.target_lengths, strict=True))
    ]
    check(found, samples)
    short = rnnt_alignment(*case, transducer="modified")
    assert (np.isneginf(short.log_prob) == (case.target_lengths > case.logit_lengths)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_sample_keeps_to_itself(device, bad):
    case = random_logits_case(np.random.default_rng(2), 4, 7, 5)
    whole = rnnt_alignment(*case)
    case.logits[0, 1, 1, 0] = bad
    found = rnnt_alignment(*case)
    assert np.isnan(found.log_prob).tolist() == [True, False, False, False]
    assert (found.frames[0] == -1).all()
    for array, desired in zip(found, whole, strict=True):
        if array is not None:
            np.testing.assert_array_equal(array[1:], desired[1:])
    assert not found.certificate.any()


def test_bad_samples_of_a_joint(device):
    """A NaN, and a label that is impossible."""
    case = aligned_case(np.random.default_rng(3), 3, 14, 6, 9, 12)
    case.predictor_out[0, 1] = np.nan
    case.bias[case.targets[2, 0]] = -np.inf
    with selecting():
        found = joint_rnnt_alignment(*case)
    costs = joint_rnnt_loss(*case, reduction="none")
    np.testing.assert_array_equal(np.isfinite(found.log_prob), np.isfinite(costs))
    np.testing.assert_array_equal(np.isnan(found.log_prob), np.isnan(costs))
    assert (found.frames[~np.isfinite(costs)] == -1).all()
    assert np.isnan(costs[0])
    assert costs[2] == np.inf


def test_a_log_prob_that_float32_cannot_hold(device):
    """As a cost. The path is known all the same."""
    logits = np.full((1, 2, 2, 3), -3e38, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rnnt_alignment(logits, [[0]], [2], [1], fused_log_softmax=False)
    assert found.log_prob.tolist() == [-np.inf]
    assert found.frames.tolist() == [[1]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(device, dtype):
    """Log-probs have the dtype of the loss, whose cost is at most as large as that of a path."""
    case = random_joint_case(np.random.default_rng(4), dtype=dtype)
    found = joint_rnnt_alignment(*case)
    costs = joint_rnnt_loss(*case, reduction="none")
    assert found.log_prob.dtype == found.certificate.dtype == costs.dtype
    assert (-found.log_prob >= costs * (1 - 1e-14)).all()


def test_logits_that_are_no_log_probs_are_warned_of(device):
    logits = np.zeros((1, 2, 2, 3))
    with pytest.warns(UserWarning, match="no log-probabilities") as caught:
        rnnt_alignment(logits, [[0]], [2], [1], fused_log_softmax=False)
    with pytest.warns(UserWarning, match="no log-probabilities") as of_loss:
        rnnt_loss(logits, [[0]], [2], [1], fused_log_softmax=False)
    assert caught[0].filename == of_loss[0].filename


def test_selection_leaves_cells_out_and_changes_nothing(device):
    case = aligned_case(np.random.default_rng(5), 3, 30, 8, 9, 12, sharpness=6.0)
    full = joint_rnnt_alignment(*case)
    with selecting(), computed_cells() as computed:
        found, info = joint_rnnt_alignment(*case, return_info=True)
    assert info.computed == sum(mask.sum() for mask in computed.masks(case)) < 0.5 * info.cells
    np.testing.assert_array_equal(found.frames, full.frames)
    np.testing.assert_allclose(found.log_prob, full.log_prob, **EXACT)
    assert not found.certificate.any()
