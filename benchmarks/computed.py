"""What must a training step take on a GPU, by its data sheet? Computed, not measured.

The model is in ``costs.py``. Two things are read from ``results``: host times of calls
(``host_bfloat16.json``, ``host_float32.json``, ``host_untrained.json``) and steps of sweeps
(``sweeps.json``). Tables of the documentation go to ``docs/costs/``. There need be no GPU, nor
PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import costs
import modelled
import style
from costs import KERNELS, MACHINES, Batch, Kernel, Machine, Operation
from matplotlib.figure import Figure
from modelled import ASKED, ITEMSIZES, RESULTS, host_seconds, parts_of, read

TABLES = Path(__file__).parents[1] / "docs" / "costs"

HIDDEN = 640
MEMORY = {"A100": 80e9, "H100": 80e9, "RTX 4090": 24e9}
EAGER = 10e-6  # that PyTorch takes to run an operation and to note it for the gradient
OF_AUTOGRAD, OF_TILE, OF_FUSED = 30, 20, 12  # operations of a call, of each sample, of a call


class Shape(NamedTuple):
    """A batch without padding."""

    name: str
    samples: int
    frames: int
    positions: int
    vocabulary: int

    @property
    def batch(self) -> Batch:
        return Batch.of([self.frames] * self.samples, [self.positions] * self.samples)

    @property
    def title(self) -> str:
        of = f"T = {self.frames}, U = {self.positions - 1}, V = {self.vocabulary}"
        return f"B = {self.samples}, {of}"


SHAPES = (
    Shape("1024", 25, 400, 100, 1024),  # a million cells
    Shape("4096", 25, 400, 100, 4096),
    Shape("small", 16, 370, 64, 1024),
)


# Steps


class Step(NamedTuple):
    """What a training step asks of the device and of the host."""

    operations: list[Operation]
    host: float
    """Seconds, for the device to run beside them."""
    sweeps: float
    """Seconds that the steps of sweeps take at least, one after the other."""

    def stages(self, machine: Machine, products: str) -> dict[str, float]:
        """Seconds of each on the device, at least, with products apart."""
        found: dict[str, float] = {}
        for stage, name, work in self.operations:
            key = f"{stage}, {name}" if name == "products" else stage
            found[key] = found.get(key, 0.0) + work.seconds(machine, products)
        sweeping = [of for of in self.operations if of.name in SWEEPING]
        found["sweeps"] += max(0.0, self.sweeps - costs.seconds(sweeping, machine, products))
        return found


def own_sweeps(shape: Shape, name: str, further: int = 0) -> float:
    """A further round of selection is taken to repeat all sweeps but the first."""
    machine, diagonals = MACHINES[name], shape.frames + shape.positions - 1
    each = [
        machine.diagonal(of["cycles"][name], of["issued"], of["float64"])
        for of in read("sweeps")["positions"][str(shape.positions)]
    ]
    return diagonals * (sum(each) + further * sum(each[1:]))


def their_sweeps(shape: Shape, name: str) -> float:
    """Alpha and beta side by side."""
    machine = MACHINES[name]
    cycles = costs.log_space_cycles(machine, math.ceil(shape.positions / 32))
    return (shape.frames + shape.positions - 1) * cycles / machine.clock


def selecting(computed: float, kept: float, further: int) -> Callable[[Shape, str, str], Step]:
    def step(shape: Shape, name: str, products: str) -> Step:
        cells, v = shape.batch.cells, shape.vocabulary
        of = computed * cells, kept * cells
        operations = modelled.operations(shape.batch, v, HIDDEN, *of, products)
        lengths = shape.batch.frames, shape.batch.prefixes
        host = host_seconds(parts_of(*of, v, further, *lengths), products)
        return Step(operations, host, own_sweeps(shape, name, further))

    return step


def autograd(shape: Shape, name: str, products: str) -> Step:
    operations = costs.autograd(shape.batch, shape.vocabulary, HIDDEN, ITEMSIZES[products])
    return Step(operations, OF_AUTOGRAD * EAGER, their_sweeps(shape, name))


def tiles(shape: Shape, name: str, products: str) -> Step:
    itemsize = ITEMSIZES[products]
    operations = costs.engine(
        shape.batch, shape.vocabulary, HIDDEN, selects=False, itemsize=itemsize
    )
    return Step(operations, OF_TILE * shape.samples * EAGER, their_sweeps(shape, name))


def fused(shape: Shape, name: str, products: str) -> Step:
    operations = costs.fused(shape.batch, shape.vocabulary, HIDDEN, ITEMSIZES[products])
    return Step(operations, OF_FUSED * EAGER, their_sweeps(shape, name))


SWEEPING = "lattice_sweep", "sweeps"  # operations of this package, and of others
HOSTS = "few", "bfloat16", "float32", "untrained", "large"
JOINTS = {"shares": "of 40 s, f = 0.05, k = 0.04"}
AUTOGRAD = "batched autograd"
SHARES = (0.67, 0.56, 1), (0.27, 0.21, 0), (0.12, 0.08, 0), (0.05, 0.04, 0)  # further rounds, too
STAGED = "cupy_rnnt, f = 0.12, k = 0.08"
STEPS: dict[str, Callable[[Shape, str, str], Step]] = {
    AUTOGRAD: autograd,
    "recomputing tiles": tiles,
    "fused kernel": fused,
    **{f"cupy_rnnt, f = {f:.2f}, k = {k:.2f}": selecting(f, k, r) for f, k, r in SHARES},
}

Row = dict[str, Any]


def fits(shape: Shape, name: str, products: str) -> bool:
    """Whether autograd has room for logits, hidden values and their gradients."""
    each = 2 * ITEMSIZES[products] * (shape.vocabulary + HIDDEN)
    return each * shape.batch.cells <= MEMORY[name]


def steps() -> list[Row]:
    rows = []
    for shape in SHAPES:
        for name, machine in MACHINES.items():
            for products in ITEMSIZES:
                for step, made in STEPS.items():
                    of = made(shape, name, products)
                    stages = of.stages(machine, products)
                    device = math.fsum(stages.values())
                    rows.append(
                        {
                            "shape": shape.name,
                            "machine": name,
                            "products": products,
                            "step": step,
                            "fits": step != AUTOGRAD or fits(shape, name, products),
                            "host": of.host,
                            "device": device,
                            "seconds": max(of.host, device),
                            "stages": stages,
                        }
                    )
    return rows


# Tables, with their header


def per_item(kernel: Kernel, field: str) -> str:
    """Bytes or instructions in float32, as ``8 H + 24``."""
    rest, one = (getattr(kernel.work(n, 4, 4), field) for n in (0, 1))
    each = f"{one - rest:g} {kernel.width}".removeprefix("1 ")
    return " + ".join([each] * (one > rest) + [f"{rest:g}"] * (rest > 0))


def digits(milliseconds: float) -> str:
    """Three, or more before the point."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:#.3g}"


