"""Joints for the tests of certified selection: worth it, of any kind, with anything for padding."""

from __future__ import annotations

import numpy as np

from ...helpers import JointCase, random_lengths, random_targets
from ...transducers.cases import PLAIN, Columns


def blank_of(transducer, vocabulary, blank) -> int:
    """The column of the blank in a row of so many logits."""
    return Columns.in_a_row(transducer, vocabulary, blank).of["blank"][0]


def aligned_case(
    rng,
    size=3,
    frames=14,
    labels=8,
    vocabulary=9,
    hidden=12,
    *,
    dtype=np.float64,
    blank=-1,
    bias=True,
    sharpness=3.0,
    noise=0.3,
    lengths=None,
    transducer=PLAIN,
) -> JointCase:
    """Joints as after training: each label is likely in some frames, behind its prefix, and the
    blank elsewhere; so most cells hold next to nothing."""
    targets = random_targets(rng, size, labels, vocabulary, blank, transducer)
    lengths = lengths or random_lengths(rng, size, frames, labels)
    weight = rng.normal(size=(vocabulary, hidden))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    encoder_out = noise * rng.normal(size=(size, frames, hidden))
    predictor_out = noise * rng.normal(size=(size, labels + 1, hidden))
    for b, (t, u) in enumerate(zip(*lengths, strict=True)):
        rows = weight[targets[b, :u]]
        predictor_out[b, :u] += rows
        # A frame has no more than one label: with few frames, most labels are just unlikely.
        frame = (2 * np.arange(u) + 1) * t // max(2 * u, 1)
        encoder_out[b, frame] = encoder_out[b, frame] + 2 * rows
    of_blank = sharpness * np.eye(vocabulary)[blank_of(transducer, vocabulary, blank)]
    return JointCase(
        encoder_out.astype(dtype),
        predictor_out.astype(dtype),
        (2 * sharpness * weight).astype(dtype),
        of_blank.astype(dtype) if bias else None,
        targets,
        *lengths,
        blank,
    )


def any_case(
    rng,
    size,
    frames,
    labels,
    vocabulary,
    hidden,
    *,
    dtype=np.float64,
    blank=-1,
    bias=True,
    transducer=PLAIN,
) -> JointCase:
    """Joints of any kind: from flat to saturated, the blank likely or not, labels repeated."""
    if rng.random() < 0.4:
        sharpness, noise = rng.choice([1.0, 3.0, 10.0]), rng.choice([0.01, 0.1, 0.3])
        return aligned_case(
            rng,
            size,
            frames,
            labels,
            vocabulary,
            hidden,
            dtype=dtype,
            blank=blank,
            bias=bias,
            sharpness=sharpness,
            noise=noise,
            transducer=transducer,
        )
    targets = random_targets(rng, size, labels, vocabulary, blank, transducer)
    if rng.random() < 0.3:
        targets[:] = targets[:, :1]
    scale = rng.choice([0.01, 0.3, 1.0, 3.0, 10.0, 30.0])
    of_bias = rng.choice([0.0, 1.0, 5.0]) * rng.normal(size=vocabulary)
    of_bias[blank_of(transducer, vocabulary, blank)] += rng.choice([0.0, 0.0, 2.0, 6.0, 20.0])
    inputs = (
        scale * rng.normal(size=(size, frames, hidden)),
        scale * rng.choice([0.0, 0.3, 1.0]) * rng.normal(size=(size, labels + 1, hidden)),
        rng.choice([0.1, 1.0, 5.0, 20.0]) * rng.normal(size=(vocabulary, hidden)),
        of_bias,
    )
    return JointCase(
        *(array.astype(dtype) for array in inputs[:3]),
        inputs[3].astype(dtype) if bias else None,
        targets,
        *random_lengths(rng, size, frames, labels),
        blank,
    )


def shapes(case: JointCase) -> list[tuple[int, int]]:
    """T and S = U + 1 of each sample."""
    lengths = zip(case.logit_lengths, case.target_lengths, strict=True)
    return [(int(t), int(u) + 1) for t, u in lengths]


def with_padding(case: JointCase, value: float) -> JointCase:
    """The same case with a value at every float, and nonsense at every label, that is padding."""
    encoder_out, predictor_out = case.encoder_out.copy(), case.predictor_out.copy()
    targets = case.targets.copy()
    for b, (t, s) in enumerate(shapes(case)):
        encoder_out[b, t:] = predictor_out[b, s:] = value
        targets[b, s - 1 :] = -(10**6)
    return case._replace(encoder_out=encoder_out, predictor_out=predictor_out, targets=targets)
