"""The one question what is there, and what the package says of the machine."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

from cupy_rnnt import cli
from cupy_rnnt.ops.cuda import launch

from . import Report, in_short, require

NOT_THERE = "not there: "
_SANITIZER_FOLDERS = "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"
_TOY_LENGTHS = np.array([6, 4]), np.array([3, 2])


def present(report: Report) -> None:
    """What the other steps need, each with its version or why it is not there."""
    for name, question in _QUESTIONS.items():
        answer = _answer(question)
        report(f"{name}: {answer}", present={name: answer})
    common.use_device("cuda")
    for part in (_versions, common.gpu, common.machine):
        try:
            machine = part()
        except Exception as error:  # without a GPU, or a driver that does not tell its clocks
            machine = {"fault": in_short(error)}
        words = [f"{name} {value}" for name, value in machine.items() if isinstance(value, str)]
        report(", ".join(words)[:300], machine=machine)


def _versions() -> dict[str, str]:
    return common.versions(*common.PACKAGES, "torchaudio", "triton")


def _answer(question: Callable[[], str]) -> str:
    try:
        return question()
    except Exception as error:  # whatever a broken installation comes up with
        return NOT_THERE + in_short(error)


def _gpu() -> str:
    launch.check()
    cuda = launch.cupy().cuda
    return str(cuda.runtime.getDeviceProperties(cuda.Device().id)["name"].decode())


def _headers() -> str:
    """Where NVRTC looks for ``cuda_fp16.h``: beside the NVRTC that CuPy has found."""
    cuda = launch.cupy().cuda
    folder = Path(cuda.get_cuda_path() or "", "include")
    if not folder.joinpath("cuda_fp16.h").exists():
        raise FileNotFoundError(f"no cuda_fp16.h in {folder}")
    return str(folder)


def _torch_on_gpu() -> Any:
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} finds no CUDA device")
    return torch


def _torch() -> str:
    return str(_torch_on_gpu().__version__)


def _torchaudio() -> str:
    audio = importlib.import_module("torchaudio")
    importlib.import_module("torchaudio.functional").rnnt_loss  # noqa: B018
    return str(audio.__version__)


def _cupti() -> str:
    profiler = importlib.import_module("torch.profiler")
    _torch_on_gpu()
    if profiler.ProfilerActivity.CUDA not in profiler.supported_activities():
        raise RuntimeError("torch.profiler was built without CUPTI")
    return "in torch.profiler"


def _jax() -> str:
    jax = importlib.import_module("jax")
    platform = jax.default_backend()
    if platform not in ("gpu", "cuda"):
        raise RuntimeError(f"JAX {jax.__version__} runs on {platform}")
    return str(jax.__version__)


def sanitizer_path() -> str:
    """Of the program compute-sanitizer."""
    folders = os.environ.get("PATH", ""), os.environ.get("CUDA_PATH", "") + "/bin"
    found = shutil.which("compute-sanitizer", path=":".join((*folders, *_SANITIZER_FOLDERS)))
    if found is None:
        raise FileNotFoundError("no compute-sanitizer in PATH or CUDA's folder")
    return found


_QUESTIONS: dict[str, Callable[[], str]] = {
    "GPU": _gpu,
    "CUDA headers": _headers,
    "PyTorch": _torch,
    "torchaudio": _torchaudio,
    "CUPTI": _cupti,
    "JAX": _jax,
    "compute-sanitizer": sanitizer_path,
    "pytest": lambda: str(importlib.import_module("pytest").__version__),
    "xdist": lambda: str(importlib.import_module("xdist").__version__),
}
"""Answered by a version, a name or a path; an exception tells why something is not there."""


def info(report: Report) -> None:
    """``python -m cupy_rnnt info``"""
    status, text = _command_line("info")
    lines = [line.strip() for line in text.splitlines()]
    usable = [line for line in lines if line.startswith(("can be used", "device", "NVRTC"))]
    report("; ".join(" ".join(line.split()) for line in usable), printed=text)
    require(status == 0, f"exit status {status}")


def compiled(report: Report) -> None:
    """Every kernel that is ever launched, compiled for this device; CuPy keeps them on disk."""
    units: dict[tuple[str, ...], tuple[launch.Kernel, tuple[str, ...]]] = {}
    for kernel in launch.KERNELS:
        for variant in kernel.variants:
            units.setdefault((kernel.source, *variant[:1]), (kernel, variant))
    seconds = {}
    library = launch.cupy()
    device = library.cuda.Device().id
    for unit, (kernel, variant) in list(units.items())[: 4 if report.small else None]:
        start = time.perf_counter()
        launch._function(library, device, kernel, variant)
        seconds[" ".join(unit)] = time.perf_counter() - start
    slowest = max(seconds, key=lambda unit: seconds[unit])
    text = f"{len(seconds)} units in {sum(seconds.values()):.1f} s"
    report(f"{text}; {slowest} took {seconds[slowest]:.1f} s", seconds=seconds)


def main_job(report: Report) -> None:
    """``python -m cupy_rnnt --device cuda``, which checks some of its results."""
    words = ["--device", "cuda"]
    if report.small:
        frames, labels = _TOY_LENGTHS
        cli.librispeech_lengths = lambda size: (frames[:size], labels[:size])
        words += ["--batch", "2", "--vocab", "11", "--hidden", "6"]
    status, text = _command_line(*words)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    told = [line for line in lines if line.startswith(("time", "cost", "gradient of"))]
    for line in told:
        report(line)
    report(f"exit status {status}", status=status, printed=text)
    require(status == 0, "the main job failed")


def _command_line(*words: str) -> tuple[int, str]:
    """Exit status and output of ``python -m cupy_rnnt``, in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.main(words)
    return status, out.getvalue()
