"""Running the command line in this process, on lengths that take no time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cupy_rnnt import cli

SMALL = ["--vocab", "11", "--hidden", "6"]
FRAMES, LABELS = np.array([9, 4, 7, 5]), np.array([3, 2, 0, 4])  # 36, 12, 7 and 25 cells
CHECKED = ["cost", "gradient of encoder_out", "gradient of predictor_out"]


class Printed(NamedTuple):
    """What a command line has left."""

    status: int
    rows: dict[str, str]
    """The text after each name."""
    errors: str
    title: str
    """The first line."""


def printed(capsys: Any, *argv: str) -> Printed:
    """Run a command line."""
    status = cli.main(argv)
    out, errors = capsys.readouterr()
    rows: dict[str, str] = {}
    name = ""
    for line in out.splitlines():
        if line.startswith("  "):
            name = line[2:28].strip() or name
            rows[name] = f"{rows.get(name, '')} {line[28:]}".strip()
    return Printed(status, rows, errors, out.partition("\n")[0])


def shorten(monkeypatch: Any) -> None:
    """The utterances of LibriSpeech to some frames and labels."""
    monkeypatch.setattr(cli, "librispeech_lengths", lambda size: (FRAMES[:size], LABELS[:size]))
