"""Exactly rounded float helpers on NumPy arrays (fma, directed rounding, bf16, float -> int)."""

import math
from fractions import Fraction

import numpy as np

u1, u2, u4, u8 = np.uint8, np.uint16, np.uint32, np.uint64
i1, i2, i4, i8 = np.int8, np.int16, np.int32, np.int64
f2, f4, f8 = np.float16, np.float32, np.float64
INF = np.inf


def ftz(x):
    """Subnormal float32 -> zero of the same sign."""
    tiny = np.abs(x) < f4(1.1754943508222875e-38)
    return np.where(tiny, np.copysign(f4(0), x), x) if tiny.any() else x


def two_sum_err(a, b, s):
    """The exact error a + b - s of the rounded sum s (no overflow)."""
    bb = s - a
    return (a - (s - bb)) + (b - bb)


def two_prod(a, b):
    """p, e with p + e == a * b exactly (float64, moderate exponents)."""
    p = a * b
    c = a * 134217729.0
    ah = c - (c - a)
    al = a - ah
    c = b * 134217729.0
    bh = c - (c - b)
    bl = b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def to_odd(s, err):
    """s (rounded to nearest) + err  ->  round-to-odd float64."""
    even = (s.view(u8) & u8(1)) == 0
    fix = (err != 0) & even & np.isfinite(s)
    if fix.any():
        s = np.where(fix, np.nextafter(s, np.copysign(INF, err)), s)
    return s


def f64_to_f32_odd(x):
    """float64 -> float32, round to odd (so that a second rounding is exact)."""
    r = x.astype(f4)
    back = r.astype(f8)
    inexact = (back != x) & ~np.isnan(x)
    if inexact.any():
        toward0 = np.abs(back) > np.abs(x)
        r = np.where(inexact & toward0, np.nextafter(r, f4(0)), r)
        r = (r.view(u4) | inexact.astype(u4)).view(f4)
    return r


def bf16_to_f32(bits):
    return (np.asarray(bits).astype(u4) << u4(16)).view(f4)


def f32_to_bf16(x):
    """float32 -> bfloat16 bits, round to nearest even (NaN -> 0x7fff)."""
    u = x.view(u4)
    r = ((u + (u4(0x7FFF) + ((u >> u4(16)) & u4(1)))) >> u4(16)).astype(u2)
    nan = np.isnan(x)
    return np.where(nan, u2(0x7FFF), r) if nan.any() else r


def _fma_exact_scalar(a, b, c):
    v = Fraction(a) * Fraction(b) + Fraction(c)
    if v == 0:
        return a * b + c  # the sign of zero
    try:
        return v.numerator / v.denominator  # int / int is correctly rounded
    except OverflowError:
        return math.inf if v > 0 else -math.inf


def fma64(a, b, c):
    """float64 fused multiply-add, exactly rounded (Boldo-Melquiond)."""
    a, b, c = (np.asarray(x, f8) for x in (a, b, c))
    uh, ul = two_prod(a, b)
    th = c + ul
    tl = two_sum_err(c, ul, th)
    vh = uh + th
    vl = two_sum_err(uh, th, vh)
    z = to_odd(tl + vl, two_sum_err(tl, vl, tl + vl))
    r = vh + z
    ap, ac, ar = np.abs(uh), np.abs(c), np.abs(r)
    least = np.minimum(np.minimum(ap, ac), ar).min(initial=1.0)
    most = np.maximum(np.maximum(ap, ac), ar).max(initial=1.0)
    # What overflows on the way makes r inf or NaN, which compares with nothing.
    return r if least > 1e-240 and most < 1e290 else _fma64_of_any(a, b, c, r)


def _fma64_of_any(a, b, c, r):
    """`r`, where it is right: it is not if what it is made of is near the ends of the exponents."""
    a, b, c = np.broadcast_arrays(a, b, c)
    big, small = 1e145, 1e-120
    aa, ab, ac = np.abs(a), np.abs(b), np.abs(c)
    ok = (
        (aa < big)
        & (ab < big)
        & (ac < 1e290)
        & ((aa > small) | (a == 0))
        & ((ab > small) | (b == 0))
        & ((ac > 1e-280) | (c == 0))
    )
    zero = (a == 0) | (b == 0) | (r == 0)
    if ok.all() and not zero.any():
        return r
    r = np.array(r)
    plain = a * b + c
    r[zero] = plain[zero]
    bad = ~ok | (zero & (a != 0) & (b != 0))
    special = bad & ~(np.isfinite(a) & np.isfinite(b) & np.isfinite(c))
    r[special] = plain[special]
    for i in np.argwhere(bad & ~special):
        i = tuple(i)
        r[i] = _fma_exact_scalar(float(a[i]), float(b[i]), float(c[i]))
    return r


