"""What the command line prints and reads: rows, sizes in bytes, a progress bar."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import NoReturn

from ..progress import Bar, Progress


@contextmanager
def progress() -> Iterator[Progress | None]:
    """A bar on stderr, if that is a terminal; it is erased when the work is done."""
    if not sys.stderr.isatty():
        yield None
    elif find_spec("tqdm") is None:
        try:
            yield lambda done, total: write(f"\r{done / total:4.0%} {'#' * (40 * done // total)}")
        finally:
            write(f"\r{'':45}\r")
    else:
        with closing(Bar()) as bar:
            yield bar


def write(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def heading(text: str) -> None:
    print(f"\n{text}")


def row(name: str, text: str) -> None:
    print(f"  {name:<26}{text}", flush=True)


def complain(message: str, status: int) -> int:
    write(f"cupy_rnnt: error: {' '.join(message.split())}\n")
    return status


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def digits(value: float) -> str:
    """A number with at least three significant digits."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def nbytes(count: int) -> str:
    """In binary units, as in ``256 MiB``."""
    value, units = float(count), ["TiB", "GiB", "MiB", "KiB", "bytes"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop()
    return f"{digits(value)} {units[-1]}"


def parse_nbytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)(?:(\.\d+)? ?([kmg])ib)?", text, re.ASCII | re.IGNORECASE)
    if not match:
        example = "such as 50000000, 64MiB or 1.5GiB"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes {example}")
    whole, fraction, unit = match.groups()
    scale = 1024 ** (1 + "kmg".index(unit.lower())) if unit else 1
    return int(whole) * scale + int(float(fraction or 0) * scale)


def at_least(least: int) -> Callable[[str], int]:
    most = 2**31 - 1

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
            limits = f"between {least} and {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return int(text)

    return parse


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors, so that ``main`` reports them like those of the library."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
