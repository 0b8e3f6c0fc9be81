"""What must kernels and training steps take on a GPU, by its data sheet? Computed, not measured.

The model is in ``costs.py``. Tables of the documentation go to ``docs/costs/``. There need be no
GPU, nor PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import costs
from costs import KERNELS, MACHINES, Batch, Kernel, Machine, Operation
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
TABLES = Path(__file__).parents[1] / "docs" / "costs"

SAMPLES, FRAMES, POSITIONS = 25, 400, 100  # a million cells, without padding
BATCH = Batch.of([FRAMES] * SAMPLES, [POSITIONS] * SAMPLES)
VOCABULARIES, HIDDEN = (1024, 4096), 640
SHARES = (1.0, 1.0), (0.67, 0.63), (0.27, 0.25), (0.12, 0.10), (0.05, 0.04)
ITEMSIZES = {"float32": 4, "TF32": 4, "bfloat16": 2}  # of the inputs, by what products multiply
IN_WORDS = {"float32": "float32", "TF32": "if TF32", "bfloat16": "bfloat16"}
AUTOGRAD = "batched autograd"
STAGED = "cupy_rnnt, f = 0.12, k = 0.10"

Row = dict[str, Any]
Step = Callable[[int, int], list[Operation]]
"""Operations, by the vocabulary and the bytes of an input."""


def selecting(computed: float, kept: float) -> Step:
    return lambda v, itemsize: costs.engine(BATCH, v, HIDDEN, computed, kept, itemsize=itemsize)


STEPS: dict[str, Step] = {
    AUTOGRAD: lambda v, itemsize: costs.autograd(BATCH, v, HIDDEN, itemsize),
    "recomputing tiles": lambda v, itemsize: costs.engine(
        BATCH, v, HIDDEN, selects=False, itemsize=itemsize
    ),
    **{f"cupy_rnnt, f = {f:.2f}, k = {k:.2f}": selecting(f, k) for f, k in SHARES},
}


def stages(operations: list[Operation], machine: Machine, products: str) -> dict[str, float]:
    """Seconds of each, at least, with products apart."""
    found: dict[str, float] = {}
    for stage, name, work in operations:
        key = f"{stage}, {name}" if name == "products" else stage
        found[key] = found.get(key, 0.0) + work.seconds(machine, products)
    return found


def steps() -> list[Row]:
    rows = []
    for vocabulary in VOCABULARIES:
        for name, machine in MACHINES.items():
            for products, itemsize in ITEMSIZES.items():
                for step, made in STEPS.items():
                    operations = made(vocabulary, itemsize)
                    seconds = costs.seconds(operations, machine, products)
                    row = {"vocabulary": vocabulary, "machine": name, "products": products}
                    row |= {"step": step, "seconds": seconds}
                    row |= {"nanoseconds_per_cell": 1e9 * seconds / BATCH.cells}
                    rows.append(row | {"stages": stages(operations, machine, products)})
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
    header += [f"{kind} (TFLOP/s)" for kind in ITEMSIZES]
    rows = [
        [name, *(f"{x:.4g}" for x in (m.bandwidth / 1e9, m.special / 1e12, m.float64 / 1e12))]
        + [f"{rate / 1e12:.4g}" for rate in m.products.values()]
        for name, m in MACHINES.items()
    ]
    return [header, *rows]


def of_steps(rows: list[Row], vocabulary: int) -> list[list[str]]:
    """Milliseconds, and multiples of batched autograd."""
    columns = [f"{machine}, {products}" for machine in MACHINES for products in IN_WORDS.values()]
    table = {step: [step] for step in STEPS}
    for row in rows:
        if row["vocabulary"] == vocabulary:
            milliseconds = 1e3 * row["seconds"]
            if row["step"] == AUTOGRAD:  # the first one of each column
                base = milliseconds
            table[row["step"]].append(f"{digits(milliseconds)} ({milliseconds / base:.2f})")
    return [["step", *columns], *table.values()]


def of_stages(rows: list[Row], vocabulary: int) -> list[list[str]]:
    """Milliseconds of the stages of one step."""
    chosen = [row for row in rows if row["vocabulary"] == vocabulary and row["step"] == STAGED]
    header = ["stage", *(f"{row['machine']}, {IN_WORDS[row['products']]}" for row in chosen)]
    body = [
        [stage, *(f"{1e3 * row['stages'][stage]:.2f}" for row in chosen)]
        for stage in chosen[0]["stages"]
    ]
    return [header, *body]


def tables(rows: list[Row]) -> dict[str, str]:
    """Texts of the files in ``docs/costs/``, by their names."""
    made = {"kernels": of_kernels(), "machines": of_machines()}
    made |= {f"steps_{v}": of_steps(rows, v) for v in VOCABULARIES}
    made |= {f"stages_{v}": of_stages(rows, v) for v in VOCABULARIES}
    texts = {}
    for name, table in made.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(table)
        texts[f"{name}.csv"] = text.getvalue()
    return texts


def draw(rows: list[Row]) -> Figure:
    chart = Figure(figsize=(11, 8), layout="constrained")
    panels = chart.subplots(len(VOCABULARIES), len(MACHINES), sharey="row")
    for vocabulary, line in zip(VOCABULARIES, panels, strict=True):
        for machine, axes in zip(MACHINES, line, strict=True):
            mine = [r for r in rows if (r["vocabulary"], r["machine"]) == (vocabulary, machine)]
            for i, step in enumerate(STEPS):
                places = [k + 0.12 * (i - 3) for k in range(len(ITEMSIZES))]
                heights = [1e3 * row["seconds"] for row in mine if row["step"] == step]
                drawn = axes.bar(places, heights, 0.12, label=step)
                axes.bar_label(drawn, map(digits, heights), fontsize=6)
            axes.set_yscale("log")
            axes.set_xticks(range(len(ITEMSIZES)), IN_WORDS.values())
            axes.set_title(f"{machine}, V = {vocabulary}", fontsize=10)
    for line in panels:
        line[0].set_ylabel("least milliseconds, or ns / cell")
    handles = panels[0][0].get_legend_handles_labels()
    chart.legend(*handles, loc="outside upper center", ncols=4)
    chart.supxlabel("computed from data sheets, not measured", fontsize=10)
    return chart


def content(rows: list[Row]) -> Row:
    return {
        "note": "computed from data sheets, not measured",
        "batch": {"samples": SAMPLES, "frames": FRAMES, "positions": POSITIONS, "hidden": HIDDEN},
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
