"""Train the transducer of `train_speech.py` in plain JAX, on the same recordings.

    python examples/train_speech_jax.py --data sounds --quick

Data, model, schedule and search are those of `train_speech.py`, which says how to get the
recordings; parameters start as there and go back there to be tested. What is new is what JAX does:
the model as a function of its parameters, their gradients and AdamW, all in one compiled step. Each
shape of a batch is compiled once, so frames and labels are padded to a few sizes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from speech_data import BLANK, DEFAULT_DATA, Batch, Prompt, load_prompts, training_batches
from tqdm import tqdm
from train_speech import QUICK, Settings, Transducer, evaluate

from cupy_rnnt.jax import joint_rnnt_loss

FRAMES, LABELS = 64, 16  # batches are padded to multiples
Params = dict[str, jax.Array]


class Model:
    """The forward pass of `Transducer` while it trains, by the names of its parameters."""

    def __init__(self, params: Params, settings: Settings, key: jax.Array):
        self.params, self.settings, self.key = params, settings, key
        self.statistics: Params = {}  # of the batch, for the running ones

    def linear(self, name: str, x: jax.Array) -> jax.Array:
        return x @ self.params[f"{name}.weight"].T + self.params[f"{name}.bias"]

    def dropout(self, x: jax.Array) -> jax.Array:
        self.key, key = jax.random.split(self.key)
        kept = 1 - self.settings.dropout
        return jnp.where(jax.random.bernoulli(key, kept, x.shape), x / kept, 0)

    def convolution(self, name: str, x: jax.Array, extent: jax.Array) -> jax.Array:
        """(B, channels, frames): convolution, batch normalisation of the frames below `extent`, and
        ReLU."""
        options = {"window_strides": (2,), "padding": [(2, 2)]}
        x = jax.lax.conv_general_dilated(x, self.params[f"{name}.0.weight"], **options)
        x = x + self.params[f"{name}.0.bias"][:, None]
        inside = jnp.arange(x.shape[2]) < extent
        count = x.shape[0] * extent
        mean = (x * inside).sum((0, 2)) / count
        variance = (jnp.square(x - mean[:, None]) * inside).sum((0, 2)) / count
        self.statistics[f"{name}.1.running_mean"] = mean
        self.statistics[f"{name}.1.running_var"] = variance * count / (count - 1)
        scale = self.params[f"{name}.1.weight"] / jnp.sqrt(variance + 1e-5)
        shifted = (x - mean[:, None]) * scale[:, None] + self.params[f"{name}.1.bias"][:, None]
        return jax.nn.relu(shifted)

    def gru(self, name: str, layer: str, x: jax.Array, inside: jax.Array) -> jax.Array:
        """(B, T, hidden), 0 outside; backwards, from the last frame of each sample, in a layer
        whose name says so."""
        kinds = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
        w_in, w_hidden, b_in, b_hidden = (self.params[f"{name}.{k}_{layer}"] for k in kinds)

        def cell(h: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            given, here = step
            reset, update, new = jnp.split(given, 3, axis=1)
            own_reset, own_update, own_new = jnp.split(h @ w_hidden.T + b_hidden, 3, axis=1)
            update = jax.nn.sigmoid(update + own_update)
            new = jnp.tanh(new + jax.nn.sigmoid(reset + own_reset) * own_new)
            h = jnp.where(here[:, None], (1 - update) * new + update * h, h)
            return h, jnp.where(here[:, None], h, 0)

        start = jnp.zeros((len(x), w_hidden.shape[1]))
        steps = (x @ w_in.T + b_in).swapaxes(0, 1), inside.T
        backwards = layer.endswith("_reverse")
        return jax.lax.scan(cell, start, steps, reverse=backwards)[1].swapaxes(0, 1)

    def encode(
        self, x: jax.Array, frames: jax.Array, extent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x = x.swapaxes(1, 2)
        for i in range(2):
            extent, frames = (extent + 1) // 2, (frames + 1) // 2
            x = self.convolution(f"convolutions.{i}", x, extent)
            inside = jnp.arange(x.shape[2]) < frames[:, None]
            x = x * inside[:, None]
        x = self.dropout(x).swapaxes(1, 2)
        for layer in range(self.settings.layers):
            x = self.dropout(x) if layer else x
            both = f"l{layer}", f"l{layer}_reverse"
            x = jnp.concatenate([self.gru("encoder", one, x, inside) for one in both], axis=2)
        x = (x - x.mean(2, keepdims=True)) / jnp.sqrt(x.var(2, keepdims=True) + 1e-5)
        name = "encoder_projection"
        x = x * self.params[f"{name}.0.weight"] + self.params[f"{name}.0.bias"]
        return self.linear(f"{name}.2", self.dropout(x)), frames

    def predict(self, symbols: jax.Array) -> jax.Array:
        x = self.dropout(self.params["embedding.weight"][symbols])
        x = self.gru("predictor", "l0", x, jnp.ones(symbols.shape, bool))
        return self.linear("predictor_projection", self.dropout(x))


def loss(
    params: Params, key: jax.Array, data: tuple[jax.Array, ...], settings: Settings
) -> tuple[jax.Array, Params]:
    """Mean cost in nats an utterance, and statistics of the batch."""
    features, frames, targets, target_lengths, extent = data
    model = Model(params, settings, key)
    encoder_out, frames = model.encode(features, frames, extent)
    predictor_out = model.predict(jnp.pad(targets, ((0, 0), (1, 0)), constant_values=BLANK))
    outputs = encoder_out, predictor_out, params["output.weight"], params["output.bias"]
    lengths = frames, target_lengths
    cost = joint_rnnt_loss(*outputs, targets, *lengths, blank=BLANK, tolerance=settings.tolerance)
    return cost, model.statistics


@partial(jax.jit, static_argnames="settings")
def step(state: Any, rates: Any, key: jax.Array, data: Any, settings: Settings) -> Any:
    """One step of AdamW, with gradients clipped to a norm of 5."""
    params, first, second = state
    (cost, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(
        params, key, data, settings
    )
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in gradient.values()))
    rate, beta, first_scale, second_scale = rates
    clip = jnp.minimum(1.0, 5.0 / (norm + 1e-6))
    first = jax.tree.map(lambda m, g: beta * m + (1 - beta) * clip * g, first, gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * (clip * g) ** 2, second, gradient)

    def updated(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        scale = jnp.sqrt(v / second_scale) + 1e-8
        return p * (1 - 1e-2 * rate) - rate * m / first_scale / scale

    return (jax.tree.map(updated, params, first, second), first, second), cost, statistics


def schedule(settings: Settings, steps: int) -> Iterator[tuple[float, float]]:
    """Learning rate and first beta of each step, as PyTorch's ``OneCycleLR`` sets them."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, steps)
    for _ in range(steps):
        yield optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]
        optimizer.step()
        one_cycle.step()


