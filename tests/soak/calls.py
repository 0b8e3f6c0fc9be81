"""The call of a case, what it must give by the textbook, and the comparison."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from cupy_rnnt import reference

from .. import device_calls
from ..engine.selection.cases import selecting
from ..engine.test_packed import packed
from ..helpers import divisor, least_budget
from ..tolerances import (
    assert_costs_close,
    assert_gradient_close,
    cost_tolerance,
    gradient_tolerance,
)
from .cases import TOLERANCE, Case

SLOPE = 1.2
"""Above the steepest slope of an activation."""
ON_DEVICE = {
    "logits": device_calls.rnnt_loss_and_grad,
    "packed": device_calls.rnnt_loss_and_grad,
    "joint": device_calls.joint_rnnt_loss_and_grad,
    "additive": device_calls.additive_rnnt_loss_and_grad,
}


class Results(NamedTuple):
    """The loss, and the gradients of the floating arguments in their order."""

    loss: Any
    gradients: tuple[Any, ...]

    @property
    def bits(self) -> bytes:
        arrays = [x for x in (self.loss, *self.gradients) if x is not None]
        return b"".join(np.asarray(x).tobytes() for x in arrays)


def lengths_of(case: Case) -> tuple[Any, Any]:
    return case.integers["logit_lengths"], case.integers["target_lengths"]


def floats_of(case: Case) -> list[Any]:
    """The floating arguments as the call takes them."""
    arrays = list(case.arrays.values())
    return [packed(arrays[0], *lengths_of(case))] if case.front == "packed" else arrays


# Calls


class Call:
    """The call of a case, which may be run again and again."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.arguments = [*floats_of(case), *case.integers.values()]
        self._before = self._bytes()

    def _bytes(self) -> list[bytes | None]:
        return [None if x is None else x.tobytes() for x in self.arguments]

    def __call__(self) -> Results:
        """What the library gives."""
        of = {"numpy": of_arrays, "torch": of_torch, "jax": of_jax}
        return of[self.case.framework](self.case, self.arguments)

    def left_its_arguments(self) -> None:
        assert self._before == self._bytes(), "an argument has changed"


@contextmanager
def conditions(case: Case) -> Iterator[None]:
    """Under which the call of a case is run. They hold for all threads."""
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(case.threads))
        if case.selects:
            stack.enter_context(selecting())
        stack.enter_context(quiet())
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Values are random: the library has reason to warn of them, and NumPy has not."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for text in "the probabilities of", "the softmax of every row", "the band of sample":
            warnings.filterwarnings("ignore", text, UserWarning)
        yield


def called(case: Case) -> Results:
    """What the library gives."""
    call = Call(case)
    with conditions(case):
        results = call()
    call.left_its_arguments()
    wanted = [None if x is None else (x.shape, x.dtype) for x in floats_of(case)]
    assert wanted == [None if x is None else (x.shape, x.dtype) for x in results.gradients]
    return results


def of_arrays(case: Case, arguments: list[Any]) -> Results:
    """On the device of :mod:`tests.device_calls`."""
    function, options = ON_DEVICE[case.front], dict(case.options)
    if case.spare_bytes is not None:
        budget = least_budget(function, *arguments, **options) + case.spare_bytes
        options["max_workspace_bytes"] = budget
    if case.front == "additive":
        loss, gradients = function(*arguments, **options)
    else:
        loss, gradients, info = function(*arguments, **options, return_info=True)
        assert info.kept <= info.computed <= info.cells == sum(t * s for t, s in case.extents)
        if case.spare_bytes is not None:
            assert info.workspace_bytes <= budget
    return Results(loss, gradients if isinstance(gradients, tuple) else (gradients,))


def of_torch(case: Case, arguments: list[Any]) -> Results:
    import torch

    import cupy_rnnt.torch as adapter

    from ..dlpack.cases import torch as library

    make, read = library().make, library().read
    count = len(floats_of(case))
    tensors = [None if x is None else make(np.array(x)) for x in arguments]
    leaves = [x.requires_grad_() for x in tensors[:count] if x is not None]
    options = dict(case.options)
    weights = options.pop("cost_weights", None)
    if options.get("band"):
        options["band"] = tuple(make(x) for x in options["band"])
    names = {"joint": "joint_rnnt_loss", "additive": "additive_rnnt_loss"}
    loss = getattr(adapter, names.get(case.front, "rnnt_loss"))(*tensors, **options)
    if weights is None:
        upstream = torch.ones_like(loss)
    else:
        upstream = torch.from_numpy(weights).to(loss.dtype)
    found = iter(torch.autograd.grad(loss, leaves, grad_outputs=upstream))
    gradients = [None if x is None else read(next(found)) for x in tensors[:count]]
    return Results(loss.detach().numpy(), tuple(gradients))


