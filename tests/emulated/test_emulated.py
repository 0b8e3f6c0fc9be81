"""What stands for CuPy has its names and parameters, and tells more than CuPy does."""

from __future__ import annotations

import inspect
import operator
import re
from pathlib import Path

import numpy as np
import pytest

from .. import devices, emulated, ptxemu
from ..ops.cuda.trivial import REVERSED, ROW_SUMS, SCALED
from . import arrays, memory

FLOAT = np.dtype(np.float32)


@pytest.fixture
def xp():
    with devices.emulated() as device:
        yield device.xp


# Names and parameters

SPACES = "compiler", "cublas", "device", "nvrtc", "runtime"
OF_CUDA = [name for name in emulated.cuda.__all__ if name not in SPACES]
OWN = {"cublas", "dlpack", "kernels", "memory"}
C_TYPES = r"\b(str|bool|int|tuple|size_t|Py_ssize_t|_ndarray_base)\s+(?=\w)"


def parameters(function):
    """Names, kinds and defaults of parameters; of Cython by the line above its docstring."""
    try:
        found = inspect.signature(function)
    except ValueError:
        line = function.__doc__.strip().splitlines()[0]
        text = re.fullmatch(r"[\w.]*\((.*)\)(?: -> .*)?", line)[1]
        found = arrays.signature(re.sub(C_TYPES, "", text))
    listed = [(p.name, p.kind, p.default) for p in found.parameters.values()]
    return [parameter for parameter in listed if parameter[0] != "self"]


def public(module):
    return sorted(set(module.__all__) - OWN)


@pytest.mark.parametrize("name", public(emulated))
def test_functions(name):
    cupy = pytest.importorskip("cupy")
    own, cupys = getattr(emulated, name), getattr(cupy, name)
    if name in arrays.UFUNCS:
        assert isinstance(cupys, cupy.ufunc)
    elif name == "matmul":  # a ufunc with axes
        assert callable(cupys)
    elif inspect.isfunction(own):
        assert parameters(own) == parameters(cupys)


@pytest.mark.parametrize("name", [*arrays.METHODS, *arrays.VIEWS, "fill", "get", "item", "view"])
def test_methods_of_arrays(name):
    cupy = pytest.importorskip("cupy")
    assert parameters(getattr(emulated.ndarray, name)) == parameters(getattr(cupy.ndarray, name))


def test_attributes_of_arrays():
    cupy = pytest.importorskip("cupy")
    own = {name for name in vars(emulated.ndarray) if not name.startswith("_")}
    assert own - {"of"} <= set(dir(cupy.ndarray))


@pytest.mark.parametrize("name", ["ndarray", "cuda.Device", "cuda.Stream"])
def test_special_methods(name):
    """None that CuPy's do not have; an object without a hash is in no set."""
    cupy = pytest.importorskip("cupy")
    own, cupys = (operator.attrgetter(name)(module) for module in (emulated, cupy))
    special = {method for method in vars(own) if re.fullmatch("__[a-z]+__", method)}
    not_methods = {"__annotations__", "__array_ufunc__", "__dict__", "__module__", "__weakref__"}
    assert special - not_methods <= set(dir(cupys))
    assert (own.__hash__ is None) == (cupys.__hash__ is None)


@pytest.mark.parametrize("name", ["RawModule", "RawKernel"])
def test_raw_classes(name):
    cupy = pytest.importorskip("cupy")
    own, cupys = getattr(emulated, name), getattr(cupy, name)
    assert parameters(own) == parameters(cupys)
    assert {name for name in vars(own) if not name.startswith("_")} <= set(dir(cupys))


def test_calling_a_kernel():
    cupy = pytest.importorskip("cupy")
    line = next(
        line for line in cupy.RawKernel.__call__.__doc__.splitlines() if "shared_mem" in line
    )
    cupys = arrays.signature(re.search(r"\((.*)\)", line.replace("\\", ""))[1])
    own = inspect.signature(emulated.RawKernel.__call__)
    assert [(p.name, p.kind, p.default) for p in own.parameters.values()] == [
        (p.name, p.kind, p.default) for p in cupys.parameters.values()
    ]


@pytest.mark.parametrize("name", sorted(OF_CUDA))
def test_names_of_cuda(name):
    cupy = pytest.importorskip("cupy")
    own, cupys = getattr(emulated.cuda, name), getattr(cupy.cuda, name)
    if not inspect.isclass(own):
        assert parameters(own) == parameters(cupys)
    for member, value in vars(own).items() if inspect.isclass(own) else ():
        if inspect.isfunction(value) and not member.startswith("_"):
            assert parameters(value) == parameters(getattr(cupys, member))


def test_gemm():
    """By its text, as it cannot be imported without cuBLAS."""
    cupy = pytest.importorskip("cupy")
    text = Path(cupy.__file__).with_name("cublas.py").read_text()
    cupys = arrays.signature(re.search(r"^def gemm\((.*)\):", text, re.MULTILINE)[1])
    own = inspect.signature(emulated.cublas.gemm)
    assert [(p.name, p.default) for p in own.parameters.values()] == [
        (p.name, p.default) for p in cupys.parameters.values()
    ]


