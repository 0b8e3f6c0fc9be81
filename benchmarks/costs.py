"""What the operations of the engine move and compute, and the time that this takes at least.

Nothing here is measured. Bytes and instructions of a kernel are those of its source; tests hold
them against what an emulator counts. An operation takes as long as the slowest of what it needs:
bytes at the bandwidth of the memory, or instructions at their rates, by the data sheet of a GPU.
Times of several operations are added up. A step of a sweep over a lattice waits for the one before:
:meth:`Machine.diagonal` is what that takes at least. What the host takes goes by how many
operations it asks for, :data:`OPERATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import NamedTuple

from cupy_rnnt.ops.cuda import bias_rows, sizes

SECTOR = 32  # bytes: memory is read and written by sectors


class Machine(NamedTuple):
    """A GPU: bytes a second, and operations a second, of which a multiply-add is two."""

    bandwidth: float
    float32: float
    float64: float
    special: float
    """Reciprocals, exponentials and the like."""
    products: Mapping[str, float]
    """In GEMMs, by what they multiply; they add up in float32."""
    clock: float
    """Cycles a second."""
    multiprocessors: int
    latencies: Mapping[str, float]
    """Cycles from an instruction to one that needs its result."""

    def diagonal(self, cycles: float, issued: float, float64: float) -> float:
        """Seconds of a step of a sweep, from the cycles of its longest chain, and from what the
        warps of a block issue, in all and in float64: a block has one multiprocessor."""
        units = self.float64 / (2 * self.clock * self.multiprocessors)
        return max(cycles, issued / _SCHEDULERS, float64 * _WARP / units) / self.clock


_SCHEDULERS, _WARP = 4, 32  # instructions a cycle that a multiprocessor issues; threads


def _latencies(float64: float, shared: float, l2: float) -> dict[str, float]:
    """In cycles, by the kinds of instructions that ``tests/ptxemu/chains.py`` tells apart. Sources
    and assumptions are in docs/costs.rst. What a sweep loads was written not long before: it comes
    from L2."""
    same = {"integer": 4.0, "float32": 4.0, "special": 18.0, "store": 4.0, "shuffle": 23.0}
    barrier = {"barrier": 22.0, "barrier_warp": 2.0}
    return same | {"float64": float64, "shared": shared, "global": l2} | barrier


# 108, 132 and 128 multiprocessors with 16 units for special functions each.
MACHINES = {
    "A100": Machine(
        bandwidth=2039e9,
        float32=19.5e12,
        float64=9.7e12,
        special=16 * 108 * 1.41e9,
        products={"float32": 19.5e12, "TF32": 156e12, "bfloat16": 312e12},
        clock=1.41e9,
        multiprocessors=108,
        latencies=_latencies(float64=8.0, shared=29.0, l2=261.5),
    ),
    "H100": Machine(
        bandwidth=3350e9,
        float32=66.9e12,
        float64=33.5e12,
        special=16 * 132 * 1.98e9,
        products={"float32": 66.9e12, "TF32": 494.7e12, "bfloat16": 989.4e12},
        clock=1.98e9,
        multiprocessors=132,
        latencies=_latencies(float64=8.0, shared=29.0, l2=263.0),
    ),
    "RTX 4090": Machine(
        bandwidth=1008e9,
        float32=82.6e12,
        float64=1.29e12,
        special=16 * 128 * 2.52e9,
        products={"float32": 82.6e12, "TF32": 82.6e12, "bfloat16": 165.2e12},
        clock=2.52e9,
        multiprocessors=128,
        latencies=_latencies(float64=48.0, shared=30.1, l2=273.0),
    ),
}
# Units for float32 of a multiprocessor, by the first compute capability that has so many, and for
# special functions: "Throughput of Native Arithmetic Instructions" in the CUDA C++ guide.
_UNITS, _SPECIAL_UNITS = {75: 64, 86: 128}, 16
_SHEETS = {80: "A100", 89: "RTX 4090", 90: "H100"}  # whose tensor cores these capabilities have


def machine_of(attributes: Mapping[str, int], capability: int) -> Machine:
    """A device with attributes by CuPy's names; the rates of its tensor cores are known if there is
    a data sheet of its compute capability."""
    bandwidth = 2e3 * attributes["MemoryClockRate"] * attributes["GlobalMemoryBusWidth"] / 8
    clock, count = 1e3 * attributes["ClockRate"], attributes["MultiProcessorCount"]
    cycles = clock * count
    units = _UNITS[max(first for first in _UNITS if first <= capability)]
    float32, special = 2 * units * cycles, _SPECIAL_UNITS * cycles
    ratio = attributes["SingleToDoublePrecisionPerfRatio"]
    latencies = MACHINES["H100" if ratio <= 2 else "RTX 4090"].latencies
    products = {"float32": float32}
    if capability in _SHEETS:
        sheet = MACHINES[_SHEETS[capability]]
        products = {kind: x * float32 / sheet.float32 for kind, x in sheet.products.items()}
    rates = bandwidth, float32, float32 / ratio, special, products
    return Machine(*rates, clock, count, latencies)


class Parts(NamedTuple):
    """What the operations of a call are counted by, or how many of them each of these adds: of loss
    and gradients of a joint, whose cells are selected."""

    calls: float = 1
    groups: float = 1
    further_rounds: float = 0
    """Of selection, in all groups."""
    incomplete: float = 0
    """Groups that store some of the logits for pass 2, but not those of all cells computed."""
    references: float = 0
    """Tiles of references, and of bounds."""
    first: float = 0
    """Tiles of pass 1."""
    second: float = 0
    """Tiles of pass 2."""

    def total(self, each: Parts) -> float:
        return sum(a * b for a, b in zip(self, each, strict=True))


# ``python -m tests.ops.cuda.operation_counts`` prints what the emulated device counts. A test holds
# that no call asks for more, and that the waits are these.
OPERATIONS = Parts(14, 26, 9, 4, 3, 3, 6)
"""Launches of any kind, fills, copies and products."""
WAITS = Parts(1, 3, 2, 1, 0, 0, 0)
"""Of the host for the device."""


@dataclass(frozen=True)
class Work:
    """What an item of an operation takes."""

    bytes: float = 0
    """Read from memory and written to it, once."""
    cached: float = 0
    """Bytes that are read again, or shared by many items: they come from a cache."""
    spread: float = 0
    """Bytes around words that lie apart, in the sectors that hold them."""
    float32: float = 0
    """Instructions: a sum, a product, a multiply-add, a comparison."""
    special: float = 0
    float64: float = 0
    products: float = 0
    """Multiply-adds of a GEMM."""

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, items: float) -> Work:
        return Work(*(items * each for each in astuple(self)))

    @property
    def touched(self) -> float:
        """Bytes of the sectors that threads ask for, where none is asked for in vain."""
        return self.bytes + self.cached + self.spread

    def seconds(self, machine: Machine, kind: str = "float32") -> float:
        return max(
            self.bytes / machine.bandwidth,
            2 * self.float32 / machine.float32,
            2 * self.float64 / machine.float64,
            self.special / machine.special,
            2 * self.products / machine.products[kind],
        )


class Kernel(NamedTuple):
    """What a kernel takes an item, by the elements n of a row and their bytes: e in arrays that the
    user gave, c in those that the engine computes.

    Instructions are those in float32, and of tanh where there is an activation.
    """

    item: str
    width: str  # n: V, H, or nothing
    work: Callable[[float, int, int], Work]


def _moved_row(n: float, e: int, c: int) -> Work:
    return Work(n * (e + c) + 24)


def _row_scores(n: float, e: int, c: int) -> Work:
    """A warp reads four words of the table of the row, each a sector; one thread all that the
    scores take, and three words of the table of the batch."""
    warps = 8 if n >= 2048 else 1
    of_tables = SECTOR * (4 * warps + 16)
    return Work(n * e + 32, cached=n * c + of_tables, float32=15 * n, special=1.5 * n, float64=33)


def _logits_grad(n: float, e: int, c: int) -> Work:
    """A warp has some columns of 32 rows, their bias and their sums. It reads words and occupancies
    of the rows, their labels and two words of the table of the batch, and the table of the row."""
    warps, of_row = n / (128 if c == 4 else 32), 24 + 2 * c
    return Work(
        n * (e + c) + n * c / 16 + of_row,
        cached=n * c / 32 + of_row * (warps - 1) + (8 + 2 + 14) * warps,
        float32=18.5 * n,
        special=n,
        float64=warps,
    )


KERNELS = {
    # The table of the batch is read in sectors that a warp shares.
    "coordinates": Kernel(
        "cell of a pass over given logits", "", lambda n, e, c: Work(41, cached=12)
    ),
    # A warp reads an index and two words of the table of the batch, each a sector.
    "hidden": Kernel(
        "cell of a pass",
        "H",
        lambda n, e, c: Work(
            n * c + 8, cached=2 * n * e + 3 * SECTOR - 8, float32=14 * n, special=2 * n
        ),
    ),
    "row_scores": Kernel("cell of pass 1", "V", _row_scores),
    "logits_grad": Kernel(
        "cell of pass 2",
        "V",
        _logits_grad,
    ),
    # And the sums of the bias, a row for 32 cells of a tile.
    "write_output_grads": Kernel("row of the weights", "H", lambda n, e, c: Work(n * (e + c))),
    # Of products of float32 that are split; Engine has them in float32.
    "split": Kernel("row of a factor", "H", lambda n, e, c: Work(16 * n, float32=7 * n)),
    "scaled_weights": Kernel("sample", "", lambda n, e, c: Work(16, cached=8)),
    # The gradient of a cell is read for its frame and for its position, each time with one input.
    "input_grads": Kernel(
        "cell of pass 2",
        "H",
        lambda n, e, c: Work(2 * n * c, cached=2 * n * e + 16, float32=32 * n, special=4 * n),
    ),
    "frame_starts": Kernel("frame of pass 2", "", lambda n, e, c: Work(8, cached=89)),
    "write_input_grads": Kernel("frame or position", "H", lambda n, e, c: Work(n * (e + c))),
    "gather": Kernel("row", "V", _moved_row),
    "scatter": Kernel("row", "V", _moved_row),
    "fold_rows": Kernel("frame or position", "H", lambda n, e, c: Work(n * e, float32=5 * n)),
    "row_sums": Kernel("row of weights", "H", lambda n, e, c: Work(n * e + c, float32=2.25 * n)),
    # It reads a sum for each row of the weights, and the bias twice. Seven totals of a block.
    "slack": Kernel(
        "sample",
        "V",
        lambda n, e, c: Work(cached=3 * n * c, float32=13 * n + 27000, float64=n + 2000),
    ),
    # A warp reads a few words of the table of samples, each a sector.
    "reference_hidden": Kernel(
        "frame or position",
        "H",
        lambda n, e, c: Work(2 * n * e, cached=n * c + 4 * SECTOR, float32=14 * n, special=2 * n),
    ),
    "write_tangents": Kernel(
        "vector",
        "H",
        lambda n, e, c: Work(n * (e + c) + 8, cached=7 * SECTOR, float32=1.2 * n, float64=n),
    ),
    # Each step of a warp reads a range of columns of no label.
    "label_softmax": Kernel(
        "frame or position",
        "V",
        lambda n, e, c: Work(
            n * (e + c) + 16,
            cached=3 * n * c + n * SECTOR / 8,
            float32=34 * n,
            special=n,
            float64=2.4 * n,
        ),
    ),
    "bounds": Kernel(
        "cell",
        "H",
        lambda n, e, c: Work(
            16, cached=(2 / 16 + 4 / 64) * n * c + 20, float32=8 * n, special=n, float64=60
        ),
    ),
    "exact_logits": Kernel(
        "cell, for three scores",
        "H",
        lambda n, e, c: Work(
            24, cached=(1 / 16 + 4 / 64) * n * c + 12, float32=7 * n, special=n, float64=3
        ),
    ),
    "lattice_bound": Kernel(
        "cell", "", lambda n, e, c: Work(32, spread=2 * (SECTOR - 8), float32=4, float64=50)
    ),
    # A sweep in one way. Cells on none of its diagonals take their turns, too.
    "lattice_sweep": Kernel("cell and way", "", lambda n, e, c: Work(24, cached=8, float64=19)),
    "lattice_mark": Kernel(
        "cell",
        "",
        lambda n, e, c: Work(18, cached=4, spread=3 * SECTOR - 17, special=1, float64=39),
    ),
    # It reads two sums twice, if no limit is halved.
    "lattice_keep": Kernel(
        "cell",
        "",
        lambda n, e, c: Work(17, cached=2 * SECTOR, spread=2 * (SECTOR - 8), float64=26),
    ),
    # Cells inside C are looked at, and no more.
    "lattice_leaving": Kernel(
        "cell outside C",
        "",
        lambda n, e, c: Work(17, spread=2 * (SECTOR - 8) + SECTOR - 1, float32=3, float64=26),
    ),
    "lattice_leave_out": Kernel("cell", "", lambda n, e, c: Work(1)),  # where there is a band
    "lattice_complete": Kernel("cell", "", lambda n, e, c: Work(2, spread=SECTOR - 1)),
    "count_marks": Kernel("cell", "", lambda n, e, c: Work(1)),
    "write_indices": Kernel("cell that is marked", "", lambda n, e, c: Work(9)),
    # Bisection reads a number for each bit of their count.
    "places": Kernel("cell of pass 2 whose logits are stored", "", lambda n, e, c: Work(16)),
    "write_marked_first": Kernel("cell of pass 2", "", lambda n, e, c: Work(33)),
    "lattice_write": Kernel(
        "cell of pass 1 over given logits",
        "",
        lambda n, e, c: Work(56, cached=18, spread=2 * (SECTOR - 8), float32=4, float64=52),
    ),
    # A sweep in one way, over words that the threads of a warp read side by side.
    "best_sweep": Kernel("cell and way", "", lambda n, e, c: Work(24, cached=17, float64=9)),
    "best_path": Kernel(
        "arc of a path", "", lambda n, e, c: Work(42, spread=6 * (SECTOR - 7), float64=12)
    ),
    "lattice_posteriors": Kernel(
        "cell of pass 2",
        "",
        lambda n, e, c: Work(
            64, cached=56, spread=7 * (SECTOR - 8), float32=4, special=2, float64=112
        ),
    ),
}
"""By their names, for the scores of a blank and a label."""

_OF_THEIR_TYPE = {
    *("fold_rows", "gather", "hidden", "label_softmax", "logits_grad", "reference_hidden"),
    *("row_sums", "scatter", "write_output_grads", "write_tangents"),
}
"""Those whose arrays are as the user's, or the factors of products, are."""


