"""What arguments must be, and what an error says when they are not.

The error of a check names the argument, the index, the value and what is needed. All checks run
before any output is touched.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from . import dlpack
from .ops import is_on_cuda, on_host
from .ops.types import FLOATING_DTYPES, ArrayLike, DeviceArray, HostArray, Shape
from .topology import boolean as boolean
from .topology import integer as integer

CELL_LIMIT = 2**62


def _array(name: str, value: ArrayLike) -> DeviceArray:
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return value
    if is_on_cuda(value):
        return value
    if isinstance(value, (list, tuple)):
        try:
            return np.asarray(value)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"{name} cannot be made an array: {error}") from None
    kind = f"{name} is a {type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        raise TypeError(
            f"{kind}, but a numpy.ndarray, a cupy.ndarray, another array with __dlpack__ or a list "
            "is needed"
        )
    adapter = dlpack.adapter_needed(value)
    if adapter is not None:
        raise TypeError(f"{kind} that is differentiated or traced: use {adapter} for that")
    try:
        return dlpack.imported(value)
    except (AttributeError, BufferError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason, *_ = str(error).split("\n")
        raise (ImportError if isinstance(error, ImportError) else TypeError)(
            f"{kind} that DLPack cannot pass on: {reason}"
        ) from error


def _shape_text(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def rank(name: str, array: DeviceArray, *forms: Sequence[str]) -> Sequence[str]:
    """The axes of an array by name, which are those of one of several forms."""
    axes = next((form for form in forms if len(form) == array.ndim), None)
    if axes is None:
        raise ValueError(
            f"{name} has {array.ndim} dimensions {_shape_text(array.shape)}, "
            f"but {' or '.join(map(_shape_text, forms))} is needed"
        )
    return axes


def not_empty(name: str, array: DeviceArray, axes: Sequence[str]) -> None:
    """The first axes of an array, those that have a name, are not empty."""
    for axis, extent in zip(axes, array.shape, strict=False):
        if extent == 0:
            raise ValueError(f"{name} has shape {_shape_text(array.shape)}: axis {axis} is empty")


def packed_rows(name: str, array: DeviceArray, cells: int) -> None:
    """A packed array has a row for each cell of the batch."""
    rows, width = array.shape
    if rows != cells:
        raise ValueError(
            f"{name} has shape {_shape_text(array.shape)}, but {_shape_text((cells, width))} is "
            "needed: packed logits have a row for each cell, sum(logit_lengths * (target_lengths + "
            "1)) in all"
        )


def floats(
    name: str, value: ArrayLike, *forms: Sequence[str], dtype: np.dtype | None = None
) -> DeviceArray:
    """An array of a supported floating dtype (of `dtype`, if given) with the axes of a form."""
    array = _array(name, value)
    axes = rank(name, array, *forms)
    if array.dtype.name not in FLOATING_DTYPES:
        raise TypeError(
            f"{name} has dtype {array.dtype}, but one of {', '.join(FLOATING_DTYPES)} is needed"
        )
    if not array.dtype.isnative:
        raise TypeError(f"{name} has dtype {array.dtype.str}, but native byte order is needed")
    if dtype is not None and array.dtype != dtype:
        raise TypeError(
            f"{name} has dtype {array.dtype}, but {dtype} is needed, as of the first argument"
        )
    not_empty(name, array, axes)
    return array


def same_device(**arrays: DeviceArray | None) -> None:
    """All arrays are on the device of the first one; None may stand for any of them."""
    (first, expected), *rest = (
        (name, _place(array)) for name, array in arrays.items() if array is not None
    )
    for name, place in rest:
        if place != expected:
            raise ValueError(f"{name} is on {place}, but {first} is on {expected}")


def _place(array: DeviceArray) -> str:
    return f"device {array.device.id}" if is_on_cuda(array) else "the CPU"


def shape(name: str, array: DeviceArray, expected: Shape) -> None:
    if array.shape != expected:
        raise ValueError(
            f"{name} has shape {_shape_text(array.shape)}, "
            f"but {_shape_text(expected)} is needed to match the other arguments"
        )


def batch_first(
    name: str, array: DeviceArray, targets: DeviceArray, positions: int | None = None
) -> None:
    """Refuse an array that is time-major beside targets (B, U), or whose axis `positions` has U
    entries in the place of U + 1. Other checks refuse other shapes."""
    if targets.ndim != 2:
        return
    size, labels = targets.shape
    needed, reasons = list(array.shape), []
    if needed[0] != size == needed[1]:
        needed[:2] = needed[1], needed[0]
        reasons.append("samples are the first axis")
    if positions is not None and needed[positions] == labels:
        needed[positions] = labels + 1
        reasons.append("U labels have U + 1 positions, the first of them before any label")
    fits = needed[0] == size and (positions is None or needed[positions] == labels + 1)
    if reasons and fits:
        raise ValueError(
            f"{name} has shape {_shape_text(array.shape)}, but {_shape_text(needed)} is needed to "
            f"match targets of shape {_shape_text(targets.shape)}: {', and '.join(reasons)}"
        )


def output_layer(weight: DeviceArray, hidden_size: int) -> None:
    """A weight is (V, H)."""
    rows, columns = weight.shape
    if columns != hidden_size == rows:
        raise ValueError(
            f"weight has shape {_shape_text(weight.shape)}, but {_shape_text((columns, rows))} is "
            "needed, (V, H) as in torch.nn.Linear: this looks like the transpose, as the kernel of "
            "a flax.linen.Dense is"
        )
    shape("weight", weight, (rows, hidden_size))


def integers(*arguments: tuple[str, ArrayLike, Shape]) -> list[HostArray]:
    """Arrays on the host, in their own integer dtypes, from names, values and expected shapes."""
    arrays = []
    for name, value, expected in arguments:
        arrays.append(integer_array(name, value))
        shape(name, arrays[-1], expected)
    return on_host(*arrays)


def integer_array(name: str, value: ArrayLike) -> DeviceArray:
    """An array of an integer dtype, wherever it is."""
    array = _array(name, value)
    if isinstance(value, (list, tuple)):
        if array.size == 0 and array.dtype == np.float64:
            return array.astype(np.int64)  # what NumPy makes of an empty list
        if array.dtype.kind not in "iu":
            within_64_bits(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}, but an integer dtype is needed")
    return array


def within_64_bits(name: str, value: Sequence[Any]) -> None:
    """Refuse integers beyond int64, for which libraries take another type, or none."""
    for index, entry in _integers_of(value):
        if not -(2**63) <= entry < 2**63:
            place = ", ".join(map(str, index))
            raise ValueError(
                f"{name}[{place}] is {entry}, but it must be between -2**63 and 2**63 - 1"
            )


def _integers_of(value: Any, index: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], int]]:
    """The integers of nested lists, with their indices."""
    if isinstance(value, int):
        yield index, value
    elif isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            yield from _integers_of(entry, (*index, i))


TOO_LONG = {  # the likely cause of a length that is too large
    "logit_lengths": ": count the frames that the encoder returns",
    "target_lengths": ": count the labels, without a start symbol",
}


def lengths(name: str, array: HostArray, low: int, high: int) -> HostArray:
    """Lengths within ``[low, high]``, as int64."""
    wrong = (array < low) | (array > high)
    if wrong.any():
        b = int(np.argmax(wrong))
        raise ValueError(
            f"{name}[{b}] is {array[b]}, but it must be between {low} and {high}"
            + (TOO_LONG.get(name, "") if array[b] > high else "")
        )
    return array.astype(np.int64)


def pair(name: str, value: Any) -> tuple[ArrayLike, ArrayLike]:
    """First positions and widths."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError(f"{name} is {value!r}, but a pair (first, width) or None is needed")
    first, width = value
    return first, width


