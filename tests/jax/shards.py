"""Loss and gradients of a batch that is divided among the devices of the host.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python -m tests.jax.shards results.npz

A JAX process counts its devices once, so that the tests run this in processes of their own.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import cupy_rnnt.jax as adapter

from ..helpers import JointCase, random_joint_case

SIZE = 8
WEIGHTS = np.linspace(-1.0, 2.0, SIZE).astype(np.float32)
EVERY, SHARDS = PartitionSpec(), PartitionSpec("devices")


def case_of(dtype) -> JointCase:
    """The longest samples come first, the last ones have one frame and no label."""
    case = random_joint_case(np.random.default_rng(0), SIZE, 40, 12, dtype=dtype)
    frames, labels = -np.sort(-case.logit_lengths), -np.sort(-case.target_lengths)
    frames[-2:], labels[-2:] = 1, 0
    return case._replace(logit_lengths=frames, target_lengths=labels)


def results(dtype) -> dict[str, np.ndarray]:
    case = case_of(dtype)
    inputs, integers = tuple(map(jnp.asarray, case[:4])), tuple(map(jnp.asarray, case[4:7]))
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(jax.devices()),), ("devices",), axis_types=automatic)
    specs = (SHARDS, SHARDS, EVERY, EVERY), (SHARDS,) * 3, SHARDS

    def mean(inputs, integers, weights):
        loss = adapter.joint_rnnt_loss(*inputs, *integers, case.blank)
        return jax.lax.pmean(loss, "devices")

    def costs(inputs, integers, weights):
        return adapter.joint_rnnt_loss(*inputs, *integers, case.blank, reduction="none")

    def weighted(inputs, integers, weights):
        return jax.lax.psum(weights @ costs(inputs, integers, weights), "devices")

    def skipped(inputs, integers, weights):
        """On all devices but the last one, whose part of the batch counts as empty. What adds up
        the gradients of parameters must be outside of what only some devices do."""
        inputs = *inputs[:2], *jax.lax.pcast(inputs[2:], "devices", to="varying")
        loss = jax.lax.cond(
            jax.lax.axis_index("devices") < jax.lax.axis_size("devices") - 1,
            lambda: weights @ costs(inputs, integers, weights),
            lambda: weights @ jnp.zeros_like(weights),
        )
        return jax.lax.psum(loss, "devices")

    def of_shards(local, **options):
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=EVERY, **options)

    functions = {
        "outside": jax.value_and_grad(of_shards(mean)),
        "unchecked": jax.value_and_grad(of_shards(mean, check_vma=False)),
        "inside": jax.shard_map(
            jax.value_and_grad(mean), mesh=mesh, in_specs=specs, out_specs=(EVERY, specs[0])
        ),
        "weighted": jax.value_and_grad(of_shards(weighted)),
        "skipped": jax.value_and_grad(of_shards(skipped)),
        "automatic": jax.value_and_grad(
            lambda inputs, integers, weights: adapter.joint_rnnt_loss(
                *inputs, *integers, case.blank
            )
        ),
    }
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    arguments = jax.device_put((inputs, integers, jnp.asarray(WEIGHTS)), places)
    found = {}
    for name, function in functions.items():
        compiled = jax.jit(function)
        runs = [jax.block_until_ready(compiled(*arguments)) for _ in range(5)]
        for run in runs[1:]:
            jax.tree.map(np.testing.assert_array_equal, run, runs[0])
        leaves = [np.asarray(x, np.float32) for x in jax.tree.leaves(runs[0])]
        found |= {f"{name} {i}": x for i, x in enumerate(leaves)}

    all_costs = jax.jit(jax.shard_map(costs, mesh=mesh, in_specs=specs, out_specs=SHARDS))
    found["costs"] = np.asarray(all_costs(*arguments))
    wrong = integers[0].at[-1, 0].set(9), integers[1], integers[2].at[-1].set(1)
    try:
        jax.block_until_ready(all_costs(inputs, wrong, WEIGHTS))
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        found["error"] = np.array(str(error))
    return found


if __name__ == "__main__":
    np.savez(
        sys.argv[1],
        devices=len(jax.devices()),
        **{f"float32 {name}": x for name, x in results(np.float32).items()},
        **{f"bfloat16 {name}": x for name, x in results(jnp.bfloat16).items()},
    )
