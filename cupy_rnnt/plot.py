"""Drawings of what is read off a lattice, with Matplotlib: ``pip install cupy_rnnt[plot]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .ops import on_host
from .topology import check_entries
from .transducer import Transducer, transducer_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def alignment(
    posteriors: Any,
    frames: Any,
    text: Sequence[str],
    *,
    transducer: str | Transducer = "regular",
    axes: Axes | None = None,
) -> Axes:
    """Draw the posterior of an utterance, with its likeliest path.

    The image has the posterior probability that paths visit a cell, by frame and position. The path
    rises by a position at the frame of each label, whose text is on the axis there.

    Parameters
    ----------
    posteriors : array_like, shape (T, U + 1, K), any floating dtype
        Occupancies of one sample, as of :func:`joint_rnnt_posteriors`, without padding.
    frames : array_like, shape (U,), any integer dtype
        The frame of each label, as of :func:`joint_rnnt_alignment`; all -1 for no path.
    text : str of U characters, or list of U str
        What is written for each label.
    transducer : str or Transducer
        That of the posteriors.
    axes : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    axes : matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    ValueError
        If the shapes do not fit each other, or if the frames of labels are none of the T, or fall.
    TypeError
        If an argument is not of its type.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt, cupy_rnnt.plot
    >>> sample = np.zeros((1, 4, 3, 5)), [[0, 1]], [4], [2]
    >>> (posteriors,), (frames,) = (
    ...     cupy_rnnt.rnnt_posteriors(*sample), cupy_rnnt.rnnt_alignment(*sample).frames)
    >>> axes = cupy_rnnt.plot.alignment(posteriors, frames, ["h", "i"])
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['h', 'i']
    """
    if not isinstance(text, str):
        check_entries("text", text, str, "a str or a list of str")
    labels, scores = len(text), transducer_of("transducer", transducer).topology.scores
    (posteriors,) = on_host(checks.floats("posteriors", posteriors, ("T", "U + 1", "K")))
    if posteriors.shape[1:] != (labels + 1, len(scores)):
        raise ValueError(
            f"posteriors has shape {posteriors.shape}, but (T, {labels + 1}, {len(scores)}) is "
            f"needed for {labels} labels and {len(scores)} scores"
        )
    (frames,) = checks.integers(("frames", frames, (labels,)))
    has_path = not labels or (frames != -1).any()
    if has_path:
        checks.lengths("frames", frames, 0, len(posteriors) - 1)
        falls = np.flatnonzero(frames[1:] < frames[:-1]).tolist()
        for u in falls[:1]:
            raise ValueError(
                f"frames[{u + 1}] is {frames[u + 1]}, but it must be at least frames[{u}], which "
                f"is {frames[u]}"
            )
    axes = _new_axes() if axes is None else _checked_axes(axes)
    tokens = [k for k, score in enumerate(scores) if score.kind != "duration"]
    visits = posteriors[..., tokens].sum(axis=-1, dtype=np.float64).T
    axes.imshow(visits, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    if has_path:
        ends = [0, *frames, len(posteriors) - 1], [*range(labels + 1), labels]
        axes.step(*ends, where="post", color="tab:orange", linewidth=1)
    axes.set_yticks(range(1, labels + 1), text)
    axes.set_xlabel("frame")
    axes.set_ylabel("labels emitted")
    return axes


def _checked_axes(value: Any) -> Axes:
    from matplotlib.axes import Axes

    if not isinstance(value, Axes):
        raise TypeError(f"axes is {value!r}, but matplotlib.axes.Axes is needed")
    return value


def _new_axes() -> Axes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs Matplotlib: pip install cupy_rnnt[plot]") from error
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()
