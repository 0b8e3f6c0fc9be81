"""The losses, and the scores of cells, as JAX functions, on the device buffers of JAX in place.

They work within ``jax.jit`` or not, and have a derivative in reverse mode, and no second one.
On the CPU they compute in NumPy; on CUDA in CuPy, on the stream of the surrounding computation.
Their workspace there comes from CuPy's own memory pool, so JAX must not have reserved all memory
(``XLA_PYTHON_CLIENT_MEM_FRACTION``).

*What is kept, what is computed twice.* JAX fixes all sizes when it compiles, so the list of kept
cells, whose length depends on the data, cannot wait for the backward pass. With a ``reduction``,
``"mean"``, ``"mean_volume"`` or ``"sum"``, the forward pass of a derivative computes loss and
gradients at once, reusing what the workspace holds; the gradients wait until the gradient of the
loss, a number, multiplies them. With ``"none"`` the inputs wait; the backward pass takes the
gradients of the costs as cost weights, and computes the scores of the forward pass again. The same
happens with float16, because unscaled gradients could underflow, and with
:func:`joint_rnnt_log_probs`. Under ``jax.checkpoint`` the whole forward pass is repeated as well.
Without a derivative only costs are computed.

*vmap* maps onto the batch: all mapped instances are computed in one call. Where instances have
different parameters, or gradients of the parameters are wanted, there is a call for each instance,
because JAX asks for the gradient of each, though it may add them up afterwards. So pass a batch in
training.

*Many devices.* Within ``jax.shard_map`` each device computes its part of the batch, and JAX adds up
the gradients of parameters that all devices share. Elsewhere XLA cannot divide the work: it gives
the whole batch to every device.

*Errors.* Shapes, dtypes and options are checked when a function is traced. Lengths and labels are
known when it runs: then JAX raises a ``jax.errors.JaxRuntimeError`` or, where nothing is left to
wait for, a ``ValueError``, whose text contains the usual message. The message is logged as well: in
a sum over all devices, those without an error wait for the one that has it, until XLA gives up and
aborts the process.

*At the end.* Before Python ends, it waits for the steps whose results a variable holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from .. import joint
from .. import logits as logits_front
from ..batch import INTEGERS, BandLike
from ..ops.types import ArrayLike
from ..options import JointKeywords, Keywords, ScoreKeywords, spells_out
from .additive import additive_rnnt_loss
from .arguments import arrays_of, integers_of, seeds_of, stand_ins
from .callbacks import JointLoss, JointScores, LogitsLoss, PackedLogitsLoss
from .differentiated import everywhere, loss_of, scores_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["additive_rnnt_loss", "joint_rnnt_log_probs", "joint_rnnt_loss", "rnnt_loss"]


@spells_out(Keywords)
def rnnt_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    band: BandLike = None,
    **options: Unpack[Keywords],
) -> jax.Array:
    """RNN-transducer loss of given logits: :func:`cupy_rnnt.rnnt_loss` for JAX.

    If the logits come from a joint network, :func:`joint_rnnt_loss` gets by without them.

    Parameters
    ----------
    logits : jax.Array, shape (B, T, U + 1, V) or, packed, (cells, V)
        float16, bfloat16, float32 or float64.
    targets : array_like, shape (B, U), any integer dtype
    logit_lengths, target_lengths : array_like, shape (B,), any integer dtype
    blank, clamp, reduction, fused_log_softmax, transducer, delay_penalty, fastemit_lambda, \
zero_infinity, tolerance, max_workspace_bytes
        As for :func:`cupy_rnnt.rnnt_loss_and_grad`; Python values, which are static under
        ``jax.jit``. `clamp` bounds the gradient before the gradient of the loss multiplies it.
    band : (first, width), optional
        As for :func:`cupy_rnnt.rnnt_loss`; `first` and `width` may be traced.

    Returns
    -------
    loss : jax.Array, shape () or, if `reduction` is ``"none"``, (B,)
        In nats; float32, or float64 for float64 logits.

    Raises
    ------
    ValueError, TypeError
        As :func:`cupy_rnnt.rnnt_loss` does, of shapes, dtypes and options.
    ValueError, jax.errors.JaxRuntimeError
        When it runs, of lengths and labels out of range and a workspace that is too small: the same
        text within that of JAX.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cupy_rnnt.jax
    >>> arguments = jnp.array([[1]]), jnp.array([2]), jnp.array([1])
    >>> loss = lambda logits: cupy_rnnt.jax.rnnt_loss(logits, *arguments, blank=0)
    >>> value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.zeros((1, 2, 2, 3)))
    >>> (gradient[0, 0, 0] * 6).round(5)
    Array([-1., -1.,  2.], dtype=float32)
    """
    inputs = arrays_of(LogitsLoss.names, logits)
    integers = integers_of(targets, logit_lengths, target_lengths, band)
    call = logits_front.checked(
        **stand_ins(LogitsLoss, inputs, integers),
        blank=blank,
        clamp=clamp,
        reduction=reduction,
        fused_log_softmax=fused_log_softmax,
        **options,
    )
    kind = PackedLogitsLoss if call.logits.ndim == 2 else LogitsLoss
    (result,) = everywhere(loss_of, kind(call.options), inputs, integers)
    return result


@spells_out(JointKeywords)
def joint_rnnt_loss(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    *,
    band: BandLike = None,
    **options: Unpack[JointKeywords],
) -> jax.Array:
    """RNN-transducer loss of a joint network: :func:`cupy_rnnt.joint_rnnt_loss` for JAX.

    Logits are in memory a tile at a time.

    Parameters
    ----------
    encoder_out : jax.Array, shape (B, T, H)
        float16, bfloat16, float32 or float64. The next three arguments have the same dtype.
    predictor_out : jax.Array, shape (B, U + 1, H)
    weight : jax.Array, shape (V, H)
        That of the output layer: the transpose of the ``kernel`` of a ``flax.linen.Dense``.
    bias : jax.Array, shape (V,), or None
    targets : array_like, shape (B, U), any integer dtype
    logit_lengths, target_lengths : array_like, shape (B,), any integer dtype
    blank, clamp, reduction, activation, dropout, seed, transducer, delay_penalty, \
