"""The transducer loss of SpeechBrain's recipes, on a CPU and on a GPU.

In the hyperparameters of a recipe, in place of ``speechbrain.nnet.losses.transducer_loss``:

.. code-block:: yaml

    transducer_cost: !name:cupy_rnnt.integrations.speechbrain.transducer_loss
        blank_index: !ref <blank_index>

:func:`joint_transducer_loss` is the loss without logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch import joint_rnnt_loss, rnnt_loss
from .layers import activation_name, weight_and_bias

__all__ = ["joint_transducer_loss", "transducer_loss"]

_REDUCTIONS = {"batchmean": "mean"}


def transducer_loss(
    logits: Tensor,
    targets: Tensor,
    input_lens: Tensor,
    target_lens: Tensor,
    blank_index: int,
    reduction: str = "mean",
    use_torchaudio: bool = True,
    **options: Any,
) -> Any:
    """``speechbrain.nnet.losses.transducer_loss``, as torchaudio computes it.

    Parameters
    ----------
    logits : torch.Tensor, shape (B, T, U + 1, V)
        Or log-probabilities; with ``fused_log_softmax=False`` they are not normalised again.
    targets : torch.Tensor, shape (B, U)
    input_lens, target_lens : torch.Tensor, shape (B,)
        Relative to T and U. A transcript may be empty, an utterance may not.
    blank_index : int
    reduction : {"mean", "batchmean", "sum", "none"}
        The first two are the mean over the batch. SpeechBrain 1.1 divides the cost of each
        utterance by its frames, but not the gradient, and in ``"mean"`` it does not divide the
        gradient by the batch, either: that gradient is the one of ``"sum"`` here.
    use_torchaudio : bool
        Is accepted, as older recipes pass it, and ignored.
    **options
        Those of :func:`cupy_rnnt.torch.rnnt_loss`.

    Returns
    -------
    loss : torch.Tensor, shape () or, if `reduction` is ``"none"``, (B,)

    Examples
    --------
    >>> import torch
    >>> from cupy_rnnt.integrations.speechbrain import transducer_loss
    >>> logits, targets = torch.zeros(1, 4, 2, 3), torch.tensor([[1]])
    >>> transducer_loss(logits, targets, torch.tensor([0.5]), torch.tensor([1.0]), blank_index=0)
    tensor(2.6027)
    """
    if logits.ndim != 4:
        raise ValueError(f"logits has shape {tuple(logits.shape)}, but (B, T, U + 1, V) is needed")
    return rnnt_loss(
        logits,
        targets,
        _counts("input_lens", input_lens, logits.shape[1], least=1),
        _counts("target_lens", target_lens, targets.shape[1], least=0),
        blank=blank_index,
        reduction=_REDUCTIONS.get(reduction, reduction),
        **options,
    )


def joint_transducer_loss(
    encoder_out: Tensor,
    predictor_out: Tensor,
    output_layer: torch.nn.Module,
    targets: Tensor,
    input_lens: Tensor,
    target_lens: Tensor,
    blank_index: int,
    reduction: str = "mean",
    joint: str = "sum",
    nonlinearity: Any = torch.nn.LeakyReLU,
    **options: Any,
) -> Any:
    """The same loss from what enters a ``Transducer_joint`` that adds, without logits.

    Parameters
    ----------
    encoder_out : torch.Tensor, shape (B, T, H)
        What a recipe gives ``Transducer_joint`` as ``x.unsqueeze(2)``.
    predictor_out : torch.Tensor, shape (B, U + 1, H)
        What it gives as ``h.unsqueeze(1)``.
    output_layer : speechbrain.nnet.linear.Linear or torch.nn.Linear
        ``transducer_lin`` of the recipes.
    targets, input_lens, target_lens, blank_index, reduction
        As for :func:`transducer_loss`.
    joint : {"sum"}
    nonlinearity : type or torch.nn.Module
        As for ``Transducer_joint``.
    **options
        Those of :func:`cupy_rnnt.torch.joint_rnnt_loss`.

    Returns
    -------
    loss : torch.Tensor, shape () or, if `reduction` is ``"none"``, (B,)

    Examples
    --------
    >>> import torch
    >>> from cupy_rnnt.integrations.speechbrain import joint_transducer_loss
    >>> inputs = torch.zeros(1, 4, 5), torch.zeros(1, 2, 5), torch.nn.Linear(5, 3)
    >>> lengths = torch.tensor([0.5]), torch.tensor([1.0])  # of four frames and of one label
    >>> joint_transducer_loss(*inputs, torch.tensor([[1]]), *lengths, blank_index=0).ndim
    0
    """
    if joint != "sum":
        raise ValueError(f"joint is {joint!r}, but 'sum' is needed: use transducer_loss")
    if getattr(output_layer, "max_norm", None) is not None:
        raise ValueError("output_layer has a max_norm, which changes its weight in each step")
    for name, tensor in ("encoder_out", encoder_out), ("predictor_out", predictor_out):
        if tensor.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but three axes are needed")
    weight, bias = weight_and_bias("output_layer", getattr(output_layer, "w", output_layer))
    return joint_rnnt_loss(
        encoder_out,
        predictor_out,
        weight,
        bias,
        targets,
        _counts("input_lens", input_lens, encoder_out.shape[1], least=1),
        _counts("target_lens", target_lens, targets.shape[1], least=0),
        blank=blank_index,
        reduction=_REDUCTIONS.get(reduction, reduction),
        activation=activation_name("nonlinearity", nonlinearity),
        **options,
    )


def _counts(name: str, relative: Tensor, longest: int, least: int) -> Tensor:
    """Frames or labels of relative lengths, rounded as SpeechBrain rounds them."""
    relative = relative.cpu()
    counts = (relative * longest).round()
    for i, (share, count) in enumerate(zip(relative.tolist(), counts.tolist(), strict=True)):
        if not (least <= count and 0 <= share <= 1):
            raise ValueError(
                f"{name}[{i}] is {share:g}, but a length relative to {longest} is needed, "
                f"at most 1 and {'above' if least else 'at least'} 0"
            )
    return counts.to(torch.int64)
