"""Where cells are, from their packed indices."""

from __future__ import annotations

import numpy as np
import pytest

from ..device_calls import operations, to_device, to_host
from ..helpers import samples_of


@pytest.mark.parametrize("lengths", [[(1, 1)], [(3, 2), (1, 1), (1, 7), (40, 1), (9, 33)]], ids=len)
def test_every_cell_is_where_it_is(device, lengths):
    rng, longest = np.random.default_rng(0), max(positions for _, positions in lengths)
    labels = rng.integers(1, 9, (len(lengths), longest))
    expected = [
        (b, t, u, labels[b, u], u < positions - 1)
        for b, (frames, positions) in enumerate(lengths)
        for t in range(frames)
        for u in range(positions)
    ]
    frames, positions = np.array(lengths, np.int64).T
    samples = samples_of(operations(), frames, positions, labels)
    for chosen in np.arange(len(expected)), rng.permutation(len(expected))[:5], np.arange(0):
        cells = to_host(operations().coordinates(samples, to_device(chosen)))
        wanted = np.array([expected[i] for i in chosen], np.int64).reshape(-1, 5).T
        for name, actual, values in zip(cells._fields, cells, wanted, strict=True):
            assert actual.tolist() == values.tolist(), name


def test_indices_beyond_32_bits(device):
    """Of samples of 2**33 cells, of which there is no other array."""
    labels = np.arange(2 * 2**13).reshape(2, 2**13)
    samples = samples_of(operations(), [2**22, 2**20], [2**11, 2**13], labels)
    packed = np.array([2**33 - 1, 2**33, 2**34 - 1])
    cells = to_host(operations().coordinates(samples, to_device(packed)))
    assert cells.sample.tolist() == [0, 1, 1]
    assert cells.frame.tolist() == [2**22 - 1, 0, 2**20 - 1]
    assert cells.position.tolist() == [2**11 - 1, 0, 2**13 - 1]
    assert cells.label.tolist() == [2**11 - 1, 2**13, 2**14 - 1]


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_places_among_ascending_numbers(device, size):
    rng = np.random.default_rng(size)
    numbers = np.sort(rng.choice(3000, size, replace=False)) + 2**40
    for values in numbers, rng.integers(0, 3000, 300) + 2**40, np.arange(0):
        found = to_host(operations().places(to_device(numbers), to_device(values)))
        assert found.tolist() == [int((numbers < value).sum()) for value in values]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_values_that_are_found_come_first(device, share):
    """Of 9000, which CUDA reads in chunks of 4096."""
    rng = np.random.default_rng(0)
    values = np.sort(rng.choice(20000, 9000, replace=False)) + 2**40
    is_found = rng.random(len(values)) < share
    others = np.setdiff1d(rng.integers(0, 20000, 500) + 2**40, values)
    numbers = np.union1d(values[is_found], others)
    moved, places, count = operations().found_first(to_device(numbers), to_device(values))
    moved, places = to_host(moved), to_host(places)
    assert count == is_found.sum()
    assert moved.tolist() == [*values[is_found], *values[~is_found]]
    assert numbers[places[:count]].tolist() == values[is_found].tolist()
