"""What every benchmark needs: machine in words, paired timings, peak memory, JSON, PNG, table.

Benchmarks run on a GPU, if CuPy finds one, or on the CPU: see ``--device``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import costs
import numpy as np
from threadpoolctl import ThreadpoolController, threadpool_limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
MIB = 2**20
TUNING_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
FLOOR_ROWS = {"cpu": 2048, "cuda": 16384}
PACKAGES = "numpy", "scipy", "torch", "jax", "cupy-cuda12x", "cupy-cuda13x"

Samples = dict[str, list[float]]

device = "cpu"  # that this process measures on, or "cuda"


def use_device(name: str) -> None:
    global device
    device = name


def has_gpu() -> bool:
    with suppress(ImportError):
        import cupy

        return bool(cupy.cuda.is_available())
    return False


def array_library() -> Any:
    """NumPy, or CuPy on a GPU."""
    return importlib.import_module("numpy" if device == "cpu" else "cupy")


def to_device(value: Any) -> Any:
    """Arguments with their arrays of floats on the device."""
    if isinstance(value, tuple):
        return _alike(value, to_device)
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return array_library().asarray(value) if is_float else value


def to_host(value: Any) -> Any:
    """Results with their arrays on the host."""
    if isinstance(value, tuple):
        return _alike(value, to_host)
    on_gpu = device == "cuda" and isinstance(value, array_library().ndarray)
    return value.get() if on_gpu else value


def _alike(several: Any, function: Callable[[Any], Any]) -> Any:
    """A tuple, named or not, with the function applied to its entries."""
    found = map(function, several)
    return type(several)(*found) if hasattr(several, "_fields") else tuple(found)


def wait() -> None:
    """For the device to do what it was told."""
    if device == "cuda":
        array_library().cuda.Device().synchronize()


def arguments(
    description: str,
    repeats: int = 5,
    threads: Sequence[int] = (1, 2),
    redraws: bool = False,
    cpu_only: bool = False,
    **more: str,
) -> argparse.Namespace:
    """The options that all benchmarks share; complains of variables that would tune the BLAS.

    Those that `redraws` can make their pictures and tables again; see :func:`measured`. `more` are
    texts of further options.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, text in more.items():
        parser.add_argument(f"--{name}", help=text)
    if redraws:
        text = "pictures and tables of the JSON file that is there: measure nothing"
        parser.add_argument("--redraw", action="store_true", help=text)
    parser.add_argument("--quick", action="store_true", help="small sizes: does the script run?")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="a GPU if there is one")
    text = f"of the CPU: {' and '.join(map(str, threads))}"
    parser.add_argument("--threads", type=int, nargs="+", help=text)
    parser.add_argument("--repeats", type=int, default=repeats)
    for variable in TUNING_VARIABLES:
        if variable in os.environ:
            print(f"note: {variable} is set; unset it for results worth keeping", file=sys.stderr)
    options = parser.parse_args()
    if cpu_only:
        options.device = "cpu"
    options.device = options.device or ("cuda" if has_gpu() else "cpu")
    if options.device == "cuda" and not has_gpu():
        parser.error("CuPy finds no GPU")
    options.threads = options.threads or ([*threads] if options.device == "cpu" else [1])
    use_device(options.device)
    return options


