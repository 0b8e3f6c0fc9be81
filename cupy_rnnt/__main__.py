import numpy as np
from importlib.resources import files


def librispeech_lengths(size):
    with files("cupy_rnnt").joinpath("data/librispeech_shapes.csv").open() as text:
        frames, labels = np.loadtxt(
            text, dtype=np.int64, delimiter=",", skiprows=1, max_rows=size
        ).T
    return frames, labels