class Batch(NamedTuple):
    """How many frames, prefixes of the labels, cells and samples a batch has."""

    frames: int
    prefixes: int
    cells: int
    samples: int = 1

    @staticmethod
    def of(frames: Iterable[int], columns: Iterable[int]) -> Batch:
        """From T and U + 1 of each sample."""
        t, s = list(map(int, frames)), list(map(int, columns))
        cells = sum(a * b for a, b in zip(t, s, strict=True))
        return Batch(sum(t), sum(s), cells, len(t))


class Operation(NamedTuple):
    stage: str
    name: str
    work: Work


class Engine:
    """The operations of a call, one stage after the other. Logits are computed again for pass 2.

    `itemsize` is that of what the user gave. All between is float32, but for the factors of
    products if that is a half type: a hidden vector is two of them for the logits, and the gradient
    of the logits is rounded. References are rounded to it, too.
    """

    def __init__(
        self,
        batch: Batch,
        vocabulary: int,
        hidden: int = 0,
        itemsize: int = 4,
        factors: int = 1,
    ) -> None:
        self.operations: list[Operation] = []
        self._factors = factors  # that a hidden vector is, for the logits
        self._batch, self._itemsize = batch, itemsize
        self._widths = {"V": vocabulary, "H": hidden, "": 0}

    def launch(self, stage: str, items: float, *names: str, width: str = "") -> None:
        for name in names:
            kernel = KERNELS[name]
            given = self._itemsize if name in _OF_THEIR_TYPE else 4
            work = kernel.work(self._widths[width or kernel.width], given, 4)
            self.operations.append(Operation(stage, name, work.times(items)))

    def lists(self, stage: str, items: float, nbytes: float) -> None:
        self.operations.append(Operation(stage, "lists", Work(nbytes).times(items)))

    def products(self, stage: str, rows: float, *kinds: str) -> None:
        """Each of a row of logits with a hidden vector; the weights stay in the cache."""
        v, h, size = self._widths["V"], self._widths["H"], self._itemsize
        made = {
            "reference": Work((4 + size) * (v + h) / 2, products=v * h),
            "logits": Work(4 * v + 4 * h, products=self._factors * v * h),
            "d_weight": Work(size * (v + h), products=v * h),
            "d_hidden": Work(size * v + 4 * h, products=v * h),
        }
        self.operations += [Operation(stage, "products", made[kind].times(rows)) for kind in kinds]

    def select(self) -> None:
        """By bounds."""
        frames, prefixes, cells, samples = self._batch
        references = frames + prefixes
        self.launch("references", self._widths["V"], "row_sums")
        self.launch("references", samples, "slack")
        self.launch("references", references, "fold_rows", "reference_hidden", "label_softmax")
        # Of both their input and a slope, of a prefix the weights of a blank and of a label, too.
        self.launch("references", 2 * frames + 4 * prefixes, "write_tangents")
        self.products("references", references, "reference", "reference")
        self.launch("bounds", cells, "bounds")
        self.launch("sweeps", cells, "lattice_bound", "lattice_mark", "count_marks")
        self.launch("sweeps", 2 * cells, "lattice_sweep")

    def listed(self, marked: float) -> None:
        """The list of so many cells, made of a mask."""
        self.launch("sweeps", marked, "write_indices")
        rest = Work(1).times(self._batch.cells - marked)
        self.operations.append(Operation("sweeps", "write_indices", rest))

    def first_pass(self, computed: float) -> None:
        self.launch("pass 1", computed, "hidden", "row_scores")
        # Scores and marks go to a lattice: one thread writes those of a cell.
        stored = Work(1, cached=SECTOR, spread=2 * (SECTOR - 8) + SECTOR - 1, float64=52)
        self.operations.append(Operation("pass 1", "row_scores", stored.times(computed)))
        self.products("pass 1", computed, "logits")

    def lattice(self, computed: float, kept: float) -> None:
        """Sweeps in two ways, and in a third if not all cells are computed."""
        cells = self._batch.cells
        ways = 2 if computed == cells else 3
        self.launch("sweeps", ways * cells, "lattice_sweep")
        if computed < cells:
            self.launch("sweeps", cells - computed, "lattice_leaving")
        self.launch("sweeps", cells, "lattice_keep", "count_marks")
        self.listed(kept)

    def second_pass(self, kept: float, stored: float = 0.0) -> None:
        """The logits of so many of the kept cells are stored by pass 1."""
        v, h = self._widths["V"], self._widths["H"]
        frames, positions = self._batch.frames, self._batch.prefixes
        targets = frames + positions
        self.launch("pass 2", kept, "lattice_posteriors", "hidden", "logits_grad")
        self.launch("pass 2", kept, "input_grads")
        rows = max(sizes.tile_elements // v, sizes.full_rows)
        sums = bias_rows(min(rows, sizes.most_rows, self._batch.cells))
        self.launch("pass 2", v, "write_output_grads")
        self.operations.append(Operation("pass 2", "write_output_grads", Work(4 * v * sums)))
        self.launch("pass 2", frames, "frame_starts")
        # A target reads its own input and its sum. Each of its cells is looked for by bisection.
        of_target = Work(2 * 4 * h, cached=self._itemsize * h).times(targets)
        bisection = Work(cached=164).times(self._batch.cells)
        self.operations.append(Operation("pass 2", "input_grads", of_target + bisection))
        self.launch("pass 2", targets, "write_input_grads")
        self.products("pass 2", kept - stored, "logits")
        self.products("pass 2", kept, "d_weight", "d_hidden")
        self.lists("pass 2", 4 * (h * targets + v * h), 1)  # zeros


def engine(
    batch: Batch,
    vocabulary: int,
    hidden: int,
    computed: float = 1.0,
    kept: float = 1.0,
    selects: bool = True,
    itemsize: int = 4,
    stored: float = 0.0,
) -> list[Operation]:
    """Loss and gradients of a joint network, of shares of the cells computed and kept, and of those
    kept whose logits are stored.

    Without selection, this stands for tiles that others compute twice: of half types, they multiply
    what is rounded.
    """
    factors = 2 if itemsize == 2 and selects else 1
    call = Engine(batch, vocabulary, hidden, itemsize, factors)
    if selects:
        call.select()
        call.listed(computed * batch.cells)
    call.first_pass(computed * batch.cells)
    call.lattice(computed * batch.cells, kept * batch.cells)
    call.second_pass(kept * batch.cells, stored * kept * batch.cells)
    return call.operations


def given_logits(batch: Batch, vocabulary: int, kept: float) -> list[Operation]:
    """Loss and gradient of logits, where the gradient takes their place."""
    call = Engine(batch, vocabulary)
    call.launch("pass 1", batch.cells, "coordinates", "gather", "row_scores", "lattice_write")
    call.lattice(batch.cells, kept * batch.cells)
    names = "lattice_posteriors", "coordinates", "gather", "logits_grad", "scatter"
    call.launch("pass 2", kept * batch.cells, *names)
    call.lists("pass 2", (1 - kept) * batch.cells, 4 * vocabulary)  # zeros
    return call.operations


def autograd(batch: Batch, vocabulary: int, hidden: int, itemsize: int = 4) -> list[Operation]:
    """The same by three products of the whole batch, with logits and their gradient in memory.

    All arrays have one type, each operation reads and writes its own once, and whatever can be
    fused is: tanh with the sum before it, the softmax with the loss.
    """
    v, h = vocabulary * itemsize, hidden * itemsize
    product = Work(v + h, products=vocabulary * hidden)
    of_cell = [
        ("forward", "hidden values", Work(h, float32=14 * hidden, special=2 * hidden)),
        ("forward", "products", product),
        ("forward", "softmax", Work(v, float32=15 * vocabulary, special=vocabulary)),
        ("sweeps", "sweeps", _LOG_SPACE_CELL),
        ("backward", "softmax", Work(2 * v, float32=14.5 * vocabulary, special=vocabulary)),
        ("backward", "products", product),
        ("backward", "products", product),
        ("backward", "sum of the bias", Work(v, float32=vocabulary)),
        ("backward", "hidden values", Work(3 * h, float32=3 * hidden)),
        ("backward", "sums over frames and prefixes", Work(2 * h, float32=2 * hidden)),
    ]
    return [Operation(stage, name, work.times(batch.cells)) for stage, name, work in of_cell]


def fused(batch: Batch, vocabulary: int, hidden: int, itemsize: int = 4) -> list[Operation]:
    """The same by kernels that never write a logit: their softmax takes place beside the product,
    in shared memory and registers, at no cost where the product takes longer. Backward, the logits
    are multiplied again, and their gradient twice."""
    v, h = vocabulary, hidden * itemsize
    of_cell = [
        ("forward", "hidden values", Work(h, float32=14 * hidden, special=2 * hidden)),
        ("forward", "products", Work(h + 12, float32=15 * v, special=v, products=v * hidden)),
        ("sweeps", "sweeps", _LOG_SPACE_CELL),
        (
            "backward",
            "products",
            Work(2 * h + 20, float32=14.5 * v, special=v, products=3 * v * hidden),
        ),
        ("backward", "hidden values", Work(3 * h, float32=3 * hidden)),
        ("backward", "sums over frames and prefixes", Work(2 * h, float32=2 * hidden)),
    ]
    return [Operation(stage, name, work.times(batch.cells)) for stage, name, work in of_cell]


# Of alpha and beta, side by side, by those who sweep in float32 and log space: two scores are read
# twice, two values written and read again; an exponential, a logarithm and ten more instructions.
_LOG_SPACE_CELL = Work(2 * 4 * 4 + 8, float32=2 * 10, special=2 * 2)


def log_space_cycles(machine: Machine, warps: int = 4) -> float:
    """Of a diagonal of such a sweep: a load of the scores, one of the values of the last diagonal,
    the instructions above, a barrier."""
    of = machine.latencies
    of_cell = 2 * of["special"] + 10 * of["float32"] + of["store"]
    return of["global"] + of["shared"] + of_cell + of["barrier"] + warps * of["barrier_warp"]


def seconds(operations: Iterable[Operation], machine: Machine, kind: str = "float32") -> float:
    """Together, in any order: correctly rounded, as Python 3.12 adds in another way than 3.11."""
    return math.fsum(operation.work.seconds(machine, kind) for operation in operations)
