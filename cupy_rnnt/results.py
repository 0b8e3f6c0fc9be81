"""What the public functions return beside the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .ops import operations_for
from .ops.types import DeviceArray, HostArray
from .quiet import quiet


class JointGradients(NamedTuple):
    """Gradients of the reduced loss with respect to the inputs of the joint network.

    Each has the shape and dtype of the argument it is named after, and is of the kind of
    `encoder_out`; `bias` is None where there was none.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> joint = np.zeros((1, 2, 4)), np.zeros((1, 2, 4)), np.zeros((3, 4)), None
    >>> loss, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(*joint, [[0]], [2], [1])
    >>> gradients.weight.shape, gradients.bias is None
    ((3, 4), True)
    """

    encoder_out: DeviceArray
    predictor_out: DeviceArray
    weight: DeviceArray
    bias: DeviceArray


class Alignment(NamedTuple):
    """The likeliest path of each sample. Arrays are of the kind of the first argument.

    Attributes
    ----------
    frames : shape (B, U), int64
        The frame at which each label is emitted; -1 behind the last label, and for all labels of a
        sample without a path or with a NaN.
    durations : shape (B, U), int64, or None
        How many frames later the path goes on, -1 where `frames` is; None if the transducer has no
        durations.
    log_prob : shape (B,)
        Of the path, with what a delay penalty adds; float32, or float64 for float64 inputs. It is
        -inf without a path, and NaN for a sample with a NaN in its valid part, or a logit of +inf.
    certificate : shape (B,)
        By how many nats a path could be likelier than this one, in the dtype of `log_prob`. It is
        0: cells are computed until the path is proven to be the likeliest of all, but for the
        rounding of sums in float64.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> logits = np.zeros((1, 3, 2, 3))
    >>> logits[0, 1, 0, 0] = 5  # label 0 is likely at frame 1
    >>> alignment = cupy_rnnt.rnnt_alignment(logits, [[0]], [3], [1])
    >>> alignment.frames, alignment.durations
    (array([[1]]), None)
    """

    frames: DeviceArray
    durations: DeviceArray | None
    log_prob: DeviceArray
    certificate: DeviceArray


class KeptPosteriors(NamedTuple):
    """Occupancies of n kept cells, in packed order. Arrays are of the kind of the first argument.

    Attributes
    ----------
    sample, frame, position : shape (n,), int64
        Where each cell is.
    occupancies : shape (n, K)
        Of its scores, in the order of ``transducer.topology.scores``; float32, or float64 for
        float64 inputs.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> kept = cupy_rnnt.rnnt_posteriors(np.zeros((1, 3, 2, 3)), [[0]], [3], [1], dense=False)
    >>> list(zip(kept.frame.tolist(), kept.position.tolist()))
    [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    >>> kept.occupancies.sum(axis=0).round(6).tolist()  # three blanks and a label
    [3.0, 1.0]
    """

    sample: DeviceArray
    frame: DeviceArray
    position: DeviceArray
    occupancies: DeviceArray


@dataclass(frozen=True)
class Info:
    """What a call computed, as returned by ``return_info=True``.

    Attributes
    ----------
    cells : int
        Valid lattice cells of the batch, ``sum(logit_lengths * (target_lengths + 1))``.
    computed : int
        Cells whose softmax was computed.
    kept : int
        Computed cells whose gradient was computed as well; 0 if the call returns no gradient.
    certificate : numpy.ndarray or cupy.ndarray, shape (B,), float64
        Proven bound of ``P(all paths) / P(paths inside the computed cells) - 1`` of each sample, at
        most half the tolerance; 0 where every cell was computed. What was left out makes a cost at
        most ``log1p(certificate)`` too large, and never too small. The array is of NumPy or CuPy,
        whatever the kind of the arguments.
    rounds : int
        Most rounds of selecting and computing cells that a sample took; 1 where all cells were
        computed at once.
    workspace_bytes : int
        Planned peak of what is allocated beyond the arguments and the results. Never above
        `max_workspace_bytes`.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> logits = np.zeros((2, 3, 2, 4))
    >>> loss, info = cupy_rnnt.rnnt_loss(logits, [[0], [1]], [3, 2], [1, 1], return_info=True)
    >>> info.cells, info.computed, info.kept, info.certificate, info.rounds
    (10, 10, 0, array([0., 0.]), 1)
    """

    cells: int
    computed: int
    kept: int
    certificate: DeviceArray
    rounds: int
    workspace_bytes: int


def divisor(reduction: str, label_counts: Any) -> Any:
    """What the sum of the costs is divided by, of samples of so many labels, (..., B): an integer,
    or one for each batch."""
    if reduction == "mean":
        return label_counts.shape[-1]
    return label_counts.sum(axis=-1).clip(1) if reduction == "mean_volume" else 1


@quiet  # a sum may be too large, or inf - inf
def reduced(costs: DeviceArray, reduction: str, label_counts: HostArray, dtype: np.dtype) -> Any:
    """The costs (..., B), or their mean or sum over the batch, in `dtype`."""
    if reduction == "mean":
        costs = costs.mean(axis=-1)
    elif reduction != "none":
        costs = costs.sum(axis=-1)
    if reduction == "mean_volume":
        volume = divisor(reduction, label_counts)
        costs = costs / operations_for(costs).asarray(volume)
    return costs.astype(dtype)


def weights_of(
    reduction: str, cost_weights: Any, label_counts: HostArray, dtype: np.dtype
) -> HostArray:
    """Weights of the costs, float64, (..., B): `cost_weights` or, if None, the derivative of the
    loss with respect to each cost; for ``"none"``, of the sum of the costs."""
    if cost_weights is not None:
        return checks.cost_weights(cost_weights, len(label_counts), dtype)
    share = 1.0 / np.expand_dims(divisor(reduction, label_counts), -1)
    return np.full(label_counts.shape, share)
