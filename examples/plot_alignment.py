"""Draw the posterior of a spoken prompt with its likeliest path: the figure of the documentation.

python examples/plot_alignment.py docs/alignment.png
"""

import string
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cupy_rnnt
import cupy_rnnt.plot

DATA = Path(__file__).parents[1] / "benchmarks" / "data" / "speech_char_trained.npz"
SYMBOLS = " '" + string.ascii_lowercase + string.digits  # entry 0 is the blank
FRAMES, LABELS = 105, 46  # of the prompt, those that are shown


def main() -> None:
    with np.load(DATA) as data:
        encoder_out, predictor_out, labels = data["enc0"], data["pred0"], data["y0"]
        inputs = encoder_out[None], predictor_out[None], data["W"], data["b"]
    sample = *inputs, labels[None], [len(encoder_out)], [len(labels)], 0
    alignment = cupy_rnnt.joint_rnnt_alignment(*sample)
    posteriors = cupy_rnnt.joint_rnnt_posteriors(*sample)
    text = [SYMBOLS[label - 1] for label in labels]

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = cupy_rnnt.plot.alignment(
        posteriors[0], alignment.frames[0], text, axes=figure.add_subplot()
    )
    axes.set_xlim(-0.5, FRAMES)
    axes.set_ylim(-0.5, LABELS)
    axes.tick_params(axis="y", labelsize=7, length=0)
    figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    main()
