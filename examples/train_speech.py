"""Train a small character transducer on recorded speech with `joint_rnnt_loss`.

The recordings are the 500-odd voice prompts of the Asterisk telephone exchange ("Please enter your
password followed by the pound key"): one speaker, 8 kHz, 24 minutes of speech with transcripts.
Debian packages them; they are (c) Allison Smith and Digium, licensed CC-BY-SA 3.0.

    apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-en
    python examples/train_speech.py                 # about a quarter of an hour on two cores
    python examples/train_speech.py --quick         # a smoke test, well under two minutes

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
import gzip
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import nn, optim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from tqdm import tqdm

from cupy_rnnt.torch import joint_rnnt_loss

PACKAGES = "asterisk-core-sounds-en-wav asterisk-core-sounds-en"
DEFAULT_DATA = (Path("/usr/share/doc/asterisk-core-sounds-en"), Path("/usr/share/asterisk/sounds"))

RATE, HOP, WINDOW, FFT, MELS = 8000, 80, 200, 512, 40  # 25 ms windows every 10 ms
ALPHABET = "_ 'abcdefghijklmnopqrstuvwxyz"  # the first one is the blank
BLANK = 0
ROW = "epoch {epoch:3d}  cost {cost:8.3f}  computed {computed:.3f}  kept {kept:.3f}  CER {cer:.3f}"
PANELS = {"cost (nats)": ["cost"], "share of cells": ["computed", "kept"], "test CER": ["cer"]}
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPOKEN = {"*": "star", "#": "pound"} | {str(i): word for i, word in enumerate(DIGITS)}

HOW_TO_GET = f"""Get them with
    apt-get install {PACKAGES}
or, without root or where dpkg leaves /usr/share/doc out, with
    apt-get download {PACKAGES} && for package in asterisk*.deb; do dpkg -x $package sounds; done
