"""What a step of a sweep over a lattice takes, however many threads there are.

``python -m tests.ops.cuda.sweep_latency`` writes benchmarks/results/sweeps.json. It runs loss and
gradients of one sample, whose cells are selected, for two numbers of frames, on the emulated
device. What a sweep takes more for more frames, it takes for their diagonals. A sweep is a kernel
that has a barrier a diagonal at least, and a chain that grows with them: there is no list of them.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np

import cupy_rnnt
from benchmarks import costs

from ... import devices
from ...device_calls import running_on, to_device
from ...emulated.kernels import Launched
from ...engine.selection.cases import below, first_choice, selecting
from ...engine.selection.test_engine import trained
from ...ptxemu.interp import CLASSES
from .kernel_sectors import ROOT, compiler

RESULTS = ROOT / "benchmarks" / "results" / "sweeps.json"
FRAMES, POSITIONS = (128, 192), (64, 100)


class Sweep(NamedTuple):
    """Of a diagonal."""

    kernel: str
    instructions: float
    """Of the busiest thread."""
    chain: float
    """Instructions of the longest chain."""
    cycles: dict[str, float]
    """Of the longest chain, by machine."""
    issued: float
    """Instructions of the warps of a block."""
    float64: float
    """Those of them in float64."""


def launched(gpu: Any, frames: int, positions: int) -> list[Launched]:
    """By a call whose first round is its last."""
    lengths = np.array([frames]), np.array([positions - 1])
    sizes = {"size": 1, "frames": frames, "labels": positions - 1, "lengths": lengths}
    joint = to_device(trained(**sizes, sharpness=8.0, noise=0.1, dtype=np.float32))
    options = gpu.xp.kernels.options
    before = dict(vars(options))
    latencies = {name: machine.latencies for name, machine in costs.MACHINES.items()}
    vars(options).update(races=False, counters=True, latencies=latencies)
    gpu.xp.kernels.launches.clear()
    try:
        with selecting(), first_choice(_nearly_all):
            *_, info = cupy_rnnt.joint_rnnt_loss_and_grad(*joint, return_info=True)
    finally:
        vars(options).update(before)
    assert info.rounds == 1
    assert info.computed == info.cells - 1
    return list(gpu.xp.kernels.launches)


def _nearly_all(*lattice: Any) -> Any:
    """All cells but one that hardly a path leads to: all arcs of the others are worth their work,
    in all diagonals."""
    chosen, positions = below(3.0)(*lattice), lattice[-1]
    chosen[...] = True
    chosen[int(positions[0]) - 1] = False
    return chosen


class _Growth(NamedTuple):
    """What the counters of a kernel grow by a diagonal, from a launch to one for more frames."""

    fewer: Launched
    more: Launched
    diagonals: int

    def of(self, name: str, key: str | None = None) -> float:
        """Of a counter, or of an entry of it that may be missing."""
        fewer, more = (each.report.counters[name] for each in self[:2])
        if key is not None:
            fewer, more = fewer.get(key, 0), more.get(key, 0)
        return (more - fewer) / self.diagonals

    def issued(self, kind: str) -> float:
        """Of instructions that the warps of a block issue."""
        return self.of("warp_instructions", kind) / self.fewer.grid[0]

    def is_of_sweep(self) -> bool:
        """Whether diagonals have a barrier, and wait for each other."""
        return self.issued("barrier") >= 1 and self.of("chain_instructions") >= 1

    def sweep(self) -> Sweep:
        return Sweep(
            kernel=re.match(r"\w+", self.fewer.kernel)[0],
            instructions=self.of("thread_instructions"),
            chain=self.of("chain_instructions"),
            cycles={machine: self.of("chain_cycles", machine) for machine in costs.MACHINES},
            issued=sum(map(self.issued, CLASSES)),
            float64=self.issued("fp64"),
        )


def sweeps(gpu: Any, positions: int, frames: tuple[int, int] = FRAMES) -> list[Sweep]:
    """In the order in which a call runs them, one after the other."""
    runs = (launched(gpu, t, positions) for t in frames)
    growths = (_Growth(*pair, frames[1] - frames[0]) for pair in zip(*runs, strict=True))
    return [growth.sweep() for growth in growths if growth.is_of_sweep()]


def main() -> None:
    with devices.emulated("90") as gpu, running_on(gpu):
        found = {positions: sweeps(gpu, positions) for positions in POSITIONS}
    content = {
        "note": "counted by an emulator of PTX, not measured",
        "written by": "python -m tests.ops.cuda.sweep_latency",
        "compiler": compiler(),
        "latencies": {name: machine.latencies for name, machine in costs.MACHINES.items()},
        "positions": {
            str(positions): [sweep._asdict() for sweep in of_size]
            for positions, of_size in found.items()
        },
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    for positions, of_size in found.items():
        for sweep in of_size:
            print(positions, sweep)


if __name__ == "__main__":
    main()
