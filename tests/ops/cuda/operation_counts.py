"""What a call asks of a device, on the emulated one, and how many there are of what asks for it.

``python -m tests.ops.cuda.operation_counts`` prints the calls that ``test_operation_counts.py``
checks, and the coefficients that fit them best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import ml_dtypes
import numpy as np

import cupy_rnnt
from benchmarks.costs import Parts
from cupy_rnnt.engine import selection
from cupy_rnnt.engine.passes import Passes, Stored
from cupy_rnnt.engine.work import Work
from cupy_rnnt.ops import cuda
from cupy_rnnt.ops.types import Sizes

from ... import devices
from ...device_calls import running_on, to_device
from ...emulated import arrays
from ...engine.selection.test_engine import selected, trained

# The functions that a tile runs, by what they do.
_TILES = {
    "_bounds.<locals>.linearize": "references",
    "_bounds.<locals>.bound": "references",
    "Passes._compute.<locals>.tile": "pass 1",
    "Passes.second.<locals>.tile": "pass 2",
}


class Counted(NamedTuple):
    parts: Parts
    operations: Counter
    waits: int


class Case(NamedTuple):
    """A batch whose cells are selected, and the sizes of the work that the device is given."""

    size: int
    alone: bool = False
    """Whether each sample is a group."""
    rows: int = 2**13
    """Of a tile."""
    stored: int = 2**62
    """Bytes of logits for pass 2."""
    astray: bool = False
    """Whether the first round chooses too few cells."""
    hidden: int = 130

    def sizes(self, sizes: Sizes) -> Sizes:
        """As if rows of logits needed no padding."""
        sizes = sizes._replace(full_rows=self.rows, tile_elements=1, columns=1)
        sizes = sizes._replace(stored_bytes=self.stored, least_stored=0)
        return sizes._replace(group_cells=1, group_width=1) if self.alone else sizes


CASES = (
    Case(1),
    Case(2, alone=True),
    Case(3, alone=True, astray=True),
    Case(3, alone=True, stored=0),
    Case(3, alone=True, stored=0, astray=True),
    Case(3, alone=True, stored=2000, astray=True),
    Case(3, rows=100),
    Case(3, rows=100, astray=True),
    Case(3, rows=60, stored=0),
    Case(4, alone=True, rows=50, stored=1000),
    Case(4, rows=40, hidden=16),
)


DTYPES = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


@contextmanager
def _counting_parts(into: Counter) -> Iterator[None]:
    run, certify = Work.run, selection.Selected.certify
    first, end = Passes.first, Stored.end

    def counted_run(self: Work, tile: Any, *arguments: Any, **options: Any) -> None:
        def counted(worker: int, part: Any) -> None:
            into[_TILES[tile.__qualname__]] += 1
            tile(worker, part)

        run(self, counted, *arguments, **options)

    def counted_certify(self: Any, *arguments: Any) -> Any:
        found = certify(self, *arguments)
        into["further rounds"] += found[1] - 1
        return found

    def counted_first(self: Passes, *arguments: Any) -> Any:
        into["groups"] += 1
        return first(self, *arguments)

    def counted_end(self: Stored, computed: int, rounds: int) -> None:
        end(self, computed, rounds)
        into["incomplete"] += len(self._cells) > 0 and not self._complete

    with (
        mock.patch.object(Work, "run", counted_run),
        mock.patch.object(selection.Selected, "certify", counted_certify),
        mock.patch.object(Passes, "first", counted_first),
        mock.patch.object(Stored, "end", counted_end),
    ):
        yield


def count(case: Case, dtype: np.dtype) -> Counted:
    """Of loss and gradients, on the emulated device that is in place of CuPy, of inputs of a
    dtype."""
    lengths = np.full(case.size, 30), np.full(case.size, 9)
    joint = trained(size=case.size, hidden=case.hidden, lengths=lengths)
    joint = to_device((*(array.astype(dtype) for array in joint[:4]), *joint[4:]))
    before, waits, parts = arrays.operations.copy(), arrays.waits, Counter()
    with mock.patch.object(cuda, "sizes", case.sizes(cuda.sizes)), _counting_parts(parts):
        *_, info = selected(
            cupy_rnnt.joint_rnnt_loss_and_grad, *joint, astray=case.astray, return_info=True
        )
    assert info.computed < info.cells
    names = "groups", "further rounds", "incomplete", "references", "pass 1", "pass 2"
    found = Parts(1, *(parts[name] for name in names))
    return Counted(found, arrays.operations - before, arrays.waits - waits)


def main() -> None:
    for dtype in DTYPES:
        with devices.emulated() as gpu, running_on(gpu):
            gpu.xp.kernels.options.races = False
            found = [count(case, dtype) for case in CASES]
        print(f"{dtype.name}:")
        report(found)


def report(found: list[Counted]) -> None:
    for case, (parts, operations, waits) in zip(CASES, found, strict=True):
        print(f"{case}\n  {parts}\n  {waits} waits, {operations.total()} operations: {operations}")
    table = np.array([each.parts for each in found])
    for name, totals in (
        ("operations", [each.operations.total() for each in found]),
        ("waits", [each.waits for each in found]),
    ):
        fitted, *_ = np.linalg.lstsq(table, totals, rcond=None)
        print(f"{name}, as they fit best: {Parts(*fitted.round(2).tolist())}")
        print(f"  more than that: {(totals - table @ fitted).round(1)}")


if __name__ == "__main__":
    main()