def is_scalar(value: Any) -> bool:
    """Whether a value has no axes: whether it is a number, if it is right."""
    return not isinstance(value, (list, tuple)) and not getattr(value, "ndim", 0)


def band(value: Any, size: int, frames: int) -> list[tuple[str, ArrayLike, Shape]]:
    """The two parts of a band, as :func:`integers` takes them."""
    first, width = pair("band", value)
    if is_scalar(width):
        width = np.full(size, max(min(integer("band[1]", width), 2**62), -(2**62)))
    return [("band[0]", first, (size, frames)), ("band[1]", width, (size,))]


def within_band(
    band: list[HostArray], frames: HostArray, labels: HostArray
) -> tuple[HostArray, HostArray]:
    """First positions exist in all frames of a sample, and widths are 1 at least, as int64."""
    first, width = band
    valid = np.arange(first.shape[1]) < frames[:, None]
    outside = valid & ((first < 0) | (first > labels[:, None]))
    if outside.any():
        b, t = np.unravel_index(np.argmax(outside), first.shape)
        raise ValueError(
            f"band[0][{b}, {t}] is {first[b, t]}, but it must be between 0 and {labels[b]}, the "
            "labels of the sample"
        )
    for sample, w in enumerate(width.tolist()):
        if w < 1:
            raise ValueError(f"band[1] is {w} in sample {sample}, but it must be at least 1")
    widths = [min(w, 2**62) for w in width.tolist()]  # which may be unsigned
    return np.where(valid, first, 0).astype(np.int64), np.array(widths)


