"""The loss of logits that are sums of a frame's and a position's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import checks
from .additive_scores import (
    AdditiveCall,
    AdditiveGradients,
    Forms,
    checked,
    occupancies,
    solved,
    write_gradients,
)
from .batch import BandLike
from .dlpack import exported
from .ops.types import ArrayLike, DeviceArray, compute_dtype
from .options import Keywords, spells_out
from .results import reduced, weights_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


@spells_out(Keywords)
def additive_rnnt_loss(
    am: ArrayLike,
    lm: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    reduction: str = "mean",
    *,
    lm_scale: float = 0.0,
    am_scale: float = 0.0,
    return_occupancies: bool = False,
    band: BandLike = None,
    **options: Unpack[Keywords],
) -> Any:
    """RNN-transducer loss of the logits ``am[b, t] + lm[b, u]``, without a joint network.

    These are k2's ``rnnt_loss_simple`` and ``rnnt_loss_smoothed``, by which icefall trains encoder
    and predictor at first, and finds out which cells matter (:func:`prune_ranges`). The logits are
    never formed: apart from the gradients, memory grows with ``B T U + (T + U) V``. Arrays are
    processed where they are, as in :func:`rnnt_loss`, and so are the parameters that are not
    described here.

    Parameters
    ----------
    am : numpy.ndarray, cupy.ndarray or other array with ``__dlpack__``, shape (B, T, V)
        The acoustic part of the logits: the encoder's output as logits.
    lm : likewise, shape (B, U + 1, V)
        The part of the language model: the predictor's output as logits.
    targets, logit_lengths, target_lengths, blank, reduction
    lm_scale, am_scale : float
        The scores of a cell are interpolated: ``1 - lm_scale - am_scale`` times those of the sum,
        `lm_scale` times those of ``lm[b, u]`` alone, and `am_scale` times those of ``am[b, t] +
        log(unigram)``. As in k2, the unigram is the mean of ``softmax(lm)`` over all positions of
        the batch, those of the padding too: with an `am_scale`, samples depend on each other, and
        on padding.
    return_occupancies : bool
        Whether to return the occupancies of the scores as well.
    band, delay_penalty, zero_infinity, max_workspace_bytes
        As for :func:`rnnt_loss`. The scores take 8 K bytes for each cell besides the workspace.
    transducer : str or Transducer
        One that takes a single softmax over the whole row, as ``"regular"``, ``"modified"`` and
        ``"constrained"`` do.
    fastemit_lambda, tolerance : float
        Of effect on gradients and occupancies only; see :func:`rnnt_loss_and_grad`.

    Returns
    -------
    loss : of shape (B,) if `reduction` is ``"none"``, else a NumPy scalar or a 0-d array
    occupancies : of the kind of `am`, shape (B, T, U + 1, K)
        Only if `return_occupancies` is true: posterior probabilities of each score, in the order of
        ``transducer.topology.scores``; of the named transducers, of the blank (k2's ``py_grad``)
        and of the label (``px_grad``). 0 at padding.

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`rnnt_loss` does.

    References
    ----------
    Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", arXiv 2206.13236.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> rng = np.random.default_rng(0)
    >>> am, lm = rng.standard_normal((1, 4, 6)), rng.standard_normal((1, 3, 6))
    >>> loss = cupy_rnnt.additive_rnnt_loss(am, lm, [[1, 2]], [4], [2], blank=0)
    >>> logits = am[:, :, None] + lm[:, None]
    >>> bool(np.isclose(loss, cupy_rnnt.rnnt_loss(logits, [[1, 2]], [4], [2], blank=0)))
    True
    """
    call = checked(
        am,
        lm,
        targets,
        logit_lengths,
        target_lengths,
        lm_scale=lm_scale,
        am_scale=am_scale,
        band=band,
        blank=blank,
        reduction=reduction,
        **options,
    )
    wanted = checks.boolean("return_occupancies", return_occupancies)
    with call.ops.device_of(call.am):
        costs, d_scores = solved(call, Forms.of(call), wanted)
        more = [occupancies(d_scores, call.am.dtype)] if wanted else []
        return _returned(call, costs, am, *more)


@spells_out(Keywords)
def additive_rnnt_loss_and_grad(
    am: ArrayLike,
    lm: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    reduction: str = "mean",
    *,
    lm_scale: float = 0.0,
    am_scale: float = 0.0,
    return_occupancies: bool = False,
    cost_weights: ArrayLike | None = None,
    band: BandLike = None,
    **options: Unpack[Keywords],
) -> Any:
    """Loss of the logits ``am[b, t] + lm[b, u]``, and its gradients by both.

    Takes the parameters of :func:`additive_rnnt_loss`; the following is new.

    Parameters
    ----------
    cost_weights : array_like, shape (B,), optional
        As for :func:`rnnt_loss_and_grad`.

    Returns
    -------
    loss : as of :func:`additive_rnnt_loss`
    gradients : AdditiveGradients
        Of `am` and `lm`, each in the shape and dtype of its argument and of the kind of `am`; 0 at
        padding, but for `lm` if there is an `am_scale`.
    occupancies : as of :func:`additive_rnnt_loss`

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`additive_rnnt_loss` does.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> am, lm = np.zeros((1, 2, 3)), np.zeros((1, 2, 3))
    >>> loss, grads = cupy_rnnt.additive_rnnt_loss_and_grad(am, lm, [[1]], [2], [1], blank=0)
    >>> np.round(grads.lm[0, 0, 1:], 12)
    array([-0.5,  0.5])
    """
    call = checked(
        am,
        lm,
        targets,
        logit_lengths,
        target_lengths,
        lm_scale=lm_scale,
        am_scale=am_scale,
        band=band,
        blank=blank,
        reduction=reduction,
        **options,
    )
    wanted, ops = checks.boolean("return_occupancies", return_occupancies), call.ops
    with ops.device_of(call.am):
        dtype = compute_dtype(call.am.dtype)
        weights = weights_of(call.options.reduction, cost_weights, call.batch.label_counts, dtype)
        forms = Forms.of(call)
        costs, d_scores = solved(call, forms, True)
        grads = AdditiveGradients(*(ops.zeros(x.shape, x.dtype) for x in (call.am, call.lm)))
        write_gradients(call, forms, d_scores, ops.asarray(weights), grads)
        grads = AdditiveGradients(*(exported(grad, am) for grad in grads))
        more = [occupancies(d_scores, call.am.dtype)] if wanted else []
        return _returned(call, costs, am, grads, *more)


def _returned(call: AdditiveCall, costs: DeviceArray, like: ArrayLike, *others: Any) -> Any:
    """What a public function returns: the loss, and what else it has computed."""
    options, labels = call.options, call.batch.label_counts
    loss = reduced(costs, options.reduction, labels, compute_dtype(call.am.dtype))
    exports = [exported(x, like) if hasattr(x, "dtype") else x for x in (loss, *others)]
    return tuple(exports) if others else exports[0]
