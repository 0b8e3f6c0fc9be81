"""What runs in the middle of a jitted JAX function: the losses, on its device buffers in place.

XLA calls in a thread of each device, with buffers of arguments to read and of results to write.
Under ``jax.vmap`` all buffers have the same number of additional leading axes, of extent 1 where
nothing is mapped (``vmap_method="expand_dims"``). No function of JAX may be called here: it could
wait for the very computation that waits for this callback.
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
from ..engine.scores import Scores
from ..ops.cuda.launch import cupy
from ..ops.types import DeviceArray, HostArray, JointInputs, Shape
from ..options import Options
from ..results import JointGradients, reduced, weights_of

_LOG = logging.getLogger("cupy_rnnt")
_CPU = 1  # DLPack's number of the kind of device
Arrays = tuple[DeviceArray, ...]
_View = Callable[[DeviceArray], DeviceArray]


@dataclass(frozen=True)
class Loss:
    """A loss with its options, which is the callback itself. JAX compiles equal losses once."""

    options: Options

    names: ClassVar[tuple[str, ...]]
    """The names of the inputs."""
    rank: ClassVar[int]
    """The number of axes of the first input."""
    batched: ClassVar[int]
    """How many inputs have an entry for each sample; the rest are parameters."""

    def checked(self, arguments: dict[str, Any]) -> Any:
        """The validated call."""
        raise NotImplementedError

    def source(self, call: Any, gradients: Arrays | None) -> Any:
        """The source of the logits, which writes to `gradients`, if any."""
        raise NotImplementedError

    def shapes(self, inputs: Any, integers: Any) -> tuple[Shape, ...]:
        """Of the results."""
        return (integers[1].shape if self.options.reduction == "none" else (),)

    @property
    def mixes(self) -> bool:
        """Whether a sample depends on the other samples of its batch, or on its number there."""
        return self.options.dropout > 0

    def __call__(
        self, context: Any, results: Any, inputs: Any, integers: Any, weights: Any
    ) -> None:
        """What ``jax.experimental.buffer_callback`` calls.

        Parameters
        ----------
        context : jax.experimental.buffer_callback.ExecutionContext
        results : tuple
            Results, the loss first, and gradients of the inputs; what is None is not computed.
        inputs, integers : tuple
            Floating arguments; targets, lengths and, unless the options have it, the seed of each
            sample, the same for all.
        weights : shape (B,), or None
            Weights of the costs; None for those that follow from the reduction.
        """
        try:
            with _current(context, inputs[0]) as view:
                values, gradients = results
                self._compute_mapped(
                    tuple(map(view, values)),
                    gradients and tuple(map(view, gradients)),
                    tuple(map(view, inputs)),
                    tuple(map(view, integers)),
                    view(weights),
                )
        except BaseException as error:
            # JAX may never report the error: in a collective operation, the other devices wait for
            # this one until XLA aborts the process.
            _LOG.error("%s: %s", type(error).__name__, error)
            raise

    def _compute_mapped(
        self,
        results: Arrays,
        gradients: Arrays | None,
        inputs: Arrays,
        integers: Arrays,
        weights: DeviceArray,
    ) -> None:
        """Compute all instances that ``vmap`` made: as one batch, if they share the parameters, and
        the gradients of these, if there are any. With dropout each is a call, as the number of a
        sample in its batch says what is dropped; and so it is where a loss mixes samples."""
        count = inputs[0].ndim - self.rank
        mapped = (*results, *(gradients or ()))[0].shape[:count]
        parameters = (inputs if gradients is None else gradients)[self.batched :]

        def compute(mapped: Shape, results: Arrays, rows: _View, parameter: _View) -> None:
            def split(arrays: Arrays) -> Arrays:
                batched = map(rows, arrays[: self.batched])
                return *batched, *map(parameter, arrays[self.batched :])

            into = gradients and split(gradients)
            labels_and_lengths = tuple(map(rows, integers))
            self._compute(mapped, results, into, split(inputs), labels_and_lengths, rows(weights))

        is_shared = all(prod(x.shape[:count]) == 1 for x in parameters if x is not None)
        if is_shared and not (mapped and self.mixes):
            compute(mapped, results, partial(_merged, mapped), partial(_without_axes, count))
            return
        for index in np.ndindex(mapped):
            pick = partial(_picked, index)
            compute((), tuple(map(pick, results)), pick, pick)

    def _named(self, inputs: Arrays, integers: Arrays) -> dict[str, Any]:
        """All arguments of the call, by name."""
        count = len(INTEGERS)
        lattice, rest = integers[:count], integers[count:]
        band, seeds = (rest[:2], rest[2:]) if len(rest) > 1 else ((), rest)
        named = dict(zip((*self.names, *INTEGERS), (*inputs, *lattice), strict=True))
        named |= self.options.values() | {"band": band or None}
        if seeds:
            named["seed"] = int(seeds[0][0])
        return named

    def _compute(
        self,
        mapped: Shape,
        results: Arrays,
        gradients: Arrays | None,
        inputs: Arrays,
        integers: Arrays,
        weights: DeviceArray,
    ) -> None:
        call = self.checked(self._named(inputs, integers))
        source = self.source(call, gradients)
        labels = call.batch.label_counts.reshape(*mapped, -1)
        if gradients is not None:
            weights = self._weights(weights, labels, source.dtype)
        costs = run(source, call.batch, call.options, weights).costs
        if results:
            if isinstance(source, LogitsSource):
                logits_front.warn_if_misnamed(source)
            results[0][...] = self._reduced(costs, labels, source.dtype)

    def _weights(self, weights: DeviceArray, labels: HostArray, dtype: np.dtype) -> DeviceArray:
        """Weights of all costs, float64, (n,): those from above or those of the reduction."""
        if weights is None:
            return weights_of(self.options.reduction, None, labels, dtype).reshape(-1)
        return weights.astype(np.float64)

    def _reduced(self, costs: DeviceArray, labels: HostArray, dtype: np.dtype) -> DeviceArray:
        """The loss of each instance, of costs (n,) and label counts (*mapped, B)."""
        return reduced(costs.reshape(labels.shape), self.options.reduction, labels, dtype)


class LogitsLoss(Loss):
    """The loss of given logits."""

    names = ("logits",)
    rank = 4
    batched = 1

    def checked(self, arguments: dict[str, Any]) -> logits_front.LogitsCall:
        return logits_front.checked(**arguments)

    def source(self, call: logits_front.LogitsCall, gradients: Arrays | None) -> LogitsSource:
        gradient = None
        if gradients is not None:
            (gradient,) = gradients
            gradient.fill(0)
        return call.source(gradient)


class PackedLogitsLoss(LogitsLoss):
    """The loss of packed logits, (cells, V)."""

    rank = 2


class JointLoss(Loss):
    """The loss of a joint network."""

    names = JointInputs._fields
    rank = 3
    batched = 2

    def checked(self, arguments: dict[str, Any]) -> joint.JointCall:
        return joint.checked(**arguments)

    def source(self, call: joint.JointCall, gradients: Arrays | None) -> JointSource:
        out = None if gradients is None else JointGradients(*gradients)
        return call.source(out is not None, out)


class JointScores(JointLoss):
    """The scores of the cells of a joint network, in the place of a loss. What comes from above has
    their shape, as weights have that of the costs."""

    def shapes(self, inputs: Any, integers: Any) -> tuple[Shape, ...]:
        encoder_out, predictor_out, *_ = inputs
        count = len(self.options.transducer.topology.scores)
        return ((*encoder_out.shape[:2], predictor_out.shape[1], count),)

    def _compute(
        self,
        mapped: Shape,
        results: Arrays,
        gradients: Arrays | None,
        inputs: Arrays,
        integers: Arrays,
        weights: DeviceArray,
    ) -> None:
        call = self.checked(self._named(inputs, integers))
        source = self.source(call, gradients)
        scores = Scores(source, call.batch, call.options, gradient=gradients is not None)
        if gradients is None:
            (result,) = results
            result.fill(0)
            scores.write(_merged(mapped, result))
        else:
            scores.add_gradient(weights)


# Arrays of instances of vmap; None stays None.


def _merged(mapped: Shape, array: DeviceArray | None) -> DeviceArray | None:
    """An array whose mapped axes are part of the batch axis; a copy if instances share entries."""
    if array is None:
        return None
    size, *rest = array.shape[len(mapped) :]
    if prod(array.shape[: len(mapped)]) < prod(mapped):
        xp = np if isinstance(array, np.ndarray) else cupy()
        array = xp.broadcast_to(array, (*mapped, size, *rest))
    return array.reshape(prod(mapped) * size, *rest)


def _without_axes(count: int, array: DeviceArray | None) -> DeviceArray | None:
    return None if array is None else array.reshape(array.shape[count:])


def _picked(index: tuple[int, ...], array: DeviceArray | None) -> DeviceArray | None:
    if array is None:
        return None
    extents = array.shape[: len(index)]
    places = (i if extent > 1 else 0 for i, extent in zip(index, extents, strict=True))
    return array[(*places, ...)]


# Buffers. Lines marked "GPU" call into the CUDA half of JAX. The tests run these lines against
# stand-ins for its buffers, on an emulated device; they have not run on a GPU.


@contextmanager
def _current(context: Any, buffer: Any) -> Iterator[Callable[[Any], Any]]:
    """Make device and stream of a computation the current ones; yield the function that views its
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


def _numpy(buffer: Any) -> HostArray | None:
    if buffer is None:
        return None
    array = np.asarray(buffer)
    if not buffer.writeable:  # the array does not know
        array.flags.writeable = False
    return array


def _cupy(device: int, buffer: Any) -> DeviceArray | None:
    """Not :func:`cupy.asarray`: it does not know bfloat16 of ``__cuda_array_interface__``."""
    if buffer is None:
        return None
    memory, (address, _) = cupy().cuda, buffer.__cuda_array_interface__["data"]  # GPU
    nbytes = prod(buffer.shape) * buffer.dtype.itemsize
    start = memory.MemoryPointer(memory.UnownedMemory(address, nbytes, buffer, device), 0)
    return cupy().ndarray(buffer.shape, buffer.dtype, start)
