"""Every opcode against an independent scalar reference (Python integers and exact rationals)."""

import math
from fractions import Fraction

import numpy as np
import pytest

from . import Module

BF = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.slow
NP = {
    "u8": "u1",
    "s8": "i1",
    "b8": "u1",
    "u16": "u2",
    "s16": "i2",
    "b16": "u2",
    "u32": "u4",
    "s32": "i4",
    "b32": "u4",
    "u64": "u8",
    "s64": "i8",
    "b64": "u8",
    "f32": "f4",
    "f64": "f8",
    "f16": "f2",
    "bf16": BF,
    "f16x2": "u4",
    "bf16x2": "u4",
    "pred": "u4",
}
LD = {"f16": "b16", "bf16": "b16", "f16x2": "b32", "bf16x2": "b32", "s8": "s8", "u8": "u8"}
BITS = {t: 32 if t == "pred" else np.dtype(d).itemsize * 8 for t, d in NP.items()}


def run_ptx(body, outs, ins, block=128, target="sm_90"):
    """body: PTX using %x0.. for inputs and %y0.. for outputs; ins: [(type, array)]; outs: [type]"""
    n = len(ins[0][1])
    o = [".version 8.4", f".target {target}", ".address_size 64", ".visible .entry k("]
    o.append(
        ", ".join(f".param .u64 p{i}" for i in range(len(ins) + len(outs))) + ", .param .u32 n)"
    )
    o.append("{\n.reg .b32 %i<8>; .reg .b64 %a<40>; .reg .pred %g<4>;")
    for k, (t, _) in enumerate(ins):
        o.append(f".reg .{'pred' if t == 'pred' else 'b' + str(max(16, BITS[t]))} %x{k};")
    for k, t in enumerate(outs):
        o.append(f".reg .{'pred' if t == 'pred' else 'b' + str(max(16, BITS[t]))} %y{k};")
    o.append(
        "mov.u32 %i0, %tid.x; mov.u32 %i1, %ntid.x; mov.u32 %i2, %ctaid.x; mad.lo.u32 %i0, %i1, %i2, %i0;"
    )
    o.append("ld.param.u32 %i3, [n]; setp.ge.u32 %g0, %i0, %i3; @%g0 bra DONE;")
    for k, (t, _) in enumerate(ins):
        o.append(f"ld.param.u64 %a{k}, [p{k}]; mad.wide.u32 %a{k}, %i0, {BITS[t] // 8}, %a{k};")
        if t == "pred":
            o.append(f"ld.global.u32 %i4, [%a{k}]; setp.ne.u32 %x{k}, %i4, 0;")
        else:
            o.append(f"ld.global.{LD.get(t, 'b' + str(BITS[t]))} %x{k}, [%a{k}];")
    o.append(body)
    for k, t in enumerate(outs):
        j = k + len(ins)
        o.append(f"ld.param.u64 %a{j}, [p{j}]; mad.wide.u32 %a{j}, %i0, {BITS[t] // 8}, %a{j};")
        if t == "pred":
            o.append(f"selp.u32 %i5, 1, 0, %y{k}; st.global.u32 [%a{j}], %i5;")
        else:
            o.append(f"st.global.b{BITS[t]} [%a{j}], %y{k};")
    o.append("DONE: ret;\n}")
    f = Module(ptx="\n".join(o)).get_function("k")
    res = [np.zeros(n, NP[t]) for t in outs]
    f(
        -(-n // block),
        block,
        [
            np.ascontiguousarray(a.astype(NP[t])) if t == "pred" else np.ascontiguousarray(a)
            for t, a in ins
        ]
        + res
        + [n],
    )
    return res[0] if len(res) == 1 else res


rng = np.random.default_rng(7)


def ints(t, n=400):
    """random integers with the corner cases mixed in"""
    b = BITS[t]
    x = (
        rng.integers(0, 1 << 64, n, dtype="u8", endpoint=False)
        if b == 64
        else rng.integers(0, 1 << b, n, dtype="u8")
    )
    x = x >> rng.integers(0, b, n, dtype="u8")
    c = np.array([0, 1, 2, (1 << b) - 1, 1 << (b - 1), (1 << (b - 1)) - 1, 3, (1 << b) - 2], "u8")
    x[rng.permutation(n)[: n // 3]] = rng.choice(c, n // 3)
    return x.astype(f"u{b // 8}").view(NP[t])


def floats(t, n=600, special=True, scale=None):
    if scale is not None:
        x = (rng.standard_normal(n) * scale).astype(NP[t])
    else:
        b = {"f32": 4, "f64": 8, "f16": 2, "bf16": 2}[t]
        x = rng.integers(0, 256, (n, b), dtype="u1").view(f"u{b}").reshape(n).view(NP[t])
        y = rng.standard_normal(n).astype(NP[t])
        x = np.where(rng.random(n) < 0.5, x, y).astype(NP[t])
    if special:
        c = np.array(
            [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, 1.5, 2.5, -2.5, 3.0], "f8"
        ).astype(NP[t])
        x[rng.permutation(n)[: n // 5]] = rng.choice(c, n // 5)
    return x


FMT = {
    "f64": (53, -1022, 1023),
    "f32": (24, -126, 127),
    "f16": (11, -14, 15),
    "bf16": (8, -126, 127),
    "tf32": (11, -126, 127),
}


def rnd(x, fmt, mode="rn"):
    """exactly round the rational x to a float format; returns a Python float"""
    p, emin, emax = FMT[fmt]
    if x == 0:
        return 0.0
    neg, a = x < 0, abs(x)
    e = a.numerator.bit_length() - a.denominator.bit_length()
    if Fraction(2) ** e > a:
        e -= 1
    if Fraction(2) ** (e + 1) <= a:
        e += 1
    q = max(e, emin) - (p - 1)
    m = a / Fraction(2) ** q
    lo = m.numerator // m.denominator
    rem = m - lo
    up = {
        "rn": rem > Fraction(1, 2) or (rem == Fraction(1, 2) and lo & 1),
        "rna": rem >= Fraction(1, 2),
        "rz": False,
        "rm": neg and rem > 0,
        "rp": (not neg) and rem > 0,
    }[mode]
    v = (lo + bool(up)) * Fraction(2) ** q
    if v >= Fraction(2) ** (emax + 1):
        big = (2 - Fraction(2) ** (1 - p)) * Fraction(2) ** emax
        tobig = mode == "rz" or (mode == "rm" and not neg) or (mode == "rp" and neg)
        r = float(big) if tobig else math.inf
    else:
        r = (
            math.ldexp(float(m.numerator and (lo + bool(up))), q)
            if (lo + bool(up)).bit_length() <= 53
            else float(v)
        )
    return -r if neg else r


def exact(fn, plain, fmt, mode):
    """reference for +,*,/,fma: exact when all finite, IEEE double otherwise"""

    def f(*xs):
        xs = [float(x) for x in xs]
        if all(map(math.isfinite, xs)):
            try:
                v = fn(*map(Fraction, xs))
            except ZeroDivisionError:
                return plain(*xs)
            if v == 0:
                if mode == "rm" and fn in (FN["add"], FN["sub"], FN["fma"]):
                    return None  # sign of zero: not compared
                return plain(*xs) if fn is not FN["fma"] else None
            return rnd(v, fmt, mode)
        return plain(*xs)

    return f


FN = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}


def plain_of(name):
    def f(*xs):
        with np.errstate(all="ignore"):
            return float(FN[name](*map(np.float64, xs)))

    return f


def same(got, want, what=""):
    """compare floats: equal bits of value, NaN == NaN, sign of zero included; None is a free zero"""
    got = [float(x) for x in got]
    for i, (g, w) in enumerate(zip(got, want)):
        if w is None:
            assert g == 0, (what, i, g)
        elif math.isnan(w):
            assert math.isnan(g), (what, i, g, w)
        else:
            assert g == w and math.copysign(1, g) == math.copysign(1, w), (what, i, g, w)


# ---------------------------------------------------------------- integers
def wrap(v, t):
    b = BITS[t]
    v &= (1 << b) - 1
    return v - (1 << b) if t[0] == "s" and v >> (b - 1) else v


def tdiv(a, b):
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


INT2 = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "div": lambda a, b: tdiv(a, b) if b else -1,
    "rem": lambda a, b: a - b * tdiv(a, b) if b else a,
}


@pytest.mark.parametrize("t", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("op", list(INT2))
def test_int_binary(op, t):
    a, b = ints(t), ints(t)
    got = run_ptx(f"{op}.{t} %y0, %x0, %x1;", [t], [(t, a), (t, b)])
    assert got.tolist() == [wrap(INT2[op](int(x), int(y)), t) for x, y in zip(a, b)]


@pytest.mark.parametrize("t", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_int_mul_hi_wide_mad(t):
    a, b, w = ints(t), ints(t), BITS[t]
    assert run_ptx(f"mul.hi.{t} %y0, %x0, %x1;", [t], [(t, a), (t, b)]).tolist() == [
        wrap(int(x) * int(y) >> w, t) for x, y in zip(a, b)
    ]
    c = ints(t)
    assert run_ptx(f"mad.lo.{t} %y0, %x0, %x1, %x2;", [t], [(t, a), (t, b), (t, c)]).tolist() == [
        wrap(int(x) * int(y) + int(z), t) for x, y, z in zip(a, b, c)
    ]
    assert run_ptx(f"mad.hi.{t} %y0, %x0, %x1, %x2;", [t], [(t, a), (t, b), (t, c)]).tolist() == [
        wrap((int(x) * int(y) >> w) + int(z), t) for x, y, z in zip(a, b, c)
    ]
    if w < 64:
        wt = t[0] + str(2 * w)
        c = ints(wt)
        assert run_ptx(f"mul.wide.{t} %y0, %x0, %x1;", [wt], [(t, a), (t, b)]).tolist() == [
            wrap(int(x) * int(y), wt) for x, y in zip(a, b)
        ]
        assert run_ptx(
            f"mad.wide.{t} %y0, %x0, %x1, %x2;", [wt], [(t, a), (t, b), (wt, c)]
        ).tolist() == [wrap(int(x) * int(y) + int(z), wt) for x, y, z in zip(a, b, c)]


@pytest.mark.parametrize("t", ["s16", "s32", "s64"])
def test_int_unary(t):
    a = ints(t)
    assert run_ptx(f"abs.{t} %y0, %x0;", [t], [(t, a)]).tolist() == [
        wrap(abs(int(x)), t) for x in a
    ]
    assert run_ptx(f"neg.{t} %y0, %x0;", [t], [(t, a)]).tolist() == [wrap(-int(x), t) for x in a]


def test_int_misc():
    a, b, c = ints("s32"), ints("s32"), ints("s32")
    clamp = lambda v: max(-(2**31), min(2**31 - 1, v))
    L = lambda *xs: zip(*[x.tolist() for x in xs])
    assert run_ptx("add.sat.s32 %y0, %x0, %x1;", ["s32"], [("s32", a), ("s32", b)]).tolist() == [
        clamp(x + y) for x, y in L(a, b)
    ]
    assert run_ptx("sub.sat.s32 %y0, %x0, %x1;", ["s32"], [("s32", a), ("s32", b)]).tolist() == [
        clamp(x - y) for x, y in L(a, b)
    ]
    assert run_ptx(
        "sad.s32 %y0, %x0, %x1, %x2;", ["s32"], [("s32", a), ("s32", b), ("s32", c)]
    ).tolist() == [wrap(abs(x - y) + z, "s32") for x, y, z in L(a, b, c)]
    u, v, w, z = ints("u32"), ints("u32"), ints("u32"), ints("u32")
    lo, hi = run_ptx(
        "add.cc.u32 %y0, %x0, %x1; addc.u32 %y1, %x2, %x3;",
        ["u32", "u32"],
        [("u32", q) for q in (u, v, w, z)],
    )
    for l, h, p, q, r, s in L(lo, hi, u, v, w, z):
        assert (h << 32 | l) == ((r << 32 | p) + (s << 32 | q)) % 2**64
    lo, hi = run_ptx(
        "sub.cc.u32 %y0, %x0, %x1; subc.u32 %y1, %x2, %x3;",
        ["u32", "u32"],
        [("u32", q) for q in (u, v, w, z)],
    )
    for l, h, p, q, r, s in L(lo, hi, u, v, w, z):
        assert (h << 32 | l) == ((r << 32 | p) - (s << 32 | q)) % 2**64
    sx = lambda v, b: v - (1 << b) if v >> (b - 1) & 1 else v
    by = lambda v, sg: [sx(v >> 8 * k & 255, 8) if sg else v >> 8 * k & 255 for k in range(4)]
    for ta, tb in (("u32", "u32"), ("s32", "s32"), ("s32", "u32")):
        got = run_ptx(
            f"dp4a.{ta}.{tb} %y0, %x0, %x1, %x2;", ["u32"], [("u32", u), ("u32", v), ("u32", w)]
        )
        assert got.tolist() == [
            (sum(i * j for i, j in zip(by(x, ta[0] == "s"), by(y, tb[0] == "s"))) + k) % 2**32
            for x, y, k in L(u, v, w)
        ]
    s24 = lambda v: sx(v & 0xFFFFFF, 24)
    assert run_ptx("mul24.lo.s32 %y0, %x0, %x1;", ["s32"], [("s32", a), ("s32", b)]).tolist() == [
        wrap(s24(x) * s24(y), "s32") for x, y in L(a, b)
    ]


@pytest.mark.parametrize("t", ["b16", "b32", "b64"])
def test_logic(t):
    a, b, M = ints(t), ints(t), (1 << BITS[t]) - 1
    for op, f in (
        ("and", lambda x, y: x & y),
        ("or", lambda x, y: x | y),
        ("xor", lambda x, y: x ^ y),
    ):
        assert run_ptx(f"{op}.{t} %y0, %x0, %x1;", [t], [(t, a), (t, b)]).tolist() == [
            f(x, y) for x, y in zip(a.tolist(), b.tolist())
        ]
    assert run_ptx(f"not.{t} %y0, %x0;", [t], [(t, a)]).tolist() == [x ^ M for x in a.tolist()]
    assert run_ptx(f"cnot.{t} %y0, %x0;", [t], [(t, a)]).tolist() == [
        int(x == 0) for x in a.tolist()
    ]


def test_pred_logic():
    a, b = rng.integers(0, 2, 64), rng.integers(0, 2, 64)
    for op, f in (
        ("and", lambda x, y: x & y),
        ("or", lambda x, y: x | y),
        ("xor", lambda x, y: x ^ y),
    ):
        assert run_ptx(
            f"{op}.pred %y0, %x0, %x1;", ["pred"], [("pred", a), ("pred", b)]
        ).tolist() == [f(x, y) for x, y in zip(a, b)]
    assert run_ptx("not.pred %y0, %x0;", ["pred"], [("pred", a)]).tolist() == [1 - x for x in a]
    assert run_ptx("mov.pred %y0, %x0;", ["pred"], [("pred", a)]).tolist() == a.tolist()


@pytest.mark.parametrize("t", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_shifts(t):
    a, w = ints(t), BITS[t]
    n = rng.integers(0, w + 10, len(a)).astype("u4")
    n[:5] = [0, w, w - 1, 255, 2**32 - 1]
    assert run_ptx(f"shl.b{w} %y0, %x0, %x1;", [t], [(t, a), ("u32", n)]).tolist() == [
        wrap(int(x) << min(int(k), 200), t) for x, k in zip(a, n)
    ]
    assert run_ptx(f"shr.{t} %y0, %x0, %x1;", [t], [(t, a), ("u32", n)]).tolist() == [
        int(x) >> min(int(k), 200) for x, k in zip(a, n)
    ]
    for k in (0, 3, w - 1, w, w + 5):
        assert run_ptx(f"shl.b{w} %y0, %x0, {k};", [t], [(t, a)]).tolist() == [
            wrap(int(x) << k, t) for x in a
        ]
        assert run_ptx(f"shr.{t} %y0, %x0, {k};", [t], [(t, a)]).tolist() == [
            int(x) >> k for x in a
        ]


def test_funnel_bits_permute():
    a, b = ints("u32"), ints("u32")
    c = rng.integers(0, 70, len(a)).astype("u4")
    L = list(zip(a.tolist(), b.tolist(), c.tolist()))
    I = [("u32", a), ("u32", b), ("u32", c)]
    for d in "lr":
        for mode in ("wrap", "clamp"):
            n = (lambda k: k & 31) if mode == "wrap" else (lambda k: min(k, 32))
            f = (
                (lambda x, y, k: ((y << 32 | x) << n(k) >> 32) & 0xFFFFFFFF)
                if d == "l"
                else (lambda x, y, k: ((y << 32 | x) >> n(k)) & 0xFFFFFFFF)
            )
            assert run_ptx(f"shf.{d}.{mode}.b32 %y0, %x0, %x1, %x2;", ["u32"], I).tolist() == [
                f(*q) for q in L
            ]
    sel = ints("u32")

    def prmt(x, y, s):
        by = [(y << 32 | x) >> 8 * k & 255 for k in range(8)]
        r = 0
        for k in range(4):
            q = s >> 4 * k & 15
            v = by[q & 7]
            r |= ((255 if v & 128 else 0) if q & 8 else v) << 8 * k
        return r

    assert run_ptx(
        "prmt.b32 %y0, %x0, %x1, %x2;", ["u32"], [("u32", a), ("u32", b), ("u32", sel)]
    ).tolist() == [prmt(*q) for q in zip(a.tolist(), b.tolist(), sel.tolist())]
    for lut in (0x96, 0xE8, 0x00, 0xFF, 0x1D, 0xF8):
        ref = lambda x, y, z: sum(
            (lut >> ((x >> k & 1) << 2 | (y >> k & 1) << 1 | (z >> k & 1)) & 1) << k
            for k in range(32)
        )
        assert run_ptx(f"lop3.b32 %y0, %x0, %x1, %x2, {lut};", ["u32"], I).tolist() == [
            ref(*q) for q in L
        ]


@pytest.mark.parametrize("t", ["u32", "s32", "u64", "s64"])
def test_bitfields(t):
    a, b, w = ints(t), ints(t), BITS[t]
    pos = rng.integers(0, w + 8, len(a)).astype("u4")
    ln = rng.integers(0, w + 8, len(a)).astype("u4")
    pos[:3], ln[:3] = [0, w, 255], [0, w, 255]

    def bfe(x, p, l):  # the pseudo-code of the PTX manual
        p, l, msb = p & 255, l & 255, w - 1
        u = x & ((1 << w) - 1)
        bit = lambda i: u >> i & 1
        sb = 0 if t[0] == "u" or l == 0 else bit(min(p + l - 1, msb))
        return wrap(sum((bit(p + i) if i < l and p + i <= msb else sb) << i for i in range(w)), t)

    def bfi(x, y, p, l):
        p, l = p & 255, l & 255
        r = y & ((1 << w) - 1)
        for i in range(l):
            if p + i < w:
                r = r & ~(1 << (p + i)) | ((x >> i & 1) << (p + i))
        return wrap(r, t)

    got = run_ptx(f"bfe.{t} %y0, %x0, %x1, %x2;", [t], [(t, a), ("u32", pos), ("u32", ln)])
    assert got.tolist() == [bfe(*q) for q in zip(a.tolist(), pos.tolist(), ln.tolist())]
    got = run_ptx(
        f"bfi.b{w} %y0, %x0, %x1, %x2, %x3;", [t], [(t, a), (t, b), ("u32", pos), ("u32", ln)]
    )
    assert got.tolist() == [bfi(*q) for q in zip(a.tolist(), b.tolist(), pos.tolist(), ln.tolist())]
    U = [x & ((1 << w) - 1) for x in a.tolist()]
    assert run_ptx(f"popc.b{w} %y0, %x0;", ["u32"], [(t, a)]).tolist() == [
        bin(x).count("1") for x in U
    ]
    assert run_ptx(f"clz.b{w} %y0, %x0;", ["u32"], [(t, a)]).tolist() == [
        w - x.bit_length() for x in U
    ]
    assert run_ptx(f"brev.b{w} %y0, %x0;", [t], [(t, a)]).tolist() == [
        wrap(int(format(x, f"0{w}b")[::-1], 2), t) for x in U
    ]
    fb = lambda x: (x if x >= 0 else ~x).bit_length() - 1
    assert run_ptx(f"bfind.{t} %y0, %x0;", ["u32"], [(t, a)]).tolist() == [
        fb(x) % 2**32 for x in a.tolist()
    ]
    assert run_ptx(f"bfind.shiftamt.{t} %y0, %x0;", ["u32"], [(t, a)]).tolist() == [
        (w - 1 - fb(x) if fb(x) >= 0 else 2**32 - 1) for x in a.tolist()
    ]


def test_bmsk_szext():
    p, n, a = (
        rng.integers(0, 40, 200).astype("u4"),
        rng.integers(0, 40, 200).astype("u4"),
        ints("u32", 200),
    )
    I = [("u32", p), ("u32", n)]
    ref = lambda p, n: ((1 << n) - 1 << p) & 0xFFFFFFFF
    assert run_ptx("bmsk.clamp.b32 %y0, %x0, %x1;", ["u32"], I).tolist() == [
        ref(min(x, 32), min(y, 32)) for x, y in zip(p.tolist(), n.tolist())
    ]
    assert run_ptx("bmsk.wrap.b32 %y0, %x0, %x1;", ["u32"], I).tolist() == [
        ref(x & 31, y & 31) for x, y in zip(p.tolist(), n.tolist())
    ]
    for t in ("u32", "s32"):

        def ext(v, k):
            v &= (1 << k) - 1
            return (v - (1 << k)) % 2**32 if t == "s32" and k and v >> (k - 1) & 1 else v

        got = run_ptx(f"szext.clamp.{t} %y0, %x0, %x1;", ["u32"], [("u32", a), ("u32", n)])
        assert got.tolist() == [ext(x, min(k, 32)) for x, k in zip(a.tolist(), n.tolist())]


# ---------------------------------------------------------------- floats
@pytest.mark.parametrize(
    ("op", "t"),
    [
        (o, t)
        for o in ("add", "sub", "mul", "div", "fma")
        for t in ("f32", "f64", "f16", "bf16")
        if not (o == "div" and t in ("f16", "bf16"))
    ],
)
def test_float_rn(op, t):
    k = 3 if op == "fma" else 2
    for scale in (None, 1.0):
        xs = [floats(t, 1500, scale=scale) for _ in range(k)]
        rn = ".rn" if op in ("fma", "div") else ""
        got = run_ptx(
            f"{op}{rn}.{t} %y0, " + ", ".join(f"%x{i}" for i in range(k)) + ";",
            [t],
            [(t, x) for x in xs],
        )
        ref = exact(FN[op], plain_of(op), t, "rn")
        same(got, [ref(*q) for q in zip(*xs)], op + t)


@pytest.mark.parametrize("t", ["f32", "f64"])
@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "fma"])
def test_float_directed(op, mode, t):
    k = 3 if op == "fma" else 2
    xs = [
        np.concatenate([floats(t, 400, special=False), floats(t, 400, special=False, scale=1.0)])
        for _ in range(k)
    ]
    ok = np.all([np.isfinite(x) for x in xs], 0)
    xs = [x[ok] for x in xs]
    got = run_ptx(
        f"{op}.{mode}.{t} %y0, " + ", ".join(f"%x{i}" for i in range(k)) + ";",
        [t],
        [(t, x) for x in xs],
    )
    ref = exact(FN[op], plain_of(op), t, mode)
    same(got, [ref(*q) for q in zip(*xs)], op + mode + t)


@pytest.mark.parametrize("t", ["f32", "f64", "f16", "bf16"])
def test_fma_hard(t):
    """cancellation, ties broken only by a far-away tail, subnormal results"""
    p = FMT[t][0]
    n = 3000
    a = (1 + rng.integers(0, 2 ** (p - 1), n) * 2.0 ** (1 - p)).astype(NP[t])
    b = (1 + rng.integers(0, 2 ** (p - 1), n) * 2.0 ** (1 - p)).astype(NP[t])
    prod = np.array([float(Fraction(float(x)) * Fraction(float(y))) for x, y in zip(a, b)])
    c1 = (-prod).astype(NP[t])  # nearly total cancellation
    sh = rng.integers(0, {"f16": 12}.get(t, 2 * p + 4), n)
    with np.errstate(all="ignore"):
        c2 = np.ldexp(np.where(rng.random(n) < 0.5, 1.0, -1.0), sh).astype(NP[t])
        c3 = np.ldexp(1.0, -rng.integers(0, {"f16": 12}.get(t, 2 * p + 4), n)).astype(NP[t])
        tiny = np.ldexp(1.0, -rng.integers(0, {"f16": 14, "f64": 1000}.get(t, 120), n)).astype(
            NP[t]
        )
    ref = exact(FN["fma"], plain_of("fma"), t, "rn")
    for A, B, C in (
        (a, b, c1),
        (a, b, c2),
        (a, b, c3),
        ((a * tiny).astype(NP[t]), (b * tiny[::-1]).astype(NP[t]), c3 * tiny),
    ):
        C = np.asarray(C, NP[t])
        got = run_ptx(f"fma.rn.{t} %y0, %x0, %x1, %x2;", [t], [(t, A), (t, B), (t, C)])
        same(got, [ref(*q) for q in zip(A, B, C)], t)


def test_fma32_exact_ties():
    """a*b + c exactly half-way in float32 except for a tail below 2**-53 of the sum"""
    a = np.float32(1 + 2.0**-12) * np.ones(8, "f4")
    b = np.array([1 + 2.0**-12, 1 - 2.0**-12, 1 + 2.0**-11, 1, 1, 1, 1, 1], "f4")
    c = np.array([2.0**40, -(2.0**40), 2.0**60, 2.0**-80, 1, 3, 2.0**24, 2.0**25], "f4")
    ref = exact(FN["fma"], plain_of("fma"), "f32", "rn")
    same(
        run_ptx("fma.rn.f32 %y0, %x0, %x1, %x2;", ["f32"], [("f32", a), ("f32", b), ("f32", c)]),
        [ref(*q) for q in zip(a, b, c)],
    )
    # 1 + 2^-24 (tie) +- 2^-100: only the sign of the tail decides
    x = np.array([1 + 2.0**-23, 1, 1, 1], "f4")
    y = np.array([2.0**-24] * 2 + [2.0**-24 + 2.0**-47, 2.0**-24], "f4")
    z = np.array([1, 1, 1, 1 + 2.0**-23], "f4")
    same(
        run_ptx("fma.rn.f32 %y0, %x0, %x1, %x2;", ["f32"], [("f32", x), ("f32", y), ("f32", z)]),
        [ref(*q) for q in zip(x, y, z)],
    )


@pytest.mark.parametrize("t", ["f32", "f64"])
def test_sqrt_rcp(t):
    x = floats(t, 1500)

    def sq(v, mode):
        v = float(v)
        if not (v >= 0) or v == 0 or math.isinf(v):
            return math.nan if not v >= 0 else math.sqrt(v)
        f = Fraction(v)
        k = 300 if t == "f32" else 2400
        s = math.isqrt(int(f * 4**k)) if (f * 4**k).denominator == 1 else None
        r = Fraction(s, 2**k)
        if r * r != f:
            r += Fraction(1, 2 ** (k + 3))
        return rnd(r, t, mode)

    for mode in ("rn", "rz", "rm", "rp"):
        same(run_ptx(f"sqrt.{mode}.{t} %y0, %x0;", [t], [(t, x)]), [sq(v, mode) for v in x], mode)
        if mode == "rn":
            ref = exact(FN["div"], plain_of("div"), t, mode)
            same(
                run_ptx(f"rcp.{mode}.{t} %y0, %x0;", [t], [(t, x)]), [ref(1.0, v) for v in x], mode
            )
        else:
            y = x[np.isfinite(x) & (x != 0)]
            ref = exact(FN["div"], plain_of("div"), t, mode)
            same(
                run_ptx(f"rcp.{mode}.{t} %y0, %x0;", [t], [(t, y)]), [ref(1.0, v) for v in y], mode
            )


def test_approx_functions():
    x = np.concatenate([rng.standard_normal(500), rng.uniform(-80, 80, 500)]).astype("f4")
    p = np.abs(x) + np.float32(1e-6)

    def check(op, v, ref, ulp=1.0):
        got = run_ptx(f"{op} %y0, %x0;", ["f32"], [("f32", v)])
        want = ref(v.astype("f8"))
        assert (np.abs(got - want) <= ulp * np.spacing(np.abs(want).astype("f4"))).all(), op

    check("ex2.approx.f32", x, np.exp2)
    check("lg2.approx.f32", p, np.log2)
    check("sin.approx.f32", x, np.sin)
    check("cos.approx.f32", x, np.cos)
    check("tanh.approx.f32", x, np.tanh)
    check("rsqrt.approx.f32", p, lambda v: 1 / np.sqrt(v))
    check("rcp.approx.f32", x, lambda v: 1 / v)
    check("sqrt.approx.f32", p, np.sqrt)
    got = run_ptx("div.approx.f32 %y0, %x0, %x1;", ["f32"], [("f32", x), ("f32", p)])
    assert np.allclose(got, x.astype("f8") / p, rtol=1e-7)
    got = run_ptx("div.full.f32 %y0, %x0, %x1;", ["f32"], [("f32", x), ("f32", p)])
    assert np.allclose(got, x.astype("f8") / p, rtol=1e-7)
    s = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0], "f4")
    same(
        run_ptx("ex2.approx.f32 %y0, %x0;", ["f32"], [("f32", s)]),
        [1, 1, math.inf, 0, math.nan, 0.5],
    )
    same(
        run_ptx("lg2.approx.f32 %y0, %x0;", ["f32"], [("f32", s)]),
        [-math.inf, -math.inf, math.inf, math.nan, math.nan, math.nan],
    )
    d = np.abs(rng.standard_normal(100))
    assert np.allclose(run_ptx("rsqrt.approx.f64 %y0, %x0;", ["f64"], [("f64", d)]), 1 / np.sqrt(d))
    for t in ("f16", "bf16"):
        h = rng.standard_normal(200).astype(NP[t])
        got = run_ptx(f"ex2.approx{'.ftz' if t == 'bf16' else ''}.{t} %y0, %x0;", [t], [(t, h)])
        assert (got == np.exp2(h.astype("f8")).astype("f4").astype(NP[t])).all()
        got = run_ptx(f"tanh.approx.{t} %y0, %x0;", [t], [(t, h)])
        assert (got == np.tanh(h.astype("f8")).astype("f4").astype(NP[t])).all()


def test_ftz_sat():
    x = np.array([1e-40, -1e-40, 1e-38, 2e-38, 1.0, -1.0, 0.25, np.nan, np.inf, 3.0], "f4")
    one = np.ones_like(x)
    flush = lambda v: math.copysign(0, v) if abs(v) < 2.0**-126 else v
    same(
        run_ptx("mul.ftz.f32 %y0, %x0, %x1;", ["f32"], [("f32", x), ("f32", one)]),
        [flush(float(v)) for v in x],
    )
    same(
        run_ptx("add.ftz.f32 %y0, %x0, %x1;", ["f32"], [("f32", x), ("f32", -0.0 * one)]),
        [flush(float(v)) for v in x],
    )
    h = np.float32(0.5) * one
    same(
        run_ptx("mul.ftz.f32 %y0, %x0, %x1;", ["f32"], [("f32", x), ("f32", h)]),
        [flush(float(np.float32(flush(float(v))) / 2)) for v in x],
    )
    sat = lambda v: 0.0 if v != v else min(max(float(v), 0.0), 1.0)
    got = run_ptx("add.sat.f32 %y0, %x0, %x1;", ["f32"], [("f32", x), ("f32", one * 0)])
    assert got.tolist() == [sat(v) for v in x]
    got = run_ptx(
        "fma.rn.sat.f32 %y0, %x0, %x1, %x2;", ["f32"], [("f32", x), ("f32", one), ("f32", one * 0)]
    )
    assert got.tolist() == [sat(v) for v in x]
    got = run_ptx("cvt.sat.f32.f32 %y0, %x0;", ["f32"], [("f32", x)])
    assert got.tolist() == [sat(v) for v in x]


@pytest.mark.parametrize("t", ["f32", "f64", "f16", "bf16"])
def test_min_max_abs_neg(t):
    a, b = floats(t), floats(t)
    a[:6] = np.array([0.0, -0.0, np.nan, 1, np.nan, -0.0]).astype(NP[t])
    b[:6] = np.array([-0.0, 0.0, 1, np.nan, np.nan, -0.0]).astype(NP[t])

    def mm(x, y, big, nanp):
        x, y = float(x), float(y)
        if x != x or y != y:
            return math.nan if nanp or (x != x and y != y) else (y if x != x else x)
        if x == 0 and y == 0:
            s = min if not big else max
            return s(math.copysign(1, x), math.copysign(1, y)) * 0.0
        return max(x, y) if big else min(x, y)

    for op in ("min", "max"):
        for nanp in ("", ".NaN"):
            if nanp and t == "f64":
                continue
            got = run_ptx(f"{op}{nanp}.{t} %y0, %x0, %x1;", [t], [(t, a), (t, b)])
            same(got, [mm(x, y, op == "max", nanp) for x, y in zip(a, b)], op + nanp)
    same(run_ptx(f"abs.{t} %y0, %x0;", [t], [(t, a)]), [abs(float(x)) for x in a])
    same(run_ptx(f"neg.{t} %y0, %x0;", [t], [(t, a)]), [-float(x) for x in a])
    if t in ("f32", "f64"):
        same(
            run_ptx(f"copysign.{t} %y0, %x0, %x1;", [t], [(t, a), (t, b)]),
            [math.copysign(float(y), float(x)) if y == y else math.nan for x, y in zip(a, b)],
        )


def test_testp():
    x = np.array([1.0, np.inf, -np.inf, np.nan, 1e-40, 0.0], "f4")
    f = lambda op: run_ptx(f"testp.{op}.f32 %y0, %x0;", ["pred"], [("f32", x)]).tolist()
    assert f("finite") == [1, 0, 0, 0, 1, 1] and f("infinite") == [0, 1, 1, 0, 0, 0]
    assert f("number") == [1, 1, 1, 0, 1, 1] and f("notanumber") == [0, 0, 0, 1, 0, 0]
    assert f("normal") == [1, 0, 0, 0, 0, 0] and f("subnormal") == [0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("t", ["f16x2", "bf16x2"])
def test_packed_halves(t):
    h = t[:-2]
    xs = [floats(h, 400, scale=1.0) for _ in range(6)]
    np.seterr(invalid="ignore")
    pk = [np.stack(xs[2 * k : 2 * k + 2], 1).view("u4").reshape(-1) for k in range(3)]
    rn = lambda op: exact(FN[op], plain_of(op), h, "rn")
    for op, k in (("add", 2), ("sub", 2), ("mul", 2), ("fma", 3)):
        got = (
            run_ptx(
                f"{op}{'.rn' if op == 'fma' else ''}.{t} %y0, "
                + ", ".join(f"%x{i}" for i in range(k))
                + ";",
                [t],
                [(t, p) for p in pk[:k]],
            )
            .view(NP[h])
            .reshape(-1, 2)
        )
        for half in (0, 1):
            same(got[:, half], [rn(op)(*q) for q in zip(*[xs[2 * j + half] for j in range(k)])], op)
    got = (
        run_ptx(f"max.{t} %y0, %x0, %x1;", [t], [(t, p) for p in pk[:2]]).view(NP[h]).reshape(-1, 2)
    )
    for half in (0, 1):
        want = np.fmax(xs[half].astype("f4"), xs[2 + half].astype("f4"))
        assert ((got[:, half].astype("f4") == want) | np.isnan(want)).all()
    got = run_ptx(f"neg.{t} %y0, %x0;", [t], [(t, pk[0])])
    ok = ~np.isnan(xs[0].astype("f4")) & ~np.isnan(xs[1].astype("f4"))
    assert (got[ok] == (pk[0] ^ 0x80008000)[ok]).all()
    p, q = run_ptx(f"setp.lt.{t} %y0|%y1, %x0, %x1;", ["pred", "pred"], [(t, p) for p in pk[:2]])
    assert (p == (xs[0] < xs[2])).all() and (q == (xs[1] < xs[3])).all()
    got = (
        run_ptx(f"set.ge.{t}.{t} %y0, %x0, %x1;", [t], [(t, p) for p in pk[:2]])
        .view(NP[h])
        .reshape(-1, 2)
    )
    assert (got[:, 0].astype("f4") == (xs[0] >= xs[2])).all() and (
        got[:, 1].astype("f4") == (xs[1] >= xs[3])
    ).all()


CMP = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a < b or a > b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize(
    "t", ["u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64", "f16", "bf16"]
)
def test_setp(t):
    isf = t in FMT
    a, b = (floats(t), floats(t)) if isf else (ints(t), ints(t))
    b[::3] = a[::3]
    la, lb = (
        [x.item() if not isf else float(x) for x in a],
        [x.item() if not isf else float(x) for x in b],
    )
    nan = [x != x or y != y for x, y in zip(la, lb)]
    for op, f in CMP.items():
        got = run_ptx(f"setp.{op}.{t} %y0, %x0, %x1;", ["pred"], [(t, a), (t, b)])
        assert got.tolist() == [int(f(x, y)) for x, y in zip(la, lb)], op
        if isf:
            got = run_ptx(f"setp.{op}u.{t} %y0, %x0, %x1;", ["pred"], [(t, a), (t, b)])
            assert got.tolist() == [int(f(x, y) or n) for x, y, n in zip(la, lb, nan)], op + "u"
    if isf:
        assert run_ptx(f"setp.nan.{t} %y0, %x0, %x1;", ["pred"], [(t, a), (t, b)]).tolist() == [
            int(n) for n in nan
        ]
        assert run_ptx(f"setp.num.{t} %y0, %x0, %x1;", ["pred"], [(t, a), (t, b)]).tolist() == [
            int(not n) for n in nan
        ]
    if t[0] == "u":
        for op, e in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
            got = run_ptx(f"setp.{op}.{t} %y0, %x0, %x1;", ["pred"], [(t, a), (t, b)])
            assert got.tolist() == [int(CMP[e](x, y)) for x, y in zip(la, lb)]
    c = rng.integers(0, 2, len(a))
    for bo, g in (
        ("and", lambda x, y: x & y),
        ("or", lambda x, y: x | y),
        ("xor", lambda x, y: x ^ y),
    ):
        p, q = run_ptx(
            f"setp.lt.{bo}.{t} %y0|%y1, %x0, %x1, %x2;",
            ["pred", "pred"],
            [(t, a), (t, b), ("pred", c)],
        )
        lt = [int(x < y) for x, y in zip(la, lb)]
        assert p.tolist() == [g(x, y) for x, y in zip(lt, c.tolist())] and q.tolist() == [
            g(1 - x, y) for x, y in zip(lt, c.tolist())
        ]
    q = run_ptx(f"setp.lt.and.{t} %y0, %x0, %x1, !%x2;", ["pred"], [(t, a), (t, b), ("pred", c)])
    assert q.tolist() == [int(x < y and not z) for x, y, z in zip(la, lb, c.tolist())]


def test_selp_slct_set():
    a, b, c = ints("u32"), ints("u32"), rng.integers(0, 2, 400)
    assert (
        run_ptx("selp.b32 %y0, %x0, %x1, %x2;", ["u32"], [("u32", a), ("u32", b), ("pred", c)])
        == np.where(c, a, b)
    ).all()
    s, f = ints("s32"), floats("f32", 400)
    assert (
        run_ptx("slct.u32.s32 %y0, %x0, %x1, %x2;", ["u32"], [("u32", a), ("u32", b), ("s32", s)])
        == np.where(s >= 0, a, b)
    ).all()
    assert (
        run_ptx("slct.b32.f32 %y0, %x0, %x1, %x2;", ["u32"], [("u32", a), ("u32", b), ("f32", f)])
        == np.where(f >= 0, a, b)
    ).all()
    assert (
        run_ptx("set.lt.u32.u32 %y0, %x0, %x1;", ["u32"], [("u32", a), ("u32", b)])
        == np.where(a < b, 2**32 - 1, 0)
    ).all()
    assert (run_ptx("set.gt.f32.s32 %y0, %x0, 5;", ["f32"], [("s32", s)]) == (s > 5)).all()


# ---------------------------------------------------------------- conversions
IT = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


@pytest.mark.parametrize("s", IT)
def test_cvt_int_int(s):
    a = ints(s)
    for d in IT:

        def run(mod):
            return run_ptx(f"cvt{mod}.{d}.{s} %y0, %x0;", [d], [(s, a)])

        assert run("").tolist() == [wrap(int(x), d) for x in a], d
        lo, hi = np.iinfo(NP[d]).min, np.iinfo(NP[d]).max
        assert run(".sat").tolist() == [max(int(lo), min(int(hi), int(x))) for x in a], d


@pytest.mark.parametrize("s", ["f16", "bf16", "f32", "f64"])
def test_cvt_float_int(s):
    x = np.concatenate([floats(s), floats(s, scale=1000.0), floats(s, scale=4.0)])
    with np.errstate(all="ignore"):
        x[:12] = np.array(
            [
                2.0**31,
                -(2.0**31),
                2.0**32,
                2.0**63,
                -(2.0**63),
                2.0**64,
                0.5,
                1.5,
                -0.5,
                -1.5,
                2.0**31 - 128,
                127.5,
            ]
        ).astype(NP[s])
    R = {
        "rni": lambda v: round(Fraction(v)),
        "rzi": math.trunc,
        "rmi": math.floor,
        "rpi": math.ceil,
    }
    for d in ["u16", "s16", "u32", "s32", "u64", "s64", "u8", "s8"]:
        lo, hi = int(np.iinfo(NP[d]).min), int(np.iinfo(NP[d]).max)
        nanv = wrap(1 << (BITS[d] - 1), d) if s == "f64" or d in ("u64", "s64") else 0
        for m, f in R.items():

            def ref(v):
                v = float(v)
                if v != v:
                    return nanv
                return (hi if v > 0 else lo) if math.isinf(v) else max(lo, min(hi, f(v)))

            got = run_ptx(f"cvt.{m}.{d}.{s} %y0, %x0;", [d], [(s, x)])
            assert got.tolist() == [ref(v) for v in x], (d, m)


@pytest.mark.parametrize("s", IT)
def test_cvt_int_float(s):
    a = ints(s)
    for d in ("f16", "f32", "f64"):
        for m in ("rn", "rz", "rm", "rp"):
            got = run_ptx(f"cvt.{m}.{d}.{s} %y0, %x0;", [d], [(s, a)])
            same(got, [rnd(Fraction(int(x)), d, m) for x in a], (d, m))
    if BITS[s] < 64:
        same(
            run_ptx(f"cvt.rn.bf16.{s} %y0, %x0;", ["bf16"], [(s, a)]),
            [rnd(Fraction(int(x)), "bf16", "rn") for x in a],
        )


def test_cvt_float_float():
    for s, d in (("f32", "f16"), ("f64", "f16"), ("f64", "f32"), ("f32", "bf16")):
        x = np.concatenate(
            [
                floats(s, 800),
                floats(s, 800, scale=1.0),
                floats(s, 200, scale=1e-5),
                floats(s, 200, scale=1e5),
            ]
        )
        for m in ("rn", "rz", "rm", "rp"):
            if d == "bf16" and m in ("rm", "rp"):
                continue
            ref = lambda v: (
                rnd(Fraction(float(v)), d, m) if math.isfinite(v) and v != 0 else float(v)
            )
            got = run_ptx(f"cvt.{m}.{d}.{s} %y0, %x0;", [d], [(s, x)])
            same(got, [ref(v) for v in x], (s, d, m))
    for s, d in (("f16", "f32"), ("f16", "f64"), ("f32", "f64"), ("bf16", "f32")):
        x = floats(s)
        same(run_ptx(f"cvt.{d}.{s} %y0, %x0;", [d], [(s, x)]), [float(v) for v in x])
    x = floats("f32", 500, scale=10.0)
    fl = lambda f: [
        math.copysign(float(f(v)), v) if math.isfinite(v) else float(v) for v in x.tolist()
    ]
    same(
        run_ptx("cvt.rni.f32.f32 %y0, %x0;", ["f32"], [("f32", x)]),
        fl(lambda v: round(Fraction(v))),
    )
    same(run_ptx("cvt.rzi.f32.f32 %y0, %x0;", ["f32"], [("f32", x)]), fl(math.trunc))
    same(run_ptx("cvt.rmi.f32.f32 %y0, %x0;", ["f32"], [("f32", x)]), fl(math.floor))
    same(run_ptx("cvt.rpi.f32.f32 %y0, %x0;", ["f32"], [("f32", x)]), fl(math.ceil))


def test_cvt_packed_and_tf32():
    a, b = floats("f32", 500), floats("f32", 500, scale=2.0)
    for t, h in (("bf16x2", "bf16"), ("f16x2", "f16")):
        got = (
            run_ptx(f"cvt.rn.{t}.f32 %y0, %x0, %x1;", ["u32"], [("f32", a), ("f32", b)])
            .view(NP[h])
            .reshape(-1, 2)
        )
        ref = lambda v: rnd(Fraction(float(v)), h) if math.isfinite(v) and v != 0 else float(v)
        same(got[:, 1], [ref(v) for v in a])
        same(got[:, 0], [ref(v) for v in b])
        got = (
            run_ptx(f"cvt.rn.relu.{t}.f32 %y0, %x0, %x1;", ["u32"], [("f32", a), ("f32", b)])
            .view(NP[h])
            .reshape(-1, 2)
        )
        same(got[:, 0], [ref(v) if not v <= 0 else 0.0 for v in b])
    x = floats("f32", 500, special=False, scale=3.0)
    same(
        run_ptx("cvt.rna.tf32.f32 %y0, %x0;", ["f32"], [("f32", x)]),
        [rnd(Fraction(float(v)), "tf32", "rna") for v in x],
    )


def test_mov_pack_unpack():
    a, b = ints("u32"), ints("u32")
    got = run_ptx(
        ".reg .b64 %q; mov.b64 %q, {%x0, %x1}; mov.b64 {%y1, %y0}, %q;",
        ["u32", "u32"],
        [("u32", a), ("u32", b)],
    )
    assert (got[0] == b).all() and (got[1] == a).all()
    got = run_ptx(
        ".reg .b16 %h, %l; mov.b32 {%l, %h}, %x0; mov.b32 %y0, {%h, %l};", ["u32"], [("u32", a)]
    )
    assert (got == (a >> 16 | a << 16)).all()
    got = run_ptx(".reg .b16 %h; mov.b32 {_, %h}, %x0; cvt.u32.u16 %y0, %h;", ["u32"], [("u32", a)])
    assert (got == a >> 16).all()
    got = run_ptx("mov.b32 %y0, 0f3F800000; mov.b32 %y1, -7;", ["f32", "s32"], [("u32", a)])
    assert (got[0] == 1).all() and (got[1] == -7).all()
    # swap through a vector mov must not read what it has just written
    got = run_ptx(
        "mov.b32 %y0, %x0; mov.b32 %y1, %x1; .reg .b64 %q; mov.b64 %q, {%y1, %y0}; mov.b64 {%y0, %y1}, %q;",
        ["u32", "u32"],
        [("u32", a), ("u32", b)],
    )
    assert (got[0] == b).all() and (got[1] == a).all()


def test_isspacep_cvta():
    a = np.zeros(64, "u4")
    body = """.shared .align 4 .b8 sm[16]; .reg .b64 %q<4>; .reg .pred %s<4>;
    mov.u64 %q0, sm; cvta.shared.u64 %q1, %q0; isspacep.shared %y0, %q1; isspacep.global %y1, %q1;
    ld.param.u64 %q2, [p0]; isspacep.global %y2, %q2; cvta.to.shared.u64 %q3, %q1; setp.eq.u64 %y3, %q3, %q0;"""
    got = run_ptx(body, ["pred"] * 4, [("u32", a)])
    assert [int(g[0]) for g in got] == [1, 0, 1, 1]


def test_unsupported_is_named():
    with pytest.raises(NotImplementedError, match=r"tex\.2d"):
        run_ptx(
            "tex.2d.v4.f32.s32 {%y0, %y0, %y0, %y0}, [%a0, {%x0, %x0}];",
            ["f32"],
            [("u32", np.zeros(32, "u4"))],
        )


# ---------------------------------------------------------------- warp instructions
def lanes(n=64):
    return np.arange(n) & 31


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(mode):
    n = 64
    a = ints("u32", n)
    for width in (32, 16, 8, 4, 2):
        for b in (0, 1, 3, 7, 16, 31):
            c = ((32 - width) << 8) | (0 if mode == "up" else 31)
            got, p = run_ptx(
                f"shfl.sync.{mode}.b32 %y0|%y1, %x0, {b}, {c}, -1;",
                ["u32", "pred"],
                [("u32", a)],
                block=64,
            )
            for i in range(n):
                lane, base = i & 31, i & ~31
                lo = lane // width * width
                j = {
                    "up": lane - b,
                    "down": lane + b,
                    "bfly": lane ^ b,
                    "idx": lo + (b & (width - 1)),
                }[mode]
                ok = (j >= lo) if mode == "up" else (j < lo + width)
                assert int(p[i]) == ok and got[i] == a[base + (j if ok else lane)], (width, b, i)


def test_vote_match_redux_elect():
    n = 128
    a = rng.integers(0, 4, n).astype("u4")
    a[32:64] = 7
    w = a.reshape(-1, 32)
    R = lambda x: np.repeat(np.asarray(x), 32)
    bits = (1 << np.arange(32)).astype("u8")
    body = "setp.gt.u32 %g1, %x0, 1; "
    got = run_ptx(body + "vote.sync.ballot.b32 %y0, %g1, -1;", ["u32"], [("u32", a)])
    assert (got == R(((w > 1) * bits).sum(1))).all()
    for op, f in (
        ("all", np.all),
        ("any", np.any),
        ("uni", lambda x, axis: np.all(x, axis=axis) | ~np.any(x, axis=axis)),
    ):
        assert (
            run_ptx(body + f"vote.sync.{op}.pred %y0, %g1, -1;", ["pred"], [("u32", a)])
            == R(f(w > 1, axis=1))
        ).all()
    got = run_ptx("match.any.sync.b32 %y0, %x0, -1;", ["u32"], [("u32", a)])
    assert (got == ((w[:, :, None] == w[:, None, :]) * bits).sum(2).reshape(-1)).all()
    got, p = run_ptx("match.all.sync.b32 %y0|%y1, %x0, -1;", ["u32", "pred"], [("u32", a)])
    allsame = (w == w[:, :1]).all(1)
    assert (p == R(allsame)).all() and (got == R(np.where(allsame, 2**32 - 1, 0))).all()
    s = ints("s32", n)
    for op, t, v, f in (
        ("add", "u32", a, lambda x: x.sum(1)),
        ("min", "s32", s, lambda x: x.min(1)),
        ("max", "s32", s, lambda x: x.max(1)),
        ("min", "u32", a, lambda x: x.min(1)),
        ("max", "u32", a, lambda x: x.max(1)),
        ("and", "b32", a, lambda x: np.bitwise_and.reduce(x, 1)),
        ("or", "b32", a, lambda x: np.bitwise_or.reduce(x, 1)),
        ("xor", "b32", a, lambda x: np.bitwise_xor.reduce(x, 1)),
    ):
        got = run_ptx(f"redux.sync.{op}.{t} %y0, %x0, -1;", [t], [(t, v)])
        assert (got == R(f(v.reshape(-1, 32)))).all(), op
    got, p = run_ptx("elect.sync %y0|%y1, -1;", ["u32", "pred"], [("u32", a)])
    assert (got == 0).all() and (p == (lanes(n) == 0)).all()
    got = run_ptx("activemask.b32 %y0;", ["u32"], [("u32", a)])
    assert (got == 2**32 - 1).all()


def test_member_masks():
    """half-warps with their own masks, executed on different sides of a branch"""
    a = ints("u32", 64)
    body = """.reg .pred %h; mov.u32 %i6, %laneid; setp.lt.u32 %h, %i6, 16; @%h bra LOW;
    shfl.sync.down.b32 %y0, %x0, 1, 31, 0xffff0000; vote.sync.ballot.b32 %y1, %h, 0xffff0000;  redux.sync.add.u32 %y2, %x0, 0xffff0000; bra.uni JOIN;
    LOW: shfl.sync.bfly.b32 %y0, %x0, 3, 31, 0x0000ffff; vote.sync.ballot.b32 %y1, %h, 0xffff; redux.sync.add.u32 %y2, %x0, 0xffff;
    JOIN: bar.warp.sync -1;"""
    y, v, s = run_ptx(body, ["u32"] * 3, [("u32", a)])
    for i in range(64):
        lane, base = i & 31, i & ~31
        src = lane ^ 3 if lane < 16 else min(lane + 1, 31)
        assert y[i] == a[base + src] and v[i] == (0xFFFF if lane < 16 else 0)
        half = a[base + (lane & 16) : base + (lane & 16) + 16]
        assert s[i] == int(half.astype("u8").sum()) % 2**32


def test_special_registers():
    n = 96
    got = run_ptx(
        "mov.u32 %y0, %laneid; mov.u32 %y1, %lanemask_lt; mov.u32 %y2, %lanemask_ge; mov.u32 %y3, %warpid;"
        "mov.u32 %y4, %lanemask_le; mov.u32 %y5, %lanemask_eq; mov.u32 %y6, %lanemask_gt; mov.u32 %y7, %nctaid.x;",
        ["u32"] * 8,
        [("u32", np.zeros(n, "u4"))],
        block=48,
    )
    t = np.arange(n) % 48
    l = t & 31
    assert (
        (got[0] == l).all()
        and (got[1] == (1 << l) - 1).all()
        and (got[2] == (2**32 - (1 << l))).all()
    )
    assert (got[3] == t >> 5).all() and (got[4] == (2 << l) - 1).all() and (got[5] == 1 << l).all()
    assert (got[6] == 2**32 - (2 << l)).all() and (got[7] == 2).all()


# ---------------------------------------------------------------- atomics (instruction level)
@pytest.mark.parametrize(
    ("op", "t"),
    [
        (o, t)
        for o in ("add", "min", "max", "exch", "inc", "dec", "cas", "and", "or", "xor")
        for t in ("u32", "s32", "u64", "s64")
        if not (o in ("inc", "dec") and t != "u32")
        and not (o in ("exch", "cas", "and", "or", "xor") and t[0] == "s")
    ],
)
def test_atomics(op, t):
    n, k = 300, 7
    cell = rng.integers(0, k, n).astype("u4")
    v = ints(t, n) if op not in ("inc", "dec") else rng.integers(0, 9, n).astype("u4")
    pt = "b" + t[1:] if op in ("exch", "cas", "and", "or", "xor") else t
    cmp_ = rng.integers(0, 3, n).astype(NP[t])
    mem = (np.arange(k) % 3).astype(NP[t])
    o = [
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 pm, .param .u64 pc, .param .u64 pv, .param .u64 pk, .param .u64 po) {",
        f".reg .b32 %i<4>; .reg .b64 %a<8>; .reg .b{BITS[t]} %v<4>;",
        "mov.u32 %i0, %tid.x;",
        "ld.param.u64 %a0, [pm]; ld.param.u64 %a1, [pc]; ld.param.u64 %a2, [pv]; ld.param.u64 %a3, [pk]; ld.param.u64 %a4, [po];",
        f"mad.wide.u32 %a1, %i0, 4, %a1; ld.global.u32 %i1, [%a1]; mad.wide.u32 %a0, %i1, {BITS[t] // 8}, %a0;",
    ]
    for r in (2, 3, 4):
        o.append(f"mad.wide.u32 %a{r}, %i0, {BITS[t] // 8}, %a{r};")
    o.append(f"ld.global.b{BITS[t]} %v0, [%a2]; ld.global.b{BITS[t]} %v1, [%a3];")
    o.append(f"atom.global.{op}.{pt} %v2, [%a0], " + ("%v1, %v0;" if op == "cas" else "%v0;"))
    o.append(f"st.global.b{BITS[t]} [%a4], %v2; ret; }}")
    f = Module(ptx="\n".join(o)).get_function("k")
    out, m2 = np.zeros(n, NP[t]), mem.copy()
    f(1, n, (m2, cell, v, cmp_, out))
    ref = mem.tolist()
    for i in range(n):  # lane order is one legal order, and the one used
        old, x, c = ref[cell[i]], v[i].item(), cmp_[i].item()
        assert out[i] == old, i
        ref[cell[i]] = {
            "add": lambda: wrap(old + x, t),
            "min": lambda: min(old, x),
            "max": lambda: max(old, x),
            "exch": lambda: x,
            "inc": lambda: 0 if old >= x else old + 1,
            "dec": lambda: x if old == 0 or old > x else old - 1,
            "cas": lambda: x if old == c else old,
            "and": lambda: old & x,
            "or": lambda: old | x,
            "xor": lambda: old ^ x,
        }[op]()
    assert m2.tolist() == ref


@pytest.mark.parametrize("t", ["f32", "f64", "f16", "bf16", "f16x2", "bf16x2"])
@pytest.mark.parametrize("kind", ["atom", "red"])
def test_float_atomics(t, kind):
    n, k = 256, 5
    h = t[:-2] if t.endswith("x2") else t
    per = 2 if t.endswith("x2") else 1
    x = rng.standard_normal((n, per)).astype(NP[h])
    cell = rng.integers(0, k, n).astype("u4")
    nz = ".noftz" if h in ("f16", "bf16") else ""
    b = BITS[t]
    text = f""".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 pm, .param .u64 pc, .param .u64 pv) {{
    .reg .b32 %i<4>; .reg .b64 %a<8>; .reg .b{b} %v<4>; mov.u32 %i0, %tid.x;
    ld.param.u64 %a0, [pm]; ld.param.u64 %a1, [pc]; ld.param.u64 %a2, [pv];
    mad.wide.u32 %a1, %i0, 4, %a1; ld.global.u32 %i1, [%a1]; mad.wide.u32 %a0, %i1, {b // 8}, %a0;
    mad.wide.u32 %a2, %i0, {b // 8}, %a2; ld.global.b{b} %v0, [%a2];
    {kind}.global.add{nz}.{t} {"%v1, " if kind == "atom" else ""}[%a0], %v0; ret; }}"""
    m = np.zeros((k, per), NP[h])
    Module(ptx=text).get_function("k")(1, n, (m, cell, x))
    ref = np.zeros((k, per), NP[h])
    for i in range(n):
        ref[cell[i]] = (
            (ref[cell[i]].astype("f8") + x[i].astype("f8"))
            .astype("f4" if h != "f64" else "f8")
            .astype(NP[h])
        )
    assert (m == ref).all()


# ---------------------------------------------------------------- memory instructions
def run_mem(body, arrays, block=32, grid=1, **kw):
    """body sees %p0.. (addresses of the arrays) and %t (thread of the grid)"""
    o = [
        ".version 8.4\n.target sm_90\n.address_size 64\n.visible .entry k("
        + ", ".join(f".param .u64 q{i}" for i in range(len(arrays)))
        + ") {",
        ".reg .b64 %p<16>, %d<16>; .reg .b32 %r<32>; .reg .b16 %h<16>; .reg .f32 %f<16>; .reg .pred %c<4>; .reg .b32 %t;",
        "mov.u32 %r0, %ntid.x; mov.u32 %r1, %ctaid.x; mov.u32 %t, %tid.x; mad.lo.u32 %t, %r0, %r1, %t;",
    ]
    o += [f"ld.param.u64 %p{i}, [q{i}];" for i in range(len(arrays))] + [body, "ret; }"]
    return Module(ptx="\n".join(o)).get_function("k")(grid, block, arrays, **kw)


def test_vector_and_narrow_memory():
    x, y = rng.integers(0, 65536, (32, 4)).astype("u2"), np.zeros((32, 4), "u2")
    run_mem(
        "mad.wide.u32 %p0, %t, 8, %p0; mad.wide.u32 %p1, %t, 8, %p1; ld.global.v4.b16 {%h0, %h1, %h2, %h3}, [%p0]; "
        "st.global.v2.b16 [%p1], {%h3, %h2}; st.global.v2.b16 [%p1+4], {%h1, %h0};",
        (x, y),
    )
    assert (y == x[:, ::-1]).all()
    b, o = rng.integers(0, 256, 64).astype("u1"), np.zeros((64, 3), "i4")
    run_mem(
        "cvt.u64.u32 %d0, %t; add.u64 %p0, %p0, %d0; mad.wide.u32 %p1, %t, 12, %p1; ld.global.u8 %r2, [%p0]; ld.global.s8 %r3, [%p0]; "
        "ld.global.s8 %h0, [%p0]; cvt.s32.s16 %r4, %h0; st.global.u32 [%p1], %r2; st.global.u32 [%p1+4], %r3; st.global.u32 [%p1+8], %r4;",
        (b, o),
        64,
    )
    assert (
        (o[:, 0] == b).all() and (o[:, 1] == b.view("i1")).all() and (o[:, 2] == b.view("i1")).all()
    )
    x, y = rng.standard_normal((32, 2)), np.zeros((32, 2))
    run_mem(
        "mad.wide.u32 %p0, %t, 16, %p0; mad.wide.u32 %p1, %t, 16, %p1; createpolicy.fractional.L2::evict_first.b64 %d3, 1.0; "
        "ld.global.L1::no_allocate.L2::cache_hint.v2.f64 {%d0, %d1}, [%p0], %d3; st.global.wt.v2.b64 [%p1], {%d1, %d0}; prefetch.global.L2 [%p0];",
        (x, y),
    )
    assert (y == x[:, ::-1]).all()


def test_vector_reduction():
    x, acc = rng.integers(-9, 9, (64, 4)).astype("f4"), np.zeros(4, "f4")
    run_mem(
        "mad.wide.u32 %p0, %t, 16, %p0; ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%p0]; red.relaxed.gpu.global.add.v4.f32 [%p1], {%f0, %f1, %f2, %f3};",
        (x, acc),
        64,
    )
    assert (acc == x.sum(0)).all()


@pytest.mark.parametrize(("n", "trans"), [(1, ""), (2, ""), (4, ""), (4, ".trans"), (2, ".trans")])
def test_ldmatrix(n, trans):
    x, o = rng.integers(0, 65536, (n * 8, 8)).astype("u2"), np.zeros((32, n, 2), "u2")
    regs = ", ".join(f"%r{10 + k}" for k in range(n))
    body = f""".shared .align 16 .b8 sm[512]; mov.u32 %r2, sm; setp.lt.u32 %c0, %t, {8 * n}; @!%c0 bra SKIP;
      mad.wide.u32 %p0, %t, 16, %p0; ld.global.v2.b64 {{%d0, %d1}}, [%p0]; mad.lo.u32 %r3, %t, 16, %r2; st.shared.v2.b64 [%r3], {{%d0, %d1}};
      SKIP: bar.sync 0; and.b32 %r4, %t, {8 * n - 1}; mad.lo.u32 %r3, %r4, 16, %r2;
      ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 {{{regs}}}, [%r3]; mad.wide.u32 %p1, %t, {4 * n}, %p1;"""
    body += " ".join(f"st.global.u32 [%p1+{4 * k}], %r{10 + k};" for k in range(n))
    run_mem(body, (x, o))
    for k in range(n):
        m = x[8 * k : 8 * k + 8].T if trans else x[8 * k : 8 * k + 8]
        for lane in range(32):
            assert o[lane, k].tolist() == m[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].tolist()


def test_cp_async_zero_fill_and_wait_all():
    x, o = rng.integers(1, 2**32, (32, 4)).astype("u4"), np.zeros((32, 4), "u4")
    body = """.shared .align 16 .b8 sm[512]; mov.u32 %r2, sm; mad.lo.u32 %r3, %t, 16, %r2; mad.wide.u32 %p0, %t, 16, %p0; mad.wide.u32 %p1, %t, 16, %p1;
      and.b32 %r4, %t, 1; mul.lo.u32 %r4, %r4, 8; add.u32 %r4, %r4, 4; cp.async.cg.shared.global [%r3], [%p0], 16, %r4; cp.async.wait_all;
      ld.shared.v2.b64 {%d0, %d1}, [%r3]; st.global.v2.b64 [%p1], {%d0, %d1};"""
    run_mem(body, (x, o))
    want = x.copy()
    want[0::2, 1:], want[1::2, 3:] = 0, 0
    assert (o == want).all()
    rep = run_mem(body.replace("cp.async.wait_all;", ""), (x, o), check="report")
    assert rep.kinds() == ["async-not-waited"]


def test_barrier_variants():
    x, o = rng.integers(0, 2, 96).astype("u4"), np.zeros((96, 2), "u4")
    run_mem(
        """mad.wide.u32 %p0, %t, 4, %p0; mad.wide.u32 %p1, %t, 8, %p1; ld.global.u32 %r2, [%p0]; setp.ne.u32 %c0, %r2, 0;
      barrier.sync 0; bar.red.popc.u32 %r3, 0, %c0; barrier.cta.red.or.pred %c1, 0, %c0; selp.u32 %r4, 1, 0, %c1; mov.u32 %r5, 3; bar.sync %r5, 96; st.global.v2.u32 [%p1], {%r3, %r4};""",
        (x, o),
        96,
    )
    assert (o[:, 0] == x.sum()).all() and (o[:, 1] == x.any()).all()
    # producer / consumer: the second half arrives without waiting
    o = np.zeros(64, "u4")
    run_mem(
        """.shared .align 4 .b8 sm[128]; mov.u32 %r2, sm; setp.lt.u32 %c0, %t, 32; @%c0 bra CONS; mad.lo.u32 %r3, %t, 4, %r2; st.shared.u32 [%r3+-128], %t; bar.arrive 1, 64; bra END;
      CONS: bar.sync 1, 64; mad.lo.u32 %r3, %t, 4, %r2; ld.shared.u32 %r4, [%r3]; mad.wide.u32 %p0, %t, 4, %p0; st.global.u32 [%p0], %r4; END:""",
        (o,),
        64,
    )
    assert (o[:32] == np.arange(32) + 32).all()


def test_match_b64_and_cvt_pack():
    a = rng.integers(0, 3, 64).astype("u8") << np.uint64(33)
    w = a.reshape(2, 32)
    got = run_ptx("match.any.sync.b64 %y0, %x0, -1;", ["u32"], [("u64", a)])
    assert (
        got == ((w[:, :, None] == w[:, None, :]) * (1 << np.arange(32))).sum(2).reshape(-1)
    ).all()
    x, y = ints("s32"), ints("s32")
    got = run_ptx("cvt.pack.sat.s16.s32 %y0, %x0, %x1;", ["u32"], [("s32", x), ("s32", y)])
    c = lambda v: max(-32768, min(32767, int(v))) & 0xFFFF
    assert got.tolist() == [c(p) << 16 | c(q) for p, q in zip(x, y)]
