"""When the host waits for a GPU, and on which stream everything runs."""

from unittest import mock

import numpy as np
import pytest
from scipy.special import log_softmax

import cupy_rnnt
from cupy_rnnt.engine.passes import Passes

from ...arguments.cases import every_function
from ...device_calls import to_device
from ...engine.selection.cases import least_selecting_budget
from ...engine.selection.test_engine import selected, trained
from ...helpers import random_joint_case, random_logits_case
from .test_arguments import moved

OF_LOGITS = cupy_rnnt.rnnt_loss, cupy_rnnt.rnnt_loss_and_grad
OF_JOINT = cupy_rnnt.joint_rnnt_loss, cupy_rnnt.joint_rnnt_loss_and_grad


@pytest.fixture
def emulator(gpu):
    """Which counts the waits."""
    if gpu.name == "cuda":
        pytest.skip("nobody counts how often a real device is waited for")
    return gpu.xp


def waits(emulator, function, case, **options):
    """Of a call, and its info."""
    from ...emulated import arrays

    case = to_device(case)
    before = arrays.waits
    *_, info = function(*case, return_info=True, **options)
    return arrays.waits - before, info


@pytest.mark.parametrize("gradient", [False, True])
def test_waits_of_logits(emulator, gradient):
    """For lengths and targets; for the number of kept cells, if there is a gradient; and to see
    whether logits are log-probabilities, or could be where they are said to be."""
    case = random_logits_case(np.random.default_rng(0))
    assert waits(emulator, OF_LOGITS[gradient], case)[0] == 2 + gradient
    case = case._replace(logits=log_softmax(case.logits, axis=-1))
    given_log_probs = waits(emulator, OF_LOGITS[gradient], case, fused_log_softmax=False)
    assert given_log_probs[0] == 2 + gradient


@pytest.mark.parametrize("gradient", [False, True])
def test_waits_of_joints(emulator, gradient):
    case = random_joint_case(np.random.default_rng(0))
    assert waits(emulator, OF_JOINT[gradient], case)[0] == 1 + gradient


def test_integers_on_the_host_ask_for_no_wait(emulator):
    case = random_joint_case(np.random.default_rng(0))
    lists = (case.targets.tolist(), case.logit_lengths.tolist(), case.target_lengths.tolist())
    case = (*case[:4], *lists, case.blank)
    assert waits(emulator, OF_JOINT[False], case)[0] == 0


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("astray", [False, True])
@pytest.mark.thinned(2)
@pytest.mark.slow
def test_waits_of_certified_selection(emulator, astray, gradient):
    """Once for lengths and targets. In each group for how many cells are selected; behind each
    round for whether that is enough, and for how many more if not; for how many are kept, and how
    many of them have stored logits if that may not be all."""
    case, function = trained(size=6, hidden=130), OF_JOINT[gradient]
    budget = least_selecting_budget(case, gradient) + 10**5
    with mock.patch.object(Passes, "first", autospec=True, side_effect=Passes.first) as groups:
        counted, info = waits(
            emulator, selected, (function, *case), astray=astray, max_workspace_bytes=budget
        )
    assert info.computed < info.cells
    assert info.rounds == 1 + astray
    assert groups.call_count > 1
    assert counted <= 1 + (2 + 2 * astray + 2 * gradient) * groups.call_count


@every_function
def test_everything_runs_on_the_current_stream(emulator, function):
    with emulator.cuda.Stream(non_blocking=True) as stream:
        given = moved(function)
        emulator.kernels.launches.clear()
        function(**given)
    assert emulator.kernels.launches
    assert all(launch.stream == stream for launch in emulator.kernels.launches)


@pytest.mark.slow
def test_two_calls_on_two_streams(gpu):
    """A second call runs in the middle of the first, on a stream of its own: both give the bits of
    a call alone."""
    case, function = to_device(trained(size=2, hidden=130)), OF_JOINT[True]
    streams = [gpu.xp.cuda.Stream(non_blocking=True) for _ in range(2)]
    results = [function(*case)]
    gpu.xp.cuda.get_current_stream().synchronize()

    def interrupt(done, total):
        if len(results) == 1:
            with streams[1]:
                results.append(function(*case))

    with streams[0]:
        results.append(function(*case, progress=interrupt))
    for stream in streams:
        stream.synchronize()
    alone, *others = [
        [gpu.asnumpy(array) for array in (loss, *gradients)] for loss, gradients in results
    ]
    assert len(others) == 2
    for other in others:
        for one, expected in zip(other, alone, strict=True):
            np.testing.assert_array_equal(one, expected)
