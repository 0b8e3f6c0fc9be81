"""CuPy without a GPU, on a stand-in for CUDA's driver, runtime and cuBLAS: see README.rst.

`start()` comes before the first ``import cupy`` of the process.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path

LIBRARIES = Path(sys.prefix) / "lib" / "standin"
# In the order of standin.cpp.
NAMES = tuple(
    """
    launches memsets H2D D2H D2D GEMMs sorts CUB cudaMalloc cudaFree stream_syncs device_syncs
    event_syncs event_records stream_waits pageable_D2H
    """.split()  # noqa: SIM905
)
SORT, CUB = NAMES.index("sorts"), NAMES.index("CUB")
OFF, RECORD, REPLAY = range(3)

cuda: ctypes.CDLL
blas: ctypes.CDLL
counts: ctypes.Array


class ReplayError(RuntimeError):
    """A call asked for other copies to the host than the recorded one."""


def start(emulated: bool = False) -> None:
    """Load the stand-in. Launches do nothing, or (`emulated`) are interpreted."""
    global cuda, blas, counts
    if "cupy" in sys.modules:
        raise RuntimeError("standin.start() comes before the first import of cupy")
    if not (LIBRARIES / "libcublas.so.13").exists():
        raise RuntimeError(f"{sys.prefix} has no stand-in: run the Python that build.sh makes")
    kind = "ptx" if emulated else "cubin"
    os.environ.setdefault("CUPY_CACHE_DIR", str(Path(sys.prefix) / "cache" / kind))
    os.environ["CUPY_COMPILE_WITH_PTX"] = str(int(emulated))
    # NVRTC opens this one by name, in no particular folder.
    for builtins in Path(sysconfig.get_path("purelib"), "nvidia").rglob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    cuda = ctypes.CDLL(str(LIBRARIES / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(LIBRARIES / "libcublasLt.so.13"), ctypes.RTLD_GLOBAL)
    blas = ctypes.CDLL(str(LIBRARIES / "libcublas.so.13"), ctypes.RTLD_GLOBAL)
    counts = (ctypes.c_long * len(NAMES)).in_dll(cuda, "standin_counts")
    cuda.standin_function_name.restype = ctypes.c_char_p
    cuda.standin_log_data.restype = ctypes.c_void_p
    for name in ("function_count", "function_launches", *map("log_{}".format, _LOG_NUMBERS)):
        getattr(cuda, f"standin_{name}").restype = ctypes.c_long

    from . import compiled, emulate

    compiled.install(emulate.install() if emulated else None)


_LOG_NUMBERS = "count", "next", "bytes", "wrong"


def snapshot() -> Counter:
    """How many operations of each kind there have been."""
    return Counter(dict(zip(NAMES, counts, strict=True)))


def launches() -> Counter:
    """Of every kernel so far, by the name of its function."""
    total: Counter = Counter()
    for i in range(cuda.standin_function_count()):
        total[demangled(cuda.standin_function_name(i))] += cuda.standin_function_launches(i)
    return total


def demangled(name: bytes) -> str:
    """Of a function template only its name: ``row_max``."""
    if not name.startswith(b"_Z"):
        return name.decode()
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    text = ctypes.string_at(demangle(name, None, None, ctypes.byref(ctypes.c_int()))).decode()
    return re.sub(r"^void ", "", re.split(r"[<(]", text)[0])


def record() -> None:
    """Keep all copies to the host from now on."""
    cuda.standin_log(RECORD)


def recorded() -> list[bytes]:
    """The copies to the host since `record`."""
    cuda.standin_log(OFF)
    sizes = map(cuda.standin_log_bytes, range(cuda.standin_log_count()))
    return [ctypes.string_at(cuda.standin_log_data(i), n) for i, n in enumerate(sizes)]


def replay(copies: list[bytes]) -> None:
    """From now on copies to the host get these bytes; see `rewind`."""
    cuda.standin_log(RECORD)  # empties the log
    for copy in copies:
        cuda.standin_log_add(copy, ctypes.c_size_t(len(copy)))
    cuda.standin_log(REPLAY)


def rewind() -> None:
    """The next copy to the host is the first one again."""
    cuda.standin_log(REPLAY)


def replayed() -> None:
    """Raise unless the copies since `rewind` were those recorded, one by one."""
    size = ctypes.c_long()
    wrong = cuda.standin_log_wrong(ctypes.byref(size))
    total, done = cuda.standin_log_count(), cuda.standin_log_next()
    again = "the recording is of other sources: leave out --reuse, or delete it"
    if wrong >= 0:
        was = f"of {cuda.standin_log_bytes(wrong)} bytes" if wrong < total else "not there"
        raise ReplayError(
            f"copy {wrong} to the host is of {size.value} bytes, in the recording it is {was}: "
            f"{again}"
        )
    if done < total:
        raise ReplayError(f"the call copies {done} times to the host, not {total} times: {again}")