def sum64(x, y):
    """x + y in float64, nudged (only where it can matter) so that rounding the result to
    float32 / float16 / bfloat16 gives the exactly rounded x + y."""
    s = x + y
    cand = (s.view(u8) & u8(0x0FFFFFFF)) == 0
    if cand.any():
        err = two_sum_err(x, y, s)
        fix = cand & (err != 0) & np.isfinite(s) & np.isfinite(err)
        if fix.any():
            s = np.where(fix, np.nextafter(s, np.copysign(INF, err)), s)
    return s


def fma32(a, b, c):
    """float32 fused multiply-add, exactly rounded to nearest."""
    x = np.asarray(a, f8) * np.asarray(b, f8)
    return sum64(*np.broadcast_arrays(x, np.asarray(c, f8))).astype(f4)


def direct(s, sign_of_error, mode):
    """Turn a round-to-nearest result s into mode rz / rm / rp.
    sign_of_error is the sign of (exact - s)."""
    e = sign_of_error
    if mode == "rz":
        move = ((s > 0) & (e < 0)) | ((s < 0) & (e > 0))
        to = np.zeros_like(s)
    elif mode == "rm":
        move, to = e < 0, np.full_like(s, -INF)
    else:
        move, to = e > 0, np.full_like(s, INF)
    return np.where(move, np.nextafter(s, to), s)


def _exact_sum_directed(x, y, mode, dt):
    """Directed rounding to dt of the exact sum of two float64 arrays."""
    x, y = np.broadcast_arrays(x, y)
    s = x + y
    err = np.where(np.isfinite(s), two_sum_err(x, y, s), 0.0)
    r = s.astype(dt)
    d = s - r.astype(f8) if dt is not f8 else np.zeros_like(s)
    e = np.where(d != 0, d, err)
    e = np.where(np.isinf(r) & np.isfinite(x) & np.isfinite(y), np.where(r > 0, -1.0, 1.0), e)
    out = direct(r, np.sign(e), mode)
    if mode == "rm":  # an exact zero sum of opposite signs is -0 when rounding down
        out = np.where((s == 0) & (err == 0) & (np.signbit(x) != np.signbit(y)), dt(-0.0), out)
    return out


def directed(op, mode, dt, a, b=None, c=None):
    """add/sub/mul/fma/div/rcp/sqrt with rounding rz/rm/rp for dt = float32 or float64."""
    A = np.asarray(a, f8)
    B = None if b is None else np.asarray(b, f8)
    if op == "sub":
        op, B = "add", -B
    if op == "rcp":
        op, A, B = "div", np.ones_like(A), A
    if op == "add":
        return _exact_sum_directed(A, B, mode, dt)
    if dt is f4:
        if op == "mul":
            x = A * B
            return _exact_sum_directed(x, np.copysign(0.0, x), mode, dt)
        if op == "fma":
            return _exact_sum_directed(A * B, np.asarray(c, f8), mode, dt)
        if op == "div":
            q = np.asarray(A, f4) / np.asarray(B, f4)
            res = (A - q.astype(f8) * B) * np.sign(B)
        else:
            q = np.sqrt(A.astype(f4))
            res = A - q.astype(f8) * q.astype(f8)
        overflowed = np.isinf(q) & np.isfinite(A) & ((B if B is not None else A) != 0)
        res = np.where(np.isfinite(q), res, np.where(overflowed, -np.sign(q), 0.0))
        return direct(q, np.sign(res), mode)
    # float64: exact through rationals, element by element (rare)
    arrs = np.broadcast_arrays(
        *[
            np.atleast_1d(x)
            for x in (A, B, None if c is None else np.asarray(c, f8))
            if x is not None
        ]
    )
    out = np.empty(arrs[0].shape)
    for i in np.ndindex(out.shape):
        v = [float(x[i]) for x in arrs]
        if op == "sqrt":
            s = math.sqrt(v[0]) if v[0] >= 0 else math.nan
            e = 0 if not math.isfinite(s) else Fraction(v[0]) - Fraction(s) ** 2
        else:
            with np.errstate(all="ignore"):
                s = {
                    "mul": lambda: f8(v[0]) * f8(v[1]),
                    "div": lambda: f8(v[0]) / f8(v[1]),
                    "fma": lambda: fma64(v[0], v[1], v[2])[()],
                }[op]()
            if not all(map(math.isfinite, v)) or (op == "div" and v[1] == 0):
                e = 0
            else:
                F = [Fraction(x) for x in v]
                ex = {
                    "mul": lambda: F[0] * F[1],
                    "div": lambda: F[0] / F[1],
                    "fma": lambda: F[0] * F[1] + F[2],
                }[op]()
                e = (-1 if s > 0 else 1) if math.isinf(s) else ex - Fraction(float(s))
        out[i] = direct(np.array([s]), np.array([float((e > 0) - (e < 0))]), mode)[0]
    return out.reshape(np.broadcast_shapes(A.shape))


