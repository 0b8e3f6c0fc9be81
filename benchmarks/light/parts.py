"""Parts of a call alone: sweeps over lattices, products, kernels on rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import costs
import ml_dtypes
import numpy as np

from cupy_rnnt.ops import cuda
from cupy_rnnt.ops.cuda.launch import cupy
from cupy_rnnt.ops.types import (
    Cells,
    HiddenRows,
    InputSums,
    JointInputs,
    LogitRows,
    OutputSums,
    RowPosteriors,
)
from cupy_rnnt.transducer import NAMED

from . import Report
from .arrays import normal
from .timing import event_seconds, kernel_seconds, rate

REGULAR = NAMED["regular"]
_LATTICES = (375, 80, 16), (375, 80, 64), (1000, 200, 16), (1000, 200, 64)  # T, U, B
_TOY_LATTICE = 36, 35, 2  # more columns than a warp has threads
_HIDDEN = 640
_WIDTHS = 1024, 1025, 1032, 4096
_TILES = 1024, 4096, 8192, 16384, 65536  # from the smallest of a small budget to the largest
_TYPES = np.float64, np.float32, np.float16, ml_dtypes.bfloat16
_ENOUGH_SECONDS = 0.01  # of products that are timed together


def sweeps(report: Report) -> None:
    """Every kernel of a lattice: nanoseconds a diagonal, of which a sample has T + U."""
    for frames, labels, size in [_TOY_LATTICE] if report.small else _LATTICES:
        label = f"T {frames}, U {labels}, B {size}"
        if not report.has_time(label):
            continue
        times: dict[str, float] = {}
        for run in (_solving, _forward_only, _certifying):
            prefix = "cost only: " if run is _forward_only else ""
            called = kernel_seconds(run(frames, labels + 1, size), report.small)
            times |= {prefix + name: seconds for name, seconds in called.items()}
        diagonals = {name: 1e9 * value / (frames + labels) for name, value in times.items()}
        shown = ", ".join(f"{name} {value:.0f}" for name, value in diagonals.items())
        report(
            f"{label}: ns a diagonal: {shown}",
            lattice=[frames, labels, size],
            seconds=times,
            ns_a_diagonal=diagonals,
        )
        cupy().get_default_memory_pool().free_all_blocks()


def _all_cells(frames: int, columns: int, size: int) -> tuple[Cells, Any, Any]:
    """All cells of a batch of equal samples, scores of a half, (K, cells), and log-sum-exps."""
    xp, cells = cupy(), _cells(frames, columns, size)
    return cells, xp.full((2, len(cells)), np.log(0.5)), xp.zeros((1, len(cells)))


def _cells(frames: int, columns: int, size: int, count: int | None = None) -> Cells:
    """The first cells of a batch of equal samples, by default all."""
    packed = cupy().arange(size * frames * columns if count is None else count)
    return Cells(packed, _tables(frames, columns, size)[1], cuda.coordinates)


def _tables(frames: int, columns: int, size: int, width: int = 2) -> tuple[Any, Any]:
    """A row of so many logits, and equal samples."""
    lengths = np.full(size, frames), np.full(size, columns)
    labels = np.zeros((size, columns), np.int64)
    return cuda.tables(REGULAR.row(width, 0), *lengths, labels)


def _solving(frames: int, columns: int, size: int, gradient: bool = True) -> Callable[[], Any]:
    cells, halves, lse = _all_cells(frames, columns, size)

    def run() -> None:
        _, samples = _tables(frames, columns, size)
        lattice = cuda.exact_lattice(REGULAR, samples, gradient, 0.0, lse.dtype)
        lattice.write(cells, lse, halves)
        lattice.solve()

    return run


def _forward_only(frames: int, columns: int, size: int) -> Callable[[], Any]:
    return _solving(frames, columns, size, gradient=False)


def _certifying(frames: int, columns: int, size: int) -> Callable[[], Any]:
    """Bounds of selection, where every other cell is computed."""
    xp = cupy()
    cells, halves, lse = _all_cells(frames, columns, size)
    bounds = xp.full(halves.shape, np.log(0.6))
    some = Cells(cells.packed[::2].copy(), cells.samples, cuda.coordinates)
    of_some = lse[:, ::2].copy(), halves[:, ::2].copy()
    least = np.full(size, -np.inf)

    def run() -> None:
        _, samples = _tables(frames, columns, size)
        lattice = cuda.bounded_lattice(REGULAR, samples, True, 0.0, lse.dtype)
        lattice.bound(bounds)
        lattice.candidates(least)
        lattice.write(some, *of_some)
        lattice.certify()

    return run


def products(report: Report) -> None:
    """cuBLAS on tiles of every size, in every type: of logits, d weight and d hidden."""
    for dtype in map(np.dtype, _TYPES):
        for width in [9] if report.small else _WIDTHS:
            label = f"{dtype.name}, V {width}"
            if report.has_time(label):
                _products_of(report, label, dtype, width)


def _products_of(report: Report, label: str, dtype: np.dtype, width: int) -> None:
    tera: dict[str, dict[int, float]] = {}
    hidden_size = 6 if report.small else _HIDDEN
    for rows in [8] if report.small else _TILES:
        for name, (run, multiplied) in _three_products(dtype, rows, width, hidden_size).items():
            seconds = _seconds_of_one(run, 1 if report.small else 200)
            tera.setdefault(name, {})[rows] = rate(2e-12 * multiplied, seconds)
    shown = (f"{name} " + "/".join(f"{x:.0f}" for x in of.values()) for name, of in tera.items())
    report(f"{label}: TFLOP/s by rows: {', '.join(shown)}", products=label, tflops=tera)


def _seconds_of_one(run: Callable[[], Any], most: int) -> float:
    """Of many in a row, so that the GPU does not wait for the host."""
    run()
    repeats = min(most, 1 + int(_ENOUGH_SECONDS / max(event_seconds(run), 1e-5)))

    def several() -> None:
        for _ in range(repeats):
            run()

    return event_seconds(several) / repeats


def _three_products(
    dtype: np.dtype, rows: int, width: int, hidden_size: int
) -> dict[str, tuple[Callable[[], Any], int]]:
    """As a joint makes them: what runs each, and its multiply-adds. A hidden vector of half types
    is two, and products of half types are float32."""
    halves = cuda.factor_dtype(dtype) is not None
    out_dtype = np.dtype(np.float32) if halves else dtype
    depth = hidden_size * (2 if halves else 1)
    factors, weight = normal(dtype, rows, depth), normal(dtype, width, depth)
    d_logits = normal(dtype, rows, width)
    logits, d_weight, d_hidden = (
        cupy().zeros(shape, out_dtype)
        for shape in ((rows, width), (width, hidden_size), (rows, hidden_size))
    )
    hidden, first = factors[:, :hidden_size], weight[:, :hidden_size]
    count = rows * width * hidden_size
    return {
        "logits": (lambda: cuda.matmul(factors, weight.T, logits), rows * width * depth),
        "d_weight": (lambda: cuda.add_matmul(d_logits.T, hidden, d_weight), count),
        "d_hidden": (lambda: cuda.matmul(d_logits, first, d_hidden), count),
    }


def rows(report: Report) -> None:
    """Kernels on the rows of a tile: gigabytes a second, of those that memory has to move."""
    for count in [40] if report.small else (4096, 16384):
        for dtype in map(np.dtype, (np.float32, ml_dtypes.bfloat16)):
            label = f"{count} rows, {dtype.name}"
            if not report.has_time(label):
                continue
            width, hidden_size = (130, 64) if report.small else (1024, _HIDDEN)
            run = _row_kernels(count, width, hidden_size, dtype)
            times = kernel_seconds(run, report.small)
            rates = _rates(times, count, width, hidden_size, dtype)
            shown = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
            report(
                f"{label}: GB/s: {shown}",
                rows=count,
                dtype=dtype.name,
                seconds=times,
                gigabytes_a_second=rates,
            )


def _row_kernels(rows: int, width: int, hidden_size: int, dtype: np.dtype) -> Callable[[], Any]:
    """All of the operations on a tile of a joint, once."""
    xp, float32 = cupy(), np.dtype(np.float32)
    samples = 2
    frames = -(-rows // (4 * samples))
    encoder = normal(dtype, samples * frames, hidden_size).reshape(samples, frames, hidden_size)
    predictor = normal(dtype, samples * 4, hidden_size).reshape(samples, 4, hidden_size)
    cells, packed = _cells(frames, 4, samples, rows), xp.arange(rows)
    inputs = JointInputs(encoder, predictor, None, None)
    factor = cuda.factor_dtype(dtype)
    pre = normal(float32, rows, hidden_size)
    factors = pre.copy() if factor is None else xp.empty((rows, 2 * hidden_size), factor)
    hidden_rows = HiddenRows(inputs, cells, "tanh", pre, factors)
    logits, bias = normal(float32, rows, width), xp.zeros(width, float32)
    d_logits = logits.copy() if factor is None else xp.empty((rows, width), factor)
    d_bias = xp.zeros((cuda.bias_rows(rows), width), float32)
    d_hidden = normal(float32, rows, hidden_size)
    sums = InputSums(*(xp.zeros((samples * n, hidden_size), float32) for n in (frames, 4)))
    layout, group = _tables(frames, 4, samples, width)
    of_logits = LogitRows(logits, bias, layout, cells, None)
    of_tile = of_logits._replace(logits=d_logits if factor is None else logits)
    halves, lse = xp.full((2, rows), 0.5, float32), xp.full((1, rows), np.log(width))
    posteriors = RowPosteriors(lse, halves, xp.ones(samples), -1.0)
    output, gathered = OutputSums(None, d_bias, None), xp.empty((rows, width), float32)

    def run() -> None:
        cells.known.clear()  # as of a new list, whose frames are found anew
        cuda.hidden(hidden_rows)
        cuda.row_scores(of_logits)
        cuda.logits_grad(of_tile, posteriors, d_logits, None, output)
        cuda.add_input_grad(d_hidden, hidden_rows, group, sums)
        cuda.gather(logits, (packed,), gathered)
        cuda.scatter(gathered, (packed,), logits)
        cuda.label_softmax(of_logits._replace(logits=gathered), dtype)

    return run


def _rates(
    times: dict[str, float], rows: int, width: int, hidden_size: int, dtype: np.dtype
) -> dict[str, float]:
    """Gigabytes a second of the kernels that take an item a row, by the bytes of costs.py."""
    rates = {}
    for name, seconds in times.items():
        if name == "frame_starts":
            continue
        call = costs.Engine(costs.Batch(0, 0, rows), width, hidden_size, dtype.itemsize)
        call.launch("alone", rows, name)
        rates[name] = rate(1e-9 * call.operations[-1].work.bytes, seconds)
    return rates
