"""What is counted of the steps of sweeps, and what is computed from it."""

import json

import pytest

from benchmarks import costs

from ...ptxemu.chains import LATENCIES
from . import sweep_latency


@pytest.fixture
def emulator(gpu):
    if gpu.name == "cuda":
        pytest.skip("a real device counts no chains")
    return gpu


@pytest.mark.parametrize("machine", costs.MACHINES)
def test_every_latency_is_known(machine):
    assert set(costs.MACHINES[machine].latencies) == set(LATENCIES)


WRITTEN = json.loads(sweep_latency.RESULTS.read_text())
AGAIN = "python -m tests.ops.cuda.sweep_latency writes benchmarks/results/sweeps.json"


def test_results_are_for_the_latencies_of_the_machines():
    of_machines = {name: machine.latencies for name, machine in costs.MACHINES.items()}
    assert WRITTEN["latencies"] == of_machines, AGAIN


@pytest.mark.slow
def test_sweeps_of_a_small_lattice(emulator):
    """They are those of the results. A step takes a barrier of four warps and a load from shared
    memory at least, and more on the GPU that is slow in float64 than on the others."""
    found = sweep_latency.sweeps(emulator, 24, (60, 76))
    for of_size in WRITTEN["positions"].values():
        assert [of["kernel"] for of in of_size] == [sweep.kernel for sweep in found], AGAIN
    for sweep in found:
        assert 3 < sweep.chain <= sweep.instructions < sweep.issued
        assert 0 < sweep.float64 < sweep.issued
        for name, cycles in sweep.cycles.items():
            of = costs.MACHINES[name].latencies
            assert cycles >= of["barrier"] + 4 * of["barrier_warp"] + of["shared"]
        assert sweep.cycles["RTX 4090"] > sweep.cycles["H100"] >= sweep.cycles["A100"]


def test_a_step_takes_as_long_as_the_slowest():
    machine = costs.MACHINES["RTX 4090"]  # with two units of float64 a multiprocessor
    for counts, cycles in (
        ((900, 400, 20), 900),
        ((90, 400, 5), 100),
        ((90, 400, 20), 20 * 32 / 2),
    ):
        assert machine.diagonal(*counts) == pytest.approx(cycles / machine.clock, rel=0.005)
