"""What functions that read off the lattice refuse: the same as the losses, in the same words."""

from __future__ import annotations

import numpy as np
import pytest

import cupy_rnnt

from .cases import B, T, U, V, arguments, changed

LOSS_OF = {
    cupy_rnnt.rnnt_alignment: cupy_rnnt.rnnt_loss,
    cupy_rnnt.joint_rnnt_alignment: cupy_rnnt.joint_rnnt_loss,
    cupy_rnnt.rnnt_posteriors: cupy_rnnt.rnnt_loss,
    cupy_rnnt.joint_rnnt_posteriors: cupy_rnnt.joint_rnnt_loss,
}
WRONG = {
    "a blank": {"blank": V},
    "no lengths": {"logit_lengths": np.ones(B + 1, int)},
    "a length of 0": {"logit_lengths": [0] * B},
    "a length above U": {"target_lengths": [U + 1] * B},
    "a label that is the blank": {"targets": np.full((B, U), V - 1), "target_lengths": [U] * B},
    "floating labels": {"targets": np.zeros((B, U))},
    "an unknown transducer": {"transducer": "irregular"},
    "a penalty that is no number": {"delay_penalty": np.nan},
    "a small budget": {"max_workspace_bytes": 7},
    "no callback": {"progress": 7},
    "no boolean": {"return_info": 1},
    "no float": {"logits": np.zeros((B, T, U + 1, V), int)},
    "of two types": {"weight": np.zeros((V, 11), np.float32)},
}


EACH = [
    pytest.param(function, changes, id=f"{function.__name__}: {name}")
    for name, changes in WRONG.items()
    for function, loss in LOSS_OF.items()
    if not {"logits", "weight"} & (set(changes) - set(arguments(loss)))
]


@pytest.mark.parametrize(("function", "changes"), EACH)
def test_refused_as_by_the_loss(function, changes):
    loss = LOSS_OF[function]
    given = arguments(loss, **changes)
    with pytest.raises((TypeError, ValueError)) as of_loss:
        loss(**given)
    with pytest.raises(type(of_loss.value)) as caught:
        function(**given)
    text, expected = str(caught.value), str(of_loss.value)
    assert text.split(" needs at least")[0] == expected.split(" needs at least")[0]


@pytest.mark.parametrize("function", LOSS_OF, ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", ["clamp", "reduction", "fastemit_lambda", "zero_infinity"])
def test_keywords_of_losses_alone(function, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        function(**arguments(LOSS_OF[function]), **{name: 1})


@pytest.mark.parametrize("function", LOSS_OF, ids=lambda function: function.__name__)
def test_arguments_stay_as_they_are(function):
    given = arguments(LOSS_OF[function])
    given["targets"] = changed(given["targets"], 0, given["targets"][0])
    before = {name: np.array(value) for name, value in given.items()}
    done = []
    function(**given, progress=lambda *cells: done.append(cells))
    assert done[-1][0] == done[-1][1] > 0
    for name, value in given.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("name", ["rnnt_posteriors", "joint_rnnt_posteriors"])
@pytest.mark.parametrize("changes", [{"tolerance": 1.0}, {"tolerance": -0.1}, {"dense": "yes"}])
def test_options_of_posteriors(name, changes):
    function = getattr(cupy_rnnt, name)
    (option,) = changes
    with pytest.raises((TypeError, ValueError), match=f"^{option} is "):
        function(**arguments(LOSS_OF[function], **changes))
