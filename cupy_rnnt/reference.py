"""The RNN-transducer loss by the textbook, in float64 NumPy: slow, obvious, the specification.

Every other implementation in this package is compared with this one, so nothing here is clever:
sample after sample and cell after cell, by the recursions of [1]_. A sample has ``T`` frames, ``U``
labels, ``S = U + 1`` lattice columns and a vocabulary of ``V`` symbols, blank included. Logarithms
are natural. Arguments are taken to be legal: this module settles the values, not the errors.

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
from scipy.special import expit, log_softmax

from .results import JointGradients

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Pair = tuple[FloatArray, FloatArray]
quiet = np.errstate(invalid="ignore")  # NaN in, NaN out: no reason to warn


@quiet
def alphas(blank_log_probs: FloatArray, label_log_probs: FloatArray) -> FloatArray:
    """Log-probability (T, S) of reaching each cell from the first one, section 2.4 of [1]_.

    Parameters
    ----------
    blank_log_probs, label_log_probs : (T, S) and (T, U) arrays
        Log-probability of the blank at (t, u), which leads to (t + 1, u), and of the next label,
        which leads to (t, u + 1).
    """
    alpha = np.full(blank_log_probs.shape, -np.inf)
    alpha[0, 0] = 0.0
    for t, u in np.ndindex(alpha.shape):
        if t > 0:
            alpha[t, u] = alpha[t - 1, u] + blank_log_probs[t - 1, u]
        if u > 0:
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t, u - 1] + label_log_probs[t, u - 1])
    return alpha


@quiet
def betas(blank_log_probs: FloatArray, label_log_probs: FloatArray) -> FloatArray:
    """Log-probability (T, S) of finishing from each cell; at [0, 0], of all paths together.

    Takes what `alphas` takes. Of the last frame only the last blank is read: it ends every path.
    """
    T, S = blank_log_probs.shape
    beta = np.full((T, S), -np.inf)
    beta[-1, -1] = blank_log_probs[-1, -1]
    for t, u in reversed(list(np.ndindex(beta.shape))):
        if t < T - 1:
            beta[t, u] = beta[t + 1, u] + blank_log_probs[t, u]
        if u < S - 1:
            beta[t, u] = np.logaddexp(beta[t, u], beta[t, u + 1] + label_log_probs[t, u])
    return beta


def occupancies(
    blank_log_probs: FloatArray, label_log_probs: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """Posterior probability that a path takes each transition: minus the gradient of the cost.

    Takes what `alphas` takes.

    Returns
    -------
    blank_occupancy, label_occupancy : (T, S) and (T, U) arrays
        Rows of the first and columns of the second sum to 1, as a path leaves each frame and emits
        each label once. All 0 if the cost is not finite, for then there is no posterior.
    log_prob : float, of all paths together

    Examples
    --------
    >>> blank, label, _ = occupancies(np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.6], [0.2]]))
    >>> label.round(6).tolist()
    [[0.75], [0.25]]
    """
    alpha = alphas(blank_log_probs, label_log_probs)
    beta = betas(blank_log_probs, label_log_probs)
    blank, label = np.zeros_like(blank_log_probs), np.zeros_like(label_log_probs)
    if np.isfinite(log_prob := float(beta[0, 0])):
        blank[:-1] = np.exp(alpha[:-1] + blank_log_probs[:-1] + beta[1:] - log_prob)
        blank[-1, -1] = 1.0
        label[:] = np.exp(alpha[:, :-1] + label_log_probs + beta[:, 1:] - log_prob)
    return blank, label, log_prob


@quiet
def _transitions(frames: Iterable[FloatArray], labels: IntArray, blank: int) -> Pair:
    """Pick what the lattice reads, (T, S) and (T, U), from frames of (S, V) log-probabilities."""
    columns = np.arange(len(labels))
    # Copies: a view of the blank's column would keep its whole frame alive.
    picked = [(frame[:, blank].copy(), frame[columns, labels]) for frame in frames]
    blanks, of_labels = map(np.stack, zip(*picked, strict=True))
    if np.isnan(blanks).any():
        blanks[-1, -1] = np.nan  # no path takes another blank of the last frame
    return blanks, of_labels


def _cost_and_gradients(
    frames: Callable[[], Iterable[FloatArray]],
    labels: IntArray,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    fused_log_softmax: bool = True,
) -> tuple[float, Iterator[FloatArray]]:
    """Cost of one sample, and its gradient frame by frame, (S, V) each; none if it is not finite.

    `frames` starts a sweep over the frames of log-probabilities; it is called twice.
    """
    blank_occ, label_occ, log_prob = occupancies(*_transitions(frames(), labels, blank))
    label_occ *= 1.0 + fastemit_lambda

    def gradients() -> Iterator[FloatArray]:
        for log_probs, by_blank, by_label in zip(frames(), blank_occ, label_occ, strict=True):
            grad = np.zeros_like(log_probs)
            if fused_log_softmax:
                occupancy = by_blank + np.append(by_label, 0.0)
                # A cell no path visits has no gradient, not even where its softmax is undefined.
                visited = occupancy > 0
                grad[visited] = occupancy[visited, None] * np.exp(log_probs[visited])
            # Two statements, since a target may equal the blank.
            grad[:, blank] -= by_blank
            grad[np.arange(len(labels)), labels] -= by_label
            yield np.clip(grad, -clamp, clamp) if clamp > 0 else grad

    return -log_prob, gradients() if np.isfinite(log_prob) else iter(())


def _samples(
    targets: ArrayLike, logit_lengths: ArrayLike, target_lengths: ArrayLike
) -> Iterator[tuple[int, int, IntArray]]:
    """Index, number of frames and labels (U,) of each sample, without its padding."""
    for b, (T, U) in enumerate(np.stack([logit_lengths, target_lengths], axis=1)):
        yield b, int(T), np.asarray(targets)[b, :U].astype(np.int64)


def _reduce(costs: FloatArray, reduction: str, zero_infinity: bool) -> np.float64 | FloatArray:
    if zero_infinity:
        costs = np.where(np.isfinite(costs), costs, 0.0)
    if reduction == "none":
        return costs
    total = np.float64(costs.sum())
    return {"mean": total / len(costs), "sum": total}[reduction]


def _weights(cost_weights: ArrayLike | None, batch: int, reduction: str) -> FloatArray:
    if cost_weights is not None:
        return np.asarray(cost_weights, np.float64)
    return np.full(batch, 1.0 / batch if reduction == "mean" else 1.0)


def _logit_frames(logits: NDArray[np.generic], fused_log_softmax: bool) -> Iterator[FloatArray]:
    """Frames (S, V) of log-probabilities of one sample's logits (T, S, V)."""
    for frame in logits:
        values = np.where(frame < np.inf, frame, np.nan).astype(
            np.float64
        )  # inf / inf is no number
        yield log_softmax(values, axis=-1) if fused_log_softmax else values


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
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
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
    reduction : {"none", "mean", "sum"}
        Over the batch.
    fused_log_softmax : bool
        Whether a log-softmax over V comes first. If not, `logits` are taken as log-probabilities.
    fastemit_lambda : float
        Label occupancies count ``1 + fastemit_lambda`` times in the gradient, not the loss [2]_.
    zero_infinity : bool
        Whether a cost that is not finite counts as 0. Its gradient is 0 in any case.

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
        frames = _logit_frames(logits[b, :T, : len(labels) + 1], fused_log_softmax)
        costs[b] = -betas(*_transitions(frames, labels, blank))[0, 0]
    return _reduce(costs, reduction, zero_infinity)


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
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    cost_weights: ArrayLike | None = None,
) -> tuple[np.float64 | FloatArray, FloatArray]:
    """Compute the loss of `rnnt_loss`, and its gradient (B, T, U + 1, V).

    It is that of ``sum(cost_weights * costs)``. Unless given, `cost_weights` (B,) are 1 / B for
    "mean", 1 for "sum" and "none". It is 0 at padding and in samples whose cost is not finite.

    Examples
    --------
    The one path of one frame and no label is its blank, so this is plain cross-entropy:

    >>> loss, grad = rnnt_loss_and_grad(np.zeros((1, 1, 1, 4)), np.zeros((1, 0)), [1], [0])
    >>> round(float(np.exp(-loss)), 6), grad[0, 0, 0]
    (0.25, array([ 0.25,  0.25,  0.25, -0.75]))
    """
    logits = np.asarray(logits)
    weights = _weights(cost_weights, len(logits), reduction)
    costs, grad_logits = np.zeros(len(logits)), np.zeros(logits.shape)
    for b, T, labels in _samples(targets, logit_lengths, target_lengths):
        frames = partial(_logit_frames, logits[b, :T, : len(labels) + 1], fused_log_softmax)
        costs[b], gradients = _cost_and_gradients(
            frames, labels, blank, clamp, fastemit_lambda, fused_log_softmax
        )
        for t, grad in enumerate(gradients):
            grad_logits[b, t, : len(grad)] = weights[b] * grad
    return _reduce(costs, reduction, zero_infinity), grad_logits


