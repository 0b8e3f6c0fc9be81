"""Differential fuzzing: random C programs through NVRTC + the interpreter and through g++ on the host.

python -m tests.ptxemu.fuzz [programs] [seed]     (needs g++; integers with wrap-around, exact float32/float64 arithmetic,
                                      divergent control flow, local arrays, non-inlined functions)
"""

import ctypes
import os
import random
import subprocess
import sys
import tempfile

import numpy as np

from tests import ptxemu

U, F, D = ["a", "b", "c", "d"], ["f", "g"], ["x", "y"]


class Gen:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.n = 0

    def u(self, d=0):
        r = self.r
        if d > 3 or r.random() < 0.25:
            return r.choice(U + ["lane", f"{r.randrange(2**32)}u", f"{r.randrange(16)}u"])
        p, q = self.u(d + 1), self.u(d + 1)
        return r.choice(
            [
                f"({p} + {q})",
                f"({p} - {q})",
                f"({p} * {q})",
                f"({p} ^ {q})",
                f"({p} & {q})",
                f"({p} | {q})",
                f"(~{p})",
                f"({p} << ({q} & 31))",
                f"({p} >> ({q} & 31))",
                f"(unsigned)((int){p} >> ({q} & 31))",
                f"({p} / ({q} | 1))",
                f"({p} % ({q} | 1))",
                f"(unsigned)((int){p} / (int)(({q} & 1023) + 1))",
                f"(unsigned)((int){p} % (int)(({q} & 1023) + 1))",
                f"({p} < {q} ? {p} : {q})",
                f"((int){p} > (int){q} ? {q} : {p})",
                f"(unsigned)(((unsigned long long){p} * {q}) >> 32)",
                f"(unsigned)((((unsigned long long){p} << 32) | {q}) / ((unsigned long long){q} + 1))",
                f"(unsigned)(unsigned char){p}",
                f"(unsigned)(signed char){p}",
                f"(unsigned)(short){p}",
                f"arr[{p} & 7]",
                f"(unsigned)({p} == {q})",
                f"(unsigned)((long long)(int){p} * (int){q} >> 7)",
                f"fn({p}, {q})" if d < 2 else p,
                "bits(f)",
                "(unsigned)(int)clampf(g)",
                f"(unsigned)(({p} & 1) && ({q} & 2) || {p} > {q})",
            ]
        )

    def fl(self, d=0):
        r = self.r
        if d > 2 or r.random() < 0.3:
            return r.choice(
                F + [f"{r.uniform(-4, 4):.5f}f", "(float)(int)a", "(float)b", "(float)x"]
            )
        p, q = self.fl(d + 1), self.fl(d + 1)
        return r.choice(
            [
                f"({p} + {q})",
                f"({p} - {q})",
                f"({p} * {q})",
                f"({p} / ({q}))",
                f"(- {p})",
                f"fabsf({p})",
                f"sqrtf(fabsf({p}))",
                f"({p} < {q} ? {p} : {q})",
                f"fmaf({p}, {q}, {self.fl(d + 1)})",
                f"floorf({p})",
                f"truncf({p})",
                f"rintf({p})",
            ]
        )

    def db(self, d=0):
        r = self.r
        if d > 2 or r.random() < 0.3:
            return r.choice(
                D + [f"{r.uniform(-4, 4):.9f}", "(double)(int)c", "(double)f", "(double)d"]
            )
        p, q = self.db(d + 1), self.db(d + 1)
        return r.choice(
            [
                f"({p} + {q})",
                f"({p} - {q})",
                f"({p} * {q})",
                f"({p} / ({q}))",
                f"sqrt(fabs({p}))",
                f"({p} < {q} ? {p} : {q})",
                f"fma({p}, {q}, {self.db(d + 1)})",
                f"ceil({p})",
            ]
        )

    def cond(self):
        r = self.r
        return r.choice(
            [
                f"{self.u(2)} < {self.u(2)}",
                f"(int){self.u(2)} > (int){self.u(2)}",
                f"({self.u(2)} & {1 << r.randrange(4)}u)",
                f"{self.fl(2)} < {self.fl(2)}",
                f"!({self.db(2)} >= {self.db(2)})",
                f"{self.u(2)} != {self.u(2)}",
            ]
        )

    def block(self, d, loop):
        return "{ " + " ".join(self.stmt(d + 1, loop) for _ in range(self.r.randrange(1, 4))) + " }"

    def stmt(self, d=0, loop=False):
        r = self.r
        k = r.random()
        if d > 3 or k < 0.45:
            return r.choice(
                [
                    lambda: f"{r.choice(U)} {r.choice(['=', '+=', '^=', '-='])} {self.u()};",
                    lambda: f"{r.choice(U)} = {self.u()};",
                    lambda: f"{r.choice(F)} = {self.fl()};",
                    lambda: f"{r.choice(D)} = {self.db()};",
                    lambda: f"arr[{self.u(2)} & 7] = {self.u()};",
                ]
            )()
        if k < 0.62:
            return f"if ({self.cond()}) {self.block(d, loop)}" + (
                f" else {self.block(d, loop)}" if r.random() < 0.5 else ""
            )
        if k < 0.76:
            self.n += 1
            i = f"i{self.n}"
            return f"for (unsigned {i} = 0; {i} < ({self.u(2)} & 7u); {i}++) {self.block(d, True)}"
        if k < 0.84:
            self.n += 1
            i = f"w{self.n}"
            return (
                f"{{ unsigned {i} = 0; while ({self.cond()} && {i}++ < 9u) {self.block(d, True)} }}"
            )
        if k < 0.92:
            cs = " ".join(
                f"case {j}: {self.stmt(d + 1, False)} {r.choice(['break;', 'break;', ''])}"
                for j in range(r.randrange(3, 9))
            )
            return f"switch ({self.u(2)} & 7u) {{ {cs} default: {self.stmt(d + 1, False)} }}"
        if loop:
            return f"if ({self.cond()}) {r.choice(['break', 'continue'])};"
        return (
            f"if ({self.cond()}) {{ a += 77u; goto done; }}" if d == 1 else f"{r.choice(U)} += 13u;"
        )

    def program(self):
        body = "\n  ".join(self.stmt(1) for _ in range(self.r.randrange(4, 10)))
        return f"""
FN unsigned fn(unsigned p, unsigned q) {{ unsigned s = p; for (unsigned k = 0; k < (q & 3); k++) {{ if (s & 1) s = s * 3 + 1; else s >>= 1; }} return s ^ q; }}
DV unsigned bits(float v) {{ unsigned r; memcpy(&r, &v, 4); return v != v ? 1u : r; }}
DV float clampf(float v) {{ return v != v ? 0.f : v < -1e6f ? -1e6f : v > 1e6f ? 1e6f : v; }}
DV void body(unsigned lane, const unsigned* in, unsigned* out) {{
  unsigned a = in[0], b = in[1], c = in[2], d = in[3]; unsigned arr[8]; for (int k = 0; k < 8; k++) arr[k] = in[k] + k;
  float f = (float)(int)(in[4] % 2001u) * 0.01f - 10.f, g = (float)in[5] * 1e-5f; double x = (double)(int)in[6] * 1e-3, y = in[7] * 0.125;
  {body}
  goto done; done:
  out[0] = a; out[1] = b; out[2] = c; out[3] = d; out[4] = bits(f); out[5] = bits(g); out[6] = x != x ? 1u : (unsigned)(long long)(fabs(x) < 1e15 ? x * 8 : 5.0); out[7] = bits((float)y);
  unsigned h = 0; for (int k = 0; k < 8; k++) h = h * 31u + arr[k]; out[8] = h; }}
"""


