"""The transducer loss of ESPnet2: as its criterion, and without logits.

ESPnet imports warp-transducer for its criterion. With these lines in front, it gets this one, on a
CPU and on a GPU:

.. code-block:: python

    import cupy_rnnt.integrations.espnet
    sys.modules["warprnnt_pytorch"] = cupy_rnnt.integrations.espnet

Models of ``espnet2.asr`` then get by without logits after

.. code-block:: python

    ESPnetASRModel._calc_transducer_loss = cupy_rnnt.integrations.espnet.calc_transducer_loss
"""

from __future__ import annotations

from typing import Any

import torch
from espnet2.asr_transducer.utils import get_transducer_task_io
from torch import Tensor

from .. import torch as losses
from ..family import multi_blank
from .layers import activation_name, weight_and_bias

__all__ = ["RNNTLoss", "calc_transducer_loss", "joint_transducer_loss"]


class RNNTLoss(losses.RNNTLoss):
    """A criterion of ``(joint_out, target, t_len, u_len)``, as ``warprnnt_pytorch.RNNTLoss``.

    Parameters
    ----------
    blank, reduction, fastemit_lambda
        The defaults are those of warp-transducer, but 0.001 of `fastemit_lambda`: ESPnet says 0.
    **options
        Those of :func:`cupy_rnnt.torch.rnnt_loss`.

    Examples
    --------
    .. code-block:: python

        criterion = RNNTLoss(blank=0)
        loss = criterion(joint_out, target, t_len, u_len)
    """

    def __init__(
        self,
        blank: int = 0,
        reduction: str = "mean",
        fastemit_lambda: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            blank=blank, reduction=reduction, fastemit_lambda=fastemit_lambda, **options
        )


def joint_transducer_loss(
    joint_network: torch.nn.Module,
    encoder_out: Tensor,
    decoder_out: Tensor,
    target: Tensor,
    t_len: Tensor,
    u_len: Tensor,
    blank: int = 0,
    reduction: str = "mean",
    **options: Any,
) -> Any:
    """The criterion of ``joint_network(encoder_out.unsqueeze(2), decoder_out.unsqueeze(1))``.

    Parameters
    ----------
    joint_network : JointNetwork
        Of ``espnet2.asr_transducer`` or of ``espnet.nets.pytorch_backend.transducer``.
    encoder_out : torch.Tensor, shape (B, T, D_enc)
    decoder_out : torch.Tensor, shape (B, U + 1, D_dec)
    target, t_len, u_len
        What ``get_transducer_task_io`` makes of labels.
    blank, reduction, **options
        Those of :func:`cupy_rnnt.torch.joint_rnnt_loss`.

    Returns
    -------
    loss : torch.Tensor, shape () or, if `reduction` is ``"none"``, (B,)

    Examples
    --------
    .. code-block:: python

        loss = joint_transducer_loss(
            self.joint_network, encoder_out, decoder_out, target, t_len, u_len)
    """
    joint: Any = joint_network
    weight, bias = weight_and_bias("joint_network.lin_out", joint.lin_out)
    return losses.joint_rnnt_loss(
        joint.lin_enc(encoder_out),
        joint.lin_dec(decoder_out),
        weight,
        bias,
        target,
        t_len,
        u_len,
        blank=blank,
        reduction=reduction,
        activation=activation_name("joint_network.joint_activation", joint.joint_activation),
        **options,
    )


def calc_transducer_loss(
    model: Any, encoder_out: Tensor, encoder_out_lens: Tensor, labels: Tensor, **options: Any
) -> tuple[Tensor, float | None, float | None]:
    """``_calc_transducer_loss`` of ``espnet2.asr.espnet_model.ESPnetASRModel``, without logits.

    Big blanks and their sigma are those of the model, and `options` those of
    :func:`cupy_rnnt.torch.joint_rnnt_loss`.

    Examples
    --------
    .. code-block:: python

        ESPnetASRModel._calc_transducer_loss = calc_transducer_loss
    """
    decoder_in, target, t_len, u_len = get_transducer_task_io(
        labels, encoder_out_lens, ignore_id=model.ignore_id, blank_id=model.blank_id
    )
    model.decoder.set_device(encoder_out.device)
    durations = getattr(model, "transducer_multi_blank_durations", None)
    if durations:
        options["transducer"] = multi_blank(durations, model.criterion_transducer.sigma)
    loss = joint_transducer_loss(
        model.joint_network,
        encoder_out,
        model.decoder(decoder_in),
        target,
        t_len,
        u_len,
        blank=model.blank_id,
        **options,
    )
    if model.training or model.error_calculator_trans is None:
        return loss, None, None
    return loss, *model.error_calculator_trans(encoder_out, target)
