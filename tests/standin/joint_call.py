"""The call that is counted: loss and gradients of a joint network, on real speech or fresh."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
# By their names in the files of benchmarks/data.
UTTERANCES = {"trained": "01234", "half_trained": "012", "untrained": "01", "char_trained": "012"}


class Call(NamedTuple):
    """What is computed, all by name; `frames` and `labels` are of `fresh`."""

    workload: str = "trained"
    batch: int = 16
    vocab: int = 1024
    hidden: int = 640
    dtype: str = "bfloat16"
    budget_mib: int = 256
    frames: int = 300
    labels: int = 70


def prepare(call: Call) -> Callable[[], dict[str, int]]:
    """The call, as a function that returns what the library says of it. CuPy has been started."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import cupy
    import ml_dtypes
    import workloads

    import cupy_rnnt

    widths = call.vocab, call.hidden
    if call.workload == "fresh":
        lengths = [call.frames] * call.batch, [call.labels] * call.batch
        joint = workloads.fresh(*lengths, *widths)
    else:
        names = UTTERANCES[call.workload]
        chosen = [names[i % len(names)] for i in range(call.batch)]
        joint = workloads.speech(call.workload, chosen, *widths)
    joint = joint.astype(getattr(ml_dtypes, call.dtype, call.dtype))
    arrays: list[Any] = [cupy.asarray(array) for array in joint[:4]]
    options = {"max_workspace_bytes": call.budget_mib << 20, "return_info": True}

    def run() -> dict[str, int]:
        *_, info = cupy_rnnt.joint_rnnt_loss_and_grad(*arrays, *joint[4:], **options)
        fields = "cells", "computed", "kept", "rounds", "workspace_bytes"
        return {name: int(getattr(info, name)) for name in fields}

    return run
