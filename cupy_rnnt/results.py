"""What the public functions return beside the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .ops import operations_for
from .ops.types import DeviceArray, HostArray


class JointGradients(NamedTuple):
    """Gradients of the reduced loss with respect to the inputs of the joint network.

    Each has the shape and dtype of the argument it is named after, and is of the kind of
    `encoder_out`; `bias` is None where there was none.
    """

    encoder_out: DeviceArray
    predictor_out: DeviceArray
    weight: DeviceArray
    bias: DeviceArray


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
        Those of them whose gradient was computed; 0 if no gradient was asked for.
    certificate : numpy.ndarray or cupy.ndarray, shape (B,), float64
        Proven bound of ``P(all paths) / P(paths inside the computed cells) - 1`` of each sample, at
        most half the tolerance; 0 where every cell was computed. A cost is never too small for what
        was left out, and at most ``log1p(certificate)`` too large. It is of NumPy or CuPy, whatever
        the kind of the arguments.
    rounds : int
        Most rounds of selecting and computing cells that a sample took; 1 where all cells were
        computed at once.
    workspace_bytes : int
        Planned peak of what is allocated beyond the arguments and the results. Never above
        `max_workspace_bytes`.
    """

    cells: int
    computed: int
    kept: int
    certificate: DeviceArray
    rounds: int
    workspace_bytes: int


def reportable(costs: DeviceArray, dtype: np.dtype) -> Any:
    """Costs in float64, infinite if `dtype`, in which they are reported, cannot hold them.

    What follows from whether a cost is finite follows from this: its gradient, `zero_infinity`.
    The others are not rounded, since their mean is taken in float64.
    """
    if costs.dtype == dtype:
        return costs
    xp = operations_for(costs).xp
    with np.errstate(over="ignore"):
        reported = costs.astype(dtype)
    return xp.where(xp.isfinite(reported), costs, reported)


def reduced(costs: DeviceArray, reduction: str, dtype: np.dtype) -> Any:
    """The costs (..., B), their mean over the batch or their sum, in `dtype`."""
    with np.errstate(all="ignore"):  # a sum may be too large, or inf - inf
        if reduction == "mean":
            costs = costs.mean(axis=-1)
        elif reduction == "sum":
            costs = costs.sum(axis=-1)
        return costs.astype(dtype)


def weights_of(reduction: str, cost_weights: Any, size: int, dtype: np.dtype) -> HostArray:
    """Given weights of the costs, or else the derivative of the reduced loss with respect to each
    (of their sum for ``"none"``); float64, (B,)."""
    if cost_weights is not None:
        return checks.cost_weights(cost_weights, size, dtype)
    return np.full(size, 1.0 / size if reduction == "mean" else 1.0)
