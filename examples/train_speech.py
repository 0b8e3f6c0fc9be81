"""Train a small character transducer on recorded speech with `joint_rnnt_loss`.

The recordings are the 500-odd voice prompts of the Asterisk telephone exchange ("Please enter your
password followed by the pound key"): one speaker, 8 kHz, 24 minutes of speech with transcripts.
Debian packages them; they are (c) Allison Smith and Digium, licensed CC-BY-SA 3.0.

    apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-en
    python examples/train_speech.py                 # about a quarter of an hour on two cores
    python examples/train_speech.py --quick --threads 1      # a minute; words that it has heard
    python examples/train_speech.py --transducer tdt                                   # or hat

Where the packages cannot be installed, or dpkg is set up to leave /usr/share/doc out (as in most
container images: the transcripts are there), unpack them anywhere:

    apt-get download asterisk-core-sounds-en-wav asterisk-core-sounds-en
    for package in asterisk*.deb; do dpkg -x $package sounds; done
    python examples/train_speech.py --data sounds

The logits of a batch are never formed: the loss takes the outputs of encoder and predictor with
the output layer, and computes only the cells that some likely alignment visits; the plot shows how
few these become, and `--tolerance 0` trains on all of them, to compare. `--out` names the folder of
`log.json`, `curves.png` and `checkpoint.pt`. A stopped run is resumed by the same command and, with
the same `--threads`, ends with the same numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from speech_data import (
    ALPHABET,
    BLANK,
    DEFAULT_DATA,
    MELS,
    Batch,
    DataSettings,
    Prompt,
    load_prompts,
    training_batches,
)
from torch import nn, optim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tqdm import tqdm

import cupy_rnnt
from cupy_rnnt.torch import joint_rnnt_loss

DURATIONS = (0, 1, 2, 3, 4)  # of a token, in frames
MEMBERS = {"regular": "regular", "tdt": cupy_rnnt.tdt(DURATIONS), "hat": "hat"}
ROW = "epoch {epoch:3d}  cost {cost:8.3f}  computed {computed:.3f}  kept {kept:.3f}  CER {cer:.3f}"
PANELS = {
    "training cost (nats an utterance)": ["cost"],
    "share of the cells": ["computed", "kept"],
    "character error rate of the test": ["cer"],
}


@dataclass(frozen=True)
class Settings(DataSettings):
    """Everything that determines the result of a run."""

    transducer: str = "regular"
    epochs: int = 70
    batch: int = 8
    gru: int = 192
    layers: int = 2
    joint: int = 256
    dropout: float = 0.3
    learning_rate: float = 2e-3
    tolerance: float | None = None  # of the loss; None: its default


OVERRIDES = {"epochs": int, "batch": int, "seed": int, "tolerance": float, "transducer": str}
QUICK = Settings(
    test_prompts=0,
    max_seconds=1.5,
    speeds=(0.9, 0.95, 1.05, 1.1),
    epochs=40,
    gru=96,
    layers=1,
    joint=128,
    dropout=0.1,
    learning_rate=4e-3,
)
QUICK_CER = 0.3  # of --quick at most; 0.10 is usual


class Transducer(nn.Module):
    """Convolutions (a frame every 40 ms) and a bidirectional GRU; a GRU predictor; a tanh joint."""

    def __init__(self, settings: Settings):
        super().__init__()
        gru, joint, drop = settings.gru, settings.joint, settings.dropout
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv1d(size, gru, 5, 2, padding=2), nn.BatchNorm1d(gru), nn.ReLU())
            for size in (MELS, gru)
        )
        options = {"dropout": drop * (settings.layers > 1), "bidirectional": True}
        self.encoder = nn.GRU(gru, gru, settings.layers, batch_first=True, **options)
        self.encoder_projection = nn.Sequential(
            nn.LayerNorm(2 * gru), nn.Dropout(drop), nn.Linear(2 * gru, joint)
        )
        self.embedding = nn.Embedding(len(ALPHABET), 64)
        self.predictor = nn.GRU(64, 128, batch_first=True)
        self.predictor_projection = nn.Linear(128, joint)
        self.transducer = settings.transducer
        durations = len(DURATIONS) if self.transducer == "tdt" else 0
        self.output = nn.Linear(joint, len(ALPHABET) + durations)
        self.options = {"blank": BLANK, "tolerance": settings.tolerance, "return_info": True}
        self.options["transducer"] = MEMBERS[self.transducer]
        self.dropout = nn.Dropout(drop)

    def encode(self, features: torch.Tensor, frames: torch.Tensor):
        """Encoder outputs (B, T, joint) and their lengths; nothing leaks in from the padding."""
        x = features.transpose(1, 2)
        for convolution in self.convolutions:
            x = convolution(x)
            frames = (frames + 1) // 2
            x = x * (torch.arange(x.shape[2]) < frames[:, None])[:, None]
        x = self.dropout(x).transpose(1, 2)
        packed = pack_padded_sequence(x, frames, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.encoder(packed)[0], batch_first=True)
        return self.encoder_projection(x), frames

    def predict(self, symbols: torch.Tensor, state: torch.Tensor | None = None):
        """Predictor outputs after each of the symbols, and the state after the last."""
        x, state = self.predictor(self.dropout(self.embedding(symbols)), state)
        return self.predictor_projection(self.dropout(x)), state

    def loss(self, batch: Batch):
        """Mean cost in nats an utterance, and what the loss computed to get it."""
        encoder_out, frames = self.encode(batch.features, batch.frames)
        predictor_out, _ = self.predict(nn.functional.pad(batch.targets, (1, 0), value=BLANK))
        layer, targets = self.output, (batch.targets, frames, batch.target_lengths)
        outputs = (encoder_out, predictor_out, layer.weight, layer.bias)
        return joint_rnnt_loss(*outputs, *targets, **self.options)

    def decide(self, logits: torch.Tensor):
        """The best token of each row of logits, and the number of frames to move on by."""
        tokens = logits[:, : len(ALPHABET)]
        best = tokens.argmax(1)
        if self.transducer == "hat":  # a sigmoid says whether, and a softmax which label
            best = torch.where(tokens[:, BLANK] > 0, BLANK, 1 + tokens[:, 1:].argmax(1))
        jump = (best == BLANK).long()
        if self.transducer == "tdt":  # a blank moves by a frame or more, whatever its duration
            durations = torch.tensor(DURATIONS)[logits[:, len(ALPHABET) :].argmax(1)]
            jump = torch.maximum(jump, durations)
        return best, jump

    @torch.no_grad()
    def transcribe(self, batch: Batch, most_symbols: int = 5) -> list[str]:
        """Greedy search: the best token of a frame, then where it moves to; at most so many labels
        in a frame."""
        encoder_out, frames = self.encode(batch.features, batch.frames)
        rows = torch.arange(len(frames))
        texts = ["" for _ in rows]
        predictor_out, state = self.predict(torch.full((len(rows), 1), BLANK))
        frame, emitted = torch.zeros_like(frames), torch.zeros_like(frames)
        while (frame < frames).any():
            now = encoder_out[rows, frame.clamp(max=encoder_out.shape[1] - 1)]
            best, jump = self.decide(self.output(torch.tanh(now + predictor_out[:, 0])))
            full = emitted == most_symbols
            emits = (best != BLANK) & (frame < frames) & ~full
            for row in emits.nonzero()[:, 0].tolist():
                texts[row] += ALPHABET[best[row]]
            after, state_after = self.predict(best[:, None], state)
            predictor_out = torch.where(emits[:, None, None], after, predictor_out)
            state = torch.where(emits[None, :, None], state_after, state)
            jump = torch.where(full, 1, jump)
            emitted = torch.where(jump > 0, 0, emitted + 1)
            frame = frame + jump
        return texts


def edit_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def evaluate(model: Transducer, prompts: list[Prompt]) -> tuple[float, list[str]]:
    """Character error rate over all prompts, and what was heard in each."""
    model.eval()
    texts = [prompt.text for prompt in prompts]
    heard = model.transcribe(Batch.of([prompt.recorded for prompt in prompts], texts))
    return sum(map(edit_distance, texts, heard)) / sum(map(len, texts)), heard


def tested(settings: Settings) -> str:
    """What the test is on."""
    if settings.test_prompts:
        return "prompts whose texts it never saw"
    return "the prompts of its training, at a speed that it was not trained on"


class Trainer:
    """Model, optimiser, schedule, random states and history: all that a checkpoint holds."""

    def __init__(self, settings: Settings, train: list[Prompt], test: list[Prompt], out: Path):
        self.settings, self.train, self.test, self.out = settings, train, test, out
        torch.manual_seed(settings.seed)
        self.rng = np.random.default_rng(settings.seed)
        self.model = Transducer(settings)
        self.optimizer = optim.AdamW(self.model.parameters(), weight_decay=1e-2)
        steps = settings.epochs * -(-len(train) // settings.batch)
        self.schedule = optim.lr_scheduler.OneCycleLR(self.optimizer, settings.learning_rate, steps)
        self.history: list[dict] = []
        self.parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def step(self, batch: Batch):
        """One step of AdamW, with gradients clipped to a norm of 5; cost and information before."""
        loss, info = self.model.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item(), info

    def epoch(self) -> None:
        """Train for one epoch, test, and add a row to the history."""
        began = time.monotonic()
        self.model.train()
        cost, cells, computed, kept = 0.0, 0, 0, 0
        batches = training_batches(self.train, self.settings.batch, self.rng)
        label = f"epoch {len(self.history) + 1}/{self.settings.epochs}"
        for batch in tqdm(batches, label, leave=False, disable=None):
            loss, info = self.step(batch)
            cost += loss * len(batch.frames)
            cells, computed, kept = cells + info.cells, computed + info.computed, kept + info.kept
        row = {"epoch": len(self.history) + 1, "cost": cost / len(self.train)}
        row |= {"computed": computed / cells, "kept": kept / cells}
        row["cer"], _ = evaluate(self.model, self.test)
        self.history.append(row | {"seconds": round(time.monotonic() - began, 2)})

    def save(self) -> None:
        """Write the checkpoint; a stop at any moment leaves the old or the new one whole."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"settings": asdict(self.settings), "history": self.history}
        state |= {"torch_rng": torch.get_rng_state(), "numpy_rng": self.rng.bit_generator.state}
        partial = self.out / "checkpoint.pt.partial"
        torch.save(state, partial)
        partial.replace(self.out / "checkpoint.pt")

    def resume(self) -> None:
        """Continue from the checkpoint in `out`, if there is one."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise SystemExit(f"error: {path} has other settings: give another --out, or --restart")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.history = state["history"]
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = state["numpy_rng"]
        print(f"resuming {path} after epoch {len(self.history)}")

    def report(self) -> None:
        """Write the log and the plot."""
        log = {"settings": asdict(self.settings), "history": self.history}
        (self.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        cer = self.history[-1]["cer"]
        figure.suptitle(f"{cer:.0%} of the characters are wrong, on {tested(self.settings)}")
        for axes, (title, keys) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
            for key in keys:
                axes.plot(
                    range(1, len(self.history) + 1), [row[key] for row in self.history], label=key
                )
            axes.set(title=title, xlabel="epoch", ylim=(0, None))
            axes.legend()
        figure.savefig(self.out / "curves.png", dpi=120)


def run(options: argparse.Namespace) -> None:
    chosen = {key: value for key, value in vars(options).items() if key in OVERRIDES}
    settings = replace(QUICK if options.quick else Settings(), **chosen)
    out = options.out or Path("speech-run-quick" if options.quick else "speech-run")
    out.mkdir(parents=True, exist_ok=True)

    train, test = load_prompts((options.data,) if options.data else DEFAULT_DATA, settings)
    trainer = Trainer(settings, train, test, out)
    if not options.restart:
        trainer.resume()
    print(f"{len(train)} prompts to train on, {len(test)} to test, results in {out}")
    while len(trainer.history) < settings.epochs:
        trainer.epoch()
        trainer.save()
        trainer.report()
        print(ROW.format(**trainer.history[-1]), flush=True)

    cer, heard = evaluate(trainer.model, test)
    print(f"\ncharacter error rate {cer:.3f} on {tested(settings)}, for instance\n")
    for prompt, text in list(zip(test, heard, strict=True))[:: len(test) // 8 or 1]:
        print(f"  said   {prompt.text}\n  heard  {text}\n")
    if options.quick and cer > QUICK_CER:
        raise SystemExit(f"the character error rate is {cer:.3f}, but {QUICK_CER} was expected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, help="folder of the results [speech-run]")
    parser.add_argument("--quick", action="store_true", help="small model, shortest prompts")
    parser.add_argument("--restart", action="store_true", help="ignore a checkpoint in --out")
    for name, kind in OVERRIDES.items():
        default = getattr(Settings, name)
        choices = list(MEMBERS) if name == "transducer" else None
        parser.add_argument(
            f"--{name}",
            type=kind,
            choices=choices,
            default=argparse.SUPPRESS,
            help=f"[{default}]",
        )
    parser.add_argument("--threads", type=int, help="CPU threads [what PyTorch chooses]")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        run(options)
    except KeyboardInterrupt:
        print("\nstopped: the same command, less --restart, goes on from the last whole epoch")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
