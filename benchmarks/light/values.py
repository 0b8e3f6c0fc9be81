"""Values: costs and all gradients on the GPU beside those of the CPU, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from workloads import Joint, fresh, speech

import cupy_rnnt
from cupy_rnnt.ops.cuda.launch import cupy
from cupy_rnnt.ops.types import FLOATING_DTYPES
from cupy_rnnt.options import default_tolerance

from . import Report, require
from .arrays import on_device

_NAMES = "encoder_out", "predictor_out", "weight", "bias"
_WIDTHS = 64, 1024, 1025


def _allowed(dtype: np.dtype, length: int) -> tuple[float, float]:
    """Errors of a cost and of a gradient, as the tests derive them, for what the GPU multiplies."""
    from tests import device_calls, devices, tolerances

    with device_calls.running_on(devices.Device("cuda", cupy())):
        of_cost = tolerances.cost_tolerance(dtype, length)
        return of_cost, tolerances.gradient_tolerance(dtype, length)


def _batch(small: bool, width: int) -> Joint:
    if small:
        return fresh([4, 3], [2, 0], width, 64)
    return fresh([60, 41, 7], [14, 9, 0], width, 128)


def _selected(small: bool) -> Joint:
    """Real speech, on which selection leaves out most cells; in small, the first seconds of it."""
    if not small:
        return speech("trained", ["1", "3"], 1024, 256)
    encoder_out, predictor_out, weight, bias, targets, *_ = speech("trained", ["0"])
    frames, labels = 60, 26
    return Joint(
        encoder_out[:, :frames],
        predictor_out[:, : labels + 1],
        weight,
        bias,
        targets[:, :labels],
        np.array([frames]),
        np.array([labels]),
    )


def _rounded(joint: Joint, dtype: np.dtype) -> Joint:
    """In float64, values of a type."""
    return joint.astype(dtype).astype(np.float64)


class _Errors:
    """Errors of a case as shares of what is allowed."""

    def __init__(self, joint: Joint, dtype: np.dtype) -> None:
        length = int((joint.logit_lengths + joint.target_lengths).max())
        self._of_cost, self._of_gradient = _allowed(dtype, length)
        self.shares: dict[str, float] = {}

    def cost(self, actual: Any, desired: np.ndarray) -> None:
        actual = np.asarray(actual, np.float64)
        error = np.abs(actual - desired) / np.maximum(1, np.abs(desired))
        self.shares["cost"] = float(error.max() / self._of_cost)

    def gradient(self, name: str, actual: Any, desired: np.ndarray) -> None:
        error = np.abs(np.asarray(actual, np.float64) - desired).max()
        allowed = self._of_gradient * np.abs(desired).max(initial=1)
        self.shares[name] = float(error / allowed)

    @property
    def worst(self) -> float:
        """NaN if any is NaN."""
        return float(np.max(list(self.shares.values())))

    def report(self, report: Report, label: str, **more: Any) -> bool:
        worst = self.worst
        passed = bool(worst <= 1)
        verdict = "ok" if passed else "FAILED"
        shares = {name: round(share, 4) for name, share in self.shares.items()}
        text = f"{label}: {verdict}, errors at most {worst:.2f} of what is allowed"
        report(text, case=label, passed=passed, shares=shares, **more)
        return passed


def values(report: Report) -> None:
    """Joint networks and given logits, in every type, beside NumPy."""
    passed = True
    types = list(map(np.dtype, FLOATING_DTYPES))
    for width in _WIDTHS[:: 2 if report.small else 1]:
        for dtype in types:
            label = f"joint, V {width}, {dtype.name}"
            passed &= _joint(report, label, _batch(report.small, width), dtype)
            passed &= _logits(report, width, dtype)
    joint = _selected(report.small)
    for dtype in types[1:3] if report.small else types:
        label = f"trained joint, V {len(joint.weight)}, {dtype.name}"
        passed &= _joint(report, label, joint, dtype)
    require(passed, "values differ from those of NumPy")


def _joint(report: Report, label: str, joint: Joint, dtype: np.dtype) -> bool:
    call = partial(cupy_rnnt.joint_rnnt_loss_and_grad, reduction="none", return_info=True)
    wanted_costs, wanted, _ = call(*_rounded(joint, dtype))
    costs, gradients, info = call(*on_device(joint, dtype))
    errors = _Errors(joint, dtype)
    errors.cost(costs.get(), wanted_costs)
    for field, one, other in zip(_NAMES, gradients, wanted, strict=True):
        errors.gradient(field, one.get(), other)
    certificate = float(info.certificate.max())
    shares = {"computed": info.computed / info.cells, "kept": info.kept / info.cells}
    proven = certificate <= default_tolerance(dtype)
    label += f", {shares['computed']:.0%} computed" + (", NOT CERTIFIED" if not proven else "")
    return errors.report(report, label, certificate=certificate, **shares) and proven


def _logits(report: Report, width: int, dtype: np.dtype) -> bool:
    joint = _batch(report.small, width)
    shape = *joint.encoder_out.shape[:2], joint.predictor_out.shape[1], width
    logits = np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)
    rest = (*joint[4:7], joint.blank)
    call = partial(cupy_rnnt.rnnt_loss_and_grad, reduction="none")
    wanted_costs, wanted = call(logits.astype(np.float64), *rest)
    costs, gradient = call(cupy().asarray(logits), *rest)
    errors = _Errors(joint, dtype)
    errors.cost(costs.get(), wanted_costs)
    errors.gradient("logits", gradient.get(), wanted)
    return errors.report(report, f"logits, V {width}, {dtype.name}")


def torch_tensors(report: Report) -> None:
    """PyTorch's tensors on the GPU, float32 and under autocast to bfloat16, with autograd."""
    import torch

    passed = True
    for name in "float32", "bfloat16":
        passed &= _torch_case(report, torch, name, _batch(report.small, 1024))
    require(passed, "values differ from those of NumPy")


