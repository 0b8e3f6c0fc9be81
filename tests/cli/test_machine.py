"""What the command line tells of the machine, and what it does where no GPU can be used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cupy_rnnt import joint
from cupy_rnnt.cli import machine, terminal
from cupy_rnnt.ops.cuda import launch

from .. import ROOT, devices
from ..ptxemu import compile as nvrtc
from . import cases
from .cases import CHECKED, SMALL


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command line on short lengths."""
    cases.shorten(monkeypatch)
    return lambda *argv: cases.printed(capsys, *argv)


@pytest.fixture
def xp():
    """An emulated device in the place of CuPy."""
    with devices.emulated() as device:
        yield device.xp


# The main job on a GPU


@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_main_job_on_a_gpu(gpu, run, monkeypatch, choice):
    seen = []
    original = joint.joint_rnnt_loss_and_grad

    def spy(*inputs, **options):
        seen.extend(inputs[:-1])
        return original(*inputs, **options)

    monkeypatch.setattr(joint, "joint_rnnt_loss_and_grad", spy)
    done = run("--batch", "3", *SMALL, "--device", choice)
    assert (done.status, done.errors) == (0, "")
    assert all(isinstance(array, gpu.xp.ndarray) for array in seen)
    assert all(done.rows[name].endswith(": ok") for name in CHECKED)

    of_gpu = gpu.xp.cuda.runtime.getDeviceProperties(0)
    name, total = of_gpu["name"].decode(), terminal.nbytes(of_gpu["totalGlobalMem"])
    capability = f"compute capability {of_gpu['major']}.{of_gpu['minor']}"
    assert done.title.endswith(f" on {name} ({total}, {capability})")

    seen.clear()
    on_cpu = run("--batch", "3", *SMALL, "--device", "cpu")
    assert all(isinstance(array, np.ndarray) for array in seen)
    assert " on the CPU (" in on_cpu.title
    assert list(done.rows) == list(on_cpu.rows)
    for row in "lattice cells", "cost per sample", "cells kept", "batched computation":
        start = done.rows[row].partition(";")[0].partition("=")[0]
        assert on_cpu.rows[row].startswith(start)
    time = r"[\d.]+ s, [\d,]+ cells a second"
    assert re.fullmatch(time, on_cpu.rows["time"])
    first = r"\([\d.]+ s the first time: kernels are compiled and loaded\)"
    assert re.fullmatch(f"{time} {first}", done.rows["time"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_on_a_gpu(gpu, run, dtype):
    pytest.importorskip("ml_dtypes")
    done = run("--batch", "2", *SMALL, "--dtype", dtype, "--device", "cuda")
    assert done.status == 0
    assert done.rows["values"].startswith(f"{dtype}, ")


def test_time_is_taken_when_the_device_is_done(xp, run, monkeypatch):
    """The clock is read with no kernel launched since the host waited last."""
    at_wait, at_clock, ready = [], [], []
    original = xp.cuda.Stream.synchronize

    def synchronize(stream):
        original(stream)
        at_wait.append(len(xp.kernels.launches))

    def clock():
        at_clock.append(len(xp.kernels.launches))
        ready.append(at_wait[-1] == at_clock[-1])
        return float(len(at_clock))

    monkeypatch.setattr(xp.cuda.Stream, "synchronize", synchronize)
    monkeypatch.setattr("cupy_rnnt.cli.time", SimpleNamespace(perf_counter=clock))
    assert run("--batch", "1", *SMALL, "--device", "cuda").rows["time"].startswith("1.000 s, ")
    assert ready == [True] * 4
    before_first, after_first, before_second, after_second = at_clock
    assert after_first == before_second  # the second call is the one that counts
    assert before_first < after_first < after_second


def test_wrong_result_of_a_gpu_fails_the_check(gpu, run, monkeypatch):
    original = joint.joint_rnnt_loss_and_grad

    def skewed(*inputs, **options):
        costs, gradients, info = original(*inputs, **options)
        wrong = gradients._replace(predictor_out=1.001 * gradients.predictor_out)
        return costs, wrong, info

    monkeypatch.setattr(joint, "joint_rnnt_loss_and_grad", skewed)
    done = run("--batch", "2", *SMALL, "--device", "cuda")
    text = "cupy_rnnt: error: the check of gradient of predictor_out failed\n"
    assert (done.status, done.errors) == (1, text)


# What may be missing


def raising(error):
    def function(*args, **kwargs):
        raise error

    return function


def in_place_of_cupy(code):
    """A module of that name."""

    def install(monkeypatch, xp, tmp_path):
        (tmp_path / "cupy.py").write_text(code)
        monkeypatch.delitem(sys.modules, "cupy")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def cuda_error(name, driver):
    """The CUDA runtime fails, with a driver for that version of CUDA, or 0."""

    def install(monkeypatch, xp, tmp_path):
        runtime = xp.cuda.runtime
        error = runtime.CUDARuntimeError(f"{name}: as CUDA describes it")
        monkeypatch.setattr(runtime, "driverGetVersion", lambda: driver)
        for function in "getDevice", "getDeviceCount", "getDeviceProperties", "memGetInfo":
            monkeypatch.setattr(runtime, function, raising(error))

    return install


def without_cupy(monkeypatch, xp, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)


def old_device(monkeypatch, xp, tmp_path):
    monkeypatch.setitem(xp.cuda.properties, "major", 7)
    monkeypatch.setitem(xp.cuda.properties, "minor", 2)


def without_nvrtc(monkeypatch, xp, tmp_path):
    monkeypatch.setattr(xp.cuda.nvrtc, "getVersion", raising(RuntimeError("no libnvrtc.so")))


def without_cublas(monkeypatch, xp, tmp_path):
    monkeypatch.delattr(xp, "cublas")
    monkeypatch.setitem(sys.modules, f"{xp.__name__}.cublas", None)


def without_headers(*folders):
    """NVRTC itself says that it finds none, in other words if it has nowhere to look."""

    def install(monkeypatch, xp, tmp_path):
        library, _ = nvrtc.find_nvrtc()
        there = [str(tmp_path / folder) for folder in folders]
        monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: (library, there))
        for cache in nvrtc._compile, launch._module, launch._function:
            cache.cache_clear()

    return install


INSTALL = "install cupy-cuda12x[ctk] or cupy-cuda13x[ctk]"
MISSING = {
    "cupy": (without_cupy, f"CUDA arrays need CuPy: {INSTALL}, as the driver allows"),
    "library of cupy": (
        in_place_of_cupy(
            "try: import no_such_library\n"
            "except ImportError as error: raise ImportError('=====\\n Failed\\n') from error\n"
        ),
        "CuPy is installed but cannot be imported: No module named 'no_such_library'",
    ),
    "cache of cupy": (
        in_place_of_cupy("raise PermissionError(13, 'Permission denied', '/.cupy')"),
        "CuPy fails with PermissionError: [Errno 13] Permission denied: '/.cupy'",
    ),
    "rest of cupy": (
        in_place_of_cupy(""),
        "CuPy fails with AttributeError: module 'cupy' has no attribute 'cuda'",
    ),
    "driver": (
        cuda_error("cudaErrorInsufficientDriver", 0),
        "CUDA arrays need NVIDIA's driver and a GPU, but there is no driver: install it",
    ),
    "newer driver": (
        cuda_error("cudaErrorInsufficientDriver", 11080),
        "NVIDIA's driver is for CUDA 11.8, too old for CuPy's 12.9: "
        "update the driver, or install a CuPy for an older CUDA",
    ),
    "device": (
        cuda_error("cudaErrorNoDevice", 12090),
        "NVIDIA's driver finds no CUDA device: "
        "see what nvidia-smi lists, and CUDA_VISIBLE_DEVICES if that is set",
    ),
    "luck": (
        cuda_error("cudaErrorSystemNotReady", 12090),
        "CUDA cannot be used: cudaErrorSystemNotReady: as CUDA describes it",
    ),
    "newer device": (
        old_device,
        "CUDA device 0 has compute capability 7.2, but 7.5 or more is needed",
    ),
    "nvrtc": (without_nvrtc, f"CuPy finds no NVRTC: {INSTALL}"),
    "headers": (without_headers(), f"CuPy finds no CUDA headers: {INSTALL}"),
    "headers in a folder": (without_headers("x"), f"CuPy finds no CUDA headers: {INSTALL}"),
    "cublas": (without_cublas, f"CuPy finds no cuBLAS: {INSTALL}"),
}
each_missing = pytest.mark.parametrize(("install", "sentence"), MISSING.values(), ids=MISSING)


@each_missing
def test_cuda_without_what_it_needs_is_one_sentence(
    xp, run, monkeypatch, tmp_path, install, sentence
):
    install(monkeypatch, xp, tmp_path)
    done = run("--batch", "1", *SMALL, "--device", "cuda")
    assert done == (2, {}, f"cupy_rnnt: error: {sentence}\n", "")


@each_missing
def test_auto_is_the_cpu_then_and_info_tells_why(xp, run, monkeypatch, tmp_path, install, sentence):
    install(monkeypatch, xp, tmp_path)
    done = run("--batch", "1", *SMALL)
    assert (done.status, done.errors) == (0, "")
    assert " on the CPU (" in done.title
    info = run("info")
    assert (info.status, info.errors) == (0, "")
    assert info.rows["can be used"] == f"no: {sentence}"
    assert info.rows["Python"]


def test_a_program_without_a_traceback():
    code = """
import runpy, sys
sys.modules["cupy"] = None
sys.argv[1:] = ["--device", "cuda"]
runpy.run_module("cupy_rnnt", run_name="__main__")
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"cupy_rnnt: error: {MISSING['cupy'][1]}\n"


# info


def test_info_of_a_gpu(gpu, run, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", "/somewhere/else")
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    runtime = gpu.xp.cuda.runtime
    done = run("info")
    assert (done.status, done.errors) == (0, "")
    of_gpu = runtime.getDeviceProperties(0)
    assert done.rows["can be used"] == "yes"
    assert done.rows["CuPy"] == gpu.xp.__version__
    assert done.rows["device"].startswith(f"{of_gpu['name'].decode()} (")
    capability = f", compute capability {of_gpu['major']}.{of_gpu['minor']})"
    assert done.rows["device"].endswith(capability)
    total = terminal.nbytes(runtime.memGetInfo()[1])
    assert re.fullmatch(rf"{total}, [\d.]+ GiB free", done.rows["memory"])
    assert done.rows["workspace"] == "1 GiB by default"  # a 32nd is less
    versions = {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()}
    for name, version in versions.items():
        major, minor = map(int, done.rows[f"CUDA {name}"].split("."))
        assert version == 1000 * major + 10 * minor
    assert done.rows["NVRTC"] == ".".join(map(str, gpu.xp.cuda.nvrtc.getVersion()))
    assert done.rows["kernel cache"] == "/somewhere/else"


def test_free_memory_is_told(xp, run, monkeypatch):
    monkeypatch.setattr(xp.cuda.runtime, "memGetInfo", lambda: (3 << 29, 79 << 30))
    assert run("info").rows["memory"] == "79 GiB, 1.5 GiB free"


def test_info_of_what_cannot_be_asked(xp, run, monkeypatch):
    cuda_error("cudaErrorNoDevice", 0)(monkeypatch, xp, None)
    without_nvrtc(monkeypatch, xp, None)
    monkeypatch.delattr(xp, "__version__")
    rows = run("info").rows
    unknown = "CuPy", "device", "memory", "workspace", "CUDA driver", "NVRTC"
    assert {rows[name] for name in unknown} == {"not found"}
    assert rows["CUDA runtime"] == "12.9"


def test_kernel_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine._kernel_cache() == str(tmp_path / ".cupy" / "kernel_cache")
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    assert "in memory" in machine._kernel_cache()


def test_info_lists_versions_and_threads(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_PACKAGES", ["numpy", "no-such-package"])
    status, rows, errors, _ = run("info")
    assert (status, errors) == (0, "")
    assert rows["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert rows["numpy"] == np.__version__
    assert rows["no-such-package"] == "not installed"
    assert rows["OMP_NUM_THREADS"] == "7"
    assert rows["MKL_NUM_THREADS"] == "not set"
    assert rows["max_workspace_bytes"] == "256 MiB by default on the CPU"
    assert rows["workers of a call"].startswith("at most ")
    assert "cores" in rows["cpu"]


def test_cpu_name_without_proc(monkeypatch):
    def missing(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine._cpu_name()


def python(*argv):
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)


def test_info_imports_no_framework():
    """CuPy is asked what it finds, if it is there."""
    code = """
import sys
from cupy_rnnt.cli import main
status = main(["info"])
print(sorted({"torch", "jax"} & set(sys.modules)), status)
"""
    assert python("-c", code).stdout.endswith("\n[] 0\n")
