"""Alignments and posteriors within a band, by all paths that lead through its cells only."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import strategies as st

from ..device_calls import (
    examples,
    joint_rnnt_alignment,
    joint_rnnt_posteriors,
    rnnt_alignment,
    rnnt_posteriors,
)
from ..engine.selection.cases import selecting
from ..transducers.cases import Joint, batch_of, transducers
from ..transducers.test_alignment import check
from ..transducers.test_posteriors import CLOSE, expected
from ..transducers.test_transducers import EXTENTS, drawn_samples
from .cases import BandedSample, random_bands
from .test_band import widened

DRAWN = {"extents": EXTENTS, "seed": st.integers(0, 2**32 - 1)}


def banded(samples, seed):
    """A band of samples, and the samples within it."""
    shapes = [sample.logits.shape[:2] for sample in samples]
    most = max(T for T, _ in shapes) + 1
    band = random_bands(np.random.default_rng(seed), shapes, most)
    extents = [(T, S - 1) for T, S in shapes]
    inside = widened(band, extents, samples[0].transducer.topology)
    return band, list(map(BandedSample, samples, inside))


@examples(100, 2, transducer=transducers(), **DRAWN)
def test_logits(device, transducer, extents, seed):
    """Whose rows outside are NaN."""
    band, samples = banded(drawn_samples(transducer, extents, seed), seed)
    arguments = batch_of([sample.poisoned for sample in samples])
    options = {"transducer": transducer, "band": band}
    with warnings.catch_warnings():  # of bands that are widened, and of rows under no head
        warnings.simplefilter("ignore")
        check(rnnt_alignment(*arguments, **options), samples)
        found = rnnt_posteriors(*arguments, **options)
    np.testing.assert_allclose(found, expected(samples, arguments[0].shape[:3]), **CLOSE)


@examples(60, 2, transducer=transducers(normalising=True), **DRAWN)
def test_joints(device, transducer, extents, seed):
    """With selection."""
    joint = Joint(transducer, extents, seed)
    band, samples = banded(joint.samples, seed)
    options = {"transducer": transducer, "band": band}
    with warnings.catch_warnings(), selecting():
        warnings.simplefilter("ignore")
        check(joint_rnnt_alignment(*joint.arguments, **options), samples)
        found = joint_rnnt_posteriors(*joint.arguments, **options)
    shape = *joint.inputs[0].shape[:2], joint.inputs[1].shape[1]
    np.testing.assert_allclose(found, expected(samples, shape), **CLOSE)


def test_written_out(device):
    """Of equal paths the latest labels count: in frame 3 without a band. Position 0 exists in
    frames 0 and 1 only."""
    sample = np.zeros((1, 4, 3, 3)), [[0, 1]], [4], [2]
    found = rnnt_alignment(*sample, band=(np.array([[0, 0, 1, 1]]), 2))
    assert found.frames.tolist() == [[1, 3]]
    np.testing.assert_allclose(found.log_prob, -6 * np.log(3), rtol=1e-12)
