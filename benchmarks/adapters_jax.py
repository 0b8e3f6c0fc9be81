"""What the JAX functions cost beyond the NumPy functions that they call.

    python -m benchmarks.adapters_jax

Loss, and loss with gradients, of a tiny and of a large joint, with and without ``jax.jit``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import cupy_rnnt

from . import common, workloads

JOINTS = {
    "tiny": lambda: workloads.fresh([20, 16], [5, 4], 32, 64),
    "large": workloads.WORKLOADS["v1024 fresh"],
}
QUICK = {"tiny": JOINTS["tiny"]}
LEAST_SECONDS = 0.2  # of a sample, for which short calls are repeated


def cases_of(joint: workloads.Joint) -> dict[str, dict[str, Callable[[], Any]]]:
    """For loss and gradient: what is measured, the NumPy function first."""
    import jax
    import jax.numpy as jnp

    from cupy_rnnt.jax import joint_rnnt_loss

    inputs, integers = (tuple(map(jnp.asarray, part)) for part in (joint[:4], joint[4:7]))

    def loss(inputs: Any, integers: Any) -> Any:
        return joint_rnnt_loss(*inputs, *integers, joint.blank)

    def waited(function: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(function(inputs, integers))

    both = jax.value_and_grad(loss)
    return {
        "loss": {
            "NumPy": partial(cupy_rnnt.joint_rnnt_loss, *joint),
            "JAX, jit": waited(jax.jit(loss)),
            "JAX": waited(loss),
        },
        "loss and gradients": {
            "NumPy": partial(cupy_rnnt.joint_rnnt_loss_and_grad, *joint),
            "JAX, jit": waited(jax.jit(both)),
            "JAX": waited(both),
        },
    }


def repeated(function: Callable[[], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            function()

    return run


def measure(name: str, threads: int, repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of one joint, in milliseconds and percent of the NumPy function."""
    common.use_threads(threads)
    rows = []
    for result, functions in cases_of((QUICK if quick else JOINTS)[name]()).items():
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
                    "result": result,
                    "threads": threads,
                    "function": key,
                    "ms": 1e3 * statistics.median(values) / count,
                    "extra_ms": 1e3 * extra,
                    "extra_percent": 100 * (common.ratio(samples, key, "NumPy") - 1),
                }
            )
    return rows


def main() -> None:
    options = common.arguments(__doc__)
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        for name in QUICK if options.quick else JOINTS:
            rows += common.alone(measure, name, threads, options.repeats, options.quick)
    header = ["joint", "result", "threads", "function", "ms", "extra ms", "extra %"]
    formats = "{}", "{}", "{}", "{}", "{:.3f}", "{:+.3f}", "{:+.1f}"
    common.table(
        header,
        [[f.format(v) for f, v in zip(formats, row.values(), strict=True)] for row in rows],
    )
    common.save("adapters_jax", options, {"jax": metadata.version("jax"), "measured": rows}, {})


if __name__ == "__main__":
    main()