def machine() -> dict[str, Any]:
    """Whatever a reader needs to judge a timing."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    blas = ("internal_api", "version", "architecture", "threading_layer")
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        **(gpu() if device == "cuda" else {}),
        "python": platform.python_version(),
        **versions(*PACKAGES),
        "blas": [
            {key: library[key] for key in blas if key in library}
            for library in ThreadpoolController().select(user_api="blas").info()
        ],
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("OPENBLAS_", "OMP_", "MKL_", "CUPY_"))
        },
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
    }


def gpu() -> dict[str, Any]:
    """Its name, and what computed times go by."""
    cuda = array_library().cuda
    capability = cuda.Device().compute_capability
    return {
        "gpu": cuda.runtime.getDeviceProperties(cuda.Device().id)["name"].decode(),
        "compute_capability": capability,
        "driver": cuda.runtime.driverGetVersion(),
        "rates": costs.machine_of(cuda.Device().attributes, int(capability))._asdict(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process: no other contestant's memory, threads or floating-point mode."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, use_device, (device,)) as pool:
        return pool.submit(function, *arguments).result()


def use_threads(count: int) -> None:
    """As many threads for every BLAS, thereby for cupy_rnnt, and for PyTorch if it is loaded."""
    threadpool_limits(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def interleaved(
    cases: dict[str, Callable[[], object]],
    repeats: int,
    setup: Callable[[], object] = lambda: None,
) -> Samples:
    """Seconds of each case, all cases in turn in every repeat, so that they share bad moments.

    One round goes before the first that counts. `setup` runs before each case, untimed.
    """
    samples: Samples = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            setup()
            wait()
            start = time.perf_counter()
            case()
            wait()
            seconds = time.perf_counter() - start
            if repeat:
                samples[name].append(seconds)
    return samples


def ratio(samples: Samples, name: str, base: str = "floor") -> float:
    """Median over the repeats of the time of `name` over that of `base` just before or after."""
    pairs = zip(samples[name], samples[base], strict=True)
    return statistics.median(mine / other for mine, other in pairs)


def medians(samples: Samples) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}


def three_gemms(cells: int, hidden: int, vocabulary: int) -> Callable[[], None]:
    """The floor: the bare float32 products of logits, d hidden and d weight, a chunk at a time."""
    rng, xp = np.random.default_rng(0), array_library()

    def normal(*shape: int) -> Any:
        return to_device(rng.standard_normal(shape, dtype=np.float32))

    rows = min(FLOOR_ROWS[device], cells)
    h, z, weight = normal(rows, hidden), normal(rows, vocabulary), normal(vocabulary, hidden)
    logits, d_hidden, d_weight = xp.empty_like(z), xp.empty_like(h), xp.empty_like(weight)

    def run() -> None:
        for start in range(0, cells, rows):
            n = min(rows, cells - start)
            xp.matmul(h[:n], weight.T, out=logits[:n])
            xp.matmul(z[:n], weight, out=d_hidden[:n])
            xp.matmul(z[:n].T, h[:n], out=d_weight)

    return run


def resident_bytes(key: str = "VmRSS") -> int:
    """`VmRSS` or `VmHWM` (its peak) of this process in bytes, as Linux counts them."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def peak_resident(function: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes by which the resident memory peaked above its start, and what `function` returned.

    The peak of ``getrusage`` can start at that of a parent process; this one is reset first. On a
    GPU it is what CuPy holds of its memory.
    """
    if device == "cuda":
        pool = array_library().get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        result = function()
        return pool.total_bytes() - before, result
    Path("/proc/self/clear_refs").write_text("5")
    start = resident_bytes()
    result = function()
    return resident_bytes("VmHWM") - start, result


def peak_traced(function: Callable[[], Any]) -> int:
    """Bytes by which what NumPy and Python allocate peaked above the start and the results."""
    if device == "cuda":
        peak, result = peak_resident(function)
        return peak - result_bytes(result)
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    result = function()
    peak = tracemalloc.get_traced_memory()[1] - start
    tracemalloc.stop()
    return peak - result_bytes(result)


def result_bytes(result: Any) -> int:
    """Bytes of the arrays in a result, at any depth of tuples."""
    if isinstance(result, tuple):
        return sum(map(result_bytes, result))
    return result.nbytes if isinstance(result, array_library().ndarray) else 0


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a simple table of reStructuredText."""
    print(f"\n{in_rst(header, rows)}\n")


def in_rst(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A simple table of reStructuredText."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def on_paper(measured: float, operations: Iterable[costs.Operation]) -> dict[str, Any]:
    """On a GPU, an entry of a row for :func:`beside_computed`: the time that operations took, and
    the time that they take at least."""
    if device == "cpu":
        return {}
    machine = costs.Machine(**gpu()["rates"])
    return {"on_paper": {"measured": measured, "computed": costs.seconds(operations, machine)}}


def beside_computed(rows: Iterable[dict[str, Any]], name: str) -> None:
    """Print measured times beside those that bytes and operations take at least, where known."""
    times = [(row[name], *row["on_paper"].values()) for row in rows if "on_paper" in row]
    if times:
        print("Seconds measured, beside those that bytes and operations take at least:")
        body = [[n, f"{m:.3g}", f"{c:.3g}", f"{m / c:.2f}"] for n, m, c in times]
        table([name, "measured", "computed", "measured / computed"], body)


def in_words(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads > 1)


def save(
    name: str, options: argparse.Namespace, rows: Any, chart: Figure | dict[str, Figure]
) -> None:
    """Write ``results/NAME.json`` and ``results/NAME.png``; ``NAME_cuda`` on a GPU, ``NAME_quick``
    of a quick run.

    Several charts have a name each.
    """
    save_rows(name, options, rows)
    for file, figure in (chart if isinstance(chart, dict) else {name: chart}).items():
        save_chart(file, options, figure)


def save_chart(name: str, options: argparse.Namespace, chart: Figure) -> None:
    chart.savefig(result_path(f"{name}.png", options), dpi=150)


def result_path(file: str, options: argparse.Namespace) -> Path:
    """``results/NAME.EXT`` of this run, for ``NAME.EXT``; the folder is there."""
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / file
    suffix = "_cuda" * (device == "cuda") + "_quick" * options.quick
    return path.with_stem(path.stem + suffix)


def save_rows(name: str, options: argparse.Namespace, rows: Any) -> None:
    content = {"machine": machine(), "options": vars(options), "rows": rows}
    text = json.dumps(content, indent=1) + "\n"
    result_path(f"{name}.json", options).write_text(text)


def measured(
    name: str, options: argparse.Namespace, measure: Callable[[], Iterable[Any]]
) -> list[Any]:
    """Rows of `measure`, written to ``results/NAME.json`` as they come; with ``--redraw`` those of
    that file."""
    if options.redraw:
        return list(json.loads(result_path(f"{name}.json", options).read_text())["rows"])
    rows = []
    for row in measure():
        rows.append(row)
        save_rows(name, options, rows)
    return rows


def publish(
    name: str, options: argparse.Namespace, header: Iterable[str], rows: Iterable[Iterable[object]]
) -> None:
    """Print a table, and write it to ``results/NAME.rst``, which the documentation includes."""
    text = in_rst(header, rows)
    print(f"\n{text}\n")
    result_path(f"{name}.rst", options).write_text(text + "\n")
