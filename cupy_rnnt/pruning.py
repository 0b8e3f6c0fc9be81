"""Bands from the posteriors of a cheap loss, as k2 prunes."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .dlpack import detached
from .ops import operations_for
from .ops.types import ArrayLike, DeviceArray, HostArray
from .topology import BLANK, LABEL, Topology
from .transducer import Transducer, transducer_of


def prune_ranges(
    occupancies: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    s_range: int,
    transducer: str | Transducer = "regular",
) -> tuple[HostArray, int]:
    """The band of `s_range` positions a frame that holds most of the posterior.

    It is for the parameter `band` of a loss, and chosen as k2's ``get_rnnt_prune_ranges`` does. In
    each frame it is the run of positions whose blanks hold most, less what the label in front of
    the run holds. Then the first positions are adjusted: they start at 0, do not fall, rise by
    ``s_range - 1`` at most from frame to frame (by 1, if labels take frames), and end with the last
    position, if there are frames enough to reach it.

    Parameters
    ----------
    occupancies : array, shape (B, T, U + 1, K)
        Posterior probabilities of the scores, as :func:`additive_rnnt_loss` returns them.
    logit_lengths, target_lengths : array_like, shape (B,)
    s_range : int
        At least 2, or 1 if labels take frames. More than U + 1 is U + 1.
    transducer : str or Transducer
        As of the loss.

    Returns
    -------
    band : (first, width)
        An array (B, T), of NumPy, and `s_range`.

    Raises
    ------
    ValueError, TypeError
        If a shape, a length or `s_range` is out of range, or a dtype is not supported.

    References
    ----------
    Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", arXiv 2206.13236.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> rng = np.random.default_rng(0)
    >>> am, lm = 3 * rng.standard_normal((1, 6, 9)), rng.standard_normal((1, 4, 9))
    >>> batch = [[3, 1, 7]], [6], [3]
    >>> loss, posteriors = cupy_rnnt.additive_rnnt_loss(am, lm, *batch, return_occupancies=True)
    >>> band = cupy_rnnt.prune_ranges(posteriors, [6], [3], s_range=2)
    >>> band
    (array([[0, 0, 1, 2, 2, 2]]), 2)
    >>> logits = am[:, :, None] + lm[:, None]
    >>> bool(cupy_rnnt.rnnt_loss(logits, *batch, band=band) > loss)
    True
    """
    occupancies = checks.floats("occupancies", detached(occupancies), ("B", "T", "U + 1", "K"))
    size, most_frames, positions, _ = occupancies.shape
    topology = transducer_of("transducer", transducer).topology
    checks.shape("occupancies", occupancies, (size, most_frames, positions, len(topology.scores)))
    takes_frames = all(arc.frames for arc in topology.arcs if arc.labels)
    width = min(_range(s_range, 1 if takes_frames else 2), positions)
    ops = operations_for(occupancies)
    frames, labels = checks.integers(
        ("logit_lengths", logit_lengths, (size,)), ("target_lengths", target_lengths, (size,))
    )
    frames = checks.lengths("logit_lengths", frames, 1, most_frames)
    labels = checks.lengths("target_lengths", labels, 0, positions - 1)
    with ops.device_of(occupancies):
        is_position = ops.asarray(np.arange(positions) <= labels[:, None])[:, None, :, None]
        inside = ops.xp.where(is_position, occupancies, 0)
        (first,) = ops.host(_best(inside, width, topology, ops.xp))
    number = np.arange(most_frames)
    last = np.maximum(labels - width + 1, 0)[:, None]
    first = np.where(number < frames[:, None] - 1, first, last)
    steps = number * (1 if takes_frames else width - 1)
    first = steps - np.maximum(_least_from(steps - _least_from(first)), 0)
    return first, width


def _range(s_range: Any, least: int) -> int:
    value = checks.integer("s_range", s_range)
    if value < least:
        raise ValueError(f"s_range is {value}, but it must be at least {least}")
    return value


def _least_from(values: HostArray) -> HostArray:
    """The least of each value and all behind it, (B, T)."""
    least: HostArray = np.minimum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    return least


def _best(occupancies: DeviceArray, width: int, topology: Topology, xp: Any) -> DeviceArray:
    """The first position of the run of so many that holds most in each frame, (B, T)."""
    kinds = [score.kind for score in topology.scores]
    numbers = [k for k, kind in enumerate(kinds) if kind == "blank"]
    blanks = occupancies[..., numbers].sum(axis=-1, dtype=np.float64)
    entering = xp.zeros_like(blanks)  # of the label in front of a position
    if LABEL in topology.scores:
        entering[..., 1:] = occupancies[..., :-1, kinds.index("label")]
    if any(arc.then == BLANK for arc in topology.arcs):
        blanks = blanks - entering  # whose arcs add up the blank of the position as well
    sums = xp.zeros((*blanks.shape[:2], blanks.shape[2] + 1))
    sums[..., 1:] = blanks.cumsum(axis=-1)
    held = sums[..., width:] - sums[..., :-width] - entering[..., : blanks.shape[2] - width + 1]
    return held.argmax(axis=-1)
