"""The steps of ``first_light.py``: what is measured on a GPU. Each runs in a process of its own."""

from __future__ import annotations

import json
import time
from typing import Any

MARK = "\x1efirst light: "
"""Before a result, in what the process of a step prints."""


class Report:
    """Where a step hands in its results, each at once.

    Parameters
    ----------
    small : bool
        Whether toy sizes will do: only that the step runs is of interest.
    seconds : float
        How long the step may take.
    plugin : str or None
        A module that was imported first, to stand for a GPU.
    """

    def __init__(self, small: bool, seconds: float, plugin: str | None) -> None:
        self.small, self.plugin = small, plugin
        self._end = time.monotonic() + seconds

    def __call__(self, text: str, **values: Any) -> None:
        """A line for people, and the values for the file."""
        print(MARK + json.dumps({"text": text, **values}), flush=True)

    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def has_time(self, what: str, seconds: float = 2.0) -> bool:
        """Whether there is time for a measurement; reported if there is not."""
        enough = self.seconds_left() > seconds
        if not enough:
            self(f"{what}: not run, no time left", not_run=what)
        return enough


def in_short(error: Exception) -> str:
    """Its kind and its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def require(passed: bool, text: str) -> None:
    """Fail the step, which has reported what there is to know."""
    if not passed:
        raise SystemExit(text)