def padded(batch: Batch) -> tuple[np.ndarray, ...]:
    """The arrays of a batch in one of a few shapes, and its own number of frames."""
    features, targets = batch.features.numpy(), batch.targets.numpy()
    more_frames, more_labels = -features.shape[1] % FRAMES, -targets.shape[1] % LABELS
    return (
        np.pad(features, ((0, 0), (0, more_frames), (0, 0))),
        batch.frames.numpy(),
        np.pad(targets, ((0, 0), (0, more_labels))),
        batch.target_lengths.numpy(),
        np.int32(features.shape[1]),
    )


class Trainer:
    """Parameters, moments of AdamW and random states, which start as in `train_speech.py`."""

    def __init__(self, settings: Settings, train: list[Prompt]):
        self.settings, self.train = settings, train
        torch.manual_seed(settings.seed)
        self.rng, self.key = np.random.default_rng(settings.seed), jax.random.key(settings.seed)
        self.model = Transducer(settings)
        params = {name: jnp.asarray(p.detach()) for name, p in self.model.named_parameters()}
        self.state = params, *(jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        steps = settings.epochs * -(-len(train) // settings.batch)
        self.schedule, self.count = schedule(settings, steps), 0

    def step(self, batch: Batch) -> float:
        rate, beta = next(self.schedule)
        self.count += 1
        # As PyTorch does, which takes the present beta for all steps so far; not in float32, in
        # which 1 - 0.999 has lost four digits.
        rates = rate, beta, 1 - beta**self.count, 1 - 0.999**self.count
        self.key, key = jax.random.split(self.key)
        self.state, cost, statistics = step(self.state, rates, key, padded(batch), self.settings)
        for name, value in statistics.items():
            self.model.get_buffer(name).lerp_(torch.from_numpy(np.array(value)), 0.1)
        return float(cost)

    def epoch(self) -> float:
        """Mean cost of an utterance; the parameters go to the model."""
        batches = training_batches(self.train, self.settings.batch, self.rng)
        cost = sum(self.step(b) * len(b.frames) for b in tqdm(batches, leave=False, disable=None))
        for name, value in self.state[0].items():
            self.model.get_parameter(name).data = torch.from_numpy(np.array(value))
        return cost / len(self.train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--quick", action="store_true", help="small model, shortest prompts")
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    settings = QUICK if options.quick else Settings()
    settings = replace(settings, epochs=options.epochs or settings.epochs)
    train, held_out = load_prompts((options.data,) if options.data else DEFAULT_DATA, settings)
    trainer = Trainer(settings, train)
    for epoch in range(1, settings.epochs + 1):
        cost = trainer.epoch()
        error_rate, _ = evaluate(trainer.model, held_out)
        print(f"epoch {epoch:3d}  cost {cost:8.3f}  CER {error_rate:.3f}", flush=True)


if __name__ == "__main__":
    main()