def of_kernels() -> list[list[str]]:
    header = ["kernel", "item", "bytes", "from a cache", "float32", "special", "float64"]
    fields = "bytes", "cached", "float32", "special", "float64"  # of Work
    rows = [
        [f"``{name}``", kernel.item, *(per_item(kernel, field) for field in fields)]
        for name, kernel in KERNELS.items()
    ]
    return [header, *rows]


def of_machines() -> list[list[str]]:
    header = ["GPU", "memory (GB/s)", "special (T/s)", "float64 (TFLOP/s)"]
    kinds = "float32", "TF32", "bfloat16"
    header += [f"{kind} (TFLOP/s)" for kind in kinds] + ["clock (GHz)", "multiprocessors"]
    rows = [
        [name, *(f"{x:.4g}" for x in (m.bandwidth / 1e9, m.special / 1e12, m.float64 / 1e12))]
        + [f"{m.products[kind] / 1e12:.4g}" for kind in kinds]
        + [f"{m.clock / 1e9:.2f}", str(m.multiprocessors)]
        for name, m in MACHINES.items()
    ]
    return [header, *rows]


def of_latencies() -> list[list[str]]:
    """Cycles."""
    kinds = next(iter(MACHINES.values())).latencies
    rows = [
        [IN_WORDS[kind], *(f"{m.latencies[kind]:g}" for m in MACHINES.values())] for kind in kinds
    ]
    return [["instruction", *MACHINES], *rows]


