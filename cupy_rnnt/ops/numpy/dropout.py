"""Dropout of hidden values on NumPy arrays: what is dropped follows from counters, not from memory.

The random numbers are those of Philox4x32 with 7 rounds (Salmon, Moraes, Dror and Shaw, "Parallel
random numbers: as easy as 1, 2, 3", SC 2011), the fewest that pass all tests of that paper.
"""

from __future__ import annotations

import numpy as np

from ..types import Dropout, HostArray

_ROUNDS = 7
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_HALF, _MASK = np.uint64(32), np.uint64(2**32 - 1)
_COUNTERS = 2**13  # whose words are made together: 64 KiB for each of some arrays


def drop(
    dropout: Dropout, sample: HostArray, frame: HostArray, position: HostArray, rows: HostArray
) -> None:
    """Multiply hidden values, (n, H), by 0 or by `scale`; coordinates are (n,)."""
    blocks = -(-rows.shape[1] // 4)
    some = max(1, _COUNTERS // blocks)
    for start in range(0, len(rows), some):
        part = rows[start : start + some]
        of_cells = (c[start : start + some, None] for c in (position, frame, sample))
        words = philox(dropout.seed, np.arange(blocks), *of_cells)
        kept = words.reshape(len(part), -1)[:, : part.shape[1]] >= dropout.threshold
        part *= kept * part.dtype.type(dropout.scale)


def philox(seed: int, *counter: HostArray) -> HostArray:
    """The four words, uint32 (n, m, 4), of counters whose words are each (m,) or (n, 1)."""
    keys = seed & 0xFFFFFFFF, seed >> 32
    words = [np.asarray(word).astype(np.uint64) & _MASK for word in counter]
    for number in range(_ROUNDS):
        low, high = (word * x for word, x in zip(words[::2], _MULTIPLIERS, strict=True))
        of_round = (
            np.uint64((key + number * weyl) & 0xFFFFFFFF)
            for key, weyl in zip(keys, _WEYL, strict=True)
        )
        upper = [(high >> _HALF) ^ words[1], (low >> _HALF) ^ words[3]]
        first, third = (word ^ key for word, key in zip(upper, of_round, strict=True))
        words = [first, high & _MASK, third, low & _MASK]
    shape = np.broadcast_shapes(*(word.shape for word in words))
    result = np.empty((*shape, 4), np.uint32)
    for i, word in enumerate(words):
        result[..., i] = word
    return result
