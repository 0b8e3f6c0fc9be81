"""Chains of dependent instructions, of kernels whose chains are known."""

import numpy as np
import pytest

from . import Module
from .chains import LATENCIES

OF = dict(zip(LATENCIES, (4, 5, 8, 18, 29, 263, 7, 23, 22, 2), strict=True))
"""No two alike, so that a wrong one shows."""
FREE = dict.fromkeys(LATENCIES, 0)
HEAD = """
.version 8.4
.target sm_90
.address_size 64
.visible .entry k(.param .u64 p)
{
.reg .b32 %i<9>; .reg .b64 %a<9>; .reg .f32 %f<99>; .reg .f64 %d<99>; .reg .pred %q<9>;
.shared .align 8 .b8 cells[8192];
mov.u32 %i0, %tid.x;
mov.u32 %i1, 0;
mov.f32 %f0, 0f3F800000;
mov.f64 %d0, 0d3FF0000000000000;
"""


def counters(body, threads=1, blocks=1, **options):
    """Of a kernel with this body, by (instructions of a thread, of the chain, cycles of it)."""
    kernel = Module(ptx=f"{HEAD}{body}\nret;\n}}").get_function("k")
    memory = np.zeros(4096)
    found = kernel(blocks, threads, (memory,), latencies={"": OF}, **options).counters
    return found["thread_instructions"], found["chain_instructions"], found["chain_cycles"][""]


MOVES = 4  # of the head: each is a chain of one instruction, without cycles


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize(
    ("kind", "register", "latency"),
    [("s32", "%i1", "integer"), ("f32", "%f0", "float32"), ("f64", "%d0", "float64")],
)
def test_dependent_sums_are_a_chain(count, kind, register, latency):
    body = f"add.{kind} {register}, {register}, {register};" * count
    assert counters(body) == (MOVES + count + 1, count + 1, count * OF[latency])


@pytest.mark.parametrize("count", [1, 7])
def test_independent_sums_are_none(count):
    body = "".join(f"add.f64 %d{i}, %d0, %d0;" for i in range(1, count + 1))
    assert counters(body) == (MOVES + count + 1, 2, OF["float64"])


def test_the_longest_operand_counts():
    body = "add.f32 %f1, %f0, %f0; add.f32 %f1, %f1, %f0; fma.rn.f32 %f2, %f0, %f1, %f0;"
    assert counters(body)[1:] == (4, 3 * OF["float32"])


SPECIAL = [
    ("ex2.approx.f32 %f1, %f0;", "special", 0),
    ("rcp.approx.ftz.f64 %d1, %d0;", "special", 0),
    ("div.rn.f64 %d1, %d0, %d0;", "float64", 9 * OF["float64"]),
    ("max.f64 %d1, %d0, %d0;", "float64", OF["integer"]),
    ("selp.f64 %d1, %d0, %d0, %q0;", "integer", 0),
    ("add.s64 %a1, %a0, %a0;", "integer", OF["integer"]),
    ("cvt.f64.f32 %d1, %f0;", "float64", 0),
    ("mov.f64 %d1, %d0;", "integer", -OF["integer"]),
]


@pytest.mark.parametrize(("text", "latency", "more"), SPECIAL)
def test_latencies_by_instruction(text, latency, more):
    assert counters(text)[2] == OF[latency] + more


def test_a_chain_goes_through_shared_memory():
    """Of one thread, without a barrier; cells beside it have none of it."""
    body = """
    add.f64 %d1, %d0, %d0;
    st.shared.f64 [cells + 16], %d1;
    st.shared.f64 [cells + 24], %d0;
    ld.shared.f64 %d2, [cells + {}];
    add.f64 %d3, %d2, %d0;
    """
    to_the_end = OF["store"] + OF["shared"] + OF["float64"]
    assert counters(body.format(16))[1:] == (5, OF["float64"] + to_the_end)
    assert counters(body.format(24))[1:] == (4, to_the_end)


def test_a_chain_goes_through_words_of_a_wider_access():
    body = """
    add.f32 %f1, %f0, %f0;
    st.shared.f32 [cells + 12], %f1;
    st.shared.v2.f32 [cells], {%f0, %f0};
    st.shared.f32 [cells + 8], %f0;
    ld.shared.v4.f32 {%f2, %f3, %f4, %f5}, [cells];
    """
    assert counters(body)[2] == OF["float32"] + OF["store"] + OF["shared"]


