"""The losses as operators of PyTorch, which it can trace, compile and differentiate.

An operator takes tensors (labels and lengths on the host), changes none of them, and returns new
ones. Both losses have the first two operators, and the loss of a joint network has the third:

``forward``
    The reduced loss and, if a gradient will be asked for, the kept cells. The number of kept cells
    depends on the data, so it has no value while PyTorch traces.
``backward``
    The gradients, from the kept cells and the gradient of the loss.
``forward_backward``
    The loss and its gradients at once, which takes less time and keeps no cells. The gradients
    wait, in the dtype of the arithmetic, for the gradient of the loss, which must be one number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from torch import Tensor

from .. import engine, joint
from .. import logits as logits_front
from ..batch import INTEGERS, Batch
from ..engine.logits_source import LogitsSource
from ..engine.sources import Kept, Source
from ..ops.types import DeviceArray, JointInputs
from ..options import JointKeywords, Options
from ..results import Info, JointGradients, divisor, weights_of
from ..transducer import Row, Transducer
from . import cuda
from .registration import operator, refuse_second_derivative

Tensors = list[Tensor]
Results = tuple[Tensor, Tensors, Tensor, Tensor]
"""The loss, kept cells or gradients, the certificate, and the numbers of an :class:`Info`."""

# A SymInt is an integer that may differ from call to call of a compiled function: a seed does.
_SCHEMA_TYPES: dict[Any, str] = {kind: kind.__name__ for kind in (bool, float, str)}
_SCHEMA_TYPES[int] = "SymInt"
_SCHEMA_TYPES |= {int | None: "int?", float | None: "float?", str | Transducer: "str"}
_HINTS = get_type_hints(Options) | get_type_hints(JointKeywords)
OPTIONS = tuple(name for name in _HINTS if name not in ("progress", "return_info"))
"""Keywords that operators take, in the order of their schemas."""

ARGUMENTS = ", ".join(
    [
        "Tensor[] inputs, Tensor targets, Tensor logit_lengths, Tensor target_lengths",
        "Tensor[] band",
        *(f"{_SCHEMA_TYPES[_HINTS[name]]} {name}" for name in OPTIONS),
    ]
)
_KEPT = len(Kept._fields)
_RESULTS = "(Tensor, Tensor[], Tensor, Tensor)"
_NUMBERS = "cells", "computed", "kept", "rounds", "workspace_bytes"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _text(transducer: Any) -> str:  # a compiler asks once and does not look inside
    return str(transducer)


class Arguments(NamedTuple):
    """What all operators of a loss take."""

    inputs: Tensors
    """The logits; or those of :class:`JointInputs`, without a bias that is None."""
    lattice: Tensors
    """Targets, logit lengths and target lengths."""
    options: dict[str, Any]
    band: Sequence[Tensor] = ()
    """First positions and widths; or none."""

    @staticmethod
    def of(flat: Sequence[Any]) -> Arguments:
        """From the arguments of an operator, in the order of its schema."""
        inputs, targets, logit_lengths, target_lengths, band, *options = flat
        lattice = [targets, logit_lengths, target_lengths]
        return Arguments(inputs, lattice, dict(zip(OPTIONS, options, strict=True)), band)

    def flat(self) -> list[Any]:
        options = self.options | {"transducer": _text(self.options["transducer"])}
        return [self.inputs, *self.lattice, list(self.band), *(options[name] for name in OPTIONS)]


class Call(NamedTuple):
    """The validated arguments of an operator, and where its logits come from."""

    batch: Batch
    options: Options
    source: Source
    gradients: Tensors
    """New tensors, which the gradients of the inputs are written to; none if none are wanted."""


def _view(tensor: Tensor, of_host: Callable[[Tensor], Any]) -> DeviceArray:
    """The memory of a tensor as an array of NumPy or, on a GPU, of CuPy."""
    if cuda.is_on_cuda(tensor):
        return cuda.view(tensor)
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return of_host(tensor.view(torch.int16)).view(ml_dtypes.bfloat16)
    return of_host(tensor)


def array(name: str, tensor: Tensor) -> DeviceArray:
    """A view of an argument, to read.

    DLPack makes it: after ``Tensor.numpy`` the storage can never be resized again, and FSDP resizes
    the storage of parameters.
    """
    try:
        return _view(tensor.detach().resolve_neg(), np.from_dlpack)
    except (BufferError, RuntimeError, TypeError) as error:  # a dtype that NumPy lacks
        raise TypeError(
            f"{name} has dtype {tensor.dtype}, which NumPy does not take over: {error}"
        ) from error


def own(tensor: Tensor) -> DeviceArray:
    """A view of a new tensor, to write to."""
    return _view(tensor, Tensor.numpy)


def as_guest(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of an operator as a guest on the device of its inputs, if that is a GPU. Its
    arrays are dead when CuPy gives the memory back."""

    @functools.wraps(function)
    def run(*flat: Any) -> Any:
        (first, *_), *_ = flat
        with cuda.guest_on(first.device) if cuda.is_on_cuda(first) else nullcontext():
            return function(*flat)

    return run