def main(count=30, seed=0, archs=("compute_75", "compute_80", "compute_90")):
    if subprocess.run(["g++", "--version"], capture_output=True).returncode:
        raise SystemExit("no g++")
    rng = np.random.default_rng(seed)
    n, tmp = 160, tempfile.mkdtemp()
    for k in range(count):
        src = Gen(seed * 100003 + k).program()
        host = (
            "#include <cmath>\n#include <cstring>\nusing namespace std;\n#define FN static\n#define DV static\n"
            + src
            + 'extern "C" void run(const unsigned* in, unsigned* out, int n) { for (int i = 0; i < n; i++) body(i, in + 8 * i, out + 9 * i); }'
        )
        path = os.path.join(tmp, f"p{k}")
        with open(path + ".cpp", "w") as fh:
            fh.write(host)
        subprocess.run(
            [
                "g++",
                "-O1",
                "-fwrapv",
                "-ffp-contract=off",
                "-fno-strict-aliasing",
                "-w",
                "-shared",
                "-fPIC",
                path + ".cpp",
                "-o",
                path + ".so",
            ],
            check=True,
        )
        inp = rng.integers(0, 2**32, (n, 8), dtype="u4")
        inp[::3] &= 15
        want = np.zeros((n, 9), "u4")
        ctypes.CDLL(path + ".so").run(
            inp.ctypes.data_as(ctypes.c_void_p), want.ctypes.data_as(ctypes.c_void_p), n
        )
        dev = (
            "#define FN __device__ __noinline__\n#define DV __device__ __forceinline__\n"
            + src
            + 'extern "C" __global__ void k(const unsigned* in, unsigned* out, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) body(i, in + 8 * i, out + 9 * i); }'
        )
        for arch in archs:
            got = ptxemu.empty((n, 9), "u4")
            f = ptxemu.Module(dev, arch=arch, options=["--fmad=false"]).get_function("k")
            f(2, 96, (inp, got, n))
            if not (got == want).all():
                i, j = np.argwhere(got != want)[0]
                with open(path + ".cu", "w") as fh:
                    fh.write(dev)
                print(
                    f"program {k} seed {seed} {arch}: thread {i} output {j}: {got[i, j]:#x}, host {want[i, j]:#x}; {(got != want).sum()} differ; {path}.cu"
                )
                return 1
    print(f"{count} programs x {len(archs)} targets agree")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(v) for v in sys.argv[1:3])))
