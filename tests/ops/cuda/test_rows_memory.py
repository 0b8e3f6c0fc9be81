"""Kernels on rows at far addresses, and their results for any schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cupy_rnnt.ops import numpy as cpu
from cupy_rnnt.ops.cuda import launch
from cupy_rnnt.ops.cuda import rows as cuda_rows
from cupy_rnnt.ops.cuda import samples as cuda_samples
from cupy_rnnt.ops.cuda.inputs import NO_DROPOUT
from cupy_rnnt.ops.types import LogitRows, RowPosteriors
from cupy_rnnt.transducer import LABEL_COLUMN, Row, RowHead

from ... import ptxemu
from .. import row_cases
from ..row_cases import OPERATIONS, Device, table_of
from .kernel_resources import CUPY_OPTIONS
from .test_rows import every_operation

FAR = 2**24  # rows, or chunks of rows: with 200 elements each, bytes beyond 2**33
WIDTH = 200


@every_operation
@pytest.mark.slow
def test_the_same_bits_for_any_schedule(gpu, name, dtype, monkeypatch):
    operation, results = OPERATIONS[name], []
    for seed, blocks in enumerate((2**16, 1, 3)):
        if gpu.name.startswith("emulated"):
            monkeypatch.setattr(gpu.xp.kernels.options, "seed", seed)
        monkeypatch.setattr(launch, "MOST_BLOCKS", blocks)
        found = operation.case(Device(gpu.xp), dtype, 2100, np.random.default_rng(0))
        results.append([gpu.asnumpy(each).tobytes() for each in found])
    assert results[0] == results[1] == results[2]


def shifted(array: np.ndarray, first: int) -> ptxemu.Offset:
    """The array as the part, from a first row on, of one that would be too large."""
    return ptxemu.Offset(array, -first * array[0].nbytes)


def run_far(
    source: str, expression: str, first_block: int, *arguments: Any, shared_bytes: int = 0
) -> None:
    """Run one block of a kernel that is far behind the others of its launch."""
    text = launch.source_text(source)
    text = text.replace("blockIdx.x", f"({first_block}u + blockIdx.x)")
    text = text.replace("gridDim.x", "(1u << 30)")
    options = *launch.OPTIONS, *CUPY_OPTIONS
    module = ptxemu.Module(text, options=options, name_expressions=[expression])
    kernel = next(kernel for kernel in launch.KERNELS if expression.split("<")[0] == kernel.name)
    module.get_function(expression)(1, kernel.block, arguments, shared_bytes)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


ROWS, WARPS = 8, 1
FAR_ROWS = FAR + ROWS, WIDTH, WARPS


def table_of_samples(frames, positions):
    """The arguments of a kernel for a table of samples."""
    return cuda_samples._totals(np.array(frames), np.array(positions)), len(frames)


def of_batch(frames, positions, labels):
    """The arguments of a kernel for a batch."""
    return *table_of_samples(frames, positions), labels


def labelled(rows):
    """Cells of one frame whose labels are their numbers: for NumPy, and the arguments of a kernel
    for cells that are in far places of their list."""
    cells = row_cases.labelled(row_cases.Host(), np.arange(rows))
    samples = cells.samples
    return cells, (shifted(cells.packed, FAR), *of_batch(*samples.counts, samples.next_labels))


def test_far_cells_of_far_samples():
    """The first sample has all cells that are not here."""
    encoder, predictor = random(3, WIDTH), random(4, WIDTH)
    out = ptxemu.empty((ROWS, WIDTH))
    frame, position = (np.arange(ROWS) % extent for extent in (3, 4))
    packed = FAR + 4 * frame + position
    batch = of_batch([FAR // 4, 3], [4, 4], np.zeros(8, int))
    run_far(
        "hidden.cu",
        "hidden<float, Identity>",
        FAR // 8,
        *(shifted(encoder, FAR), FAR * WIDTH, WIDTH, 1),
        *(shifted(predictor, FAR), FAR * WIDTH, WIDTH, 1),
        *(shifted(packed, FAR), *batch),
        *FAR_ROWS,
        *NO_DROPOUT,
        shifted(out, FAR),
    )
    expected = encoder[frame] + predictor[position]
    np.testing.assert_array_equal(out, expected)


def test_far_rows_to_and_fro():
    source, target = random(2, 3, 4, WIDTH), np.zeros((2, 3, 4, WIDTH), np.float32)
    tile = ptxemu.empty((ROWS, WIDTH))
    index = np.unravel_index(np.arange(0, 24, 3), (2, 3, 4))
    far = [
        shifted(np.ascontiguousarray(values) + FAR * (k == 0), FAR)
        for k, values in enumerate(index)
    ]
    strides = 12 * WIDTH, 4 * WIDTH, WIDTH, 1
    args = shifted(source, FAR), *strides, *far, *FAR_ROWS, shifted(tile, FAR)
    run_far("gather.cu", "gather<float>", FAR // 8, *args)
    np.testing.assert_array_equal(tile, source[index])
    args = shifted(tile, FAR), *far, *FAR_ROWS, shifted(target, FAR), *strides
    run_far("gather.cu", "scatter<float>", FAR // 8, *args)
    np.testing.assert_array_equal(target[index], source[index])


# Scores and heads are as far apart as there are rows, and the rows between them are not here: a
# softmax at both sides of a column and a score under it, at a fixed column or that of the label.
HEADS = (RowHead(((0, 5), (6, WIDTH)), True, True),)
one_score = pytest.mark.parametrize(
    "row",
    [Row(WIDTH, (column,), HEADS, ((0,),), (0.5,), WIDTH, ()) for column in (7, LABEL_COLUMN)],
)


@one_score
@pytest.mark.parametrize("threads", [32, 256])
def test_far_rows_of_logits(threads, row):
    rows = 256 // threads
    logits, (cells, of_cells) = random(rows, WIDTH), labelled(rows)
    results = [ptxemu.empty(rows, np.float64) for _ in range(2)]
    run_far(
        "row_scores.cu",
        f"row_scores<float, {threads}>",
        FAR // rows,
        *(shifted(logits, FAR), None, *table_of(row), *of_cells, FAR + rows, WIDTH),
        *(shifted(results[0], FAR), FAR + rows, shifted(results[1], FAR), *cuda_rows._NO_LATTICE),
    )
    expected = cpu.row_scores(LogitRows(logits, None, row, cells, np.empty_like(logits)))
    np.testing.assert_allclose(results, np.concatenate(expected), rtol=1e-6)


@one_score
def test_far_rows_of_gradients(row):
    logits, occupancy, (cells, of_cells) = random(ROWS, WIDTH), abs(random(ROWS)), labelled(ROWS)
    rows = LogitRows(logits.copy(), None, row, cells, np.empty_like(logits))
    lse, _ = cpu.row_scores(rows)
    weights, sums = np.ones(1), np.zeros((1, WIDTH), np.float32)
    cpu.logits_grad(rows, RowPosteriors(lse, occupancy[None], weights, -1.0))
    far = [shifted(values, FAR) for values in (logits, lse[0], occupancy)]
    softmax = *table_of(row), far[1], FAR, -45.0, far[2], FAR, np.inf, *of_cells, weights
    places = FAR + ROWS, WIDTH, shifted(sums, FAR // 32), far[0]
    strips = 2  # of a warp, which has 32 rows
    first = FAR // 32 * strips // 8
    run_far(
        "logits_grad.cu",
        "logits_grad<float, float, 4>",
        first,
        far[0],
        None,
        None,
        *softmax,
        *places,
    )
    np.testing.assert_allclose(logits, rows.logits, atol=1e-6)
    np.testing.assert_allclose(sums[0], logits.sum(axis=0), atol=1e-5)


def test_far_rows_of_weights():
    sums, gradient = random(8, WIDTH), ptxemu.empty((8, WIDTH))
    far = [shifted(values, FAR) for values in (sums, gradient)]
    args = far[0], None, None, FAR + 8, WIDTH, 0, 0, far[1], WIDTH, 1, None, 0
    run_far("output_grads.cu", "write_output_grads<float>", FAR // 8, *args)
    np.testing.assert_array_equal(gradient, sums)
