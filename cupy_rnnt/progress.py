"""What is told of the progress of a call: a callback, or the bar that ``progress=True`` draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import checks

Progress = Callable[[int, int], object]


class Bar:
    """A bar of cells on stderr, by tqdm; it is erased when all are done, or by :meth:`close`."""

    def __init__(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError(
                "progress=True needs tqdm, which draws the bar: pip install tqdm"
            ) from error
        self._new = tqdm
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:  # not before the arguments of the call are known to be right
            self._bar = self._new(total=total, unit=" cells", unit_scale=True, leave=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def progress_of(name: str, value: Any) -> Progress | None:
    """The callback that a user means: one of their own, a new bar for True, none for False."""
    if isinstance(value, bool):
        return Bar() if value else None
    callback: Progress = checks.callback(name, value)
    return callback
