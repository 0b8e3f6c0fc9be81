"""The losses, and the scores of cells, as PyTorch functions and modules, without copies.

:func:`rnnt_loss` takes the arguments of ``torchaudio.functional.rnnt_loss``, in the same order and
with the same defaults. Tensors may be on the CPU or, with CuPy installed, on a CUDA device, where
CuPy works on PyTorch's current stream and in its memory pool. Labels and lengths may be on the host
in any case. ``torch.compile(fullgraph=True)`` traces the calls. The backward pass may be run again
on a retained graph. There is no second derivative, and no ``vmap``: pass the samples as the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..batch import BandLike
from ..options import JointKeywords, Keywords, Options, spells_out
from . import operators
from .additive import additive_rnnt_loss
from .arguments import arguments_of, autocast, dense, drawn_seed, needs_grad
from .log_probs import joint_rnnt_log_probs

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "JointRNNTLoss",
    "RNNTLoss",
    "additive_rnnt_loss",
    "joint_rnnt_log_probs",
    "joint_rnnt_loss",
    "rnnt_loss",
]


@spells_out(Keywords)
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
    band: BandLike = None,
    return_info: bool = False,
    **options: Unpack[Keywords],
) -> Any:
    """RNN-transducer loss of given logits: :func:`cupy_rnnt.rnnt_loss` for tensors.

    Drop-in for ``torchaudio.functional.rnnt_loss``. If the logits come from a joint network,
    :func:`joint_rnnt_loss` gets by without them.

    Parameters
    ----------
    logits : torch.Tensor, shape (B, T, U + 1, V) or, packed, (cells, V)
        On the CPU or a CUDA device; float16, bfloat16, float32 or float64. Autocast does not cast
        them.
    targets : torch.Tensor, shape (B, U), any integer dtype
    logit_lengths, target_lengths : torch.Tensor, shape (B,), any integer dtype
    blank, clamp, reduction, fused_log_softmax, transducer, delay_penalty, fastemit_lambda, \
zero_infinity, tolerance, max_workspace_bytes
        As for :func:`cupy_rnnt.rnnt_loss_and_grad`. `clamp` bounds the gradient before the
        gradient of the loss multiplies it, so it means the same under loss scaling.
    band : (first, width), optional
        As for :func:`cupy_rnnt.rnnt_loss`; `first` is a tensor, `width` an integer or a tensor.
    return_info : bool
        Whether to return an :class:`cupy_rnnt.Info` as well.

    Returns
    -------
    loss : torch.Tensor, shape () or, if `reduction` is ``"none"``, (B,)
        In nats; float32, or float64 for float64 logits.
    info : cupy_rnnt.Info
        Only if `return_info` is true. Its certificate is a tensor.

    Raises
    ------
    ValueError, TypeError
        As :func:`cupy_rnnt.rnnt_loss` does.
    NotImplementedError
        Under ``torch.func.vmap``, with forward-mode derivatives, or if a gradient is differentiated
        again.

    Examples
    --------
    >>> import torch, cupy_rnnt.torch
    >>> logits = torch.zeros(1, 2, 2, 3, requires_grad=True)
    >>> targets, lengths = torch.tensor([[1]]), (torch.tensor([2]), torch.tensor([1]))
    >>> cupy_rnnt.torch.rnnt_loss(logits, targets, *lengths, blank=0).backward()
    >>> (logits.grad[0, 0, 0] * 6).round(decimals=5)
    tensor([-1., -1.,  2.])
    """
    return_info = checks.boolean("return_info", return_info)
    inputs = [dense("logits", logits)]
    arguments = arguments_of(
        inputs,
        (targets, logit_lengths, target_lengths),
        band,
        blank=blank,
        clamp=clamp,
        reduction=reduction,
        fused_log_softmax=fused_log_softmax,
        **options,
    )
    loss, _, *facts = operators.LOGITS.forward(*arguments, needs_grad(inputs))
    return (loss, operators.info(*facts)) if return_info else loss


@spells_out(JointKeywords)
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
    band: BandLike = None,
    return_info: bool = False,
    **options: Unpack[JointKeywords],
) -> Any:
    """RNN-transducer loss of a joint network: :func:`cupy_rnnt.joint_rnnt_loss` for tensors.

    Logits are in memory a tile at a time. With every reduction but ``"none"`` the gradients are
    computed with the loss. With ``"none"`` each cell whose gradient matters takes 24 bytes until
    the backward pass. If no input requires a gradient, only costs are computed.

    Parameters
    ----------
    encoder_out : torch.Tensor, shape (B, T, H)
        On the CPU or a CUDA device; float16, bfloat16, float32 or float64. The next three
        arguments have the same dtype. Autocast casts all four to its dtype, except float64.
    predictor_out : torch.Tensor, shape (B, U + 1, H)
    weight : torch.Tensor, shape (V, H)
        That of the output layer, as in ``torch.nn.Linear``.
    bias : torch.Tensor, shape (V,), or None
    targets : torch.Tensor, shape (B, U), any integer dtype
    logit_lengths, target_lengths : torch.Tensor, shape (B,), any integer dtype
    blank, clamp, reduction, activation, dropout, seed, transducer, delay_penalty, \
