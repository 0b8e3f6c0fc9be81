"""Random numbers of dropout: the published ones, and how many units they drop."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt import reference
from cupy_rnnt.reference.dropout import dropout_factors, philox4x32

from .cases import random_joint

# "Known answers" of Random123, kat_vectors: rounds, counter, key, result.
KNOWN = """
7  00000000 00000000 00000000 00000000 00000000 00000000 5f6fb709 0d893f64 4f121f81 4f730a48
7  ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 5207ddc2 45165e59 4d8ee751 8c52f662
7  243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 4dfccaba 190a87f0 c47362ba b6b5242a
10 00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
"""


@pytest.mark.parametrize("line", KNOWN.strip().splitlines())
def test_known_answers(line):
    rounds, *rest = line.split()
    words = [int(word, 16) for word in rest]
    assert philox4x32(tuple(words[:4]), tuple(words[4:6]), int(rounds)) == tuple(words[6:])


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_mean_stays(probability):
    """To five standard deviations of the mean of 40,000 draws."""
    factors = dropout_factors(probability, 3, 1, 2, 100, 400)
    deviation = np.sqrt(probability / (1 - probability) / factors.size)
    assert abs(factors.mean() - 1) < 5 * deviation
    assert set(np.unique(factors)) == {0, 1 / (1 - probability)}


def test_every_coordinate_and_the_seed_count():
    calls = (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)
    rows = np.concatenate([dropout_factors(0.5, *call, 3, 64) for call in calls])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_gradients_are_those_of_the_loss():
    """By differences, for the same seed."""
    inputs, rest = random_joint(seed=5)
    options = {"activation": "silu", "dropout": 0.3, "seed": 9, "reduction": "sum"}
    _, gradients = reference.joint_rnnt_loss_and_grad(*inputs, *rest, **options)
    rng, step = np.random.default_rng(0), 1e-5
    for number, gradient in enumerate(gradients):
        direction = rng.standard_normal(gradient.shape)
        ends = []
        for sign in -1, 1:
            moved = list(inputs)
            moved[number] = inputs[number] + sign * step * direction
            ends.append(reference.joint_rnnt_loss(*moved, *rest, **options))
        slope = (ends[1] - ends[0]) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-7)
