"""What a loss needs of a toolkit: the weight of its last layer, an activation's name, and the
reductions of NeMo, which transformers has taken over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "softsign": functional.softsign,
    "identity": lambda x: x,
}
"""Those of the joint losses, by name."""


def weight_and_bias(name: str, layer: Any) -> tuple[Tensor, Tensor | None]:
    """Those of a plain linear layer. A subclass may compute something else of them."""
    if type(layer) is not torch.nn.Linear:
        raise TypeError(
            f"{name} is a {type(layer).__name__}, but a torch.nn.Linear is needed, whose weight "
            f"and bias can be read"
        )
    return layer.weight, layer.bias


def activation_name(name: str, activation: Any) -> str:
    """The name of an activation: a module, its class or a function, which is known by its values.

    Toolkits have classes of their own for Swish, and a slope or a form that is not ours shows in
    the values, too.
    """
    module = activation() if isinstance(activation, type) else activation
    points = torch.linspace(-4, 4, 17, dtype=torch.float64)
    learned = isinstance(module, torch.nn.Module) and any(True for _ in module.parameters())
    if not learned:
        with torch.no_grad():
            values = module(points.clone())  # it may work in place
        for known, function in ACTIVATIONS.items():
            if torch.allclose(values, function(points), rtol=1e-12, atol=1e-12):
                return known
    raise ValueError(
        f"{name} is {module}, but one is needed that computes what one of "
        f"{', '.join(ACTIVATIONS)} does"
    )


def reduced(loss: Callable[..., Tensor], reduction: str | None, label_counts: Tensor) -> Tensor:
    """A loss by a reduction of NeMo, from the function of this package that lacks a `reduction`.

    ``"mean"`` is the mean of the costs, each divided by the number of its labels, or by 1.
    """
    if reduction == "mean":
        costs = loss(reduction="none")
        return (costs / label_counts.clamp(min=1).to(costs.device)).mean()
    return loss(reduction={"mean_batch": "mean", None: "none"}.get(reduction, reduction))
