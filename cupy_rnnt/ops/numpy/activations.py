"""Activations of the joint network on NumPy arrays, and their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ..types import HostArray

_GELU_SCALE = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715
_LEAK = 0.01  # the slope below 0
_GELU_SATURATED = 10.0  # from here on the gate is 1 in float64, and the derivative its limit


class Activation(NamedTuple):
    """`apply(pre, out)` writes ``out = act(pre)``; `derivative(pre, hidden)` overwrites `pre` by
    ``act'(pre)``, given ``hidden = act(pre)``."""

    apply: Callable[[HostArray, HostArray], object]
    derivative: Callable[[HostArray, HostArray], object]


def _copy(pre: HostArray, out: HostArray) -> None:
    if out is not pre:
        np.copyto(out, pre)


def _tanh_derivative(pre: HostArray, hidden: HostArray) -> None:
    np.multiply(hidden, hidden, out=pre)
    np.subtract(1, pre, out=pre)


def _sigmoid_derivative(pre: HostArray, hidden: HostArray) -> None:
    np.subtract(1, hidden, out=pre)
    np.multiply(pre, hidden, out=pre)


def _leaky_relu(pre: HostArray, out: HostArray) -> None:
    np.maximum(pre, _LEAK * pre, out=out)


def _leaky_relu_derivative(pre: HostArray, hidden: HostArray) -> None:
    np.copyto(pre, np.where(pre > 0, pre.dtype.type(1), pre.dtype.type(_LEAK)))


def _gelu_gate(pre: HostArray) -> HostArray:
    """tanh(sqrt(2/pi) (x + 0.044715 x^3))"""
    gate: HostArray = pre * pre
    gate *= _GELU_CUBIC
    gate += 1
    gate *= pre
    gate *= _GELU_SCALE
    np.tanh(gate, out=gate)
    return gate


def _gelu(pre: HostArray, out: HostArray) -> None:
    gate = _gelu_gate(pre)
    gate += 1
    gate *= 0.5
    np.multiply(pre, gate, out=out)


def _gelu_derivative(pre: HostArray, hidden: HostArray) -> None:
    np.clip(pre, -_GELU_SATURATED, _GELU_SATURATED, out=pre)  # the slope overflows beyond 1e13
    gate = _gelu_gate(pre)
    slope = pre * pre
    slope *= 3 * _GELU_CUBIC
    slope += 1
    slope *= pre
    slope *= _GELU_SCALE
    np.multiply(gate, gate, out=pre)
    np.subtract(1, pre, out=pre)
    pre *= slope
    pre += gate
    pre += 1
    pre *= 0.5


def _silu(pre: HostArray, out: HostArray) -> None:
    np.multiply(pre, expit(pre), out=out)


def _silu_derivative(pre: HostArray, hidden: HostArray) -> None:
    """s (1 + x (1 - s)) = s + h (1 - s)"""
    gate = expit(pre)
    np.subtract(1, gate, out=pre)
    pre *= hidden
    pre += gate


def _softsign(pre: HostArray, out: HostArray) -> None:
    """x / (1 + |x|)"""
    size = abs(pre)
    size += 1
    np.divide(pre, size, out=out)


def _softsign_derivative(pre: HostArray, hidden: HostArray) -> None:
    """1 / (1 + |x|)^2"""
    np.abs(pre, out=pre)
    pre += 1
    np.reciprocal(pre, out=pre)  # first, as the square of a large number overflows
    pre *= pre


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(lambda pre, out: np.tanh(pre, out=out), _tanh_derivative),
    "relu": Activation(
        lambda pre, out: np.maximum(pre, 0, out=out),
        lambda pre, hidden: np.greater(pre, 0, out=pre),
    ),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_derivative),
    "sigmoid": Activation(lambda pre, out: expit(pre, out=out), _sigmoid_derivative),
    "gelu": Activation(_gelu, _gelu_derivative),
    "silu": Activation(_silu, _silu_derivative),
    "softsign": Activation(_softsign, _softsign_derivative),
    "identity": Activation(_copy, lambda pre, hidden: pre.fill(1)),
}
