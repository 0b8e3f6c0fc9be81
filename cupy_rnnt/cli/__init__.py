"""The command line: the main job on real lengths, memory plans, versions.

python -m cupy_rnnt             loss and gradients of a LibriSpeech batch, checked
python -m cupy_rnnt estimate    the memory that a batch would take, without running it
python -m cupy_rnnt info        versions, CPU and GPU, threads
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from .. import __version__, joint, reference
from ..engine.plan import make_plan
from ..ops import Operations, cuda
from ..ops import numpy as cpu
from ..ops.types import FLOATING_DTYPES, ArrayLike
from ..options import default_tolerance
from ..progress import Progress
from ..results import Info, JointGradients
from . import machine
from .terminal import (
    Parser,
    at_least,
    complain,
    counted,
    digits,
    heading,
    nbytes,
    parse_nbytes,
    progress,
    row,
)

_UTTERANCES = 256
_BLANK = 0
_CHECKED_SAMPLES = 3
_CHECKED_PRODUCTS = 5e9  # cells times V times H: a few seconds of the reference
_RUN = """\
Compute the RNN-transducer loss of a joint network and all its gradients, and check some of them.

Lengths are real: encoder frames (25 a second) and labels (500 BPE units) of utterances of
LibriSpeech train-clean-100, from the public project csukuangfj/transducer-loss-benchmarking
(Apache-2.0). Values are random, as of a network that has learned nothing yet."""
_COMMANDS = """\
other commands (with --help for their options):
  estimate    print the memory that a batch of any size takes, without running it
  info        print versions, CPU and GPU, threads"""
_ESTIMATE = """\
Print the memory that loss and gradients of a joint network take on the CPU, without computing or
allocating them. There are as many workers as a call would have on this machine."""
_COUNTS = {  # least value, help
    "batch": (1, "samples B"),
    "frames": (1, "frames T of each sample"),
    "labels": (0, "labels U of each sample"),
    "vocab": (2, "entries V of the vocabulary, the blank included"),
    "hidden": (1, "hidden size H of the joint network"),
    "seed": (0, "of the random values"),
}


def librispeech_lengths(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and labels of the first `size` of the 256 LibriSpeech utterances in the package."""
    with files("cupy_rnnt").joinpath("data/librispeech_shapes.csv").open() as text:
        table = np.loadtxt(text, np.int64, delimiter=",", skiprows=1, max_rows=size, ndmin=2)
    return table[:, 0], table[:, 1]


class _Inputs(NamedTuple):
    """Arguments of ``joint_rnnt_loss``, in order, up to ``blank``."""

    encoder_out: np.ndarray
    predictor_out: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    targets: np.ndarray
    logit_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int = _BLANK

    @property
    def cells(self) -> np.ndarray:
        """The number of cells of each sample."""
        count: np.ndarray = self.logit_lengths * (self.target_lengths + 1)
        return count

    def part(self, samples: np.ndarray) -> _Inputs:
        ragged = self._asdict()
        del ragged["weight"], ragged["bias"], ragged["blank"]
        return self._replace(**{name: array[samples] for name, array in ragged.items()})


def _fresh(args: argparse.Namespace) -> _Inputs:
    """A freshly initialised joint network on the first LibriSpeech lengths."""
    rng = np.random.default_rng(args.seed)
    frames, labels = librispeech_lengths(args.batch)

    def normal(scale: float, *shape: int) -> np.ndarray:
        array = rng.standard_normal(shape, np.float32)
        array *= np.float32(scale)
        return array.astype(_dtype(args.dtype), copy=False)

    return _Inputs(
        normal(1.0, args.batch, frames.max(), args.hidden),
        normal(1.0, args.batch, labels.max() + 1, args.hidden),
        normal(0.1, args.vocab, args.hidden),
        normal(0.1, args.vocab),
        rng.integers(_BLANK + 1, args.vocab, (args.batch, labels.max())),
        frames,
        labels,
    )


def _run(args: argparse.Namespace) -> int:
    if args.batch > _UTTERANCES:
        raise ValueError(f"--batch is {args.batch}, but there are {_UTTERANCES} utterances")
    ops = _operations(args.device)
    inputs = _fresh(args)
    _print_batch(inputs, args, machine.gpu() if ops is cuda else machine.cpu())
    on_device = _Inputs(*map(ops.asarray, inputs[:-1]))

    def call(report: Progress | None) -> tuple[float, Any, Any, Info]:
        start = time.perf_counter()
        costs, gradients, info = joint.joint_rnnt_loss_and_grad(
            *on_device,
            reduction="none",
            max_workspace_bytes=args.max_workspace_bytes,
            progress=report,
            return_info=True,
        )
        ops.host(costs)  # waits for the GPU
        return time.perf_counter() - start, costs, gradients, info

    first_seconds = call(None)[0] if ops is cuda else None
    with progress() as report:
        seconds, costs, gradients, info = call(report)
    costs, *gradients = ops.host(costs, *gradients)
    _print_results(inputs, costs, info, seconds, first_seconds)
    _print_memory(inputs, info.workspace_bytes, args.max_workspace_bytes, ops)
    return _check(inputs, costs, JointGradients(*gradients))


