"""What must be in memory at once, for three ways to compute the same loss."""

import matplotlib.pyplot as plt
from shared import style

from cupy_rnnt.cli.terminal import nbytes

B, T, S, V = 1024, 1000, 201, 4096
FLOAT = 4  # bytes
WORKSPACE = 256 * 2**20  # the library's limit on a CPU, unless it is told another one
ROWS = 1024  # of a tile
GPU = 80e9

sample = 2 * FLOAT * T * S * V  # logits and their gradient
BARS = {
    "batched:\nlogits and gradient\nof all samples": (B * sample, style.BLACK),
    "sample-wise:\nlogits and gradient\nof one sample": (sample, style.ORANGE),
    "here:\ntiles, lattices and all else\nin the default workspace": (WORKSPACE, style.BLUE),
    "of that,\nthe logits of a tile": (FLOAT * ROWS * V, style.BLUE),
}

figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
sizes, colours = zip(*BARS.values(), strict=True)
bars = axes.barh(list(BARS), sizes, color=colours, height=0.6)
axes.bar_label(bars, map(nbytes, sizes), padding=4)
axes.axvline(GPU, color=style.GREY, linestyle="--", zorder=0)
axes.text(1.15 * GPU, 3.2, "a GPU of 80 GB", color="#666666")
axes.set(xscale="log", xlim=(1e6, 1e14), xlabel="bytes, on a logarithmic axis")
axes.set_title("The workspace is all that is in memory, of the 6 TiB of a batch", weight="bold")
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
