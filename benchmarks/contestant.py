"""One contestant of ``contestants.py`` on one batch, in a process and perhaps a Python of its own.

It prints a line of JSON: seconds, peak memory above the start, loss, errors; or why there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

INPUTS = "encoder_out", "predictor_out", "weight", "bias"
LATTICE = "targets", "logit_lengths", "target_lengths"
BLANK = 0
DURATIONS = 5

Result = tuple[float, list[Any]]
Step = Callable[[float], Result]
"""Loss and the four gradients, for a dropout."""


class Case:
    """A batch, of which `make` makes the arrays of a framework."""

    def __init__(self, arrays: dict[str, np.ndarray], activation: str, transducer: str) -> None:
        self.arrays, self.activation, self.transducer = arrays, activation, transducer

    def first(self, frames: int) -> Case:
        """A small part, to warm up: the first frames of the first sample, and one label."""
        parts = {name: self.arrays[name] for name in ("weight", "bias")}
        parts["encoder_out"] = self.arrays["encoder_out"][:1, :frames]
        parts["predictor_out"] = self.arrays["predictor_out"][:1, :2]
        parts["targets"] = self.arrays["targets"][:1, :1]
        parts["logit_lengths"], parts["target_lengths"] = np.array([frames]), np.array([1])
        return Case(parts, self.activation, self.transducer)


def _torch_step(
    case: Case, loss_of: Callable[..., Any], device: str, dtype: type = np.float32
) -> Step:
    """By autograd; `loss_of` takes leaves, lattice, case and dropout."""
    import torch

    leaves = [
        torch.from_numpy(case.arrays[name].astype(dtype)).to(device).requires_grad_()
        for name in INPUTS
    ]
    lattice = [torch.from_numpy(case.arrays[name]).to(device) for name in LATTICE]

    def step(dropout: float) -> Result:
        for leaf in leaves:
            leaf.grad = None
        loss = loss_of(leaves, lattice, case, dropout)
        loss.backward()
        return float(loss.detach()), [leaf.grad for leaf in leaves]

    return step


def _hidden(leaves: Any, case: Case, dropout: float) -> Any:
    import torch

    activation = getattr(torch, case.activation)
    hidden = activation(leaves[0][:, :, None] + leaves[1][:, None])
    return torch.nn.functional.dropout(hidden, dropout) if dropout else hidden


def _logits(leaves: Any, case: Case, dropout: float) -> Any:
    import torch

    return torch.nn.functional.linear(_hidden(leaves, case, dropout), *leaves[2:])


def _cupy_rnnt(leaves: Any, lattice: Any, case: Case, dropout: float, **options: Any) -> Any:
    import cupy_rnnt
    from cupy_rnnt.torch import joint_rnnt_loss

    transducer = cupy_rnnt.tdt(range(DURATIONS)) if case.transducer == "tdt" else "regular"
    options |= {"activation": case.activation, "dropout": dropout, "transducer": transducer}
    return joint_rnnt_loss(*leaves, *lattice, BLANK, **options)


def _autograd(leaves: Any, lattice: Any, case: Case, dropout: float) -> Any:
    import peers
    import tdt_peer

    logits = _logits(leaves, case, dropout)
    if case.transducer == "regular":
        return peers.loss_of_logits(logits, *lattice, BLANK)
    return tdt_peer.loss_of_logits(logits, *lattice, BLANK, range(DURATIONS))


def _torchaudio(leaves: Any, lattice: Any, case: Case, dropout: float) -> Any:
    from torchaudio.functional import rnnt_loss

    return rnnt_loss(_logits(leaves, case, dropout), *(a.int() for a in lattice), blank=BLANK)


def _warp_transducer(leaves: Any, lattice: Any, case: Case, dropout: float) -> Any:
    from warprnnt_pytorch import rnnt_loss

    logits = _logits(leaves, case, dropout)
    return rnnt_loss(logits, *(a.int() for a in lattice), blank=BLANK).sum()


def _optimized_transducer(leaves: Any, lattice: Any, case: Case, dropout: float) -> Any:
    import torch
    from optimized_transducer import transducer_loss

    rows = []  # without padding
    for i, (frames, labels) in enumerate(zip(*(a.tolist() for a in lattice[1:]), strict=True)):
        pair = leaves[0][i : i + 1, :frames], leaves[1][i : i + 1, : labels + 1]
        rows.append(_hidden(pair, case, dropout).flatten(0, 2))
    logits = torch.nn.functional.linear(torch.cat(rows), *leaves[2:])
    integers = (a.int() for a in lattice)
    return transducer_loss(logits, *integers, blank=BLANK, from_log_softmax=False)


def _fast_rnnt(leaves: Any, lattice: Any, case: Case, dropout: float) -> Any:
    """Its loss of all logits, not the pruned one, which is another loss."""
    import torch
    from fast_rnnt import rnnt_loss

    targets, frames, labels = lattice
    boundary = torch.stack([0 * labels, 0 * labels, labels, frames], dim=1)
    logits = _logits(leaves, case, dropout)
    return rnnt_loss(logits, targets, BLANK, boundary=boundary, reduction="mean")


def _jax(case: Case, device: str) -> Step:
    """Compiled beforehand."""
    import jax
    import jax.numpy as jnp

    targets, frames, labels = (jnp.asarray(case.arrays[name]) for name in LATTICE)
    inputs = tuple(jnp.asarray(case.arrays[name]) for name in INPUTS)
    size, columns = len(frames), inputs[1].shape[1]
    longest, sample = inputs[0].shape[1], jnp.arange(size)
    u = jnp.arange(columns)
    t = jnp.arange(longest + columns - 1)[:, None] - u

    def skewed(values: Any) -> Any:
        inside = (t >= 0) & (t < longest)
        return jnp.where(inside, values[:, t.clip(0, longest - 1), u], -1e30).swapaxes(0, 1)

    def loss(inputs: Any) -> Any:
        encoder_out, predictor_out, weight, bias = inputs
        activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[case.activation]
        hidden = activation(encoder_out[:, :, None] + predictor_out[:, None])
        log_probs = jax.nn.log_softmax(hidden @ weight.T + bias)
        following = jnp.pad(targets, ((0, 0), (0, 1)))[:, None, :, None]
        by_label = jnp.take_along_axis(log_probs, following, axis=3)[..., 0]
        by_blank = log_probs[..., BLANK]

        def move(alpha: Any, scores: Any) -> Any:
            on_blank, on_label = scores
            moved = jnp.pad((alpha + on_label)[:, :-1], ((0, 0), (1, 0)), constant_values=-1e30)
            alpha = jnp.logaddexp(alpha + on_blank, moved)
            return alpha, alpha

        first = jnp.full((size, columns), -1e30).at[:, 0].set(0.0)
        diagonals = skewed(by_blank)[:-1], skewed(by_label)[:-1]
        _, alphas = jax.lax.scan(move, first, diagonals)
        alphas = jnp.concatenate([first[None], alphas])
        final = alphas[frames - 1 + labels, sample, labels]
        return -(final + by_blank[sample, frames - 1, labels]).mean()

    compiled = jax.jit(jax.value_and_grad(loss)).lower(inputs).compile()

    def step(_: float) -> Result:
        value, gradients = compiled(inputs)
        return float(value), list(gradients)

    return step


def _by_torch(loss_of: Callable[..., Any], **options: Any) -> Callable[[Case, str], Step]:
    return lambda case, device: _torch_step(case, loss_of, device, **options)


TRUTH = "float64"
CONTESTANTS: dict[str, Callable[[Case, str], Step]] = {
    TRUTH: _by_torch(partial(_cupy_rnnt, tolerance=0.0), dtype=np.float64),
    "cupy_rnnt": _by_torch(_cupy_rnnt),
    "PyTorch autograd": _by_torch(_autograd),
    "JAX": _jax,
    "torchaudio": _by_torch(_torchaudio),
    "optimized_transducer": _by_torch(_optimized_transducer),
    "warp-transducer": _by_torch(_warp_transducer),
    "fast_rnnt": _by_torch(_fast_rnnt),
}


def _host(gradient: Any) -> np.ndarray:
    return np.asarray(gradient.cpu() if hasattr(gradient, "cpu") else gradient, np.float64)


def _measured(options: argparse.Namespace, case: Case) -> dict[str, Any]:
    import common

    make, on_gpu = CONTESTANTS[options.contestant], options.device == "cuda"
    common.use_threads(options.threads)
    make(case.first(min(8, case.arrays["encoder_out"].shape[1])), options.device)(0.0)
    common.use_threads(options.threads)  # PyTorch is loaded now
    step = make(case, options.device)
    truth = options.folder / "truth.npz"
    if options.contestant == TRUTH:
        loss, gradients = step(0.0)
        named = dict(zip(INPUTS, map(_host, gradients), strict=True))
        np.savez(truth, loss=loss, **named)
        return {"loss": loss}
    peak, (loss, gradients) = (
        _peak_on_gpu(step) if on_gpu else common.peak_resident(partial(step, 0.0))
    )
    with np.load(truth) as exact:
        errors = {"loss": abs(loss / float(exact["loss"]) - 1)}
        for name, gradient in zip(INPUTS, gradients, strict=True):
            difference = np.linalg.norm(_host(gradient) - exact[name])
            errors[name] = float(difference / np.linalg.norm(exact[name]))
    del gradients
    seconds = [_seconds(step, options.dropout, on_gpu) for _ in range(options.repeats)]
    return {
        "seconds": statistics.median(seconds),
        "peak_bytes": peak,
        "loss": loss,
        "errors": errors,
        "samples": seconds,
        "versions": common.versions("numpy", "torch", "torchaudio", "jax"),
    }


def _seconds(step: Step, dropout: float, on_gpu: bool) -> float:
    """On a CPU those of the processor, in which other processes do not count."""
    if not on_gpu:
        start = time.process_time()
        step(dropout)
        return time.process_time() - start
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    step(dropout)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_on_gpu(step: Step) -> tuple[int, Result]:
    """Of what PyTorch's allocator has given away."""
    import torch

    start = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = step(0.0)
    return torch.cuda.max_memory_allocated() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("folder", type=Path, help="with inputs.npz, and truth.npz when it is made")
    for name, kind in {"threads": int, "repeats": int, "dropout": float}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in ("activation", "transducer", "device"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    if options.device == "cpu":  # what cannot be told how many threads to use counts cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    with np.load(options.folder / "inputs.npz") as stored:
        case = Case(dict(stored), options.activation, options.transducer)
    try:
        row = _measured(options, case)
    except ModuleNotFoundError as error:
        row = {"fault": f"not installed: {error.name}"}
    except (RuntimeError, MemoryError, ImportError, OSError) as error:
        row = {"fault": str(error).splitlines()[0][:100]}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
