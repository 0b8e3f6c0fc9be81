"""What users write, for type checkers: nothing here is run.

``# type: ignore[...]`` marks what must be an error: where it is none, mypy and pyright complain.
"""

from __future__ import annotations

from typing import Any, assert_type

import jax
import numpy as np
import numpy.typing as npt
import torch

import cupy_rnnt
import cupy_rnnt.jax
import cupy_rnnt.torch
from cupy_rnnt import Alignment, Arc, Head, Info, JointGradients, Score, Topology, Transducer

Floats = npt.NDArray[np.float32]
LENGTHS = [[1, 2], [3, 0]], [6, 5], [2, 1]


def of_numpy(logits: Floats, encoder: Floats, predictor: Floats, weight: Floats) -> float:
    loss: np.float32 = cupy_rnnt.rnnt_loss(logits, *LENGTHS, blank=0)
    joint = encoder, predictor, weight, None, *LENGTHS
    gradients: JointGradients
    info: Info
    loss, gradients, info = cupy_rnnt.joint_rnnt_loss_and_grad(
        *joint,
        reduction="sum",
        activation="relu",
        dropout=0.1,
        seed=3,
        transducer=cupy_rnnt.tdt((0, 1, 2), sigma=0.05),
        band=(np.zeros((2, 6), np.int64), 2),
        tolerance=1e-6,
        max_workspace_bytes=2**20,
        progress=lambda done, cells: print(done / cells),
        return_info=True,
    )
    assert_type(info.kept, int)
    assert_type(info.workspace_bytes, int)
    path: Alignment = cupy_rnnt.joint_rnnt_alignment(*joint)
    last: float = path.log_prob[-1]
    scores = cupy_rnnt.joint_rnnt_log_probs(*joint)
    grads: JointGradients = cupy_rnnt.joint_rnnt_log_probs_grad(*joint, grad=scores)
    largest: float = max(abs(grads.weight).max(), abs(gradients.weight).max())
    return float(loss) + last + largest


def of_torch(
    logits: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor, layer: torch.nn.Linear
) -> torch.Tensor:
    loss: torch.Tensor = cupy_rnnt.torch.rnnt_loss(logits, targets, lengths, lengths, clamp=1.0)
    torch.autograd.backward(loss)
    module = cupy_rnnt.torch.JointRNNTLoss(blank=0, reduction="sum")
    assert_type(module, cupy_rnnt.torch.JointRNNTLoss)
    inputs = logits[:, :, 0], logits[:, 0], layer.weight, layer.bias
    result: torch.Tensor = module(*inputs, targets, lengths, lengths)
    info: Info
    loss, info = cupy_rnnt.torch.joint_rnnt_loss(
        *inputs, targets, lengths, lengths, dropout=0.2, transducer="modified", return_info=True
    )
    return result + loss * info.computed


def of_jax(encoder: jax.Array, predictor: jax.Array, weight: jax.Array) -> jax.Array:
    def loss(weight: jax.Array) -> jax.Array:
        value = cupy_rnnt.jax.joint_rnnt_loss(
            encoder, predictor, weight, None, *LENGTHS, fastemit_lambda=0.01
        )
        return assert_type(value, jax.Array)

    gradient: jax.Array = jax.jit(jax.grad(loss))(weight)
    return gradient


def of_the_family() -> list[Transducer]:
    wait, emit = Arc(1, 0, (Score("blank"),)), Arc(0, 1, (Score("label"),))
    own = Transducer(Topology((wait, emit)), (Head(("blank", "label")),), sigma=0.1)
    assert_type(own.topology.scores, tuple[Score, ...])
    return [cupy_rnnt.tdt(), cupy_rnnt.multi_blank((2, 4)), own, Transducer.parse(str(own))]


def wrong(logits: Any, tensor: torch.Tensor, array: jax.Array) -> None:
    joint = logits, logits, logits, None, *LENGTHS
    cupy_rnnt.rnnt_loss(logits, *LENGTHS, blank="last")  # type: ignore[arg-type]
    cupy_rnnt.rnnt_loss(logits, *LENGTHS, tolerence=0.1)  # type: ignore[call-arg]
    cupy_rnnt.rnnt_loss(logits, *LENGTHS, tolerance="none")  # type: ignore[arg-type]
    cupy_rnnt.rnnt_loss(logits, *LENGTHS, dropout=0.1)  # type: ignore[call-arg]
    cupy_rnnt.rnnt_loss(logits, [[1]], [2])  # type: ignore[call-arg]
    cupy_rnnt.joint_rnnt_loss(*joint, seed=0.5)  # type: ignore[arg-type]
    cupy_rnnt.joint_rnnt_loss(*joint, band=3)  # type: ignore[arg-type]
    cupy_rnnt.joint_rnnt_loss(*joint, progress=3)  # type: ignore[arg-type]
    cupy_rnnt.joint_rnnt_loss(*joint, transducer=3)  # type: ignore[arg-type]
    cupy_rnnt.joint_rnnt_loss(*joint, overwrite_logits=True)  # type: ignore[call-arg]
    cupy_rnnt.torch.rnnt_loss([[1.0]], tensor, tensor, tensor)  # type: ignore[arg-type]
    four = tensor, tensor, tensor, tensor
    cupy_rnnt.torch.rnnt_loss(*four, progress=print)  # type: ignore[call-arg]
    cupy_rnnt.torch.RNNTLoss(blanc=0)  # type: ignore[call-arg]
    cupy_rnnt.torch.JointRNNTLoss(dropout="a lot")  # type: ignore[arg-type]
    cupy_rnnt.jax.rnnt_loss(array, *LENGTHS, return_info=True)  # type: ignore[call-arg]
    cupy_rnnt.tdt(3)  # type: ignore[arg-type]
    cupy_rnnt.multi_blank(sigma="0")  # type: ignore[arg-type]
    Arc("1", 0, (Score("blank"),))  # type: ignore[arg-type]
    print(cupy_rnnt.no_such_name)  # type: ignore[attr-defined]