def _operations(device: str) -> Operations:
    """The operations of the device that ``--device`` names."""
    fault = None if device == "cpu" else machine.gpu_fault()
    if fault and device == "cuda":
        raise ValueError(fault)
    return cpu if fault or device == "cpu" else cuda


def _print_batch(inputs: _Inputs, args: argparse.Namespace, place: str) -> None:
    frames, labels = inputs.logit_lengths, inputs.target_lengths
    padded = args.batch * frames.max() * (labels.max() + 1)
    print(f"cupy_rnnt {__version__} on {place}")
    heading("Batch with the lengths of LibriSpeech utterances (25 frames a second, 500 BPE units)")
    row("samples B", f"{args.batch}")
    row("frames T", f"{frames.min()} to {frames.max()}")
    row("labels U", f"{labels.min()} to {labels.max()}")
    row("vocabulary V, hidden H", f"{args.vocab}, {args.hidden}")
    row("values", f"{args.dtype}, random, seed {args.seed}")
    row("lattice cells", f"{inputs.cells.sum():,} ({padded:,} with padding)")


def _print_results(
    inputs: _Inputs, costs: np.ndarray, info: Info, seconds: float, first_seconds: float | None
) -> None:
    low, middle, high = np.min(costs), np.median(costs), np.max(costs)
    dropped = default_tolerance(inputs.weight.dtype)
    heading("Loss and gradients of encoder_out, predictor_out, weight and bias")
    row("cost per sample", f"{low:,.1f} / {middle:,.1f} / {high:,.1f} nats (min / median / max)")
    row("time", f"{seconds:.3f} s, {info.cells / seconds:,.0f} cells a second")
    if first_seconds is not None:
        row("", f"({first_seconds:.3f} s the first time: kernels are compiled and loaded)")
    rounds = counted(info.rounds, "round")
    row(
        "cells computed",
        f"{info.computed:,}, {info.computed / info.cells:.1%} of all, in {rounds};",
    )
    row("", f"the others add {float(info.certificate.max()):.0e} to a probability at most")
    row("cells kept", f"{info.kept:,} for the gradients, {info.kept / info.cells:.1%} of all;")
    row("", f"the others hold {dropped:.0e} of the posterior mass at most")


def _print_memory(inputs: _Inputs, workspace: int, most: int | None, ops: Operations) -> None:
    """The workspace, and the logits and gradient that batched computation needs instead."""
    size, frames, positions = *inputs.encoder_out.shape[:2], inputs.predictor_out.shape[1]
    logits = size * frames * positions * len(inputs.weight) * inputs.weight.itemsize
    budget = ops.workspace_bytes() if most is None else most
    row("workspace", f"{nbytes(workspace)} planned, {nbytes(budget)} allowed")
    row("batched computation", f"{nbytes(logits)} of logits + {nbytes(logits)} of gradient")
    row("", f"= {nbytes(2 * logits)}, {digits(2 * logits / workspace)} times the workspace")


def _check(inputs: _Inputs, costs: np.ndarray, gradients: JointGradients) -> int:
    """Compare the shortest samples with the reference; return the exit status."""
    samples = np.argsort(inputs.cells, kind="stable")[:_CHECKED_SAMPLES]
    affordable = np.cumsum(inputs.cells[samples]) * inputs.weight.size <= _CHECKED_PRODUCTS
    samples = samples[: max(1, np.count_nonzero(affordable))]
    checked = counted(len(samples), "shortest sample")
    heading(f"Check of the {checked} against cupy_rnnt.reference, in float64")
    part = inputs.part(samples)
    expected_costs, expected = reference.joint_rnnt_loss_and_grad(*part, reduction="none")
    tolerances = _tolerances(part, float(np.max(expected_costs)))
    compared = [("cost", costs, expected_costs, tolerances[0])]
    for name in ("encoder_out", "predictor_out"):
        pair = getattr(gradients, name), getattr(expected, name)
        compared.append((f"gradient of {name}", *pair, tolerances[1]))
    failed = []
    for name, result, truth, tolerance in compared:
        error = _relative_error(result[samples], truth)
        passed = error <= tolerance  # false for NaN
        verdict = "ok" if passed else "FAILED"
        row(name, f"{error:.1e} relative error, {tolerance:.1e} allowed: {verdict}")
        failed += [] if passed else [name]
    return complain(f"the check of {', '.join(failed)} failed", 1) if failed else 0


def _relative_error(result: np.ndarray, truth: ArrayLike) -> float:
    """The largest relative error of a sample, in the Euclidean norm."""
    rows = np.reshape(truth, (len(result), -1))
    difference = result.astype(np.float64).reshape(rows.shape) - rows
    return float(np.max(np.linalg.norm(difference, axis=1) / np.linalg.norm(rows, axis=1)))


