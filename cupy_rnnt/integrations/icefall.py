"""The exact loss in recipes of icefall, in place of k2's two losses, of which the second is pruned.

In ``train.py`` of a recipe, before the model is made:

.. code-block:: python

    import cupy_rnnt.integrations.icefall
    AsrModel.forward_transducer = cupy_rnnt.integrations.icefall.forward_transducer

No k2 is needed for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch import joint_rnnt_loss
from .layers import weight_and_bias

__all__ = ["forward_transducer"]


def forward_transducer(
    model: Any,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    y: Any,
    y_lens: Tensor,
    prune_range: int = 5,
    am_scale: float = 0.0,
    lm_scale: float = 0.0,
    codebook_indexes: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """``forward_transducer`` of icefall's ``AsrModel``, with the loss of all alignments.

    Parameters
    ----------
    model : AsrModel
        Its ``decoder``, with ``blank_id``, and its ``joiner``, with ``encoder_proj``,
        ``decoder_proj`` and ``output_linear``, are computed.
    encoder_out : torch.Tensor, shape (N, T, C)
    encoder_out_lens : torch.Tensor, shape (N,)
    y : k2.RaggedTensor with axes [utterance][label], or torch.Tensor, shape (N, U)
        Labels; what is beyond `y_lens` does not matter.
    y_lens : torch.Tensor, shape (N,)
    prune_range, am_scale, lm_scale, codebook_indexes
        Are accepted and ignored: nothing is pruned, and there is no simple loss.
    **options
        Those of :func:`cupy_rnnt.torch.joint_rnnt_loss`; ``transducer="modified"`` and
        ``"constrained"`` are k2's ``rnnt_type``, and ``delay_penalty`` is k2's.

    Returns
    -------
    simple_loss : torch.Tensor, shape ()
        0, with gradients of 0 for ``simple_am_proj`` and ``simple_lm_proj``: distributed training
        wants a gradient of every parameter.
    loss : torch.Tensor, shape ()
        The sum of the costs.

    Examples
    --------
    A model has a decoder and a joiner:

    >>> import torch
    >>> from types import SimpleNamespace
    >>> from cupy_rnnt.integrations.icefall import forward_transducer
    >>> decoder = torch.nn.Embedding(7, 4)
    >>> decoder.blank_id = 0
    >>> joiner = SimpleNamespace(
    ...     encoder_proj=torch.nn.Linear(5, 8), decoder_proj=torch.nn.Linear(4, 8),
    ...     output_linear=torch.nn.Linear(8, 7))
    >>> model = SimpleNamespace(decoder=decoder, joiner=joiner)
    >>> batch = torch.randn(1, 6, 5), torch.tensor([6]), torch.tensor([[1, 2]]), torch.tensor([2])
    >>> simple, loss = forward_transducer(model, *batch)
    >>> simple.item(), loss.requires_grad
    (0.0, True)
    """
    decoder, joiner = model.decoder, model.joiner
    blank: int = decoder.blank_id
    padded = y if isinstance(y, Tensor) else y.pad(mode="constant", padding_value=blank)
    positions = torch.arange(padded.shape[1], device=padded.device)
    is_padding = positions >= y_lens.to(padded.device)[:, None]
    labels = padded.to(torch.int64).masked_fill(is_padding, blank)
    decoder_out = decoder(torch.nn.functional.pad(labels, (1, 0), value=blank))
    weight, bias = weight_and_bias("joiner.output_linear", joiner.output_linear)
    loss = joint_rnnt_loss(
        joiner.encoder_proj(encoder_out),
        joiner.decoder_proj(decoder_out),
        weight,
        bias,
        labels,
        encoder_out_lens,
        y_lens,
        blank=blank,
        reduction="sum",
        **options,
    )
    simple = loss.new_zeros(())
    for name in "simple_am_proj", "simple_lm_proj":
        for parameter in getattr(model, name, torch.nn.Identity()).parameters():
            simple = simple + 0 * parameter.sum()
    return simple, loss