def info(certificate: Tensor, numbers: Tensor) -> Info:
    return Info(certificate=certificate, **dict(zip(_NUMBERS, numbers.tolist(), strict=True)))


# Calls


def _logits_call(arguments: Arguments, gradient: bool, dtype: torch.dtype | None) -> Call:
    logits = array("logits", *arguments.inputs)
    call = logits_front.checked(logits, *lattice_of(arguments), **keywords_of(arguments))
    gradients = [] if dtype is None else [zeros(x, dtype) for x in arguments.inputs]
    source = call.source(own(*gradients) if gradients else None)
    return Call(call.batch, call.options, source, gradients)


def joint_call(arguments: Arguments, gradient: bool, dtype: torch.dtype | None) -> Call:
    names = JointInputs._fields
    inputs = [array(name, x) for name, x in zip(names, arguments.inputs, strict=False)]
    no_bias = [None] * (len(names) - len(inputs))
    call = joint.checked(*inputs, *no_bias, *lattice_of(arguments), **keywords_of(arguments))
    like = [] if dtype is None else arguments.inputs  # which have been checked
    gradients = [torch.empty(x.shape, dtype=dtype, device=x.device) for x in like]
    out = JointGradients(*map(own, gradients), *no_bias) if gradients else None
    return Call(call.batch, call.options, call.source(gradient, out), gradients)


def lattice_of(arguments: Arguments) -> list[DeviceArray]:
    return [array(name, x) for name, x in zip(INTEGERS, arguments.lattice, strict=True)]


def keywords_of(arguments: Arguments) -> dict[str, Any]:
    band = tuple(array(f"band[{i}]", x) for i, x in enumerate(arguments.band))
    return {"band": band or None, **arguments.options}


def weights_from(upstream: Tensor, reduction: str, batch: Batch) -> DeviceArray:
    """Weights of the costs, (B,), from the gradient of the loss."""
    of_cost = upstream.double() / int(divisor(reduction, batch.label_counts))
    return array("upstream", of_cost.expand(batch.size).contiguous())


# Results


def _results(result: engine.Result, device: torch.device, waiting: Tensors) -> Results:
    report = result.info()
    numbers = torch.tensor([getattr(report, name) for name in _NUMBERS], device="cpu")
    certificate = tensor_of(report.certificate, device)
    return tensor_of(result.loss(), device), waiting, certificate, numbers


def tensor_of(array: DeviceArray, device: torch.device) -> Tensor:
    new = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), device=device)
    own(new)[...] = array
    return new