def test_gemm_of_half_types():
    """By what is written in the extension module, which cannot be loaded without cuBLAS either."""
    libs = pytest.importorskip("cupy_backends.cuda.libs")
    (file,) = Path(libs.__file__).parent.glob("cublas.*")
    binary = file.read_bytes()
    own = inspect.signature(emulated.cublas.gemmEx).parameters
    found = re.search(rb"[^s]gemmEx\((.*?)\)", binary)[1].decode()
    assert [declared.split()[-1] for declared in found.split(",")] == list(own)
    for name in vars(emulated.cublas):
        assert not name.startswith("CUBLAS") or name.encode() in binary


def test_names_of_the_runtime():
    cupy = pytest.importorskip("cupy")
    for space in "runtime", "compiler", "device", "nvrtc":
        for name in vars(getattr(emulated.cuda, space)):
            assert hasattr(getattr(cupy.cuda, space), name)


# Arrays


def test_memory_is_poisoned(xp):
    x = xp.empty((3, 4))
    for read in x.get, x.sum, lambda: x + 1, lambda: xp.asnumpy(x[:1]), lambda: x[x[0] > 0]:
        with pytest.raises(memory.UninitialisedRead, match="uninitialised"):
            read()
    x[1:] = 2
    assert (x[1:] + 1).get().tolist() == [[3] * 4] * 2
    x[xp.asarray([0, 0]), xp.asarray([0, 3])] = 5
    x[0, 1:3] = 6
    assert x.get()[0].tolist() == [5, 6, 6, 5]


def test_kernels_write_and_read_poisoned_memory(xp):
    x, out = xp.empty(300, FLOAT), xp.empty(300, FLOAT)
    x[:200] = 1
    SCALED[FLOAT](200, x, out, 200, 2.0)
    assert out[:200].get().tolist() == [2] * 200
    with pytest.raises(memory.UninitialisedRead):
        out.get()
    with pytest.raises(ptxemu.KernelError, match="uninitialised-read"):
        SCALED[FLOAT](300, x, out, 300, 2.0)


def test_views_share_memory_and_copies_do_not(xp):
    x = xp.arange(12).reshape(3, 4)
    x[1][2] = -1
    x.T[0, 2] = -2
    first, *_ = x
    first.fill(7)
    assert x.get().tolist() == [[7] * 4, [4, 5, -1, 7], [-2, 9, 10, 11]]
    x.T.ravel()[0] = 99
    x.copy()[0] = 99
    x[[0, 1]][0] = 99
    assert 99 not in x.get()
    x += xp.ones(4, np.int64)
    assert x[0].tolist() == [8] * 4
    assert x.data.ptr + 8 == x[0, 1:].data.ptr


def test_the_host_stays_out(xp):
    x, host = xp.ones(3), np.ones(3)
    for mix in (
        lambda: np.asarray(x),
        lambda: x + host,
        lambda: host + x,
        lambda: xp.add(x, host),
        lambda: x.__setitem__(slice(1), host[:1]),
        lambda: xp.take(host, x),
        lambda: SCALED[np.dtype(np.float64)](3, host, x, 3, 1.0),
    ):
        with pytest.raises(TypeError):
            mix()


def test_only_what_cupy_takes(xp):
    x = xp.ones(3)
    with pytest.raises(TypeError, match="mode"):
        xp.take(x, xp.arange(2), mode="clip")
    with pytest.raises(TypeError, match="where"):
        x.sum(where=True)


def test_results_go_where_they_should(xp):
    x, out = xp.asarray([[1.0, 2], [3, 4]]), xp.empty(2)
    assert xp.sum(x, 1, None, out) is out
    assert out.tolist() == [3, 7]
    assert x.max(axis=0, out=out).tolist() == [3, 4]
    assert float(2.0 ** x[0, 1]) == 4
    assert int(np.float64(2) * x[0, 1]) == 4
    with pytest.raises(ValueError, match="shape"):
        xp.matmul(x, x, out=out)
    half = xp.asarray(np.full((1, 4096), 1, np.float16))
    assert float((half @ half.T)[0, 0]) == 4096  # in float16 the sum would stop at 2048


