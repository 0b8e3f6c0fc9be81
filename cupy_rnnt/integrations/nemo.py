"""A joint network for models of NeMo, whose loss is computed without logits.

In the configuration of a model, in place of ``nemo.collections.asr.modules.RNNTJoint``:

.. code-block:: yaml

    joint:
      _target_: cupy_rnnt.integrations.nemo.RNNTJoint
      fuse_loss_wer: true
      fused_batch_size: 16  # of the word error rate; the loss takes the whole batch

NeMo 3.0 makes only its own classes from a configuration, unless a script allows others:

.. code-block:: python

    from nemo.core.classes import common
    common.ALLOWED_TARGET_PREFIXES.append("cupy_rnnt.integrations.nemo.")
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from nemo.collections.asr.losses import rnnt_pytorch
from nemo.collections.asr.modules import rnnt
from nemo.collections.asr.parts.numba import rnnt_loss
from nemo.core.classes import typecheck
from torch import Tensor

from ..family import multi_blank, tdt
from ..torch import joint_rnnt_loss
from ..torch.arguments import drawn_seed
from .layers import reduced, weight_and_bias

__all__ = ["RNNTJoint"]

_REGULAR = rnnt_loss.RNNTLossNumba, rnnt_pytorch.RNNTLossPytorch
_TDT = rnnt_loss.TDTLossNumba, rnnt_pytorch.TDTLossPytorch
_MULTI_BLANK = rnnt_loss.MultiblankRNNTLossNumba, rnnt_pytorch.MultiblankRNNTLossPytorch


class RNNTJoint(rnnt.RNNTJoint):  # type: ignore[misc]
    """``nemo.collections.asr.modules.RNNTJoint``, which with ``fuse_loss_wer`` forms no logits
    for its loss.

    Parameters, their names and everything else are those of NeMo's. Losses of NeMo that say what is
    computed: ``warprnnt_numba``, ``pytorch``, ``tdt``, ``tdt_pytorch``, ``multiblank_rnnt`` and
    ``multiblank_rnnt_pytorch``, with their keywords, and the reduction of the model.

    Examples
    --------
    .. code-block:: python

        config.joint._target_ = "cupy_rnnt.integrations.nemo.RNNTJoint"
        config.joint.fuse_loss_wer, config.joint.fused_batch_size = True, 16
    """

    @typecheck()  # type: ignore[untyped-decorator]
    def forward(
        self,
        encoder_outputs: Tensor,
        decoder_outputs: Tensor | None,
        encoder_lengths: Tensor | None = None,
        transcripts: Tensor | None = None,
        transcript_lengths: Tensor | None = None,
        compute_wer: bool = False,
        keep_hypotheses: bool = False,
    ) -> Any:
        labels: Any = (transcripts, encoder_lengths, transcript_lengths)
        batch: dict[str, Any] = {
            "encoder_lengths": encoder_lengths,
            "transcripts": transcripts,
            "transcript_lengths": transcript_lengths,
            "compute_wer": compute_wer,
            "keep_hypotheses": keep_hypotheses,
        }
        is_set_up = self._fuse_loss_wer and self._loss is not None and self._wer is not None
        if not is_set_up or decoder_outputs is None or any(x is None for x in labels):
            return super().forward(
                encoder_outputs=encoder_outputs, decoder_outputs=decoder_outputs, **batch
            )
        loss = self._fused_loss(
            self.enc(encoder_outputs.transpose(1, 2)),
            self.pred(decoder_outputs.transpose(1, 2)),
            *labels,
        )
        self.hypotheses: list[Any] | None = [] if keep_hypotheses else None
        if not compute_wer:
            return loss, None, None, None
        _, *rates = super().forward(encoder_outputs=encoder_outputs, decoder_outputs=None, **batch)
        return loss, *rates

    def _fused_loss(
        self,
        encoder_out: Tensor,
        predictor_out: Tensor,
        targets: Tensor,
        frame_counts: Tensor,
        label_counts: Tensor,
    ) -> Tensor:
        if self.is_adapter_available() or self.masking_prob > 0 or self.temperature != 1:
            raise ValueError(
                "the joint network has adapters, a masking_prob or a temperature, but a plain one "
                "is needed: take NeMo's own"
            )
        *_, output = self.joint_net
        weight, bias = weight_and_bias("joint.joint_net[-1]", output)
        options, of_tokens = self._options()
        if of_tokens is not None:
            weight, bias = weight[:of_tokens], None if bias is None else bias[:of_tokens]
        longest = int(label_counts.max())  # a batch may have been padded beyond it
        loss = partial(
            joint_rnnt_loss,
            encoder_out,
            predictor_out[:, : longest + 1],
            weight,
            bias,
            targets[:, :longest],
            frame_counts,
            label_counts,
            activation=self.activation,
            **options,
        )
        return reduced(loss, self._loss.reduction, label_counts)

    def _options(self) -> tuple[dict[str, Any], int | None]:
        """Options of the loss; and the number of tokens, if the coin of omega, which NeMo tosses
        as well, says that only tokens count."""
        loss = self._loss._loss
        if not isinstance(loss, (*_REGULAR, *_TDT, *_MULTI_BLANK)):
            known = ", ".join(kind.__name__ for kind in (*_REGULAR, *_TDT, *_MULTI_BLANK))
            raise TypeError(f"the loss is a {type(loss).__name__}, but one of {known} is needed")
        options: dict[str, Any] = {
            "blank": loss.blank,
            "clamp": getattr(loss, "clamp", 0.0),
            "fastemit_lambda": getattr(loss, "fastemit_lambda", 0.0),
        }
        if self.training:
            for layer in self.joint_net:
                if isinstance(layer, torch.nn.Dropout) and layer.p > 0:
                    options["dropout"] = layer.p
                    options["seed"] = drawn_seed()
        if isinstance(loss, _TDT):
            if random.uniform(0, 1) < getattr(loss, "omega", 0.0):
                return options, int(loss.blank) + 1
            options["transducer"] = tdt(loss.durations, loss.sigma)
        elif isinstance(loss, _MULTI_BLANK):
            options["transducer"] = multi_blank(loss.big_blank_durations, loss.sigma)
        return options, None
