"""Activations of the joint network and their derivatives, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit

from .lattice import FloatArray

Pair = tuple[FloatArray, FloatArray]


def _gelu(x: FloatArray) -> Pair:
    scale = np.sqrt(2 / np.pi)
    inner = np.clip(x, -10, 10)  # beyond, tanh is 1 in float64, and powers could overflow
    tanh = np.tanh(scale * (inner + 0.044715 * inner**3))
    slope = scale * (1 + 3 * 0.044715 * inner**2) * (1 - tanh**2)
    return x * ((1 + tanh) / 2), (1 + tanh + inner * slope) / 2


#: Value and derivative of each activation; "gelu" is the tanh approximation.
ACTIVATIONS: dict[str, Callable[[FloatArray], Pair]] = {
    "tanh": lambda x: (np.tanh(x), 1 - np.tanh(x) ** 2),
    "relu": lambda x: (np.maximum(x, 0.0), np.where(x > 0, 1.0, 0.0)),
    "leaky_relu": lambda x: (np.where(x > 0, x, 0.01 * x), np.where(x > 0, 1.0, 0.01)),
    "sigmoid": lambda x: (expit(x), expit(x) * expit(-x)),
    "gelu": _gelu,
    "silu": lambda x: (x * expit(x), expit(x) * (1 + x * expit(-x))),
    "softsign": lambda x: (x / (1 + np.abs(x)), (1 / (1 + np.abs(x))) ** 2),
    "identity": lambda x: (x, np.ones_like(x)),
}
