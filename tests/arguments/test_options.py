"""Options: the values that each of them takes, and what the error says of every other."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.engine.passes import Passes
from cupy_rnnt.ops.numpy.activations import ACTIVATIONS

from .cases import (
    OF_LOGITS,
    B,
    U,
    V,
    arguments,
    assert_same_bits,
    every_function,
    flat,
    functions_with_grad,
    joint_functions,
    refused,
)

# Those on which `tolerance` has an effect.
GIVING_UP_CELLS = (
    cupy_rnnt.rnnt_loss_and_grad,
    cupy_rnnt.joint_rnnt_loss,
    cupy_rnnt.joint_rnnt_loss_and_grad,
)

# Blank


@every_function
@pytest.mark.parametrize("blank", [V, -V - 1, 10**30, -(10**30)])
def test_blank_out_of_range(function, blank):
    words = f"blank is {blank},", f"between {-V} and {V - 1}"
    refused(function, ValueError, *words, blank=blank)


@every_function
@pytest.mark.parametrize("blank", [1.0, 0.5, math.nan, "0", None, [0], np.float64(1)], ids=repr)
def test_blank_is_an_integer(function, blank):
    refused(function, TypeError, "blank is", repr(blank), "integer", blank=blank)


@every_function
@pytest.mark.parametrize("blank", [0, 3, V - 1])
def test_blank_may_count_from_the_end(function, blank):
    targets = np.where(np.arange(U) % 2, (blank + 1) % V, (blank + 2) % V) * np.ones((B, 1), int)
    given = arguments(function, targets=targets)
    wanted = function(**given | {"blank": blank})
    for same in blank - V, np.int8(blank), np.uint64(blank):
        assert_same_bits(function(**given | {"blank": same}), wanted)


# Others


@every_function
@pytest.mark.parametrize("value", ["average", "", "Mean", None, 1, ["mean"], b"mean"], ids=repr)
def test_unknown_reduction(function, value):
    words = f"reduction is {value!r}", "none, mean, mean_volume, sum"
    refused(function, ValueError, *words, reduction=value)


@joint_functions
@pytest.mark.parametrize("value", ["elu", "Tanh", None, np.tanh, ["tanh"]], ids=repr)
def test_unknown_activation(function, value):
    words = f"activation is {value!r}", *ACTIVATIONS
    refused(function, ValueError, *words, activation=value)


@every_function
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("clamp", [math.nan, math.inf, -math.inf, np.float32(np.nan), 10**400]),
        ("fastemit_lambda", [math.nan, math.inf, -math.inf, -1e-9, -3]),
        ("tolerance", [math.nan, math.inf, -math.inf, -1e-30, 1, 1.5]),
    ],
)
def test_numbers_out_of_range(function, name, values):
    for value in values:
        words = f"{name} is {value!r}", "must be finite"
        refused(function, ValueError, *words, **{name: value})


@every_function
def test_tolerance_ends_below_1(function):
    refused(function, ValueError, "tolerance is 1.0", "at least 0", "below 1", tolerance=1.0)
    function(**arguments(function, tolerance=math.nextafter(1.0, 0.0)))


@pytest.mark.parametrize("function", GIVING_UP_CELLS)
def test_documentation_says_what_tolerance_may_be(function):
    parameter = function.__doc__.split("tolerance : float")[1].split(" : ")[0]
    assert re.search(r"at least 0\b.*\bbelow 1\b", " ".join(parameter.split()), re.IGNORECASE)


@every_function
@pytest.mark.parametrize("name", ["clamp", "fastemit_lambda", "tolerance"])
def test_numbers_are_numbers(function, name):
    wrong = ["0.5", b"1", [0.5], {}, 1j, np.complex64(1), np.array([0.5]), object()]
    if name != "tolerance":  # for which it is the default
        wrong.append(None)
    for value in wrong:
        words = f"{name} is {value!r}", "a number is needed"
        refused(function, TypeError, *words, **{name: value})


@every_function
@pytest.mark.parametrize("name", ["clamp", "fastemit_lambda", "tolerance"])
def test_numbers_of_any_type(function, name):
    wanted = function(**arguments(function, **{name: 0.5}))
    for value in np.float16(0.5), np.float32(0.5), np.float64(0.5):
        assert_same_bits(function(**arguments(function, **{name: value})), wanted)


def booleans_of(function):
    names = ["zero_infinity", "return_info"]
    if function in OF_LOGITS:
        names.append("fused_log_softmax")
    return names + ["overwrite_logits"] * (function is cupy_rnnt.rnnt_loss_and_grad)


@every_function
def test_booleans_are_booleans(function, monkeypatch):
    """A text or an array would count as true, or fail when all is computed."""
    monkeypatch.setattr(Passes, "first", None)  # before any work
    wrong = ["False", "", 0, 1, None, 0.0, [True], np.array([1, 0]), np.array(True), np.int8(1)]
    for name in booleans_of(function):
        for value in wrong:
            words = f"{name} is {value!r}", "True or False is needed"
            refused(function, TypeError, *words, **{name: value})


@every_function
@pytest.mark.filterwarnings("ignore:the probabilities of blank and label:UserWarning")
def test_booleans_of_numpy(function):
    for name in booleans_of(function):
        for value in False, True:
            wanted = function(**arguments(function, **{name: value}))
            found = function(**arguments(function, **{name: np.bool_(value)}))
            if name == "return_info":
                assert isinstance(found, tuple) == isinstance(wanted, tuple)
                if value:
                    assert found[-1].kept == wanted[-1].kept
                    found, wanted = found[:-1], wanted[:-1]
            assert_same_bits(found, wanted)


@functions_with_grad
def test_wrong_cost_weights(function):
    def wrong(error, value, *words):
        refused(function, error, "cost_weights", *words, cost_weights=value)

    wrong(ValueError, np.ones(B + 1), f"shape ({B + 1},)", f"({B},) is needed")
    wrong(ValueError, np.ones((B, 1)), f"shape ({B}, 1)", f"({B},) is needed")
    wrong(ValueError, np.ones(()), "shape ()")
    for dtype in "c8", "?", "O", "S4":
        wrong(TypeError, np.ones(B, dtype), "dtype", "real")
    for value in np.nan, np.inf, -np.inf:
        wrong(ValueError, [1.0, 2.0, value, 3.0], f"cost_weights[2] is {value}", "finite")
    wrong(TypeError, 1.0, "builtins.float")
    wrong(TypeError, "ones")


@functions_with_grad
def test_cost_weights_of_any_real_type(function):
    wanted = function(**arguments(function, cost_weights=np.arange(1.0, B + 1)))
    weights = range(1, B + 1)
    for value in list(weights), tuple(weights), *(np.array(weights, t) for t in ("i1", "u8", "f2")):
        assert_same_bits(function(**arguments(function, cost_weights=value)), wanted)


@every_function
@pytest.mark.parametrize("value", [3, "print", [print]], ids=repr)
def test_progress_is_callable(function, value):
    refused(function, TypeError, f"progress is {value!r}", "callable", progress=value)


@every_function
def test_progress_draws_a_bar_and_erases_it(function, capsys):
    wanted = function(**arguments(function))
    assert_same_bits(function(**arguments(function, progress=True)), wanted)
    err = capsys.readouterr().err
    assert "cells" in err
    assert err.endswith("\r")
    function(**arguments(function, progress=False))
    assert capsys.readouterr().err == ""


@every_function
def test_progress_names_what_its_bar_needs(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    refused(function, ImportError, "progress=True needs tqdm", "pip install tqdm", progress=True)


def test_only_writeable_arrays_are_overwritten():
    function = cupy_rnnt.rnnt_loss_and_grad
    logits = arguments(function)["logits"]
    read_only = logits.copy()
    read_only.flags.writeable = False
    words = "logits is read-only", "writeable"
    refused(function, ValueError, *words, logits=read_only, overwrite_logits=True)
    with pytest.raises(TypeError, match="logits is a list, but an array is needed"):
        function(**arguments(function, logits=logits.tolist(), overwrite_logits=True))


@joint_functions
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, np.nan, np.inf], ids=repr)
def test_dropout_out_of_range(function, value):
    words = f"dropout is {value!r}", "finite and at least 0 and below 1"
    refused(function, ValueError, *words, dropout=value)


@joint_functions
@pytest.mark.parametrize("value", ["0.1", None, [0.1]], ids=repr)
def test_dropout_of_another_type(function, value):
    refused(function, TypeError, f"dropout is {value!r}", "a number is needed", dropout=value)


@joint_functions
@pytest.mark.parametrize("value", [-1, 2**63])
def test_seed_out_of_range(function, value):
    words = f"seed is {value}", f"between 0 and {2**63 - 1}"
    refused(function, ValueError, *words, seed=value)


@joint_functions
@pytest.mark.parametrize("value", [1.0, None, "1", np.True_], ids=repr)
def test_seed_of_another_type(function, value):
    refused(function, TypeError, f"seed is {value!r}", "an integer is needed", seed=value)


# Workspace


@every_function
def test_the_least_workspace_is_named_and_is_the_least(function):
    with pytest.raises(ValueError, match="at least") as caught:
        function(**arguments(function, max_workspace_bytes=0))
    needed = int(re.search(r"at least (\d+) bytes", str(caught.value)).group(1))
    for value in -(10**30), -1, 0, 1, 1000, needed - 1:
        words = f"max_workspace_bytes is {value},", f"at least {needed} bytes"
        refused(function, ValueError, *words, max_workspace_bytes=value)
    result = function(**arguments(function, max_workspace_bytes=needed, return_info=True))
    assert result[-1].workspace_bytes <= needed
    plenty = function(**arguments(function, max_workspace_bytes=10**30))
    for one, other in zip(flat(result[:-1]), flat(plenty), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)  # sums in another order


@every_function
@pytest.mark.parametrize("value", [2.0**28, "256 MiB", math.inf, [2**28]], ids=repr)
def test_workspace_is_an_integer(function, value):
    words = f"max_workspace_bytes is {value!r}", "integer"
    refused(function, TypeError, *words, max_workspace_bytes=value)
