"""The budget is a promise: what is allocated beyond arguments and results stays below it."""

import gc
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from cupy_rnnt import reference, tdt
from cupy_rnnt.engine.plan import Tiles
from cupy_rnnt.ops import numpy as cpu

from ..device_calls import (
    allocated,
    examples,
    joint_rnnt_alignment,
    joint_rnnt_loss,
    joint_rnnt_loss_and_grad,
    joint_rnnt_posteriors,
    operations,
    rnnt_alignment,
    rnnt_loss_and_grad,
    rnnt_posteriors,
    to_device,
)
from ..helpers import least_budget, random_joint_case, random_logits_case
from ..tolerances import assert_costs_close, assert_gradients_close
from .selection.cases import selecting
from .selection.joints import aligned_case

MiB = 2**20


def peak_beyond_results(function, *args, **kwargs):
    """Bytes that a call had allocated at its peak, less those of the arrays it returned."""
    args = to_device(args)
    if operations() is cpu:
        function(*args, **kwargs)  # caches, imports
    with allocated() as peak:
        *arrays, info = function(*args, **kwargs, return_info=True)
    flat = [a for r in arrays for a in (r if isinstance(r, tuple) else (r,))]
    return peak.bytes - sum(peak.size(a.nbytes) for a in flat if isinstance(a, np.ndarray)), info


