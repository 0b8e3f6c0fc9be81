"""What is computed of kernels and steps, beside the launches of the engine."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from benchmarks import costs
from cupy_rnnt import engine, joint
from cupy_rnnt.engine.sources import Kept
from cupy_rnnt.ops.cuda import products

from ...engine.selection.joints import aligned_case
from . import kernel_sectors

VOCABULARY, HIDDEN = 512, 128
FRAMES, POSITIONS = np.array([60, 40]), np.array([30, 40])
# What small samples add to it: tables of samples, and rows and diagonals that end inside a sector.
LEAST, MOST = 0.8, 1.02
# Bisection takes more steps in longer lists. A sweep reads the first cell wherever there is none;
# chunks of masks, and samples, may have few entries.
LEAST_OF = {"frame_starts": 0.4, "lattice_sweep": 0.6, "slack": 0.6, "write_indices": 0.7}
# Scores are not read of arcs that lead nowhere, or out of the cells that were computed; logits are
# not read of rows without mass, which are kept if the tolerance is 0; no mass is added up then.
MOST_OF = {"lattice_posteriors": 1.5, "logits_grad": 1.9, "lattice_keep": 1.9}
MOST_OF |= {"label_softmax": 1.1, "write_tangents": 1.06}  # of positions fewer vectors are read


def launched(gpu, tolerance):
    """Bytes of the sectors that each kernel touches in a forward and a backward pass, and the
    shares of the cells that these compute and keep."""
    case = aligned_case(
        np.random.default_rng(0),
        2,
        60,
        39,
        VOCABULARY,
        HIDDEN,
        dtype=np.float32,
        sharpness=6.0,
        noise=0.1,
        lengths=(FRAMES, POSITIONS - 1),
    )
    inputs = [gpu.asarray(array) for array in case[:4]]
    call = joint.checked(*inputs, *case[4:7], blank=case.blank, tolerance=tolerance)
    source = call.source(gradient=True)
    cells = engine.KeptCells()
    result = engine.scan(source, call.batch, call.options, cells)
    fields = zip(*cells.parts, strict=True)
    kept = Kept(*(gpu.xp.concatenate(values, axis=-1) for values in fields))
    engine.backward(source, call.batch, call.options, kept, np.ones(2))
    info = result.info()
    assert info.rounds == 1
    touched = Counter()
    for each in gpu.xp.kernels.launches:
        counters = each.report.counters
        sectors = sum(counters.get(f"global_{way}_sectors", 0) for way in ("load", "store"))
        touched[re.match(r"\w+", each.kernel)[0]] += costs.SECTOR * sectors
    return touched, (info.computed / info.cells, info.kept / info.cells)


@pytest.mark.parametrize("tolerance", [None, 0.0])
@pytest.mark.slow
def test_the_engine_launches_what_is_computed(monkeypatch, tolerance):
    with kernel_sectors.counting() as gpu:
        monkeypatch.setattr(products, "_FAST_TF32", ())  # costs are those of float32
        monkeypatch.setattr(gpu.xp.kernels.options, "races", False)  # others look for these
        found, shares = launched(gpu, tolerance)
    batch, selects = costs.Batch.of(FRAMES, POSITIONS), tolerance is None
    assert (shares[0] < 0.3) == selects
    computed = Counter()
    for _, name, work in costs.engine(batch, VOCABULARY, HIDDEN, *shares, selects=selects):
        computed[name] += work.touched
    del computed["products"], computed["lists"]  # no kernels of ours
    assert set(found) == set(computed)
    ratios = {name: computed[name] / found[name] for name in found}
    wrong = {
        name: ratio
        for name, ratio in ratios.items()
        if not LEAST_OF.get(name, LEAST) < ratio < MOST_OF.get(name, MOST)
    }
    assert not wrong, str(wrong)


def multiply_adds(operations):
    return sum(work.products for _, _, work in operations)


def test_products_are_those_of_the_method():
    """As docs/method.rst has them, in units of one product of all cells."""
    batch = costs.Batch.of([400] * 25, [100] * 25)
    one = batch.cells * VOCABULARY * HIDDEN
    assert multiply_adds(costs.autograd(batch, VOCABULARY, HIDDEN)) == 3 * one
    tiles = costs.engine(batch, VOCABULARY, HIDDEN, selects=False)
    assert multiply_adds(tiles) == pytest.approx(4 * one)
    f, k, references = 0.12, 0.1, 2 * (1 / 400 + 1 / 100)
    selected = costs.engine(batch, VOCABULARY, HIDDEN, f, k)
    assert multiply_adds(selected) == pytest.approx((f + 3 * k + references) * one)
    storing = costs.engine(batch, VOCABULARY, HIDDEN, f, k, stored=0.5)
    assert multiply_adds(storing) == pytest.approx((f + 2.5 * k + references) * one)
    assert multiply_adds(costs.fused(batch, VOCABULARY, HIDDEN)) == 4 * one


def test_time_is_that_of_the_slowest():
    machine = costs.Machine(10.0, 4.0, 2.0, 1.0, {"float32": 8.0}, 1.0, 1, {})
    for work, seconds in (
        (costs.Work(bytes=30), 3),
        (costs.Work(bytes=30, cached=100, spread=100), 3),
        (costs.Work(bytes=30, float32=8), 4),
        (costs.Work(float32=8, float64=5), 5),
        (costs.Work(special=6, float64=5), 6),
        (costs.Work(special=6, products=28), 7),
    ):
        assert work.seconds(machine) == seconds
        assert costs.seconds([costs.Operation("", "", work)] * 2, machine) == 2 * seconds


# Compute capability, multiprocessors, clocks in kHz, bits of the bus, float32 over float64.
DEVICES = {
    "A100": (80, 108, 1_410_000, 1_593_000, 5120, 2),
    "H100": (90, 132, 1_980_000, 2_619_000, 5120, 2),
    "RTX 4090": (89, 128, 2_520_000, 10_501_000, 384, 64),
}


@pytest.mark.parametrize("name", costs.MACHINES)
def test_data_sheets_follow_from_attributes(name):
    """To the digits that they print."""
    capability, count, clock, memory_clock, bits, ratio = DEVICES[name]
    attributes = {"MultiProcessorCount": count, "SingleToDoublePrecisionPerfRatio": ratio}
    attributes |= {"ClockRate": clock, "MemoryClockRate": memory_clock}
    attributes |= {"GlobalMemoryBusWidth": bits}
    found, sheet = costs.machine_of(attributes, capability), costs.MACHINES[name]
    assert found[:4] == pytest.approx(sheet[:4], rel=0.005)
    assert found.products == pytest.approx(sheet.products, rel=0.005)
    assert found[5:7] == sheet[5:7]
