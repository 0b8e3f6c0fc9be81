"""What a call with selection asks of a GPU and of its host.

The GPU goes by the model of ``costs.py``, and the host by the times that real CuPy took without a
GPU (``results/host_bfloat16.json``, ``host_float32.json``).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import costs
from costs import Batch, Operation, Parts

from cupy_rnnt.ops.cuda import sizes

RESULTS = Path(__file__).parent / "results"
ITEMSIZES = {"float32": 4, "bfloat16": 2}  # of the inputs, by what products multiply
ASKED = "memsets", "H2D", "D2H", "D2D", "GEMMs", "sorts", "CUB"
DRIVER = 2e-6  # seconds that a real driver adds to an operation of the stand-in for one
WORKSPACE = 2**30  # bytes: the least default
STORING = 0.5  # of the workspace, at most: logits that pass 1 stores


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def parts_of(
    computed: float,
    kept: float,
    vocabulary: int,
    further: int = 0,
    frames: float = 1,
    prefixes: float = 1,
) -> Parts:
    """Of a call that is one group, whose logits are stored as far as its first round goes, with
    frames and prefixes of one tile each by default. A round begins a tile, and no tile of pass 2
    has cells of both kinds."""
    rows = min(max(sizes.tile_elements // vocabulary, sizes.full_rows), sizes.most_rows)

    def tiles(cells: float) -> int:
        return math.ceil(cells / rows)

    incomplete = min(further, 1)
    return Parts(
        further_rounds=further,
        incomplete=incomplete,
        references=tiles(frames + prefixes) + tiles(frames),  # bounds have tiles of frames
        first=tiles(computed) + further,
        second=tiles(kept) + incomplete,
    )


def host_seconds(parts: Parts, products: str) -> float:
    """By the operations, from the call whose host time the stand-in took."""
    of = read(f"host_{products}")
    asked = sum(of[name] for name in ("own kernels", "CuPy kernels", *ASKED))
    measured = 1e-3 * of["host ms"]["median"] + DRIVER * asked
    counted = parts_of(of["info"]["computed"], of["info"]["kept"], of["call"]["vocab"])
    return measured * parts.total(costs.OPERATIONS) / counted.total(costs.OPERATIONS)


def operations(
    batch: Batch,
    vocabulary: int,
    hidden: int,
    computed: float,
    kept: float,
    products: str,
    workspace: float = WORKSPACE,
) -> list[Operation]:
    """Of the device, for numbers of cells that are computed and kept."""
    room = STORING * workspace / (4 * vocabulary)  # logits are float32
    return costs.engine(
        batch,
        vocabulary,
        hidden,
        computed / batch.cells,
        kept / batch.cells,
        itemsize=ITEMSIZES[products],
        stored=min(1.0, room / computed),
    )