fastemit_lambda, zero_infinity, tolerance, max_workspace_bytes
        As for :func:`cupy_rnnt.joint_rnnt_loss_and_grad`; Python values, which are static under
        ``jax.jit``. Only `seed` may be an array, of shape () and an integer dtype, so that a step
        with another seed is not compiled again. `tolerance` concerns the cost as well, so it
        matters without a gradient, too.
    band : (first, width), optional
        As for :func:`cupy_rnnt.rnnt_loss`; `first` and `width` may be traced.

    Returns
    -------
    loss : jax.Array, shape () or, if `reduction` is ``"none"``, (B,)
        In nats; float32, or float64 for float64 inputs.

    Raises
    ------
    ValueError, TypeError
        As :func:`cupy_rnnt.joint_rnnt_loss` does, of shapes, dtypes and options.
    ValueError, jax.errors.JaxRuntimeError
        When it runs, of lengths and labels out of range and a workspace that is too small: the same
        text within that of JAX.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cupy_rnnt.jax
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> shapes = (2, 6, 5), (2, 4, 5), (7, 5), (7,)
    >>> inputs = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]
    >>> targets = jnp.array([[1, 2, 3], [4, 5, 0]])
    >>> lengths = jnp.array([6, 5]), jnp.array([3, 2])
    >>> loss = lambda *inputs: cupy_rnnt.jax.joint_rnnt_loss(*inputs, targets, *lengths)
    >>> gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*inputs)
    >>> [gradient.shape for gradient in gradients]
    [(2, 6, 5), (2, 4, 5), (7, 5), (7,)]
    """
    inputs = arrays_of(JointLoss.names, encoder_out, predictor_out, weight, bias)
    integers = integers_of(targets, logit_lengths, target_lengths, band)
    seeds = seeds_of(options, encoder_out)
    call = joint.checked(
        **stand_ins(JointLoss, inputs, integers),
        blank=blank,
        clamp=clamp,
        reduction=reduction,
        **options,
    )
    (result,) = everywhere(loss_of, JointLoss(call.options), inputs, integers + seeds)
    return result


@spells_out(ScoreKeywords)
def joint_rnnt_log_probs(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    **options: Unpack[ScoreKeywords],
) -> jax.Array:
    """Log-probabilities of every cell: :func:`cupy_rnnt.joint_rnnt_log_probs` for JAX.

    Any function of the result has a derivative in reverse mode, in a workspace of tiles.

    Parameters
    ----------
    encoder_out, predictor_out, weight, bias, targets, logit_lengths, target_lengths, blank, \
activation, dropout, seed, transducer, max_workspace_bytes
        As for :func:`joint_rnnt_loss`.

    Returns
    -------
    log_probs : jax.Array, shape (B, T, U + 1, K)
        float32, or float64 for float64 inputs: for the plain transducer the log-probabilities of
        the blank and of the next label. They are 0 at padding, and so is that of the label at the
        last position of a sample. The gradient there is ignored.

    Raises
    ------
    ValueError, TypeError, jax.errors.JaxRuntimeError
        As :func:`joint_rnnt_loss` does.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cupy_rnnt.jax
    >>> lattice = jnp.array([[1, 2, 3], [4, 5, 0]]), jnp.array([6, 5]), jnp.array([3, 2])
    >>> inputs = [jnp.zeros(shape) for shape in [(2, 6, 5), (2, 4, 5), (7, 5), (7,)]]
    >>> def function(inputs):
    ...     return cupy_rnnt.jax.joint_rnnt_log_probs(*inputs, *lattice)[..., 0].sum()
    >>> [gradient.shape for gradient in jax.jit(jax.grad(function))(inputs)]
    [(2, 6, 5), (2, 4, 5), (7, 5), (7,)]
    """
    inputs = arrays_of(JointScores.names, encoder_out, predictor_out, weight, bias)
    integers = arrays_of(INTEGERS, targets, logit_lengths, target_lengths)
    seeds = seeds_of(options, encoder_out)
    call = joint.checked(**stand_ins(JointScores, inputs, integers), blank=blank, **options)
    (result,) = everywhere(scores_of, JointScores(call.options), inputs, integers + seeds)
    return result
