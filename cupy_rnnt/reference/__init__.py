"""The RNN-transducer loss by the textbook, in float64 NumPy: slow, obvious, the specification.

Every other implementation in this package is compared with this one, so nothing here is clever:
the recursions of [1]_ run sample after sample and cell after cell. A sample has ``T`` frames, ``U``
labels, ``S = U + 1`` positions and a vocabulary of ``V`` symbols, blank included. Logarithms are
natural. Arguments are not checked: this module settles the values, not the errors.

References
----------
.. [1] A. Graves, "Sequence Transduction with Recurrent Neural Networks", 2012, arXiv 1211.3711.
.. [2] J. Yu et al., "FastEmit: Low-latency Streaming ASR", 2021, arXiv 2010.11148.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..results import JointGradients
from ..transducer import Transducer, transducer_of
from .activations import ACTIVATIONS as ACTIVATIONS
from .cells import Band, Cells
from .joint import Joint
from .lattice import FloatArray, alphas, betas, occupancies

__all__ = [
    "ACTIVATIONS",
    "alphas",
    "betas",
    "joint_rnnt_loss",
    "joint_rnnt_loss_and_grad",
    "occupancies",
    "rnnt_loss",
    "rnnt_loss_and_grad",
]

IntArray = NDArray[np.int64]
Kind = str | Transducer


def _samples(
    targets: ArrayLike, logit_lengths: ArrayLike, target_lengths: ArrayLike
) -> Iterator[tuple[int, int, IntArray]]:
    """Index, number of frames and labels (U,) of each sample, without its padding."""
    for b, (T, U) in enumerate(np.stack([logit_lengths, target_lengths], axis=1)):
        yield b, int(T), np.asarray(targets)[b, :U].astype(np.int64)


def _divisor(reduction: str, target_lengths: ArrayLike) -> float:
    """What the sum of the costs is divided by."""
    size, volume = np.size(target_lengths), max(int(np.sum(target_lengths)), 1)
    return {"none": 1, "mean": size, "mean_volume": volume, "sum": 1}[reduction]


def _reduce(
    costs: FloatArray, reduction: str, target_lengths: ArrayLike, zero_infinity: bool
) -> np.float64 | FloatArray:
    if zero_infinity:
        costs = np.where(np.isfinite(costs), costs, 0.0)
    if reduction == "none":
        return costs
    return np.float64(costs.sum() / _divisor(reduction, target_lengths))


def _weights(weights: ArrayLike | None, reduction: str, target_lengths: ArrayLike) -> FloatArray:
    if weights is not None:
        return np.asarray(weights, np.float64)
    return np.full(np.shape(target_lengths), 1.0 / _divisor(reduction, target_lengths))


def _logit_frames(logits: NDArray[np.generic]) -> Iterator[FloatArray]:
    """Frames (S, V) of one sample's logits (T, S, V); +inf is NaN, as inf / inf is no number."""
    for frame in logits:
        yield np.where(frame < np.inf, frame, np.nan).astype(np.float64)


