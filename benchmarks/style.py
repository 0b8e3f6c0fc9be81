"""How pictures look: the title is the message, and few colours differ in lightness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, which people with any colour vision tell apart. Their lightness
# differs as well, so that they survive printing in grey.
BLUE, ORANGE, BLACK, GREY = "#0072B2", "#E69F00", "#000000", "#BBBBBB"
SKY, VERMILION, GREEN, PINK = "#56B4E9", "#D55E00", "#009E73", "#CC79A7"
SERIES = BLUE, ORANGE, BLACK, GREY
"""In this order: ours first."""
MARKERS = "osDv"


def dots(axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """A line for each name, from top to bottom, with a mark for each series; NaN is no mark.

    That has room for more values than bars have: five seconds are enough for six bars.
    """
    places = np.arange(len(names))
    looks = zip(series.items(), SERIES, MARKERS, strict=False)
    for (label, values), colour, marker in looks:
        axes.plot(values, places, marker, color=colour, label=label, markersize=7)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", color=GREY, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def message(figure: Figure, text: str) -> None:
    """The title of a figure says what is seen."""
    figure.suptitle(text, weight="bold")


def legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """One for all panels, of what is drawn on `axes`."""
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=columns, frameon=False)


def span(values: Sequence[float]) -> str:
    """From the least to the largest, in two digits."""
    return f"{min(values):.2g} to {max(values):.2g}"