def test_the_host_waits(xp):
    before = arrays.waits
    x = xp.arange(5)
    y = x[1:] * 2
    assert arrays.waits == before
    xp.flatnonzero(y > 2)
    y.get()
    bool(x[0])
    xp.cuda.get_current_stream().synchronize()
    assert arrays.waits == before + 4


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        (lambda xp, x: x + 1, "arrays"),
        (lambda xp, x: xp.exp(x), "arrays"),
        (lambda xp, x: x.sum(), "arrays"),
        (lambda xp, x: x[x < 9], "arrays arrays"),
        (lambda xp, x: x[xp.arange(2)], "arrays arrays"),
        (lambda xp, x: x.__setitem__(0, x[1]), "arrays"),
        (lambda xp, x: x.astype(np.int64), "arrays"),
        (lambda xp, x: xp.flatnonzero(x), "arrays"),
        (lambda xp, x: x.T.ravel(), "arrays"),
        (lambda xp, x: xp.array(x), "arrays"),
        (lambda xp, x: xp.zeros(3), "fills"),
        (lambda xp, x: x.fill(2), "fills"),
        (lambda xp, x: xp.asarray([1.0]), "copies"),
        (lambda xp, x: x.get(), "copies"),
        (lambda xp, x: x.set(np.ones((3, 4))), "copies"),
        (lambda xp, x: x @ x.T, "products"),
        (lambda xp, x: xp.cublas.gemm("N", "T", x, x), "products"),
        (lambda xp, x: xp.RawKernel(EMPTY, "empty")((1,), (1,), ()), "kernels"),
        (lambda xp, x: x[1:].T.reshape(-1, 2, copy=False)[:0].sum(axis=1), ""),
        (lambda xp, x: (xp.empty(3), x.ravel(), xp.asarray(x), xp.zeros(0), xp.ones(0) + 1), ""),
    ],
)
def test_operations_are_counted(xp, operation, kind):
    x = xp.ones((3, 4))
    before = arrays.operations.copy()
    operation(xp, x)
    assert sorted((arrays.operations - before).elements()) == kind.split()


EMPTY = 'extern "C" __global__ void empty() {}'


def test_bytes_are_counted(xp):
    pool, own = xp.get_default_memory_pool(), xp.cuda.MemoryPool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    x = xp.empty(100)
    y = x[3:]
    del x
    assert pool.used_bytes() == before + 1024
    z = xp.zeros(1)
    del y, z
    assert pool.used_bytes() == before
    assert pool.total_bytes() == before + 1536
    with xp.cuda.using_allocator(own.malloc):
        kept = xp.empty(1)
    assert (own.used_bytes(), pool.used_bytes()) == (512, before)
    assert kept.size


# Kernels


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((np.int32(3), 2.0), "argument 2 .* has 4 bytes, the parameter has 8"),
        ((3, np.float32(2)), "argument 3 .* has 4 bytes, the parameter has 8"),
        ((True, 2.0), "argument 2 .* has 1 bytes, the parameter has 8"),
        ((3, 2.0, 1), "takes 4 arguments"),
        ((True, "2"), "Unsupported type <class 'str'>"),
    ],
)
def test_arguments_fit_their_parameters(xp, arguments, text):
    x = xp.ones(3, FLOAT)
    with pytest.raises(TypeError, match=text):
        SCALED[FLOAT](3, x, x, *arguments)


def test_accesses_are_checked(xp):
    x, out = xp.ones((2, 33), FLOAT), xp.empty(2, FLOAT)
    with pytest.raises(ptxemu.KernelError, match="out-of-bounds") as error:
        ROW_SUMS[FLOAT](3, x, out, 3, 33)
    assert re.search(r"trivial\.cu:\d+", str(error.value))
    row = xp.arange(300, dtype=FLOAT)
    with pytest.raises(ptxemu.KernelError, match="race"):
        SCALED[FLOAT](299, row[1:], row, 299, 1.0)
    ints = xp.ones(40, np.int32)
    with pytest.raises(ptxemu.KernelError, match="outside the 100 bytes of shared memory"):
        REVERSED[()](1, ints, ints, 1, np.int32(40), False, shared_bytes=100)


def test_blocks_run_in_any_order(xp, monkeypatch):
    out, x = xp.empty(999, FLOAT), xp.ones(999, FLOAT)
    monkeypatch.setattr(xp.kernels.options, "counters", True)
    SCALED[FLOAT](999, x, out, 999, 1.0)
    launched = xp.kernels.launches[-1]
    assert launched[:4] == ("scaled<float>", (4, 1, 1), (256, 1, 1), 0)
    assert launched.report.counters["global_store_bytes"] == 999 * 4


def test_devices_and_streams(xp):
    with xp.cuda.Device(1) as device:
        x = xp.ones(3, FLOAT)
        SCALED[FLOAT](3, x, x, 3, 1.0)
    assert x.device == device != xp.cuda.Device()
    with pytest.raises(ValueError, match="a kernel on device 0 is given memory of 1"):
        SCALED[FLOAT](3, x, x, 3, 1.0)
    with xp.cuda.Stream() as stream:
        assert xp.cuda.get_current_stream() == stream != xp.cuda.Stream.null


def test_a_kernel_of_its_own(xp):
    code = 'extern "C" __global__ void one(int* x) { *x = 1; }'
    x = xp.empty((), np.int32)
    xp.RawKernel(code, "one")((1,), (1,), (x,))
    assert int(x) == 1
    with pytest.raises(TypeError, match="tuple"):
        xp.RawKernel(code, "one")(1, 1, (x,))
    with pytest.raises(xp.cuda.compiler.CompileException, match="undefined"):
        xp.RawKernel("__global__ void k() { undefined(); }", "k")