IN_WORDS = {
    "integer": "integers, comparisons, branches",
    "float32": "float32",
    "float64": "float64",
    "special": "exponential, logarithm and the like, of float32",
    "shared": "load from shared memory",
    "global": "load from L2",
    "store": "store, until it is on its way",
    "shuffle": "shuffle, vote",
    "barrier": "barrier",
    "barrier_warp": "barrier, more for each warp",
}


def of_sweeps() -> list[list[str]]:
    """Of a diagonal: instructions, and microseconds by machine."""
    header = ["sweep", "of", "U + 1", "instructions", "chain", "cycles, H100", "float64 issued"]
    rows = []
    for positions, sweeps in read("sweeps")["positions"].items():
        for swept, of in zip(("bounds", "scores"), sweeps, strict=True):
            times = [
                m.diagonal(of["cycles"][name], of["issued"], of["float64"])
                for name, m in MACHINES.items()
            ]
            counts = (f"{x:.0f}" for x in (of["instructions"], of["chain"], of["cycles"]["H100"]))
            row = [f"``{of['kernel']}``", swept, positions, *counts, f"{of['float64']:.1f}"]
            rows.append([*row, *(f"{1e6 * seconds:.2f}" for seconds in times)])
    return [[*header, *(f"us, {name}" for name in MACHINES)], *rows]


def of_host() -> list[list[str]]:
    """What the stand-in counts, and the formula beside it."""
    header = ["joint", "B", "inputs", "operations", "by the formula", "allocations", "waits"]
    rows = []
    for name in HOSTS:
        of = read(f"host_{name}")
        call, info = of["call"], of["info"]
        asked = sum(of[kind] for kind in ("own kernels", "CuPy kernels", *ASKED))
        lengths = (1, 1)
        if call["workload"] == "shares":
            lengths = call["batch"] * call["frames"], call["batch"] * (call["labels"] + 1)
        of_cells = info["computed"], info["kept"], call["vocab"], info["rounds"] - 1
        formula = parts_of(*of_cells, *lengths).total(costs.OPERATIONS)
        by_formula = formula if call["dtype"] == "bfloat16" else "n/a"
        counts = asked, by_formula, of["allocations"], of["synchronisations"]
        joint = JOINTS.get(call["workload"], call["workload"]), str(call["batch"]), call["dtype"]
        rows.append([*joint, *map(str, counts), f"{of['host ms']['median']:.1f}"])
    return [[*header, "host (ms)"], *rows]


def of_formula() -> list[list[str]]:
    names = {
        "calls": "call",
        "groups": "group of samples",
        "further_rounds": "further round of selection",
        "incomplete": "group with logits stored of some cells only",
        "references": "tile of references, or of bounds",
        "first": "tile of pass 1",
        "second": "tile of pass 2",
    }
    rows = [
        [name, str(getattr(costs.OPERATIONS, part)), str(getattr(costs.WAITS, part))]
        for part, name in names.items()
    ]
    return [["of each", "operations at most", "waits"], *rows]


def of_steps(rows: list[Row], shape: Shape) -> list[list[str]]:
    """Milliseconds, and multiples of batched autograd."""
    columns = [f"{machine}, {products}" for machine in MACHINES for products in ITEMSIZES]
    table = {step: [step] for step in STEPS}
    for row in rows:
        if row["shape"] == shape.name:
            milliseconds = 1e3 * row["seconds"]
            if row["step"] == AUTOGRAD:  # the first one of each column
                base = milliseconds
            marks = "" if row["fits"] else "\\*"
            text = f"{digits(milliseconds)}{marks} ({milliseconds / base:.2f})"
            table[row["step"]].append(text + " h" * (row["host"] > row["device"]))
    return [["step", *columns], *table.values()]


