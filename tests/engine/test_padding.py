"""Padding behind the columns of logits, which a device may want, counts nowhere."""

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import joint, reference
from cupy_rnnt.engine import joint_rows
from cupy_rnnt.ops import cuda
from cupy_rnnt.transducer import Head, Transducer

from ..device_calls import joint_rnnt_loss_and_grad, to_device
from ..helpers import least_budget
from ..tolerances import DTYPES, assert_costs_close, assert_gradients_close
from ..transducers.cases import TRANSDUCERS
from .selection.cases import checked_call, selecting
from .selection.joints import aligned_case

REGULAR = TRANSDUCERS["regular"]
# A softmax of the labels, and a blank under no head.
OF_LABELS = Transducer(REGULAR.topology, (Head(("label",)),))
KINDS = {name: TRANSDUCERS[name] for name in ("hat", "tdt", "multi-blank")}
KINDS["labels alone"] = OF_LABELS
WIDTH = 40  # of V = 33


def aligned(vocabulary=33, dtype=np.float32, **options):
    """Most cells of it hold next to nothing."""
    rng = np.random.default_rng(vocabulary)
    return aligned_case(rng, 3, 12, 6, vocabulary, 24, dtype=dtype, sharpness=6.0, **options)


@pytest.fixture
def with_nothing_to_read(gpu, monkeypatch):
    """NaN behind the columns of logits."""
    original = cuda.matmul

    def matmul(a, b, out):
        original(a, b, out)
        if out.shape[1] == WIDTH:
            out[:, 33:] = np.nan

    monkeypatch.setattr(cuda, "matmul", matmul)


def check(case, dtype, transducer=REGULAR, clamp=-1.0, budget=None):
    """Against the reference; NumPy, which wants no padding, selects as many cells."""
    options = {"transducer": transducer, "clamp": clamp}
    expected_loss, expected = reference.joint_rnnt_loss_and_grad(*case, **options)
    options |= {"return_info": True, "max_workspace_bytes": budget}
    with selecting():
        loss, gradients, info = joint_rnnt_loss_and_grad(*case, **options)
        *_, on_host = cupy_rnnt.joint_rnnt_loss(*case, **options)
    assert abs(info.computed - on_host.computed) <= 0.02 * info.cells
    assert_costs_close(loss, expected_loss, dtype, case.length, 24)
    assert_gradients_close(gradients, expected, dtype, case.length)
    for gradient, argument in zip(gradients, case, strict=False):
        assert getattr(gradient, "shape", None) == getattr(argument, "shape", None)
    return info


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_of_every_type(gpu, with_nothing_to_read, dtype, bias):
    case = aligned(dtype=dtype, bias=bias)
    if bias:
        case = case._replace(weight=np.asfortranarray(case.weight))
    info = check(case, dtype, clamp=0.1 if bias else -1.0)
    assert info.computed < 0.9 * info.cells


@pytest.mark.parametrize("name", KINDS)
def test_of_every_transducer(gpu, with_nothing_to_read, name):
    blank = 2 if name == "multi-blank" else -1
    check(aligned(transducer=KINDS[name], blank=blank), np.float32, KINDS[name])


def test_of_logits_that_are_not_stored(gpu, with_nothing_to_read):
    case = aligned()
    budget = least_budget(joint_rnnt_loss_and_grad, *case)
    info = check(case, np.float32, budget=budget)
    assert info.workspace_bytes <= budget


@pytest.mark.parametrize("vocabulary", [2, 8, 37])
def test_of_every_width(gpu, vocabulary):
    case = aligned(vocabulary)
    check(case, np.float32)
    source = checked_call(case).source(gradient=True)
    assert source.width % 8 == 0 <= source.width - vocabulary < 8
    is_argument = source._factor is source.inputs.weight
    assert is_argument == (vocabulary == 8)


def slack_of(case):
    with np.errstate(all="ignore"):
        tangents = joint.checked(*case[:7]).source(gradient=False).tangents(np.arange(3))
    return tangents._forms.slack


def check_slack(gpu):
    """It covers the rounding of biases that have a share and are no label's, be they below -200.
    Sums of the device are longer, and may be of split factors, so that its slack is more."""
    case = aligned()
    case.bias[:-1], case.bias[-1] = -300, -100
    case = case._replace(weight=case.weight / 10)
    on_host, on_device = slack_of(case), gpu.asnumpy(slack_of(to_device(case)))
    assert (on_host <= on_device).all()
    assert (on_device <= 1.3 * on_host).all()


def test_slack(gpu):
    check_slack(gpu)


# Each is noticed


def test_a_label_with_a_share(gpu, with_nothing_to_read, monkeypatch):
    monkeypatch.setattr(joint_rows, "_padded", lambda row, width: row._replace(width=width))
    with pytest.raises(AssertionError):
        check(aligned(), np.float32)


def test_a_gradient(gpu, with_nothing_to_read, monkeypatch):
    def padded(row, width):
        return row._replace(others=(*row.others, (row.width, width)))

    case = aligned()
    budget = least_budget(joint_rnnt_loss_and_grad, *case)  # stores no logits
    monkeypatch.setattr(joint_rows, "_padded", padded)
    with pytest.raises(AssertionError):
        check(case, np.float32, budget=budget)


def test_columns_under_the_head(gpu, with_nothing_to_read, monkeypatch):
    monkeypatch.setattr(joint_rows, "_padded", lambda row, width: REGULAR.row(width, 32))
    with pytest.raises(AssertionError):
        check(aligned(), np.float32)


def test_a_bias(gpu, monkeypatch):
    full = gpu.xp.full
    monkeypatch.setattr(gpu.xp, "full", lambda shape, value, *rest: full(shape, 0, *rest))
    with pytest.raises(AssertionError):
        check_slack(gpu)
