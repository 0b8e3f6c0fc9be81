"""A random call of a loss and its gradient, from a seed."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from scipy.special import log_softmax

from cupy_rnnt import multi_blank, reference, tdt
from cupy_rnnt.options import REDUCTIONS
from cupy_rnnt.transducer import NAMED, Transducer

from ..arguments.cases import LAYOUTS
from ..band.cases import random_bands
from ..helpers import random_joint_case, random_logits_case
from ..tolerances import DTYPES
from ..transducers.cases import blanks_of, transducers, width_of

FRONTS = "logits", "packed", "joint", "additive"
ADDITIVE = "regular", "modified", "constrained"
"""Transducers that the additive loss is for."""
INTEGERS = "targets", "logit_lengths", "target_lengths"
TOLERANCE = 1e-3
"""Where a call has one, and not the default or 0."""


class Case(NamedTuple):
    """One call. `arrays` are the floating arguments, and `integers` the others, by name."""

    seed: int
    front: str
    framework: str
    arrays: dict[str, Any]
    integers: dict[str, Any]
    options: dict[str, Any]
    spare_bytes: int | None  # of workspace, beyond the least; None for the default
    selects: bool  # cells, though the joint network is small
    threads: int

    @property
    def dtype(self) -> np.dtype:
        return next(iter(self.arrays.values())).dtype

    @property
    def extents(self) -> list[tuple[int, int]]:
        """T and S = U + 1 of each sample."""
        lengths = self.integers["logit_lengths"], self.integers["target_lengths"]
        return [(int(t), int(u) + 1) for t, u in zip(*lengths, strict=True)]

    @property
    def length(self) -> int:
        """Transitions on a path of the longest sample."""
        return max(t + s - 1 for t, s in self.extents)

    def __str__(self) -> str:
        shapes = {name: None if x is None else x.shape for name, x in self.arrays.items()}
        fields = self._asdict() | {"arrays": shapes, "dtype": self.dtype.name}
        return ", ".join(f"{name}={value}" for name, value in fields.items())


@cache
def frameworks() -> tuple[str, ...]:
    """Those that are installed."""
    others = [name for name in ("torch", "jax") if importlib.util.find_spec(name)]
    return "numpy", *others


@cache
def invented() -> list[Transducer]:
    """Transducers that nobody uses, the same ones in every run."""
    found: list[Transducer] = []

    @settings(
        max_examples=400,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(transducers())
    def collect(transducer: Transducer) -> None:
        found.append(transducer)

    collect()
    return found


def drawn_transducer(rng: np.random.Generator, front: str) -> Transducer:
    """One with a name, one of random durations, or an invented one."""
    if front == "additive":
        return NAMED[rng.choice(ADDITIVE)]
    sigma, kind = float(rng.choice([0.0, 0.05, 0.5])), rng.random()
    if kind < 0.5:
        return NAMED[rng.choice(list(NAMED))]
    if kind < 0.65:
        return tdt(sorted({1, *rng.choice(6, 2).tolist()}), sigma)
    if kind < 0.8:
        return multi_blank(sorted({*rng.integers(2, 7, 2).tolist()}), sigma)
    return invented()[rng.integers(len(invented()))]


def drawn(seed: int, emulated: bool = False) -> Case:
    """The call of a seed. On an emulated device it is small, and of no framework."""
    rng = np.random.default_rng(seed)
    front = str(rng.choice(FRONTS, p=[0.25, 0.15, 0.5, 0.1]))
    # JAX compiles for every new shape, which takes as long as ten calls.
    framework = str(rng.choice(["numpy", "torch", "jax"], p=[0.7, 0.22, 0.08]))
    if emulated or framework not in frameworks() or (front, framework) == ("additive", "jax"):
        framework = "numpy"
    transducer, dtype = drawn_transducer(rng, front), DTYPES[rng.integers(len(DTYPES))]
    most = np.array([3, 5, 3, 5] if emulated else [5, 13, 9, 13])
    size, frames, labels, symbols = rng.integers([1, 1, 0, 1], most + 1).tolist()
    shape = size, frames, labels, width_of(transducer, symbols)
    blank = int(rng.choice(blanks_of(transducer, symbols)))
    make = {"dtype": dtype, "blank": blank, "scale": float(rng.choice([0.3, 2.0]))}
    make["transducer"] = transducer
    options = {"blank": blank, **drawn_options(rng, transducer, size, front)}
    if front == "joint":
        make |= {"hidden": int(rng.integers(1, 20)), "bias": bool(rng.random() < 0.8)}
        batch = random_joint_case(rng, *shape, **make)
        options["activation"] = str(rng.choice(list(reference.ACTIVATIONS)))
        options["dropout"] = float(rng.choice([0.0, 0.3]))
        options["seed"] = int(rng.integers(2**63))
    else:
        batch = random_logits_case(rng, *shape, **make)
    fields = batch._asdict()
    integers = {name: fields.pop(name) for name in INTEGERS}
    arrays = {name: array for name, array in fields.items() if name != "blank"}
    if front == "additive":
        shapes = {"am": (size, frames, shape[3]), "lm": (size, labels + 1, shape[3])}
        arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    elif front != "joint":
        options["fused_log_softmax"] = bool(rng.random() < 0.7)
        if not options["fused_log_softmax"]:
            of_all = log_softmax(arrays["logits"].astype(np.float64), axis=-1)
            arrays["logits"] = of_all.astype(dtype)
    case = Case(
        seed,
        front,
        framework,
        arrays,
        integers,
        options,
        (None, 0, 2000, 20000)[rng.integers(4)] if framework == "numpy" else None,
        front == "joint" and framework == "numpy" and bool(rng.random() < 0.4),
        int(rng.integers(1, 4)),
    )
    spoil(rng, case)
    if front in ("logits", "joint") and rng.random() < 0.25:
        options["band"] = random_bands(
            rng, case.extents, frames, wide=max(s for _, s in case.extents)
        )
    if framework == "numpy" and not emulated and rng.random() < 0.3:
        layout = LAYOUTS[rng.integers(len(LAYOUTS))]
        arrays |= {name: layout(x) for name, x in arrays.items() if x is not None}
    return case


def drawn_options(
    rng: np.random.Generator, transducer: Transducer, size: int, front: str
) -> dict[str, Any]:
    """What every front takes. Costs that may be negative are not added: they could cancel, and an
    error is relative to the sum."""
    reduction = str(rng.choice(REDUCTIONS)) if transducer.normalises else "none"
    options = {
        "transducer": transducer,
        "reduction": reduction,
        "delay_penalty": float(rng.choice([0.0, 0.0, 0.3, -0.1])),
        "fastemit_lambda": float(rng.choice([0.0, 0.3])),
        "zero_infinity": bool(rng.random() < 0.3),
        "tolerance": (None, None, 0.0, TOLERANCE)[rng.integers(4)],
    }
    if front != "additive":
        options["clamp"] = float(rng.choice([-1.0, 0.05]))
    if reduction == "none" and rng.random() < 0.5:
        options["cost_weights"] = rng.uniform(-1, 1, size)
    return options


def spoil(rng: np.random.Generator, case: Case) -> None:
    """Let padding be NaN and no label. Now and then, a sample has a NaN, or a logit of -inf."""
    for b, (t, s) in enumerate(case.extents):
        case.integers["targets"][b, s - 1 :] = -(10**6)
        if case.front == "joint":
            case.arrays["encoder_out"][b, t:] = case.arrays["predictor_out"][b, s:] = np.nan
        elif case.front != "additive":
            case.arrays["logits"][b, t:] = case.arrays["logits"][b, :, s:] = np.nan
    if case.front == "additive" or rng.random() < 0.85:
        return
    array = next(iter(case.arrays.values()))
    b = int(rng.integers(len(array)))
    cell = [int(rng.integers(n)) for n in case.extents[b][: array.ndim - 2]]
    column = int(rng.integers(array.shape[-1]))
    array[(b, *cell, column)] = np.nan if case.front == "joint" else rng.choice([np.nan, -np.inf])
