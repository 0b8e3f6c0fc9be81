"""Kernels of lattices and bounds with a planted fault, which the emulator must find."""

from __future__ import annotations

import numpy as np
import pytest

from cupy_rnnt.ops.cuda import (
    lattice as cuda_lattice,
)
from cupy_rnnt.ops.cuda import (
    launch,
)
from cupy_rnnt.topology import LABEL, Arc, Topology
from cupy_rnnt.transducer import NAMED, Transducer

from ... import devices
from ...emulated.memory import UninitialisedRead
from ...ptxemu import KernelError
from ...transducers.cases import multi_blank, tdt
from ..lattice_cases import Side, random_case
from . import test_rows_faults as test_kernels_rows_faults
from .test_bounds import on_gpu, random_inputs, row_of

BARRIER = "__syncthreads();"

# What runs, file, what is replaced by what, what is found
FAULTS = {
    "diagonals overwritten before they are read": (
        *(
            "exact",
            "lattice.cuh",
            f"            {BARRIER}\n        }}\n    }}\n}}",
            "        }\n    }\n}",
        ),
        "race",
    ),
    "diagonals cleared after they are written": (
        *("exact", "lattice.cuh", f"exponents() + i);\n        {BARRIER}", "exponents() + i);"),
        "race",
    ),
    "sweeps of a block that overlap": (
        *("exact", "lattice.cu", f"        {BARRIER}  // the sweep before has been read\n", ""),
        "race",
    ),
    "diagonals that are not cleared": (
        *("exact", "lattice.cuh", "i < kCount * columns; i +=", "i < 0; i +="),
        "uninitialised",
    ),
    "a column before the first": (
        *("exact", "lattice.cuh", "min(max(c, 0), columns - 1)", "min(c, columns - 1)"),
        "out-of-bounds|uninitialised|race",
    ),
    "an arc from before the first frame": (
        *("exact", "lattice.cuh", "return frame >= arc.frames && position", "return position"),
        "out-of-bounds|uninitialised",
    ),
    "a position too many behind a cell": (
        *("exact", "lattice.cuh", "|| position >= lattice.positions) return N", ") return N"),
        "out-of-bounds|uninitialised",
    ),
    "an end from before the first frame": (
        *("long arcs", "lattice.cuh", "&& lattice.frames >= arc.frames && lattice", "&& lattice"),
        "out-of-bounds|uninitialised|invalid-address",
    ),
    "a diagonal too few in memory": (
        *("exact", "lattice.cuh", "kCount = T::reach + 1;", "kCount = T::reach;"),
        "race|uninitialised",
    ),
    "exact cells beside the last position": (
        *("aside", "lattice.cuh", "exists && position + T::aside < lattice.positions;", "exists;"),
        "out-of-bounds|uninitialised|misaligned",
    ),
    "diagonals of two ways in one place": (
        *("exact", "lattice.cu", "= spare + i / count * stride +", "= spare +"),
        "race|uninitialised",
    ),
    "occupancies by the cost of another sample": (
        *("exact", "cells.cu", "costs[sample], of_labels", "costs[sample - count], of_labels"),
        "out-of-bounds",
    ),
    "a sweep whose sums are not kept": (
        *("exact", "lattice.cu", "if (out) out[lattice.place(d, c)]", "if (out && d < 0) out[0]"),
        "uninitialised",
    ),
    "costs that are not written": (
        *("exact", "lattice.cu", "if (threadIdx.x) continue;", "if (threadIdx.x < 999) continue;"),
        "uninitialised",
    ),
    "two that poison a sample": (
        *(
            "exact",
            "lattice.cuh",
            "atomicOr(flags + number, kPoisoned)",
            "flags[number] = kPoisoned",
        ),
        "race",
    ),
    "cells that are not marked as exact": (
        *(
            "bounded",
            "lattice.cuh",
            "word_of(score);\n        }\n        if (exact) exact[place] = true",
            "word_of(score);\n        }\n        if (exact) exact[-1] = true",
        ),
        "out-of-bounds|race",
    ),
    "cells left out that keep their words": (
        *(
            "left out",
            "lattice.cu",
            "for (int64 k = 0; k < kinds",
            "for (int64 k = 1; k < kinds",
        ),
        "uninitialised",
    ),
    "cells of which nothing says whether they are left out": (
        *("left out", "lattice.cu", "left_out[place] = out;", ""),
        "uninitialised",
    ),
    "a band of the frames of the sample before": (
        *("left out", "lattice.cu", "= sample * most_frames +", "= (sample - 1) * most_frames +"),
        "out-of-bounds",
    ),
    "marks that are not written": (
        *("bounded", "cells.cu", "        marks[i] = mark;\n", ""),
        "uninitialised",
    ),
    "a count that threads write to": (
        *(
            "exact",
            "indices.cu",
            "if (threadIdx.x == 0) counts[i]",
            "if (threadIdx.x < 2) counts[i]",
        ),
        "race",
    ),
    "ranks of the warps before, read too early": (
        *("exact", "indices.cu", f"__popc(marks);\n        {BARRIER}", "__popc(marks);"),
        "race",
    ),
    "a sum over the block that is read too early": (
        *("exact", "indices.cu", f"= value;\n    {BARRIER}", "= value;"),
        "race",
    ),
    "parts of rows read before they are there": (
        *("bounds", "bounds.cu", f"{BARRIER}\n            if (logistic)", "if (logistic)"),
        "race|uninitialised",
    ),
    "parts of rows overwritten before they are read": (
        *("bounds", "bounds.cu", f"{BARRIER}  // the part before has been read", ""),
        "race",
    ),
    "frames behind the last": (
        *("bounds", "bounds.cu", "t < tile.frames && ", ""),
        "race|out-of-bounds",
    ),
    "positions behind the last": (
        *("bounds", "bounds.cu", " && u < tile.positions", ""),
        "race|out-of-bounds",
    ),
    "vectors behind the last": (
        *("bounds of labels", "bounds.cu", "0 <= number && number < from.width", "true"),
        "out-of-bounds",
    ),
    "logits that are not there": (
        *("bounds of many", "bounds.cu", "if (k < logits)", "if (k == 0)"),
        "uninitialised",
    ),
    "rows behind the last": (
        *("bounds", "bounds.cu", "row < count && j + k < width", "j + k < width"),
        "out-of-bounds",
    ),
    "elements behind the last": (
        *("bounds", "bounds.cu", "row < count && j + k < width", "row < count"),
        "out-of-bounds",
    ),
    "packs that are not aligned": (
        *("bounds", "bounds.cu", "if (aligned && row < count", "if (row < count"),
        "misaligned",
    ),
    "tiles of the sample before": (
        *("bounds", "bisection.cuh", "middle] <= limit ?", "middle] < limit ?"),
        "uninitialised",
    ),
}

