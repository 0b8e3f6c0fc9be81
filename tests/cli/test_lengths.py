"""The lengths of utterances that the command line takes its batches from."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt import cli


def test_shipped_lengths_are_those_of_256_utterances():
    frames, labels = cli.librispeech_lengths(256)
    assert frames.shape == labels.shape == (256,)
    assert frames.dtype == labels.dtype == np.int64
    assert (frames >= labels).all()
    assert (frames >= 31).all()  # the extremes of train-clean-100
    assert (frames <= 680).all()
    assert (labels >= 2).all()
    assert (labels <= 151).all()


@pytest.mark.parametrize("size", [1, 3])
def test_fewer_lengths_are_the_first_ones(size):
    every, some = cli.librispeech_lengths(256), cli.librispeech_lengths(size)
    np.testing.assert_array_equal(np.array(some), np.array(every)[:, :size])
