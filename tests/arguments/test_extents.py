"""Extents beyond any memory, of arrays that repeat one element."""

from __future__ import annotations

import math

import numpy as np
import pytest

import cupy_rnnt

from .cases import OF_JOINT, OF_LOGITS, WITH_GRAD, every_function, flat, joint_functions, named


def broadcast(shape, dtype=np.float32):
    return np.broadcast_to(np.zeros((), dtype), shape)


def enormous(function, frames=2, labels=1, vocabulary=4, hidden=3):
    columns = labels + 1
    if function in OF_LOGITS:
        floats = {"logits": broadcast((1, frames, columns, vocabulary))}
    else:
        floats = {
            "encoder_out": broadcast((1, frames, hidden)),
            "predictor_out": broadcast((1, columns, hidden)),
            "weight": broadcast((vocabulary, hidden)),
            "bias": broadcast((vocabulary,)),
        }
    targets = broadcast((1, labels), np.int8)
    return floats | {"targets": targets, "logit_lengths": [frames], "target_lengths": [labels]}


@named((*OF_JOINT, cupy_rnnt.rnnt_loss))
def test_enormous_lattices_need_too_large_a_workspace(function):
    with pytest.raises(ValueError, match=r"max_workspace_bytes is 268435456, .* \d{14,} bytes"):
        function(**enormous(function, frames=2**45))


@every_function
@pytest.mark.parametrize("extent", ["frames", "labels", "vocabulary", "hidden"])
def test_enormous_extents_are_refused(function, extent):
    """By the workspace, or by NumPy where an argument or a result must be held as a whole."""
    if extent == "hidden" and function in OF_LOGITS:
        return
    with pytest.raises((ValueError, MemoryError), match=r"bytes|Unable to allocate"):
        function(**enormous(function, **{extent: 2**45}))


@joint_functions
def test_cells_beyond_64_bits(function):
    with pytest.raises(ValueError, match=rf"{2**64} cells, but at most 2\*\*62"):
        function(**enormous(function, frames=2**32, labels=2**32 - 1))


@every_function
def test_enormous_padding_costs_nothing(function):
    """Short samples in endless arrays; but a gradient is as large as its argument."""
    extents = {"frames": 2**40, "labels": 2**18} if function not in WITH_GRAD else {"labels": 2**12}
    given = enormous(function, **extents) | {"logit_lengths": [2], "target_lengths": [1]}
    if "weight" in given:
        given["activation"] = "relu"
    loss = np.asarray(flat(function(**given | {"max_workspace_bytes": 2**21}))[0])
    assert loss == pytest.approx(math.log(4**3 / 2), rel=1e-6)  # two paths, three transitions
