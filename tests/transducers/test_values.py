"""Transducers as values: what follows from their arcs and heads, and what is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cupy_rnnt
from cupy_rnnt.topology import BLANK, LABEL, Arc, Score, Topology
from cupy_rnnt.transducer import LABEL_COLUMN, NAMED, SOFTMAX, Head, Transducer, transducer_of

from .cases import (
    EMIT,
    HAT,
    PLAIN,
    TRANSDUCERS,
    WAIT,
    Columns,
    blanks_of,
    every_path,
    random_sample,
    topologies,
    transducers,
    width_of,
)

K2 = "regular", "modified", "constrained"
every_transducer = pytest.mark.parametrize("transducer", TRANSDUCERS.values(), ids=TRANSDUCERS)
many = settings(max_examples=150, deadline=None)


@many
@given(transducers())
def test_a_text_says_it_all(transducer):
    assert Transducer.parse(str(transducer)) == transducer
    assert transducer_of("transducer", str(transducer)) == transducer
    assert transducer_of("transducer", transducer) is transducer


@every_transducer
def test_names_are_texts(transducer):
    names = [name for name, value in NAMED.items() if value == transducer]
    assert str(transducer) == names[0] if names else str(transducer) not in NAMED
    assert Transducer.parse(str(transducer)) == transducer


@given(transducers(), transducers())
def test_values_can_be_keys(one, other):
    again = Transducer.parse(str(one))
    assert {one: 1}[again] == 1
    assert (one == other) == (str(one) == str(other))
    assert one != other or hash(one) == hash(other)


def test_topologies_of_k2():
    """From its words: a label takes a frame, too; constrained, a blank of the same frame goes with
    it."""
    assert NAMED["regular"].topology == Topology((WAIT, EMIT))
    assert NAMED["modified"].topology == Topology((WAIT, Arc(1, 1, (LABEL,))))
    assert NAMED["constrained"].topology == Topology((WAIT, Arc(1, 1, (LABEL,), then=BLANK)))
    assert {NAMED[name].heads for name in K2} == {SOFTMAX}


# What follows from arcs


def test_scores_come_in_the_order_of_their_kinds():
    of_two = Score("blank", 1)
    durations = Score("duration"), Score("duration", 3)
    arcs = Arc(1, 1, (durations[1], LABEL), then=of_two), Arc(1, 0, (durations[0], BLANK))
    assert Topology(arcs).scores == (BLANK, of_two, LABEL, *durations)
    assert Topology(arcs).looks_aside


@pytest.mark.parametrize(
    ("name", "reach"),
    {"regular": 1, "modified": 2, "constrained": 2, "hat": 1, "tdt": 3, "multi-blank": 4}.items(),
)
def test_reach(name, reach):
    assert TRANSDUCERS[name].topology.reach == reach


@many
@given(topologies(), st.integers(1, 5), st.integers(0, 3))
def test_no_path_has_more_or_fewer_arcs_than_said(topology, T, U):
    fewest, most = topology.path_arcs(T, U)
    lengths = [len(path) for path in every_path(topology, T, U)]
    assert all(fewest <= length <= most for length in lengths)


@many
@given(topologies(), st.integers(1, 4), st.integers(0, 2))
def test_paths_within_so_many_frames_are_the_same(topology, T, U):
    within = topology.within(T)
    assert list(every_path(within, T, U)) == list(every_path(topology, T, U))
    assert within.scores == topology.scores
    assert within.reach <= max(topology.reach, 2 * T + 1)


@pytest.mark.parametrize("name", ["regular", "modified", "constrained", "hat"])
def test_bounds_of_the_number_of_arcs_are_met(name):
    topology = TRANSDUCERS[name].topology
    for T, U in product(range(1, 5), range(4)):
        lengths = {len(path) for path in every_path(topology, T, U)}
        if lengths:
            assert lengths == {*map(int, topology.path_arcs(T, U))}


def test_bounds_of_many_samples():
    T, U = np.array([4, 9, 30]), np.array([0, 3, 40])
    fewest, most = TRANSDUCERS["tdt"].topology.path_arcs(T, U)
    np.testing.assert_array_equal(fewest, [2, 5, 40])  # labels of 2 frames, blanks of 2
    np.testing.assert_array_equal(most, [4, 12, 70])  # labels of none, blanks of 1


@pytest.mark.parametrize(
    ("transducer", "expected"),
    [
        *((transducer, 1) for transducer in TRANSDUCERS.values()),
        (Transducer(Topology((WAIT, Arc(2, 0, (BLANK,))))), 2),  # one score, two arcs
        (Transducer(Topology((WAIT, EMIT)), (Head(("blank",)), Head(("label",)))), 2),
        (Transducer(Topology((WAIT, EMIT, Arc(1, 1, (LABEL, BLANK))))), 2),
    ],
)
def test_most_mass_of_the_arcs_of_a_cell(transducer, expected):
    assert transducer.most_mass == expected


@many
@given(transducers(normalising=True), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 3.0, 30.0]))
def test_arcs_of_a_cell_have_no_more_than_the_most_mass(transducer, seed, scale):
    assert transducer.normalises
    sample = random_sample(np.random.default_rng(seed), transducer, 4, 3, scale=scale)
    scores = np.exp(sample.scores())
    kinds = transducer.topology.scores
    products = [
        np.prod([scores[kinds.index(score)] for score in arc.scores], axis=0)
        for arc in transducer.topology.arcs
    ]
    assert np.sum(products, axis=0).max() <= transducer.most_mass * (1 + 1e-12)


def test_what_normalises():
    """Each score is charged the head that its own column is under; what others may take away is
    below 0 without a zero."""
    assert all(transducer.normalises for transducer in TRANSDUCERS.values())
    assert not Transducer(PLAIN.topology, ()).normalises
    assert not Transducer(PLAIN.topology, (Head(("blank",)),)).normalises
    assert not Transducer(
        PLAIN.topology, (Head(("blank", "label"), charges=("blank",)),)
    ).normalises
    of_others = Head(("blank",), charges=("label",)), Head(("label",), charges=("blank",))
    assert not Transducer(PLAIN.topology, of_others).normalises
    without_zero = HAT.heads[0]._replace(zero=False), HAT.heads[1]
    assert not Transducer(PLAIN.topology, without_zero).normalises


# Rows


@every_transducer
def test_columns_of_a_row(transducer):
    """For every place of the blank: first, in the middle and last."""
    width = width_of(transducer, labels=4)
    for blank in blanks_of(transducer, labels=4):
        columns, row = Columns.in_a_row(transducer, width, blank), transducer.row(width, blank)
        assert row.width == width == row.tokens + transducer.durations
        for score, column in zip(transducer.topology.scores, row.columns, strict=True):
            expected = LABEL_COLUMN if score == LABEL else columns.one(score, None)
            assert column == expected
        no_labels = sorted({*range(width)} - {*columns.of["label"]})
        assert [v for start, stop in row.others for v in range(start, stop)] == no_labels
        for head, kinds in zip(row.heads, transducer.heads, strict=True):
            under = sorted(v for kind in kinds.kinds for v in columns.of[kind])
            assert [v for start, stop in head.ranges for v in range(start, stop)] == under
            assert (head.zero, head.labels) == (kinds.zero, "label" in kinds.kinds)
            ends = [edge for bounds in head.ranges for edge in bounds]
            assert ends == sorted(set(ends))  # none is empty, and none touches the next
        assert row.under_no_head == []


def test_rows_in_use():
    """Written out."""
    row = TRANSDUCERS["tdt"].row(8, 2)
    assert row.columns == (2, LABEL_COLUMN, 5, 6, 7)
    assert [head.ranges for head in row.heads] == [((0, 5),), ((5, 8),)]
    assert row.charged == ((0,), (0,), (1,), (1,), (1,))
    assert row.shifts == (0.05, 0.05, 0.0, 0.0, 0.0)
    row = TRANSDUCERS["multi-blank"].row(8, 7)
    assert row.columns == (7, 6, 5, LABEL_COLUMN)
    assert row.others == ((5, 8),)
    row = HAT.row(6, 3)
    assert [head.ranges for head in row.heads] == [((3, 4),), ((0, 3), (4, 6))]
    assert [head.zero for head in row.heads] == [True, False]
    assert row.charged == ((0,), (0, 1))
    assert HAT.row(6, 0).heads[1].ranges == ((1, 6),)
    assert HAT.row(6, 5).heads[1].ranges == ((0, 5),)


def test_normalised_rows_have_no_head():
    row = TRANSDUCERS["tdt"].row(8, 2, normalised=True)
    assert row.heads == ()
    assert row.charged == ((),) * 5
    assert row.shifts == (0.05, 0.05, 0.0, 0.0, 0.0)
    assert row.under_no_head == [(0, 8)]


def test_columns_under_no_head():
    transducer = Transducer(TRANSDUCERS["tdt"].topology, (Head(("label",)),))
    assert transducer.row(8, 2).under_no_head == [(2, 3), (5, 8)]


# What is refused

WRONG_ARCS = [
    ((Arc(0, 0, (BLANK,)),), r"arcs\[0\] leads 0 frames and 0 labels ahead"),
    ((WAIT, Arc(-1, 1, (LABEL,))), r"arcs\[1\] leads -1 frames and 1 labels ahead"),
    ((WAIT, Arc(0, 2, (LABEL,))), r"arcs\[1\] leads 0 frames and 2 labels ahead"),
    ((WAIT, Arc(0, 1, (BLANK,))), r"arcs\[1\] emits 1 labels, but its scores are"),
    ((Arc(1, 0, (LABEL,)),), r"arcs\[0\] emits 0 labels, but its scores are"),
    ((WAIT, Arc(1, 1, (LABEL,), then=LABEL)), r"arcs\[1\] emits 1 labels, but its scores are"),
    ((Arc(1, 0, ()),), r"arcs\[0\] has the scores \(\), but must have at least one"),
    ((Arc(1, 0, (BLANK, BLANK)),), r"arcs\[0\] has the scores .*, and none twice"),
    ((WAIT, Arc(0, 1, (Score("label", 1),))), r"arcs\[1\] has a second score of the label"),
    ((WAIT, Arc(0, 1, (LABEL, Score("label", 1)))), r"arcs\[1\] has a second score of the label"),
    ((Arc(1, 0, (Score("wait"),)),), r"arcs\[0\] has the score .*'wait'.*, but kinds are"),
    (
        (Arc(1, 0, (Score("blank", -1),)),),
        r"arcs\[0\] has the score .*-1.*, but numbers begin",
    ),
    ((Arc(1, 0, (BLANK,), then=Score("wait")),), r"arcs\[0\] has the score .*'wait'"),
    ((WAIT, EMIT, WAIT), r"arcs\[2\] is the same as arcs\[0\]"),
    ((), "no arc leads to the end of a path"),
    ((EMIT,), "no arc leads to the end of a path"),
    ((Arc(1, 0, (BLANK,), ends=False), EMIT), "no arc leads to the end of a path"),
]


@pytest.mark.parametrize(("arcs", "text"), WRONG_ARCS)
def test_arcs_that_make_no_topology(arcs, text):
    with pytest.raises(ValueError, match=text):
        Topology(arcs)


WRONG_HEADS = [
    ((Head(("blank",)), Head(("label", "blank"))), r"heads name \['blank'\]"),
    ((Head(("blank", "blank")),), r"heads name \['blank'\]"),
    ((Head(("token",)),), r"heads\[0\].kinds has 'token', but kinds are"),
    ((Head(("blank",), charges=("token",)),), r"heads\[0\].charges has 'token', but kinds are"),
    ((Head(("blank",)), Head(("duration",))), r"heads\[1\] is over the columns of \('duration',\)"),
    ((Head(()),), r"heads\[0\] is over no kinds"),
    ((Head(("label",)), Head((), zero=True)), r"heads\[1\] is over no kinds"),
]


@pytest.mark.parametrize(("heads", "text"), WRONG_HEADS)
def test_heads_that_make_no_transducer(heads, text):
    with pytest.raises(ValueError, match=text):
        Transducer(PLAIN.topology, heads)


WRONG_TYPES = [
    (lambda: Topology(WAIT), r"arcs is Arc\(.*, but a tuple of arcs is needed"),
    (lambda: Topology((BLANK,)), r"arcs\[0\] is Score\(.*, but Arc is needed"),
    (lambda: Topology((Arc(0.5, 0, (BLANK,)),)), r"arcs\[0\].frames is 0.5, but an integer"),
    (lambda: Topology((Arc(1, "1", (BLANK,)),)), r"arcs\[0\].labels is '1', but an integer"),
    (lambda: Topology((Arc(1, 0, BLANK),)), r"arcs\[0\].scores is Score\(.*, but a tuple of"),
    (lambda: Topology((Arc(1, 0, ("blank",)),)), r"arcs\[0\].scores\[0\] is 'blank', but Score"),
    (lambda: Topology((Arc(1, 0, (BLANK,), "blank"),)), r"arcs\[0\].then\[0\] is 'blank', but"),
    (lambda: Topology((Arc(1, 0, (Score("blank", 1.0),)),)), r"number of Score.* is 1.0, but an"),
    (lambda: Topology((Arc(1, 0, (BLANK,), ends="no"), EMIT)), r"arcs\[0\].ends is 'no', but True"),
    (lambda: Transducer(PLAIN.topology, (Head(("blank",), 1),)), r"heads\[0\].zero is 1, but True"),
    (lambda: Transducer((WAIT, EMIT)), r"topology is \(Arc\(.*, but a Topology is needed"),
    (lambda: Transducer(PLAIN.topology, Head(("blank",))), "but a tuple of heads is needed"),
    (lambda: Transducer(PLAIN.topology, ("blank",)), r"heads\[0\] is 'blank', but Head is needed"),
    (lambda: Transducer(PLAIN.topology, (Head("blank"),)), r"heads\[0\].kinds is 'blank', but a"),
    (lambda: Transducer(PLAIN.topology, sigma="a"), "sigma is 'a', but a Real is needed"),
]


@pytest.mark.parametrize(("make", "text"), WRONG_TYPES)
def test_what_transducers_are_not_made_of(make, text):
    with pytest.raises(TypeError, match=text):
        make()


def test_lists_are_as_good_as_tuples():
    """Which are hashed, and told apart by JAX."""
    arcs = [Arc(np.int64(1), 0, [BLANK]), Arc(0, 1, [LABEL])]
    made = Transducer(Topology(arcs), [Head(["blank", "label", "duration"])], np.float32(0))
    assert made == PLAIN
    assert hash(made) == hash(PLAIN)
    assert str(made) == "regular"


def test_a_text_that_is_no_transducer():
    with pytest.raises(ValueError, match="text is 'foo', but that of a transducer is needed"):
        Transducer.parse("foo")


@pytest.mark.parametrize("sigma", [-0.1, np.inf, np.nan])
def test_sigma_is_finite_and_not_below_0(sigma):
    with pytest.raises(ValueError, match=f"sigma is {sigma}, but it must be finite"):
        Transducer(PLAIN.topology, sigma=sigma)


@pytest.mark.parametrize("text", ["modifed", "tdt", "", "[]", "[[], [], 0]", "null", "[1, 2, 3]"])
def test_an_unknown_name_is_answered_with_those_known(text):
    known = r"one of regular, modified, constrained, hat is needed, or a Transducer, as tdt\(\)"
    with pytest.raises(ValueError, match=f"transducer is .*, but {known}"):
        cupy_rnnt.rnnt_loss(np.zeros((1, 2, 2, 3)), [[1]], [2], [1], transducer=text)


@pytest.mark.parametrize("value", [None, 1, PLAIN.topology])
def test_what_is_no_transducer(value):
    with pytest.raises(TypeError, match=r"transducer is .*, but a name or a Transducer is needed"):
        cupy_rnnt.rnnt_loss(np.zeros((1, 2, 2, 3)), [[1]], [2], [1], transducer=value)