def round_float(x, t, mode="rn"):
    """Exact value x (float32/float64/longdouble array) -> storage of float type t
    ('f64', 'f32', 'f16', 'bf16'); bf16 comes back as uint16 bits."""
    if t == "bf16":
        if mode == "rn":
            return f32_to_bf16(x if x.dtype == f4 else f64_to_f32_odd(np.asarray(x, f8)))
        y = np.asarray(x, f8)
        r32 = f64_to_f32_odd(y)  # keeps inexactness in the last bit
        u = r32.view(u4)
        top, rest = (u >> u4(16)), (u & u4(0xFFFF)) != 0
        neg = (u >> u4(31)) != 0
        up = rest & (neg if mode == "rm" else ~neg if mode == "rp" else False)
        return np.where(np.isnan(y), u2(0x7FFF), (top + up).astype(u2))
    dt = {"f64": f8, "f32": f4, "f16": f2}[t]
    r = x.astype(dt)
    if mode == "rn" or x.dtype == dt:
        return r
    e = np.sign(x - r.astype(x.dtype))
    e = np.where(
        np.isinf(r) & np.isfinite(x), np.where(r > 0, -1, 1), np.where(np.isfinite(r), e, 0)
    )
    return direct(r, e, mode)


ROUND_INT = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def float_to_int(x, dt, mode, wide_nan):
    """Saturating float -> integer conversion with PTX's NaN rule."""
    info = np.iinfo(dt)
    y = ROUND_INT[mode](x.astype(f8))
    lo, hi = float(info.min), float(info.max)  # hi may round up to 2**63 / 2**64
    over, under, nan = y >= hi, y <= lo, np.isnan(y)
    safe = np.where(over | under | nan, 0.0, y)
    r = safe.astype(dt)
    r = np.where(over, dt(info.max), np.where(under, dt(info.min), r))
    if nan.any():
        bad = (1 << (info.bits - 1)) if wide_nan else 0
        r = np.where(nan, np.array(bad, f"u{info.bits // 8}").view(dt), r)
    return r.astype(dt)


def fmin(a, b):
    r = np.fmin(a, b)
    z = (a == 0) & (b == 0)
    return np.where(z, np.where(np.signbit(a), a, b), r) if z.any() else r


def fmax(a, b):
    r = np.fmax(a, b)
    z = (a == 0) & (b == 0)
    return np.where(z, np.where(np.signbit(a), b, a), r) if z.any() else r


def clz(x, bits):
    x = np.asarray(x)
    if bits == 64:
        hi = (x >> u8(32)).astype(u4)
        lo = x.astype(u4)
        return np.where(hi != 0, clz(hi, 32), clz(lo, 32) + u4(32))
    return (bits - np.frexp(x.astype(f8))[1] * (x != 0)).astype(u4)


def brev(x, bits):
    dt = u4 if bits == 32 else u8
    r = np.zeros_like(x)
    m = [
        (1, 0x5555555555555555),
        (2, 0x3333333333333333),
        (4, 0x0F0F0F0F0F0F0F0F),
        (8, 0x00FF00FF00FF00FF),
        (16, 0x0000FFFF0000FFFF),
        (32, 0x00000000FFFFFFFF),
    ]
    r = x
    for s, k in m:
        if s >= bits:
            break
        k = dt(k & ((1 << bits) - 1))
        r = ((r >> dt(s)) & k) | ((r & k) << dt(s))
    return r


def mulhi_u64(a, b):
    M = u8(0xFFFFFFFF)
    s = u8(32)
    al, ah, bl, bh = a & M, a >> s, b & M, b >> s
    t = al * bl
    w = ah * bl + (t >> s)
    v = al * bh + (w & M)
    return ah * bh + (w >> s) + (v >> s)


def mulhi_s64(a, b):
    r = mulhi_u64(a.view(u8), b.view(u8))
    r = r - np.where(a < 0, b.view(u8), u8(0)) - np.where(b < 0, a.view(u8), u8(0))
    return r.view(i8)