and pass `--data sounds`."""


@dataclass(frozen=True)
class Settings:
    """Everything that determines the result of a run."""

    epochs: int = 70
    batch: int = 8
    seed: int = 0
    train_prompts: int | None = None  # None: all that are not held out
    test_prompts: int = 50
    max_seconds: float = 10.0
    speeds: tuple[float, ...] = (0.9, 0.95, 1.0, 1.05, 1.1)
    gru: int = 192
    layers: int = 2
    joint: int = 256
    dropout: float = 0.3
    learning_rate: float = 2e-3
    tolerance: float | None = None  # of the loss; None: its default


SMALL = {"gru": 64, "layers": 1, "joint": 64}
OVERRIDES = {"epochs": int, "batch": int, "seed": int, "tolerance": float}
QUICK = Settings(epochs=12, train_prompts=200, test_prompts=16, max_seconds=2.0, **SMALL)


@dataclass
class Prompt:
    """One recording: its text and the features of each speed it is played at, speed 1 included."""

    text: str
    features: dict[float, torch.Tensor]  # (frames, MELS)


def spoken_text(text: str) -> str:
    """Lower-case text as it is read out, without stage directions such as "[ascending tones]"."""
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", text.lower())
    text = re.sub(r"[0-9*#]", lambda match: f" {SPOKEN[match[0]]} ", text)
    return " ".join(re.sub(r"[^a-z']", " ", text).split())


def find_recordings(folders: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """Wave files and their texts, in a fixed order."""
    found = [path for folder in folders for path in sorted(folder.rglob("core-sounds-en.txt*"))]
    voices = [path for folder in folders for path in sorted(folder.rglob("en_US_f_Allison"))]
    recordings = []
    if found and voices:
        content = found[0].read_bytes()
        content = gzip.decompress(content) if found[0].suffix == ".gz" else content
        for name, _, text in (line.partition(":") for line in content.decode().splitlines()):
            path = voices[0] / f"{name.strip()}.wav"
            if spoken_text(text) and path.is_file():
                recordings.append((path, spoken_text(text)))
    if not recordings:
        places = " or ".join(map(str, folders))
        raise SystemExit(f"error: no transcribed voice prompts under {places}. {HOW_TO_GET}")
    return sorted(recordings)


def mel_filters() -> torch.Tensor:
    """Triangles (FFT // 2 + 1, MELS), evenly spaced on the mel scale up to half the sample rate."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    hertz = np.linspace(0, RATE / 2, FFT // 2 + 1)[:, None]
    triangles = np.minimum((hertz - left) / (middle - left), (right - hertz) / (right - middle))
    return torch.from_numpy(np.maximum(triangles, 0)).float()


def log_mel(samples: np.ndarray, filters: torch.Tensor) -> torch.Tensor:
    options = {"window": torch.hann_window(WINDOW), "pad_mode": "constant", "return_complex": True}
    spectrum = torch.stft(torch.from_numpy(samples), FFT, HOP, WINDOW, **options)
    return (spectrum.abs().square().T @ filters + 1e-5).log()


def load_prompts(folders: tuple[Path, ...], settings: Settings) -> list[list[Prompt]]:
    """Training and test prompts with normalised features; no text is in both."""
    filters = mel_filters()
    prompts = []
    for path, text in tqdm(find_recordings(folders), "features", leave=False, disable=None):
        _, samples = wavfile.read(path)
        if len(samples) <= settings.max_seconds * RATE:
            samples = samples.astype(np.float32) / 2**15
            played = {s: resample_poly(samples, 20, round(20 * s)) for s in settings.speeds}
            prompts.append(Prompt(text, {s: log_mel(x, filters) for s, x in played.items()}))

    texts = sorted({prompt.text for prompt in prompts})
    np.random.default_rng(settings.seed).shuffle(texts)
    held_out = set(texts[: settings.test_prompts])
    test = [prompt for prompt in prompts if prompt.text in held_out]
    train = [prompt for prompt in prompts if prompt.text not in held_out][: settings.train_prompts]

    frames = torch.cat([prompt.features[1.0] for prompt in train])
    mean, deviation = frames.mean(0), frames.std(0)
    for prompt in train + test:
        prompt.features = {s: (x - mean) / deviation for s, x in prompt.features.items()}
    return [train, test]


class Batch(NamedTuple):
    features: torch.Tensor  # (B, frames, MELS)
    frames: torch.Tensor  # (B,)
    targets: torch.Tensor  # (B, U)
    target_lengths: torch.Tensor  # (B,)

    @classmethod
    def of(cls, features: list[torch.Tensor], texts: list[str]) -> Batch:
        targets = [torch.tensor([ALPHABET.index(c) for c in text]) for text in texts]
        padded = [pad_sequence(rows, batch_first=True) for rows in (features, targets)]
        lengths = [torch.tensor([len(row) for row in rows]) for rows in (features, targets)]
        return cls(padded[0], lengths[0], padded[1], lengths[1])


def augment(features: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """SpecAugment: up to two bands of mels and a few stretches of time set to the mean, 0."""
    features = features.clone()
    masks = [(1, 8)] * 2 + [(0, min(15, len(features) // 4))] * (1 + len(features) // 100)
    for axis, widest in masks:
        width = int(rng.integers(0, widest + 1))
        start = int(rng.integers(0, features.shape[axis] - width + 1))
        features.narrow(axis, start, width).zero_()
    return features


def training_batches(prompts: list[Prompt], size: int, rng: np.random.Generator) -> list[Batch]:
    """One epoch in random order, each batch of prompts of similar length at random speeds."""
    lengths = rng.uniform(0.8, 1.25, len(prompts)) * [len(p.features[1.0]) for p in prompts]
    groups = np.array_split(np.argsort(lengths, kind="stable"), -(-len(prompts) // size))
    batches = []
    for group in rng.permutation(len(groups)):
        chosen = [prompts[i] for i in groups[group]]
        heard = [p.features[rng.choice(list(p.features))] for p in chosen]
        batches.append(Batch.of([augment(x, rng) for x in heard], [p.text for p in chosen]))
    return batches


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
        self.output = nn.Linear(joint, len(ALPHABET))
        self.options = {"blank": BLANK, "tolerance": settings.tolerance, "return_info": True}
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

    @torch.no_grad()
    def transcribe(self, batch: Batch, most_symbols: int = 5) -> list[str]:
        """Greedy search: at every frame the best symbols until a blank, at most so many."""
        encoder_out, frames = self.encode(batch.features, batch.frames)
        rows = torch.arange(len(frames))
        texts = ["" for _ in rows]
        predictor_out, state = self.predict(torch.full((len(rows), 1), BLANK))
        frame, emitted = torch.zeros_like(frames), torch.zeros_like(frames)
        while (frame < frames).any():
            here = encoder_out[rows, frame.clamp(max=encoder_out.shape[1] - 1)]
            best = self.output(torch.tanh(here + predictor_out[:, 0])).argmax(1)
            emits = (best != BLANK) & (frame < frames) & (emitted < most_symbols)
            for row in emits.nonzero()[:, 0].tolist():
                texts[row] += ALPHABET[best[row]]
            after, state_after = self.predict(best[:, None], state)
            predictor_out = torch.where(emits[:, None, None], after, predictor_out)
            state = torch.where(emits[None, :, None], state_after, state)
            emitted = torch.where(emits, emitted + 1, 0)
            frame = frame + ~emits
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
    heard = model.transcribe(Batch.of([prompt.features[1.0] for prompt in prompts], texts))
    return sum(map(edit_distance, texts, heard)) / sum(map(len, texts)), heard


class Trainer:
    """Model, optimiser, schedule, random states and history: all that a checkpoint holds."""

    def __init__(self, settings: Settings, train: list[Prompt], held_out: list[Prompt], out: Path):
        self.settings, self.train, self.held_out, self.out = settings, train, held_out, out
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
        cost, counts = 0.0, np.zeros(3)
        batches = training_batches(self.train, self.settings.batch, self.rng)
        label = f"epoch {len(self.history) + 1}/{self.settings.epochs}"
        for batch in tqdm(batches, label, leave=False, disable=None):
            loss, info = self.step(batch)
            cost += loss * len(batch.frames)
            counts += info.cells, info.computed, info.kept
        row = {"epoch": len(self.history) + 1, "cost": cost / len(self.train)}
        row |= {"computed": counts[1] / counts[0], "kept": counts[2] / counts[0]}
        row["cer"], _ = evaluate(self.model, self.held_out)
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
        figure = Figure(figsize=(12, 3.4), layout="constrained")
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

    train, held_out = load_prompts((options.data,) if options.data else DEFAULT_DATA, settings)
    trainer = Trainer(settings, train, held_out, out)
    if not options.restart:
        trainer.resume()
    print(f"{len(train)} prompts to train on, {len(held_out)} to test, results in {out}")
    while len(trainer.history) < settings.epochs:
        trainer.epoch()
        trainer.save()
        trainer.report()
        print(ROW.format(**trainer.history[-1]), flush=True)

    cer, heard = evaluate(trainer.model, held_out)
    print(f"\ntest character error rate {cer:.3f}, for instance\n")
    for prompt, text in list(zip(held_out, heard, strict=True))[:: len(held_out) // 8 or 1]:
        print(f"  said   {prompt.text}\n  heard  {text}\n")
    first, last = trainer.history[0]["cost"], trainer.history[-1]["cost"]
    if options.quick and not last < first:
        raise SystemExit(f"the training cost did not fall: {first:.3f} to {last:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, help="folder of the results [speech-run]")
    parser.add_argument("--quick", action="store_true", help="small model, shortest prompts")
    parser.add_argument("--restart", action="store_true", help="ignore a checkpoint in --out")
    for name, kind in OVERRIDES.items():
        default = getattr(Settings, name)
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=f"[{default}]")
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
