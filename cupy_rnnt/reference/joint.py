"""A joint network in plain NumPy, a frame at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..results import JointGradients
from .activations import ACTIVATIONS, Pair
from .dropout import dropout_factors
from .lattice import FloatArray


class Joint:
    """The joint network, a frame at a time: no more than (S, V) logits exist at once."""

    def __init__(self, inputs: JointGradients, activation: str, dropout: float, seed: int) -> None:
        encoder_out, predictor_out, weight, bias = inputs
        self.encoder_out, self.predictor_out = np.asarray(encoder_out), np.asarray(predictor_out)
        self.weight = np.asarray(weight, np.float64)
        self.bias = np.asarray(np.zeros(len(self.weight)) if bias is None else bias, np.float64)
        self.activation = ACTIVATIONS[activation]
        self.dropout, self.seed = dropout, seed

    def hidden(self, b: int, t: int, S: int) -> Pair:
        """Hidden values and derivatives of the activation of a frame, (S, H) each."""
        frame, positions = self.encoder_out[b, t], self.predictor_out[b, :S]
        value, slope = self.activation(np.add(frame, positions, dtype=np.float64))
        if self.dropout:
            factors = dropout_factors(self.dropout, self.seed, b, t, *value.shape)
            value, slope = value * factors, slope * factors
        return value, slope

    def frames(self, b: int, T: int, S: int) -> Iterator[FloatArray]:
        """The logits of a sample, (S, V) a frame; NaN in the place of +inf."""
        for t in range(T):
            hidden, _ = self.hidden(b, t, S)
            logits = hidden @ self.weight.T + self.bias
            yield np.where(logits < np.inf, logits, np.nan)
