"""What one call asks of a device, and what it costs the host: see README.rst, or --help."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import standin

from .joint_call import ROOT, UTTERANCES, Call, copies_of_shares, prepare

OPERATIONS = standin.NAMES[:8]
SOURCES = "cupy_rnnt", "kernels", "benchmarks", "tests/ptxemu", "tests/standin"


def main() -> None:
    call, options = arguments()
    if options.record:
        record(call, options.record)
        return
    without_values = call.workload == "shares"
    copies = [] if without_values else recording(call, options.reuse)
    standin.start()
    if without_values:
        copies = copies_of_shares(call)
    again = replaying(call, copies)
    result = {"call": call._asdict(), **count(again), **times(again, options.repeat)}
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        print(f"{name}: {value}")
    if options.by_function:
        result["by function"] = by_function(again)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> tuple[Call, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.standin.count")
    parser.add_argument(
        "--workload", choices=[*UTTERANCES, "fresh", "shares"], help="joint that is computed"
    )
    for name in Call._fields[1:]:
        kind = type(Call._field_defaults[name])
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.set_defaults(**Call._field_defaults)
    parser.add_argument("--repeat", type=int, default=9, help="timed calls")
    parser.add_argument("--by-function", action="store_true", help="a table by function")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--reuse", action="store_true", help="a recording of older code will do")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)  # the process that records
    options = parser.parse_args()
    return Call(*(getattr(options, name) for name in Call._fields)), options


# Recordings


def recording(call: Call, reuse: bool = False) -> list[bytes]:
    """What the host reads of the device in the call: from an emulated one, once for these sources;
    with `reuse`, one of other sources will do."""
    sources = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).glob("**/*")):
            if path.suffix in (".py", ".cu", ".cuh", ".cpp"):
                sources.update(path.read_bytes())
    folder, key = Path(sys.prefix, "recordings"), hashlib.sha256(repr(call).encode()).hexdigest()
    folder.mkdir(exist_ok=True)
    path = folder / f"{key[:12]}-{sources.hexdigest()[:12]}.pickle"
    older = sorted(folder.glob(f"{key[:12]}-*"), key=lambda other: other.stat().st_mtime)
    if not path.exists() and reuse and older:
        path = older[-1]
        print(f"replaying a recording of other sources: {path.name}")
    if not path.exists():
        print("recording an emulated call, once for these sources", flush=True)
        options = [f"--{name.replace('_', '-')}={value}" for name, value in call._asdict().items()]
        command = [sys.executable, "-m", "tests.standin.count", *options, f"--record={path}"]
        subprocess.run(command, check=True, cwd=ROOT)
    return pickle.loads(path.read_bytes())


def record(call: Call, path: Path) -> None:
    standin.start(emulated=True)
    run, start = prepare(call), time.time()
    standin.record()
    run()
    copies = standin.recorded()
    path.write_bytes(pickle.dumps(copies))
    print(f"recorded {len(copies)} copies to the host in {time.time() - start:.0f} s", flush=True)


def replaying(call: Call, copies: list[bytes]) -> Callable[[], dict[str, int]]:
    """The call, without values, with what the host reads from a recording."""
    run = prepare(call)

    def again() -> dict[str, int]:
        standin.rewind()
        try:
            info = run()
        except Exception:
            standin.replayed()  # the likelier cause, if it raises
            raise
        standin.replayed()
        return info

    standin.replay(copies)
    again(), again()  # compiles, and fills caches
    return again


# Results


def count(again: Callable[[], dict[str, int]]) -> dict[str, Any]:
    """The operations of a warm call."""
    kernels, before = standin.launches(), standin.snapshot()
    info = again()
    operations, kernels = standin.snapshot() - before, standin.launches() - kernels
    of_cupy = {name: n for name, n in kernels.most_common() if name.startswith("cupy_")}
    own = {name: n for name, n in kernels.most_common() if name not in of_cupy}
    return {
        "info": info,
        "own kernels": sum(own.values()),
        "CuPy kernels": sum(of_cupy.values()),
        **{name: operations[name] for name in OPERATIONS[1:]},
        "allocations": allocations(again),
        "cudaMalloc": operations["cudaMalloc"],
        "synchronisations": sum(operations[f"{of}_syncs"] for of in ("stream", "device", "event")),
        "copies into pageable memory": operations["pageable_D2H"],
        "own by name": own,
        "CuPy by name": of_cupy,
    }


def times(call: Callable[[], Any], repeat: int) -> dict[str, dict[str, float]]:
    """Milliseconds: CPU of the calling thread, and by the clock."""
    samples = []
    for _ in range(repeat):
        start = time.thread_time(), time.perf_counter()
        call()
        samples.append((time.thread_time() - start[0], time.perf_counter() - start[1]))
    columns = zip(("host ms", "wall ms"), map(sorted, zip(*samples, strict=True)), strict=True)
    return {
        name: {"min": round(1e3 * column[0], 2), "median": round(1e3 * column[repeat // 2], 2)}
        for name, column in columns
    }


def allocations(call: Callable[[], Any]) -> int:
    """From CuPy's current allocator."""
    import cupy

    sizes: list[int] = []
    pool = cupy.get_default_memory_pool()
    with cupy.cuda.using_allocator(lambda size: sizes.append(size) or pool.malloc(size)):
        call()
    return len(sizes)


def by_function(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """Print and return what each function of the project asks for itself, and CuPy for it."""
    table = _watched(call)
    columns = ["calls", "all", *OPERATIONS, "us"]
    print("\nBy function, without those it calls (all: with them); watching adds to the times")
    print(f"{'function':52s}" + "".join(f"{name:>9s}" for name in columns))
    rows = sorted(table.items(), key=lambda item: -sum(item[1][name] for name in OPERATIONS))
    for name, row in rows:
        if any(row[column] for column in OPERATIONS) or row["us"] > 200:
            print(f"{name[-52:]:52s}" + "".join(f"{row[column]:9d}" for column in columns))
    return [{"function": name, **row} for name, row in rows]


def _watched(call: Callable[[], Any]) -> dict[str, Counter]:
    labels: dict[Any, str | None] = {}
    table: dict[str, Counter] = {}
    stack: list[tuple[str, int]] = []  # functions, and the operations before them
    last: list[Any] = [list(standin.counts), time.thread_time()]

    def label(code: Any) -> str | None:
        if code not in labels:
            file, name = Path(code.co_filename), getattr(code, "co_qualname", code.co_name)
            inside = file.is_relative_to(ROOT) and not file.is_relative_to(sys.prefix)
            labels[code] = f"{file.relative_to(ROOT)}:{name}" if inside else None
        return labels[code]

    def watch(frame: Any, event: str, argument: Any) -> None:
        name = label(frame.f_code) if event in ("call", "return") else None
        if name is None:
            return
        now, clock = list(standin.counts), time.thread_time()
        operations = sum(now[: len(OPERATIONS)])
        if stack:
            row = table[stack[-1][0]]
            changes = zip(standin.NAMES, last[0], now, strict=True)
            row.update({key: b - a for key, a, b in changes if a != b})
            row["us"] += round(1e6 * (clock - last[1]))
        if event == "call":
            stack.append((name, operations))
            table.setdefault(name, Counter())["calls"] += 1
        elif stack:
            name, start = stack.pop()
            table[name]["all"] += operations - start
        last[:] = now, time.thread_time()

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return table


if __name__ == "__main__":
    try:
        main()
    except standin.ReplayError as error:
        raise SystemExit(str(error)) from None
