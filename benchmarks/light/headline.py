"""1024 utterances of 40 s, H = 512, float32, within 6 GB: inputs, gradients and workspace."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from workloads import Joint, fresh, speech

import cupy_rnnt
from cupy_rnnt.ops.cuda.launch import cupy

from . import Report
from .arrays import tiled
from .timing import wall_seconds

_BYTES = 6_000_000_000
_BATCH, _PILOT = 1024, 64
_DISTINCT = 16  # utterances, which are repeated
_HIDDEN = 512


def _few(kind: str, width: int) -> Joint:
    if kind == "trained":
        return speech("trained", ["long0"], width, _HIDDEN)
    return fresh([1000] * _DISTINCT, [200] * _DISTINCT, width, _HIDDEN)


def _repeated(few: Joint, size: int) -> Joint:
    """On the GPU, `few` over and over."""
    xp, copies = cupy(), size // len(few.targets)
    ragged = (tiled(xp.asarray(array), copies) for array in few[:2])
    rest = (np.tile(array, (copies,) + (1,) * (array.ndim - 1)) for array in few[4:7])
    return Joint(*ragged, *map(xp.asarray, few[2:4]), *rest, few.blank)


def headline(report: Report) -> None:
    if report.small:
        _whole(report, "toy", _repeated(fresh([6, 4], [3, 2], 130, 64), 4), 2**26)
        return
    for width in 1024, 4096:
        for kind in "trained", "fresh":
            label = f"{kind}, V {width}"
            if report.has_time(label, 4):
                _attempt(report, label, _few(kind, width))
            cupy().get_default_memory_pool().free_all_blocks()


def _attempt(report: Report, label: str, few: Joint) -> None:
    """A part first, which compiles and tells whether the whole has time."""
    pilot = partial(_call, _repeated(few, _PILOT), 2**29)
    pilot()
    estimate = wall_seconds(pilot) * _BATCH / _PILOT
    *_, info = pilot()
    speed = info.cells * _BATCH / _PILOT / estimate
    report(
        f"{label}, B {_PILOT}: {speed / 1e6:.1f} million cells a second, "
        f"B {_BATCH} would take {estimate:.1f} s (extrapolated, not measured)",
        batch=f"{label}, B {_PILOT}",
        cells_a_second=speed,
        extrapolated_seconds=estimate,
    )
    if report.has_time(f"{label}, B {_BATCH}", 1.3 * estimate + 2):
        del pilot, info, _
        cupy().get_default_memory_pool().free_all_blocks()
        joint = _repeated(few, _BATCH)
        text = f"{label}, B {_BATCH}, {len(few.targets)} of them distinct"
        _whole(report, text, joint, _BYTES - 2 * _input_bytes(joint))


def _input_bytes(joint: Joint) -> int:
    return int(sum(array.nbytes for array in joint[:4]))


def _call(joint: Joint, workspace: int) -> Any:
    return cupy_rnnt.joint_rnnt_loss_and_grad(
        *joint, max_workspace_bytes=workspace, return_info=True
    )


def _whole(report: Report, label: str, joint: Joint, workspace: int) -> None:
    """One call; what CuPy's pool holds at its peak is what is counted, so neither the CUDA context
    nor cuBLAS's own memory nor the code of kernels. Integers are on the host."""
    pool = cupy().get_default_memory_pool()
    pool.free_all_blocks()
    results: list[Any] = []
    seconds = wall_seconds(lambda: results.append(_call(joint, workspace)))
    loss, _, info = results[0]
    held = pool.total_bytes()
    free, total = cupy().cuda.runtime.memGetInfo()
    frames, columns = joint.encoder_out.shape[1], joint.predictor_out.shape[1]
    report(
        f"{label} (T {frames}, U {columns - 1}): {seconds:.2f} s, "
        f"{info.cells / seconds / 1e6:.1f} million cells a second, {held / 1e9:.2f} GB in CuPy's "
        f"pool, {(total - free) / 1e9:.2f} GB of the device in use, computed "
        f"{info.computed / info.cells:.0%}, kept {info.kept / info.cells:.0%}",
        batch=label,
        wall_seconds=seconds,
        cells=info.cells,
        computed=info.computed,
        kept=info.kept,
        rounds=info.rounds,
        loss=float(loss),
        input_bytes=_input_bytes(joint),
        max_workspace_bytes=workspace,
        workspace_bytes=info.workspace_bytes,
        pool_bytes=held,
        device_bytes=total - free,
    )
