"""Whole calls: by the clock, by events, and which kernels they consist of."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import costs
import ml_dtypes
import modelled
import numpy as np
from workloads import Joint, fresh, speech

import cupy_rnnt

from . import Report, in_short
from .arrays import cupy, on_device
from .timing import (
    Interval,
    busy_seconds,
    by_events,
    by_name,
    event_seconds,
    profiled,
    wall_seconds,
)

MIB = 2**20
_UTTERANCES = [str(i % 5) for i in range(16)]  # 351 to 449 frames, 51 to 78 labels
_WORKSPACES = 256 * MIB, 2048 * MIB
_REPEATS = 7
_SHOWN = 6  # kernels of a table that are printed; the file has all


def batches(small: bool) -> dict[str, Joint]:
    """B = 16, V = 1024, H = 640, of a trained joint and of a fresh one."""
    if small:
        return {"trained": _toy(1), "untrained": _toy(0)}
    return {
        "trained": speech("trained", _UTTERANCES, 1024, 640),
        "untrained": fresh([375] * 16, [80] * 16, 1024, 640),
    }


def _toy(seed: int) -> Joint:
    return fresh([5, 4], [2, 1], 130, 64, seed)


def bfloat16(report: Report) -> None:
    _calls(report, ml_dtypes.bfloat16)


def float32(report: Report) -> None:
    _calls(report, np.float32)


def _calls(report: Report, dtype: Any) -> None:
    for name, joint in batches(report.small).items():
        arguments = on_device(joint, dtype)
        for workspace in _WORKSPACES[: 1 if report.small else None]:
            label = f"{name}, {np.dtype(dtype).name}, {workspace // MIB} MiB"
            if report.has_time(label, 4):
                _call(report, label, arguments, workspace)


def _call(report: Report, label: str, joint: Joint, workspace: int) -> None:
    call = partial(
        cupy_rnnt.joint_rnnt_loss_and_grad,
        *joint,
        max_workspace_bytes=workspace,
        return_info=True,
    )
    *_, info = call()
    repeats = 1 if report.small else _REPEATS
    seconds = [wall_seconds(call) for _ in range(repeats)]
    events = [event_seconds(call) for _ in range(repeats)]
    median = statistics.median(seconds)
    shares = f"computed {info.computed / info.cells:.0%}, kept {info.kept / info.cells:.0%}"
    report(
        f"{label}: {1e3 * median:.2f} ms, {1e3 * statistics.median(events):.2f} ms by events, "
        f"{info.cells / median / 1e6:.1f} million cells a second, {shares}",
        batch=label,
        wall_seconds=seconds,
        event_seconds=events,
        cells=info.cells,
        computed=info.computed,
        kept=info.kept,
        rounds=info.rounds,
        workspace_bytes=info.workspace_bytes,
    )
    _beside(report, label, joint, workspace, info, median)
    _kernels(report, label, call, median)


def _beside(
    report: Report, label: str, joint: Joint, workspace: int, info: Any, seconds: float
) -> None:
    """The time of a call beside what the model computes for its host and for this GPU."""
    gpu, products = cupy().cuda.Device(), joint.weight.dtype.name
    machine = costs.machine_of(gpu.attributes, int(gpu.compute_capability))
    frames, labels = (lengths.tolist() for lengths in (joint.logit_lengths, joint.target_lengths))
    batch = costs.Batch.of(frames, [count + 1 for count in labels])
    shape, of = joint.weight.shape, (info.computed, info.kept)
    parts = modelled.parts_of(*of, shape[0], info.rounds - 1, batch.frames, batch.prefixes)
    host = modelled.host_seconds(parts, products)
    device = None
    if products in machine.products:
        operations = modelled.operations(batch, *shape, *of, products, workspace)
        device = costs.seconds(operations, machine, products)
    of_device = "not known" if device is None else f"at least {1e3 * device:.2f} ms"
    report(
        f"{label}: computed: host {1e3 * host:.2f} ms, GPU {of_device}",
        batch=label,
        computed_host_seconds=host,
        computed_gpu_seconds=device,
        measured_over_computed=seconds / max(host, device or 0.0),
    )


def _kernels(report: Report, label: str, call: Callable[[], Any], seconds: float) -> None:
    """The table by kernel, of one call more; without a profiler, a call takes `seconds`."""
    found, by = _intervals(call, report.small)
    busy, rows = busy_seconds(found), by_name(found)
    text = f"{label}: GPU busy {busy / seconds:.0%} of the time, {len(found)} operations"
    report(
        f"{text}, by {by}",
        batch=label,
        by=by,
        busy_seconds=busy,
        busy_share=busy / seconds,
        kernels=rows,
    )
    for row in rows[:_SHOWN]:
        report(f"    {1e3 * row['seconds']:8.3f} ms {row['count']:6d} x {row['name'][:56]}")


def _intervals(call: Callable[[], Any], small: bool) -> tuple[list[Interval], str]:
    """What the GPU did in a call, and how that is known."""
    try:
        return profiled(call), "torch.profiler"
    except Exception as error:  # no PyTorch, no GPU of its own, no CUPTI
        reason = f"events around launches and products only ({in_short(error)})"
        return by_events(call, small), reason
