"""Sectors of memory that every kernel touches, beside the bytes that it is asked for. No GPU.

``python -m tests.ops.cuda.kernel_sectors`` writes docs/kernels_sectors.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from benchmarks.costs import KERNELS, SECTOR, Work
from cupy_rnnt.ops import cuda
from cupy_rnnt.ops.cuda import products
from cupy_rnnt.ops.cuda import rows as cuda_rows
from cupy_rnnt.ops.types import (
    Cells,
    Forms,
    HiddenRows,
    JointInputs,
    Logistic,
    LogitRows,
    OutputSums,
    ReferenceRows,
    Rounding,
    RowPosteriors,
    TangentRows,
    compute_dtype,
)
from cupy_rnnt.transducer import NAMED, Transducer

from ... import devices
from ...devices import Device
from ...helpers import layout_of, samples_of
from ...ptxemu.compile import nvrtc_version
from ...transducers.cases import tdt
from ..lattice_cases import Side, random_case
from ..row_cases import ALL, COMPUTE
from .kernel_resources import ROOT
from .test_bounds import on_gpu, random_inputs, row_of

TABLE = ROOT / "docs" / "kernels_sectors.rst"
ROWS = 24
WIDTHS = {"V": (1024, 4096), "H": (512, 640)}
LATTICE = 150, 64  # frames, positions


class Traffic(NamedTuple):
    """Of some launches: what they had to do, the bytes of the sectors that they touched, their
    instructions by class, and how often shared memory made threads wait for each other."""

    work: Work
    touched: int
    instructions: dict[str, int]
    conflicts: int

    @property
    def asked(self) -> float:
        """Bytes that threads ask for."""
        return self.work.bytes + self.work.cached

    @property
    def least(self) -> float:
        """Bytes of sectors for each of them, if none is touched in vain."""
        return self.work.touched / self.asked

    @property
    def found(self) -> float:
        return self.touched / self.asked


@contextmanager
def counting() -> Iterator[Device]:
    """An emulated device that counts what its kernels do."""
    with devices.emulated() as found:
        options = found.xp.kernels.options
        before, options.counters = options.counters, True
        try:
            yield found
        finally:
            options.counters = before


def traffic(gpu: Device, work: Work, kernel: str = "") -> Traffic:
    """Of all launches since these were cleared, or of the last one of a kernel."""
    launched = [each for each in gpu.xp.kernels.launches if each.kernel.startswith(kernel)]
    counters = [each.report.counters for each in (launched[-1:] if kernel else launched)]
    names = "global_load_sectors", "global_store_sectors"
    sectors = sum(each.get(name, 0) for each in counters for name in names)
    classes = {
        name: sum(each["lane_instructions"].get(name, 0) for each in counters)
        for name in ("fp32", "special", "fp64")
    }
    conflicts = sum(each.get("shared_conflicts", 0) for each in counters)
    return Traffic(work, SECTOR * sectors, classes, conflicts)


# Operations on rows: each runs on the device, and says what it took.


def work(kernel: str, dtype: np.dtype, width: int, items: float = ROWS) -> Work:
    sizes = dtype.itemsize, compute_dtype(dtype).itemsize
    return KERNELS[kernel].work(width, *sizes).times(items)


def ones(gpu: Device, *shape: int, dtype: Any = np.float64) -> Any:
    return gpu.asarray(np.ones(shape), dtype)


def some_cells(gpu: Device, count: int = ROWS) -> Cells:
    """Of one frame of one sample, each with the label of its own number."""
    samples = samples_of(cuda, [1], [count + 1], np.arange(count + 1)[None])
    return Cells(gpu.asarray(np.arange(count)), samples, cuda.coordinates)


def hidden(gpu: Device, dtype: np.dtype, width: int) -> Work:
    pre, halves = gpu.xp.empty((ROWS, width), compute_dtype(dtype)), 1 + (dtype.itemsize == 2)
    out = gpu.xp.empty((ROWS, halves * width), dtype)
    inputs = ones(gpu, 1, 1, width, dtype=dtype), ones(gpu, 1, ROWS + 1, width, dtype=dtype)
    rows = JointInputs(*inputs, None, None), some_cells(gpu), "tanh", pre, out
    cuda.hidden(HiddenRows(*rows))
    return work("hidden", dtype, width)


def plain_row(width: int, normalised: bool = False) -> Any:
    return layout_of(cuda, NAMED["regular"].row(width, 0, normalised))


def row_scores(gpu: Device, dtype: np.dtype, width: int) -> Work:
    """With a bias; logits of half types are given ones, and have none."""
    bias = ones(gpu, width, dtype=dtype) if dtype in COMPUTE else None
    logits = ones(gpu, ROWS, width, dtype=dtype)
    cuda_rows.row_scores(LogitRows(logits, bias, plain_row(width), some_cells(gpu), None))
    found = work("row_scores", dtype, width)
    return found if bias is not None else found + Work(cached=-width * ROWS * 4)


def logits_grad(gpu: Device, dtype: np.dtype, width: int) -> Work:
    compute, count = compute_dtype(dtype), 32
    logits, bias = ones(gpu, count, width, dtype=compute), ones(gpu, width, dtype=compute)
    sums = OutputSums(None, ones(gpu, 1, width, dtype=compute), None)
    rows = LogitRows(logits, bias, plain_row(width), some_cells(gpu, count), None)
    out, numbers = gpu.xp.empty((count, width), dtype), gpu.asarray(np.arange(count))
    cuda_rows.logits_grad(rows, posteriors(gpu, count, 1, compute, 0.5), out, numbers, sums)
    return work("logits_grad", dtype, width, count)


def posteriors(
    gpu: Device, count: int, heads: int, compute: np.dtype, clamp: float
) -> RowPosteriors:
    lse, occupancies = ones(gpu, heads, count), ones(gpu, 2, count, dtype=compute)
    return RowPosteriors(lse, occupancies, ones(gpu, 1), clamp)


def gradient_under_no_head(gpu: Device, dtype: np.dtype, width: int) -> Work:
    """Which reads neither logits nor a bias."""
    compute, count = compute_dtype(dtype), 32
    grad, cells = gpu.xp.empty((count, width), dtype), some_cells(gpu, count)
    rows = LogitRows(grad, None, plain_row(width, normalised=True), cells, None)
    cuda_rows.logits_grad(rows, posteriors(gpu, count, 0, compute, -1.0))
    nbytes, strips = width * compute.itemsize, width / (128 if compute.itemsize == 4 else 32)
    # The logits, the sums, the bias; numbers and log-sum-exps.
    unread = Work(bytes=-nbytes * 17 / 16 - 16, cached=-nbytes / 32 - 16 * (strips - 1))
    return work("logits_grad", dtype, width, count) + unread.times(count)


def gather(gpu: Device, dtype: np.dtype, width: int) -> Work:
    source = ones(gpu, 30, width, dtype=dtype)
    tile = gpu.xp.empty((ROWS, width), compute_dtype(dtype))
    cuda_rows.gather(source, (gpu.asarray(np.arange(ROWS)),), tile)
    return work("gather", dtype, width)


def scatter(gpu: Device, dtype: np.dtype, width: int) -> Work:
    tile, index = ones(gpu, ROWS, width, dtype=compute_dtype(dtype)), np.arange(ROWS)
    target = ones(gpu, 6, 5, width, dtype=dtype)
    cuda_rows.scatter(tile, (gpu.asarray(index // 5), gpu.asarray(index % 5)), target)
    return work("scatter", dtype, width)


def label_softmax(gpu: Device, dtype: np.dtype, width: int) -> Work:
    compute = compute_dtype(dtype)
    bias, logits = ones(gpu, width, dtype=compute), ones(gpu, ROWS, width, dtype=compute)
    cuda.label_softmax(LogitRows(logits, bias, plain_row(width), None, None), dtype)
    return work("label_softmax", dtype, width)


def write_output_grads(gpu: Device, dtype: np.dtype, width: int) -> Work:
    """Of 40 sums of the bias."""
    size, rows, compute = 32, 40, compute_dtype(dtype)
    sums = ones(gpu, width, size, dtype=compute), ones(gpu, rows, width, dtype=compute)
    gradients = gpu.xp.empty((width, size), dtype), gpu.xp.empty(width, dtype)
    cuda_rows.write_output_grads(*sums, None, *gradients)
    of_bias = Work(width * (rows * compute.itemsize + dtype.itemsize))
    return work("write_output_grads", dtype, size, width) + of_bias


def split(gpu: Device, dtype: np.dtype, width: int) -> Work:
    """Of as many rows of either factor."""
    a, b = ones(gpu, ROWS, width, dtype=dtype), ones(gpu, ROWS, width, dtype=dtype)
    products._split(a, b.T)
    return work("split", dtype, width, 2 * ROWS)


def scaled_weights(gpu: Device, dtype: np.dtype, width: int) -> Work:
    cuda_rows.scaled_weights(ones(gpu, width), 1.0, np.dtype(np.float16))
    return work("scaled_weights", dtype, 0, width)


def joint(gpu: Device, dtype: np.dtype, hidden: int, frames: int) -> tuple[JointInputs, Any]:
    """The inputs of two samples, and the samples."""
    shapes = (2, frames, hidden), (2, 5, hidden), (30, hidden)
    inputs = JointInputs(*(ones(gpu, *shape, dtype=dtype) for shape in shapes), None)
    return inputs, samples_of(cuda, [frames, frames], [5, 5], np.ones((2, 5), np.int64))


def fold_rows(gpu: Device, dtype: np.dtype, width: int) -> Work:
    means, magnitudes = cuda.means(*joint(gpu, dtype, width, 155))
    return work("fold_rows", dtype, width, 320) + Work(means.nbytes + magnitudes.nbytes)


def row_sums(gpu: Device, dtype: np.dtype, width: int) -> Work:
    cuda.row_sums(ones(gpu, ROWS, width, dtype=dtype))
    return work("row_sums", dtype, width)


def slack(gpu: Device, dtype: np.dtype, width: int) -> Work:
    _, samples = joint(gpu, dtype, 8, 9)
    sizes = ones(gpu, 2, 2, 8, dtype=dtype), *(ones(gpu, width, dtype=dtype) for _ in range(2))
    logistic, rounding = ("tanh", Logistic(2.0, -2.0, 1.0)), Rounding(*[1.0] * 7)
    cuda.slack(samples, *sizes, plain_row(width), logistic, rounding)
    return work("slack", dtype, width, 2)


def reference_hidden(gpu: Device, dtype: np.dtype, width: int) -> Work:
    inputs, samples = joint(gpu, dtype, width, ROWS)
    means = ones(gpu, 2, 2, width, dtype=compute_dtype(dtype))
    out = gpu.xp.empty((ROWS, width), dtype)
    rows = ReferenceRows(samples, 0, 0, ROWS)
    cuda.reference_hidden(rows, inputs, means, "tanh", None, out)
    return work("reference_hidden", dtype, width)


def write_tangents(gpu: Device, dtype: np.dtype, width: int) -> Work:
    """Of positions: two vectors of weights, a slope and an input each."""
    inputs, samples = joint(gpu, dtype, width, ROWS)
    compute, fits = compute_dtype(dtype), gpu.asarray(np.zeros(2, bool))
    tangents = ones(gpu, 10, width, dtype=compute), ones(gpu, 10), ones(gpu, 10)
    shapes = ((10, width), compute), ((10, 3, width), compute), ((10, 3), np.float64)
    out = TangentRows(*(gpu.xp.empty(*shape) for shape in shapes))
    forms = Forms("relu", Logistic(0.0, 1.0, 0.0), fits, None)
    rows = ReferenceRows(samples, 1, 0, 10)
    cuda.write_tangents(rows, inputs, plain_row(30), forms, tangents, out)
    slopes = Work((compute.itemsize - dtype.itemsize) * width + 16).times(10)
    return work("write_tangents", dtype, width, 40) + slopes


def bounds(
    gpu: Device, dtype: np.dtype, width: int, transducer: Transducer = NAMED["regular"]
) -> Work:
    """And the logits of all scores but the last one and the label's, by groups of three."""
    frames, columns = lengths = 64, 32
    row, cells = row_of(transducer), frames * columns
    rng = np.random.default_rng(5)
    inputs = random_inputs(rng, width, dtype, None, [lengths], 0, row)
    on_gpu(gpu, inputs)
    others = len(row.columns) - 2
    rows = Work(16 * others).times(cells)  # written twice, and read between
    groups = work("exact_logits", dtype, width, cells * -(-others // 3))
    return work("bounds", dtype, width, cells) + (groups + rows if others else Work())


class Case(NamedTuple):
    run: Callable[..., Work]
    width: str
    dtypes: tuple[np.dtype, ...] = COMPUTE


CASES = {
    "bounds": Case(bounds, "H"),
    "bounds of three more scores": Case(partial(bounds, transducer=tdt(range(4))), "H"),
    "fold_rows": Case(fold_rows, "H", ALL),
    "gather": Case(gather, "V", ALL),
    "hidden": Case(hidden, "H", ALL),
    "label_softmax": Case(label_softmax, "V", ALL),
    "logits_grad": Case(logits_grad, "V", ALL),
    "logits_grad under no head": Case(gradient_under_no_head, "V", ALL),
    "reference_hidden": Case(reference_hidden, "H", ALL),
    "row_scores": Case(row_scores, "V", ALL),
    "row_sums": Case(row_sums, "H", ALL),
    "scatter": Case(scatter, "V", ALL),
    "slack": Case(slack, "V"),
    "split": Case(split, "H", COMPUTE[:1]),
    "write_tangents": Case(write_tangents, "H", ALL),
    "scaled_weights": Case(scaled_weights, "V", COMPUTE[1:]),
    "write_output_grads of a bias": Case(write_output_grads, "V", ALL),
}
ON_LATTICES = (
    "best_path",
    "best_sweep",
    "count_marks",
    "lattice_bound",
    "lattice_keep",
    "lattice_leaving",
    "lattice_mark",
    "lattice_posteriors",
    "lattice_sweep",
    "lattice_write",
    "write_indices",
)


Found = dict[tuple[str, np.dtype], Traffic]
"""Of an operation, by the size and the type."""


def of_case(gpu: Device, name: str) -> Found:
    found, (run, width, dtypes) = {}, CASES[name]
    for size, dtype in product(WIDTHS[width], dtypes):
        gpu.xp.kernels.launches.clear()
        found[f"{width} = {size}", dtype] = traffic(gpu, run(gpu, dtype, size))
    return found


def of_lattices(gpu: Device) -> dict[str, Found]:
    """Of all kernels on lattices, with a round of selection."""
    case = random_case(np.random.default_rng(11), [LATTICE])
    side, cells = Side(case, gpu), len(case.cells.sample)
    best = side.made("BestLattice", True)
    side.write(best, slice(None))
    best.certify()
    lattice = side.exact()
    side.costs(lattice)
    lattice.keep(np.full(1, 1e-300))
    # As of the reports that follow, so that the last launch of each kernel has all cells.
    packed, dtype = gpu.asarray(np.arange(cells)), np.dtype(np.float32)
    lattice.posteriors(packed, 1.0, dtype, 0.0)
    bounded = side.bounded()
    bounded.candidates(np.full(1, -4.0))
    bounded.certify()
    double, size = np.dtype(np.float64), "{} x {}".format(*LATTICE)
    items = dict.fromkeys(ON_LATTICES, cells) | {"lattice_sweep": 3 * cells}  # in three ways
    items |= {"best_sweep": 2 * cells, "best_path": sum(LATTICE) - 1}  # in two
    return {
        name: {(size, double): traffic(gpu, work(name, double, 0, items[name]), name)}
        for name in ON_LATTICES
    }


def rows(name: str, found: Found) -> list[str]:
    """Of the table: a row for each size, a column for each type."""
    made = []
    for size in dict.fromkeys(size for size, _ in found):
        of_size = [found.get((size, dtype)) for dtype in ALL]
        least = next(each for each in of_size if each).least
        cells = ["" if each is None else f"{each.found:.2f}" for each in of_size]
        made.append(", ".join([f'    "{name}"', size, f"{least:.2f}", *cells]).rstrip(", "))
    return made


def compiler() -> str:
    """Its name and version."""
    return "NVRTC {}.{}".format(*nvrtc_version())


def table() -> str:
    """As reStructuredText."""
    with counting() as gpu:
        found = {name: of_case(gpu, name) for name in CASES} | of_lattices(gpu)
    lines = [line for name, of_name in found.items() for line in rows(name, of_name)]
    heads = ", ".join(dtype.name for dtype in ALL)
    return PAGE.format(compiler=compiler(), heads=heads, rows="\n".join(lines))


PAGE = """\
.. Written by ``python -m tests.ops.cuda.kernel_sectors``.

Memory traffic of the kernels
=============================

A GPU moves memory by sectors of 32 bytes. If the threads of a warp ask for words that lie side by
side, all bytes of a sector are used; if the words lie apart, each takes a sector of its own. The
table has the bytes of all sectors that a kernel touches, for each byte that its threads ask for. It
is counted, not measured: by an emulator that runs the PTX of the kernels ({compiler}, compute
capability 8.0), launched as the package launches them, with rows of V entries of the vocabulary or
of H hidden values, or a lattice of T frames by U + 1 positions. No cache is counted.

*Least* is 1 where words lie side by side. It is more in these places, and nowhere else:

- A lattice is stored by anti-diagonals, cells by frame and position. ``lattice_write``,
  ``lattice_mark``, ``lattice_keep``, ``lattice_posteriors`` and ``lattice_bound`` go from the one
  order to the other, and so does ``row_scores`` where it writes to a lattice, as it does not here:
  words of 8 bytes lie apart on one of the sides. The other words of a sector are used by warps that
  run soon after, and come from the cache or wait in it.

.. csv-table::
    :header: kernel, size, least, {heads}

{rows}

``bounds`` of more scores than those of blank and label are with ``exact_logits``. Each row of
``label_softmax`` is read twice, and each of ``bounds``
by all tiles that it is part of; the table counts all of them as asked for. On which rows, and how
many: ``tests/ops/cuda/kernel_sectors.py``.
"""


if __name__ == "__main__":
    TABLE.write_text(table())
