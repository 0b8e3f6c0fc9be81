"""PTX instructions -> Python closures over register arrays."""

import numpy as np

from . import machine as mc
from . import numerics as nx
from .machine import BIT, Lanes
from .numerics import f2, f4, f8, i1, i2, i4, i8, u1, u2, u4, u8
from .ptx import SINK, WIDTH, Imm, Name, Not, Pair, Reg, Special, Sym, Var, Vec

DT = {
    "b8": u1,
    "u8": u1,
    "s8": i1,
    "b16": u2,
    "u16": u2,
    "s16": i2,
    "f16": f2,
    "bf16": u2,
    "b32": u4,
    "u32": u4,
    "s32": i4,
    "f32": f4,
    "tf32": f4,
    "f16x2": u4,
    "bf16x2": u4,
    "b64": u8,
    "u64": u8,
    "s64": i8,
    "f64": f8,
    "pred": np.bool_,
}
UNS = {1: u1, 2: u2, 4: u4, 8: u8}
SIG = {1: i1, 2: i2, 4: i4, 8: i8}
FLOATS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f64"}
TERMINATORS = {
    "bra",
    "brx",
    "ret",
    "exit",
    "call",
    "bar",
    "barrier",
    "shfl",
    "vote",
    "match",
    "redux",
    "elect",
    "trap",
}
ONE32 = u4(1)
_BOOL = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


class Const:
    """An operand that is the same for all lanes."""

    def __init__(self, v):
        self.v = v


def getter(x):
    if isinstance(x, Const):
        v = x.v
        return lambda L: v
    if callable(x):
        return x
    return lambda L: x[L.ix]


def full(x, L, dt):
    """Broadcast a possibly scalar value to all lanes of L."""
    return x if isinstance(x, np.ndarray) and x.ndim else np.full(L.n, x, dt)


_BLOCK = 32  # registers


