"""Recorded prompts with their texts, as batches of features; `train_speech.py` says where from."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

PACKAGES = "asterisk-core-sounds-en-wav asterisk-core-sounds-en"
DEFAULT_DATA = (Path("/usr/share/doc/asterisk-core-sounds-en"), Path("/usr/share/asterisk/sounds"))

RATE, HOP, WINDOW, FFT, MELS = 8000, 80, 200, 512, 40  # 25 ms windows every 10 ms
ALPHABET = "_ 'abcdefghijklmnopqrstuvwxyz"  # the first one is the blank
BLANK = 0
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPOKEN = {"*": "star", "#": "pound"} | {str(i): word for i, word in enumerate(DIGITS)}

HOW_TO_GET = f"""Get them with
    apt-get install {PACKAGES}
or, without root or where dpkg leaves /usr/share/doc out, with
    apt-get download {PACKAGES} && for package in asterisk*.deb; do dpkg -x $package sounds; done
and pass `--data sounds`."""


@dataclass(frozen=True)
class DataSettings:
    """Which prompts are for training and for the test, and at what speeds they are played."""

    seed: int = 0
    train_prompts: int | None = None  # None: all that are not held out
    test_prompts: int = 50  # 0: the test is on those of training, as they were recorded
    max_seconds: float = 10.0
    speeds: tuple[float, ...] = (0.9, 0.95, 1.0, 1.05, 1.1)


@dataclass
class Prompt:
    """One recording: its text and its features, as recorded and at each speed of training."""

    text: str
    recorded: torch.Tensor  # (frames, MELS)
    played: dict[float, torch.Tensor]


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


def load_prompts(folders: tuple[Path, ...], settings: DataSettings) -> list[list[Prompt]]:
    """Training and test prompts with normalised features; no held-out text is in both."""
    filters = mel_filters()
    prompts = []
    for path, text in tqdm(find_recordings(folders), "features", leave=False, disable=None):
        _, samples = wavfile.read(path)
        if len(samples) <= settings.max_seconds * RATE:
            samples = samples.astype(np.float32) / 2**15
            played = {
                speed: log_mel(resample_poly(samples, 20, round(20 * speed)), filters)
                for speed in settings.speeds
            }
            prompts.append(Prompt(text, log_mel(samples, filters), played))

    texts = sorted({prompt.text for prompt in prompts})
    np.random.default_rng(settings.seed).shuffle(texts)
    held_out = set(texts[: settings.test_prompts])
    test = [prompt for prompt in prompts if prompt.text in held_out]
    train = [prompt for prompt in prompts if prompt.text not in held_out][: settings.train_prompts]

    frames = torch.cat([prompt.recorded for prompt in train])
    mean, deviation = frames.mean(0), frames.std(0)
    for prompt in train + test:
        prompt.recorded = (prompt.recorded - mean) / deviation
        prompt.played = {s: (x - mean) / deviation for s, x in prompt.played.items()}
    return [train, test or train]


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
    lengths = rng.uniform(0.8, 1.25, len(prompts)) * [len(p.recorded) for p in prompts]
    groups = np.array_split(np.argsort(lengths, kind="stable"), -(-len(prompts) // size))
    batches = []
    for group in rng.permutation(len(groups)):
        chosen = [prompts[i] for i in groups[group]]
        heard = [p.played[rng.choice(list(p.played))] for p in chosen]
        batches.append(Batch.of([augment(x, rng) for x in heard], [p.text for p in chosen]))
    return batches
