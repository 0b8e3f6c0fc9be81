"""Cost weights of any size, and tolerance 0: right values, and no denormal number in a product.

Many CPUs take a hundred times as long for a denormal number, on others nothing can be measured: it
is the numbers that are tested, not the time.
"""

import ml_dtypes
import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import reference
from cupy_rnnt.engine.exponents import WeightExponents
from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.types import InputSums, OutputSums

from ..helpers import least_budget, random_joint_case, random_logits_case
from ..tolerances import DTYPES, gradient_tolerance

OF_ONE_SAMPLE = "encoder_out", "predictor_out"
FRAMES, LABELS = 40, 12
MIXTURES = {
    np.float32: {
        "tiny": [1e-30] * 4,
        "least": [1e-38] * 4,
        "huge": [1e30] * 4,
        "falling": [1e30, 1.0, 1e-30, 1e-38],
        "rising": [1e-38, 1e-30, 1.0, 1e30],
        "ordinary and tiny": [0.25, 1e-30, -0.25, 1e-12],
        "zero": [0.0, 1e-30, 0.0, -1e-30],
    },
    np.float64: {
        "tiny": [1e-280] * 4,
        "least": [1e-307] * 4,
        "huge": [1e280] * 4,
        "falling": [1e280, 1.0, 1e-280, 1e-307],
        "rising": [1e-307, 1e-280, 1.0, 1e280],
    },
}
WEIGHTS = [(t, name) for t, weights in MIXTURES.items() for name in weights]
every_mixture = pytest.mark.parametrize(("dtype", "name"), WEIGHTS)


def joint_case(dtype, scale=5.0):
    rng = np.random.default_rng(0)
    return random_joint_case(rng, 4, FRAMES, LABELS, 40, 16, dtype=dtype, scale=scale)


READ = {"matmul": 2, "add_output_grad": 2, "add_input_grad": 1}
WRITTEN = {"matmul": [2], "add_output_grad": [2], "add_input_grad": [0, 3]}


class Watch:
    """Counts denormal numbers among what operations that add up gradients read and write."""

    def __init__(self, monkeypatch):
        self.denormal = self.calls = 0
        for name in READ:
            monkeypatch.setattr(cpu, name, self._watched(name, getattr(cpu, name)))

    def _watched(self, name, operation):
        def watched(*arguments):
            read = arguments[: READ[name]]
            numbers = [array.copy() for array in read if array.dtype.kind == "f"]
            operation(*arguments)
            self.calls += 1
            written = [arguments[i] for i in WRITTEN[name]]
            for sums in written:
                if isinstance(sums, (OutputSums, InputSums)):
                    written = [*written[:-1], *sums[:2]]
            for array in (*numbers, *written):
                sizes = np.abs(array)
                self.denormal += np.count_nonzero(
                    (sizes > 0) & (sizes < np.finfo(array.dtype).tiny)
                )

        return watched


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


@pytest.mark.parametrize("options", [{}, {"tolerance": 0}, {"clamp": 0.1}], ids=str)
@every_mixture
def test_no_denormal_number_in_a_product(watch, dtype, name, options):
    """With logits as of a trained model: softmax values and occupancies of all sizes."""
    case, weights = joint_case(dtype, scale=12.0), np.array(MIXTURES[dtype][name])
    cupy_rnnt.joint_rnnt_loss_and_grad(*case, cost_weights=weights, **options)
    assert watch.calls > 0
    assert watch.denormal == 0


def assert_close(actual, expected, dtype, size, name):
    """To the tolerance of gradients times `size`, their weight, and to the least number of their
    type, as far as that reaches."""
    limits = ml_dtypes.finfo(dtype)
    most, least = float(limits.max), float(limits.smallest_subnormal)
    scale = max(size, np.abs(expected).max(initial=0))
    # Rounding to half types comes after rounding to float32, whose denormal numbers are as coarse.
    allowed = gradient_tolerance(dtype, FRAMES + LABELS) * scale + 2 * least
    error = np.clip(actual.astype(np.float64), -most, most) - np.clip(expected, -most, most)
    print(name, np.abs(error).max() / allowed)
    assert np.abs(error).max() <= allowed, name


def assert_gradients_of_weights(gradients, expected, dtype, weights):
    sizes = np.abs(weights)
    for name, actual, desired in zip(gradients._fields, gradients, expected, strict=True):
        if name in OF_ONE_SAMPLE:
            for b, size in enumerate(sizes):
                assert_close(actual[b], desired[b], dtype, size, (name, b))
        else:
            assert_close(actual, desired, dtype, sizes.max(), name)


