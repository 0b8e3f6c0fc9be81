"""Kernels touch no more sectors of memory than they must, and take what ``costs.py`` says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.costs import KERNELS

from . import kernel_sectors
from .kernel_resources import kernels
from .kernel_sectors import CASES, ON_LATTICES, TABLE

WASTE = 1.1  # bytes of sectors for each one of those that must be touched, at most
WASTE_OFF_SECTORS = 1.2  # the same where rows begin inside a sector
COUNTED = 0.98  # at least: what the model says must be touched, is
INEXACT = 0.25  # of the instructions of an element, which depend on its value


@pytest.fixture
def counting():
    with kernel_sectors.counting() as found:
        yield found


def assert_ideal(found):
    for traffic in found.values():
        assert COUNTED <= traffic.touched / traffic.work.touched <= WASTE


def assert_instructions(traffic):
    work = traffic.work
    computed = {"fp32": work.float32, "special": work.special, "fp64": work.float64}
    rounding = 0.1 * sum(computed.values())
    assert computed == pytest.approx(traffic.instructions, rel=INEXACT, abs=rounding)


def assert_in_table(name, found):
    text = TABLE.read_text()
    if kernel_sectors.compiler() in text:
        missing = set(kernel_sectors.rows(name, found)) - set(text.splitlines())
        assert not missing, "python -m tests.ops.cuda.kernel_sectors writes the table"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_rows(counting, name):
    found = kernel_sectors.of_case(counting, name)
    assert_ideal(found)
    assert not any(traffic.conflicts for traffic in found.values())
    assert_in_table(name, found)
    if not re.search(" of | under ", name):  # variants are not in the model
        for (_, dtype), traffic in found.items():
            if dtype.name == "float32":
                assert_instructions(traffic)


def test_rows_that_begin_inside_a_sector(counting):
    work = kernel_sectors.bounds(counting, np.dtype(np.float32), 260)
    touched = kernel_sectors.traffic(counting, work, "bounds").touched
    assert touched <= WASTE_OFF_SECTORS * work.touched


def test_lattices(counting):
    for name, found in kernel_sectors.of_lattices(counting).items():
        assert_ideal(found)
        assert_in_table(name, found)
        assert_instructions(*found.values())


def test_no_kernel_is_left_out():
    declared = {kernel.name for kernel in kernels()}
    assert set(KERNELS) == declared
    besides = {"coordinates", "exact_logits", "frame_starts", "input_grads", "write_input_grads"}
    besides |= {"lattice_complete"}  # of samples that are computed whole
    besides |= {"lattice_leave_out"}  # where there is a band
    besides |= {"places", "write_marked_first", *ON_LATTICES}
    counted = {re.match(r"\w+", name)[0] for name in CASES} | besides
    assert counted == declared