def _torch_case(report: Report, torch: Any, name: str, joint: Joint) -> bool:
    from cupy_rnnt.torch import joint_rnnt_loss

    dtype = np.dtype(name)
    wanted_cost, wanted = cupy_rnnt.joint_rnnt_loss_and_grad(*_rounded(joint, dtype))
    tensors = [torch.from_numpy(array).cuda().requires_grad_() for array in joint[:4]]
    rest = [torch.from_numpy(array) for array in joint[4:7]]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with (
        torch.cuda.stream(stream),
        torch.autocast("cuda", torch.bfloat16, enabled=name == "bfloat16"),
    ):
        loss = joint_rnnt_loss(*tensors, *rest, blank=joint.blank)
        loss.backward()
    torch.cuda.synchronize()
    errors = _Errors(joint, dtype)
    errors.cost(loss.detach().cpu(), wanted_cost)
    for field, tensor, gradient in zip(_NAMES, tensors, wanted, strict=True):
        errors.gradient(field, tensor.grad.cpu(), gradient)
    return errors.report(report, f"PyTorch, {name}, on a stream of its own")


def jax_arrays(report: Report) -> None:
    """JAX's arrays on the GPU, under jit."""
    import jax

    from cupy_rnnt.jax import joint_rnnt_loss

    joint = _batch(report.small, 1024)
    passed = True
    for name in "float32", "bfloat16":
        dtype = np.dtype(name)
        wanted_cost, wanted = cupy_rnnt.joint_rnnt_loss_and_grad(*_rounded(joint, dtype))
        step = jax.jit(
            jax.value_and_grad(partial(joint_rnnt_loss, blank=joint.blank), argnums=(0, 1, 2, 3))
        )
        inputs = [*joint.astype(dtype)[:4], *joint[4:7]]
        loss, gradients = _of_second_call(step, inputs)
        errors = _Errors(joint, dtype)
        errors.cost(loss, wanted_cost)
        for field, one, other in zip(_NAMES, gradients, wanted, strict=True):
            errors.gradient(field, one, other)
        passed &= errors.report(report, f"JAX, {name}, jit, {jax.devices()[0]}")
    require(passed, "values differ from those of NumPy")


def _of_second_call(step: Any, inputs: Iterable[Any]) -> Any:
    """The first one compiles."""
    step(*inputs)
    return step(*inputs)
