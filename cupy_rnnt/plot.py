"""Drawings of what is read off a lattice, with Matplotlib: ``pip install cupy_rnnt[plot]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

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
    posteriors : array_like, shape (T, U + 1, K)
        Occupancies of one sample, as of :func:`joint_rnnt_posteriors`, on the CPU and without
        padding.
    frames : array_like, shape (U,)
        The frame of each label, as of :func:`joint_rnnt_alignment`; all -1 for no path.
    text : sequence of U str
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
        If the shapes do not fit each other.

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
    posteriors, frames = np.asarray(posteriors), np.asarray(frames)
    scores = transducer_of("transducer", transducer).topology.scores
    labels = len(text)
    if posteriors.ndim != 3 or posteriors.shape[1:] != (labels + 1, len(scores)):
        raise ValueError(
            f"posteriors has shape {posteriors.shape}, but (T, {labels + 1}, {len(scores)}) is "
            f"needed for {labels} labels and {len(scores)} scores"
        )
    if frames.shape != (labels,):
        raise ValueError(f"frames has shape {frames.shape}, but ({labels},) is needed")
    if axes is None:
        axes = _new_axes()
    tokens = [k for k, score in enumerate(scores) if score.kind != "duration"]
    visits = posteriors[..., tokens].sum(axis=-1).T
    axes.imshow(visits, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    if (frames >= 0).all():
        ends = [0, *frames, len(posteriors) - 1], [*range(labels + 1), labels]
        axes.step(*ends, where="post", color="tab:orange", linewidth=1)
    axes.set_yticks(range(1, labels + 1), text)
    axes.set_xlabel("frame")
    axes.set_ylabel("labels emitted")
    return axes


def _new_axes() -> Axes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs Matplotlib: pip install cupy_rnnt[plot]") from error
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()
