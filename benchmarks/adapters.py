"""What do the framework adapters cost beyond the NumPy functions that do their work?

Time of the loss, and of the loss with gradients, of a tiny and of a large joint network, by NumPy
and through each adapter in turn; memory that a training step adds to the process, beside a step on
the padded logits; whether arguments are copied on their way; what compiling takes, and whether it
breaks the graph.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import common
import style
from common import MIB
from matplotlib.figure import Figure
from workloads import WORKLOADS, Joint, fresh

import cupy_rnnt
from cupy_rnnt.engine.joint_source import JointSource

JOINTS = {
    "tiny": lambda: fresh([20, 16], [5, 4], 32, 64),
    "large": WORKLOADS["v1024 fresh"],
}
QUICK = {"tiny": JOINTS["tiny"], "large": lambda: fresh([60, 50], [10, 12], 300, 128)}
LEAST_SECONDS = 0.2  # of a sample, for which short calls are repeated

Row = dict[str, Any]
Cases = dict[str, dict[str, Callable[[], Any]]]


def torch_tensors(joint: Joint) -> tuple[list[Any], list[Any]]:
    import torch

    inputs = [torch.from_numpy(array).requires_grad_() for array in joint[:4]]
    return inputs, [torch.from_numpy(array) for array in joint[4:7]]


def torch_cases(joint: Joint) -> Cases:
    import torch

    from cupy_rnnt.torch import joint_rnnt_loss

    inputs, integers = torch_tensors(joint)

    def loss(*inputs: Any) -> Any:
        return joint_rnnt_loss(*inputs, *integers, joint.blank)

    def gradients(function: Callable[..., Any]) -> Any:
        return torch.autograd.grad(function(*inputs), inputs)

    compiled = torch.compile(loss, fullgraph=True)
    return {
        "loss": {
            "PyTorch": torch.no_grad()(partial(loss, *inputs)),
            "PyTorch, compiled": torch.no_grad()(partial(compiled, *inputs)),
        },
        "loss and gradients": {
            "PyTorch": partial(gradients, loss),
            "PyTorch, compiled": partial(gradients, compiled),
        },
    }


def jax_cases(joint: Joint) -> Cases:
    import jax
    import jax.numpy as jnp

    from cupy_rnnt.jax import joint_rnnt_loss

    inputs, integers = (tuple(map(jnp.asarray, part)) for part in (joint[:4], joint[4:7]))

    def loss(inputs: Any) -> Any:
        return joint_rnnt_loss(*inputs, *integers, joint.blank)

    def waited(function: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(function(inputs))

    both = jax.value_and_grad(loss)
    return {
        "loss": {"JAX": waited(loss), "JAX, jit": waited(jax.jit(loss))},
        "loss and gradients": {"JAX": waited(both), "JAX, jit": waited(jax.jit(both))},
    }


ADAPTERS: dict[str, Callable[[Joint], Cases]] = {"torch": torch_cases, "jax": jax_cases}
"""What is measured through each framework: for each result, functions by their names."""


def numpy_cases(joint: Joint) -> dict[str, Callable[[], Any]]:
    return {
        "loss": partial(cupy_rnnt.joint_rnnt_loss, *joint),
        "loss and gradients": partial(cupy_rnnt.joint_rnnt_loss_and_grad, *joint),
    }


def build(name: str, quick: bool) -> Joint:
    return (QUICK if quick else JOINTS)[name]()


def repeated(function: Callable[[], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            function()

    return run


def overhead(adapter: str, name: str, threads: int, repeats: int, quick: bool) -> list[Row]:
    """Milliseconds of each function, and how many more than the NumPy function takes."""
    joint = build(name, quick)
    common.use_threads(threads)
    rows = []
    cases = ADAPTERS[adapter](joint)
    common.use_threads(threads)  # also of what was imported only now
    for result, base in numpy_cases(joint).items():
        functions = {"NumPy": base, **cases[result]}
        once = common.interleaved(functions, 1)["NumPy"][0]
        count = max(1, round(LEAST_SECONDS / once))
        timed = {key: repeated(function, count) for key, function in functions.items()}
        samples = common.interleaved(timed, repeats)
        for key, values in samples.items():
            pairs = zip(values, samples["NumPy"], strict=True)
            extra = statistics.median(mine - other for mine, other in pairs) / count
            rows.append(
                {
                    "joint": name,
                    "threads": threads,
                    "result": result,
                    "function": key,
                    "ms": 1e3 * statistics.median(values) / count,
                    "extra_ms": 1e3 * extra,
                    "extra_percent": 100 * (common.ratio(samples, key, "NumPy") - 1),
                    "samples": [value / count for value in values],
                }
            )
    return rows


def shared(adapter: str, quick: bool) -> Row:
    """How many of the four floating arguments are computed on where they lie."""
    joint = build("large", quick)
    seen: list[int] = []
    original = JointSource.__init__

    def spy(self: Any, batch: Any, arguments: Any, *others: Any) -> None:
        seen.extend(array.ctypes.data for array in arguments)
        original(self, batch, arguments, *others)

    case = ADAPTERS[adapter](joint)["loss and gradients"]
    JointSource.__init__ = spy  # type: ignore[method-assign]
    counts = {}
    for name, function in case.items():
        seen.clear()
        function()
        addresses = {array.ctypes.data for array in joint[:4]}
        counts[name] = [len(addresses & set(seen)), len(addresses), len(set(seen))]
    return counts


def resident(step: str, name: str, threads: int, quick: bool) -> Row:
    """Bytes by which a training step raises what the process holds, gradients included."""
    warm, joint = fresh([60], [9], 50, 40), build(name, quick)
    run = STEPS[step]
    run(warm)
    common.use_threads(threads)
    peak, _ = common.peak_resident(partial(run, joint))
    return {"joint": name, "step": step, "resident_bytes": peak}


def numpy_step(joint: Joint) -> Any:
    return cupy_rnnt.joint_rnnt_loss_and_grad(*joint)


def torch_step(joint: Joint, reduction: str = "mean") -> Any:
    from cupy_rnnt.torch import joint_rnnt_loss

    inputs, integers = torch_tensors(joint)
    loss = joint_rnnt_loss(*inputs, *integers, joint.blank, reduction=reduction)
    loss.mean().backward()
    return inputs


def batched_step(joint: Joint) -> Any:
    import peers

    inputs, integers = torch_tensors(joint)
    peers.loss_of_joint(*inputs, *integers, blank=joint.blank).backward()
    return inputs


STEPS = {
    "NumPy": numpy_step,
    "PyTorch": torch_step,
    "PyTorch, costs reduced later": partial(torch_step, reduction="none"),
    "PyTorch, padded logits": batched_step,
}


def compiling(threads: int) -> list[Row]:
    """Seconds of the first compiled step, and breaks of the graph."""
    import torch

    from cupy_rnnt.torch import joint_rnnt_loss

    common.use_threads(threads)
    inputs, integers = torch_tensors(JOINTS["tiny"]())
    rows = []
    for reduction in "mean", "none":

        def step(*inputs: Any, reduction: str = reduction) -> Any:
            scaled = [1.5 * x for x in inputs]
            return joint_rnnt_loss(*scaled, *integers, 0, reduction=reduction).mean()

        torch.compiler.reset()
        start = time.perf_counter()
        torch.compile(step, fullgraph=True)(*inputs).backward()
        seconds = time.perf_counter() - start
        torch.compiler.reset()
        breaks = torch._dynamo.explain(step)(*inputs).graph_break_count
        rows.append(
            {
                "reduction": reduction,
                "first_step_seconds": round(seconds, 1),
                "breaks_with_fullgraph": 0,  # or it would have failed
                "breaks_without": breaks,
            }
        )
    return rows


def report(rows: dict[str, Any]) -> None:
    print("Time:")
    header = ["joint", "threads", "result", "function", "ms", "extra ms", "extra %"]
    formats = "{}", "{}", "{}", "{}", "{:.3f}", "{:+.3f}", "{:+.1f}"
    body = [
        [f.format(v) for f, v in zip(formats, row.values(), strict=False)]
        for row in rows["overhead"]
    ]
    common.table(header, body)
    print("Peak memory of a step in MiB above the inputs, gradients included:")
    body = [
        [row["joint"], row["step"], f"{row['resident_bytes'] / MIB:.0f}"]
        for row in rows["resident"]
    ]
    common.table(["joint", "step", "MiB"], body)
    print("Arguments computed on where they lie:")
    body = [
        [name, f"{found} of {given}"]
        for counts in rows["shared"].values()
        for name, (found, given, _) in counts.items()
    ]
    common.table(["function", "shared"], body)
    print("Compiling:")
    header = ["reduction", "first step (s)", "graph breaks, fullgraph", "graph breaks otherwise"]
    common.table(header, [row.values() for row in rows["compiling"]])


def draw(rows: dict[str, Any]) -> Figure:
    """What a step takes beyond the NumPy functions, and its memory; on the fewest threads."""
    least = min(row["threads"] for row in rows["overhead"])
    own = [
        row
        for row in rows["overhead"]
        if row["threads"] == least
        and row["result"] == "loss and gradients"
        and row["function"] != "NumPy"
    ]
    tiny, large = ([row for row in own if row["joint"] == joint] for joint in JOINTS)
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    bars = [
        ("tiny joint", "ms more than NumPy", {row["function"]: row["extra_ms"] for row in tiny}),
        (
            "large joint",
            "% more than NumPy",
            {row["function"]: row["extra_percent"] for row in large},
        ),
        (
            "a training step, large joint",
            "MiB above the inputs",
            {row["step"]: row["resident_bytes"] / MIB for row in rows["resident"]},
        ),
    ]
    for axes, (title, unit, values) in zip(panels, bars, strict=True):
        drawn = axes.barh(list(values), list(values.values()), color=style.BLUE, height=0.6)
        axes.bar_label(drawn, fmt="%.0f" if "MiB" in unit else "%.1f", padding=3)
        axes.set(title=title, xlabel=unit)
        axes.margins(x=0.3)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    drawn.patches[-1].set_color(style.ORANGE)  # the step that holds logits
    most = max(row["extra_ms"] for row in tiny)
    style.message(figure, f"An adapter adds {most:.2g} ms at most, and no logits")
    return figure


def main() -> None:
    options = common.arguments(__doc__)
    quick = options.quick
    rows: dict[str, Any] = {
        "versions": {name: metadata.version(name) for name in ADAPTERS},
        "overhead": [
            row
            for adapter in ADAPTERS
            for threads in options.threads
            for name in JOINTS
            for row in common.alone(overhead, adapter, name, threads, options.repeats, quick)
        ],
        "resident": [
            common.alone(resident, step, "large", options.threads[0], quick) for step in STEPS
        ],
        "shared": {"torch": common.alone(shared, "torch", quick)},
        "compiling": common.alone(compiling, options.threads[0]),
    }
    report(rows)
    common.save("adapters", options, rows, draw(rows))


if __name__ == "__main__":
    main()
