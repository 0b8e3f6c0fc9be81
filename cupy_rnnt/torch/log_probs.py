"""The scores of the cells of a joint network as an operator of PyTorch, and its derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..engine.scores import Scores
from ..ops.types import ArrayLike
from ..options import ScoreKeywords, spells_out
from ..transducer import Transducer
from .arguments import arguments_of, autocast, dense
from .operators import (
    ARGUMENTS,
    Arguments,
    array,
    as_guest,
    compute_dtype,
    joint_call,
    no_gradients,
    own,
)
from .registration import operator, refuse_second_derivative

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _new_scores(arguments: Arguments, make: Callable[..., Tensor]) -> Tensor:
    """A tensor for the scores, (B, T, U + 1, K), from a function that takes shape and dtype."""
    encoder_out, predictor_out, *_ = arguments.inputs
    scores = Transducer.parse(arguments.options["transducer"]).topology.scores
    shape = *encoder_out.shape[:2], predictor_out.shape[1], len(scores)
    return make(shape, dtype=compute_dtype(arguments.inputs))


def _forward(*flat: Any) -> Tensor:
    arguments = Arguments.of(flat)
    call = joint_call(arguments, False, None)
    out = _new_scores(arguments, arguments.inputs[0].new_zeros)
    Scores(call.source, call.batch, call.options, gradient=False).write(own(out))
    return out


def _fake_forward(*flat: Any) -> Tensor:
    arguments = Arguments.of(flat)
    return _new_scores(arguments, arguments.inputs[0].new_empty)


def _backward(*flat: Any) -> list[Tensor]:
    *shared, upstream = flat
    arguments = Arguments.of(shared)
    call = joint_call(arguments, True, arguments.inputs[0].dtype)
    scores = Scores(call.source, call.batch, call.options, gradient=True)
    scores.add_gradient(array("upstream", upstream))
    return call.gradients


def _fake_backward(*flat: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in flat[0]]


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    tensors, *lattice_and_options = inputs
    ctx.set_materialize_grads(False)
    ctx.count, ctx.options = len(tensors), lattice_and_options[3:]
    ctx.save_for_backward(*tensors, *lattice_and_options[:3])


def _differentiated(ctx: Any, upstream: Tensor | None) -> Any:
    inputs, lattice = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    gradients: Any = [None] * len(inputs)
    if upstream is not None:
        gradients = BACKWARD(list(inputs), *lattice, *ctx.options, upstream)
    return gradients, *no_gradients(0)  # without a band


_NAME = "joint_rnnt_log_probs"
FORWARD = operator(_NAME, ARGUMENTS, "Tensor", as_guest(_forward), _fake_forward)
FORWARD.register_autograd(_differentiated, setup_context=_save)
BACKWARD = operator(
    f"{_NAME}_backward",
    f"{ARGUMENTS}, Tensor upstream",
    "Tensor[]",
    as_guest(_backward),
    _fake_backward,
)
BACKWARD.register_autograd(refuse_second_derivative)


@spells_out(ScoreKeywords)
def joint_rnnt_log_probs(
    encoder_out: Tensor,
    predictor_out: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    **options: Unpack[ScoreKeywords],
) -> Tensor:
    """Log-probabilities of every cell: :func:`cupy_rnnt.joint_rnnt_log_probs` for tensors.

    Any function of the result can be differentiated, in a workspace of tiles. The backward pass
    computes the logits again, and leaves out the cells whose gradient is 0.

    Parameters
    ----------
    encoder_out, predictor_out, weight, bias, targets, logit_lengths, target_lengths, blank, \
activation, dropout, seed, transducer, max_workspace_bytes
        As for :func:`joint_rnnt_loss`.

    Returns
    -------
    log_probs : torch.Tensor, shape (B, T, U + 1, K)
        float32, or float64 for float64 inputs: for the plain transducer the log-probabilities of
        the blank and of the next label. They are 0 at padding, and so is that of the label at the
        last position of a sample. The gradient there is ignored.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As :func:`joint_rnnt_loss` does.

    Examples
    --------
    The entropy of the choice between blank and label, as a term of a loss:

    >>> import torch, cupy_rnnt.torch
    >>> output = torch.nn.Linear(5, 7)
    >>> encoder_out, predictor_out = torch.randn(2, 6, 5), torch.randn(2, 4, 5)
    >>> log_probs = cupy_rnnt.torch.joint_rnnt_log_probs(
    ...     encoder_out, predictor_out, output.weight, output.bias,
    ...     torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([6, 5]), torch.tensor([3, 2]))
    >>> (-log_probs.exp() * log_probs).sum().backward()
    >>> output.weight.grad.shape
    torch.Size([7, 5])
    """
    named = {"encoder_out": encoder_out, "predictor_out": predictor_out, "weight": weight}
    if bias is not None:
        named["bias"] = bias
    inputs = autocast([dense(name, tensor) for name, tensor in named.items()])
    lattice = targets, logit_lengths, target_lengths
    scores: Tensor = FORWARD(*arguments_of(inputs, lattice, blank=blank, **options))
    return scores
