"""The transducer of train_jax.py in Flax NNX with optax, and with dropout in its joint network.

pip install ".[jax]" flax optax
python examples/train_flax.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from train_jax import BLANK, HIDDEN, RATE, STEPS, SYMBOLS, batch

from cupy_rnnt.jax import joint_rnnt_loss


class Transducer(nnx.Module):
    """Encoder, predictor, and an output layer whose logits are never formed."""

    def __init__(self, rngs: nnx.Rngs, dropout: float = 0.1):
        self.encoder = nnx.Linear(3 * SYMBOLS, HIDDEN, rngs=rngs)
        self.predictor = nnx.Embed(SYMBOLS, HIDDEN, rngs=rngs)
        self.output = nnx.Linear(HIDDEN, SYMBOLS, rngs=rngs)
        self.dropout, self.rngs = dropout, rngs

    def __call__(self, frames, targets):
        """What enters the joint network."""
        window = jnp.concatenate([jnp.roll(frames, shift, 1) for shift in (-1, 0, 1)], -1)
        symbols = jnp.pad(targets, ((0, 0), (1, 0)), constant_values=BLANK)
        return self.encoder(window), self.predictor(symbols)

    def loss(self, frames, targets, frame_counts, target_counts):
        # The kernel of a Flax layer is (H, V), and the weight of this package (V, H).
        layer = self.output.kernel[...].T, self.output.bias[...]
        # An array as the seed: another one in every step, and no step is compiled again.
        seed = jax.random.bits(self.rngs.dropout(), dtype=jnp.uint32)
        return joint_rnnt_loss(
            *self(frames, targets),
            *layer,
            *(targets, frame_counts, target_counts, BLANK),
            dropout=self.dropout,
            seed=seed,
        )


@nnx.jit
def step(model, optimizer, data):
    value, gradients = nnx.value_and_grad(lambda model: model.loss(*data))(model)
    optimizer.update(model, gradients)
    return value


def main():
    rng = np.random.default_rng(0)
    model = Transducer(nnx.Rngs(0, dropout=1))
    optimizer = nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param)
    costs = []
    for count in range(1, STEPS + 1):
        costs.append(float(step(model, optimizer, batch(rng))))
        if count % 50 == 0:
            print(f"step {count:4d}  cost {np.mean(costs[-50:]):7.3f} nats a sentence")
    return costs


if __name__ == "__main__":
    main()
