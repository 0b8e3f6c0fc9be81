"""Random calls of the losses, by the thousand, against the textbook in float64.

Each case has a seed, which says everything: the front (logits, packed logits, a joint network,
k2's additive loss), NumPy, PyTorch or JAX if they are installed, shapes, dtype, memory layout,
transducer, options, workspace and threads. `--disturb` runs the same calls under adverse
conditions: each allocation is refused in turn, calls are interrupted at random points, 24 threads
call at the same time, or processes are forked or spawned meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack

from .. import device_calls, devices
from . import calls, cases
from .disturbed import DISTURBANCES, Failures

REPORT = 1000
"""Cases between two lines of progress."""


def compared(seeds: Iterable[int], counts: Counter[str], emulated: bool) -> Failures:
    """Cases whose call is not right."""
    for done, seed in enumerate(seeds, 1):
        case = cases.drawn(seed, emulated)
        counts[f"{case.front} of {case.framework}"] += 1
        try:
            calls.check(case)
        except Exception as error:
            yield seed, error
        if done % REPORT == 0:
            print(f"{done} cases", flush=True)


def main(words: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tests.soak", description=__doc__, formatter_class=form
    )
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first case (0)")
    parser.add_argument("--device", choices=["cpu", "emulated"], default="cpu")
    parser.add_argument("--disturb", choices=DISTURBANCES)
    chosen = parser.parse_args(words)
    emulated = chosen.device == "emulated"
    if emulated and chosen.disturb not in (None, "allocations"):
        parser.error(f"--disturb {chosen.disturb} is for the CPU")
    run = DISTURBANCES[chosen.disturb] if chosen.disturb else compared
    start, counts, failures = time.perf_counter(), Counter[str](), 0
    with ExitStack() as stack:
        if emulated:
            device = stack.enter_context(devices.emulated())
            stack.enter_context(device_calls.running_on(device))
        for seed, error in run(range(chosen.seed, chosen.seed + chosen.cases), counts, emulated):
            failures += 1
            again = f"--cases 1 --seed {seed} --device {chosen.device}"
            again += f" --disturb {chosen.disturb}" * bool(chosen.disturb)
            print(f"\n{type(error).__name__}: {error}\n{cases.drawn(seed, emulated)}")
            print(f"Again: python -m tests.soak {again}", flush=True)
    for name, count in sorted(counts.items()):
        print(f"{count:8} {name}")
    seconds = time.perf_counter() - start
    print(f"{chosen.cases} cases from seed {chosen.seed}, {failures} failures, {seconds:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
