"""Keywords: written down once, and shown, checked and passed on from there."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import get_type_hints

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt.options import DEFAULTS, JointKeywords, Options, ReportingKeywords

COMMON = [
    "transducer",
    "delay_penalty",
    "fastemit_lambda",
    "zero_infinity",
    "tolerance",
    "max_workspace_bytes",
]
OF_JOINT = ["activation", "dropout", "seed"]
REPORTING = ["progress", "return_info"]
ONLY_BY_KEYWORD = {
    "rnnt_loss": ["band", *COMMON, *REPORTING],
    "rnnt_loss_and_grad": ["overwrite_logits", "cost_weights", "band", *COMMON, *REPORTING],
    "joint_rnnt_loss": ["band", *COMMON, *OF_JOINT, *REPORTING],
    "joint_rnnt_loss_and_grad": ["cost_weights", "band", *COMMON, *OF_JOINT, *REPORTING],
}
OF_SCORES = [*OF_JOINT, "transducer", "max_workspace_bytes", "progress"]
ONLY_BY_KEYWORD_OF_SCORES = {
    "joint_rnnt_log_probs": OF_SCORES,
    "joint_rnnt_log_probs_grad": ["grad", *OF_SCORES],
}
LOGITS = np.zeros((1, 2, 2, 3)), [[1]], [2], [1]


def only_by_keyword(function):
    parameters = inspect.signature(function).parameters.values()
    return [one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]


@pytest.mark.parametrize("name", ONLY_BY_KEYWORD)
def test_signatures_spell_out_every_keyword(name):
    function = getattr(cupy_rnnt, name)
    assert [one.name for one in only_by_keyword(function)] == ONLY_BY_KEYWORD[name]
    text = inspect.signature(function).__str__()
    assert "tolerance: float | None = None" in text
    assert "**" not in text


@pytest.mark.parametrize("name", ONLY_BY_KEYWORD_OF_SCORES)
def test_signatures_of_scores_spell_out_every_keyword(name):
    function = getattr(cupy_rnnt, name)
    assert [one.name for one in only_by_keyword(function)] == ONLY_BY_KEYWORD_OF_SCORES[name]
    assert "max_workspace_bytes: int | None = None" in str(inspect.signature(function))


@pytest.mark.parametrize("name", ["rnnt_loss", "joint_rnnt_loss"])
def test_signatures_of_the_adapters_spell_out_every_keyword(name):
    torch = pytest.importorskip("cupy_rnnt.torch")
    jax = pytest.importorskip("cupy_rnnt.jax")
    own = OF_JOINT if name == "joint_rnnt_loss" else []
    of_torch, of_jax = (only_by_keyword(getattr(module, name)) for module in (torch, jax))
    assert [one.name for one in of_torch] == ["band", "return_info", *COMMON, *own]
    assert [one.name for one in of_jax] == ["band", *COMMON, *own]


@pytest.mark.parametrize("name", ONLY_BY_KEYWORD)
def test_hints_can_be_resolved(name):
    function = getattr(cupy_rnnt, name)
    hints = get_type_hints(function)
    assert set(hints) == {*inspect.signature(function).parameters, "return"}
    assert hints["tolerance"] == float | None


def test_every_keyword_has_a_default_and_a_check():
    assert {*get_type_hints(JointKeywords), *get_type_hints(ReportingKeywords)} <= set(DEFAULTS)
    assert all(callable(one.metadata["check"]) for one in fields(Options))


def test_absent_keywords_get_their_defaults():
    values = Options.checked(np.dtype(np.float64))
    assert values.tolerance == 2.0**-53
    assert values.max_workspace_bytes is None
    assert values == Options.checked(np.dtype(np.float64), tolerance=None, blank=-1)
    assert Options.checked(np.dtype(np.float16), clamp=2).tolerance == 2.0**-24


def test_none_is_no_value_of_a_keyword_that_needs_one():
    with pytest.raises(TypeError, match="blank is None, but an integer is needed"):
        cupy_rnnt.rnnt_loss(*LOGITS, blank=None)
    with pytest.raises(TypeError, match="return_info is None, but True or False is needed"):
        cupy_rnnt.rnnt_loss(*LOGITS, return_info=None)


@pytest.mark.parametrize("name", ["tolerence", "activation", "cost_weights"])
def test_unknown_keywords_are_refused_by_name(name):
    text = rf"^rnnt_loss\(\) got an unexpected keyword argument '{name}'$"
    with pytest.raises(TypeError, match=text):
        cupy_rnnt.rnnt_loss(*LOGITS, **{name: 1})


def test_schemas_of_the_torch_operators_name_every_keyword():
    adapter = pytest.importorskip("cupy_rnnt.torch.operators")
    for operator in adapter.LOGITS.forward, adapter.JOINT.backward, adapter.JOINT_AND_GRAD:
        schema = str(operator._opoverload._schema)
        assert all(f" {name}" in schema for name in set(DEFAULTS) - set(REPORTING))
