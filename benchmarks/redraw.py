"""Draws the pictures of stored results again, and measures nothing.

    python benchmarks/redraw.py             # of all benchmarks that it knows
    python benchmarks/redraw.py joint bands

Reads ``results/NAME.json``, and writes what the benchmark of that name would draw of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
NAMES = (
    *("accuracy", "adapters", "bands", "curves", "joint"),
    *("logits", "selection", "selection_figures", "workspace"),
)


def figures(name: str) -> dict[str, Figure]:
    """By the names of their files."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    drawn = importlib.import_module(name).draw(rows)
    return drawn if isinstance(drawn, dict) else {name: drawn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of benchmarks: all of them")
    for name in parser.parse_args().names or NAMES:
        for file, figure in figures(name).items():
            figure.savefig(RESULTS / f"{file}.png", dpi=150)


if __name__ == "__main__":
    main()
