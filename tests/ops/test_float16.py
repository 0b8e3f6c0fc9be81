"""Casts by integer operations against NumPy's, bit for bit; the library makes no others."""

import numpy as np
import pytest

import cupy_rnnt
import cupy_rnnt.reference
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.numpy import float16

from ..helpers import random_joint_case, random_logits_case
from ..tolerances import assert_gradient_close, assert_gradients_close

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)


def neighbours(values):
    """float32 values, and those next to them."""
    return np.concatenate([np.nextafter(values, limit) for limit in (values, -np.inf, np.inf)])


def narrowed(values):
    out = np.empty(values.shape, np.float16)
    with np.errstate(all="raise"):
        float16.narrow(values, out)
    return out


def assert_as_numpy(values):
    """Bit for bit, but for what a NaN holds beside its sign."""
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    cast, is_nan = narrowed(values), np.isnan(values)
    np.testing.assert_array_equal(np.isnan(cast), is_nan)
    np.testing.assert_array_equal(np.signbit(cast), np.signbit(values))
    np.testing.assert_array_equal(cast.view(np.uint16)[~is_nan], expected.view(np.uint16)[~is_nan])


def test_every_boundary():
    """Every float16, what lies half way between two, and their neighbours in float32."""
    positive = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ends = np.append(positive, np.float32(65536))  # where the next float16 would be
    half_way = (ends[1:] + ends[:-1]) / 2
    values = neighbours(np.concatenate([ends, half_way]))
    assert_as_numpy(np.concatenate([values, -values]))


def test_random_bits():
    bits = np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32)
    assert_as_numpy(bits.view(np.float32))


def test_every_exponent():
    """With the bits set that decide how a number of that size is rounded."""
    exponents = np.arange(2**8, dtype=np.uint32)[:, None, None] << 23
    first, last = np.meshgrid(np.arange(4) << 21, np.arange(2**14), indexing="ij")
    values = exponents + (first | last).astype(np.uint32)
    assert_as_numpy(np.ascontiguousarray(values).view(np.float32))


@pytest.mark.parametrize("special", [np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e30])
def test_special_value_alone(special):
    values = np.full((3, 5), 0.25, np.float32)
    values[1, 2] = special
    assert_as_numpy(values)


def test_widen_every_half():
    out = np.empty(EVERY_HALF.shape, np.float32)
    with np.errstate(all="raise"):
        float16.widen(EVERY_HALF, out)
    expected, is_nan = EVERY_HALF.astype(np.float32), np.isnan(EVERY_HALF)
    np.testing.assert_array_equal(np.isnan(out), is_nan)
    np.testing.assert_array_equal(out.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])


def test_no_elements():
    assert narrowed(np.empty((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_several_blocks(order):
    """Scattered, assigned and gathered in any layout, more of them than are cast at once."""
    rows = cpu.block_rows(2**20, 64) + 3
    tile = np.random.default_rng(1).normal(scale=1e-5, size=(rows, 64)).astype(np.float32)
    index = (np.random.default_rng(2).permutation(rows),)
    scattered, assigned = (np.zeros(tile.shape, np.float16, order) for _ in range(2))
    cpu.scatter(tile, index, scattered)
    cpu.assign(tile, assigned)
    np.testing.assert_array_equal(assigned, tile.astype(np.float16))
    np.testing.assert_array_equal(scattered[index], assigned)
    gathered = np.empty_like(tile)
    cpu.gather(scattered, index, gathered)
    np.testing.assert_array_equal(gathered, assigned.astype(np.float32))


class Counter:
    """Counts the elements that pass one function of a module, on the way into it."""

    def __init__(self, monkeypatch, name):
        self.elements, self._function = 0, getattr(float16, name)
        monkeypatch.setattr(float16, name, self)

    def __call__(self, values, out):
        self.elements += values.size
        self._function(values, out)


def test_gradient_of_logits_is_cast_by_integer_operations(monkeypatch):
    """All of it; as NumPy took 60 ns an element, it cost ten times all the rest."""
    case = random_logits_case(np.random.default_rng(3), dtype=np.float16)
    counter = Counter(monkeypatch, "narrow")
    _, gradient = cupy_rnnt.rnnt_loss_and_grad(*case)
    assert counter.elements >= np.count_nonzero(gradient) > 0
    _, expected = cupy_rnnt.reference.rnnt_loss_and_grad(*case)
    assert_gradient_close(gradient, expected, np.float16, 12)


def test_gradients_of_joint_are_cast_by_integer_operations(monkeypatch):
    case = random_joint_case(np.random.default_rng(4), dtype=np.float16)
    counter = Counter(monkeypatch, "narrow")
    _, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(*case)
    assert counter.elements >= sum(map(np.count_nonzero, gradients)) > 0
    _, expected = cupy_rnnt.reference.joint_rnnt_loss_and_grad(*case)
    assert_gradients_close(gradients, expected, np.float16, 12)


def test_inputs_are_cast_by_integer_operations(monkeypatch):
    """Logits in both passes, and what hidden vectors are sums of."""
    logits = random_logits_case(np.random.default_rng(5), dtype=np.float16)
    counter = Counter(monkeypatch, "widen")
    cells = int((logits.logit_lengths * (logits.target_lengths + 1)).sum())
    *_, info = cupy_rnnt.rnnt_loss_and_grad(*logits, return_info=True)
    assert counter.elements == (cells + info.kept) * logits.logits.shape[-1]
    joint = random_joint_case(np.random.default_rng(6), dtype=np.float16)
    cupy_rnnt.joint_rnnt_loss(*joint)
    assert counter.elements > (cells + info.kept) * logits.logits.shape[-1]