def zeros(like: Tensor, dtype: torch.dtype) -> Tensor:
    if cuda.is_on_cuda(like):
        return torch.zeros(like.shape, dtype=dtype, device=like.device)
    # NumPy takes pages of zeros from the system, where PyTorch would write all of them.
    memory = np.zeros(like.numel() * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(like.shape)


def _joined(parts: list[Kept], inputs: Tensors) -> Tensors:
    """The kept cells of all parts, a tensor a field. `parts` is emptied to free what was copied."""
    count = sum(len(part.packed) for part in parts)
    fields = [list(field) for field in zip(*parts, strict=True)]
    parts.clear()
    joined = []
    for pieces, dtype in zip(fields, _kept_dtypes(inputs), strict=True):
        rows = pieces[0].shape[:-1]
        new = torch.empty(*rows, count, dtype=dtype, device=inputs[0].device)
        view, start = own(new), 0
        while pieces:
            piece = pieces.pop(0)
            view[..., start : start + piece.shape[-1]] = piece
            start += piece.shape[-1]
        joined.append(new)
    return joined


def _kept_dtypes(inputs: Tensors) -> list[torch.dtype]:
    """The dtypes of the fields of :class:`cupy_rnnt.engine.sources.Kept`."""
    return [torch.int64, torch.float64, compute_dtype(inputs)]


def compute_dtype(inputs: Tensors) -> torch.dtype:
    """The dtype of the arithmetic and of the loss."""
    return torch.float64 if inputs[0].dtype == torch.float64 else torch.float32


def _fake_results(arguments: Arguments, waiting: Tensors) -> Results:
    """Tensors with the shapes, dtypes and devices of the results."""
    first, of_costs = arguments.inputs[0], arguments.lattice[1].shape
    of_loss = of_costs if arguments.options["reduction"] == "none" else ()
    return (
        first.new_empty(of_loss, dtype=compute_dtype(arguments.inputs)),
        waiting,
        first.new_empty(of_costs, dtype=torch.float64),
        first.new_empty(len(_NUMBERS), dtype=torch.int64, device="cpu"),
    )


# Operators


def no_gradients(band_count: int) -> list[Any]:
    """Of all shared arguments of operators but the inputs."""
    return [*[None] * len(INTEGERS), [None] * band_count, *[None] * len(OPTIONS)]


class _TwoPhases:
    """Forward and backward pass of one loss."""

    def __init__(self, name: str, call: Callable[..., Call]):
        self._call = call
        self.forward = operator(
            name, f"{ARGUMENTS}, bool keep", _RESULTS, as_guest(self._forward), self._fake_forward
        )
        self.forward.register_autograd(self._differentiated, setup_context=self._save)
        self.backward = operator(
            f"{name}_backward",
            f"{ARGUMENTS}, Tensor[] kept, Tensor upstream",
            "Tensor[]",
            as_guest(self._backward),
            self._fake_backward,
        )
        self.backward.register_autograd(refuse_second_derivative)

    def _forward(self, *flat: Any) -> Results:
        *shared, keep = flat
        arguments = Arguments.of(shared)
        call = self._call(arguments, keep, None)
        cells = engine.KeptCells()
        read_out = cells if keep else engine.Costs()
        result = engine.scan(call.source, call.batch, call.options, read_out)
        if isinstance(call.source, LogitsSource):
            logits_front.warn_if_misnamed(call.source)
        kept = _joined(cells.parts, arguments.inputs) if keep else []
        return _results(result, arguments.inputs[0].device, kept)

    @staticmethod
    def _row(options: dict[str, Any]) -> Row:
        """A row with the heads and scores of the transducer."""
        return Transducer.parse(options["transducer"]).row(0, 0, not options["fused_log_softmax"])

    def _fake_forward(self, *flat: Any) -> Results:
        *shared, keep = flat
        arguments = Arguments.of(shared)
        kept = []
        if keep:
            count = torch.library.get_ctx().new_dynamic_size()
            row = self._row(arguments.options)
            shapes = (count,), (len(row.heads), count), (len(row.columns), count)
            dtypes = _kept_dtypes(arguments.inputs)
            kept = [
                arguments.inputs[0].new_empty(shape, dtype=dtype)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
        return _fake_results(arguments, kept)

    def _save(self, ctx: Any, inputs: Any, output: Results) -> None:
        tensors, *lattice, band = inputs[: 2 + len(INTEGERS)]
        _, kept, certificate, numbers = output
        ctx.mark_non_differentiable(*kept, certificate, numbers)
        ctx.set_materialize_grads(False)
        ctx.count, ctx.options = len(tensors), inputs[2 + len(INTEGERS) : -1]
        ctx.save_for_backward(*tensors, *lattice, *band, *kept)

    def _differentiated(self, ctx: Any, upstream: Tensor | None, *_: None) -> Any:
        saved = list(ctx.saved_tensors)
        inputs, integers, kept = saved[: ctx.count], saved[ctx.count : -_KEPT], saved[-_KEPT:]
        lattice, band = integers[: len(INTEGERS)], integers[len(INTEGERS) :]
        gradients: Any = [None] * len(inputs)
        if upstream is not None:
            gradients = self.backward(inputs, *lattice, band, *ctx.options, kept, upstream)
        return gradients, *no_gradients(len(band)), None

    def _backward(self, *flat: Any) -> Tensors:
        *shared, kept, upstream = flat
        arguments = Arguments.of(shared)
        call = self._call(arguments, True, arguments.inputs[0].dtype)
        weights = weights_from(upstream, call.options.reduction, call.batch)
        cells = Kept(*(array("kept", field) for field in kept))
        engine.backward(call.source, call.batch, call.options, cells, weights)
        return call.gradients

    def _fake_backward(self, *flat: Any) -> Tensors:
        return [x.new_empty(x.shape) for x in flat[0]]


def _joint_forward_backward(*flat: Any) -> Results:
    arguments = Arguments.of(flat)
    call = joint_call(arguments, True, compute_dtype(arguments.inputs))
    weights = weights_of(call.options.reduction, None, call.batch.label_counts, call.source.dtype)
    result = engine.run(call.source, call.batch, call.options, weights)
    return _results(result, arguments.inputs[0].device, call.gradients)


def _fake_joint_forward_backward(*flat: Any) -> Results:
    arguments = Arguments.of(flat)
    dtype = compute_dtype(arguments.inputs)
    return _fake_results(arguments, [x.new_empty(x.shape, dtype=dtype) for x in arguments.inputs])


def _save_gradients(ctx: Any, inputs: Any, output: Results) -> None:
    _, gradients, certificate, numbers = output
    ctx.band_count = len(inputs[1 + len(INTEGERS)])
    ctx.mark_non_differentiable(*gradients, certificate, numbers)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[0], *gradients)


def _scaled_gradients(ctx: Any, upstream: Tensor | None, *_: None) -> Any:
    saved = list(ctx.saved_tensors)
    count = len(saved) // 2
    gradients: Any = [None] * count
    if upstream is not None:
        gradients = _SCALED(saved[count:], saved[:count], upstream)
    return gradients, *no_gradients(ctx.band_count)


def _scaled(gradients: Tensors, inputs: Tensors, upstream: Tensor) -> Tensors:
    """Gradients times the gradient of the loss, in the dtypes of the inputs."""
    pairs = zip(gradients, inputs, strict=True)
    return [(gradient * upstream).to(x.dtype) for gradient, x in pairs]


def _fake_scaled(gradients: Tensors, inputs: Tensors, upstream: Tensor) -> Tensors:
    return [x.new_empty(x.shape) for x in inputs]


LOGITS = _TwoPhases("rnnt_loss", _logits_call)
JOINT = _TwoPhases("joint_rnnt_loss", joint_call)
JOINT_AND_GRAD = operator(
    "joint_rnnt_loss_and_grad",
    ARGUMENTS,
    _RESULTS,
    as_guest(_joint_forward_backward),
    _fake_joint_forward_backward,
)
JOINT_AND_GRAD.register_autograd(_scaled_gradients, setup_context=_save_gradients)
_SCALED = operator(
    "scaled",
    "Tensor[] gradients, Tensor[] inputs, Tensor upstream",
    "Tensor[]",
    _scaled,
    _fake_scaled,
)
_SCALED.register_autograd(refuse_second_derivative)
