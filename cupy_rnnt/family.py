"""Transducers whose arcs take several frames: the values that their durations make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .topology import BLANK, LABEL, Arc, Score, Topology, integers
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
        Frames that arcs take, increasing, with or without 0. Those that are longer than all samples
        of a batch take neither time nor memory for its lattices.
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


def multi_blank(
    durations: Iterable[int] = (2, 4, 8),
    sigma: float = 0.0,
    blank_columns: Iterable[int] | None = None,
) -> Transducer:
    """Multi-blank transducer: beside the blank, which takes one frame, big blanks take more.

    The big blank of ``durations[i]`` frames is column ``blank - 1 - i`` of a row of logits, as in
    NeMo, or column ``blank_columns[i]``. Big blanks are part of the vocabulary V, and one softmax
    is over all of it. A label takes no frame. The last arc of a path is a blank that leads exactly
    to the end of the frames.

    Parameters
    ----------
    durations : iterable of int
        Frames that the big blanks take, increasing, at least 2.
    sigma : float
        Is subtracted from every log-probability: the logit under-normalization of the paper, which
        prefers long blanks.
    blank_columns : iterable of int, optional
        Columns of the big blanks, in the order of `durations`, in ``[-V, V)``; they differ from
        each other and from the column of the blank. By default they are those in front of it.

    Returns
    -------
    Transducer
        For the argument `transducer` of any loss.

    Raises
    ------
    ValueError
        If `durations` are empty, do not increase or begin below 2, if `sigma` is negative or not
        finite, or if there are not as many `blank_columns` as durations. A loss refuses columns
        that are out of range or not distinct.
    TypeError
        If a duration or a column is no integer, or `sigma` is no number.

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
    columns = None if blank_columns is None else integers("blank_columns", blank_columns)
    return Transducer(Topology((wait, *big, emit)), sigma=sigma, blank_columns=columns)


def _checked(durations: Any, least: int, reason: str) -> tuple[int, ...]:
    """Durations that increase from `least` or more; at least one."""
    frames = integers("durations", durations)
    if not frames:
        raise ValueError(f"durations is {durations!r}, but at least one is needed")
    for i, duration in enumerate(frames):
        name = f"durations[{i}]"
        if duration < least:
            raise ValueError(f"{name} is {duration}, but it must be at least {least}: {reason}")
        if i and duration <= frames[i - 1]:
            raise ValueError(
                f"{name} is {duration}, but durations must increase: it must be above "
                f"durations[{i - 1}], which is {frames[i - 1]}"
            )
    return frames