fastemit_lambda, zero_infinity, tolerance, max_workspace_bytes
        As for :func:`cupy_rnnt.joint_rnnt_loss_and_grad`. A module, :class:`JointRNNTLoss`, draws
        seeds of dropout itself. `tolerance` concerns the cost as well, so
        it matters without a gradient, too.
    band : (first, width), optional
        As for :func:`cupy_rnnt.rnnt_loss`; `first` is a tensor, `width` an integer or a tensor.
    return_info : bool
        Whether to return an :class:`cupy_rnnt.Info` as well.

    Returns
    -------
    loss : torch.Tensor, shape () or, if `reduction` is ``"none"``, (B,)
        In nats; float32, or float64 for float64 inputs.
    info : cupy_rnnt.Info
        Only if `return_info` is true. Its certificate is a tensor.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As :func:`rnnt_loss` does.

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
    return_info = checks.boolean("return_info", return_info)
    named = {"encoder_out": encoder_out, "predictor_out": predictor_out, "weight": weight}
    if bias is not None:
        named["bias"] = bias
    inputs = autocast([dense(name, tensor) for name, tensor in named.items()])
    arguments = arguments_of(
        inputs,
        (targets, logit_lengths, target_lengths),
        band,
        blank=blank,
        clamp=clamp,
        reduction=reduction,
        **options,
    )
    keep = needs_grad(inputs)
    if keep and reduction != "none":
        loss, _, *facts = operators.JOINT_AND_GRAD(*arguments)
    else:
        loss, _, *facts = operators.JOINT.forward(*arguments, keep)
    return (loss, operators.info(*facts)) if return_info else loss


class _Options(Keywords, total=False):
    return_info: bool


class _JointOptions(JointKeywords, total=False):
    return_info: bool


