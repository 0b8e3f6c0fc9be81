"""Counts of bytes, as people write and read them."""

from __future__ import annotations

import pytest

from cupy_rnnt.cli import terminal


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("123456", 123456),
        ("64KiB", 2**16),
        ("64 MiB", 2**26),
        ("1.5GiB", 3 * 2**29),
        ("2gib", 2**31),
        ("9007199254740993", 2**53 + 1),  # no detour through float
    ],
)
def test_bytes_are_read(text, count):
    assert terminal.parse_nbytes(text) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "0.977 KiB"),
        (2**28, "256 MiB"),
        (3 * 2**29, "1.5 GiB"),
        (1023 * 2**20, "0.999 GiB"),
        (2**42, "4 TiB"),
        (2**60, "1,048,576 TiB"),
    ],
)
def test_bytes_are_written(count, text):
    assert terminal.nbytes(count) == text
