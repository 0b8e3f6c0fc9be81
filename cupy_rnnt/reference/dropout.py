"""Dropout of the hidden values of a joint network, in plain Python.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np

from .lattice import FloatArray


def philox4x32(counter: tuple[int, ...], key: tuple[int, int], rounds: int = 7) -> tuple[int, ...]:
    """Four random numbers of 32 bits, from a counter of four such words and a key of two.

    Examples
    --------
    The first of the known answers of the authors' library, Random123:

    >>> [f"{number:08x}" for number in philox4x32((0, 0, 0, 0), (0, 0))]
    ['5f6fb709', '0d893f64', '4f121f81', '4f730a48']
    """
    a, b, c, d = counter
    x, y = key
    for _ in range(rounds):
        first, third = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = third >> 32 ^ b ^ x, third % 2**32
        c, d = first >> 32 ^ d ^ y, first % 2**32
        x, y = (x + 0x9E3779B9) % 2**32, (y + 0xBB67AE85) % 2**32
    return a, b, c, d


def dropout_factors(
    probability: float, seed: int, sample: int, frame: int, positions: int, units: int
) -> FloatArray:
    """What the hidden values of a frame are multiplied by, (positions, units): 0 or ``1 / (1 -
    probability)``.

    The number of unit j is word ``j % 4`` of Philox of ``(j // 4, position, frame, sample)``. Its
    unit is dropped if it is below ``probability * 2**32``.
    """
    key, factor = (seed % 2**32, seed >> 32), 1 / (1 - probability)
    threshold = round(probability * 2**32)
    factors = np.zeros((positions, units))
    for u in range(positions):
        for j in range(0, units, 4):
            numbers = philox4x32((j // 4, u, int(frame), int(sample)), key)
            for k, number in enumerate(numbers[: units - j]):
                factors[u, j + k] = factor if number >= threshold else 0
    return factors
