"""Arguments of a loss as an operator takes them: dense tensors, integers on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import checks
from ..batch import INTEGERS, BandLike
from ..ops.types import ArrayLike
from ..options import DEFAULTS, Options
from . import operators


def dense(name: str, value: ArrayLike) -> Tensor:
    if not isinstance(value, Tensor):
        kind = type(value)
        text = f"{name} is a {kind.__module__}.{kind.__qualname__}, but a torch.Tensor is needed"
        raise TypeError(text)
    if value.device.type not in ("cpu", "cuda"):
        text = f"{name} is on device {value.device}, but a tensor on cpu or cuda is needed"
        raise ValueError(text)
    if value.is_nested:
        text = f"{name} is nested, but a padded tensor is needed: torch.nested.to_padded_tensor"
        raise TypeError(text)
    if value.layout != torch.strided:
        raise TypeError(f"{name} has layout {value.layout}, but a dense tensor is needed")
    if not torch.compiler.is_compiling():
        _, tangent = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
        if tangent is not None:
            raise NotImplementedError(f"{name} has a tangent, but there is no forward mode")
    return value


def on_host(name: str, value: ArrayLike) -> Tensor:
    """A copy, so that the values may change before the backward pass."""
    if isinstance(value, Tensor):
        return dense(name, value).detach().to("cpu", copy=True)
    try:
        tensor = torch.tensor(value, device="cpu")  # the default device may be another one
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(value, (list, tuple)):
            checks.within_64_bits(name, value)
        raise TypeError(f"{name} cannot be made a tensor: {error}") from None
    return tensor if tensor.numel() else tensor.long()  # PyTorch makes floats of an empty list


def band_of(value: BandLike, inputs: list[Tensor]) -> list[Tensor]:
    """First positions and widths on the host, or nothing."""
    if value is None:
        return []
    first, width = checks.pair("band", value)
    if checks.is_scalar(width):
        width = torch.full(inputs[0].shape[:1], checks.integer("band[1]", width), device="cpu")
    return [on_host("band[0]", first), on_host("band[1]", width)]


def arguments_of(
    inputs: list[Tensor], integers: Sequence[ArrayLike], band: BandLike = None, **options: Any
) -> list[Any]:
    """The arguments of an operator: tensors and plain numbers. Numbers are checked here, but not
    while PyTorch traces; the operator checks all of them again."""
    lattice = [on_host(name, value) for name, value in zip(INTEGERS, integers, strict=True)]
    if torch.compiler.is_compiling():
        values = DEFAULTS | options
    else:
        dtype = np.dtype(np.float64 if inputs[0].dtype == torch.float64 else np.float32)
        values = Options.checked(dtype, **options).values()
    return operators.Arguments(inputs, lattice, values, band_of(band, inputs)).flat()


def drawn_seed() -> int:
    """A seed of dropout, from PyTorch's random numbers of the CPU."""
    return int(torch.randint(2**63 - 1, ()))


def needs_grad(tensors: Sequence[Tensor]) -> bool:
    # torch.jit.trace checks, without gradients, that it would record the same again.
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def autocast(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors in the dtype of autocast, as ``torch.nn.functional.linear`` casts its arguments."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    casts = torch.float16, torch.bfloat16, torch.float32
    return [tensor.to(dtype) if tensor.dtype in casts else tensor for tensor in tensors]