def _tolerances(inputs: _Inputs, cost: float) -> tuple[float, float]:
    """The largest relative errors that costs and gradients may have.

    Rounding moves a logit, a dot product of H terms, by about ``sqrt(H)`` unit round-offs, and the
    float64 lattice rounds numbers as large as the cost. The cost is the sum of its transitions, so
    that relative errors do not grow. An occupancy is the exponential of such a sum: T + U
    independent errors along a path add up to ``sqrt(T + U)`` times a single error. Gradients are
    rounded once more, to their dtype. The factor 4 is the margin of these estimates.
    """
    dtype = inputs.weight.dtype
    steps = math.sqrt(np.max(inputs.logit_lengths + inputs.target_lengths))
    logit = math.sqrt(inputs.weight.shape[1]) * default_tolerance(dtype)
    lattice = default_tolerance(np.dtype(np.float64))
    stored = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype.name, 0.0)
    return 4 * (logit + steps * lattice), 4 * steps * (logit + cost * lattice) + stored


def _estimate(args: argparse.Namespace) -> int:
    size, frames, labels, hidden = args.batch, args.frames, args.labels, args.hidden
    dtype = _dtype(args.dtype)
    # A plan reads no values. These arrays take no memory: they repeat one element, or their pages
    # are never written to.
    inputs = _Inputs(
        np.broadcast_to(np.zeros((), dtype), (size, frames, hidden)),
        np.broadcast_to(np.zeros((), dtype), (size, labels + 1, hidden)),
        np.zeros((args.vocab, hidden), dtype),
        np.zeros(args.vocab, dtype),
        np.broadcast_to(np.int64(_BLANK + 1), (size, labels)),
        np.full(size, frames),
        np.full(size, labels),
    )
    call = joint.checked(
        *inputs[:-1], blank=inputs.blank, max_workspace_bytes=args.max_workspace_bytes
    )
    source = call.source(gradient=True)
    plan = make_plan(source, call.batch, call.options, gradient=True, store=True)
    largest = max(group.stop - group.start for group in plan.groups)
    print("Memory of joint_rnnt_loss_and_grad, planned and not allocated")
    row("batch", f"B = {size}, T = {frames}, U = {labels}, V = {args.vocab}, H = {hidden}")
    row("dtype", args.dtype)
    row("lattice cells", f"{call.batch.cell_count:,}")
    row("inputs", nbytes(sum(array.nbytes for array in inputs[:-1])))
    row("gradients", nbytes(sum(array.nbytes for array in inputs[:4])))
    _print_memory(inputs, plan.workspace_bytes, args.max_workspace_bytes, source.ops)
    heading("What fills the workspace")
    row("workers", f"{plan.workers}")
    row("tile", f"{counted(plan.rows, 'row')}, one tile a worker")
    row("groups of samples", f"{len(plan.groups):,}, of at most {counted(largest, 'sample')}")
    row("rows of logits stored", f"{plan.stored:,}")
    return 0


def _info(_: argparse.Namespace) -> int:
    print(f"cupy_rnnt {__version__}")
    machine.print_report()
    return 0


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        if find_spec("ml_dtypes") is None:
            raise ValueError("--dtype bfloat16 needs the package ml_dtypes")
        import ml_dtypes  # noqa: F401, which makes bfloat16 a dtype of NumPy
    return np.dtype(name)


def _parser(
    command: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
    epilog: str | None = None,
    **counts: int,
) -> Parser:
    """The parser of a command; `counts` are the defaults of its options in ``_COUNTS``."""
    parser = Parser(
        prog=f"python -m cupy_rnnt {command}".rstrip(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    for name, default in counts.items():
        least, text = _COUNTS[name]
        text, kind = f"{text} (default: {default})", at_least(least)
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=text)
    if counts:
        text = "of inputs and gradients (default: float32)"
        parser.add_argument("--dtype", choices=FLOATING_DTYPES, default="float32", help=text)
        parser.add_argument(
            "--max-workspace-bytes",
            type=parse_nbytes,
            metavar="BYTES",
            help="for example 50000000, 64MiB or 1.5GiB (default: 256MiB; for a GPU a 32nd of its "
            "memory, and at least 1GiB)",
        )
    return parser


def _parsers() -> dict[str, Parser]:
    """The parsers by command; the name of the main job is empty."""
    run = _parser("", _run, _RUN, _COMMANDS, batch=16, vocab=500, hidden=512, seed=0)
    text = "auto is a GPU that can be used, or else the CPU (default: auto)"
    run.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=text)
    run.add_argument("--version", action="version", version=f"cupy_rnnt {__version__}")
    estimate = _parser(
        "estimate",
        _estimate,
        _ESTIMATE,
        batch=1024,
        frames=1000,
        labels=200,
        vocab=4096,
        hidden=640,
    )
    info = _parser("info", _info, "Print versions, CPU and GPU, threads.")
    return {"": run, "estimate": estimate, "info": info}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parsers = _parsers()
    command = words.pop(0) if words and words[0] in parsers else ""
    try:
        args = parsers[command].parse_args(words)
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, MemoryError) as error:
        return complain(str(error) or "out of memory", 2)
