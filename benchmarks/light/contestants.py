"""What others take on the same batches, in the same process, one after the other."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import peers
import tiles
import torch
from workloads import Joint

from . import Report, in_short
from .calls import batches

_REPEATS = 5
_CASES = "bfloat16", "float32"


Result = tuple[torch.Tensor, list[torch.Tensor]]


class _Case:
    """A batch as tensors on the GPU, and the type of its products."""

    def __init__(self, joint: Joint, name: str, device: str = "cuda") -> None:
        self.name = name
        self.leaves = [torch.from_numpy(a).to(device).requires_grad_() for a in joint[:4]]
        self.lattice = [torch.from_numpy(np.asarray(a)).to(device) for a in joint[4:7]]
        self.host_lattice = [torch.from_numpy(np.asarray(a)) for a in joint[4:7]]
        self.blank = joint.blank
        self.device = device

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.name == "bfloat16")

    def clear(self) -> None:
        """No gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def step(self, loss_of: Callable[[_Case], torch.Tensor]) -> Result:
        self.clear()
        with self.autocast():
            loss = loss_of(self)
        loss.backward()
        return loss.detach(), [leaf.grad for leaf in self.leaves]


def _logits(case: _Case) -> torch.Tensor:
    encoder_out, predictor_out, weight, bias = case.leaves
    hidden = torch.tanh(encoder_out[:, :, None] + predictor_out[:, None])
    return torch.nn.functional.linear(hidden, weight, bias)


def _torchaudio(case: _Case) -> torch.Tensor:
    from torchaudio.functional import rnnt_loss

    lattice = [tensor.int() for tensor in case.lattice]
    return rnnt_loss(_logits(case).float(), *lattice, blank=case.blank)


def _autograd(case: _Case) -> torch.Tensor:
    return peers.loss_of_logits(_logits(case).float(), *case.lattice, blank=case.blank)


def _cupy_rnnt(case: _Case) -> torch.Tensor:
    from cupy_rnnt.torch import joint_rnnt_loss

    return joint_rnnt_loss(*case.leaves, *case.host_lattice, blank=case.blank)


def _costs_by_torchaudio(
    by_blank: torch.Tensor, by_label: torch.Tensor, *lengths: torch.Tensor
) -> torch.Tensor:
    """With a vocabulary of two: every label is 0, the blank is 1."""
    from torchaudio.functional import rnnt_loss

    size, _, columns = by_blank.shape
    labels = torch.zeros(size, columns - 1, dtype=torch.int32, device=by_blank.device)
    return rnnt_loss(
        torch.stack((by_label, by_blank), dim=3),
        labels,
        *(tensor.int() for tensor in lengths),
        blank=1,
        reduction="none",
        fused_log_softmax=False,
    )


def _recomputing(case: _Case, costs_of: Callable[..., torch.Tensor]) -> Result:
    with torch.no_grad():
        leaves = tuple(leaf.detach() for leaf in case.leaves)
        dtype = getattr(torch, case.name)
        return tiles.loss_and_grad(leaves, *case.lattice, case.blank, dtype, costs_of)


CONTESTANTS: dict[str, Callable[[_Case], Result]] = {
    "cupy_rnnt.torch": partial(_Case.step, loss_of=_cupy_rnnt),
    "torchaudio and joint": partial(_Case.step, loss_of=_torchaudio),
    "PyTorch autograd": partial(_Case.step, loss_of=_autograd),
    "recomputing tiles": partial(_recomputing, costs_of=peers.costs_of_transitions),
    "recomputing tiles, lattice of torchaudio": partial(
        _recomputing, costs_of=_costs_by_torchaudio
    ),
}
"""Loss and all gradients of a case."""


def contestants(report: Report) -> None:
    """Time and peak memory of each, for batches of a trained joint and of a fresh one."""
    for batch, joint in batches(report.small).items():
        for name in _CASES:
            case = _Case(joint, name)
            for contestant, function in CONTESTANTS.items():
                label = f"{batch}, {name}, {contestant}"
                if report.has_time(label, 3):
                    case.clear()
                    _measure(report, label, partial(function, case))
            del case


def _measure(report: Report, label: str, step: Callable[[], Result]) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        loss, gradients = step()
        agreeing = {"loss": float(loss), "d_weight_norm": float(gradients[2].norm())}
        del loss, gradients
        peak = torch.cuda.max_memory_allocated() - before
        seconds = [_seconds(step) for _ in range(_REPEATS)]
    except Exception as error:  # not there, out of memory: the others go on
        report(f"{label}: {in_short(error)}", contestant=label, fault=in_short(error))
        return
    report(
        f"{label}: {1e3 * statistics.median(seconds):.1f} ms, {peak / 2**20:.0f} MiB, "
        f"loss {agreeing['loss']:.5f}, norm of d_weight {agreeing['d_weight_norm']:.5f}",
        contestant=label,
        wall_seconds=seconds,
        peak_bytes=peak,
        **agreeing,
    )


def _seconds(step: Callable[[], Result]) -> float:
    """By CUDA events."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3