def test_a_chain_goes_through_global_memory_and_is_forgotten():
    body = """
    ld.param.u64 %a0, [p];
    ld.global.f64 %d1, [%a0];
    add.f64 %d1, %d1, %d0;
    st.global.f64 [%a0], %d1;
    ld.global.f64 %d2, [%a0];
    """
    chain = OF["integer"] + 2 * OF["global"] + OF["float64"] + OF["store"]
    kernel = Module(ptx=f"{HEAD}{body}\nret;\n}}").get_function("k")
    memory = np.zeros(4096)
    for _ in range(2):
        found = kernel(1, 1, (memory,), latencies={"one": OF, "free": FREE}).counters
        assert found["chain_cycles"] == {"one": chain, "free": 0}


BARRIER = """
setp.ne.u32 %q0, %i0, {thread};
@%q0 bra AFTER;
add.f64 %d1, %d0, %d0;
add.f64 %d1, %d1, %d0;
{before}
AFTER:
bar.sync 0;
add.f32 %f1, %f0, %f0;
"""


@pytest.mark.parametrize(("threads", "thread", "warps"), [(1, 0, 1), (64, 40, 2), (100, 99, 4)])
def test_a_barrier_waits_for_what_any_thread_stores(threads, thread, warps):
    body = BARRIER.format(thread=thread, before="st.shared.f64 [cells], %d1;")
    branch = 2 * OF["integer"]  # the comparison, and the branch that waits for it
    barrier = OF["barrier"] + warps * OF["barrier_warp"]
    stored = branch + 2 * OF["float64"] + OF["store"]
    found = counters(body, threads, blocks=3, max_lanes=64)
    assert found[1:] == (8, stored + barrier + OF["float32"])


def test_a_barrier_waits_for_nothing_that_is_under_way():
    body = BARRIER.format(thread=0, before="ld.param.u64 %a0, [p]; ld.global.f64 %d2, [%a0];")
    branch, barrier = 2 * OF["integer"], OF["barrier"] + 2 * OF["barrier_warp"]
    under_way = branch + OF["integer"] + OF["global"]
    assert counters(body, 64)[2] == max(branch + barrier + OF["float32"], under_way)


def test_turns_of_a_loop_wait_for_their_branch():
    body = """
    AGAIN:
    add.s32 %i1, %i1, 1;
    setp.lt.s32 %q0, %i1, 5;
    @%q0 bra AGAIN;
    """
    assert counters(body) == (MOVES + 15 + 1, 1 + 15, 15 * OF["integer"])


def test_who_branches_elsewhere_is_not_waited_for():
    """Instructions are those of the busiest thread, the guarded one too."""
    body = """
    setp.eq.u32 %q0, %i0, 1;
    @%q0 add.f64 %d1, %d0, %d0;
    @!%q0 bra DONE;
    add.f32 %f1, %f0, %f0;
    DONE:
    """
    assert counters(body, 2) == (MOVES + 5, 4, 2 * OF["integer"] + OF["float32"])


def test_a_shuffle_waits_for_the_lanes_of_its_warp():
    body = """
    setp.ne.u32 %q0, %i0, 3;
    @%q0 bra AFTER;
    add.f64 %d1, %d0, %d0;
    cvt.rn.f32.f64 %f0, %d1;
    AFTER:
    mov.b32 %i2, %f0;
    shfl.sync.idx.b32 %i3|%q1, %i2, 0, 31, -1;
    add.s32 %i3, %i3, 1;
    """
    longest = 2 * OF["integer"] + 2 * OF["float64"]
    assert counters(body, 64)[2] == longest + OF["shuffle"] + OF["integer"]


def test_a_warp_barrier_waits_for_its_warp():
    body = BARRIER.replace("bar.sync 0", "bar.warp.sync -1").format(
        thread=0, before="st.shared.f64 [cells], %d1;"
    )
    stored = 2 * OF["integer"] + 2 * OF["float64"] + OF["store"]
    assert counters(body, 32)[2] == stored + OF["integer"] + OF["float32"]


def test_without_latencies_nothing_is_counted():
    kernel = Module(ptx=f"{HEAD}\nret;\n}}").get_function("k")
    assert "chain_cycles" not in kernel(1, 1, (np.zeros(4),)).counters
