"""Transducers whose arcs take several frames: the values that their durations make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .topology import BLANK, LABEL, Arc, Score, Topology, integer
from .transducer import NAMED, Head, Transducer


def tdt(durations: Iterable[int] = (0, 1, 2, 3, 4), sigma: float = 0.0) -> Transducer:
    """Token-and-duration transducer: every arc takes a token and a duration.

    A row of logits holds V tokens, the blank among them, and then D durations, in the order of
    `durations`; so a weight has V + D rows. Tokens have a softmax of their own, and durations have
    one. An arc of a label takes any of the durations. One of a blank takes any but 0, and is the
    last of a path: it leads exactly to the end of the frames.

    Parameters
    ----------
    durations : iterable of int
        Frames that arcs take, increasing, with or without 0.
    sigma : float
        Is subtracted from the log-probability of every token, not from that of a duration: the
        logit under-normalization of the paper, which prefers long durations.

    Returns
    -------
    Transducer
        For the argument `transducer` of any loss.

    Raises
    ------
    ValueError
        If `durations` do not increase, if one is negative or none is above 0, or if `sigma` is
        negative or not finite.
    TypeError
        If a duration is no integer, or `sigma` is no number.

    References
    ----------
    Xu et al., "Efficient Sequence Transduction by Jointly Predicting Tokens and Durations", arXiv
    2304.06795.

    Examples
    --------
    Three frames, no label, four tokens and the durations 1 and 2. One path has three arcs, and two
    paths have two:

    >>> import numpy as np, cupy_rnnt
    >>> logits, targets = np.zeros((1, 3, 1, 4 + 2)), np.zeros((1, 0), int)
    >>> loss = cupy_rnnt.rnnt_loss(logits, targets, [3], [0], transducer=cupy_rnnt.tdt((1, 2)))
    >>> bool(np.isclose(loss, -np.log(1 / 8**3 + 2 / 8**2)))
    True
    """
    frames = _checked(durations, 0, "no arc leads back")
    if frames[-1] == 0:
        raise ValueError(
            "durations[0] is 0, and there is no other: at least one must be above 0, or no blank "
            "leads ahead"
        )
    scores = [(d, Score("duration", i)) for i, d in enumerate(frames)]
    waiting = [Arc(d, 0, (BLANK, score)) for d, score in scores if d > 0]
    emitting = [Arc(d, 1, (LABEL, score), ends=False) for d, score in scores]
    heads = Head(("blank", "label")), Head(("duration",))
    return Transducer(Topology((*waiting, *emitting)), heads, sigma)


def multi_blank(durations: Iterable[int] = (2, 4, 8), sigma: float = 0.0) -> Transducer:
    """Multi-blank transducer: beside the blank, which takes one frame, big blanks take more.

    The big blank of ``durations[i]`` frames is column ``blank - 1 - i`` of a row of logits, as in
    NeMo: big blanks are in front of the blank. They are part of the vocabulary V, and one softmax
    is over all of it. A label takes no frame. The last arc of a path is a blank that leads exactly
    to the end of the frames.

    Parameters
    ----------
    durations : iterable of int
        Frames that the big blanks take, increasing, at least 2.
    sigma : float
        Is subtracted from every log-probability: the logit under-normalization of the paper, which
        prefers long blanks.

    Returns
    -------
    Transducer
        For the argument `transducer` of any loss.

    Raises
    ------
    ValueError
        If `durations` are empty, do not increase or begin below 2, or if `sigma` is negative or not
        finite.
    TypeError
        If a duration is no integer, or `sigma` is no number.

    References
    ----------
    Xu et al., "Multi-blank Transducers for Speech Recognition", arXiv 2211.03541.

    Examples
    --------
    Two frames, no label, and four tokens, of which the last two are the big blank and the blank:

    >>> import numpy as np, cupy_rnnt
    >>> logits, targets = np.zeros((1, 2, 1, 4)), np.zeros((1, 0), int)
    >>> loss = cupy_rnnt.rnnt_loss(
    ...     logits, targets, [2], [0], transducer=cupy_rnnt.multi_blank((2,)))
    >>> bool(np.isclose(loss, -np.log(1 / 4**2 + 1 / 4)))
    True
    """
    frames = _checked(durations, 2, "the blank itself takes 1 frame, and big blanks take more")
    big = [Arc(d, 0, (Score("blank", 1 + i),)) for i, d in enumerate(frames)]
    wait, emit = NAMED["regular"].topology.arcs
    return Transducer(Topology((wait, *big, emit)), sigma=sigma)


def _checked(durations: Any, least: int, reason: str) -> list[int]:
    """Durations that increase from `least` or more; at least one."""
    try:
        values = list(durations)
    except TypeError:
        raise TypeError(f"durations is {durations!r}, but a list of integers is needed") from None
    if not values:
        raise ValueError(f"durations is {durations!r}, but at least one is needed")
    frames: list[int] = []
    for i, value in enumerate(values):
        name = f"durations[{i}]"
        if isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}, but an integer is needed")
        frames.append(integer(name, value))
        if frames[i] < least:
            raise ValueError(f"{name} is {frames[i]}, but it must be at least {least}: {reason}")
        if i and frames[i] <= frames[i - 1]:
            raise ValueError(
                f"{name} is {frames[i]}, but durations must increase: it must be above "
                f"durations[{i - 1}], which is {frames[i - 1]}"
            )
    return frames