def _cells(
    frames: Callable[[], Iterable[FloatArray]],
    labels: IntArray,
    width: int,
    blank: int,
    transducer: Kind,
    delay_penalty: float,
    fused_log_softmax: bool = True,
) -> Cells:
    value = transducer_of("transducer", transducer)
    row = value.row(width, blank % (width - value.durations), not fused_log_softmax)
    return Cells(frames, labels, row, value.topology, delay_penalty)


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
    transducer: Kind = "regular",
    delay_penalty: float = 0.0,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    band: Band = None,
) -> np.float64 | FloatArray:
    """Compute the transducer loss ``-log P(targets | logits)`` of [1]_, in nats.

    Only cells with ``t < logit_lengths[b]`` and ``u <= target_lengths[b]`` are read.

    Parameters
    ----------
    logits : (B, T, U + 1, V) array
        Joint outputs before the softmax.
    targets, logit_lengths, target_lengths : (B, U), (B,) and (B,) arrays of int
        Labels, and how many frames and labels each sample has.
    blank : int
        Index of the blank in [-V, V).
    clamp : float
        If positive, bound of each element of d cost / d logits; the loss is the same.
    reduction : {"none", "mean", "mean_volume", "sum"}
        Over the batch; "mean_volume": the sum over the number of labels, or over 1 if that is 0.
    fused_log_softmax : bool
        Whether a log-softmax over V comes first. If not, `logits` are taken as log-probabilities.
    transducer : str or Transducer
        Which scores, arcs and heads there are; see :mod:`cupy_rnnt.transducer`.
    delay_penalty : float
        ``delay_penalty * ((T - 1) / 2 - t)`` is added to the log-probability of every label.
    fastemit_lambda : float
        Label occupancies count ``1 + fastemit_lambda`` times in the gradient, not the loss [2]_.
    zero_infinity : bool
        Whether a cost that is not finite counts as 0. Its gradient is 0 in any case.
    band : (first, width), optional
        Only positions ``first[b, t]`` to ``first[b, t] + width - 1`` exist in frame t; `first` is
        (B, T), and `width` a number or (B,).

    Returns
    -------
    float64 scalar, or (B,) array if `reduction` is "none"
        A sample costs NaN if one of its logits, or log-probs of blank and labels, is NaN or +inf.

    Examples
    --------
    Two frames and one label make two paths of three transitions, each of probability 1 / V here:

    >>> loss = rnnt_loss(np.zeros((1, 2, 2, 4)), [[0]], [2], [1])
    >>> round(float(np.exp(-loss)) * 4**3, 6)
    2.0
    """
    logits = np.asarray(logits)
    costs = np.zeros(len(logits))
    for b, T, labels in _samples(targets, logit_lengths, target_lengths):
        frames = partial(_logit_frames, logits[b, :T, : len(labels) + 1])
        kind = logits.shape[-1], blank, transducer, delay_penalty, fused_log_softmax
        costs[b], _ = _cells(frames, labels, *kind).within(band, b).gradients(-1.0, 1.0)
    return _reduce(costs, reduction, target_lengths, zero_infinity)


def rnnt_loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    transducer: Kind = "regular",
    delay_penalty: float = 0.0,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    band: Band = None,
    cost_weights: ArrayLike | None = None,
) -> tuple[np.float64 | FloatArray, FloatArray]:
    """Compute the loss of `rnnt_loss`, and a gradient (B, T, U + 1, V).

    The gradient is that of ``sum(cost_weights * costs)``, where `cost_weights` (B,) are by default
    1 / B for "mean", 1 / sum(target_lengths) for "mean_volume", and 1 for "sum" and "none". It is 0
    at padding and in samples whose cost is not finite.

    Examples
    --------
    One frame and no label have one path, a blank, so this is the cross-entropy of the blank:

    >>> loss, grad = rnnt_loss_and_grad(np.zeros((1, 1, 1, 4)), np.zeros((1, 0)), [1], [0])
    >>> round(float(np.exp(-loss)), 6), grad[0, 0, 0]
    (0.25, array([ 0.25,  0.25,  0.25, -0.75]))
    """
    logits = np.asarray(logits)
    weights = _weights(cost_weights, reduction, target_lengths)
    costs, grad_logits = np.zeros(len(logits)), np.zeros(logits.shape)
    for b, T, labels in _samples(targets, logit_lengths, target_lengths):
        frames = partial(_logit_frames, logits[b, :T, : len(labels) + 1])
        kind = logits.shape[-1], blank, transducer, delay_penalty, fused_log_softmax
        cells = _cells(frames, labels, *kind).within(band, b)
        costs[b], gradients = cells.gradients(clamp, 1.0 + fastemit_lambda)
        for t, grad in enumerate(gradients):
            grad_logits[b, t, : len(grad)] = weights[b] * grad
    return _reduce(costs, reduction, target_lengths, zero_infinity), grad_logits


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
    activation: str = "tanh",
    dropout: float = 0.0,
    seed: int = 0,
    transducer: Kind = "regular",
    delay_penalty: float = 0.0,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    band: Band = None,
) -> np.float64 | FloatArray:
    """Compute `rnnt_loss` of ``act(encoder_out[b, t] + predictor_out[b, u]) @ weight.T + bias``.

    Parameters
    ----------
    encoder_out, predictor_out : (B, T, H) and (B, U + 1, H) arrays
        Outputs of the two networks, projected to the width of the joint.
    weight, bias : (V, H) array, and (V,) array or None
        Output layer.
    targets, logit_lengths, target_lengths, blank, clamp, reduction, transducer, delay_penalty, \
fastemit_lambda, zero_infinity, band
        As in `rnnt_loss`.
    activation : str
        A key of `ACTIVATIONS`.
    dropout, seed : float, int
        Probability that a hidden value is 0, and which of them are; the others are divided by ``1 -
        dropout``. See `dropout_factors`.

    Examples
    --------
    >>> inputs = np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), np.zeros((4, 3)), None
    >>> round(float(np.exp(-joint_rnnt_loss(*inputs, [[0]], [2], [1]))) * 4**3, 6)
    2.0
    """
    inputs = JointGradients(encoder_out, predictor_out, weight, bias)
    joint = Joint(inputs, activation, dropout, seed)
    costs = np.zeros(len(joint.encoder_out))
    for b, T, labels in _samples(targets, logit_lengths, target_lengths):
        frames = partial(joint.frames, b, T, len(labels) + 1)
        kind = len(joint.weight), blank, transducer, delay_penalty
        costs[b], _ = _cells(frames, labels, *kind).within(band, b).gradients(-1.0, 1.0)
    return _reduce(costs, reduction, target_lengths, zero_infinity)