kernels = test_kernels_rows_faults.kernels


def lattices(transducer=NAMED["regular"]):
    shapes = (36, 34), (1, 1), (9, 4), (7, 12), (1, 1)
    return random_case(np.random.default_rng(0), shapes, 0, transducer)


def exact(gpu, case):
    case.scores[0, case.cells.sample == 2] = np.nan
    side = Side(case, gpu)
    of = side.exact()
    side.occupancies(of, side.costs(of))


def bounded(gpu, case):
    side = Side(case, gpu)
    of = side.bounded()
    side.write(of, np.flatnonzero(case.cells.position < 4))
    side.certify(of)
    side.candidates(of, np.full(len(case.frames), -9.0))
    side.costs(of)


def left_out(gpu, case):
    side = Side(case, gpu)
    of = side.made("Lattice", True)
    first = np.minimum(np.arange(36), case.columns[:, None] - 1)
    stop = np.minimum(first + 3, case.columns[:, None])
    of.leave_out(first, stop)
    sample, frame, position, *_ = case.cells
    inside = (first[sample, frame] <= position) & (position < stop[sample, frame])
    side.write(of, np.flatnonzero(inside))
    side.kept(of, side.costs(of))


def bounds(gpu, transducer=NAMED["regular"]):
    row = row_of(transducer)
    lengths = [(70, 9), (3, 20)]
    inputs = random_inputs(np.random.default_rng(0), 35, np.float32, None, lengths, 0, row)
    on_gpu(gpu, inputs)


RUNS = {
    "exact": lambda gpu: exact(gpu, lattices()),
    "long arcs": lambda gpu: exact(gpu, lattices(multi_blank((2, 4)))),
    "bounded": lambda gpu: bounded(gpu, lattices()),
    "left out": lambda gpu: left_out(gpu, lattices()),
    "aside": lambda gpu: bounded(gpu, lattices(NAMED["constrained"])),
    "bounds": bounds,
    "bounds of many": lambda gpu: bounds(gpu, tdt(range(3))),
    "bounds of labels": lambda gpu: bounds(gpu, Transducer(Topology((Arc(1, 1, (LABEL,)),)))),
}


def run(name, monkeypatch):
    """In so few blocks that each has several items; one lattice does not fit into shared memory."""
    monkeypatch.setattr(launch, "MOST_BLOCKS", 2)
    monkeypatch.setattr(cuda_lattice, "_most_columns", lambda _: 33)
    with devices.emulated() as gpu:
        RUNS[name](gpu)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_a_fault_is_found(kernels, monkeypatch, fault):
    name, source, sound, broken, finding = FAULTS[fault]
    text = (kernels / source).read_text()
    assert text.count(sound) == 1
    (kernels / source).write_text(text.replace(sound, broken))
    with pytest.raises((KernelError, UninitialisedRead, RuntimeError), match=finding):
        run(name, monkeypatch)


@pytest.mark.parametrize("name", sorted({name for name, *_ in FAULTS.values()}))
def test_without_one_nothing_is_found(monkeypatch, name):
    run(name, monkeypatch)
