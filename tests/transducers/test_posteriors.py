"""Occupancies of transducers of any arcs and heads, by the textbook."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import strategies as st

import cupy_rnnt
from cupy_rnnt import reference
from cupy_rnnt.topology import LABEL

from ..device_calls import (
    examples,
    joint_rnnt_posteriors,
    rnnt_posteriors,
)
from ..engine.selection.cases import selecting
from ..engine.selection.joints import aligned_case
from ..helpers import least_budget, random_joint_case, random_logits_case
from .cases import batch_of, transducers
from .test_alignment import PATHS
from .test_transducers import Joint, drawn_samples

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def expected(samples, extents) -> np.ndarray:
    """Occupancies (B, T, U + 1, K) of samples, in a batch of such extents."""
    topology = samples[0].transducer.topology
    dense = np.zeros((*extents, len(topology.scores)))
    for of_sample, sample in zip(dense, samples, strict=True):
        scores = sample.scores()
        T, S = scores.shape[1:]
        if LABEL in topology.scores:
            delays = sample.delay_penalty * ((T - 1) / 2 - np.arange(T))
            scores[topology.scores.index(LABEL)] += delays[:, None]
        of_sample[:T, :S] = np.moveaxis(reference.occupancies(scores, topology)[0], 0, -1)
    return dense


def extents_of(samples):
    T, S, _ = np.max([sample.logits.shape for sample in samples], axis=0)
    return len(samples), T + 1, S


@examples(150, 2, **PATHS, fused=st.booleans(), tolerance=st.sampled_from([0.0, None]))
def test_logits_of_any_transducer(
    device, transducer, extents, delay_penalty, scale, seed, fused, tolerance
):
    samples = drawn_samples(
        transducer, extents, seed, scale=scale, fused=fused, delay_penalty=delay_penalty
    )
    options = {"transducer": transducer, "delay_penalty": delay_penalty, "tolerance": tolerance}
    arguments = batch_of(samples)
    with warnings.catch_warnings():  # of rows that are no distribution, if there is no head
        warnings.simplefilter("ignore")
        found = rnnt_posteriors(*arguments, **options, fused_log_softmax=fused)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected(samples, arguments[0].shape[:3]), **CLOSE)


@examples(80, 2, **PATHS | {"transducer": transducers(normalising=True)})
def test_joint_of_any_transducer(device, transducer, extents, delay_penalty, scale, seed):
    """With selection."""
    joint = Joint(transducer, extents, seed, scale, delay_penalty=delay_penalty)
    options = {"transducer": transducer, "delay_penalty": delay_penalty}
    with selecting():
        found = joint_rnnt_posteriors(*joint.arguments, **options)
    np.testing.assert_allclose(found, expected(joint.samples, extents_of(joint.samples)), **CLOSE)


def assert_kept(kept, dense):
    """The entries of the dense form, all of those that are not 0, in packed order."""
    index = kept.sample, kept.frame, kept.position
    np.testing.assert_array_equal(kept.occupancies, dense[index])
    assert kept.occupancies.dtype == dense.dtype
    places = np.ravel_multi_index(index, dense.shape[:3])
    assert (np.diff(places) > 0).all()
    rest = dense.copy()
    rest[index] = 0
    assert not rest.any()


@pytest.mark.parametrize("is_tight", [False, True])
@pytest.mark.thinned(2)
def test_kept_cells(device, is_tight):
    """Of one group of samples, and of several."""
    case = aligned_case(np.random.default_rng(0), 3, 30, 8, 9, 12, dtype=np.float32, sharpness=6.0)
    with selecting():
        budget = least_budget(joint_rnnt_posteriors, *case) if is_tight else None
        options = {"max_workspace_bytes": budget}
        dense, info = joint_rnnt_posteriors(*case, return_info=True, **options)
        kept = joint_rnnt_posteriors(*case, dense=False, **options)
    assert isinstance(kept, cupy_rnnt.KeptPosteriors)
    assert len(kept.sample) == info.kept < info.cells
    assert_kept(kept, dense)
    frames = np.arange(30) < case.logit_lengths[:, None]
    np.testing.assert_allclose(dense[..., 0].sum(axis=2), frames, atol=1e-5)
    labels = np.arange(9) < case.target_lengths[:, None]
    np.testing.assert_allclose(dense[..., 1].sum(axis=1), labels, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(device, dtype):
    case = random_logits_case(np.random.default_rng(1), dtype=dtype)
    dense = rnnt_posteriors(*case)
    assert dense.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert dense.shape == (*case.logits.shape[:3], 2)
    assert_kept(rnnt_posteriors(*case, dense=False), dense)


def test_bad_samples_and_samples_without_a_path_have_none(device):
    case = random_joint_case(np.random.default_rng(2))
    whole = joint_rnnt_posteriors(*case, transducer="modified")
    possible = case.logit_lengths >= case.target_lengths
    assert whole.any(axis=(1, 2, 3)).tolist() == possible.tolist()
    assert not possible.all()
    case.encoder_out[0, 1] = np.nan
    found = joint_rnnt_posteriors(*case, transducer="modified")
    assert not found[0].any()
    np.testing.assert_array_equal(found[1:], whole[1:])