def _gelu(x: FloatArray) -> Pair:
    scale = np.sqrt(2 / np.pi)
    inner = np.clip(x, -10, 10)  # where tanh is 1 in float64 already, and no power overflows
    tanh = np.tanh(scale * (inner + 0.044715 * inner**3))
    slope = scale * (1 + 3 * 0.044715 * inner**2) * (1 - tanh**2)
    return x * ((1 + tanh) / 2), (1 + tanh + inner * slope) / 2


#: Value and derivative of each activation; "gelu" is the tanh approximation.
ACTIVATIONS: dict[str, Callable[[FloatArray], Pair]] = {
    "tanh": lambda x: (np.tanh(x), 1 - np.tanh(x) ** 2),
    "relu": lambda x: (np.maximum(x, 0.0), np.where(x > 0, 1.0, 0.0)),
    "sigmoid": lambda x: (expit(x), expit(x) * expit(-x)),
    "gelu": _gelu,
    "silu": lambda x: (x * expit(x), expit(x) * (1 + x * expit(-x))),
    "identity": lambda x: (x, np.ones_like(x)),
}


class _Joint:
    """The joint network, a frame at a time: no more than (S, V) logits ever exist."""

    def __init__(self, inputs: JointGradients, activation: str) -> None:
        encoder_out, predictor_out, weight, bias = inputs
        self.encoder_out, self.predictor_out = np.asarray(encoder_out), np.asarray(predictor_out)
        self.weight = np.asarray(weight, np.float64)
        self.bias = np.asarray(np.zeros(len(self.weight)) if bias is None else bias, np.float64)
        self.activation = ACTIVATIONS[activation]

    def hidden(self, b: int, t: int, S: int) -> Pair:
        """Hidden values and the derivative of the activation, (S, H) each, of one frame."""
        frame, columns = self.encoder_out[b, t], self.predictor_out[b, :S]
        return self.activation(np.add(frame, columns, dtype=np.float64))

    def frames(self, b: int, T: int, S: int) -> Iterator[FloatArray]:
        """Frames (S, V) of log-probabilities of one sample."""
        for t in range(T):
            hidden, _ = self.hidden(b, t, S)
            logits = hidden @ self.weight.T + self.bias
            yield log_softmax(np.where(logits < np.inf, logits, np.nan), axis=-1)


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
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
) -> np.float64 | FloatArray:
    """Compute `rnnt_loss` of ``act(encoder_out[b, t] + predictor_out[b, u]) @ weight.T + bias``.

    Parameters
    ----------
    encoder_out, predictor_out : (B, T, H) and (B, U + 1, H) arrays
        Outputs of the two networks, projected to the width of the joint.
    weight, bias : (V, H) array, and (V,) array or None
        Output layer.
    targets, logit_lengths, target_lengths, blank, clamp, reduction, fastemit_lambda, zero_infinity
        As in `rnnt_loss`.
    activation : str
        A key of `ACTIVATIONS`.

    Examples
    --------
    >>> inputs = np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), np.zeros((4, 3)), None
    >>> round(float(np.exp(-joint_rnnt_loss(*inputs, [[0]], [2], [1]))) * 4**3, 6)
    2.0
    """
    joint = _Joint(JointGradients(encoder_out, predictor_out, weight, bias), activation)
    costs = np.zeros(len(joint.encoder_out))
    for b, T, labels in _samples(targets, logit_lengths, target_lengths):
        frames = joint.frames(b, T, len(labels) + 1)
        costs[b] = -betas(*_transitions(frames, labels, blank))[0, 0]
    return _reduce(costs, reduction, zero_infinity)


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
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    cost_weights: ArrayLike | None = None,
) -> tuple[np.float64 | FloatArray, JointGradients]:
    """Compute the loss of `joint_rnnt_loss`, and its gradients with respect to the joint's inputs.

    Weighted as in `rnnt_loss_and_grad`. `clamp` acts on d cost / d logits, before the chain rule.

    Examples
    --------
    >>> inputs = np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), np.zeros((4, 3)), np.zeros(4)
    >>> loss, grads = joint_rnnt_loss_and_grad(*inputs, np.zeros((1, 0)), [1], [0])
    >>> grads.bias
    array([ 0.25,  0.25,  0.25, -0.75])
    """
    joint = _Joint(JointGradients(encoder_out, predictor_out, weight, bias), activation)
    arrays = joint.encoder_out, joint.predictor_out, joint.weight, joint.bias
    d_encoder, d_predictor, d_weight, d_bias = (np.zeros(array.shape) for array in arrays)
    costs, weights = np.zeros(len(d_encoder)), _weights(cost_weights, len(d_encoder), reduction)
    for b, T, labels in _samples(targets, logit_lengths, target_lengths):
        S = len(labels) + 1
        frames = partial(joint.frames, b, T, S)
        costs[b], gradients = _cost_and_gradients(frames, labels, blank, clamp, fastemit_lambda)
        for t, grad in enumerate(gradients):
            hidden, slope = joint.hidden(b, t, S)
            d_logits = weights[b] * grad
            d_weight += d_logits.T @ hidden
            d_bias += d_logits.sum(axis=0)
            d_sum = (d_logits @ joint.weight) * slope
            d_encoder[b, t] = d_sum.sum(axis=0)
            d_predictor[b, :S] += d_sum
    grads = JointGradients(d_encoder, d_predictor, d_weight, None if bias is None else d_bias)
    return _reduce(costs, reduction, zero_infinity), grads
