"""A transducer in plain JAX, whose joint network and loss are one call, `joint_rnnt_loss`.

    python examples/train_jax.py

The data are made up: a sentence is a few symbols, each of which sounds for two to five frames, in
noise. The model is as small as it can be: a window of frames, and the last symbol.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cupy_rnnt.jax import joint_rnnt_loss

BLANK, SYMBOLS, MOST, SIZE, HIDDEN, STEPS, RATE = 0, 8, 6, 16, 32, 300, 1e-2


def batch(rng):
    """Frames (B, T, SYMBOLS), padded targets (B, U), and the lengths of both."""
    lengths = rng.integers(2, MOST + 1, SIZE)
    targets = rng.integers(1, SYMBOLS, (SIZE, MOST))
    frames = rng.normal(scale=0.3, size=(SIZE, 5 * MOST, SYMBOLS))
    ends = np.cumsum(rng.integers(2, 6, (SIZE, MOST)), axis=1)
    for b, u in np.ndindex(SIZE, MOST):
        frames[b, ends[b, u - 1] if u else 0 : ends[b, u], targets[b, u]] += 1
    last = ends[np.arange(SIZE), lengths - 1]
    return jax.tree.map(jnp.asarray, (frames.astype(np.float32), targets, last, lengths))


def init(key):
    shapes = {
        "window": (3 * SYMBOLS, HIDDEN),
        "last": (SYMBOLS, HIDDEN),
        "weight": (SYMBOLS, HIDDEN),
    }
    keys = jax.random.split(key, len(shapes))
    params = {
        name: jax.random.normal(k, shapes[name]) / 6 for name, k in zip(shapes, keys, strict=True)
    }
    return params | {"bias": jnp.zeros(SYMBOLS)}


def loss(params, frames, targets, frame_counts, target_counts):
    window = [jnp.roll(frames, shift, 1) for shift in (-1, 0, 1)]
    encoder_out = jnp.concatenate(window, -1) @ params["window"]
    symbols = jnp.pad(targets, ((0, 0), (1, 0)), constant_values=BLANK)
    predictor_out = params["last"][symbols]
    # What a recipe has had here, with its (B, T, U + 1, V) logits:
    #   hidden = jnp.tanh(encoder_out[:, :, None] + predictor_out[:, None])
    #   logits = hidden @ params["weight"].T + params["bias"]
    #   return rnnt_loss(logits, targets, frame_counts, target_counts, BLANK)
    outputs = encoder_out, predictor_out, params["weight"], params["bias"]
    return joint_rnnt_loss(*outputs, targets, frame_counts, target_counts, BLANK)


@partial(jax.jit, donate_argnums=(0, 1))
def step(params, moments, count, *data):
    """One step of Adam."""
    value, gradient = jax.value_and_grad(loss)(params, *data)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradient)
    second = jax.tree.map(lambda m, g: 0.99 * m + 0.01 * g * g, moments[1], gradient)
    scale = RATE * jnp.sqrt(1 - 0.99**count) / (1 - 0.9**count)
    change = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + 1e-8), first, second)
    return jax.tree.map(jnp.subtract, params, change), (first, second), value


def main():
    rng = np.random.default_rng(0)
    params = init(jax.random.key(0))
    moments = jax.tree.map(jnp.zeros_like, (params, params))
    costs = []
    for count in range(1, STEPS + 1):
        params, moments, value = step(params, moments, count, *batch(rng))
        costs.append(float(value))
        if count % 50 == 0:
            print(f"step {count:4d}  cost {np.mean(costs[-50:]):7.3f} nats a sentence")
    return costs


if __name__ == "__main__":
    main()