def of_stages(rows: list[Row], shape: Shape) -> list[list[str]]:
    """Milliseconds of the stages of one step."""
    chosen = [row for row in rows if row["shape"] == shape.name and row["step"] == STAGED]
    header = ["stage", *(f"{row['machine']}, {row['products']}" for row in chosen)]
    of = [row["stages"] | {"GPU, all": row["device"], "host": row["host"]} for row in chosen]
    return [header, *([stage, *(f"{1e3 * each[stage]:.2f}" for each in of)] for stage in of[0])]


def tables(rows: list[Row]) -> dict[str, str]:
    """Texts of the files in ``docs/costs/``, by their names."""
    made = {"kernels": of_kernels(), "machines": of_machines(), "latencies": of_latencies()}
    made |= {"sweeps": of_sweeps(), "host": of_host(), "formula": of_formula()}
    made |= {f"steps_{shape.name}": of_steps(rows, shape) for shape in SHAPES}
    made |= {f"stages_{shape.name}": of_stages(rows, shape) for shape in SHAPES}
    texts = {}
    for name, table in made.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(table)
        texts[f"{name}.csv"] = text.getvalue()
    return texts


DRAWN = {  # steps, by the words beside their bars: six a panel
    **{step: step for step in (AUTOGRAD, "recomputing tiles", "fused kernel")},
    **{
        f"cupy_rnnt, {f:.0%} of the cells": f"cupy_rnnt, f = {f:.2f}, k = {k:.2f}"
        for f, k, _ in SHARES[1:]
    },
}


def message(rows: list[Row]) -> str:
    """The title: times of a trained model as multiples of autograd."""
    of = {(r["shape"], r["machine"], r["products"], r["step"]): r["seconds"] for r in rows}
    ratios = [
        seconds / of[(*case, AUTOGRAD)]
        for (*case, step), seconds in of.items()
        if step == STAGED and case[2] == "bfloat16" and case[0] != "4096"
    ]
    times = f"{min(ratios):.2f} to {max(ratios):.2f} times as long as batched autograd"
    return f"A trained joint in bfloat16 takes {times}, on paper"


def draw(rows: list[Row]) -> Figure:
    chart = Figure(figsize=(11, 6), layout="constrained")
    shapes = [shape for shape in SHAPES if shape.vocabulary == 1024]
    panels = chart.subplots(len(shapes), len(MACHINES), sharey=True)
    for shape, line in zip(shapes, panels, strict=True):
        for machine, axes in zip(MACHINES, line, strict=True):
            case = shape.name, machine, "bfloat16"
            chosen = {
                row["step"]: row
                for row in rows
                if (row["shape"], row["machine"], row["products"]) == case
            }
            bars = [chosen[step] for step in DRAWN.values()]
            colours = [style.ORANGE if bar["host"] > bar["device"] else style.BLUE for bar in bars]
            heights = [1e3 * bar["seconds"] for bar in bars]
            drawn = axes.barh(list(DRAWN), heights, color=colours)
            axes.bar_label(drawn, map(digits, heights), fontsize=8, padding=2)
            axes.set_xlim(0, 1.2 * max(heights))
            axes.set_title(f"{machine}\n{shape.title}", fontsize=9)
            axes.set_xlabel("milliseconds a step", fontsize=8)
            axes.tick_params(labelsize=8)
    panels[0][0].invert_yaxis()
    labels = {style.BLUE: "the GPU decides", style.ORANGE: "the host decides"}
    handles = [panels[0][0].barh([0], [0], color=c, label=text) for c, text in labels.items()]
    chart.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    style.message(chart, message(rows))
    return chart


def content(rows: list[Row]) -> Row:
    return {
        "note": "computed from data sheets, not measured",
        "shapes": [shape._asdict() for shape in SHAPES],
        "hidden": HIDDEN,
        "machines": {name: machine._asdict() for name, machine in MACHINES.items()},
        "steps": rows,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = steps()
    TABLES.mkdir(exist_ok=True)
    for name, text in tables(rows).items():
        print(f"{name}\n{text}")
        (TABLES / name).write_text(text)
    (RESULTS / "computed.json").write_text(json.dumps(content(rows), indent=1) + "\n")
    draw(rows).savefig(RESULTS / "computed.png", dpi=150)


if __name__ == "__main__":
    main()