SHAPES = {
    "one long sample": (1, 160, 40, 70, 40),
    "many short samples": (60, 12, 5, 30, 20),
    "large vocabulary": (2, 20, 8, 9000, 16),
    "large hidden size": (2, 30, 8, 30, 2000),
    "more labels than frames": (3, 9, 200, 50, 24),
}
SMALL_SHAPES = {
    "one long sample": (1, 16, 5, 70, 40),
    "many short samples": (12, 8, 4, 30, 20),
    "large vocabulary": (2, 6, 4, 3000, 16),
    "large hidden size": (2, 6, 4, 30, 900),
    "more labels than frames": (3, 3, 20, 50, 24),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def shape_for(device, name):
    """Small, where the device may be an emulated one."""
    return (SHAPES if device.name == "numpy" else SMALL_SHAPES)[name]


def test_durations_beyond_the_frames_take_no_memory():
    """The lattice looks back as far as an arc of some path leads, and not to a million frames."""
    case = random_joint_case(np.random.default_rng(0), *SHAPES["one long sample"])
    case = case._replace(targets=case.targets % 60, blank=-1)  # tokens, of which there are 67
    frames = int(case.logit_lengths.max())
    budgets = [
        least_budget(joint_rnnt_loss_and_grad, *case, transducer=tdt((0, 1, long)))
        for long in (frames, frames + 1, 10**6)
    ]
    assert budgets[2] == budgets[1] < budgets[0]
    options = {"max_workspace_bytes": budgets[2], "transducer": tdt((0, 1, 10**6))}
    expected = reference.joint_rnnt_loss(*case, transducer=options["transducer"])
    np.testing.assert_allclose(joint_rnnt_loss(*case, **options), expected, rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spare", [0, MiB, 100 * MiB])
@every_shape
@pytest.mark.thinned(2)
@pytest.mark.slow
def test_joint_stays_within_its_budget(device, shape, spare, threads):
    shape = shape_for(device, shape)
    case = random_joint_case(np.random.default_rng(0), *shape, dtype=np.float32)
    for function in (joint_rnnt_loss, joint_rnnt_loss_and_grad):
        budget = least_budget(function, *case) + spare
        with threadpool_limits(threads):
            peak, info = peak_beyond_results(function, *case, max_workspace_bytes=budget)
        assert peak <= info.workspace_bytes <= budget


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_and_strides_stay_within_theirs(device, dtype, activation):
    shape = (2, 60, 20, 300, 100) if device.name == "numpy" else (2, 8, 4, 60, 20)
    case = random_joint_case(np.random.default_rng(0), *shape, dtype=dtype)
    case = case._replace(
        encoder_out=np.asfortranarray(case.encoder_out), weight=np.repeat(case.weight, 2, 1)[:, ::2]
    )
    function = joint_rnnt_loss_and_grad
    budget = least_budget(function, *case, activation=activation) + 4 * MiB
    peak, info = peak_beyond_results(
        function, *case, activation=activation, max_workspace_bytes=budget
    )
    assert peak <= info.workspace_bytes <= budget


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_logits_stay_within_their_budget(device, dtype, overwrite):
    shape = (3, 60, 25, 500) if device.name == "numpy" else (3, 20, 8, 2000)
    case = random_logits_case(np.random.default_rng(0), *shape, dtype=dtype)
    function = rnnt_loss_and_grad
    budget = least_budget(function, *case) + MiB // 4
    peak, info = peak_beyond_results(
        function, *case, max_workspace_bytes=budget, overwrite_logits=overwrite
    )
    if overwrite:  # the result is the argument: there is no second array of its size
        peak += case.logits.nbytes
    assert peak <= info.workspace_bytes <= budget
    assert budget < case.logits.nbytes * 4 / case.logits.itemsize


@examples(
    30,
    3,
    size=st.integers(1, 6),
    frames=st.integers(1, 40),
    labels=st.integers(0, 40),
    vocabulary=st.integers(2, 400),
    hidden=st.integers(1, 300),
    spare=st.sampled_from([0, 10**4, 10**6]),
    seed=st.integers(0, 100),
)
def test_any_shape_stays_within_its_budget(
    device, size, frames, labels, vocabulary, hidden, spare, seed
):
    if device.name != "numpy":
        frames, labels = frames // 4 + 1, labels // 4
    shape = size, frames, labels, vocabulary, hidden
    case = random_joint_case(np.random.default_rng(seed), *shape, dtype=np.float32)
    function = joint_rnnt_loss_and_grad
    budget = least_budget(function, *case) + spare
    peak, info = peak_beyond_results(function, *case, max_workspace_bytes=budget)
    assert peak <= info.workspace_bytes <= budget


def test_a_sample_larger_than_the_budget_is_more_tiles(device):
    shape = (1, 200, 60, 2000, 128) if device.name == "numpy" else (1, 40, 15, 2500, 32)
    case = random_joint_case(np.random.default_rng(0), *shape, dtype=np.float32)
    logits_bytes = 4 * np.prod(shape[1:4]).item()
    loss, gradients = joint_rnnt_loss_and_grad(*case)
    small, others = joint_rnnt_loss_and_grad(*case, max_workspace_bytes=logits_bytes // 3)
    assert_costs_close(small, loss, np.float32, case.length)
    assert_gradients_close(others, gradients, np.float32, case.length)


def left_to_the_collector(function, *args):
    """Types of our objects in cycles, whose buffers a call would leave until Python looks for
    them."""
    gc.collect()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        function(*args)
        gc.collect()
        types = {type(garbage) for garbage in gc.garbage}
        return {kind.__name__ for kind in types if kind.__module__.startswith("cupy_rnnt")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize("function", [joint_rnnt_loss, joint_rnnt_loss_and_grad])
@pytest.mark.usefixtures("collector")
def test_buffers_end_with_the_call(device, function):
    case = random_joint_case(np.random.default_rng(0), 2, 9, 3, dtype=np.float32)
    with selecting():
        assert not left_to_the_collector(function, *case)


@pytest.mark.usefixtures("collector")
def test_buffers_end_with_a_call_on_logits(device):
    case = random_logits_case(np.random.default_rng(0), 2, 9, 3, dtype=np.float32)
    assert not left_to_the_collector(rnnt_loss_and_grad, *case)


@given(
    count=st.integers(0, 10**4),
    rows=st.integers(1, 600),
    workers=st.integers(1, 9),
    first=st.integers(0, 10**12),
)
def test_tiles_cover_their_cells_once_and_evenly(count, rows, workers, first):
    parts = list(Tiles(count, rows, workers, first))
    assert [i for part in parts[1:] for i in part[:1]] == [part[1] for part in parts[:-1]]
    assert sum(stop - start for start, stop in parts) == count
    assert all(0 < stop - start <= rows for start, stop in parts)
    if parts:
        assert (parts[0][0], parts[-1][1]) == (first, first + count)
        sizes = [stop - start for start, stop in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("budget", [2**62, 10**400], ids=["2**62", "10**400"])
def test_a_budget_may_be_any_number(device, budget):
    case = random_joint_case(np.random.default_rng(0), 3, 40, 9, dtype=np.float32)
    *_, info = joint_rnnt_loss_and_grad(*case, max_workspace_bytes=budget, return_info=True)
    assert info.workspace_bytes < 2**30


@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("transducer", ["regular", "constrained"])
@pytest.mark.parametrize("function", [joint_rnnt_alignment, joint_rnnt_posteriors])
@pytest.mark.thinned(2)
def test_what_is_read_stays_within_the_budget(device, function, transducer, selected):
    shape = (3, 160, 40, 40, 20) if device.name == "numpy" else (2, 20, 9, 30, 12)
    case = aligned_case(np.random.default_rng(0), *shape, dtype=np.float32, sharpness=6.0)
    options = {"transducer": transducer, "max_workspace_bytes": 8 * MiB}
    with selecting() if selected else nullcontext():
        peak, info = peak_beyond_results(function, *case, **options)
    assert (info.computed < info.cells) == selected
    assert peak <= info.workspace_bytes


@pytest.mark.parametrize("function", [rnnt_alignment, rnnt_posteriors])
def test_what_is_read_of_logits_stays_within_the_budget(device, function):
    shape = (3, 60, 25, 100) if device.name == "numpy" else (3, 20, 8, 40)
    case = random_logits_case(np.random.default_rng(0), *shape, dtype=np.float32)
    budget = least_budget(function, *case)
    peak, info = peak_beyond_results(function, *case, max_workspace_bytes=budget)
    assert peak <= info.workspace_bytes <= budget
