"""The members of the family that have a name: what they are made of, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import cupy_rnnt
from cupy_rnnt import multi_blank, tdt
from cupy_rnnt.topology import BLANK, LABEL, Arc, Score
from cupy_rnnt.transducer import NAMED, SOFTMAX, Head, Transducer

from ..device_calls import joint_rnnt_loss_and_grad, rnnt_loss_and_grad, rnnt_posteriors
from ..engine.selection.cases import selecting
from ..reference.cases import EXACT
from .cases import (
    EMIT,
    PLAIN,
    WAIT,
    Joint,
    batch_of,
    blanks_of,
    enumerated,
    every_path,
    padded_grads,
    random_sample,
)

# Written out


def test_arcs_and_heads_of_tdt():
    """From the paper: a blank of no frames is no arc, and a label is not the last."""
    none, one, three = (Score("duration", i) for i in range(3))
    arcs = {
        Arc(1, 0, (BLANK, one)),
        Arc(3, 0, (BLANK, three)),
        Arc(0, 1, (LABEL, none), ends=False),
        Arc(1, 1, (LABEL, one), ends=False),
        Arc(3, 1, (LABEL, three), ends=False),
    }
    made = tdt((0, 1, 3), sigma=0.05)
    assert set(made.topology.arcs) == arcs
    assert len(made.topology.arcs) == len(arcs)
    assert made.heads == (Head(("blank", "label")), Head(("duration",)))
    assert made.sigma == 0.05
    assert made.row(12, 8).shifts == (0.05, 0.05, 0.0, 0.0, 0.0)


def test_arcs_and_heads_of_multi_blank():
    made = multi_blank((2, 4), sigma=0.05)
    big = Arc(2, 0, (Score("blank", 1),)), Arc(4, 0, (Score("blank", 2),))
    assert set(made.topology.arcs) == {WAIT, EMIT, *big}
    assert len(made.topology.arcs) == 4
    assert made.heads == SOFTMAX
    assert made.row(9, 8).columns[:3] == (8, 7, 6)
    assert set(made.row(9, 8).shifts) == {0.05}


def test_hat_is_a_sigmoid_and_a_softmax():
    """Of the paper: blank with sigmoid(z), and else a label by a softmax over labels alone."""
    made = NAMED["hat"]
    assert made.topology == PLAIN.topology
    z = np.array([[[[0.3, -0.7, 1.1]], [[0.2, 0.5, -0.4]]]])
    blank = 1 / (1 + np.exp(-z[0, :, 0, 2]))
    loss = cupy_rnnt.rnnt_loss(z, np.zeros((1, 0), int), [2], [0], transducer="hat")
    np.testing.assert_allclose(loss, -np.log(blank).sum(), **EXACT)
    z = np.concatenate((z[:, :1], z[:, 1:]), axis=2)  # one frame, one label
    label = (1 - blank[0]) * np.exp(0.3) / (np.exp(0.3) + np.exp(-0.7))
    loss = cupy_rnnt.rnnt_loss(z, [[0]], [1], [1], transducer="hat")
    np.testing.assert_allclose(loss, -np.log(label * blank[1]), **EXACT)


def test_defaults():
    assert tdt() == tdt((0, 1, 2, 3, 4), 0.0)
    assert multi_blank() == multi_blank((2, 4, 8), 0.0)


@pytest.mark.parametrize("make", [tdt, multi_blank])
def test_any_iterable_of_integers_will_do(make):
    made = make((2, 3, 4), 0.1)
    for durations in [2, 3, 4], range(2, 5), np.arange(2, 5), (np.int8(2), 3, 4):
        again = make(durations, np.float64(0.1))
        assert again == made
        assert hash(again) == hash(made)
        assert Transducer.parse(str(again)) == made


# What is refused

WRONG = [
    (tdt, (-1, 1), ValueError, r"durations\[0\] is -1, but it must be at least 0"),
    (tdt, (0, 1, 1), ValueError, r"\[2\] is 1, .* increase: .* above durations\[1\], which is 1"),
    (tdt, (0, 2, 1), ValueError, r"\[2\] is 1, .* increase: .* above durations\[1\], which is 2"),
    (tdt, (), ValueError, r"durations is \(\), but at least one is needed"),
    (tdt, (0,), ValueError, r"durations\[0\] is 0, .* at least one must be above 0"),
    (tdt, (0, 1.0), TypeError, r"durations\[1\] is 1.0, but an integer is needed"),
    (tdt, (False, True), TypeError, r"durations\[0\] is False, but an integer is needed"),
    (tdt, (0, np.bool_(True)), TypeError, r"durations\[1\] is .*True.*, but an integer is needed"),
    (tdt, (0, None), TypeError, r"durations\[1\] is None, but an integer is needed"),
    (tdt, "01", TypeError, r"durations\[0\] is '0', but an integer is needed"),
    (tdt, 4, TypeError, "durations is 4, but a list of integers is needed"),
    (
        multi_blank,
        (1, 2),
        ValueError,
        r"\[0\] is 1, .* at least 2: the blank itself takes 1",
    ),
    (multi_blank, (0, 2), ValueError, r"durations\[0\] is 0, but it must be at least 2"),
    (
        multi_blank,
        (4, 2),
        ValueError,
        r"\[1\] is 2, .* above durations\[0\], which is 4",
    ),
    (multi_blank, [], ValueError, r"durations is \[\], but at least one is needed"),
    (multi_blank, (True,), TypeError, r"durations\[0\] is True, but an integer is needed"),
]


@pytest.mark.parametrize(("make", "durations", "error", "text"), WRONG)
def test_durations_that_make_no_transducer(make, durations, error, text):
    with pytest.raises(error, match=text):
        make(durations)


@pytest.mark.parametrize("make", [tdt, multi_blank])
def test_sigma_is_a_number_from_0_on(make):
    for sigma in -0.1, np.inf, np.nan:
        with pytest.raises(ValueError, match=f"sigma is {sigma}, but it must be finite"):
            make(sigma=sigma)
    with pytest.raises(TypeError, match="sigma is '0', but a Real is needed"):
        make(sigma="0")


def loss_of(width, transducer, label=1, **options):
    return cupy_rnnt.rnnt_loss(
        np.zeros((1, 2, 2, width)), [[label]], [2], [1], transducer=transducer, **options
    )


def test_blanks_and_labels_are_tokens():
    """The blank below 0 counts from the last token, and no label is a duration or a blank."""
    three = tdt((0, 1, 2))
    # Two frames and a label of column 1: all tokens and all durations are equally likely.
    arcs = [len(path) for path in every_path(three.topology, 2, 1)]
    expected = -np.log(sum((1 / 4 / 3) ** count for count in arcs))
    np.testing.assert_allclose(loss_of(7, three), expected, rtol=1e-12)
    two = multi_blank((2, 4))
    with pytest.raises(
        ValueError, match=r"blank is 1, but the transducer has 2 more blanks in front of it: it mu"
    ):
        loss_of(7, two, blank=1)
    with pytest.raises(ValueError, match=r"targets\[0, 0\] is 1, which is a further blank"):
        loss_of(7, two, blank=3)
    with pytest.raises(ValueError, match=r"targets\[0, 0\] is 1, which is the blank"):
        loss_of(7, PLAIN, blank=1)


def test_columns_of_big_blanks():
    """Two frames, no label: a blank twice, or the big blank of two frames; and what is refused."""
    logits = np.log([[[[0.1, 0.2, 0.3, 0.4]]]]).repeat(2, axis=1)

    def cost(columns, blank, labels=()):
        transducer, sample = multi_blank((2, 3), 0.0, columns), ([[*labels]], [2], [len(labels)])
        padded = logits.repeat(1 + len(labels), axis=2)
        return cupy_rnnt.rnnt_loss(
            padded, *sample, blank, fused_log_softmax=False, transducer=transducer
        )

    np.testing.assert_allclose(cost((3, 0), 1), -np.log(0.2**2 + 0.4), **EXACT)
    np.testing.assert_allclose(cost(np.array([0, -1]), -2), -np.log(0.3**2 + 0.1), **EXACT)
    assert multi_blank((2, 3), 0.0, (0, -1)) == multi_blank((2, 3), blank_columns=[0, -1])
    for columns, words in [
        ((3, 4), r"blank_columns\[1\] is 4, but it must be between -4 and 3"),
        ((-5, 0), r"blank_columns\[0\] is -5, but it must be between -4 and 3"),
        ((0, -3), r"blank_columns\[1\] is -3, which is that of the blank"),
        ((3, -1), r"blank_columns\[1\] is -1, which is that of blank_columns\[0\]"),
        ((3,), r"blank_columns is \(3,\), but 2 are needed: one for each blank but the first"),
    ]:
        with pytest.raises(ValueError, match=words):
            cost(columns, 1)
    with pytest.raises(ValueError, match=r"targets\[0, 0\] is 3, which is a further blank"):
        cost((0, 3), 1, [3])
    with pytest.raises(TypeError, match=r"blank_columns\[1\] is 1.0, but an integer is needed"):
        cost((0, 1.0), 1)
    with pytest.raises(TypeError, match="blank_columns is 3, but a list of integers is needed"):
        cost(3, 1)


@pytest.mark.parametrize("front", ["logits", "joint"])
def test_big_blanks_in_any_columns(device, front):
    """Of a batch, by the list of all paths; selected by bounds as well."""
    transducer, extents = multi_blank((2, 3), 0.05, (0, -2)), [(5, 2), (4, 1)]
    options = {"reduction": "none", "transducer": transducer}
    if front == "joint":
        joint = Joint(transducer, extents, 1)
        expected, grads = joint.expected()
        with selecting():
            costs, found = joint_rnnt_loss_and_grad(*joint.arguments, **options)
    else:
        rng = np.random.default_rng(1)
        samples = [random_sample(rng, transducer, *extent, blank=2) for extent in extents]
        arguments = batch_of(samples)
        expected, parts = zip(*map(enumerated, samples), strict=True)
        grads = [padded_grads(samples, parts, arguments[0])]
        costs, *found = rnnt_loss_and_grad(*arguments, **options)
    np.testing.assert_allclose(costs, expected, **EXACT)
    for one, other in zip(found, grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)


def test_rows_without_room_for_the_durations():
    """1024 labels, the blank and five durations are 1030 logits, not 1025."""
    row = r"a row has 1025 logits, which are 1020 tokens \+ 5 durations, but at least 1025 \+ 5 are"
    for wrong in {"blank": 1024}, {"blank": -1025}, {"label": 1024}:
        with pytest.raises(ValueError, match=f"(blank|targets.*) is .*: {row} needed"):
            loss_of(1025, tdt(), **wrong)
    assert np.isfinite(loss_of(1030, tdt(), blank=1024))
    assert loss_of(1030, tdt(), blank=-1) == loss_of(1030, tdt(), blank=1024)
    with pytest.raises(
        ValueError, match=r"a row has 5 logits, but 5 of them are durations .* at least 1 \+ 5 log"
    ):
        loss_of(5, tdt())
    with pytest.raises(ValueError, match=r"targets\[0, 0\] is -1, .* 4 entries: if it is padding"):
        loss_of(9, tdt(), -1)
    with pytest.raises(ValueError, match=r"blank is 9, but it must be between -9 and 8$"):
        loss_of(9, PLAIN, blank=9)


def test_a_weight_without_rows_for_the_durations():
    inputs = [np.zeros(shape) for shape in [(1, 2, 3), (1, 2, 3), (6, 3), (6,)]]
    with pytest.raises(ValueError, match=r"a row has 6 logits, which are 4 tokens \+ 2 durations"):
        cupy_rnnt.joint_rnnt_loss(*inputs, [[5]], [2], [1], transducer=tdt((1, 2)))
    with pytest.raises(ValueError, match=r"bias has shape \(6,\), but \(8,\) is needed"):
        cupy_rnnt.joint_rnnt_loss(
            *inputs[:2], np.zeros((8, 3)), inputs[3], [[5]], [2], [1], transducer=tdt((1, 2))
        )


# Samples that no path fits

UNFIT = {
    "tdt of labels that take frames": (tdt((1, 2)), (2, 2)),
    "tdt of durations that cannot land": (tdt((2, 4)), (5, 1)),
    "tdt of a duration beyond the end": (tdt((0, 3)), (2, 1)),
    "hat, modified": (Transducer(NAMED["modified"].topology, NAMED["hat"].heads), (2, 3)),
}
"""The transducer, and the frames and labels of the sample."""


@pytest.mark.parametrize("front", ["logits", "joint"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.thinned(3)
def test_samples_that_no_path_fits(device, name, zero_infinity, front):
    """They cost inf, or 0, and have no gradient; the others are not touched."""
    transducer, unfit = UNFIT[name]
    extents = [(6, 2), unfit, (6, 1)]
    options = {"reduction": "none", "transducer": transducer, "zero_infinity": zero_infinity}
    if front == "joint":
        joint = Joint(transducer, extents, 0)
        costs, gradients = joint_rnnt_loss_and_grad(*joint.arguments, **options)
        expected, grads = joint.expected()
        for one, other in zip(gradients, grads, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)
        assert not gradients.encoder_out[1].any()
    else:
        rng, blank = np.random.default_rng(0), blanks_of(transducer, 3)[-1]
        samples = [random_sample(rng, transducer, *extent, blank=blank) for extent in extents]
        *arguments, _ = batch_of(samples)
        costs, grad = rnnt_loss_and_grad(*arguments, blank, **options)
        expected, grads = zip(*map(enumerated, samples), strict=True)
        wanted = padded_grads(samples, grads, arguments[0])
        np.testing.assert_allclose(grad, wanted, rtol=1e-11, atol=1e-12)
        assert not grad[1].any()
    assert np.isfinite(expected).tolist() == [True, False, True]
    assert costs[1] == (0.0 if zero_infinity else np.inf)
    np.testing.assert_allclose(costs[[0, 2]], np.array(expected)[[0, 2]], **EXACT)


def test_a_duration_longer_than_any_sample(device):
    """Its arcs are on no path and take no memory, and its column counts all the same."""
    rng = np.random.default_rng(0)
    long = random_sample(rng, tdt((0, 1, 10**9)), 5, 2, blank=2)
    expected, grad = enumerated(long)
    arguments = batch_of([long])
    options = {"transducer": long.transducer}
    cost, found = rnnt_loss_and_grad(*arguments, **options)
    assert not rnnt_posteriors(*arguments, **options)[..., -1].any()
    assert rnnt_loss_and_grad(*arguments, transducer=tdt((9, 10, 10**9)))[0] == np.inf
    np.testing.assert_allclose(cost, expected, **EXACT)
    np.testing.assert_allclose(found[0, :5], grad, rtol=1e-11, atol=1e-12)