def of_jax(case: Case, arguments: list[Any]) -> Results:
    import jax

    import cupy_rnnt.jax as adapter

    count, options = len(floats_of(case)), dict(case.options)
    weights = options.pop("cost_weights", None)
    function = adapter.joint_rnnt_loss if case.front == "joint" else adapter.rnnt_loss
    with jax.enable_x64(case.dtype == np.float64):
        arrays = [None if x is None else jax.numpy.asarray(x) for x in arguments]
        loss, backward = jax.vjp(
            lambda *inputs: function(*inputs, *arrays[count:], **options), *arrays[:count]
        )
        above = np.ones(loss.shape) if weights is None else weights
        gradients = backward(jax.numpy.asarray(above, loss.dtype))
    return Results(np.asarray(loss), tuple(None if x is None else np.asarray(x) for x in gradients))


# The textbook


def expected(case: Case) -> Results:
    """In float64."""
    options = {name: x for name, x in case.options.items() if name != "tolerance"}
    integers, arrays = case.integers.values(), list(case.arrays.values())
    if case.front == "joint":
        loss, found = reference.joint_rnnt_loss_and_grad(*arrays, *integers, **options)
        return Results(loss, found)
    if case.front == "additive":
        am, lm = (array.astype(np.float64) for array in arrays)
        logits = am[:, :, None] + lm[:, None]
        loss, found = reference.rnnt_loss_and_grad(logits, *integers, **options)
        return Results(loss, (found.sum(axis=2), found.sum(axis=1)))
    loss, found = reference.rnnt_loss_and_grad(*arrays, *integers, **options)
    return Results(loss, (packed(found, *lengths_of(case)) if case.front == "packed" else found,))


def within_reach(case: Case) -> Case:
    """Without its band, if that holds no path of a sample that has some: the library widens such a
    band, and the textbook does not."""
    if case.options.get("band") is None:
        return case
    alone = {"cost_weights": None, "reduction": "none", "zero_infinity": False}
    costs, all_costs = (
        expected(case._replace(options=case.options | alone | band)).loss
        for band in ({}, {"band": None})
    )
    if not (np.isposinf(costs) & ~np.isposinf(all_costs)).any():
        return case
    return case._replace(options={k: v for k, v in case.options.items() if k != "band"})


# The comparison


def check(case: Case) -> None:
    """The call is right, and says the same again."""
    case = within_reach(case)
    found, wanted = called(case), expected(case)
    if case.options["tolerance"] == TOLERANCE:
        check_within(case, found, wanted)
    else:
        hidden = case.arrays["weight"].shape[1] if case.front == "joint" else 0
        assert_costs_close(found.loss, wanted.loss, case.dtype, case.length, hidden)
        gradients = zip(case.arrays, found.gradients, wanted.gradients, strict=True)
        for name, actual, desired in gradients:
            if actual is not None:
                assert_gradient_close(actual, desired, case.dtype, case.length, name)
    if case.seed % 5 == 0:
        assert called(case).bits == found.bits, "the second call gives other bits"


def check_within(case: Case, found: Results, wanted: Results) -> None:
    """Costs miss at most log1p(tolerance / 2), and the gradient of the logits of a sample 4 (T + U)
    tolerances for each of its scores; see tests/engine/selection/test_engine.py."""
    reduction, arrays = case.options["reduction"], case.arrays
    size = 1 if reduction == "none" else len(case.extents)
    share = size * np.log1p(TOLERANCE / 2) / divisor(reduction, case.integers["target_lengths"])
    hidden = arrays["weight"].shape[1] if case.front == "joint" else 0
    scale = np.maximum(1.0, abs(np.nan_to_num(np.asarray(wanted.loss), posinf=0.0)))
    rounding = cost_tolerance(case.dtype, case.length, hidden) * scale
    actual, desired = np.asarray(found.loss, np.float64), np.asarray(wanted.loss)
    same = (actual == desired) | (np.isnan(actual) & np.isnan(desired))
    with np.errstate(invalid="ignore"):
        error = actual - desired
    assert (same | ((error >= -rounding) & (error <= share + rounding))).all(), error
    scores = len(case.options["transducer"].topology.scores)
    steps = 4 * sum(t + s for t, s in case.extents) * scores * TOLERANCE
    steps *= 1 + case.options["fastemit_lambda"]
    if case.front == "joint":
        sizes = [np.nanmax(abs(x.astype(np.float64))) for x in arrays.values() if x is not None]
        of_hidden = (sizes[0] + sizes[1]) / (1 - case.options["dropout"])
        steps *= max(1.0, of_hidden, SLOPE * sizes[2] / (1 - case.options["dropout"]))
    for name, actual, desired in zip(arrays, found.gradients, wanted.gradients, strict=True):
        if actual is not None:
            largest = abs(desired).max(initial=1.0)
            most = steps + gradient_tolerance(case.dtype, case.length) * largest
            error = abs(actual.astype(np.float64) - desired).max(initial=0.0)
            assert error <= most, f"{name}: {error} > {most}"
