"""Whole calls with certified selection, for transducers other than the plain one.

Joints are as sharp as after training, so that a good part of the cells is left out on every device.
The samples of a batch differ in length, there is a delay penalty, and what is expected is the cost
of all cells by the textbook. A call takes seconds on an emulated device: each transducer has one
type of numbers in the first test, and the other one in the second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cupy_rnnt import reference
from cupy_rnnt.topology import BLANK, LABEL, Arc, Score, Topology
from cupy_rnnt.transducer import NAMED, Head, Transducer

from ...device_calls import joint_rnnt_loss, joint_rnnt_loss_and_grad
from ...helpers import JointCase
from ...tolerances import assert_costs_close, assert_gradients_close, cost_tolerance
from ...transducers.cases import HAT, blanks_of, multi_blank, tdt, width_of
from .cases import check_certificate, selecting, with_holes
from .joints import aligned_case

SHORT, LONG = Score("duration"), Score("duration", 1)
# Nobody's: arcs that do not exclude each other, one of which reads the next position; each kind of
# scores under a head of its own, and a score under two.
ODD = Transducer(
    Topology((Arc(1, 0, (BLANK,)), Arc(3, 0, (LONG,)), Arc(1, 1, (LABEL, SHORT), then=BLANK))),
    (
        Head(("blank",), zero=True, charges=("blank", "label")),
        Head(("label",)),
        Head(("duration",)),
    ),
    sigma=0.1,
)
WHOLE = {
    "modified": NAMED["modified"],
    "constrained": NAMED["constrained"],
    "hat": HAT,
    "tdt": tdt((0, 1, 2, 3), 0.05),  # whose exact logits are more than a launch on a GPU takes
    "multi-blank": multi_blank((2, 4), 0.05),
    "odd": ODD,
}
HIDDEN, DELAY_PENALTY = 16, 0.4


def in_turn(*dtypes):
    """Each transducer with one of two types of numbers."""
    slow = {"tdt": [pytest.mark.slow]}
    cases = [
        pytest.param(name, dtypes[i % 2], marks=slow.get(name, ())) for i, name in enumerate(WHOLE)
    ]
    return pytest.mark.parametrize(("name", "dtype"), cases)


def sharp_case(transducer: Transducer, dtype) -> JointCase:
    """Two samples, of a joint with six labels."""
    rng = np.random.default_rng(0)
    shape = 2, 25, 9, width_of(transducer, 6), HIDDEN
    return aligned_case(
        rng,
        *shape,
        dtype=dtype,
        blank=int(rng.choice(blanks_of(transducer, 6))),
        sharpness=12.0,
        noise=0.4,
        lengths=(np.array([24, 16]), np.array([8, 6])),
        transducer=transducer,
    )


def options_of(transducer: Transducer) -> dict[str, Any]:
    return {"reduction": "none", "transducer": transducer, "delay_penalty": DELAY_PENALTY}


@in_turn(np.float32, np.float64)
def test_costs_are_within_their_certificates(device, name, dtype):
    """They are too large, and by no more than the certificate says; that is no idle bound."""
    case, options = sharp_case(WHOLE[name], dtype), options_of(WHOLE[name])
    with selecting():
        costs, info = joint_rnnt_loss(*case, **options, tolerance=1e-2, return_info=True)
    expected = reference.joint_rnnt_loss(*case, **options)
    rounding = cost_tolerance(dtype, case.length, HIDDEN) * np.maximum(1.0, abs(expected))
    missing = costs - expected
    assert info.computed < 0.5 * info.cells
    assert (info.certificate > 0).all()
    assert (info.certificate <= 0.5e-2).all()
    assert (missing >= -rounding).all()
    assert (missing <= np.log1p(info.certificate) + rounding).all()
    assert missing.max() > 0.2 * info.certificate.max()


@in_turn(np.float64, np.float32)
def test_losses_and_gradients_are_those_of_all_cells(device, name, dtype):
    """To working precision, which asks for more cells."""
    case, options = sharp_case(WHOLE[name], dtype), options_of(WHOLE[name])
    with selecting():
        costs, gradients, info = joint_rnnt_loss_and_grad(*case, **options, return_info=True)
    expected, whole = reference.joint_rnnt_loss_and_grad(*case, **options)
    assert info.computed < 0.8 * info.cells
    assert (info.certificate > 0).all()
    assert_costs_close(costs, expected, dtype, case.length, HIDDEN)
    assert_gradients_close(gradients, whole, dtype, case.length)


def test_cells_that_lack_what_they_read_are_outside(device):
    """Costs are those of the paths inside, to the last digits, though the first cells have holes
    beside them, where others read."""
    case, choice = sharp_case(ODD, np.float64), with_holes(0.05, 1)
    options = {"transducer": ODD, "delay_penalty": DELAY_PENALTY}
    _, info = check_certificate(case, 1e-2, choice, **options)
    assert info.rounds > 1
    assert info.computed < 0.8 * info.cells
