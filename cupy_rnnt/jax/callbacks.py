"""What runs in the middle of a jitted JAX function: the losses, on its device buffers in place.

XLA calls with the buffers of arguments, to be read, and of results, to be written, in a thread of
each device. Under ``jax.vmap`` all have as many leading axes more, of extent 1 where nothing is
mapped (``vmap_method="expand_dims"``). No function of JAX may be called here: it could wait for the
very computation that waits for us.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import joint
from .. import logits as logits_front
from ..batch import INTEGERS
from ..engine import run
from ..engine.joint_source import JointSource
from ..engine.logits_source import LogitsSource
from ..ops.cuda.launch import cupy
from ..ops.types import JointInputs
from ..options import Options
from ..results import JointGradients, reduced, weights_of

_LOG = logging.getLogger("cupy_rnnt")
_CPU = 1  # as DLPack numbers the kinds of devices


@dataclass(frozen=True)
class Loss:
    """A loss with its options: the callback itself. JAX compiles equal ones once."""

    options: Options

    names: ClassVar[tuple[str, ...]]
    """Of the inputs."""
    rank: ClassVar[int]
    """Axes of the first input."""
    batched: ClassVar[int]
    """How many inputs have an entry for each sample; the others are parameters."""

    def checked(self, arguments: dict[str, Any]) -> Any:
        """The validated call."""
        raise NotImplementedError

    def source(self, call: Any, gradients: Any) -> Any:
        """Of the logits; their gradient goes to `gradients`, if there are any."""
        raise NotImplementedError

    def __call__(
        self, context: Any, results: Any, inputs: Any, integers: Any, weights: Any
    ) -> None:
        """What ``jax.experimental.buffer_callback`` calls.

        Parameters
        ----------
        context : jax.experimental.buffer_callback.ExecutionContext
        results : tuple
            Loss and gradients of the inputs. Either may be None, which is not wanted.
        inputs, integers : tuple
            Floating arguments; targets and lengths.
        weights : shape (B,), or None
            Of the costs. None are those that follow from the reduction.
        """
        try:
            with _current(context, inputs[0]) as view:
                result, gradients = results
                self._compute_mapped(
                    view(result),
                    gradients and tuple(map(view, gradients)),
                    tuple(map(view, inputs)),
                    tuple(map(view, integers)),
                    view(weights),
                )
        except BaseException as error:
            # Said here, too: in a collective operation of several devices, the others wait for this
            # one until XLA aborts the process.
            _LOG.error("%s: %s", type(error).__name__, error)
            raise

    def _compute_mapped(
        self, result: Any, gradients: Any, inputs: Any, integers: Any, weights: Any
    ) -> None:
        """All instances that ``vmap`` made: as one batch, unless each has parameters of its own, or
        a gradient of them."""
        count = inputs[0].ndim - self.rank
        mapped = (gradients[0] if result is None else result).shape[:count]
        own = inputs if gradients is None else gradients
        if all(prod(x.shape[:count]) == 1 for x in own[self.batched :] if x is not None):
            rows, parameter = partial(_merged, mapped), partial(_without_axes, count)

            def split(arrays: Any) -> Any:
                batched = arrays[: self.batched]
                return *map(rows, batched), *map(parameter, arrays[self.batched :])

            self._compute(
                mapped,
                result,
                gradients and split(gradients),
                split(inputs),
                tuple(map(rows, integers)),
                rows(weights),
            )
            return
        for index in np.ndindex(mapped):
            one = partial(_picked, index)
            self._compute(
                (),
                one(result),
                gradients and tuple(map(one, gradients)),
                tuple(map(one, inputs)),
                tuple(map(one, integers)),
                one(weights),
            )

    def _compute(
        self,
        mapped: tuple[int, ...],
        result: Any,
        gradients: Any,
        inputs: Any,
        integers: Any,
        weights: Any,
    ) -> None:
        named = dict(zip((*self.names, *INTEGERS), (*inputs, *integers), strict=True))
        call = self.checked(named | self.options.values())
        source = self.source(call, gradients)
        reduction = self.options.reduction
        if gradients is not None and weights is None:
            size = call.batch.size // prod(mapped)
            weights = np.tile(weights_of(reduction, None, size, source.dtype), prod(mapped))
        elif gradients is not None:
            weights = weights.astype(np.float64)
        costs = run(source, call.batch, call.options, weights).costs
        if result is not None:
            if isinstance(source, LogitsSource):
                logits_front.warn_if_misnamed(source)
            result[...] = reduced(costs.reshape(*mapped, -1), reduction, source.dtype)


class LogitsLoss(Loss):
    """Of given logits."""

    names = ("logits",)
    rank = 4
    batched = 1

    def checked(self, arguments: dict[str, Any]) -> logits_front.LogitsCall:
        return logits_front.checked(**arguments)

    def source(self, call: logits_front.LogitsCall, gradients: Any) -> LogitsSource:
        gradient = None
        if gradients is not None:
            (gradient,) = gradients
            gradient.fill(0)
        return call.source(gradient)


class JointLoss(Loss):
    """Of a joint network."""

    names = JointInputs._fields
    rank = 3
    batched = 2

    def checked(self, arguments: dict[str, Any]) -> joint.JointCall:
        return joint.checked(**arguments)

    def source(self, call: joint.JointCall, gradients: Any) -> JointSource:
        wanted = gradients is not None
        return call.source(wanted, JointGradients(*gradients) if wanted else None)


# Instances of vmap. Where there is no array, there is none.


def _merged(mapped: tuple[int, ...], array: Any) -> Any:
    """The mapped axes as part of that of the batch; copied only if it is the same for several."""
    if array is None:
        return None
    size, *rest = array.shape[len(mapped) :]
    if prod(array.shape[: len(mapped)]) < prod(mapped):
        xp = np if isinstance(array, np.ndarray) else cupy()
        array = xp.broadcast_to(array, (*mapped, size, *rest))
    return array.reshape(prod(mapped) * size, *rest)


def _without_axes(count: int, array: Any) -> Any:
    return None if array is None else array.reshape(array.shape[count:])


def _picked(index: tuple[int, ...], array: Any) -> Any:
    if array is None:
        return None
    extents = array.shape[: len(index)]
    places = (i if extent > 1 else 0 for i, extent in zip(index, extents, strict=True))
    return array[(*places, ...)]


# Buffers. What is marked "GPU" calls into the CUDA half of JAX; the tests run these lines against
# stand-ins for its buffers, on an emulated device. They have not run on a GPU.


@contextmanager
def _current(context: Any, buffer: Any) -> Iterator[Callable[[Any], Any]]:
    """Makes device and stream of a computation the current ones; gives the function that sees its
    buffers as arrays."""
    kind, number = buffer.__dlpack_device__()
    if kind == _CPU:
        yield _numpy
    else:
        cuda = cupy().cuda
        stream = _Stream(context.stream)  # GPU
        with cuda.Device(number), cuda.Stream.from_external(stream):
            yield partial(_cupy, number)


class _Stream(NamedTuple):
    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


def _numpy(buffer: Any) -> Any:
    if buffer is None:
        return None
    array = np.asarray(buffer)
    if not buffer.writeable:  # which the array does not know
        array.flags.writeable = False
    return array


def _cupy(device: int, buffer: Any) -> Any:
    """Not by :func:`cupy.asarray`, which knows no name for bfloat16 in this protocol."""
    if buffer is None:
        return None
    memory, (address, _) = cupy().cuda, buffer.__cuda_array_interface__["data"]  # GPU
    nbytes = prod(buffer.shape) * buffer.dtype.itemsize
    start = memory.MemoryPointer(memory.UnownedMemory(address, nbytes, buffer, device), 0)
    return cupy().ndarray(buffer.shape, buffer.dtype, start)