class Decoder:
    def __init__(self, m):
        self.m, self.prog, self.cap = m, m.prog, m.cap
        self.regs, self.pvars, self.wides = {}, {}, {}
        self.blocks = {}  # by dtype: the last block of registers, and how many of it are used
        m.reg_blocks, m.param_arrays = [], []
        m.finishers = {}
        m.is_barwarp = np.zeros(len(self.prog.code) + 1, bool)
        self.sink = {}

    def unsupported(self, ins, why=""):
        raise NotImplementedError(
            f"PTX line {ins.line}: {ins.full}{' (' + why + ')' if why else ''} is not supported: "
            f"{ins.text}"
        )

    # -- operands
    def reg(self, r):
        a = self.regs.get(r)
        if a is None:
            if r.type == "b128":
                raise NotImplementedError("128-bit registers are not supported")
            a = self.regs[r] = self._register(bool if r.type == "pred" else UNS[WIDTH[r.type]])
        return a

    def _register(self, dtype):
        """An element a lane, in a block: a launch fills blocks faster than single registers."""
        block, used = self.blocks.get(dtype, (None, _BLOCK))
        if used == _BLOCK:
            block, used = np.zeros((_BLOCK, self.cap), dtype), 0
            self.m.reg_blocks.append(block)
        self.blocks[dtype] = block, used + 1
        return block[used]

    def typed(self, arr, t):
        """View of an unsigned register array as PTX type t (possibly narrower than the register)."""
        if t == "pred" or arr.dtype == bool:
            return arr
        w, have = WIDTH[t], arr.itemsize
        if t == "f16x2":
            return arr.view(f2).reshape(self.cap, 2)
        if t == "bf16x2":
            return arr.view(u2).reshape(self.cap, 2)
        v = arr.view(DT[t])
        if w < have:
            v = v[:: have // w]
        elif w > have:
            raise NotImplementedError(f"register of {have} bytes used as {t}")
        return v

    def imm(self, o, t):
        v, w = o.value, WIDTH[t]
        if t == "pred":
            return np.bool_(v != 0)
        if o.kind == "i":
            if t in ("f32", "f64", "f16"):
                # an integer literal with a float type: bits for f16 (0x3C00), else a value
                if t == "f16":
                    return u2(v & 0xFFFF).view(f2)
                return DT[t](v)
            bits = v & ((1 << 8 * w) - 1)
        elif o.kind == "f32":
            bits = (
                v
                if w == 4
                else int(np.array(v, u4).view(f4).astype(f8).view(u8))
                if t == "f64"
                else v
            )
        else:
            bits = v if w == 8 else int(np.array(v, u8).view(f8).astype(f4).view(u4))
        raw = np.array(bits & ((1 << 8 * w) - 1), UNS[w])
        if t == "f16x2":
            return raw.reshape(1).view(f2)
        if t == "bf16x2":
            return raw.reshape(1).view(u2)
        return raw.view(DT[t])[()]

    def special(self, name, t):
        dt = u8 if name in ("%clock64", "%globaltimer") else u4
        if name in (
            "%clock",
            "%clock64",
            "%clock_hi",
            "%globaltimer",
            "%globaltimer_lo",
            "%globaltimer_hi",
        ):
            m = self.m
            return lambda L: np.full(L.n, m.steps, dt).astype(DT[t])
        a = self.m.specials.get(name)
        if a is None:
            a = self.m.specials[name] = np.zeros(self.cap, u4)
        if WIDTH[t] == 4:
            return a.view(DT[t])
        return lambda L: a[L.ix].astype(DT[t])

    def src(self, o, t):
        """-> array over all lanes, Const, or callable(L)."""
        if isinstance(o, Reg):
            return self.typed(self.reg(o), t)
        if isinstance(o, Imm):
            return Const(self.imm(o, t))
        if isinstance(o, Special):
            return self.special(o.name, t)
        if isinstance(o, Sym):
            return Const(DT[t](self.prog.address(o.target) + o.offset))
        if isinstance(o, Not):
            p = self.reg(o.reg)
            return lambda L: ~p[L.ix]
        if isinstance(o, Name):
            raise NotImplementedError(
                f"the address of {o.name} (function pointers) is not supported"
            )
        raise NotImplementedError(f"operand {o!r}")

    def vsrc(self, o, t):
        """getter that always returns an array with one element per lane."""
        s = self.src(o, t)
        g = getter(s)
        if isinstance(s, Const):
            dt = np.asarray(s.v).dtype
            return lambda L: (
                np.full(L.n, s.v, dt)
                if np.ndim(s.v) == 0
                else np.broadcast_to(s.v, (L.n, len(s.v)))
            )
        return g

    def dst(self, o, t):
        """-> array to be assigned with [L.ix] (wider registers are sign- / zero-extended)."""
        if o is SINK:
            key = t
            if key not in self.sink:
                self.sink[key] = self.typed(
                    np.zeros(self.cap, UNS[WIDTH[t]]) if t != "pred" else np.zeros(self.cap, bool),
                    t,
                )
            return self.sink[key]
        arr = self.reg(o)
        if t == "pred":
            if arr.dtype != bool:
                raise NotImplementedError("predicate written to a data register")
            return arr
        if t in ("f16x2", "bf16x2") or arr.itemsize == WIDTH[t]:
            return self.typed(arr, t)
        if t in FLOATS:
            return _Bits(arr, DT[t])
        if arr.itemsize < WIDTH[t]:
            return _Narrow(arr)
        return arr.view((SIG if t[0] == "s" else UNS)[arr.itemsize])

    # -- element-wise helper
    def ew(self, fn, d, *srcs):
        """closure: d[lanes] = fn(*sources)"""
        if len(srcs) == 2:
            a, b = srcs
            an, bn = isinstance(a, np.ndarray), isinstance(b, np.ndarray)
            if an and bn:

                def f(L):
                    ix = L.ix
                    d[ix] = fn(a[ix], b[ix])

                return f
            if an and isinstance(b, Const):
                bv = b.v

                def f(L):
                    ix = L.ix
                    d[ix] = fn(a[ix], bv)

                return f
        if len(srcs) == 3 and all(isinstance(s, np.ndarray) for s in srcs):
            a, b, c = srcs

            def f(L):
                ix = L.ix
                d[ix] = fn(a[ix], b[ix], c[ix])

            return f
        if len(srcs) == 1 and isinstance(srcs[0], np.ndarray):
            a = srcs[0]

            def f(L):
                ix = L.ix
                d[ix] = fn(a[ix])

            return f
        gs = [getter(s) for s in srcs]

        def f(L):
            d[L.ix] = fn(*[g(L) for g in gs])

        return f

    def vew(self, fn, d, *gs):
        """like ew, but the sources are getters of full arrays"""

        def f(L):
            d[L.ix] = fn(*[g(L) for g in gs])

        return f

    # -- floats: sources in the computing type, results rounded to storage
    def fsrc(self, o, t, ftz=False):
        g = self.vsrc(o, t)
        if t in ("f16", "f16x2"):
            return lambda L: g(L).astype(f4)
        if t in ("bf16", "bf16x2"):
            return lambda L: nx.bf16_to_f32(g(L))
        if t == "f32" and ftz:
            return lambda L: nx.ftz(g(L))
        return g

    def fpost(self, t, ins):
        """function that rounds a float32/float64 result to t and applies .ftz/.sat/.relu"""
        mods = ins.mods
        base = {"f16x2": "f16", "bf16x2": "bf16"}.get(t, t)
        steps = []
        if "sat" in mods:
            steps.append(
                lambda x: np.where(
                    np.isnan(x), x.dtype.type(0), np.clip(x, x.dtype.type(0), x.dtype.type(1))
                )
            )
        if "relu" in mods:
            steps.append(lambda x: np.where(np.isnan(x), x, np.maximum(x, x.dtype.type(0))))
        if base in ("f16", "bf16"):
            steps.append(lambda x: nx.round_float(x, base))
        elif base == "f32":
            steps.append(lambda x: x.astype(f4) if x.dtype != f4 else x)
            if "ftz" in mods:
                steps.append(nx.ftz)
        if not steps:
            return None

        def post(x):
            for s in steps:
                x = s(x)
            return x

        return post

    # ------------------------------------------------------------ the table
    def _handler(self, ins, prefix, name):
        fn = getattr(self, prefix + name, None)
        if fn is None or ins.bad:
            self.unsupported(ins)
        try:
            return fn(ins)
        except NotImplementedError as e:
            if "is not supported" in str(e) and ins.text in str(e):
                raise
            self.unsupported(ins, str(e))
        except (KeyError, IndexError, AttributeError, StopIteration, TypeError) as e:
            raise NotImplementedError(
                f"PTX line {ins.line}: {ins.full} in this form is not supported "
                f"({type(e).__name__}: {e}): {ins.text}"
            ) from e

    def decode(self, ins):
        f = self._handler(ins, "op_", ins.op)
        if self.m.chains is not None:
            f = self.m.chains.tracking(ins, f)
        if ins.pred is not None:
            p, neg, g = self.reg(ins.pred), ins.neg, f

            def f(L):
                m = p[L.ix]
                if neg:
                    m = ~m
                if m.all():
                    g(L)
                elif m.any():
                    g(L.sub(m))

        return f

    # ------------------------------------------------------------ arithmetic
    def _float_binary(self, ins, fn, name):
        t, mods = ins.mods[-1], ins.mods
        ftz = "ftz" in mods
        mode = next((x for x in ("rz", "rm", "rp") if x in mods), None)
        d = self.dst(ins.args[0], t)
        if mode:
            if t not in ("f32", "f64"):
                self.unsupported(ins)
            dt = DT[t]
            fn = lambda *xs: nx.directed(name, mode, dt, *xs)
        post = self.fpost(t, ins)
        if t in ("f32", "f64") and not ftz and "sat" not in mods and not mode:
            return self.ew(fn, d, *[self.src(a, t) for a in ins.args[1:]])
        gs = [self.fsrc(a, t, ftz) for a in ins.args[1:]]
        return self.vew((lambda *xs: post(fn(*xs))) if post else fn, d, *gs)

    def _int_binary(self, ins, fn):
        t = ins.mods[-1]
        return self.ew(fn, self.dst(ins.args[0], t), *[self.src(a, t) for a in ins.args[1:]])

    def _addsub(self, ins, fn, name):
        t = ins.mods[-1]
        if t in FLOATS:
            return self._float_binary(ins, fn, name)
        if t in ("u16x2", "s16x2", "f32x2"):
            self.unsupported(ins)
        if "sat" in ins.mods:
            a, b, d = self.vsrc(ins.args[1], t), self.vsrc(ins.args[2], t), self.dst(ins.args[0], t)
            return self.vew(
                lambda x, y: np.clip(fn(x.astype(i8), y.astype(i8)), -(2**31), 2**31 - 1), d, a, b
            )
        if "cc" in ins.mods or ins.op.endswith("c"):
            return self._carry(ins, name)
        if t[0] == "s":
            t = "u" + t[1:]
        return self.ew(fn, self.dst(ins.args[0], t), *[self.src(a, t) for a in ins.args[1:]])

    def _carry(self, ins, name):
        t = "u" + ins.mods[-1][1:]
        a, b, d = self.vsrc(ins.args[1], t), self.vsrc(ins.args[2], t), self.dst(ins.args[0], t)
        if not hasattr(self, "cc"):
            self.cc = np.zeros(self.cap, bool)
        cc, use, put, dt = self.cc, ins.op in ("addc", "subc"), "cc" in ins.mods, DT[t]

        def f(L):
            x, y = a(L), b(L)
            c = cc[L.ix].astype(dt) if use else np.zeros(L.n, dt)
            if name == "add":
                s = x + y
                r = s + c
                out = (s < x) | (r < s)
            else:
                s = x - y
                r = s - c
                out = (x < y) | (s < c)
            if put:
                cc[L.ix] = out
            d[L.ix] = r

        return f

    def op_add(self, ins):
        return self._addsub(ins, np.add, "add")

    def op_sub(self, ins):
        return self._addsub(ins, np.subtract, "sub")

    op_addc, op_subc = op_add, op_sub

    def _mul_parts(self, ins, t):
        """function (a, b) -> product for mul/mad .lo/.hi/.wide of integer type t, and the result type"""
        mods, w = ins.mods, WIDTH[t]
        if "wide" in mods:
            wt = t[0] + str(16 * w)
            dt = DT[wt]
            return (lambda a, b: np.multiply(a, b, dtype=dt)), wt
        if "hi" in mods:
            if w == 8:
                if t[0] == "s":
                    return (
                        lambda a, b: nx.mulhi_s64(
                            *np.broadcast_arrays(np.asarray(a, i8), np.asarray(b, i8))
                        )
                    ), t
                return (lambda a, b: nx.mulhi_u64(a, b)), t
            dt = i8 if t[0] == "s" else u8
            out = DT[t]
            return (lambda a, b: (np.multiply(a, b, dtype=dt) >> dt(8 * w)).astype(out)), t
        return np.multiply, ("u" + t[1:] if t[0] == "s" else t)

    def op_mul(self, ins):
        t = ins.mods[-1]
        if t in FLOATS:
            return self._float_binary(ins, np.multiply, "mul")
        fn, rt = self._mul_parts(ins, t)
        st = t if "wide" in ins.mods or "hi" in ins.mods else rt
        return self.ew(fn, self.dst(ins.args[0], rt), *[self.src(a, st) for a in ins.args[1:]])

    def op_mul24(self, ins):
        t = ins.mods[-1]
        a, b, d = self.vsrc(ins.args[1], t), self.vsrc(ins.args[2], t), self.dst(ins.args[0], t)
        s = 8

        def fn(x, y):
            p = ((x << DT[t](s)) >> DT[t](s)).astype(i8) * ((y << DT[t](s)) >> DT[t](s)).astype(i8)
            return (p if "lo" in ins.mods else p >> 16).astype(DT[t])

        return self.vew(fn, d, a, b)

    def op_mad(self, ins):
        t = ins.mods[-1]
        if t in FLOATS:
            return self.op_fma(ins)
        if "cc" in ins.mods or "sat" in ins.mods:
            self.unsupported(ins)
        fn, rt = self._mul_parts(ins, t)
        st = t if "wide" in ins.mods or "hi" in ins.mods else rt
        srcs = [self.src(ins.args[1], st), self.src(ins.args[2], st), self.src(ins.args[3], rt)]
        return self.ew(lambda a, b, c: fn(a, b) + c, self.dst(ins.args[0], rt), *srcs)

    def op_fma(self, ins):
        t, mods = ins.mods[-1], ins.mods
        mode = next((x for x in ("rz", "rm", "rp") if x in mods), None)
        d, post = self.dst(ins.args[0], t), self.fpost(t, ins)
        gs = [self.fsrc(a, t, "ftz" in mods) for a in ins.args[1:4]]
        if t == "f32x2":
            self.unsupported(ins)
        if mode:
            if t not in ("f32", "f64"):
                self.unsupported(ins)
            fn = lambda a, b, c: nx.directed("fma", mode, DT[t], a, b, c)
        elif t == "f64":
            fn = nx.fma64
        elif t == "f32":
            fn = nx.fma32
        else:  # exact product in float64, one rounding to storage
            fn = lambda a, b, c: nx.sum64(a.astype(f8) * b.astype(f8), c.astype(f8))
        return self.vew((lambda a, b, c: post(fn(a, b, c))) if post else fn, d, *gs)

    def op_div(self, ins):
        t = ins.mods[-1]
        if t in FLOATS:
            return self._float_binary(ins, np.divide, "div")
        a, b, d = self.vsrc(ins.args[1], t), self.vsrc(ins.args[2], t), self.dst(ins.args[0], t)
        return self.vew(lambda x, y: _idiv(x, y)[0], d, a, b)

    def op_rem(self, ins):
        t = ins.mods[-1]
        a, b, d = self.vsrc(ins.args[1], t), self.vsrc(ins.args[2], t), self.dst(ins.args[0], t)
        return self.vew(lambda x, y: _idiv(x, y)[1], d, a, b)

    def op_sad(self, ins):
        t = ins.mods[-1]
        return self.ew(
            lambda a, b, c: np.where(a > b, a - b, b - a) + c,
            self.dst(ins.args[0], t),
            *[self.vsrc(x, t) for x in ins.args[1:]],
        )

    def _float_unary(self, ins, fn, t=None):
        t = t or ins.mods[-1]
        post = self.fpost(t, ins)
        return self.vew(
            (lambda x: post(fn(x))) if post else fn,
            self.dst(ins.args[0], t),
            self.fsrc(ins.args[1], t, "ftz" in ins.mods),
        )

    def op_abs(self, ins):
        t = ins.mods[-1]
        return self._float_unary(ins, np.abs) if t in FLOATS else self._int_binary(ins, np.abs)

    def op_neg(self, ins):
        t = ins.mods[-1]
        if t in FLOATS:
            return self._float_unary(ins, np.negative)
        return self._int_binary(ins, lambda a: (-a.astype(i8)).astype(a.dtype))

    def _minmax(self, ins, ifn, ffn, nanfn):
        t = ins.mods[-1]
        if t not in FLOATS:
            if t not in DT:
                self.unsupported(ins)
            return self._int_binary(ins, ifn)
        if "xorsign" in ins.mods:
            self.unsupported(ins)
        fn = nanfn if "NaN" in ins.mods else ffn
        if len(ins.args) == 4:
            f2_ = fn
            fn = lambda a, b, c: f2_(f2_(a, b), c)
        post = self.fpost(t, ins)
        gs = [self.fsrc(a, t, "ftz" in ins.mods) for a in ins.args[1:]]
        return self.vew((lambda *x: post(fn(*x))) if post else fn, self.dst(ins.args[0], t), *gs)

    def op_min(self, ins):
        return self._minmax(
            ins,
            np.minimum,
            nx.fmin,
            lambda a, b: np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), nx.fmin(a, b)),
        )

    def op_max(self, ins):
        return self._minmax(
            ins,
            np.maximum,
            nx.fmax,
            lambda a, b: np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), nx.fmax(a, b)),
        )

    def _math(self, ins, fn):
        """approximate function: computed in float64, rounded once (better than the hardware)"""
        return self._float_unary(ins, lambda x: fn(x.astype(f8)).astype(x.dtype))

    def op_sqrt(self, ins):
        mode = next((x for x in ("rz", "rm", "rp") if x in ins.mods), None)
        if mode:
            dt = DT[ins.mods[-1]]
            return self._float_unary(ins, lambda x: nx.directed("sqrt", mode, dt, x))
        return self._float_unary(ins, np.sqrt)

    def op_rcp(self, ins):
        mode = next((x for x in ("rz", "rm", "rp") if x in ins.mods), None)
        if mode:
            dt = DT[ins.mods[-1]]
            return self._float_unary(ins, lambda x: nx.directed("rcp", mode, dt, x))
        return self._float_unary(ins, lambda x: x.dtype.type(1) / x)

    def op_rsqrt(self, ins):
        return self._math(ins, lambda x: 1.0 / np.sqrt(x))

    def op_ex2(self, ins):
        return self._math(ins, np.exp2)

    def op_lg2(self, ins):
        return self._math(ins, np.log2)

    def op_sin(self, ins):
        return self._math(ins, np.sin)

    def op_cos(self, ins):
        return self._math(ins, np.cos)

    def op_tanh(self, ins):
        return self._math(ins, np.tanh)

    def op_copysign(self, ins):
        t = ins.mods[-1]
        return self.ew(
            lambda a, b: np.copysign(b, a),
            self.dst(ins.args[0], t),
            *[self.src(x, t) for x in ins.args[1:]],
        )

    def op_testp(self, ins):
        t, what = ins.mods[-1], ins.mods[0]
        tiny = np.finfo(DT[t]).tiny
        fn = {
            "finite": np.isfinite,
            "infinite": np.isinf,
            "number": lambda x: ~np.isnan(x),
            "notanumber": np.isnan,
            "normal": lambda x: np.isfinite(x) & (np.abs(x) >= tiny),
            "subnormal": lambda x: (x != 0) & (np.abs(x) < tiny),
        }[what]
        return self.ew(fn, self.dst(ins.args[0], "pred"), self.vsrc(ins.args[1], t))

    # ------------------------------------------------------------ logic and bits
    def _logic(self, ins, fn):
        t = ins.mods[-1]
        return self.ew(fn, self.dst(ins.args[0], t), *[self.src(a, t) for a in ins.args[1:]])

    def op_and(self, ins):
        return self._logic(ins, np.bitwise_and)

    def op_or(self, ins):
        return self._logic(ins, np.bitwise_or)

    def op_xor(self, ins):
        return self._logic(ins, np.bitwise_xor)

    def op_not(self, ins):
        return self._logic(ins, np.invert)

    def op_cnot(self, ins):
        dt = DT[ins.mods[-1]]
        return self._logic(ins, lambda a: (a == 0).astype(dt))

    def op_lop3(self, ins):
        if len(ins.args) != 5 or "BoolOp" in ins.mods:
            self.unsupported(ins)
        lut = ins.args[4].value

        def fn(a, b, c):
            r = np.zeros(np.broadcast(a, b, c).shape, u4)
            for k in range(8):
                if lut >> k & 1:
                    r = r | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
            return r

        return self.ew(
            fn, self.dst(ins.args[0], "b32"), *[self.src(a, "b32") for a in ins.args[1:4]]
        )

    def _shift(self, ins, left):
        t = ins.mods[-1]
        w, dt = 8 * WIDTH[t], DT[t]
        a, n, d = self.src(ins.args[1], t), self.src(ins.args[2], "u32"), self.dst(ins.args[0], t)
        if isinstance(n, Const):
            k = int(n.v)
            if left:
                fn = (lambda x: x << dt(k)) if k < w else (lambda x: x * dt(0))
            elif t[0] == "s":
                fn = lambda x: x >> dt(min(k, w - 1))
            else:
                fn = (lambda x: x >> dt(k)) if k < w else (lambda x: x * dt(0))
            return self.ew(fn, d, a)
        gv = self.vsrc(ins.args[1], t)

        def fn(x, n):
            big = n >= w
            k = np.where(big, w - 1, n).astype(dt)
            r = x << k if left else x >> k
            if t[0] != "s" or left:
                r = np.where(big, dt(0), r)
            return r

        return self.vew(fn, d, gv, self.vsrc(ins.args[2], "u32"))

    def op_shl(self, ins):
        return self._shift(ins, True)

    def op_shr(self, ins):
        return self._shift(ins, False)

    def op_shf(self, ins):
        lo, hi, c = (self.vsrc(a, "u32") for a in ins.args[1:4])
        left, wrap = ins.mods[0] == "l", "wrap" in ins.mods

        def fn(a, b, n):
            n = ((n & u4(31)) if wrap else np.minimum(n, u4(32))).astype(u8)
            v = b.astype(u8) << u8(32) | a.astype(u8)
            return ((v << n) >> u8(32) if left else v >> n).astype(u4)

        return self.vew(fn, self.dst(ins.args[0], "b32"), lo, hi, c)

    def op_bfe(self, ins):
        t = ins.mods[-1]
        W = 8 * WIDTH[t]
        ud = UNS[W // 8]

        def fn(a, pos, ln):
            a, pos, ln = a.view(ud), (pos & u4(255)).astype(i8), (ln & u4(255)).astype(i8)
            v = np.where(pos < W, a >> np.minimum(pos, W - 1).astype(ud), ud(0))
            if t[0] == "u":
                return v & _mask(ln, W)
            sb = np.minimum(pos + ln - 1, W - 1)
            ext = np.clip(np.minimum(sb - pos + 1, W), 0, W)
            sign = ((a >> np.maximum(sb, 0).astype(ud)) & ud(1)).astype(bool) & (ln > 0)
            v = v & _mask(ext, W)
            return np.where(sign, v | ~_mask(ext, W), v).view(DT[t])

        return self.vew(
            fn,
            self.dst(ins.args[0], t),
            self.vsrc(ins.args[1], t),
            self.vsrc(ins.args[2], "u32"),
            self.vsrc(ins.args[3], "u32"),
        )

    def op_bfi(self, ins):
        t = ins.mods[-1]
        W = 8 * WIDTH[t]
        ud = UNS[W // 8]

        def fn(a, b, pos, ln):
            pos, ln = (pos & u4(255)).astype(i8), (ln & u4(255)).astype(i8)
            p = np.minimum(pos, W - 1).astype(ud)
            m = np.where(pos < W, _mask(ln, W) << p, ud(0))
            return (b & ~m) | ((a << p) & m)

        return self.vew(
            fn,
            self.dst(ins.args[0], t),
            self.vsrc(ins.args[1], t),
            self.vsrc(ins.args[2], t),
            self.vsrc(ins.args[3], "u32"),
            self.vsrc(ins.args[4], "u32"),
        )

    def op_bmsk(self, ins):
        clamp = "clamp" in ins.mods

        def fn(p, n):
            if clamp:
                p, n = np.minimum(p, u4(32)), np.minimum(n, u4(32))
            else:
                p, n = p & u4(31), n & u4(31)
            m = _mask(n.astype(i8), 32).astype(u8) << p.astype(u8)
            return m.astype(u4)

        return self.vew(
            fn, self.dst(ins.args[0], "b32"), *[self.vsrc(a, "u32") for a in ins.args[1:3]]
        )

    def op_szext(self, ins):
        t = ins.mods[-1]
        wrap = "wrap" in ins.mods

        def fn(a, n):
            n = (n & u4(31)) if wrap else np.minimum(n, u4(32))
            m = _mask(n.astype(i8), 32)
            v = a.view(u4) & m
            if t[0] == "s":
                s = (n > 0) & ((v >> np.where(n > 0, n - 1, 0).astype(u4)) & u4(1)).astype(bool)
                v = np.where(s, v | ~m, v)
            return v.view(DT[t])

        return self.vew(
            fn, self.dst(ins.args[0], t), self.vsrc(ins.args[1], t), self.vsrc(ins.args[2], "u32")
        )

    def op_popc(self, ins):
        return self.ew(
            lambda a: np.bitwise_count(a),
            self.dst(ins.args[0], "u32"),
            self.vsrc(ins.args[1], ins.mods[-1]),
        )

    def op_clz(self, ins):
        W = 8 * WIDTH[ins.mods[-1]]
        return self.ew(
            lambda a: nx.clz(a, W),
            self.dst(ins.args[0], "u32"),
            self.vsrc(ins.args[1], ins.mods[-1]),
        )

    def op_brev(self, ins):
        W = 8 * WIDTH[ins.mods[-1]]
        return self._logic(ins, lambda a: nx.brev(a, W))

    def op_bfind(self, ins):
        t, amt = ins.mods[-1], "shiftamt" in ins.mods
        W = 8 * WIDTH[t]
        ud = UNS[W // 8]

        def fn(a):
            x = a.view(ud)
            if t[0] == "s":
                x = np.where(a < 0, ~x, x)
            z = nx.clz(x, W)
            return np.where(x == 0, u4(0xFFFFFFFF), z if amt else u4(W - 1) - z)

        return self.ew(fn, self.dst(ins.args[0], "u32"), self.vsrc(ins.args[1], t))

    def op_prmt(self, ins):
        if len(ins.mods) != 1:
            self.unsupported(ins)

        def fn(a, b, c):
            v = b.astype(u8) << u8(32) | a.astype(u8)
            r = np.zeros(len(v), u4)
            for k in range(4):
                s = (c >> u4(4 * k)) & u4(15)
                byte = ((v >> ((s & u4(7)).astype(u8) * u8(8))) & u8(255)).astype(u4)
                rep = np.where(byte & u4(128), u4(255), u4(0))
                r |= np.where(s & u4(8), rep, byte) << u4(8 * k)
            return r

        return self.vew(
            fn, self.dst(ins.args[0], "b32"), *[self.vsrc(a, "b32") for a in ins.args[1:4]]
        )

    def op_dp4a(self, ins):
        ta, tb = ins.mods[-2], ins.mods[-1]
        da, db = (i1 if ta[0] == "s" else u1), (i1 if tb[0] == "s" else u1)

        def fn(a, b, c):
            x = np.ascontiguousarray(a).view(da).reshape(-1, 4).astype(i8)
            y = np.ascontiguousarray(b).view(db).reshape(-1, 4).astype(i8)
            return ((x * y).sum(1) + c.astype(i8)).astype(u4)

        return self.vew(
            fn,
            self.dst(ins.args[0], "b32"),
            *[self.vsrc(a, "b32") for a in ins.args[1:3]],
            self.vsrc(ins.args[3], "s32" if "s" in (ta[0], tb[0]) else "u32"),
        )

    # ------------------------------------------------------------ compare and select
    def _compare(self, op, t):
        if t in FLOATS:
            return {
                "eq": np.equal,
                "ne": lambda a, b: (a < b) | (a > b),
                "lt": np.less,
                "le": np.less_equal,
                "gt": np.greater,
                "ge": np.greater_equal,
                "equ": lambda a, b: ~((a < b) | (a > b)),
                "neu": np.not_equal,
                "ltu": lambda a, b: ~(a >= b),
                "leu": lambda a, b: ~(a > b),
                "gtu": lambda a, b: ~(a <= b),
                "geu": lambda a, b: ~(a < b),
                "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
                "nan": lambda a, b: np.isnan(a) | np.isnan(b),
            }[op]
        return {
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "lo": np.less,
            "ls": np.less_equal,
            "hi": np.greater,
            "hs": np.greater_equal,
        }[op]

    def _cmp_operands(self, ins, t, a, b):
        op = ins.mods[0]
        if op in ("lo", "ls", "hi", "hs") and t[0] != "u":
            t = "u" + t[1:]
        fn = self._compare(op, t)
        if t in ("f16", "bf16", "f16x2", "bf16x2") or (t == "f32" and "ftz" in ins.mods):
            return fn, [self.fsrc(x, t, "ftz" in ins.mods) for x in (a, b)]
        return fn, [self.src(x, t) for x in (a, b)]

    def op_setp(self, ins):
        t = ins.mods[-1]
        d = ins.args[0]
        fn, srcs = self._cmp_operands(ins, t, ins.args[1], ins.args[2])
        boolop = next((_BOOL[m] for m in ins.mods[1:-1] if m in _BOOL), None)
        if t in ("f16x2", "bf16x2"):
            p, q = self.dst(d.a, "pred"), self.dst(d.b, "pred")
            gs = [getter(s) for s in srcs]
            c = self.vsrc(ins.args[3], "pred") if boolop else None

            def f(L):
                r = fn(gs[0](L), gs[1](L))
                if c:
                    r = boolop(r, c(L)[:, None])
                p[L.ix], q[L.ix] = r[:, 0], r[:, 1]

            return f
        if not boolop and not isinstance(d, Pair):
            return self.ew(fn, self.dst(d, "pred"), *srcs)
        gs = [getter(s) for s in srcs]
        c = self.vsrc(ins.args[3], "pred") if boolop else None
        p = self.dst(d.a if isinstance(d, Pair) else d, "pred")
        q = self.dst(d.b, "pred") if isinstance(d, Pair) else None

        def f(L):
            r = fn(gs[0](L), gs[1](L))
            cv = c(L) if c else None
            pv = boolop(r, cv) if c else r
            if q is not None:
                q[L.ix] = boolop(~r, cv) if c else ~r
            p[L.ix] = pv

        return f

    def op_set(self, ins):
        dt, t = ins.mods[-2], ins.mods[-1]
        fn, srcs = self._cmp_operands(ins, t, ins.args[1], ins.args[2])
        boolop = next((_BOOL[m] for m in ins.mods[1:-2] if m in _BOOL), None)
        gs = [getter(s) for s in srcs]
        c = self.vsrc(ins.args[3], "pred") if boolop else None
        d = self.dst(ins.args[0], dt)
        one = {
            "f32": f4(1),
            "f16": f2(1),
            "f16x2": f2(1),
            "bf16": u2(0x3F80),
            "bf16x2": u2(0x3F80),
            "u32": u4(0xFFFFFFFF),
            "s32": i4(-1),
            "u16": u2(0xFFFF),
            "s16": i2(-1),
        }[dt]

        def f(L):
            r = fn(gs[0](L), gs[1](L))
            if c:
                r = boolop(r, c(L) if r.ndim == 1 else c(L)[:, None])
            v = np.where(r, one, one.dtype.type(0))
            if v.ndim == 2 and d.ndim == 1:  # set.u32.f16x2: a 16-bit mask per half
                v = (v.astype(bool) * np.array([0xFFFF, 0xFFFF0000], u4)).sum(1, dtype=u4)
            d[L.ix] = v

        return f

    def op_selp(self, ins):
        t = ins.mods[-1]
        return self.ew(
            lambda a, b, p: np.where(p, a, b),
            self.dst(ins.args[0], t),
            self.src(ins.args[1], t),
            self.src(ins.args[2], t),
            self.src(ins.args[3], "pred"),
        )

    def op_slct(self, ins):
        t, ct = ins.mods[-2], ins.mods[-1]
        return self.ew(
            lambda a, b, c: np.where(c >= 0, a, b),
            self.dst(ins.args[0], t),
            self.src(ins.args[1], t),
            self.src(ins.args[2], t),
            self.src(ins.args[3], ct),
        )

    # ------------------------------------------------------------ moves and conversions
    def op_mov(self, ins):
        t = ins.mods[-1]
        d, s = ins.args
        if isinstance(d, Vec) or isinstance(s, Vec):
            if isinstance(d, Vec) and isinstance(s, Vec):
                n = "b" + str(8 * WIDTH[t])
                if len(d.items) != len(s.items):
                    self.unsupported(ins)
                pairs = [(self.dst(x, n), self.vsrc(y, n)) for x, y in zip(d.items, s.items)]
            elif isinstance(s, Vec):
                k = len(s.items)
                nt = f"b{8 * WIDTH[t] // k}"
                arr = self.reg(d).view(UNS[WIDTH[t] // k]).reshape(self.cap, k)
                pairs = [(arr[:, j], self.vsrc(y, nt)) for j, y in enumerate(s.items)]
            else:
                k = len(d.items)
                nt = f"b{8 * WIDTH[t] // k}"
                g = self.vsrc(s, f"b{8 * WIDTH[t]}")
                dt = UNS[WIDTH[t] // k]
                pairs = [
                    (
                        self.dst(x, nt),
                        (lambda L, j=j: np.ascontiguousarray(g(L)).view(dt).reshape(-1, k)[:, j]),
                    )
                    for j, x in enumerate(d.items)
                ]

            def f(L):
                vals = [np.array(g(L)) for _, g in pairs]
                for (a, _), v in zip(pairs, vals):
                    a[L.ix] = v

            return f
        if isinstance(s, Imm) and t[0] == "f" and s.kind == "i":
            t = "b" + str(8 * WIDTH[t])
        if t in ("f16x2", "bf16x2"):
            t = "b32"
        a, b = self.dst(d, t), self.src(s, t)
        if isinstance(b, Const):
            v = b.v

            def f(L):
                a[L.ix] = v
        elif isinstance(b, np.ndarray):

            def f(L):
                ix = L.ix
                a[ix] = b[ix]
        else:

            def f(L):
                a[L.ix] = b(L)

        return f

    def op_cvta(self, ins):
        space = next(
            (
                m
                for m in ins.mods
                if m.split("::")[0] in ("global", "shared", "local", "const", "param")
            ),
            None,
        )
        if space is None:
            self.unsupported(ins)
        base = {
            "global": 0,
            "shared": mc.SHARED_BASE,
            "local": mc.LOCAL_BASE,
            "const": mc.CONST_BASE,
            "param": mc.PARAM_BASE,
        }[space.split("::")[0]]
        t = ins.mods[-1]
        delta = DT[t]((-base if "to" in ins.mods else base) & ((1 << 8 * WIDTH[t]) - 1))
        return self.ew(lambda a: a + delta, self.dst(ins.args[0], t), self.src(ins.args[1], t))

    def op_isspacep(self, ins):
        space = ins.mods[-1].split("::")[0]
        w = {"shared": 1, "local": 2, "const": 3, "param": 4}.get(space)
        s = u8(mc.WINDOW)
        fn = (lambda a: a >> s >= mc.FIRST_GLOBAL) if w is None else (lambda a: a >> s == w)
        return self.ew(fn, self.dst(ins.args[0], "pred"), self.vsrc(ins.args[1], "u64"))

    def op_cvt(self, ins):
        mods = ins.mods
        if "pack" in mods:
            return self._cvt_pack(ins)
        types = [m for m in mods if m in WIDTH]
        dt, st = types[-2], types[-1]
        mode = next(
            (m for m in mods if m in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna")),
            None,
        )
        sat, ftz, relu = "sat" in mods, "ftz" in mods, "relu" in mods
        if dt in ("f16x2", "bf16x2") and st == "f32":
            base = dt[:-2]
            d = self.dst(ins.args[0], dt)
            hi, lo = self.fsrc(ins.args[1], "f32", ftz), self.fsrc(ins.args[2], "f32", ftz)

            def one(x):
                if relu:
                    x = np.where(np.isnan(x), x, np.maximum(x, f4(0)))
                return nx.round_float(x, base, mode or "rn")

            def f(L):
                h, l = one(hi(L)), one(lo(L))
                d[L.ix] = np.stack([l, h], 1)

            return f
        if dt == "tf32":
            d, g = self.dst(ins.args[0], "b32"), self.vsrc(ins.args[1], "b32")
            if mode not in ("rna", "rn", "rz"):
                self.unsupported(ins)

            def fn(u):
                special = (u & u4(0x7F800000)) == u4(0x7F800000)
                if mode == "rna":
                    r = u + u4(0x1000)
                elif mode == "rn":
                    r = u + u4(0xFFF) + ((u >> u4(13)) & u4(1))
                else:
                    r = u
                return np.where(special, u, r & u4(0xFFFFE000))

            return self.vew(fn, d, g)
        if dt not in DT or st not in DT or dt in ("f16x2", "bf16x2"):
            self.unsupported(ins)
        sf, df = st in FLOATS, dt in FLOATS
        if len(ins.args) != 2:
            self.unsupported(ins)
        d = self.dst(ins.args[0], dt)
        if not sf and not df:  # integer -> integer
            g = self.vsrc(ins.args[1], st)
            D = DT[dt]
            if not sat:
                return self.vew(lambda x: x.astype(D), d, g)
            info = np.iinfo(D)

            def fn(x):
                lo = max(int(info.min), int(np.iinfo(x.dtype).min))
                hi = min(int(info.max), int(np.iinfo(x.dtype).max))
                return np.clip(x, x.dtype.type(lo), x.dtype.type(hi)).astype(D)

            return self.vew(fn, d, g)
        if sf and not df:  # float -> integer
            g, D, wide = (
                self.fsrc(ins.args[1], st, ftz),
                DT[dt],
                st == "f64" or dt in ("s64", "u64"),
            )
            m = mode if mode and mode.endswith("i") else "rzi"
            return self.vew(lambda x: nx.float_to_int(x, D, m, wide), d, g)
        if not sf:  # integer -> float
            g = self.vsrc(ins.args[1], st)
            big = WIDTH[st] == 8
            mode_ = mode or "rn"

            def fn(x):
                if mode_ == "rn" and dt in ("f32", "f64"):
                    return x.astype(DT[dt])
                return nx.round_float(x.astype(np.longdouble if big else f8), dt, mode_)

            if big and dt == "bf16":
                self.unsupported(ins)
            return self.vew(fn, d, g)
        g = self.fsrc(ins.args[1], st, ftz)  # float -> float
        integral = nx.ROUND_INT.get(mode)
        rmode = mode if mode in ("rz", "rm", "rp") else "rn"

        def fn(x):
            if integral is not None:
                x = integral(x)
            if sat:
                x = np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1)).astype(x.dtype)
            if relu:
                x = np.where(np.isnan(x), x, np.maximum(x, x.dtype.type(0)))
            r = nx.round_float(x, dt, rmode)
            return nx.ftz(r) if ftz and dt == "f32" else r

        return self.vew(fn, d, g)

    def _cvt_pack(self, ins):
        if ins.mods[:2] != ("pack", "sat") or WIDTH.get(ins.mods[2]) != 2 or len(ins.args) != 3:
            self.unsupported(ins)
        D = DT[ins.mods[2]]
        info = np.iinfo(D)
        a, b, d = (
            self.vsrc(ins.args[1], "s32"),
            self.vsrc(ins.args[2], "s32"),
            self.dst(ins.args[0], "b32"),
        )
        c = lambda x: np.clip(x, info.min, info.max).astype(D).view(u2).astype(u4)
        return self.vew(lambda x, y: c(x) << u4(16) | c(y), d, a, b)

    # ------------------------------------------------------------ memory
    def address(self, o, space):
        """-> callable(L): int64 addresses of the lanes"""
        b, off = o.base, o.offset
        if isinstance(b, Reg):
            a = self.reg(b)
            if a.itemsize == 8:
                v = a.view(i8)
                if off == 0:
                    return lambda L: v[L.ix] if type(L.ix) is not slice else v[L.ix].copy()
                k = i8(off)
                return lambda L: v[L.ix] + k
            k = i8(off)
            return lambda L: a[L.ix].astype(i8) + k
        base = self.prog.address(b) + off if isinstance(b, Var) else off
        return lambda L: np.full(L.n, base, i8)

    def param_array(self, v):
        """Per-lane bytes of a .param variable of a device function or a call."""
        a = self.pvars.get(v)
        if a is None:
            a = self.pvars[v] = np.zeros((self.cap, -(-max(v.size, 1) // 16) * 16), u1)
            self.m.param_arrays.append(a)
        return a

    def _mem_mods(self, ins):
        mods = ins.mods
        t = mods[-1]
        vec = next((int(m[1:]) for m in mods if m in ("v2", "v4", "v8")), 1)
        space = next(
            (
                m.split("::")[0]
                for m in mods
                if m.split("::")[0] in ("global", "shared", "local", "const", "param")
            ),
            "generic",
        )
        if "shared::cluster" in mods:
            space = "shared"
        plain = not any(m in ("volatile", "relaxed", "acquire", "release", "mmio") for m in mods)
        if t not in DT or vec == 8:
            self.unsupported(ins)
        return t, vec, space, plain

    def op_ld(self, ins):
        t, vec, space, plain = self._mem_mods(ins)
        ds = ins.args[0].items if isinstance(ins.args[0], Vec) else (ins.args[0],)
        if len(ds) != vec:
            self.unsupported(ins)
        et = "b" + str(8 * WIDTH[t]) if t in FLOATS else t
        outs = [self.dst(x, et) for x in ds]
        dt, size, addr = DT[et], WIDTH[et] * vec, ins.args[1]
        m = self.m
        if space == "param" and isinstance(addr.base, Var):
            if addr.base in self.prog.entry_params:
                off = self.prog.entry_params[addr.base] + addr.offset
                w = WIDTH[et]

                def f(L):
                    for k, o in enumerate(outs):
                        o[L.ix] = m.param.data[off + k * w : off + k * w + w].view(dt)[0]

                return f
            arr = self.param_array(addr.base)
            w = WIDTH[et]
            cols = [self._column(arr, addr.offset + k * w, dt) for k in range(vec)]

            def f(L):
                for c, o in zip(cols, outs):
                    o[L.ix] = c[L.ix]

            return f
        g = self.address(addr, space)
        dts = [dt] * vec

        def f(L):
            for o, v in zip(outs, m.load(space, L, g(L), dts, size, ins, plain)):
                o[L.ix] = v

        return f

    op_ldu = op_ld

    def _column(self, arr, off, dt):
        k = np.dtype(dt).itemsize
        if off % k == 0:
            return arr.view(dt)[:, off // k]
        return np.ndarray(arr.shape[0], dt, arr, off, (arr.strides[0],))

    def op_st(self, ins):
        t, vec, space, plain = self._mem_mods(ins)
        ss = ins.args[1].items if isinstance(ins.args[1], Vec) else (ins.args[1],)
        if len(ss) != vec or "async" in ins.mods:
            self.unsupported(ins)
        et = "b" + str(8 * WIDTH[t])
        gs = []
        for s in ss:
            if isinstance(s, Imm) and s.kind != "i":
                s = Imm("i", s.value)
            gs.append(self.vsrc(s, et))
        size, addr, m = WIDTH[et] * vec, ins.args[0], self.m
        if space == "param":
            arr = self.param_array(addr.base)
            w = WIDTH[et]
            cols = [self._column(arr, addr.offset + k * w, DT[et]) for k in range(vec)]

            def f(L):
                for c, g in zip(cols, gs):
                    c[L.ix] = g(L)

            return f
        a = self.address(addr, space)

        def f(L):
            m.store(space, L, a(L), [g(L) for g in gs], size, ins, plain)

        return f

    def _nop(self, ins):
        return lambda L: None

    op_membar = op_fence = op_prefetch = op_prefetchu = op_nanosleep = op_discard = (
        op_applypriority
    ) = _nop
    op_griddepcontrol = op_brkpt = op_pmevent = op_setmaxnreg = _nop

    def op_createpolicy(self, ins):
        d = self.dst(ins.args[0], "b64")

        def f(L):
            d[L.ix] = 0

        return f

    # -- atomics
    def op_atom(self, ins):
        mods = ins.mods
        t = mods[-1]
        space = next(
            (m.split("::")[0] for m in mods if m.split("::")[0] in ("global", "shared")), "generic"
        )
        op = next(
            (
                m
                for m in mods
                if m in ("add", "min", "max", "inc", "dec", "cas", "exch", "and", "or", "xor")
            ),
            None,
        )
        red = ins.op == "red"
        args = ins.args if red else ins.args[1:]
        vec = next((int(m[1:]) for m in mods if m in ("v2", "v4", "v8")), 1)
        if op is None or t not in DT or "async" in mods:
            self.unsupported(ins)
        ds = None
        if not red and ins.args[0] is not SINK:
            items = ins.args[0].items if vec > 1 else (ins.args[0],)
            ds = [
                self.dst(x, "b32" if t in ("f16x2", "bf16x2") else t if t != "bf16" else "b16")
                for x in items
            ]
        vals = [
            self.vsrc(x, "b32" if t in ("f16x2", "bf16x2") else t)
            for x in (args[1].items if vec > 1 else (args[1],))
        ]
        cmpv = self.vsrc(args[2], t) if op == "cas" else None
        a, m, dt = self.address(args[0], space), self.m, DT[t]
        esz = WIDTH[t]
        fn = _atomic_fn(op, t)
        if fn is None:
            self.unsupported(ins)
        sh = esz.bit_length() - 1
        ufunc = (
            {
                "add": np.add,
                "min": np.minimum,
                "max": np.maximum,
                "and": np.bitwise_and,
                "or": np.bitwise_or,
                "xor": np.bitwise_xor,
            }.get(op)
            if t in ("u32", "s32", "u64", "s64", "b32", "b64", "f32", "f64")
            else None
        )

        def f(L):
            addr = a(L)
            v = [full(g(L), L, dt) for g in vals]
            c = full(cmpv(L), L, dt) if cmpv else None
            old = [np.zeros(L.n, dt) for _ in v] if ds else None
            for sel, seg, off in m.resolve(space, L, addr, esz * vec, ins, True):
                Ls = L if sel is None else L.sub(sel)
                pick = (lambda x: x) if sel is None else (lambda x: x[sel])
                if seg.state is not None:
                    m.check_read_state(seg, off, esz * vec, Ls, ins)
                    m.write_state(seg, off, esz * vec, Ls, ins)
                if m.check_race:
                    m.race(seg, off, esz * vec, Ls, ins, True, True, None)
                if m.count:
                    if seg.space == "global":
                        m.count_global(Ls, off, esz * vec, ins, True)
                    else:
                        m.count_shared(Ls, off, esz * vec, ins)
                if m.chains is not None:
                    m.chains.load(seg, off, esz * vec, Ls)
                    m.chains.store(seg, off, esz * vec, Ls)
                mem = seg.view(dt)
                for k in range(len(v)):
                    ix = (off >> sh) + k
                    o = _apply(
                        mem,
                        ix,
                        fn,
                        ufunc,
                        pick(v[k]),
                        None if c is None else pick(c),
                        ds is not None,
                    )
                    if ds:
                        if sel is None:
                            old[k] = o
                        else:
                            old[k][sel] = o
            if ds:
                for d, o in zip(ds, old):
                    d[L.ix] = o

        return f

    op_red = op_atom

    # -- cp.async
    def op_cp(self, ins):
        mods, m = ins.mods, self.m
        if mods[0] != "async" or "bulk" in mods or "mbarrier" in mods:
            self.unsupported(ins)
        if "commit_group" in mods:

            def f(L):
                m.cp_commit[L.ix] += 1

            return f
        if "wait_group" in mods or "wait_all" in mods:
            n = ins.args[0].value if "wait_group" in mods else None
            return lambda L: self._cp_wait(L, n)
        dst, src = self.address(ins.args[0], "shared"), self.address(ins.args[1], "global")
        size = ins.args[2].value
        extra = list(ins.args[3:])
        nsrc = ign = None
        if extra and not any("cache_hint" in q for q in mods):
            if (isinstance(extra[0], Reg) and extra[0].type == "pred") or isinstance(extra[0], Not):
                ign = self.vsrc(extra[0], "pred")
            else:
                nsrc = self.vsrc(extra[0], "u32")
        w = min(size, 8)
        dt = UNS[w]
        k = size // w

        def f(L):
            da, sa = dst(L), src(L)
            data = np.zeros((L.n, size), u1)
            take = np.full(L.n, size, i8)
            if nsrc:
                take = nsrc(L).astype(i8)
            if ign:
                take = np.where(ign(L), 0, take)
            fullcopy = take == size
            for mask, n in [(fullcopy, size)] + [
                (take == x, int(x)) for x in np.unique(take[~fullcopy]) if x
            ]:
                if mask.any():
                    Ls = L if mask.all() else L.sub(mask)
                    if n == size:
                        got = m.load("global", Ls, sa[mask], [dt] * k, size, ins, True)
                        data[mask] = np.stack(got, 1).view(u1).reshape(Ls.n, size)
                    else:
                        for b in range(n):
                            data[mask, b] = m.load("global", Ls, sa[mask] + b, [u1], 1, ins, True)[
                                0
                            ]
            for sel, seg, off in m.resolve("shared", L, da, size, ins, True):
                Ls = L if sel is None else L.sub(sel)
                sv = seg.sview(u1)
                for b in range(size):
                    sv[off + b] |= 4
                m.cp_pending.append(
                    [
                        Ls.idx,
                        off,
                        data if sel is None else data[sel],
                        m.cp_commit[Ls.ix].copy(),
                        ins,
                    ]
                )

        return f

    def _cp_wait(self, L, n):
        m = self.m
        if not m.cp_pending:
            return
        m.stamp_no += 1
        m.stamp[L.idx] = m.stamp_no
        keep = []
        for ent in m.cp_pending:
            idx, off, data, grp, ins = ent
            here = m.stamp[idx] == m.stamp_no
            done = here if n is None else here & (grp < m.cp_commit[idx] - n)
            if done.any():
                size = data.shape[1]
                w = min(size, 8)
                seg = m.shared
                sv = seg.sview(u1)
                o = off[done]
                for b in range(size):
                    sv[o + b] &= 3
                Ls = Lanes.of(idx[done])
                vals = list(np.ascontiguousarray(data[done]).view(UNS[w]).T)
                m.store(
                    "shared",
                    Ls,
                    o - m.sbase[Ls.ix],
                    [np.ascontiguousarray(v) for v in vals],
                    size,
                    ins,
                    True,
                )
            if not done.all():
                r = ~done
                keep.append([idx[r], off[r], data[r], grp[r], ins])
        m.cp_pending = keep

    def op_activemask(self, ins):
        d, m = self.dst(ins.args[0], "b32"), self.m

        def f(L):
            d[L.ix] = _warp_bits(m, L, np.ones(L.n, bool))

        return f

    # ------------------------------------------------------------ tensor cores
    def op_mma(self, ins):
        mods = ins.mods
        shape = next((x for x in mods if x.startswith("m") and x[1:2].isdigit()), None)
        types = [x for x in mods if x in WIDTH]
        ab = types[1]
        ok = (shape, ab) in {
            ("m16n8k16", "f16"),
            ("m16n8k16", "bf16"),
            ("m16n8k8", "tf32"),
            ("m16n8k8", "f16"),
            ("m16n8k8", "bf16"),
            ("m16n8k4", "tf32"),
        } and types[0] == types[3] == "f32"
        if not ok or "sync" not in mods:
            self.unsupported(ins)
        K = int(shape.split("k")[1])
        el = {"f16": 2, "bf16": 2, "tf32": 1}[ab]
        dv = [self.dst(x, "f32") for x in ins.args[0].items]
        av = [self.vsrc(x, "b32") for x in ins.args[1].items]
        bv = [self.vsrc(x, "b32") for x in ins.args[2].items]
        cv = [self.vsrc(x, "f32") for x in ins.args[3].items]
        conv = {
            "f16": lambda u: u.view(f2).astype(f8),
            "bf16": lambda u: nx.bf16_to_f32(u.view(u2)).astype(f8),
            "tf32": lambda u: (u & u4(0xFFFFE000)).view(f4).astype(f8),
        }[ab]
        m = self.m
        g, tq = np.arange(32) // 4, np.arange(32) % 4

        def f(L):
            if L.n % 32 or not m.warp_full(L) or L.n != 32 * L.nw:
                m.find("warp-sync-deadlock", ins, L.idx, "mma.sync executed by an incomplete warp")
                return
            nw = L.n // 32
            get = lambda gs: [conv(np.ascontiguousarray(x(L))).reshape(nw, 32, el) for x in gs]
            A, B = np.zeros((nw, 16, K)), np.zeros((nw, K, 8))
            C = np.zeros((nw, 16, 8))
            for r, x in enumerate(get(av)):  # a0: row g, a1: row g+8, a2/a3: upper half of k
                row = g + 8 * (r & 1)
                for e in range(el):
                    A[:, row, tq * el + e + (r >> 1) * 4 * el] = x[:, :, e]
            for r, x in enumerate(get(bv)):
                for e in range(el):
                    B[:, tq * el + e + r * 4 * el, g] = x[:, :, e]
            for r, c in enumerate(cv):
                C[:, g + 8 * (r >> 1), tq * 2 + (r & 1)] = c(L).astype(f8).reshape(nw, 32)
            D = A @ B + C
            for r, d in enumerate(dv):
                d[L.ix] = D[:, g + 8 * (r >> 1), tq * 2 + (r & 1)].astype(f4).reshape(-1)

        return f

    def op_ldmatrix(self, ins):
        mods = ins.mods
        if "m8n8" not in mods or mods[-1] != "b16":
            self.unsupported(ins)
        k = next(int(x[1:]) for x in mods if x in ("x1", "x2", "x4"))
        items = ins.args[0].items if isinstance(ins.args[0], Vec) else (ins.args[0],)
        ds, a, m = [self.dst(x, "b32") for x in items], self.address(ins.args[1], "shared"), self.m
        trans = "trans" in mods

        def f(L):
            if not m.warp_full(L) or L.n != 32 * L.nw:
                m.find("warp-sync-deadlock", ins, L.idx, "ldmatrix executed by an incomplete warp")
                return
            nw = L.n // 32
            pick = (np.arange(nw)[:, None] * 32 + np.arange(8 * k)).reshape(-1)
            Lr = Lanes.of(L.idx[pick])
            rows = m.load("shared", Lr, a(L)[pick], [u8, u8], 16, ins, True)
            mat = np.stack(rows, 1).view(u2).reshape(nw, k, 8, 8)
            if trans:
                mat = mat.swapaxes(2, 3)
            mat = np.ascontiguousarray(mat).view(u4)  # nw, k, 8, 4
            for j, d in enumerate(ds):
                d[L.ix] = mat[:, j].reshape(-1)

        return f

    # ------------------------------------------------------------ terminators: return [(pc, Lanes)]
    def term(self, ins):
        name = {"barrier": "bar"}.get(ins.op, ins.op)
        t = self._handler(ins, "term_", name)
        if ins.pred is None or (ins.op == "bra"):
            return self.branching(ins, t)
        p, neg, nxt = self.reg(ins.pred), ins.neg, ins.pc + 1

        def f(L):
            q = p[L.ix]
            if neg:
                q = ~q
            if q.all():
                return t(L)
            if not q.any():
                return [(nxt, L)]
            rest = L.sub(~q)
            return t(L.sub(q)) + [(nxt, rest)]

        return self.branching(ins, f)

    def branching(self, ins, f):
        return f if self.m.chains is None else self.m.chains.branching(ins, f)

    def joining(self, ins, finish):
        return finish if self.m.chains is None else self.m.chains.joining(ins, finish)

    def term_bra(self, ins):
        to, nxt = self.prog.target(ins, 0), ins.pc + 1
        if ins.pred is None:
            return lambda L: [(to, L)]
        p, neg = self.reg(ins.pred), ins.neg

        def f(L):
            q = p[L.ix]
            if neg:
                q = ~q
            k = int(np.count_nonzero(q))
            if k == L.n:
                return [(to, L)]
            if k == 0:
                return [(nxt, L)]
            return [(to, L.sub(q)), (nxt, L.sub(~q))]

        return f

    def term_brx(self, ins):
        g = self.vsrc(ins.args[0], "u32")
        table = self.prog.table(ins)

        def f(L):
            v = g(L)
            out = {}
            for k in np.unique(v):
                if k >= len(table):
                    raise RuntimeError(f"brx.idx out of range: {ins.text}")
                out.setdefault(table[k], []).append(L.sub(v == k))
            return [(pc, mc.merge(ls)) for pc, ls in out.items()]

        return f

    def term_exit(self, ins):
        return self.m.exit

    def term_ret(self, ins):
        fn = self.prog.owner[ins.pc]
        if fn.entry:
            return self.m.exit
        ra = self.retaddr(fn)
        rets = [self.param_array(v) for v in fn.rets]

        def f(L):
            pcs = ra[L.ix]
            out = []
            for pc in np.unique(pcs):
                sel = pcs == pc
                Ls = L if sel.all() else L.sub(sel)
                for src, v in zip(rets, self.prog.code[pc - 1].args[0]):
                    self.param_array(v)[Ls.ix] = src[Ls.ix]
                out.append((int(pc), Ls))
            return out

        return f

    def retaddr(self, fn):
        key = ("ret", fn.name)
        if key not in self.pvars:
            self.pvars[key] = np.zeros(self.cap, i4)
        return self.pvars[key]

    def term_call(self, ins):
        rets, name, params = ins.args
        nxt, m = ins.pc + 1, self.m
        if name == "__assertfail":

            def f(L):
                m.find("assert", ins, L.idx, "device assert() failed")
                return m.exit(L)

            return f
        if name == "vprintf":

            def f(L):
                m.report.printf_calls += L.n
                for v in rets:
                    self.param_array(v)[L.ix] = 0
                return [(nxt, L)]

            return f
        fn = self.prog.mod.functions.get(name)
        if fn is None or fn.extern:
            self.unsupported(ins, f"call of {name}")
        to, ra = self.prog.start[fn.name], self.retaddr(fn)
        pairs = [(self.param_array(p), self.param_array(v)) for p, v in zip(fn.params, params)]

        def f(L):
            ix = L.ix
            for d, s in pairs:
                d[ix] = s[ix]
            ra[ix] = nxt
            return [(to, L)]

        return f

    def term_trap(self, ins):
        def f(L):
            self.m.find("trap", ins, L.idx, "trap instruction executed")
            return self.m.exit(L)

        return f

    def term_bar(self, ins):
        mods, m = ins.mods, self.m
        if "warp" in mods:
            m.is_barwarp[ins.pc] = True
            mask = self._members(ins.args[0])
            fin = m.finishers[ins.pc] = self.joining(ins, lambda L, k: None)
            return lambda L: m.warp_sync(L, ins, mask(L), fin)
        kind = next((x for x in ("sync", "arrive", "red") if x in mods), None)
        if kind is None:
            self.unsupported(ins)
        args = list(ins.args)
        d = fin = None
        if kind == "red":
            d = args.pop(0)
            p = self.vsrc(args.pop(), "pred")
            fin = m.finishers[ins.pc] = self._bar_red(ins, d, p)
            kind = "sync"
        bar = self.src(args[0], "u32")
        cnt = self.src(args[1], "u32") if len(args) > 1 else None
        gb, gc = getter(bar), getter(cnt) if cnt is not None else None

        def f(L):
            b = np.unique(gb(L))
            if len(b) > 1:
                v = gb(L)
                out = []
                for x in b:
                    Ls = L.sub(v == x)
                    out += m.barrier(
                        Ls, ins, int(x), None if gc is None else int(np.ravel(gc(Ls))[0]), kind, fin
                    )
                return out
            return m.barrier(
                L, ins, int(b[0]), None if gc is None else int(np.ravel(gc(L))[0]), kind, fin
            )

        return f

    def _bar_red(self, ins, d, p):
        m, what = self.m, next(x for x in ins.mods if x in ("popc", "and", "or"))
        out = self.dst(d, "u32" if what == "popc" else "pred")

        def fin(L):
            blk = m.blocks_of(L)
            v = p(L)
            yes = np.bincount(blk, weights=v, minlength=m.nblk).astype(i8)
            tot = np.bincount(blk, minlength=m.nblk)
            r = {"popc": yes, "and": yes == tot, "or": yes > 0}[what]
            out[L.ix] = r[blk]

        return fin

    def _members(self, o):
        s = self.src(o, "b32")
        if isinstance(s, Const):
            if int(s.v) == 0xFFFFFFFF:
                return lambda L: None
            return lambda L: np.full(L.n, s.v, u4)
        g = getter(s)
        return lambda L: np.array(g(L))

    def _warp_term(self, ins, mask_arg, finish):
        """finish(L, masks or None)"""
        m, mask = self.m, self._members(mask_arg)
        finish = m.finishers[ins.pc] = self.joining(ins, finish)
        return lambda L: m.warp_sync(L, ins, mask(L), finish)

    def _sources(self, L, masks, src, ins, what):
        """Mark lanes of L; -> mask of lanes whose source lane `src` takes part (and is a member)."""
        m = self.m
        if masks is None and L.n == m.total_live == m.nb * m.P:
            return None
        m.stamp_no += 1
        m.stamp[L.ix] = m.stamp_no
        ok = m.stamp[src] == m.stamp_no
        if masks is not None:
            ok &= ((masks >> (src & 31).astype(u4)) & u4(1)).astype(bool)
        if ok.all():
            return None
        gone = (
            ~ok if masks is None else ~ok & ((masks >> (src & 31).astype(u4)) & u4(1)).astype(bool)
        )
        if gone.any():
            m.find(
                "shfl-inactive",
                ins,
                L.idx[gone],
                lambda _: (
                    f"{what} reads lane {int(src[gone][0]) & 31}, which has "
                    f"exited or does not exist: the value is undefined"
                ),
            )
        out = ~ok & ~gone
        if out.any():  # harmless where the value is not used: it arrives as garbage (NaN)
            m.find(
                "shfl-inactive",
                ins,
                L.idx[out],
                lambda _: (
                    f"{what} reads lane {int(src[out][0]) & 31}, which is not "
                    f"in the member mask: the value is undefined"
                ),
                "warning",
            )
        return ok

    def term_shfl(self, ins):
        mode = next(x for x in ins.mods if x in ("up", "down", "bfly", "idx"))
        if ins.mods[0] != "sync":
            self.unsupported(ins, "shfl without .sync")
        d = ins.args[0]
        p = self.dst(d.b, "pred") if isinstance(d, Pair) else None
        d = self.dst(d.a if isinstance(d, Pair) else d, "b32")
        ga, gb, gc = (self.vsrc(x, "b32") for x in ins.args[1:4])
        m = self.m

        def finish(L, masks):
            idx = L.idx
            lane = idx & 31
            b, c = gb(L).astype(i8) & 31, gc(L).astype(i8)
            seg, cl = (c >> 8) & 31, c & 31
            mx = (lane & seg) | (cl & ~seg)
            if mode == "up":
                j = lane - b
                ok = j >= mx
            elif mode == "down":
                j = lane + b
                ok = j <= mx
            elif mode == "bfly":
                j = lane ^ b
                ok = j <= mx
            else:
                j = (lane & seg) | (b & ~seg)
                ok = j <= mx
            j = np.where(ok, j, lane)
            src = (idx & ~31) + j
            good = self._sources(L, masks, src, ins, "shfl")
            tmp = m.scratch
            tmp[L.ix] = ga(L)
            v = tmp[src].astype(u4)
            if good is not None:
                v = np.where(good, v, u4(mc.GARBAGE))
            d[L.ix] = v
            if p is not None:
                p[L.ix] = ok

        return self._warp_term(ins, ins.args[4], finish)

    def term_vote(self, ins):
        mode = next(x for x in ins.mods if x in ("all", "any", "uni", "ballot"))
        if ins.mods[0] != "sync":
            self.unsupported(ins, "vote without .sync")
        d = self.dst(ins.args[0], "b32" if mode == "ballot" else "pred")
        g, m = self.vsrc(ins.args[1], "pred"), self.m

        def finish(L, masks):
            v = g(L)
            yes = _warp_bits(m, L, v)
            if masks is not None:
                yes = yes & masks
            if mode == "ballot":
                d[L.ix] = yes
                return
            act = _warp_bits(m, L, np.ones(L.n, bool))
            if masks is not None:
                act = act & masks
            d[L.ix] = {
                "all": lambda: yes == act,
                "any": lambda: yes != 0,
                "uni": lambda: (yes == act) | (yes == 0),
            }[mode]()

        return self._warp_term(ins, ins.args[2], finish)

    def _gather32(self, L, masks, v):
        """-> values [n, 32] of the warp of each lane, participation [n, 32]"""
        m = self.m
        m.stamp_no += 1
        m.stamp[L.ix] = m.stamp_no
        m.scratch[L.ix] = v.view(UNS[v.itemsize])
        src = (L.idx & ~31)[:, None] + np.arange(32)
        part = m.stamp[src] == m.stamp_no
        if masks is not None:
            part &= (masks[:, None] & BIT) != 0
        return m.scratch[src].astype(UNS[v.itemsize]).view(v.dtype), part

    def term_match(self, ins):
        t = ins.mods[-1]
        g = self.vsrc(ins.args[1], t)
        all_ = "all" in ins.mods
        d = ins.args[0]
        p = self.dst(d.b, "pred") if isinstance(d, Pair) else None
        d = self.dst(d.a if isinstance(d, Pair) else d, "b32")

        def finish(L, masks):
            v = g(L)
            vals, part = self._gather32(L, masks, v)
            eq = part & (vals == v[:, None])
            bits = np.where(eq, BIT, u4(0)).sum(1, dtype=u4)
            if all_:
                same = (eq == part).all(1)
                bits = np.where(same, bits, u4(0))
                if p is not None:
                    p[L.ix] = same
            d[L.ix] = bits

        return self._warp_term(ins, ins.args[2], finish)

    def term_redux(self, ins):
        t = ins.mods[-1]
        op = next(x for x in ins.mods if x in ("add", "min", "max", "and", "or", "xor"))
        if t not in ("u32", "s32", "b32"):
            self.unsupported(ins)
        g, d = self.vsrc(ins.args[1], t), self.dst(ins.args[0], t)
        info = np.iinfo(DT[t])
        fn, ident = {
            "add": (np.add, 0),
            "min": (np.minimum, info.max),
            "max": (np.maximum, info.min),
            "and": (np.bitwise_and, info.max if t[0] != "s" else -1),
            "or": (np.bitwise_or, 0),
            "xor": (np.bitwise_xor, 0),
        }[op]

        def finish(L, masks):
            vals, part = self._gather32(L, masks, g(L))
            d[L.ix] = fn.reduce(np.where(part, vals, DT[t](ident)), axis=1, dtype=DT[t])

        return self._warp_term(ins, ins.args[2], finish)

    def term_elect(self, ins):
        d = ins.args[0]
        o, p, m = self.dst(d.a, "b32"), self.dst(d.b, "pred"), self.m

        def finish(L, masks):
            act = _warp_bits(m, L, np.ones(L.n, bool))
            if masks is not None:
                act = act & masks
            low = act & (~act + u4(1))
            lead = u4(31) - nx.clz(low, 32)
            o[L.ix] = lead
            p[L.ix] = lead == (L.idx & 31)

        return self._warp_term(ins, ins.args[1], finish)


class _Bits:
    """Assignment of a 2/4-byte float into a wider register (zero-extended bits)."""

    def __init__(self, arr, dt):
        self.arr, self.u, self.dt = arr, UNS[np.dtype(dt).itemsize], dt

    def __setitem__(self, ix, v):
        self.arr[ix] = np.asarray(v, self.dt).view(self.u)


class _Narrow:
    """Assignment into a register narrower than the type: keep the low bits."""

    def __init__(self, arr):
        self.arr = arr

    def __setitem__(self, ix, v):
        self.arr[ix] = np.asarray(v).astype(self.arr.dtype)


def _warp_bits(m, L, v):
    """Per lane of L: the bit mask of its warp's lanes in L where v holds."""
    bits = np.zeros(m.cap, u4)
    bits[L.ix] = np.where(v, BIT[L.idx & 31], u4(0))
    w = bits.reshape(-1, 32).sum(1, dtype=u4)
    return w[L.idx >> 5]


def _mask(n, W):
    """(1 << n) - 1 for 0 <= n, all ones when n >= W"""
    ud = UNS[W // 8]
    return np.where(n >= W, ~ud(0), (ud(1) << np.clip(n, 0, W - 1).astype(ud)) - ud(1))


def _idiv(x, y):
    """Truncating division and remainder; division by zero gives all ones / the dividend."""
    zero = y == 0
    ys = np.where(zero, x.dtype.type(1), y)
    if x.dtype.kind == "u":
        q = x // ys
        r = x - q * ys
    else:
        neg1 = ys == -1
        yy = np.where(neg1, x.dtype.type(1), ys)
        r = np.fmod(x, yy)
        q = (x - r) // yy
        r = np.where(neg1, x.dtype.type(0), r)
        q = np.where(neg1, np.negative(x), q)
    if zero.any():
        q = np.where(zero, np.array(-1).astype(x.dtype), q)
        r = np.where(zero, x, r)
    return q, r


def _atomic_fn(op, t):
    """(old, value, compare) -> new, on arrays"""
    if op == "exch":
        return lambda o, v, c: v
    if op == "cas":
        return lambda o, c, v: np.where(o == c, v, o)  # atom.cas d, [a], compare, new
    if op == "inc":
        return lambda o, v, c: np.where(o >= v, o.dtype.type(0), o + o.dtype.type(1))
    if op == "dec":
        return lambda o, v, c: np.where((o == 0) | (o > v), v, o - o.dtype.type(1))
    if op in ("and", "or", "xor"):
        u = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[op]
        return lambda o, v, c: u(o, v)
    if op == "add":
        if t == "bf16":
            return lambda o, v, c: nx.f32_to_bf16(nx.bf16_to_f32(o) + nx.bf16_to_f32(v))
        if t == "f16":
            return lambda o, v, c: (o.astype(f4) + v.astype(f4)).astype(f2)
        if t in ("f16x2", "bf16x2"):
            h = t == "f16x2"

            def fn(o, v, c):
                x, y = (np.ascontiguousarray(k).view(u2) for k in (o, v))
                if h:
                    return (x.view(f2).astype(f4) + y.view(f2).astype(f4)).astype(f2).view(u4)
                return nx.f32_to_bf16(nx.bf16_to_f32(x) + nx.bf16_to_f32(y)).view(u4)

            return fn
        return lambda o, v, c: o + v
    if op in ("min", "max") and t in ("u32", "s32", "u64", "s64"):
        u = np.minimum if op == "min" else np.maximum
        return lambda o, v, c: u(o, v)
    return None


def _apply(mem, ix, fn, ufunc, v, c, want_old):
    """mem[ix] = fn(mem[ix], v, c) in lane order, lanes that share an address one after another."""
    n = len(ix)
    if n == 1:
        o = mem[ix]
        mem[ix] = fn(o, v, c)
        return o
    order = np.argsort(ix, kind="stable")
    s = ix[order]
    new = np.empty(n, bool)
    new[0] = True
    np.not_equal(s[1:], s[:-1], out=new[1:])
    if new.all():
        o = mem[ix]
        mem[ix] = fn(o, v, c)
        return o
    if ufunc is not None and not want_old:
        ufunc.at(mem, ix, v)
        return None
    start = np.maximum.accumulate(np.where(new, np.arange(n), 0))
    rank = np.arange(n) - start
    old = np.empty(n, mem.dtype)
    if ufunc is np.add and mem.dtype.kind in "ui":  # integers: exclusive prefix sums
        vs = v[order]
        run = np.cumsum(vs, dtype=mem.dtype)
        excl = run - vs
        excl = excl - excl[start]
        old[order] = mem[s] + excl
        np.add.at(mem, ix, v)
        return old
    by_rank = np.argsort(rank, kind="stable")
    bounds = np.searchsorted(rank[by_rank], np.arange(rank.max() + 2))
    for k in range(len(bounds) - 1):
        lanes = order[by_rank[bounds[k] : bounds[k + 1]]]
        i = ix[lanes]
        o = mem[i]
        old[lanes] = o
        mem[i] = fn(o, v[lanes], None if c is None else c[lanes])
    return old
