"""Arguments of the losses as JAX arrays, and what stands for them in the checks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..batch import INTEGERS, BandLike
from ..ops.types import ArrayLike
from .callbacks import Loss

Arrays = tuple[ArrayLike, ...]


def arrays_of(names: tuple[str, ...], *values: ArrayLike) -> Arrays:
    """JAX arrays of NumPy arrays and lists; other values stay, and the checks may refuse them."""
    return tuple(
        _array(name, x) if isinstance(x, (np.ndarray, list, tuple)) else x
        for name, x in zip(names, values, strict=True)
    )


def _array(name: str, value: ArrayLike) -> jax.Array:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        # JAX would take the lower 32 bits, so that a number out of range could become a valid one.
        bounds = np.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
        value = value.clip(bounds.min, bounds.max)
    try:
        return jnp.asarray(value)
    except OverflowError:  # JAX does not cut off integers of a list
        checks.within_64_bits(name, value)
        return _array(name, np.asarray(value))


def integers_of(
    targets: ArrayLike, logit_lengths: ArrayLike, target_lengths: ArrayLike, band: BandLike
) -> Arrays:
    """Targets and lengths and, if there is a band, its first positions and widths."""
    integers = arrays_of(INTEGERS, targets, logit_lengths, target_lengths)
    if band is None:
        return integers
    first, width = checks.pair("band", band)
    if checks.is_scalar(width):
        most = np.iinfo(np.int32).max
        width = np.full(np.shape(first)[:1], max(min(checks.integer("band[1]", width), most), 0))
    return (*integers, *arrays_of(("band[0]", "band[1]"), first, width))


def stand_ins(kind: type[Loss], inputs: Arrays, integers: Arrays) -> dict[str, Any]:
    """NumPy arrays without memory, of valid lengths, for the checks of shapes and dtypes."""

    def stand_in(value: Any, entry: int) -> Any:
        if not isinstance(value, jax.Array):
            return value
        return np.broadcast_to(np.full((), entry, value.dtype), value.shape)

    named = zip((*kind.names, *INTEGERS), (*inputs, *integers), strict=False)
    arrays = {name: stand_in(value, name == "logit_lengths") for name, value in named}
    band = integers[len(INTEGERS) :]
    return arrays | {"band": tuple(map(stand_in, band, (0, 1))) or None}


def seeds_of(options: Any, encoder_out: ArrayLike) -> Arrays:
    """The seed of each sample, (B,), if the seed among the options is an array: it is taken out."""
    seed = options.get("seed")
    if not isinstance(seed, jax.Array):
        return ()
    if seed.shape != () or not jnp.issubdtype(seed.dtype, jnp.integer):
        raise TypeError(
            f"seed has shape {seed.shape} and dtype {seed.dtype}, but a single integer is needed"
        )
    del options["seed"]
    return (jnp.broadcast_to(seed, encoder_out.shape[:1]),)
