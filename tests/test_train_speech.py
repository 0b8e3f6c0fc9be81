"""The speech example: each member of the family is decoded as its paths go, and trained."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from cupy_rnnt import reference

from . import ROOT

sys.path.insert(0, str(ROOT / "examples"))
import train_speech
from speech_data import ALPHABET, BLANK, Batch, Prompt
from train_speech import DURATIONS, MEMBERS, Settings, Trainer, Transducer

V = len(ALPHABET)
NEVER = -9.0


class Lattice(Transducer):
    """A transducer whose logits are a function of frame and position, as a table gives them."""

    def __init__(self, transducer, rows, frames):
        """`rows` gives logits by symbol and, behind the symbols, by duration; all others are equal
        and low."""
        super().__init__(Settings(transducer=transducer, gru=2, layers=1, joint=4))
        self.lengths = torch.tensor(frames)
        width, positions = self.output.out_features, 1 + max(position for _, position in rows)
        self.table = torch.full((max(frames), positions, width), NEVER)
        for (frame, position), logits in rows.items():
            for column, logit in logits.items():
                index = ALPHABET.index(column) if isinstance(column, str) else V + column
                self.table[frame, position, index] = logit

    def encode(self, features, frames):
        index = torch.arange(len(self.table), dtype=torch.float32) / 100
        return torch.stack([index, 0 * index], 1).expand(len(frames), -1, -1), self.lengths

    def predict(self, symbols, state=None):
        """The position, which is the number of symbols before, and the state that counts them."""
        position = torch.zeros(1, len(symbols), 1) if state is None else state + 0.01
        return torch.cat([0 * position[0], position[0]], 1)[:, None], position

    def row(self, hidden):
        """That of the output layer: the logits at the frame and position of each hidden vector."""
        frame, position = (100 * torch.atanh(hidden)).round().long().T
        return self.table[frame, position.clamp(max=self.table.shape[1] - 1)]


def heard(transducer, rows, *frames):
    model = Lattice(transducer, rows, frames)
    model.output.forward = model.row
    empty = torch.zeros(len(frames), 0)
    return model.transcribe(Batch(empty, torch.tensor(frames), empty, empty))


def test_labels_stay_in_a_frame_and_blanks_move_by_one():
    rows = {(0, 0): {"a": 1}, (0, 1): {"b": 1}, (0, 2): {"_": 1}, (1, 2): {"_": 1}}
    rows |= {(2, 2): {"c": 1, "_": 0.5}, (2, 3): {"_": 1}}
    assert heard("regular", rows, 3, 2) == ["abc", "ab"]


def test_hat_asks_the_sigmoid_for_the_blank_first():
    """A blank of logit -1 is improbable, even if it is the largest one; of 1 it is probable."""
    rows = {(0, 0): {"_": -1, "a": -2}, (0, 1): {"_": 1, "b": 3}}
    rows |= {(1, 1): {"_": -1, "c": -2}, (1, 2): {"_": 1}, (1, 0): {"_": 2}}
    assert heard("hat", rows, 2) == ["ac"]
    assert heard("regular", rows, 2) == [""]


def test_tdt_jumps_by_the_duration_of_its_token():
    """Frame 1 is skipped; the blank of frame 2 moves in spite of duration 0; the last label leads
    beyond the end."""
    rows = {(0, 0): {"a": 1, 2: 1}, (1, 1): {"x": 1}, (2, 1): {"b": 1, 0: 1}}
    rows |= {(2, 2): {"_": 1, 0: 1}, (3, 2): {"c": 1, 3: 1}, (4, 3): {"y": 1}}
    assert heard("tdt", rows, 5, 2) == ["abc", "a"]


@pytest.mark.parametrize("transducer", MEMBERS)
def test_a_frame_has_no_more_than_five_labels(transducer):
    stay = {0: 1} if transducer == "tdt" else {}
    rows = {(frame, 0): {"a": 1} | stay for frame in range(2)}
    assert heard(transducer, rows, 2) == [10 * "a"]


def trainer_of(out, transducer, dropout):
    options = {"epochs": 20, "gru": 8, "layers": 1, "joint": 8, "dropout": dropout}
    rng = np.random.default_rng(0)
    features = [torch.tensor(rng.normal(size=(n, 40)), dtype=torch.float32) for n in (40, 31)]
    prompts = [Prompt(t, x, {1.1: x}) for t, x in zip(["no", "yes"], features, strict=True)]
    return Trainer(Settings(transducer=transducer, **options), prompts, prompts, out)


@pytest.mark.parametrize("transducer", MEMBERS)
def test_a_step(tmp_path, transducer):
    """The cost is that of the textbook, to float32's accuracy; steps on one batch lower it."""
    trainer = trainer_of(tmp_path, transducer, 0.0)
    batch = Batch.of([p.recorded for p in trainer.train], [p.text for p in trainer.train])
    model = trainer.model.eval()
    encoder_out, frames = model.encode(batch.features, batch.frames)
    predictor_out, _ = model.predict(torch.nn.functional.pad(batch.targets, (1, 0), value=BLANK))
    outputs = encoder_out, predictor_out, model.output.weight, model.output.bias
    arrays = [x.detach().numpy() for x in (*outputs, batch.targets, frames, batch.target_lengths)]
    expected = reference.joint_rnnt_loss(*arrays, blank=BLANK, transducer=MEMBERS[transducer])
    assert model.output.out_features == V + (len(DURATIONS) if transducer == "tdt" else 0)
    costs = [trainer.step(batch)[0] for _ in range(20)]
    np.testing.assert_allclose(costs[0], expected, rtol=1e-5)
    assert costs[-1] < 0.9 * costs[0]


def test_a_run_goes_on_where_it_stopped(tmp_path):
    whole = trainer_of(tmp_path, "regular", 0.3)
    whole.epoch()
    whole.save()
    whole.epoch()
    resumed = trainer_of(tmp_path, "regular", 0.3)
    resumed.resume()
    resumed.epoch()
    for row in whole.history + resumed.history:
        del row["seconds"]
    assert resumed.history == whole.history


def test_an_edit_distance():
    assert train_speech.edit_distance("kitten", "sitting") == 3
    assert train_speech.edit_distance("", "abc") == 3
