"""The losses, and the scores of cells, as functions of JAX with a derivative in reverse mode."""

from __future__ import annotations

import atexit
from contextlib import suppress
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from ..batch import INTEGERS
from ..ops.types import Shape, compute_dtype
from ..results import divisor
from .arguments import Arrays
from .callbacks import JointScores, Loss

# Within jax.shard_map, a type says over which axes of the mesh a value varies.


def _axes(*trees: Any) -> frozenset[Any]:
    types = map(jax.typeof, jax.tree.leaves(trees))
    return frozenset().union(*(kind.manual_axis_type.varying for kind in types))


def everywhere(
    function: Any, loss: Loss, inputs: Arrays, integers: Arrays
) -> tuple[jax.Array, ...]:
    """The results, by `function`, of inputs that vary over the same axes, from which JAX knows that
    it has to add up the gradients of parameters."""
    axes = _axes(inputs, integers)

    def varying(x: jax.Array) -> Any:
        return jax.lax.pcast(x, tuple(axes - _axes(x)), to="varying")

    results: tuple[jax.Array, ...] = function(loss, jax.tree.map(varying, inputs), integers)
    return results


def _call(
    loss: Loss,
    results: tuple[tuple[Any, ...], Any],
    inputs: Arrays,
    integers: Arrays,
    weights: jax.Array | None = None,
) -> Any:
    """Results and gradients in the types that `results` names; what is None is not computed."""
    _wait_at_exit()
    computed = buffer_callback(loss, results, vmap_method="expand_dims")(inputs, integers, weights)
    axes = tuple(_axes(inputs, integers, weights))
    return jax.lax.pcast(computed, axes, to="varying")  # the callback forgets about them


@cache
def _wait_at_exit() -> None:
    """Let Python end only when all results that a variable holds are complete: a step that called
    into Python after its end would abort the process."""

    @atexit.register
    def wait() -> None:  # runs before JAX takes down its backends, which it registered earlier
        for array in jax.live_arrays():  # type: ignore[no-untyped-call]
            with suppress(Exception):  # the step failed, and no caller asked for its result
                array.block_until_ready()


def _type(shape: Shape, dtype: np.dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _types_of_results(loss: Loss, inputs: Arrays, integers: Arrays) -> tuple[Any, ...]:
    dtype = compute_dtype(inputs[0].dtype)
    return tuple(_type(shape, dtype) for shape in loss.shapes(inputs, integers))


def _types_of(inputs: Arrays) -> Any:
    return jax.tree.map(lambda x: _type(x.shape, x.dtype), inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss_of(loss: Loss, inputs: Arrays, integers: Arrays) -> Any:
    """The loss, and what else it returns, which has no derivative."""
    return _call(loss, (_types_of_results(loss, inputs, integers), None), inputs, integers)[0]


def _loss_forward(loss: Loss, inputs: Arrays, integers: Arrays) -> tuple[Any, Any]:
    if loss.options.reduction == "none" or inputs[0].dtype == jnp.float16:
        return loss_of(loss, inputs, integers), (None, inputs, integers)
    types = _types_of_results(loss, inputs, integers), _types_of(inputs)
    results, gradients = _call(loss, types, inputs, integers)
    return results, (gradients, None, None)


def _scaled(upstream: jax.Array, gradient: jax.Array) -> jax.Array:
    """``upstream * gradient`` in the dtype of the loss, cast to that of the gradient at the end."""
    return (upstream * gradient.astype(upstream.dtype)).astype(gradient.dtype)


def _loss_backward(loss: Loss, saved: Any, upstreams: Any) -> tuple[Any, None]:
    (gradients, inputs, integers), (upstream, *_) = saved, upstreams
    if gradients is not None:
        return jax.tree.map(partial(_scaled, upstream), gradients), None
    target_lengths = integers[len(INTEGERS) - 1]
    count = jnp.asarray(divisor(loss.options.reduction, target_lengths), upstream.dtype)
    weights = jnp.broadcast_to(upstream / count, target_lengths.shape)
    return _call(loss, ((), _types_of(inputs)), inputs, integers, weights)[1], None


loss_of.defvjp(_loss_forward, _loss_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scores_of(scores: JointScores, inputs: Arrays, integers: Arrays) -> Any:
    return _call(scores, (_types_of_results(scores, inputs, integers), None), inputs, integers)[0]


def _scores_forward(scores: JointScores, inputs: Arrays, integers: Arrays) -> tuple[Any, Any]:
    return scores_of(scores, inputs, integers), (inputs, integers)


def _scores_backward(scores: JointScores, saved: Any, upstreams: Any) -> tuple[Any, None]:
    (inputs, integers), (upstream,) = saved, upstreams
    return _call(scores, ((), _types_of(inputs)), inputs, integers, upstream)[1], None


scores_of.defvjp(_scores_forward, _scores_backward)
