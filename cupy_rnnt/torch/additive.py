"""The additive loss for PyTorch: its operators, and the function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import additive_scores, checks
from ..additive_scores import Forms
from ..batch import INTEGERS, BandLike
from ..ops.types import DeviceArray
from ..options import Keywords, spells_out
from ..results import reduced
from ..transducer import Transducer
from . import operators
from .arguments import arguments_of, dense, needs_grad
from .operators import Arguments, Tensors
from .registration import operator, refuse_second_derivative

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SHARED = f"{operators.ARGUMENTS}, float lm_scale, float am_scale"


def _call(arguments: Arguments, lm_scale: float, am_scale: float) -> additive_scores.AdditiveCall:
    pairs = zip(("am", "lm"), arguments.inputs, strict=True)
    inputs = [operators.array(name, x) for name, x in pairs]
    keywords = operators.keywords_of(arguments)
    for name in "clamp", "fused_log_softmax", "activation":
        del keywords[name]
    keywords |= {"lm_scale": lm_scale, "am_scale": am_scale}
    return additive_scores.checked(*inputs, *operators.lattice_of(arguments), **keywords)


def _forward(*flat: Any) -> tuple[Tensor, Tensor]:
    *shared, lm_scale, am_scale, keep = flat
    arguments = Arguments.of(shared)
    call = _call(arguments, lm_scale, am_scale)
    costs, d_scores = additive_scores.solved(call, Forms.of(call), keep)
    dtype = np.dtype(np.float64 if call.am.dtype == np.float64 else np.float32)
    loss: DeviceArray = reduced(costs, call.options.reduction, call.batch.label_counts, dtype)
    first = arguments.inputs[0]
    kept = operators.tensor_of(d_scores, first.device) if keep else first.new_empty(0)
    return operators.tensor_of(loss, first.device), kept


def _fake_forward(*flat: Any) -> tuple[Tensor, Tensor]:
    *shared, _, _, keep = flat
    arguments = Arguments.of(shared)
    am, lm = arguments.inputs
    size, frames, _ = am.shape
    shape = (size,) if arguments.options["reduction"] == "none" else ()
    topology = Transducer.parse(arguments.options["transducer"]).topology
    loss = am.new_empty(shape, dtype=operators.compute_dtype([am]))
    if not keep:
        return loss, am.new_empty(0)
    cells = size, frames, lm.shape[1], len(topology.scores)
    return loss, am.new_empty(cells, dtype=torch.float64)


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    tensors, *lattice, band = inputs[: 2 + len(INTEGERS)]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.options = inputs[2 + len(INTEGERS) : -1]
    ctx.save_for_backward(*tensors, *lattice, output[1], *band)


def _differentiated(ctx: Any, upstream: Tensor | None, *_: None) -> Any:
    am, lm, targets, logit_lengths, target_lengths, kept, *band = ctx.saved_tensors
    gradients: Any = [None, None]
    if upstream is not None:
        lattice = targets, logit_lengths, target_lengths
        gradients = _BACKWARD([am, lm], *lattice, band, *ctx.options, kept, upstream)
    return gradients, *operators.no_gradients(len(band)), None, None, None


def _backward(*flat: Any) -> Tensors:
    *shared, lm_scale, am_scale, kept, upstream = flat
    arguments = Arguments.of(shared)
    call = _call(arguments, lm_scale, am_scale)
    weights = operators.weights_from(upstream, call.options.reduction, call.batch)
    gradients = [operators.zeros(x, x.dtype) for x in arguments.inputs]
    out = additive_scores.AdditiveGradients(*map(operators.own, gradients))
    d_scores = operators.array("kept", kept)
    additive_scores.write_gradients(call, Forms.of(call), d_scores, weights, out)
    return gradients


def _fake_backward(*flat: Any) -> Tensors:
    return [x.new_empty(x.shape) for x in flat[0]]


FORWARD = operator(
    "additive_rnnt_loss",
    f"{_SHARED}, bool keep",
    "(Tensor, Tensor)",
    operators.as_guest(_forward),
    _fake_forward,
)
FORWARD.register_autograd(_differentiated, setup_context=_save)
_BACKWARD = operator(
    "additive_rnnt_loss_backward",
    f"{_SHARED}, Tensor kept, Tensor upstream",
    "Tensor[]",
    operators.as_guest(_backward),
    _fake_backward,
)
_BACKWARD.register_autograd(refuse_second_derivative)


@spells_out(Keywords)
def additive_rnnt_loss(
    am: Tensor,
    lm: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    reduction: str = "mean",
    *,
    lm_scale: float = 0.0,
    am_scale: float = 0.0,
    return_occupancies: bool = False,
    band: BandLike = None,
    **options: Unpack[Keywords],
) -> Any:
    """RNN-transducer loss of sums of logits: :func:`cupy_rnnt.additive_rnnt_loss` for tensors.

    Parameters
    ----------
    am : torch.Tensor, shape (B, T, V)
        On the CPU or a CUDA device; float16, bfloat16, float32 or float64, as `lm`. Autocast does
        not cast them.
    lm : torch.Tensor, shape (B, U + 1, V)
    targets : torch.Tensor, shape (B, U), any integer dtype
    logit_lengths, target_lengths : torch.Tensor, shape (B,), any integer dtype
    blank, reduction, lm_scale, am_scale, band, transducer, delay_penalty, fastemit_lambda, \
zero_infinity, tolerance, max_workspace_bytes
        As for :func:`cupy_rnnt.additive_rnnt_loss_and_grad`.
    return_occupancies : bool
        Whether to return the occupancies of the scores as well.

    Returns
    -------
    loss : torch.Tensor, shape () or, if `reduction` is ``"none"``, (B,)
    occupancies : torch.Tensor, shape (B, T, U + 1, K)
        Only if `return_occupancies` is true. Nothing is differentiated through them.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As :func:`rnnt_loss` does.

    Examples
    --------
    >>> import torch, cupy_rnnt.torch
    >>> am, lm = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, requires_grad=True)
    >>> batch = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
    >>> cupy_rnnt.torch.additive_rnnt_loss(am, lm, *batch, blank=0).backward()
    >>> lm.grad[0, 0, 1:].round(decimals=5)
    tensor([-0.5000,  0.5000])
    """
    wanted = checks.boolean("return_occupancies", return_occupancies)
    inputs = [dense("am", am), dense("lm", lm)]
    integers = targets, logit_lengths, target_lengths
    arguments = arguments_of(inputs, integers, band, blank=blank, reduction=reduction, **options)
    scales = (checks.number(f"{name}_scale", x) for name, x in (("lm", lm_scale), ("am", am_scale)))
    keep = wanted or needs_grad(inputs)
    loss, d_scores = FORWARD(*arguments, *scales, keep)
    return (loss, (0.0 - d_scores).to(loss.dtype)) if wanted else loss