def joint_rnnt_loss_and_grad(
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
    activation: str = "tanh",
    dropout: float = 0.0,
    seed: int = 0,
    transducer: Kind = "regular",
    delay_penalty: float = 0.0,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    band: Band = None,
    cost_weights: ArrayLike | None = None,
) -> tuple[np.float64 | FloatArray, JointGradients]:
    """Compute the loss of `joint_rnnt_loss`, and its gradients with respect to the joint's inputs.

    `cost_weights` are those of `rnnt_loss_and_grad`. `clamp` acts on d cost / d logits, before the
    chain rule.

    Examples
    --------
    >>> inputs = np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), np.zeros((4, 3)), np.zeros(4)
    >>> loss, grads = joint_rnnt_loss_and_grad(*inputs, np.zeros((1, 0)), [1], [0])
    >>> grads.bias
    array([ 0.25,  0.25,  0.25, -0.75])
    """
    inputs = JointGradients(encoder_out, predictor_out, weight, bias)
    joint = Joint(inputs, activation, dropout, seed)
    arrays = joint.encoder_out, joint.predictor_out, joint.weight, joint.bias
    d_encoder, d_predictor, d_weight, d_bias = (np.zeros(array.shape) for array in arrays)
    costs, weights = np.zeros(len(d_encoder)), _weights(cost_weights, reduction, target_lengths)
    for b, T, labels in _samples(targets, logit_lengths, target_lengths):
        S = len(labels) + 1
        frames = partial(joint.frames, b, T, S)
        kind = len(joint.weight), blank, transducer, delay_penalty
        cells = _cells(frames, labels, *kind).within(band, b)
        costs[b], gradients = cells.gradients(clamp, 1.0 + fastemit_lambda)
        for t, grad in enumerate(gradients):
            hidden, slope = joint.hidden(b, t, S)
            d_logits = weights[b] * grad
            d_weight += d_logits.T @ hidden
            d_bias += d_logits.sum(axis=0)
            d_sum = (d_logits @ joint.weight) * slope
            d_encoder[b, t] = d_sum.sum(axis=0)
            d_predictor[b, :S] += d_sum
    grads = JointGradients(d_encoder, d_predictor, d_weight, None if bias is None else d_bias)
    return _reduce(costs, reduction, target_lengths, zero_infinity), grads
