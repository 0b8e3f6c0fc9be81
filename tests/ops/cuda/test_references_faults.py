"""Kernels of references with a planted fault: the emulator must find it, or a test of values."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.transducer import NAMED

from ... import devices
from ...emulated.memory import UninitialisedRead
from ...ptxemu import KernelError
from . import test_references, test_rows_faults
from .test_bounds import bounds_and_scores, joint_case

kernels = test_rows_faults.kernels
BARRIER = "__syncthreads();"
HALF, DOUBLE = np.dtype(np.float16), np.dtype(np.float64)

# What runs, file, what is replaced by what
FAULTS = {
    "a total that is read too early": (
        *("softmax", "largest.cuh", f"whole = part;\n        {BARRIER}", "whole = part;"),
    ),
    "logits overwritten before they are read": (
        *("softmax", "label_softmax.cu", "__syncwarp() : __syncthreads()", "void() : void()"),
    ),
    "means before all warps have their sums": (
        *("joint", "fold_rows.cu", f"= top;\n        {BARRIER}", "= top;"),
    ),
    "a row of weights too many": ("joint", "fold_rows.cu", "i < rows;", "i <= rows;"),
    "rows of the sample before": (
        *("joint", "samples.cuh", "row = number - samples.at(total, sample);", "row = number;"),
    ),
    "no input": (
        *(
            "joint",
            "references.cu",
            "item < rows * (vectors + 1)",
            "item < rows * (vectors + 1) - 1",
        ),
    ),
    "the entropy of a softmax that was not rounded": (
        *("softmax", "label_softmax.cu", "log(q))", "(row[j] + b - top))"),
    ),
    "masked labels": ("masked", "label_softmax.cu", "if (q == 0) continue;", ""),
    "the mean of the wrong side": ("means", "references.cu", "(1 - side) * count", "side * count"),
    "no label of the last sample": ("slack", "slack.cu", "(positions - 1, [&]", "(0, [&]"),
    "masked biases": ("slack", "slack.cu", "bias[v] >= from ? magnitude(v) : C(0)", "magnitude(v)"),
    "exponents of one side": ("slack", "slack.cu", "larger(e, p) <=", "e <="),
    "no shift": ("tangents", "references.cu", "logistic ? shift * sum.value : 0", "0"),
    "slopes as they are": ("tangents", "references.cu", "is_slope ? 1 / sums[i] : 1", "1"),
}
RUNS = {
    "softmax": lambda gpu: test_references.test_label_softmax(gpu, 2100, HALF, True),
    "masked": lambda gpu: test_references.test_label_softmax_of_masked_and_of_large_biases(
        gpu, 60, DOUBLE
    ),
    "joint": lambda gpu: bounds_and_scores(
        gpu, joint_case(1.0, blank=7), NAMED["regular"], "relu", np.float32
    ),
    "means": lambda gpu: test_references.test_reference_hidden(gpu, HALF),
    "slack": lambda gpu: [
        test_references.test_slack(gpu, "tdt", "masked", test_references.TANH, np.float32),
    ],
    "tangents": lambda gpu: [
        test_references.test_tangents(gpu, "regular", True, test_references.TANH, side, HALF)
        for side in (0, 1)
    ],
}


def run(name, monkeypatch):
    """In so few blocks that each has several items."""
    monkeypatch.setattr(launch, "MOST_BLOCKS", 2)
    with devices.emulated() as gpu:
        RUNS[name](gpu)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_a_fault_is_found(kernels, monkeypatch, fault):
    name, source, sound, broken = FAULTS[fault]
    text = (kernels / source).read_text()
    assert text.count(sound) == 1
    (kernels / source).write_text(text.replace(sound, broken))
    with pytest.raises((AssertionError, KernelError, UninitialisedRead, RuntimeError)):
        run(name, monkeypatch)


@pytest.mark.parametrize("name", RUNS)
def test_without_one_nothing_is_found(monkeypatch, name):
    run(name, monkeypatch)
