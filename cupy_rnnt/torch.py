"""The losses as PyTorch functions and modules, on CPU tensors and without copies.

:func:`rnnt_loss` takes the arguments of ``torchaudio.functional.rnnt_loss``, in the same order and
with the same defaults. The backward pass applies whatever gradient comes from above to each cost on
its own, and may be run again on a retained graph; there is no second derivative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import engine, joint, loss
from .results import JointGradients
from .sources import LogitsSource

__all__ = ["JointRNNTLoss", "RNNTLoss", "joint_rnnt_loss", "rnnt_loss"]


def _numpy(name: str, value: Any) -> Any:
    """A NumPy view of a CPU tensor; what is no tensor passes as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.device.type != "cpu":
        raise ValueError(f"{name} is on device {value.device}, but a tensor on cpu is needed")
    if value.layout != torch.strided:
        raise TypeError(f"{name} has layout {value.layout}, but a dense tensor is needed")
    value = value.detach().resolve_neg()
    if value.dtype == torch.bfloat16:
        import ml_dtypes

        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return value.numpy()
    except (RuntimeError, TypeError) as error:  # a dtype or a kind of tensor that NumPy lacks
        raise TypeError(f"{name} cannot be seen as a numpy.ndarray: {error}") from error


def _tensor(array: np.ndarray | None) -> Tensor | None:
    if array is None:
        return None
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _needs_grad(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in tensors
    )


def _costs(result: engine.Result, dtype: np.dtype) -> Tensor:
    return torch.from_numpy(result.costs.astype(dtype))