@pytest.mark.parametrize("options", [{}, {"tolerance": 0}, {"clamp": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MIXTURES[np.float32])
def test_gradients_of_joint(dtype, name, options):
    case, weights = joint_case(dtype), np.array(MIXTURES[np.float32][name])
    _, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(*case, cost_weights=weights, **options)
    options = {name: value for name, value in options.items() if name != "tolerance"}
    _, expected = reference.joint_rnnt_loss_and_grad(*case, cost_weights=weights, **options)
    assert_gradients_of_weights(gradients, expected, dtype, weights)


@pytest.mark.parametrize("name", MIXTURES[np.float64])
def test_gradients_of_joint_in_float64(name):
    case, weights = joint_case(np.float64), np.array(MIXTURES[np.float64][name])
    _, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(*case, cost_weights=weights)
    _, expected = reference.joint_rnnt_loss_and_grad(*case, cost_weights=weights)
    assert_gradients_of_weights(gradients, expected, np.float64, weights)


@pytest.mark.parametrize("name", ["falling", "rising"])
def test_gradients_in_many_tiles(watch, name):
    """In the least workspace, where hardly a tile has cells of two samples."""
    case, weights = joint_case(np.float32), np.array(MIXTURES[np.float32][name])
    budget = least_budget(cupy_rnnt.joint_rnnt_loss_and_grad, *case)
    _, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(
        *case, cost_weights=weights, max_workspace_bytes=budget
    )
    assert watch.denormal == 0
    _, expected = reference.joint_rnnt_loss_and_grad(*case, cost_weights=weights)
    assert_gradients_of_weights(gradients, expected, np.float32, weights)


@pytest.mark.parametrize("without", [0, 3])
def test_a_large_weight_without_a_gradient(without):
    """A sample that has none hides no gradient of others, however large its weight is."""
    case = joint_case(np.float32)
    case.encoder_out[without] = np.nan
    weights = np.full(4, 1e-30)
    weights[without] = 1e30
    _, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(*case, cost_weights=weights)
    _, expected = reference.joint_rnnt_loss_and_grad(*case, cost_weights=weights)
    weights[without] = 0
    assert_gradients_of_weights(gradients, expected, np.float32, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MIXTURES[np.float32])
def test_gradients_of_logits(dtype, name):
    rng, weights = np.random.default_rng(1), np.array(MIXTURES[np.float32][name])
    case = random_logits_case(rng, 4, FRAMES, LABELS, 40, dtype=dtype, scale=4.0)
    _, gradient = cupy_rnnt.rnnt_loss_and_grad(*case, cost_weights=weights)
    _, expected = reference.rnnt_loss_and_grad(*case, cost_weights=weights)
    for b, size in enumerate(np.abs(weights)):
        assert_close(gradient[b], expected[b], dtype, size, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_denormal_number_with_tolerance_0(dtype):
    """In the gradient of given logits, which is not multiplied but made of products."""
    rng = np.random.default_rng(2)
    case = random_logits_case(rng, 3, FRAMES, LABELS, 40, dtype=dtype, scale=15.0)
    _, gradient = cupy_rnnt.rnnt_loss_and_grad(*case, reduction="sum", tolerance=0)
    sizes = np.abs(gradient[gradient != 0])
    assert sizes.min() >= np.finfo(dtype).tiny
    assert sizes.min() < 1e-25  # yet numbers of all other sizes are there


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_are_put_back(dtype):
    """Into numbers of all sizes, exactly, or rounded where the result is denormal; as NumPy."""
    limits, rng = np.finfo(dtype), np.random.default_rng(3)
    powers = np.arange(2 * limits.minexp, limits.maxexp + 1, 5)
    weights = np.ldexp(rng.uniform(-1, 1, len(powers)), powers).astype(dtype)
    weights[::17] = 0
    exponents, samples = WeightExponents(weights), np.arange(len(weights))
    rows = rng.normal(size=(len(weights), 300)) * np.exp2(rng.integers(-20, 20, 300))
    rows = (rows * exponents.fractions[:, None]).astype(dtype)
    scales = exponents._of_samples[:, None]
    with np.errstate(all="ignore"):
        expected = np.ldexp(rows.astype(np.longdouble), np.maximum(scales, -9000)).astype(dtype)
    with np.errstate(all="raise", under="ignore"):
        exponents.put_back(rows, samples)
    np.testing.assert_array_equal(rows, expected)
    sizes = np.abs(expected)
    assert (sizes[sizes > 0] < limits.tiny).any()
    assert np.isinf(sizes).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fractions_times_powers_of_two_are_the_weights(dtype):
    weights = np.array([1.0, -0.3, 3e-38, 0.0, 1e30, 1e-290, 65536, -1.5])
    exponents = WeightExponents(weights)
    assert (np.abs(exponents.fractions) <= 1).all()
    assert (np.abs(exponents.fractions[weights != 0]) >= 2.0**-14).all()
    restored = exponents.fractions[:, None].astype(dtype)
    exponents.put_back(restored, np.arange(len(weights)))
    np.testing.assert_array_equal(restored[:, 0], weights.astype(dtype))


def test_weights_that_are_not_finite_stay_so():
    weights = np.array([np.nan, 1e-30, np.inf, -np.inf, 1e30])
    fractions = WeightExponents(weights).fractions
    assert (np.isfinite(fractions) == np.isfinite(weights)).all()
    gradient = np.ones((5, 2)) * fractions[:, None]
    WeightExponents(weights).put_back(gradient, np.arange(5))
    np.testing.assert_array_equal(gradient, np.ones((5, 2)) * weights[:, None])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", [1e-37, 1e37])
def test_gradients_that_are_not_finite_stay_so(dtype, weight):
    values = np.array([np.nan, np.inf, -np.inf, 0.0, 3.0], dtype)
    exponents = WeightExponents(np.array([weight]))
    gradient = values[None] * exponents.fractions.astype(dtype)
    exponents.put_back(gradient, np.zeros(1, int))
    np.testing.assert_allclose(gradient[0], values * dtype(weight), rtol=1e-6)


def test_ordinary_weights_share_an_exponent():
    """So that no row is touched, nor any sum."""
    exponents = WeightExponents(np.array([65536.0, -0.3, 0.02, 1 / 512]), 1)
    rows, sums = (np.full((4, 3), 1e-30, np.float32) for _ in range(2))
    exponents.align(0, np.array([3, 1, 0, 2]), rows, [sums])
    exponents.align(0, np.arange(4), rows, [sums])
    assert (rows == np.float32(1e-30)).all()
    assert (sums == np.float32(1e-30)).all()
