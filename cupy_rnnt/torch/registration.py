"""How an operator of PyTorch is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.library import custom_op

_LIBRARY = torch.library.Library("cupy_rnnt", "FRAGMENT")  # type: ignore[no-untyped-call]


def refuse_second_derivative(ctx: Any, *_: Any) -> NoReturn:
    raise NotImplementedError("the gradients of an RNN-T loss cannot be differentiated again")


def _refuse_map(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "an RNN-T loss cannot be mapped by vmap: let the samples be the batch of one call"
    )


def operator(
    name: str, arguments: str, results: str, function: Callable[..., Any], fake: Callable[..., Any]
) -> Any:
    new = custom_op(
        f"cupy_rnnt::{name}", function, mutates_args=(), schema=f"({arguments}) -> {results}"
    )
    new.register_fake(fake)
    new.register_vmap(_refuse_map)
    # torch.autograd.grad(is_grads_batched=True) does not map by vmap, but by this key.
    _LIBRARY.impl(name, _refuse_map, "Batched")  # type: ignore[no-untyped-call]
    return new