class _Loss(torch.nn.Module):
    """A loss with its options fixed, which are checked at once."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        inspect.signature(function).bind_partial(**options)  # refuses unknown ones
        Options.checked(np.dtype(np.float32), **options)
        self._options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options.items())


class RNNTLoss(_Loss):
    """:func:`rnnt_loss` with its options fixed; drop-in for ``torchaudio.transforms.RNNTLoss``.

    Parameters are the options of :func:`rnnt_loss`; ``forward`` takes ``(logits, targets,
    logit_lengths, target_lengths)``.

    Examples
    --------
    >>> import cupy_rnnt.torch
    >>> cupy_rnnt.torch.RNNTLoss(blank=0, fastemit_lambda=0.01)
    RNNTLoss(blank=0, clamp=-1.0, reduction='mean', fused_log_softmax=True, fastemit_lambda=0.01)
    """

    def __init__(
        self,
        blank: int = -1,
        clamp: float = -1.0,
        reduction: str = "mean",
        fused_log_softmax: bool = True,
        **options: Unpack[_Options],
    ) -> None:
        super().__init__(
            rnnt_loss,
            blank=blank,
            clamp=clamp,
            reduction=reduction,
            fused_log_softmax=fused_log_softmax,
            **options,
        )

    def forward(
        self, logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor
    ) -> Any:
        return rnnt_loss(logits, targets, logit_lengths, target_lengths, **self._options)


class JointRNNTLoss(_Loss):
    """:func:`joint_rnnt_loss` with its options fixed and, if you like, an output layer of its own.

    ``forward`` takes the arguments of :func:`joint_rnnt_loss` that are left: ``(encoder_out,
    predictor_out, weight, bias, targets, logit_lengths, target_lengths)``, or without ``weight``
    and ``bias`` if the module has the layer.

    Parameters
    ----------
    blank, clamp, reduction, **options
        Those of :func:`joint_rnnt_loss`. With `dropout` and without a `seed`, each call in training
        draws a seed from the CPU's random numbers (``torch.manual_seed``). Nothing is dropped after
        :meth:`eval`, as with ``torch.nn.Dropout``.
    output : torch.nn.Linear, optional
        The output layer, H to V. It becomes a submodule, so that its parameters are trained, saved
        and loaded with this module. A model that decodes with the same layer may share it.

    Examples
    --------
    >>> import torch, cupy_rnnt.torch
    >>> criterion = cupy_rnnt.torch.JointRNNTLoss(blank=0, output=torch.nn.Linear(5, 7))
    >>> criterion
    JointRNNTLoss(
      blank=0, clamp=-1.0, reduction='mean'
      (output): Linear(in_features=5, out_features=7, bias=True)
    )
    >>> lengths = torch.tensor([6, 5]), torch.tensor([3, 2])
    >>> targets = torch.tensor([[1, 2, 3], [4, 5, 0]])
    >>> criterion(torch.randn(2, 6, 5), torch.randn(2, 4, 5), targets, *lengths).shape
    torch.Size([])
    """

    def __init__(
        self,
        blank: int = -1,
        clamp: float = -1.0,
        reduction: str = "mean",
        *,
        output: torch.nn.Linear | None = None,
        **options: Unpack[_JointOptions],
    ) -> None:
        super().__init__(joint_rnnt_loss, blank=blank, clamp=clamp, reduction=reduction, **options)
        if not isinstance(output, torch.nn.Linear | None):
            raise TypeError(
                f"output must be a torch.nn.Linear, not {type(output).__name__}: what precedes the "
                "layer is options, activation and dropout"
            )
        self.output = output

    def forward(
        self, encoder_out: Tensor, predictor_out: Tensor, *arguments: Any, **named: Any
    ) -> Any:
        names_layer = "weight" in named or "bias" in named
        if self.output is not None and (len(arguments) > 3 or names_layer):
            raise TypeError(
                "JointRNNTLoss has an output layer of its own: leave out weight and bias, or make "
                "it without output"
            )
        if self.output is None and len(arguments) + len(named) == 3 and not names_layer:
            raise TypeError(
                "JointRNNTLoss has no output layer: pass weight and bias, or make it with "
                "output=torch.nn.Linear(H, V)"
            )
        layer = () if self.output is None else (self.output.weight, self.output.bias)
        inputs: Any = (encoder_out, predictor_out, *layer, *arguments)
        options = dict(self._options)
        if not self.training and "dropout" in options:
            options["dropout"] = 0.0
        elif options.get("dropout") and "seed" not in options | named:
            options["seed"] = drawn_seed()
        return joint_rnnt_loss(*inputs, **named, **options)  # type: ignore[misc]