def _reduced(costs: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return costs.mean()
    return costs.sum() if reduction == "sum" else costs


class _LogitsCosts(torch.autograd.Function):
    """Costs (B,) of logits; `holder` receives the engine's result."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, call: loss.LogitsCall, fused: bool, holder: list[engine.Result]
    ) -> Tensor:
        source = LogitsSource(call.batch, call.logits, fused)
        result = engine.forward(source, call.batch, call.options, keep=True)
        loss.warn_if_normalised(source)
        ctx.save_for_backward(logits)
        ctx.call, ctx.fused, ctx.result = call._replace(logits=None), fused, result
        holder.append(result)
        return _costs(result, source.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (logits,) = ctx.saved_tensors
        values = _numpy("logits", logits)
        grad = np.zeros(values.shape, values.dtype)
        source = LogitsSource(ctx.call.batch, values, ctx.fused, grad)
        weights = upstream.double().numpy()
        engine.backward(source, ctx.call.batch, ctx.call.options, ctx.result, weights)
        return _tensor(grad), None, None, None


_SAVED = JointGradients(None, None, None, None)  # PyTorch keeps the tensors meanwhile


class _JointCosts(torch.autograd.Function):
    """Costs (B,) of a joint network; `holder` receives the engine's result."""

    @staticmethod
    def forward(
        ctx: Any,
        encoder_out: Tensor,
        predictor_out: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: joint.JointCall,
        holder: list[engine.Result],
    ) -> Tensor:
        source = call.source(gradient=True)
        result = engine.forward(source, call.batch, call.options, keep=True)
        ctx.save_for_backward(encoder_out, predictor_out, weight, bias)
        ctx.call, ctx.result = call._replace(arguments=_SAVED), result
        holder.append(result)
        return _costs(result, source.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        names = JointGradients._fields
        views = map(_numpy, names, ctx.saved_tensors)
        call = ctx.call._replace(arguments=JointGradients(*views))
        source = call.source(gradient=True)
        weights = upstream.double().numpy()
        engine.backward(source, call.batch, call.options, ctx.result, weights)
        return (*map(_tensor, source.gradients), None, None)


def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    tolerance: float | None = None,
    max_workspace_bytes: int | None = None,
    return_info: bool = False,
) -> Any:
    """RNN-transducer loss of given logits: :func:`cupy_rnnt.rnnt_loss` for tensors.

    Drop-in for ``torchaudio.functional.rnnt_loss``. If the logits come from a joint network,
    :func:`joint_rnnt_loss` gets by without them.

    Parameters
    ----------
    logits : torch.Tensor, shape (B, T, U + 1, V)
        On the CPU; float16, bfloat16, float32 or float64.
    targets : torch.Tensor, shape (B, U), any integer dtype
    logit_lengths, target_lengths : torch.Tensor, shape (B,), any integer dtype
    blank, clamp, reduction, fused_log_softmax, fastemit_lambda, zero_infinity, tolerance, \
max_workspace_bytes
        As for :func:`cupy_rnnt.rnnt_loss_and_grad`. `clamp` bounds the gradient before that from
        above is applied, so it means the same under loss scaling.
    return_info : bool
        Whether to return an :class:`cupy_rnnt.Info` as well.

    Returns
    -------
    loss : torch.Tensor, shape () or, if `reduction` is ``"none"``, (B,)
        In nats; float32, or float64 for float64 logits.
    info : cupy_rnnt.Info
        Only if `return_info` is true.

    Raises
    ------
    ValueError, TypeError
        As :func:`cupy_rnnt.rnnt_loss` does.

    Examples
    --------
    >>> import torch, cupy_rnnt.torch
    >>> logits = torch.zeros(1, 2, 2, 3, requires_grad=True)
    >>> targets, lengths = torch.tensor([[1]]), (torch.tensor([2]), torch.tensor([1]))
    >>> cupy_rnnt.torch.rnnt_loss(logits, targets, *lengths, blank=0).backward()
    >>> (logits.grad[0, 0, 0] * 6).round(decimals=5)
    tensor([-1., -1.,  2.])
    """
    call = loss.checked(
        _numpy("logits", logits),
        _numpy("targets", targets),
        _numpy("logit_lengths", logit_lengths),
        _numpy("target_lengths", target_lengths),
        blank,
        reduction,
        clamp=clamp,
        fastemit_lambda=fastemit_lambda,
        zero_infinity=zero_infinity,
        tolerance=tolerance,
        max_workspace_bytes=max_workspace_bytes,
        progress=None,
    )
    holder: list[engine.Result] = []
    if _needs_grad(logits):
        costs = _LogitsCosts.apply(  # type: ignore[no-untyped-call]
            logits, call, fused_log_softmax, holder
        )
    else:
        source = LogitsSource(call.batch, call.logits, fused_log_softmax)
        holder.append(engine.forward(source, call.batch, call.options, keep=False))
        loss.warn_if_normalised(source)
        costs = _costs(holder[0], source.dtype)
    value = _reduced(costs, call.reduction)
    return (value, holder[0].info(call.batch)) if return_info else value


def joint_rnnt_loss(
    encoder_out: Tensor,
    predictor_out: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    *,
    activation: str = "tanh",
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    tolerance: float | None = None,
    max_workspace_bytes: int | None = None,
    return_info: bool = False,
) -> Any:
    """RNN-transducer loss of a joint network: :func:`cupy_rnnt.joint_rnnt_loss` for tensors.

    Between forward and backward pass it holds 24 bytes for each cell whose gradient matters, and no
    logits. Without a need for gradients it computes the costs alone.

    Parameters
    ----------
    encoder_out : torch.Tensor, shape (B, T, H)
        On the CPU; float16, bfloat16, float32 or float64, and so the next three.
    predictor_out : torch.Tensor, shape (B, U + 1, H)
    weight : torch.Tensor, shape (V, H)
        Of the output layer, as in ``torch.nn.Linear``.
    bias : torch.Tensor, shape (V,), or None
    targets : torch.Tensor, shape (B, U), any integer dtype
    logit_lengths, target_lengths : torch.Tensor, shape (B,), any integer dtype
    blank, clamp, reduction, activation, fastemit_lambda, zero_infinity, tolerance, \
max_workspace_bytes
        As for :func:`cupy_rnnt.joint_rnnt_loss_and_grad`. `tolerance` concerns the cost as well, so
        it is of effect without a gradient, too.
    return_info : bool
        Whether to return an :class:`cupy_rnnt.Info` as well.

    Returns
    -------
    loss : torch.Tensor, shape () or, if `reduction` is ``"none"``, (B,)
        In nats; float32, or float64 for float64 inputs.
    info : cupy_rnnt.Info
        Only if `return_info` is true.

    Raises
    ------
    ValueError, TypeError
        As :func:`cupy_rnnt.joint_rnnt_loss` does.

    Examples
    --------
    >>> import torch, cupy_rnnt.torch
    >>> output = torch.nn.Linear(5, 7)
    >>> encoder_out = torch.randn(2, 6, 5, requires_grad=True)
    >>> predictor_out = torch.randn(2, 4, 5, requires_grad=True)
    >>> loss = cupy_rnnt.torch.joint_rnnt_loss(
    ...     encoder_out, predictor_out, output.weight, output.bias,
    ...     torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([6, 5]), torch.tensor([3, 2]))
    >>> loss.backward()
    >>> output.weight.grad.shape
    torch.Size([7, 5])
    """
    inputs = JointGradients(encoder_out, predictor_out, weight, bias)
    arrays = JointGradients(*map(_numpy, JointGradients._fields, inputs))
    call = joint.checked(
        arrays.encoder_out,
        arrays.predictor_out,
        arrays.weight,
        arrays.bias,
        _numpy("targets", targets),
        _numpy("logit_lengths", logit_lengths),
        _numpy("target_lengths", target_lengths),
        blank,
        reduction,
        activation,
        clamp=clamp,
        fastemit_lambda=fastemit_lambda,
        zero_infinity=zero_infinity,
        tolerance=tolerance,
        max_workspace_bytes=max_workspace_bytes,
        progress=None,
    )
    holder: list[engine.Result] = []
    if _needs_grad(*inputs):
        costs = _JointCosts.apply(  # type: ignore[no-untyped-call]
            *inputs, call, holder
        )
    else:
        source = call.source(gradient=False)
        holder.append(engine.forward(source, call.batch, call.options, keep=False))
        costs = _costs(holder[0], source.dtype)
    value = _reduced(costs, call.reduction)
    return (value, holder[0].info(call.batch)) if return_info else value


class RNNTLoss(torch.nn.Module):
    """:func:`rnnt_loss` with its options fixed; drop-in for ``torchaudio.transforms.RNNTLoss``.

    Parameters are the options of :func:`rnnt_loss`; ``forward`` takes ``(logits, targets,
    logit_lengths, target_lengths)``.
    """

    def __init__(
        self,
        blank: int = -1,
        clamp: float = -1.0,
        reduction: str = "mean",
        fused_log_softmax: bool = True,
        **keywords: Any,
    ) -> None:
        super().__init__()
        self._options = {
            "blank": blank,
            "clamp": clamp,
            "reduction": reduction,
            "fused_log_softmax": fused_log_softmax,
            **keywords,
        }

    def forward(
        self, logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor
    ) -> Any:
        return rnnt_loss(logits, targets, logit_lengths, target_lengths, **self._options)


class JointRNNTLoss(torch.nn.Module):
    """:func:`joint_rnnt_loss` with its options fixed.

    Parameters are the options of :func:`joint_rnnt_loss`; ``forward`` takes ``(encoder_out,
    predictor_out, weight, bias, targets, logit_lengths, target_lengths)``. The output layer stays
    with the model, which needs it for decoding.
    """

    def __init__(
        self, blank: int = -1, clamp: float = -1.0, reduction: str = "mean", **keywords: Any
    ) -> None:
        super().__init__()
        self._options = {"blank": blank, "clamp": clamp, "reduction": reduction, **keywords}

    def forward(
        self,
        encoder_out: Tensor,
        predictor_out: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        logit_lengths: Tensor,
        target_lengths: Tensor,
    ) -> Any:
        return joint_rnnt_loss(
            encoder_out,
            predictor_out,
            weight,
            bias,
            targets,
            logit_lengths,
            target_lengths,
            **self._options,
        )