def cell_count(frames: HostArray, positions: HostArray) -> None:
    """The number of cells, and with it every offset, fits 64 bits."""
    count = sum(map(operator.mul, frames.tolist(), positions.tolist()))
    if count > CELL_LIMIT:
        raise ValueError(f"the batch has {count} cells, but at most 2**62 can be numbered")


def seed(name: str, value: Any) -> int:
    """An integer of at most 63 bits."""
    result: int = integer(name, value)
    if not 0 <= result < 2**63:
        raise ValueError(f"{name} is {result}, but it must be between 0 and {2**63 - 1}")
    return result


def number(name: str, value: Any, low: float = -math.inf, below: float = math.inf) -> float:
    """A finite number with ``low <= value < below``."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, but a number is needed")
    try:
        result = float(value)
    except OverflowError:  # an int beyond any float
        result = math.inf
    if not low <= result < below or math.isinf(result):
        limits = [f"at least {low:g}"] if low > -math.inf else []
        limits += [f"below {below:g}"] if below < math.inf else []
        raise ValueError(f"{name} is {value!r}, but it must be {' and '.join(['finite', *limits])}")
    return result


def writeable(name: str, value: ArrayLike, array: DeviceArray) -> None:
    """An argument can be overwritten through `array`, a view of its memory."""
    if isinstance(value, (list, tuple)):
        raise TypeError(
            f"{name} is a {type(value).__name__}, but an array is needed to overwrite it"
        )
    if is_on_cuda(array):  # CuPy marks no array as read-only
        read_only = array is not value and dlpack.is_read_only(value)
    else:
        read_only = not array.flags.writeable
    if read_only:
        raise ValueError(f"{name} is read-only, but a writeable array is needed to overwrite it")
    reach = array.itemsize  # bytes that the axes so far extend over
    for stride, extent in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if extent > 1 and stride < reach:
            raise ValueError(f"{name} has elements that share memory, and cannot be overwritten")
        reach += stride * (extent - 1)


def callback(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{name} is {value!r}, but a callable, True or None is needed")
    return value


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}, but one of {', '.join(choices)} is needed")
    return value


def cost_weights(value: ArrayLike, size: int, dtype: np.dtype) -> HostArray:
    """Upstream gradients of the costs, (B,), as float64; each is finite in `dtype`, too."""
    array = _array("cost_weights", value)
    shape("cost_weights", array, (size,))
    if array.dtype.kind not in "iuf" and array.dtype.name not in FLOATING_DTYPES:
        raise TypeError(f"cost_weights has dtype {array.dtype}, but a real dtype is needed")
    (array,) = on_host(array)
    weights = array.astype(np.float64)
    wrong = ~(abs(weights) <= np.finfo(dtype).max)
    if wrong.any():
        b = int(np.argmax(wrong))
        raise ValueError(f"cost_weights[{b}] is {array[b]}, but it must be finite in {dtype}")
    return weights
