"""The call that is counted: loss and gradients of a joint network, on real speech or fresh."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
# By their names in the files of benchmarks/data.
UTTERANCES = {"trained": "01234", "half_trained": "012", "untrained": "01", "char_trained": "012"}
COMPUTED, KEPT = 0.05, 0.04
"""The shares of cells of the workload `shares`: those of 40 s of speech, trained."""


class Call(NamedTuple):
    """What is computed, all by name; `frames` and `labels` are of `fresh`, and of `shares`, which
    has no values. A budget of 0 is the library's default."""

    workload: str = "trained"
    batch: int = 16
    vocab: int = 1024
    hidden: int = 640
    dtype: str = "bfloat16"
    budget_mib: int = 256
    frames: int = 300
    labels: int = 70


def _dtype(call: Call) -> Any:
    import ml_dtypes

    return getattr(ml_dtypes, call.dtype, call.dtype)


def prepare(call: Call) -> Callable[[], dict[str, int]]:
    """The call, as a function that returns what the library says of it. CuPy has been started."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import cupy
    import workloads

    import cupy_rnnt

    widths = call.vocab, call.hidden
    if call.workload in ("fresh", "shares"):
        lengths = [call.frames] * call.batch, [call.labels] * call.batch
        joint = workloads.fresh(*lengths, *widths)
    else:
        names = UTTERANCES[call.workload]
        chosen = [names[i % len(names)] for i in range(call.batch)]
        joint = workloads.speech(call.workload, chosen, *widths)
    joint = joint.astype(_dtype(call))
    arrays: list[Any] = [cupy.asarray(array) for array in joint[:4]]
    options = {"max_workspace_bytes": call.budget_mib << 20 or None, "return_info": True}

    def run() -> dict[str, int]:
        *_, info = cupy_rnnt.joint_rnnt_loss_and_grad(*arrays, *joint[4:], **options)
        fields = "cells", "computed", "kept", "rounds", "workspace_bytes"
        return {name: int(getattr(info, name)) for name in fields}

    return run


def copies_of_shares(call: Call) -> list[bytes]:
    """What the host would read of the device, group by group, if cells were selected in one round:
    how many cells of each sample, what is known of its paths, and how many cells are kept and
    stored."""
    import cupy
    import numpy as np

    from cupy_rnnt import joint
    from cupy_rnnt.engine.plan import make_plan
    from cupy_rnnt.ops.cuda.indices import CHUNK

    shapes = (call.batch, call.frames), (call.batch, call.labels + 1), (call.vocab,)
    inputs = [cupy.zeros((*shape, call.hidden), cupy.float32) for shape in shapes]
    inputs = [array.astype(_dtype(call)) for array in inputs]
    labels = np.ones((call.batch, call.labels), int)
    lengths = np.full(call.batch, call.frames), np.full(call.batch, call.labels)
    options = {"max_workspace_bytes": call.budget_mib << 20 or None}
    bias = cupy.zeros(call.vocab, inputs[0].dtype)
    checked = joint.checked(*inputs, bias, labels, *lengths, **options)
    source = checked.source(gradient=True)
    plan = make_plan(source, checked.batch, checked.options, gradient=True, store=True)
    cells, copies = call.frames * (call.labels + 1), []
    for group in plan.groups:
        size = group.stop - group.start
        paths = np.append(np.repeat([-9.0, -8.0], size), np.full(16 * size, 1e-15))
        chosen, kept = (np.full(size, int(share * cells)) for share in (COMPUTED, KEPT))
        copies += [array.tobytes() for array in (chosen, paths, kept)]
        if 0 < plan.stored < chosen.sum():  # marks of the kept cells that are stored, by chunk
            is_stored = np.arange(kept.sum()) < plan.stored * KEPT / COMPUTED
            copies.append(np.add.reduceat(is_stored, range(0, len(is_stored), CHUNK)).tobytes())
    return copies
