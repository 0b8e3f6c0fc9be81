"""Drawings: what the axes hold, and that a file can be made of them."""

import sys

import numpy as np
import pytest

import cupy_rnnt

from .transducers.cases import tdt

pytest.importorskip("matplotlib")
plot = pytest.importorskip("cupy_rnnt.plot")


def drawn(transducer="regular", width=5):
    """A sample of six frames and three labels, and its axes."""
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(1, 6, 4, width)), [[0, 1, 0]], [6], [3], 2
    (posteriors,) = cupy_rnnt.rnnt_posteriors(*sample, transducer=transducer)
    (frames,) = cupy_rnnt.rnnt_alignment(*sample, transducer=transducer).frames
    return posteriors, frames, plot.alignment(posteriors, frames, "aba", transducer=transducer)


def test_axes_hold_posterior_path_and_text(tmp_path):
    posteriors, frames, axes = drawn()
    (image,), (line,) = axes.get_images(), axes.get_lines()
    np.testing.assert_array_equal(image.get_array(), posteriors.sum(axis=-1).T)
    assert image.get_clim() == (0, 1)
    assert image.origin == "lower"
    np.testing.assert_array_equal(line.get_xdata(), [0, *frames, 5])
    np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2, 3, 3])
    assert line.get_drawstyle() == "steps-post"
    assert [label.get_text() for label in axes.get_yticklabels()] == list("aba")
    assert axes.get_yticks().tolist() == [1, 2, 3]
    axes.figure.savefig(tmp_path / "alignment.png")
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_durations_do_not_count_as_visits():
    """A path visits each position at some frame, and no cell twice."""
    posteriors, _, axes = drawn(tdt((0, 1, 2)), width=8)
    (image,) = axes.get_images()
    np.testing.assert_array_equal(image.get_array(), posteriors[..., :2].sum(axis=-1).T)
    assert image.get_array().max() <= 1 + 1e-12


def test_no_path_is_drawn_where_there_is_none():
    axes = plot.alignment(np.zeros((2, 4, 2)), [-1, -1, -1], "aba")
    assert not axes.get_lines()


def test_drawn_on_axes_of_the_caller():
    _, _, axes = drawn()
    again = axes.figure.add_subplot()
    assert plot.alignment(np.zeros((2, 1, 2)), [], "", axes=again) is again


@pytest.mark.parametrize(
    ("shape", "labels", "words"),
    [
        ((1, 6, 4, 2), 3, r"posteriors has 4 dimensions .*, but \(T, U \+ 1, K\) is needed"),
        ((6, 3, 2), 3, r"posteriors has shape \(6, 3, 2\), but \(T, 4, 2\) is needed"),
        ((6, 4, 2), 2, r"frames has shape \(2,\), but \(3,\) is needed"),
    ],
)
def test_shapes_that_do_not_fit(shape, labels, words):
    with pytest.raises(ValueError, match=words):
        plot.alignment(np.zeros(shape), np.zeros(labels, int), "aba")


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ValueError, r"frames\[1\] is 6, but it must be between 0 and 5", {"frames": [0, 6, 6]}),
        (ValueError, r"frames\[0\] is -1, but it must be between 0 and 5", {"frames": [-1, 2, 3]}),
        (ValueError, r"frames\[2\] is 1, .* frames\[1\], which is 4", {"frames": [0, 4, 1]}),
        (TypeError, "frames has dtype float64, but an integer dtype", {"frames": np.zeros(3)}),
        (TypeError, "posteriors has dtype int64", {"posteriors": np.zeros((6, 4, 2), int)}),
        (TypeError, r"text\[1\] is 2, but str is needed", {"text": ["a", 2, "c"]}),
        (TypeError, "text is None, but a str or a list of str is needed", {"text": None}),
        (TypeError, "axes is 'x', but matplotlib.axes.Axes is needed", {"axes": "x"}),
    ],
)
def test_what_is_refused(error, words, change):
    values = {"posteriors": np.zeros((6, 4, 2)), "frames": [0, 1, 5], "text": "aba"}
    with pytest.raises(error, match=words):
        plot.alignment(**values | change)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install cupy_rnnt\[plot\]"):
        plot.alignment(np.zeros((2, 4, 2)), [0, 0, 0], "aba")
