"""The arcs that leave a cell, and a path, of four transducers."""

import matplotlib.pyplot as plt
import numpy as np
from shared import style

import cupy_rnnt

T, U = 5, 2
STAY, EMIT, STEP = (1, 0), (0, 1), (1, 1)  # frames and labels of an arc
PANELS = {  # transducer, and a path
    "regular: a label takes no frame": (
        cupy_rnnt.Transducer.parse("regular"),
        [STAY, EMIT, STAY, STAY, EMIT, STAY, STAY],
    ),
    "modified: a label takes a frame": (
        cupy_rnnt.Transducer.parse("modified"),
        [STAY, STEP, STAY, STEP, STAY],
    ),
    "constrained: a label, and the blank after it": (
        cupy_rnnt.Transducer.parse("constrained"),
        [STAY, STEP, STAY, STEP, STAY],
    ),
    "TDT: the model says how many frames": (cupy_rnnt.tdt(), [(2, 1), (1, 1), (2, 0)]),
}


def line(axes, start, arc, **look):
    """Bent round the cells that it skips, or by way of the second cell whose score it reads."""
    bow = 0.09 * arc.frames if arc.frames > 1 and not arc.labels else 0.0
    bend = f"arc3,rad={bow}" if arc.then is None else "angle,angleA=90,angleB=0,rad=0"
    end = start[0] + arc.frames, start[1] + arc.labels
    axes.annotate("", end, start, arrowprops=look | {"connectionstyle": bend})
    return end


def draw(axes, title, transducer, path):
    arcs = {(arc.frames, arc.labels): arc for arc in transducer.topology.arcs}
    place = (0, 0)
    for move in path:
        wide = {"color": style.GREY, "lw": 7, "arrowstyle": "-", "shrinkA": 0, "shrinkB": 0}
        place = line(axes, place, arcs[move], **wide)
    for (_, labels), arc in arcs.items():
        look = {"color": style.ORANGE if labels else style.BLUE, "lw": 1.8, "mutation_scale": 13}
        line(axes, (0, 0), arc, arrowstyle="-|>", shrinkA=6, shrinkB=6, **look)
    cells = [(t, u) for t in range(T) for u in range(U + 1)]
    axes.scatter(*np.transpose(cells), s=60, color="white", edgecolors=style.BLACK, zorder=4)
    axes.scatter([T], [U], s=60, color=style.BLACK, zorder=4)
    axes.set(title=title, xlim=(-0.5, T + 0.4), ylim=(-1, U + 0.45))
    axes.set(xticks=range(T), yticks=range(U + 1), xlabel="frame", ylabel="labels emitted")
    axes.spines[["top", "right"]].set_visible(False)


figure, panels = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
for axes, (title, (transducer, path)) in zip(panels.flat, PANELS.items(), strict=True):
    draw(axes, title, transducer, path)
for colour, width, label in (
    (style.BLUE, 2, "a blank"),
    (style.ORANGE, 2, "a label"),
    (style.GREY, 7, "a path to the end (black)"),
):
    panels[0, 0].plot([], [], color=colour, lw=width, label=label)
figure.legend(loc="outside lower center", ncols=3, frameon=False)
figure.suptitle("Transducers differ in the arcs that leave a cell", weight="bold")
