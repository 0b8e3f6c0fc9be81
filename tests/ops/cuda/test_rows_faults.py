"""Kernels on rows with a planted fault, which the emulator must find."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from cupy_rnnt.ops.cuda import launch

from ... import devices
from ...emulated.memory import UninitialisedRead
from ...ptxemu import KernelError
from ..row_cases import OPERATIONS, Device
from .kernel_resources import ROOT

pytestmark = pytest.mark.slow

BARRIER = "__syncthreads();"

# Operation, width, file, what is replaced by what, what is found
FAULTS = {
    "last pack beyond the row": (
        *("gather", 1024, "common.cuh", "j < tail; j +=", "j <= tail; j +="),
        "out-of-bounds",
    ),
    "elements between packs left out": (
        *("gather", 33, "common.cuh", "i < left; i +=", "i < 1; i +="),
        "uninitialised",
    ),
    "packs that are not aligned": (
        *("hidden", 33, "common.cuh", "return agree ?", "return true ?"),
        "misaligned",
    ),
    "rows one too many": (
        *("row_scores", 64, "row_scores.cu", "i < rows;", "i <= rows;"),
        "out-of-bounds",
    ),
    "cells one too many": (
        *("hidden", 64, "hidden.cu", "item < cells * warps", "item <= cells * warps"),
        "out-of-bounds",
    ),
    "warps of a row taken for rows": (
        *("scatter", 1025, "common.cuh", "row(item / warps)", "row(item)"),
        "out-of-bounds",
    ),
    "output not written": (
        *("hidden", 64, "hidden.cu", "store<n>(out + j, x);", ""),
        "uninitialised",
    ),
    "parts of warps read too early": (
        *("row_scores", 2049, "common.cuh", f"= part;\n        {BARRIER}", "= part;"),
        "race",
    ),
    "parts of warps overwritten": (
        *(
            "row_scores",
            2049,
            "common.cuh",
            f"parts[warp]);\n        {BARRIER}",
            "parts[warp]);",
        ),
        "race",
    ),
    "one head, however many there are": (
        *("row_scores", 64, "row_scores.cu", "g < table.heads; ++g) {", "g < 1; ++g) {"),
        "out-of-bounds|uninitialised",
    ),
    "a softmax of columns under no head": (
        *("log_probs_grad", 64, "logits_grad.cu", "if (row.factor == 0) return row;", ""),
        "out-of-bounds",
    ),
    "rows beyond the last 32": (
        *("bias_grad", 64, "logits_grad.cu", "rows - first < 32 ? rows - first : 32", "32"),
        "out-of-bounds",
    ),
    "columns beyond the last": (
        *("bias_grad", 33, "logits_grad.cu", "if (sums && j < width) {", "if (sums) {"),
        "race|out-of-bounds",
    ),
    "the sums of other rows": (
        *("bias_grad", 64, "logits_grad.cu", "sums + chunk * width + j", "sums + j"),
        "race",
    ),
    "rows that are not prepared yet": (
        *(
            "logits_grad",
            64,
            "logits_grad.cu",
            "first + lane, cell));\n            __syncwarp();",
            "first + lane, cell));",
        ),
        "race|uninitialised",
    ),
    "rows of a range prepared too early": (
        *("logits_grad", 64, "logits_grad.cu", "__syncwarp();  //", "//"),
        "race",
    ),
    "parts of columns read too early": (
        *(
            "write_output_grads",
            64,
            "output_grads.cu",
            "= sum;\n        __syncthreads();",
            "= sum;",
        ),
        "race|uninitialised",
    ),
    "rows of weights one too many": (
        *("write_output_grads", 33, "output_grads.cu", "if (i >= rows) continue;", ""),
        "out-of-bounds",
    ),
    "padding taken for frames": (
        *("write_input_grads", 64, "input_grads.cu", "exists ? from[j] / factor", "true ? from[j]"),
        "out-of-bounds",
    ),
    "a power of two that is not there yet": (
        *(
            "scaled_weights",
            64,
            "scaled_weights.cu",
            "exponent);\n    }\n    __syncthreads();",
            "exponent);\n    }",
        ),
        "race|uninitialised",
    ),
    "a frame behind the last": (
        *("add_input_grad", 64, "input_grads.cu", "f <= frames;", "f <= frames + 1;"),
        "out-of-bounds",
    ),
    "rows of two frames": (
        *("add_input_grad", 64, "input_grads.cu", "starts[frame + 1]", "starts[frame + 2]"),
        "out-of-bounds|uninitialised",
    ),
    "a position taken for a frame": (
        *(
            "add_input_grad",
            64,
            "input_grads.cu",
            "if (target < frames)",
            "if (target <= frames)",
        ),
        "out-of-bounds",
    ),
    "a cell behind the last": (
        *("add_input_grad", 64, "input_grads.cu", "i < end && ", ""),
        "out-of-bounds",
    ),
}


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A copy of the sources that the package reads instead of its own."""
    folder = tmp_path / "kernels"
    shutil.copytree(ROOT / "kernels", folder)
    monkeypatch.setattr(launch, "_folder", lambda: folder)
    caches = launch.source_text, launch._module, launch._function
    for cache in caches:
        cache.cache_clear()
    yield folder
    for cache in caches:
        cache.cache_clear()


def run(name, width, monkeypatch):
    """Run an operation in so few blocks that each has several items, and look at the results."""
    monkeypatch.setattr(launch, "MOST_BLOCKS", 2)
    with devices.emulated() as found:
        on, operation = Device(found.xp, offset=1), OPERATIONS[name]
        for result in operation.case(on, operation.dtypes[0], width, np.random.default_rng(0)):
            found.asnumpy(result)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(kernels, monkeypatch, fault):
    name, width, source, sound, broken, finding = FAULTS[fault]
    text = (kernels / source).read_text()
    assert text.count(sound) == 1
    (kernels / source).write_text(text.replace(sound, broken))
    with pytest.raises((KernelError, UninitialisedRead), match=finding):
        run(name, width, monkeypatch)


@pytest.mark.parametrize("width", sorted({width for _, width, *_ in FAULTS.values()}))
@pytest.mark.parametrize("name", sorted({name for name, *_ in FAULTS.values()}))
def test_without_one_nothing_is_found(monkeypatch, name, width):
    run(name, width, monkeypatch)
