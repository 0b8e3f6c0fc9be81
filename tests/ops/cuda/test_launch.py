"""Declaring, compiling and launching kernels."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from cupy_rnnt.ops import cuda
from cupy_rnnt.ops.cuda import lattice as cuda_lattice
from cupy_rnnt.ops.cuda import launch

from ...helpers import samples_of
from ...transducers.cases import multi_blank
from .trivial import REVERSED, ROW_SUMS, SCALED, SOURCE

FLOATS = "float16", "bfloat16", "float32", "float64"


@pytest.fixture
def few_blocks(monkeypatch):
    """So that kernels have to stride over the grid."""
    monkeypatch.setattr(launch, "MOST_BLOCKS", 3)


def random(shape, name):
    pytest.importorskip("ml_dtypes")
    return np.random.default_rng(5).integers(-9, 10, shape).astype(name)


# Launching


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("n", [1, 256, 257, 5000])
def test_a_thread_an_item(gpu, n, name):
    x = random(n, name)
    out = gpu.xp.empty(n, x.dtype)
    SCALED[x.dtype](n, gpu.asarray(x), out, n, 0.5)
    np.testing.assert_array_equal(gpu.asnumpy(out), x * x.dtype.type(0.5))


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 33), (13, 70)])
def test_a_warp_an_item(gpu, rows, width, name):
    x = random((rows, width), name)
    out = gpu.xp.empty(rows, np.float32)
    ROW_SUMS[x.dtype](rows, gpu.asarray(x), out, rows, width)
    np.testing.assert_array_equal(gpu.asnumpy(out), x.astype(np.float32).sum(axis=1))


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 33), (7, 1024)])
def test_a_block_an_item(gpu, rows, width):
    x = random((rows, width), np.int32)
    out = gpu.xp.empty(x.shape, x.dtype)
    arguments = gpu.asarray(x), out, rows, np.int32(width), False
    REVERSED[()](rows, *arguments, shared_bytes=4 * width)
    np.testing.assert_array_equal(gpu.asnumpy(out), x[:, ::-1])


@pytest.mark.parametrize("bool_type", [bool, np.bool_])
def test_a_bool_is_one_byte(gpu, bool_type):
    """Of Python, too. It is the last parameter: an emulator refuses more bytes."""
    x, out = gpu.asarray(np.arange(5, dtype=np.int32)), gpu.xp.empty(5, np.int32)
    for twice, expected in (False, [4, 3, 2, 1, 0]), (True, [0, 1, 2, 3, 4]):
        REVERSED[()](1, x, out, 1, np.int32(5), bool_type(twice), shared_bytes=20)
        assert gpu.asnumpy(out).tolist() == expected


def test_no_item_no_launch(gpu):
    SCALED[np.dtype(np.float32)](0, None, None, 0, 0.5)


def test_it_runs_on_the_current_stream(gpu):
    x = gpu.asarray(np.ones(9, np.float32))
    stream = gpu.xp.cuda.Stream(non_blocking=True)
    gpu.xp.cuda.get_current_stream().synchronize()
    with stream:
        SCALED[x.dtype](9, x, x, 9, 2.0)
    stream.synchronize()
    assert gpu.asnumpy(x).tolist() == [2.0] * 9
    if gpu.name == "emulated":
        assert [launched.stream for launched in gpu.xp.kernels.launches] == [stream]


def test_what_was_not_declared_is_refused(gpu):
    with pytest.raises(TypeError, match=r"no kernel scaled<int> was declared"):
        SCALED[np.dtype(np.int32)](1, None, None, 1, 0.5)
    with pytest.raises(ValueError, match="reversed was not declared with 5000 shared bytes"):
        REVERSED[()](1, None, None, 1, 1, shared_bytes=5000)


# Geometry


@pytest.mark.parametrize(
    ("kernel", "items", "blocks"),
    [
        (SCALED, 1, 1),
        (SCALED, 256, 1),
        (SCALED, 257, 2),
        (SCALED, 2**40, launch.MOST_BLOCKS),
        (ROW_SUMS, 2, 1),
        (ROW_SUMS, 3, 2),
        (REVERSED, 3, 3),
        (REVERSED, 2**40, launch.MOST_BLOCKS),
    ],
)
def test_blocks_of_a_grid(kernel, items, blocks):
    assert kernel.grid(items) == blocks


# Sources and names


def test_template_arguments():
    half = np.dtype(np.float16)
    assert launch.template_arguments(half) == ("__half",)
    assert launch.template_arguments(half, "Tanh", 4, False) == ("__half", "Tanh", "4", "false")
    assert launch.template_arguments() == ()
    assert SCALED.expression(("float", "4")) == "scaled<float, 4>"
    assert REVERSED.expression(()) == "reversed"


def test_kernels_of_an_element_type_are_compiled_together():
    assert launch.units(SOURCE)[("float",)] == ["scaled<float>", "row_sums<float>"]
    assert launch.units(SOURCE)[()] == ["reversed"]


def test_a_first_template_argument_may_be_another_one():
    """Of kernels that say so; with it, all of a source are compiled that have one."""
    other, sweep = multi_blank((2, 4, 8)).topology.cpp, cuda_lattice._SWEEPS[128]
    assert (other, "128") not in sweep.variants
    assert sweep.has((other, "128"))
    assert not sweep.has((other, "512"))
    assert not sweep.has((other,))
    assert not SCALED.has(("int",))
    assert launch.compiled_with("lattice.cu", (other,)) == [
        f"lattice_sweep<{other}, 128>",
        f"lattice_sweep<{other}, 512>",
    ]
    assert launch.compiled_with("lattice.cu", ()) == [
        "lattice_write",
        "lattice_bound",
        "lattice_leave_out",
    ]
    assert launch.compiled_with(SOURCE, ("int",)) == []
    assert set(launch.units("lattice.cu")) == {(), *cuda_lattice.TOPOLOGIES}


def test_kernels_of_another_first_argument_run(gpu):
    other = multi_blank((3,)).topology.cpp
    marks, sums = gpu.xp.empty(1, np.bool_), np.array([np.iinfo(np.int64).min])  # of 0
    samples = samples_of(cuda, [1], [1])
    limits = np.zeros(1), np.zeros(1), np.zeros(1, bool)
    arrays = np.zeros(1, np.int32), sums, sums, *limits
    of_lattice = *samples.table, np.int32(1), *map(gpu.asarray, arrays)
    counts = gpu.asarray(np.zeros(1, np.int64))
    cuda_lattice._MARK[other](1, 1, *of_lattice, marks, counts)
    assert gpu.asnumpy(marks).tolist() == [False]


def test_every_file_is_included_once_and_lines_are_kept(tmp_path, monkeypatch):
    (tmp_path / "a.cuh").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.cuh").write_text('#include "a.cuh"\nint b;\n')
    (tmp_path / "k.cu").write_text('#include "a.cuh"\n#include <cuda_fp16.h>\n#include "b.cuh"\n')
    monkeypatch.setattr(launch, "_folder", lambda: tmp_path)
    lines = launch.source_text.__wrapped__("k.cu").splitlines()
    assert [line for line in lines if not line.startswith("#line")] == [
        *["int a;", "#include <cuda_fp16.h>", "int b;"],
    ]
    assert lines[lines.index("#include <cuda_fp16.h>") - 1] == '#line 2 "k.cu"'
    assert lines[lines.index("int b;") - 1] == '#line 2 "b.cuh"'


def test_sources_are_found_in_the_package_and_beside_it(tmp_path, monkeypatch):
    package = tmp_path / "cupy_rnnt"
    (package / "kernels").mkdir(parents=True)
    (package / "kernels" / "common.cuh").touch()
    monkeypatch.setattr(launch, "files", lambda _: package)
    assert launch._folder() == package / "kernels"
    (package / "kernels" / "common.cuh").unlink()
    assert launch._folder() == tmp_path / "kernels"


# What may be missing


def library(**changed):
    """CuPy, as far as is needed to fail."""

    class CUDARuntimeError(RuntimeError):
        pass

    class CompileException(Exception):
        pass

    names = {
        "runtime": SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDevice=lambda: 0),
        "compiler": SimpleNamespace(CompileException=CompileException),
        "nvrtc": SimpleNamespace(getVersion=lambda: (12, 9)),
        "Device": lambda device: SimpleNamespace(compute_capability="80"),
    } | changed
    module = ModuleType("cupy")
    module.cuda = SimpleNamespace(**names)
    return module


def fails(monkeypatch, cupy, expected, text):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(expected, match=text):
        SCALED[np.dtype(np.float32)](1, None, None, 1, 0.5)


def raising(error):
    def function(*args, **kwargs):
        raise error

    return function


def test_without_cupy(monkeypatch):
    fails(monkeypatch, None, ImportError, "CUDA arrays need CuPy: install cupy-cuda12x")


def test_what_cupy_lacks_is_not_hidden(monkeypatch):
    error = ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr("builtins.__import__", raising(error))
    text = "CuPy is installed but cannot be imported: No module named 'fastrlock'"
    with pytest.raises(ImportError, match=text):
        launch.cupy()


def test_without_a_driver(monkeypatch):
    cupy = library()
    runtime = cupy.cuda.runtime
    runtime.getDevice = raising(runtime.CUDARuntimeError("cudaErrorInsufficientDriver"))
    runtime.driverGetVersion, runtime.runtimeGetVersion = lambda: 0, lambda: 12090
    fails(monkeypatch, cupy, RuntimeError, "there is no driver: install it")


def test_on_an_old_device(monkeypatch):
    cupy = library(Device=lambda device: SimpleNamespace(compute_capability="70"))
    text = "CUDA device 0 has compute capability 7.0, but 7.5 or more is needed"
    fails(monkeypatch, cupy, RuntimeError, text)


def test_without_nvrtc(monkeypatch):
    cupy = library(nvrtc=SimpleNamespace(getVersion=raising(RuntimeError("no libnvrtc.so"))))
    fails(monkeypatch, cupy, RuntimeError, r"CuPy finds no NVRTC: install cupy-cuda12x\[ctk\]")


@pytest.mark.parametrize(
    ("message", "expected", "text"),
    [
        (
            'k.cu(1): catastrophic error: cannot open source file "cuda_fp16.h"',
            RuntimeError,
            r"CuPy finds no CUDA headers: install cupy-cuda12x\[ctk\]",
        ),
        ("k.cu(2): error: expected a ;", Exception, "expected a ;"),
    ],
    ids=["header", "syntax"],
)
def test_what_the_compiler_says(monkeypatch, message, expected, text):
    cupy = library()
    error = cupy.cuda.compiler.CompileException(message)
    cupy.RawModule = lambda **_: SimpleNamespace(get_function=raising(error))
    fails(monkeypatch, cupy, expected, text)
