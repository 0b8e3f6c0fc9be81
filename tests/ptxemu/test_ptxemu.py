"""CUDA C++ kernels through NVRTC and the interpreter, against NumPy; planted bugs; clean kernels."""

import itertools
import math
import shutil
import subprocess

import numpy as np
import pytest

from tests import ptxemu

from . import KernelError, Module, empty

BF = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.slow
ARCHS = ["compute_75", "compute_80", "compute_90"]
rng = np.random.default_rng(3)


@pytest.fixture(params=ARCHS)
def arch(request):
    return request.param


def randn(*shape, dtype="f4"):
    return rng.standard_normal(shape).astype(dtype)


def run(src, name, grid, block, args, arch="compute_80", shared_mem=0, clean=True, names=(), **kw):
    f = Module(src, arch=arch, name_expressions=names).get_function(name)
    rep = f(grid, block, args, shared_mem=shared_mem, check="raise" if clean else "report", **kw)
    if clean:
        assert not rep.errors and not rep.warnings, str(rep)
    return rep


def cdiv(a, b):
    return -(-a // b)


# ================================================================ element-wise and memory
VADD = """extern "C" __global__ void vadd(const float* a, const float* b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) c[i] = a[i] + b[i]; }"""


@pytest.mark.parametrize(
    ("n", "block"), [(1, 32), (1000, 128), (4096, 256), (777, 96), (500, 48), (33, 1024)]
)
def test_vector_add_tail(arch, n, block):
    a, b, c = randn(n), randn(n), empty(n)
    rep = run(VADD, "vadd", cdiv(n, block), block, (a, b, c, n), arch)
    assert (c == a + b).all() and ptxemu.written(c).all()
    assert rep.counters["global_store_bytes"] == 4 * n


def test_grid_stride(arch):
    src = """extern "C" __global__ void saxpy(float a, const float* x, float* y, long long n) {
      for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
        y[i] = a * x[i] + y[i]; }"""
    n = 5003
    x, y = randn(n), randn(n)
    want = (np.float64(np.float32(1.5)) * x + y).astype("f4")
    run(src, "saxpy", 7, 128, (1.5, x, y, n), arch)
    assert (y == want).all()


@pytest.mark.parametrize("pad", [0, 1])
def test_tile_transpose_and_bank_conflicts(arch, pad):
    src = """template<int PAD> __global__ void tr(const float* in, float* out, int rows, int cols) {
      __shared__ float t[32][32 + PAD];
      int x = blockIdx.x * 32 + threadIdx.x, y0 = blockIdx.y * 32;
      for (int j = threadIdx.y; j < 32; j += 8) if (x < cols && y0 + j < rows) t[j][threadIdx.x] = in[(y0 + j) * cols + x];
      __syncthreads();
      int ox = y0 + threadIdx.x, oy0 = blockIdx.x * 32;
      for (int j = threadIdx.y; j < 32; j += 8) if (ox < rows && oy0 + j < cols) out[(oy0 + j) * rows + ox] = t[threadIdx.x][j]; }"""
    a, o = randn(100, 70), empty((70, 100))
    rep = run(src, f"tr<{pad}>", (3, 4), (32, 8), (a, o, 100, 70), arch, names=[f"tr<{pad}>"])
    assert (o == a.T).all()
    assert (rep.counters["shared_conflicts"] > 0) == (pad == 0)
    full = run(
        src,
        f"tr<{pad}>",
        (1, 1),
        (32, 8),
        (randn(32, 32), empty((32, 32)), 32, 32),
        arch,
        names=[f"tr<{pad}>"],
    )
    assert full.counters["shared_conflicts"] == (31 * 32 if pad == 0 else 0)
    assert (
        full.counters["global_load_efficiency"] == 1.0
        and full.counters["global_store_efficiency"] == 1.0
    )


def test_coalescing_counters(arch):
    src = """extern "C" __global__ void k(const float* x, float* y, int stride) {
      int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = x[i * stride]; }"""
    for stride, sectors in ((1, 4), (2, 8), (8, 32), (16, 32)):
        x, y = randn(256 * stride), empty(256)
        rep = run(src, "k", 2, 128, (x, y, stride), arch)
        assert (y == x[::stride]).all()
        assert (
            rep.counters["global_load_sectors"] == sectors * 8
            and rep.counters["global_load_requests"] == 8
        )


def test_3d_grid_and_block(arch):
    src = """extern "C" __global__ void k(int* o) {
      int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, z = blockIdx.z * blockDim.z + threadIdx.z;
      int X = gridDim.x * blockDim.x, Y = gridDim.y * blockDim.y;
      o[(z * Y + y) * X + x] = x + 100 * y + 10000 * z; }"""
    o = empty((6, 8, 15), "i4")
    run(src, "k", (3, 2, 3), (5, 4, 2), (o,), arch)
    z, y, x = np.mgrid[:6, :8, :15]
    assert (o == x + 100 * y + 10000 * z).all()


def test_views_share_their_allocation(arch):
    base = randn(300)
    o = empty(100)
    run(VADD, "vadd", 1, 128, (base[100:200], base[7:], o, 100), arch)
    assert (o == base[100:200] + base[7:107]).all()
    # running past the view but inside the allocation is not an error of the device
    o = empty(200)
    run(VADD, "vadd", 2, 128, (base[50:60], base, o, 200), arch)
    assert (o == base[50:250] + base[:200]).all()


def test_64bit_indexing(arch):
    src = """extern "C" __global__ void k(const float* x, float* y, long long base, int n) {
      long long i = base + blockIdx.x * blockDim.x + threadIdx.x;
      if (i < base + n) y[i] = 2.f * x[i]; }"""
    for base in (2**31 + 17, 5 * 2**31, 2**33 + 1):
        x, y = randn(500), empty(500)
        run(
            src,
            "k",
            4,
            128,
            (ptxemu.Offset(x, -4 * base), ptxemu.Offset(y, -4 * base), base, 500),
            arch,
        )
        assert (y == 2 * x).all()
    # the same with a 32-bit product that wraps must be caught
    bad = """extern "C" __global__ void k(const float* x, float* y, int row, int cols, long long shift) {
      int i = (int)((unsigned)row * (unsigned)cols); y[threadIdx.x] = x[i + (int)threadIdx.x]; }"""
    x, y = randn(64), empty(64)
    rep = run(
        bad,
        "k",
        1,
        64,
        (ptxemu.Offset(x, -4 * (70000 * 40000)), y, 70000, 40000, 0),
        arch,
        clean=False,
    )
    assert rep.kinds() == ["out-of-bounds"]


# ================================================================ reductions
REDUCE = """
__device__ __forceinline__ float wsum(float v) { for (int o = 16; o; o >>= 1) v += __shfl_down_sync(0xffffffffu, v, o); return v; }
extern "C" __global__ void reduce(const float* x, float* out, int n) {
  __shared__ float part[32];
  float v = 0.f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  v = wsum(v);
  int lane = threadIdx.x & 31, w = threadIdx.x >> 5;
  if (!lane) part[w] = v;
  __syncthreads();
  if (!w) { v = lane < (blockDim.x >> 5) ? part[lane] : 0.f; v = wsum(v); if (!lane) out[blockIdx.x] = v; } }"""


@pytest.mark.parametrize("block", [32, 64, 96, 128, 256, 512, 1024])
def test_block_reduction(arch, block):
    x, o = randn(10000), empty(3)
    run(REDUCE, "reduce", 3, block, (x, o, x.size), arch)
    assert abs(o.sum() - x.astype("f8").sum()) < 1e-2
    xi = rng.integers(-50, 50, 10000).astype("f4")  # exact in float: order does not matter
    run(REDUCE, "reduce", 3, block, (xi, o, xi.size), arch)
    assert o.sum() == xi.sum()


SOFTMAX = """
extern "C" __global__ void lsm(const float4* __restrict__ x, float4* __restrict__ y, int rows, int cols4) {
  int row = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const float4* p = x + (size_t)row * cols4;
  float m = -INFINITY, s = 0.f;
  for (int c = threadIdx.x; c < cols4; c += 32) {
    float4 v = p[c];
    float mm = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
    float nm = fmaxf(m, mm);
    s = s * __expf(m - nm) + __expf(v.x - nm) + __expf(v.y - nm) + __expf(v.z - nm) + __expf(v.w - nm);
    m = nm;
  }
  for (int o = 16; o; o >>= 1) {
    float om = __shfl_xor_sync(0xffffffffu, m, o), os = __shfl_xor_sync(0xffffffffu, s, o);
    float nm = fmaxf(m, om);
    s = (m == -INFINITY ? 0.f : s * __expf(m - nm)) + (om == -INFINITY ? 0.f : os * __expf(om - nm));
    m = nm;
  }
  float l = m + logf(s);
  for (int c = threadIdx.x; c < cols4; c += 32) { float4 v = p[c]; y[(size_t)row * cols4 + c] = make_float4(v.x - l, v.y - l, v.z - l, v.w - l); } }"""


def test_warp_per_row_online_log_softmax(arch):
    src = SOFTMAX.replace("-INFINITY", "(-__int_as_float(0x7f800000))")
    for rows, cols in ((37, 64), (10, 500), (5, 1024), (3, 16)):
        x, y = randn(rows, cols) * 5, empty((rows, cols))
        run(src, "lsm", cdiv(rows, 4), (32, 4), (x, y, rows, cols // 4), arch)
        z = x.astype("f8")
        want = z - (
            z.max(1, keepdims=True)
            + np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
        )
        assert np.abs(y - want).max() < 2e-5


def test_block_per_row_softmax(arch):
    src = """extern "C" __global__ void sm(const float* x, float* y, int V) {
      extern __shared__ float sh[];
      const float* p = x + (size_t)blockIdx.x * V;
      float m = -1e30f;
      for (int v = threadIdx.x; v < V; v += blockDim.x) m = fmaxf(m, p[v]);
      sh[threadIdx.x] = m; __syncthreads();
      for (int o = blockDim.x / 2; o; o >>= 1) { if (threadIdx.x < o) sh[threadIdx.x] = fmaxf(sh[threadIdx.x], sh[threadIdx.x + o]); __syncthreads(); }
      m = sh[0]; __syncthreads();
      float s = 0;
      for (int v = threadIdx.x; v < V; v += blockDim.x) s += expf(p[v] - m);
      sh[threadIdx.x] = s; __syncthreads();
      for (int o = blockDim.x / 2; o; o >>= 1) { if (threadIdx.x < o) sh[threadIdx.x] += sh[threadIdx.x + o]; __syncthreads(); }
      s = sh[0];
      for (int v = threadIdx.x; v < V; v += blockDim.x) y[(size_t)blockIdx.x * V + v] = expf(p[v] - m) / s; }"""
    x, y = randn(20, 301), empty((20, 301))
    run(src, "sm", 20, 128, (x, y, 301), arch, shared_mem=512)
    e = np.exp(x.astype("f8") - x.max(1, keepdims=True))
    assert np.allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5)


def test_column_and_segment_sum(arch):
    src = """extern "C" __global__ void col(const float* x, float* o, int rows, int cols) {
      __shared__ float t[8][33];
      int c = blockIdx.x * 32 + threadIdx.x; float s = 0;
      if (c < cols) for (int r = threadIdx.y; r < rows; r += 8) s += x[r * cols + c];
      t[threadIdx.y][threadIdx.x] = s; __syncthreads();
      if (threadIdx.y == 0 && c < cols) { for (int k = 1; k < 8; k++) s += t[k][threadIdx.x]; o[c] = s; } }
    extern "C" __global__ void seg(const float* x, const int* offs, double* o, int nseg) {
      int w = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
      if (w >= nseg) return;
      double s = 0;
      for (int i = offs[w] + lane; i < offs[w + 1]; i += 32) s += x[i];
      for (int k = 16; k; k >>= 1) s += __shfl_xor_sync(0xffffffffu, s, k);
      if (!lane) o[w] = s; }"""
    x = rng.integers(-9, 9, (77, 50)).astype("f4")
    o = empty(50)
    run(src, "col", 2, (32, 8), (x, o, 77, 50), arch)
    assert (o == x.sum(0)).all()
    offs = np.r_[0, np.sort(rng.integers(0, x.size, 20)), x.size].astype("i4")
    s = empty(21, "f8")
    run(src, "seg", 6, 128, (x, offs, s, 21), arch)
    assert (s == [x.ravel()[a:b].sum() for a, b in itertools.pairwise(offs)]).all()


def test_last_block_reduction(arch):
    """threadfence + ticket: the last block sums the partial results of the others"""
    src = """__device__ unsigned ticket;
    extern "C" __global__ void k(const float* x, float* part, float* out, int n) {
      __shared__ float s[256]; __shared__ bool last;
      float v = 0; for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) v += x[i];
      s[threadIdx.x] = v; __syncthreads();
      for (int o = 128; o; o >>= 1) { if (threadIdx.x < o) s[threadIdx.x] += s[threadIdx.x + o]; __syncthreads(); }
      if (!threadIdx.x) { part[blockIdx.x] = s[0]; __threadfence(); last = atomicInc(&ticket, gridDim.x - 1) == gridDim.x - 1; }
      __syncthreads();
      if (last && !threadIdx.x) { float t = 0; for (int b = 0; b < gridDim.x; b++) t += ((volatile float*)part)[b]; out[0] = t; } }"""
    x = rng.integers(-9, 9, 20000).astype("f4")
    part, out = empty(100), empty(1)
    f = Module(src, arch=arch).get_function("k")
    for _ in range(2):
        rep = f(100, 256, (x, part, out, x.size))
        assert out[0] == x.sum() and rep.ok
        assert all("unless a fence" in w.detail for w in rep.warnings)


def test_scan_sort_histogram(arch):
    src = """
    extern "C" __global__ void scan(const int* x, int* y) {
      __shared__ int s[512]; int t = threadIdx.x; s[t] = x[t]; __syncthreads();
      for (int o = 1; o < 512; o <<= 1) { int v = t >= o ? s[t - o] : 0; __syncthreads(); s[t] += v; __syncthreads(); }
      y[t] = s[t]; }
    extern "C" __global__ void bitonic(float* x) {
      __shared__ float s[256]; int t = threadIdx.x; s[t] = x[t]; __syncthreads();
      for (int k = 2; k <= 256; k <<= 1) for (int j = k >> 1; j; j >>= 1) {
        int p = t ^ j;
        if (p > t) { bool up = (t & k) == 0; float a = s[t], b = s[p]; if ((a > b) == up) { s[t] = b; s[p] = a; } }
        __syncthreads(); }
      x[t] = s[t]; }
    extern "C" __global__ void hist(const unsigned char* x, int n, unsigned* h) {
      __shared__ unsigned s[256];
      for (int i = threadIdx.x; i < 256; i += blockDim.x) s[i] = 0;
      __syncthreads();
      for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&s[x[i]], 1u);
      __syncthreads();
      for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&h[i], s[i]); }"""
    x = rng.integers(-100, 100, 512).astype("i4")
    y = empty(512, "i4")
    run(src, "scan", 1, 512, (x, y), arch)
    assert (y == np.cumsum(x)).all()
    v = randn(256)
    want = np.sort(v)
    run(src, "bitonic", 1, 256, (v,), arch)
    assert (v == want).all()
    b = rng.integers(0, 256, 3000).astype("u1")
    h = np.zeros(256, "u4")
    run(src, "hist", 4, 128, (b, b.size, h), arch)
    assert (h == np.bincount(b, minlength=256)).all()


def test_tiled_matmul(arch):
    src = """extern "C" __global__ void mm(const float* A, const float* B, float* C, int M, int N, int K) {
      __shared__ float a[16][16], b[16][17];
      int r = blockIdx.y * 16 + threadIdx.y, c = blockIdx.x * 16 + threadIdx.x; float s = 0;
      for (int k = 0; k < K; k += 16) {
        a[threadIdx.y][threadIdx.x] = r < M && k + threadIdx.x < K ? A[r * K + k + threadIdx.x] : 0.f;
        b[threadIdx.y][threadIdx.x] = c < N && k + threadIdx.y < K ? B[(k + threadIdx.y) * N + c] : 0.f;
        __syncthreads();
        #pragma unroll
        for (int j = 0; j < 16; j++) s += a[threadIdx.y][j] * b[j][threadIdx.x];
        __syncthreads(); }
      if (r < M && c < N) C[r * N + c] = s; }"""
    A, B, C = randn(45, 33), randn(33, 50), empty((45, 50))
    run(src, "mm", (4, 3), (16, 16), (A, B, C, 45, 50, 33), arch)
    assert np.allclose(C, A.astype("f8") @ B, atol=1e-4)


# ================================================================ types
def test_half_and_bfloat16_io(arch):
    src = """#include <cuda_fp16.h>
    #include <cuda_bf16.h>
    template<typename T> struct Cv;
    template<> struct Cv<__half> { static __device__ float ld(__half v) { return __half2float(v); } static __device__ __half st(float v) { return __float2half(v); } };
    template<> struct Cv<__nv_bfloat16> { static __device__ float ld(__nv_bfloat16 v) { return __bfloat162float(v); } static __device__ __nv_bfloat16 st(float v) { return __float2bfloat16(v); } };
    template<typename T> __global__ void k(const T* x, T* y, float* rowsum, int cols) {
      float s = 0; const T* p = x + blockIdx.x * cols;
      for (int c = threadIdx.x; c < cols; c += 32) { float v = Cv<T>::ld(p[c]); s += v; y[blockIdx.x * cols + c] = Cv<T>::st(v * 1.7f + 0.3f); }
      for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
      if (!threadIdx.x) rowsum[blockIdx.x] = s; }"""
    for t, ct in ((np.float16, "__half"), (BF, "__nv_bfloat16")):
        x, y, s = randn(9, 100).astype(t), empty((9, 100), t), empty(9)
        run(src, f"k<{ct}>", 9, 32, (x, y, s, 100), arch, names=[f"k<{ct}>"])
        xf = x.astype("f8")
        want = (xf * np.float32(1.7) + np.float32(0.3)).astype("f4").astype(t)
        assert (y == want).all()
        assert np.allclose(s, xf.sum(1), atol=1e-4)


def test_half2_bfloat162_arithmetic(arch):
    src = """#include <cuda_fp16.h>
    #include <cuda_bf16.h>
    extern "C" __global__ void h(const __half2* a, const __half2* b, __half2* o) { int i = threadIdx.x;
      o[i] = __hfma2(a[i], b[i], __hmax2(a[i], b[i])); }
    extern "C" __global__ void h1(const __half* a, const __half* b, __half* o) { int i = threadIdx.x;
      __half x = __hadd(a[i], b[i]); o[i] = __hgt(a[i], b[i]) ? __hmul(x, b[i]) : __hsub(x, a[i]); }
    extern "C" __global__ void b(const __nv_bfloat162* a, const __nv_bfloat162* b, __nv_bfloat162* o) { int i = threadIdx.x;
      o[i] = __hadd2(__hmul2(a[i], b[i]), a[i]); }"""
    a, b = randn(256).astype("f2"), randn(256).astype("f2")
    o = empty(256, "f2")
    run(src, "h", 1, 128, (a, b, o), arch)
    want = (a.astype("f8") * b.astype("f8") + np.maximum(a, b).astype("f8")).astype("f2")
    assert (o == want).all()
    run(src, "h1", 1, 256, (a, b, o), arch)
    s = a + b
    assert (o == np.where(a > b, s * b, s - a)).all()
    if arch != "compute_75":
        a, b, o = a.astype(BF), b.astype(BF), empty(256, BF)
        run(src, "b", 1, 128, (a, b, o), arch)
        af, bf = a.astype("f4"), b.astype("f4")
        two = ((af * bf).astype(BF).astype("f4") + af).astype(BF)
        one = (
            (a.astype("f8") * b.astype("f8") + a.astype("f8")).astype("f4").astype(BF)
        )  # contracted by the compiler
        assert ((o == two) | (o == one)).all()


def test_small_and_wide_types(arch):
    src = """extern "C" __global__ void k(const signed char* a, const unsigned short* b, const double* c, long long* o, bool* p, char2* q) {
      int i = threadIdx.x; o[i] = (long long)a[i] * b[i] + (long long)c[i]; p[i] = a[i] > 0 && c[i] < 0; q[i] = make_char2(a[i], -a[i]); }"""
    a, b = rng.integers(-128, 128, 64).astype("i1"), rng.integers(0, 65536, 64).astype("u2")
    c = rng.standard_normal(64) * 1e6
    o, p, q = empty(64, "i8"), empty(64, "u1"), empty((64, 2), "i1")
    run(src, "k", 1, 64, (a, b, c, o, p, q), arch)
    assert (o == a.astype("i8") * b + np.trunc(c).astype("i8")).all() and (
        p == ((a > 0) & (c < 0))
    ).all()
    assert (q[:, 0] == a).all() and (q[:, 1] == -a).all()


def test_integer_mix(arch):
    src = """extern "C" __global__ void k(const unsigned* x, unsigned* o, int* d, unsigned long long* m) { int i = threadIdx.x; unsigned v = x[i];
      unsigned h = v * 2654435761u; h ^= h >> 15; h = __funnelshift_l(h, v, 7); h += __popc(v) + __clz(v) + __ffs(v) + __brev(v);
      o[i] = h; d[i] = (int)v / 7 + (int)v % 13 - ((int)v >> 3); m[i] = __umul64hi((unsigned long long)v << 32 | h, 0x9E3779B97F4A7C15ull) + v / 10u; }"""
    x = rng.integers(0, 2**32, 128).astype("u4")
    o, d, m = empty(128, "u4"), empty(128, "i4"), empty(128, "u8")
    run(src, "k", 1, 128, (x, o, d, m), arch)
    for i, v in enumerate(x.tolist()):
        h = v * 2654435761 & 0xFFFFFFFF
        h ^= h >> 15
        h = ((v << 32 | h) << 7 >> 32) & 0xFFFFFFFF
        h = (
            h
            + bin(v).count("1")
            + (32 - v.bit_length())
            + ((v & -v).bit_length())
            + int(f"{v:032b}"[::-1], 2)
            & 0xFFFFFFFF
        )
        s = v - 2**32 if v >> 31 else v
        q = math.trunc(s / 7)
        r = s - 13 * math.trunc(s / 13)
        assert o[i] == h and d[i] == q + r - (s >> 3)
        assert m[i] == (((v << 32 | h) * 0x9E3779B97F4A7C15 >> 64) + v // 10) % 2**64


def test_math_accuracy(arch):
    fns = {
        "expf": (np.exp, "randn*20", 2),
        "logf": (np.log, "pos", 2),
        "log1pf": (np.log1p, "pos", 2),
        "tanhf": (np.tanh, "randn", 3),
        "expm1f": (np.expm1, "randn", 2),
        "sqrtf": (np.sqrt, "pos", 0.51),
        "sinf": (np.sin, "randn*20", 2),
        "cosf": (np.cos, "randn*20", 2),
        "exp2f": (np.exp2, "randn", 2),
        "log2f": (np.log2, "pos", 2),
        "log10f": (np.log10, "pos", 3),
        "rsqrtf": (lambda v: 1 / np.sqrt(v), "pos", 2),
        "erff": (np.vectorize(math.erf), "randn", 3),
        "cbrtf": (np.cbrt, "pos", 2),
        "atanf": (np.arctan, "randn", 3),
        "lgammaf": (np.vectorize(math.lgamma), "pos", 8),
    }
    src = "".join(
        f'extern "C" __global__ void k_{f}(const float* x, float* y) {{ int i = blockIdx.x * 256 + threadIdx.x; y[i] = {f}(x[i]); }}\n'
        for f in fns
    )
    src += """extern "C" __global__ void k_fast(const float* x, float* y, float* z) { int i = blockIdx.x * 256 + threadIdx.x; y[i] = __expf(x[i]); z[i] = __logf(fabsf(x[i])); }"""
    mod = Module(src, arch=arch)
    for f, (ref, dom, ulp) in fns.items():
        x = randn(1024)
        x = np.abs(x) + np.float32(1e-4) if dom == "pos" else x * 20 if "20" in dom else x
        y = empty(1024)
        mod.get_function("k_" + f)(4, 256, (x, y))
        want = ref(x.astype("f8"))
        err = np.abs(y - want) / np.spacing(np.abs(want).astype("f4")).astype("f8")
        assert err.max() <= ulp + 0.01, (f, err.max())
    x, y, z = randn(1024) * 5, empty(1024), empty(1024)
    mod.get_function("k_fast")(4, 256, (x, y, z))
    assert np.allclose(y, np.exp(x.astype("f8")), rtol=3e-6) and np.allclose(
        z, np.log(np.abs(x.astype("f8"))), rtol=1e-5, atol=1e-6
    )


def test_double_math(arch):
    src = """extern "C" __global__ void k(const double* x, double* e, double* l, double* p, double* t) { int i = threadIdx.x;
      e[i] = exp(x[i]); l[i] = log(fabs(x[i])); p[i] = log1p(exp(-fabs(x[i]))); t[i] = tanh(x[i]) / sqrt(2.0 + x[i] * x[i]); }"""
    x = rng.standard_normal(256) * 10
    e, l, p, t = (empty(256, "f8") for _ in range(4))
    run(src, "k", 1, 256, (x, e, l, p, t), arch)
    for got, want in (
        (e, np.exp(x)),
        (l, np.log(np.abs(x))),
        (p, np.log1p(np.exp(-np.abs(x)))),
        (t, np.tanh(x) / np.sqrt(2 + x * x)),
    ):
        assert (np.abs(got - want) <= 4 * np.spacing(np.abs(want))).all()


def test_logaddexp_specials(arch):
    src = """extern "C" __global__ void k(const float* a, const float* b, float* o) { int i = threadIdx.x; float x = a[i], y = b[i];
      float m = fmaxf(x, y); o[i] = m == -__int_as_float(0x7f800000) ? m : m + log1pf(expf(fminf(x, y) - m)); }"""
    v = np.array([0, -1, -100, -np.inf, -1e30, 3, -0.0, 50], "f4")
    a, b = (g.ravel().copy() for g in np.meshgrid(v, v))
    o = empty(64)
    run(src, "k", 1, 64, (a, b, o), arch)
    assert np.allclose(o, np.logaddexp(a.astype("f8"), b.astype("f8")), rtol=1e-6, atol=1e-6)


# ================================================================ RNN-T lattice
def rnnt_alpha(blank, label):
    T, U = blank.shape
    a = np.full((T, U), -np.inf)
    a[0, 0] = 0
    for t in range(T):
        for u in range(U):
            if t:
                a[t, u] = np.logaddexp(a[t, u], a[t - 1, u] + blank[t - 1, u])
            if u:
                a[t, u] = np.logaddexp(a[t, u], a[t, u - 1] + label[t, u - 1])
    return a


LAE = """__device__ __forceinline__ float lae(float a, float b) { float m = fmaxf(a, b), n = fminf(a, b);
  return n == -__int_as_float(0x7f800000) ? m : m + log1pf(expf(n - m)); }
#define NEG (-__int_as_float(0x7f800000))
"""
ALPHA_BLOCK = (
    LAE
    + """extern "C" __global__ void alpha(const float* blank, const float* label, const int* Ts, const int* Us, float* out, float* ll, int T, int U) {
  extern __shared__ float row[];       // two diagonals
  int b = blockIdx.x, t_n = Ts[b], u_n = Us[b];
  const float* bl = blank + (size_t)b * T * U; const float* la = label + (size_t)b * T * U; float* o = out + (size_t)b * T * U;
  float *prev = row, *cur = row + U;
  int u = threadIdx.x;
  for (int d = 0; d < t_n + u_n - 1; d++) {
    int t = d - u;
    if (u < u_n && t >= 0 && t < t_n) {
      float v = (t == 0 && u == 0) ? 0.f : NEG;
      if (t > 0) v = prev[u] + bl[(t - 1) * U + u];
      if (u > 0) v = lae(v, prev[u - 1] + la[t * U + u - 1]);
      cur[u] = v; o[t * U + u] = v;
    }
    __syncthreads();
    float* s = prev; prev = cur; cur = s;
  }
  if (u == 0) ll[b] = prev[u_n - 1] + bl[(t_n - 1) * U + u_n - 1]; }"""
)
ALPHA_WARP = (
    LAE
    + """extern "C" __global__ void alpha(const float* blank, const float* label, const int* Ts, const int* Us, float* out, float* ll, int T, int U) {
  int b = blockIdx.x, t_n = Ts[b], u_n = Us[b], u = threadIdx.x;
  const float* bl = blank + (size_t)b * T * U; const float* la = label + (size_t)b * T * U; float* o = out + (size_t)b * T * U;
  float v = NEG;
  for (int d = 0; d < t_n + u_n - 1; d++) {
    float left = __shfl_up_sync(0xffffffffu, v, 1);
    int t = d - u;
    if (u < u_n && t >= 0 && t < t_n) {
      float up = t > 0 ? v + bl[(t - 1) * U + u] : NEG;
      float lf = u > 0 ? left + la[t * U + u - 1] : NEG;
      v = (t | u) ? lae(up, lf) : 0.f;
      o[t * U + u] = v;
    }
  }
  if (u == u_n - 1) ll[b] = v + bl[(t_n - 1) * U + u_n - 1]; }"""
)


@pytest.mark.parametrize("kind", ["block", "warp"])
def test_rnnt_alpha(arch, kind):
    B, T, U = 5, 23, 17
    blank, label = -np.abs(randn(B, T, U)), -np.abs(randn(B, T, U))
    Ts, Us = rng.integers(1, T + 1, B).astype("i4"), rng.integers(1, U + 1, B).astype("i4")
    Ts[0], Us[0], Ts[1], Us[1] = T, U, 1, 1
    out, ll = empty((B, T, U)), empty(B)
    src = ALPHA_BLOCK if kind == "block" else ALPHA_WARP
    run(
        src,
        "alpha",
        B,
        32,
        (blank, label, Ts, Us, out, ll, T, U),
        arch,
        shared_mem=2 * U * 4 if kind == "block" else 0,
    )
    for b in range(B):
        t, u = Ts[b], Us[b]
        a = rnnt_alpha(blank[b].astype("f8"), label[b].astype("f8"))
        assert np.allclose(out[b, :t, :u], a[:t, :u], rtol=1e-5, atol=1e-5)
        assert np.isclose(ll[b], a[t - 1, u - 1] + blank[b, t - 1, u - 1], rtol=1e-5)
        w = ptxemu.written(out)[b]
        assert w[:t, :u].all() and w.sum() == t * u


def test_rnnt_alpha_wide_block(arch):
    """more warps than one, so that __syncthreads really matters"""
    B, T, U = 2, 12, 100
    blank, label = -np.abs(randn(B, T, U)), -np.abs(randn(B, T, U))
    Ts, Us = np.full(B, T, "i4"), np.full(B, U, "i4")
    out, ll = empty((B, T, U)), empty(B)
    run(
        ALPHA_BLOCK,
        "alpha",
        B,
        128,
        (blank, label, Ts, Us, out, ll, T, U),
        arch,
        shared_mem=2 * U * 4,
    )
    for b in range(B):
        assert np.allclose(
            out[b], rnnt_alpha(blank[b].astype("f8"), label[b].astype("f8")), rtol=1e-5, atol=1e-5
        )
    broken = ALPHA_BLOCK.replace("__syncthreads();\n    float* s", "float* s")
    rep = run(
        broken,
        "alpha",
        B,
        128,
        (blank, label, Ts, Us, out, ll, T, U),
        arch,
        shared_mem=2 * U * 4,
        clean=False,
    )
    assert "race" in rep.kinds()


# ================================================================ control flow
def test_divergent_loops(arch):
    src = """extern "C" __global__ void collatz(const int* x, int* steps, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;
      long long v = x[i]; int s = 0;
      while (v != 1) { if (v & 1) v = 3 * v + 1; else v >>= 1; s++; if (s > 1000) break; }
      steps[i] = s; }"""
    x = rng.integers(1, 5000, 500).astype("i4")
    o = empty(500, "i4")
    run(src, "collatz", 4, 128, (x, o, 500), arch)

    def ref(v):
        s = 0
        while v != 1:
            v = 3 * v + 1 if v & 1 else v >> 1
            s += 1
        return s

    assert o.tolist() == [ref(int(v)) for v in x]


def test_break_continue_switch_early_exit(arch):
    src = """extern "C" __global__ void k(const int* x, int* o, int n) {
      int i = threadIdx.x; int v = x[i], acc = 0;
      if (v < 0) { o[i] = -1; return; }
      for (int j = 0; j < n; j++) {
        if (j % 3 == v % 3) continue;
        if (acc > v) break;
        switch ((j + v) % 7) { case 0: acc += 1; break; case 1: acc += 10; case 2: acc += 100; break; case 3: acc -= 3; break;
          case 4: { int q = j; do { acc += q; } while (--q > 4); break; } case 5: acc ^= 5; break; default: acc += v; }
      }
      o[i] = acc; }"""
    x = rng.integers(-20, 400, 256).astype("i4")
    o = empty(256, "i4")
    run(src, "k", 1, 256, (x, o, 40), arch)

    def ref(v, n=40):
        if v < 0:
            return -1
        acc = 0
        for j in range(n):
            if j % 3 == v % 3:
                continue
            if acc > v:
                break
            c = (j + v) % 7
            if c == 0:
                acc += 1
            elif c == 1:
                acc += 110
            elif c == 2:
                acc += 100
            elif c == 3:
                acc -= 3
            elif c == 4:
                q = j
                while True:
                    acc += q
                    q -= 1
                    if not q > 4:
                        break
            elif c == 5:
                acc ^= 5
            else:
                acc += v
        return acc

    assert o.tolist() == [ref(int(v)) for v in x]


def test_jump_table(arch):
    body = "".join(
        f"case {k}: r = (r * {2 * k + 3} + {k * k}) ^ g(r + {k}); break;" for k in range(20)
    )
    src = f"""__device__ __noinline__ int g(int x) {{ return x * 7 - 1; }}
    extern "C" __global__ void k(const int* x, int* o) {{ int i = threadIdx.x; int r = i; switch (x[i]) {{ {body} default: r = -r; }} o[i] = r; }}"""
    x = rng.integers(-2, 23, 256).astype("i4")
    o = empty(256, "i4")
    run(src, "k", 1, 256, (x, o), arch)
    for i, v in enumerate(x.tolist()):
        want = (i * (2 * v + 3) + v * v) ^ ((i + v) * 7 - 1) if 0 <= v < 20 else -i
        assert o[i] == want
    jt = """.version 8.0
    .target sm_80
    .address_size 64
    .visible .entry k(.param .u64 p, .param .u64 q) { .reg .b32 %r<6>; .reg .b64 %a<4>;
    ld.param.u64 %a0, [p]; ld.param.u64 %a1, [q]; mov.u32 %r0, %tid.x; mad.wide.u32 %a0, %r0, 4, %a0; mad.wide.u32 %a1, %r0, 4, %a1;
    ld.global.u32 %r1, [%a0]; ts: .branchtargets A, B, C; brx.idx %r1, ts;
    C: mov.u32 %r2, 30; bra E;
    A: mov.u32 %r2, 10; bra E;
    B: mov.u32 %r2, 20;
    E: st.global.u32 [%a1], %r2; ret; }"""
    x, o = rng.integers(0, 3, 100).astype("u4"), empty(100, "u4")
    Module(ptx=jt).get_function("k")(1, 100, (x, o))
    assert (o == 10 * (x + 1)).all()


def test_noinline_calls_divergent(arch):
    src = """struct R { float a, b; int k; };
    __device__ __noinline__ R f(float x, int n) { R r; r.a = x; r.b = 0; r.k = n; for (int i = 0; i < n; i++) { r.a = r.a * 0.5f + 1.f; r.b += r.a; } return r; }
    __device__ __noinline__ float g(const R* r, float y) { return f(r->a * y, r->k & 3).b + r->b; }
    extern "C" __global__ void k(const float* x, const int* n, float* o) { int i = blockIdx.x * blockDim.x + threadIdx.x;
      float v = 0; if (n[i] & 1) { R r = f(x[i], n[i]); v = g(&r, 2.f); } else if (n[i] > 4) v = f(x[i] + 1, 3).b; o[i] = v; }"""
    x, n = rng.integers(-8, 8, 256).astype("f4"), rng.integers(0, 9, 256).astype("i4")
    o = empty(256)
    run(src, "k", 2, 128, (x, n, o), arch)

    def f(a, n):
        b = np.float32(0)
        a = np.float32(a)
        for _ in range(n):
            a = np.float32(a * np.float32(0.5) + np.float32(1))
            b = np.float32(b + a)
        return a, b

    for i in range(256):
        if n[i] & 1:
            a, b = f(x[i], n[i])
            want = np.float32(f(a * 2, n[i] & 3)[1] + b)
        else:
            want = f(x[i] + 1, 3)[1] if n[i] > 4 else 0
        assert o[i] == want


def test_local_arrays(arch):
    src = """extern "C" __global__ void k(const int* ix, float* o) { float a[16]; int i = threadIdx.x;
      #pragma unroll 1
      for (int j = 0; j < 16; j++) a[(j * 5) & 15] = j * 1.5f + i;
      float s = 0;
      #pragma unroll 1
      for (int j = 0; j < 8; j++) s += a[ix[i * 8 + j]]; o[i] = s; }"""
    ix = rng.integers(0, 16, (64, 8)).astype("i4")
    o = empty(64)
    run(src, "k", 1, 64, (ix, o), arch)
    a = np.zeros((64, 16), "f4")
    for j in range(16):
        a[:, j * 5 & 15] = j * 1.5 + np.arange(64)
    assert (o == np.take_along_axis(a, ix, 1).sum(1)).all()


# ================================================================ interface
def test_templates_and_lowered_names(arch):
    src = """namespace q { template<typename T, int K, bool F> __global__ void k(const T* x, T* y) { int i = threadIdx.x; T s = 0;
      for (int j = 0; j < K; j++) s += x[(i + j) % blockDim.x]; y[i] = F ? -s : s; } }"""
    names = ["q::k<float, 3, true>", "q::k<double, 5, false>", "q::k<int, 1, true>"]
    m = Module(src, arch=arch, name_expressions=names)
    for nme, t, k, s in zip(names, ("f4", "f8", "i4"), (3, 5, 1), (-1, 1, -1)):
        x, y = rng.integers(-9, 9, 64).astype(t), empty(64, t)
        m.get_function(nme)(1, 64, (x, y))
        assert (y == s * sum(np.roll(x, -j) for j in range(k))).all()


def test_constant_tables_and_globals(arch):
    src = """__constant__ float tab[8] = {1, 2, 4, 8, 16, 32, 64, 128}; __constant__ int upd[4];
    __device__ unsigned long long total; __device__ float state[64] = {5.f};
    extern "C" __global__ void k(const int* ix, float* o) { int i = threadIdx.x; o[i] = tab[ix[i] & 7] + upd[i & 3] + state[i];
      atomicAdd(&total, (unsigned long long)ix[i]); state[i] = i; }"""
    m = Module(src, arch=arch)
    m.get_global("upd", "i4")[:] = [10, 20, 30, 40]
    ix, o = rng.integers(0, 8, 64).astype("i4"), empty(64)
    f = m.get_function("k")
    st = np.r_[5, np.zeros(63)]
    for _rep in range(2):
        f(1, 64, (ix, o))
        assert (o == 2.0**ix + np.tile([10, 20, 30, 40], 16) + st).all()
        st = np.arange(64)
    assert m.get_global("total", "u8")[0] == 2 * ix.sum()


def test_struct_by_value(arch):
    src = """struct Shape { int B, T; long long stride; const float* p; float scale; unsigned char flag; };
    extern "C" __global__ void k(Shape s, float* o, short off, double f) { int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < s.B * s.T) o[i] = s.p[i * s.stride + off] * s.scale + (s.flag ? (float)f : 0.f); }"""
    x, o = randn(200), empty(60)
    s = np.zeros(
        1,
        np.dtype(
            [
                ("B", "i4"),
                ("T", "i4"),
                ("stride", "i8"),
                ("p", "u8"),
                ("scale", "f4"),
                ("flag", "u1"),
            ],
            align=True,
        ),
    )
    s["B"], s["T"], s["stride"], s["p"], s["scale"], s["flag"] = (
        6,
        10,
        3,
        ptxemu.address_of(x),
        2.0,
        1,
    )
    for arg in (s.tobytes(), s[0]):
        run(src, "k", 1, 64, (arg, o, np.int16(5), 0.25), arch, keep=[x])
        assert (o == x[5 : 5 + 180 : 3] * np.float32(2) + np.float32(0.25)).all()


def test_dynamic_shared_memory_regions(arch):
    src = """extern "C" __global__ void k(const float* x, double* o, int n) { extern __shared__ __align__(16) unsigned char raw[];
      double* d = (double*)raw; float* f = (float*)(raw + n * 8); int i = threadIdx.x;
      f[i] = x[i]; d[i] = x[i] * 2.0; __syncthreads(); o[i] = d[n - 1 - i] + f[(i + 1) % n]; }"""
    x, o = randn(128), empty(128, "f8")
    run(src, "k", 1, 128, (x, o, 128), arch, shared_mem=128 * 12)
    assert (o == (x.astype("f8") * 2)[::-1] + np.roll(x, -1)).all()
    rep = run(src, "k", 1, 128, (x, o, 128), arch, shared_mem=128 * 12 - 4, clean=False)
    assert "out-of-bounds" in rep.kinds()


def test_argument_errors():
    f = Module(VADD).get_function("vadd")
    a = randn(8)
    with pytest.raises(TypeError):
        f(1, 32, (a, a, a))
    with pytest.raises(TypeError):
        f(1, 32, (a, a, a, np.int64(3)))
    with pytest.raises(ValueError, match="block shape"):
        f(1, 2048, (a, a, a, 3))
    with pytest.raises(KeyError):
        Module(VADD).get_function("nope")


# ================================================================ synchronisation and atomics
def test_double_and_float_atomics(arch):
    src = """extern "C" __global__ void k(const double* x, const int* ix, double* acc, float* facc, float* mx, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;
      atomicAdd(&acc[ix[i]], x[i]); atomicAdd(&facc[ix[i]], (float)x[i]);
      float v = (float)x[i]; int* a = (int*)&mx[ix[i]]; int old = *(volatile int*)a;
      while (v > __int_as_float(old)) { int seen = atomicCAS(a, old, __float_as_int(v)); if (seen == old) break; old = seen; } }"""
    n = 1500
    x, ix = rng.integers(-50, 50, n).astype("f8") + 0.5, rng.integers(0, 10, n).astype("i4")
    acc, facc, mx = np.zeros(10), np.zeros(10, "f4"), np.full(10, -1e30, "f4")
    f = Module(src, arch=arch).get_function("k")
    rep = f(cdiv(n, 128), 128, (x, ix, acc, facc, mx, n))
    want = np.bincount(ix, x, 10)
    assert (
        (acc == want).all()
        and (facc == want).all()
        and (mx == [x[ix == k].max() for k in range(10)]).all()
    )
    assert rep.ok


def test_spin_lock_between_blocks(arch):
    src = """__device__ int lock; extern "C" __global__ void k(int* counter) {
      if (threadIdx.x == 0) { while (atomicCAS(&lock, 0, 1) != 0) ; __threadfence(); *(volatile int*)counter = *(volatile int*)counter + 1; __threadfence(); atomicExch(&lock, 0); } }"""
    c = np.zeros(1, "i4")
    rep = Module(src, arch=arch).get_function("k")(20, 32, (c,))
    assert c[0] == 20 and rep.ok


def test_producer_consumer_between_blocks(arch):
    """block b waits for block b - 1 (decoupled look-back)"""
    src = """extern "C" __global__ void k(const int* x, int* sums, volatile int* flag) {
      if (threadIdx.x == 0) { int b = blockIdx.x, s = 0; if (b) { while (flag[b - 1] == 0) ; __threadfence(); s = ((volatile int*)sums)[b - 1]; }
        ((volatile int*)sums)[b] = s + x[b]; __threadfence(); flag[b] = 1; } }"""
    x, s, fl = rng.integers(0, 9, 50).astype("i4"), np.zeros(50, "i4"), np.zeros(50, "i4")
    rep = Module(src, arch=arch).get_function("k")(50, 32, (x, s, fl))
    assert (s == np.cumsum(x)).all() and rep.ok


def test_ballot_compaction_and_match(arch):
    src = """extern "C" __global__ void k(const int* x, int* o, int* cnt, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
      bool keep = i < n && x[i] % 3 == 0; unsigned m = __ballot_sync(0xffffffffu, keep); int base = 0;
      if (lane == 0) base = atomicAdd(cnt, __popc(m)); base = __shfl_sync(0xffffffffu, base, 0);
      if (keep) o[base + __popc(m & ((1u << lane) - 1))] = x[i]; }
    extern "C" __global__ void agg(const int* x, int* h) { int v = x[threadIdx.x]; unsigned m = __match_any_sync(0xffffffffu, v);
      if ((threadIdx.x & 31) == __ffs(m) - 1) atomicAdd(&h[v], __popc(m)); }
    extern "C" __global__ void cnt(const int* x, int* o) { int v = x[threadIdx.x]; o[threadIdx.x] = __syncthreads_count(v > 3) * 4 + __syncthreads_or(v == 9) * 2 + (__syncthreads_and(v >= 0) != 0); }"""
    x = rng.integers(0, 10, 1000).astype("i4")
    o, c = empty(1000, "i4"), np.zeros(1, "i4")
    run(src, "k", 4, 256, (x, o, c, 1000), arch)
    want = x[x % 3 == 0]
    assert c[0] == len(want) and (np.sort(o[: c[0]]) == np.sort(want)).all()
    h = np.zeros(10, "i4")
    run(src, "agg", 1, 256, (x, h), arch)
    assert (h == np.bincount(x[:256], minlength=10)).all()
    o = empty(96, "i4")
    run(src, "cnt", 1, 96, (x, o), arch)
    assert (o == (x[:96] > 3).sum() * 4 + (x[:96] == 9).any() * 2 + 1).all()


def test_partial_masks_in_branches(arch):
    src = """extern "C" __global__ void k(const float* x, float* o) { int lane = threadIdx.x & 31; float v = x[threadIdx.x];
      if (lane < 8) { for (int s = 4; s; s >>= 1) v += __shfl_xor_sync(0xffu, v, s); }
      else if (lane >= 16) { unsigned m = 0xffff0000u; for (int s = 8; s; s >>= 1) v = fmaxf(v, __shfl_xor_sync(m, v, s)); }
      __syncwarp(); o[threadIdx.x] = v; }"""
    x, o = rng.integers(-9, 9, 128).astype("f4"), empty(128)
    run(src, "k", 1, 128, (x, o), arch)
    w, want = x.reshape(4, 32), x.reshape(4, 32).copy()
    want[:, :8] = w[:, :8].sum(1, keepdims=True)
    want[:, 16:] = w[:, 16:].max(1, keepdims=True)
    assert (o.reshape(4, 32) == want).all()


def test_warp_shared_with_syncwarp(arch):
    src = """extern "C" __global__ void k(const float* x, float* o) { __shared__ float s[128]; int t = threadIdx.x, l = t & 31, w = t & ~31;
      s[t] = x[t]; __syncwarp(); float v = s[w + ((l + 1) & 31)]; __syncwarp(); s[t] = v * 2; __syncwarp(); o[t] = s[w + 31 - l]; }"""
    x, o = randn(128), empty(128)
    run(src, "k", 1, 128, (x, o), arch)
    assert (o.reshape(4, 32) == (np.roll(x.reshape(4, 32), -1, 1) * 2)[:, ::-1]).all()
    rep = run(
        src.replace("s[t] = x[t]; __syncwarp();", "s[t] = x[t];"),
        "k",
        1,
        128,
        (x, o),
        arch,
        clean=False,
    )
    assert rep.kinds() == ["race"]


def test_named_barriers(arch):
    src = """extern "C" __global__ void k(const float* x, float* o) { __shared__ float s[128]; int t = threadIdx.x;
      if (t < 64) { s[t] = x[t]; asm volatile("bar.sync 1, 64;" ::: "memory"); o[t] = s[63 - t]; }
      else { s[t] = x[t] * 2; asm volatile("bar.sync 2, 64;" ::: "memory"); o[t] = s[64 + 127 - t]; } }"""
    x, o = randn(128), empty(128)
    run(src, "k", 1, 128, (x, o), arch)
    assert (o == np.r_[x[63::-1], (x[64:] * 2)[::-1]]).all()


CPASYNC = """extern "C" __global__ void k(const float4* x, float4* o, int n) { __shared__ float4 buf[2][64];
  int t = threadIdx.x; auto cp = [&](int st, int i) { unsigned d = (unsigned)__cvta_generic_to_shared(&buf[st][t]);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" :: "r"(d), "l"(x + i * 64 + t) : "memory"); asm volatile("cp.async.commit_group;" ::: "memory"); };
  cp(0, 0); float4 acc = make_float4(0, 0, 0, 0);
  for (int i = 0; i < n; i++) {
    if (i + 1 < n) { cp((i + 1) & 1, i + 1); asm volatile("cp.async.wait_group 1;" ::: "memory"); }
    else asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    float4 v = buf[i & 1][63 - t]; acc.x += v.x; acc.y += v.y; acc.z += v.z; acc.w += v.w;
    __syncthreads(); }
  o[t] = acc; }"""


def test_cp_async_double_buffer():
    for arch in ("compute_80", "compute_90"):
        x, o = rng.integers(-9, 9, (7, 64, 4)).astype("f4"), empty((64, 4))
        run(CPASYNC, "k", 1, 64, (x, o, 7), arch)
        assert (o == x.sum(0)[::-1]).all()
        bad = CPASYNC.replace("wait_group 1", "wait_group 2")
        rep = run(bad, "k", 1, 64, (x, o, 7), arch, clean=False)
        assert "async-not-waited" in rep.kinds()


def test_inline_asm_and_approx(arch):
    src = """extern "C" __global__ void k(const float* x, float* o, unsigned* l) { int i = threadIdx.x; float r; unsigned id;
      asm("{ .reg .f32 t; mul.rn.f32 t, %1, 0f3FB8AA3B; ex2.approx.ftz.f32 %0, t; }" : "=f"(r) : "f"(x[i]));
      asm volatile("mov.u32 %0, %%laneid;" : "=r"(id)); o[i] = r; l[i] = id; }"""
    x, o, l = randn(64), empty(64), empty(64, "u4")
    run(src, "k", 1, 64, (x, o, l), arch)
    assert np.allclose(o, np.exp(x.astype("f8")), rtol=1e-6) and (l == np.arange(64) % 32).all()


@pytest.mark.parametrize("t", ["f16", "bf16", "tf32"])
def test_mma(t):
    K, el = (16, 2) if t != "tf32" else (8, 1)
    nt = {"f16": np.float16, "bf16": BF, "tf32": np.float32}[t]
    ct = {"f16": "unsigned short", "bf16": "unsigned short", "tf32": "float"}[t]
    src = f"""extern "C" __global__ void k(const {ct}* A, const {ct}* B, float* C) {{ int l = threadIdx.x, g = l >> 2, q = l & 3; unsigned a[4], b[2]; float c[4] = {{1, 1, 1, 1}};
      for (int r = 0; r < 4; r++) a[r] = *(const unsigned*)&A[(g + 8 * (r & 1)) * {K} + q * {el} + (r >> 1) * {4 * el}];
      for (int r = 0; r < 2; r++) {{ {ct} e[{el}]; for (int j = 0; j < {el}; j++) e[j] = B[(q * {el} + j + r * {4 * el}) * 8 + g]; b[r] = *(unsigned*)e; }}
      asm volatile("mma.sync.aligned.m16n8k{K}.row.col.f32.{t}.{t}.f32 {{%0,%1,%2,%3}}, {{%4,%5,%6,%7}}, {{%8,%9}}, {{%0,%1,%2,%3}};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
      for (int r = 0; r < 4; r++) C[(g + 8 * (r >> 1)) * 8 + q * 2 + (r & 1)] = c[r]; }}"""
    A, B, C = (
        rng.integers(-4, 5, (16, K)).astype(nt),
        rng.integers(-4, 5, (K, 8)).astype(nt),
        empty((16, 8)),
    )
    run(src, "k", 1, 32, (A, B, C))
    assert (A.astype("f8") @ B.astype("f8") + 1 == C).all()


def test_cooperative_groups(arch):
    src = """#include <cooperative_groups.h>
    #include <cooperative_groups/reduce.h>
    namespace cg = cooperative_groups;
    extern "C" __global__ void k(const float* x, float* o) { auto b = cg::this_thread_block(); auto w = cg::tiled_partition<16>(b);
      float v = x[b.thread_rank()]; v = cg::reduce(w, v, cg::plus<float>()); b.sync(); if (!w.thread_rank()) o[w.meta_group_rank()] = v; }"""
    x, o = rng.integers(-9, 9, 128).astype("f4"), empty(8)
    run(src, "k", 1, 128, (x, o), arch)
    assert (o == x.reshape(8, 16).sum(1)).all()


if shutil.which("nvcc"):  # a check of the emulator that the project does not depend on

    @pytest.mark.parametrize("a", ["80", "90", "100"])
    def test_ptx_of_nvcc(tmp_path, a):
        """PTX written by another compiler release (registers all .b32, .param .ptr, other idioms)"""
        (tmp_path / "k.cu").write_text(ALPHA_WARP + REDUCE)
        subprocess.run(
            [
                "nvcc",
                "-ptx",
                f"-arch=compute_{a}",
                "-lineinfo",
                "-o",
                str(tmp_path / "k.ptx"),
                str(tmp_path / "k.cu"),
            ],
            check=True,
        )
        m = Module(ptx=(tmp_path / "k.ptx").read_text())
        x, o = rng.integers(-50, 50, 5000).astype("f4"), empty(3)
        rep = m.get_function("reduce")(3, 256, (x, o, x.size))
        assert o.sum() == x.sum() and not rep.warnings
        B, T, U = 2, 9, 7
        bl, la, out, ll = (
            -np.abs(randn(B, T, U)),
            -np.abs(randn(B, T, U)),
            empty((B, T, U)),
            empty(B),
        )
        m.get_function("alpha")(
            B, 32, (bl, la, np.full(B, T, "i4"), np.full(B, U, "i4"), out, ll, T, U)
        )
        assert np.allclose(
            out[0], rnnt_alpha(bl[0].astype("f8"), la[0].astype("f8")), rtol=1e-5, atol=1e-5
        )


# ================================================================ planted bugs
def planted(src, args, grid=1, block=64, kinds=None, arch="compute_80", name="k", **kw):
    rep = run(src, name, grid, block, args, arch, clean=False, **kw)
    assert kinds is None or set(kinds) <= set(rep.kinds()), str(rep)
    if kinds is not None:
        assert set(rep.kinds()) <= set(kinds) | set(kw.get("also", ())), str(rep)
    return rep


def K(body, params="const float* x, float* o, int n"):
    return f'extern "C" __global__ void k({params}) {{ {body} }}'


def test_bug_out_of_bounds_by_one(arch):
    x, o = randn(100), empty(100)
    rep = planted(
        K("int i = threadIdx.x; if (i <= n) o[i] = x[i];"),
        (x, o, 100),
        block=128,
        kinds=["out-of-bounds"],
        arch=arch,
    )
    texts = [e.detail for e in rep.errors]
    assert any("load of 4 bytes at byte offset 400" in t for t in texts) and any(
        "store of 4 bytes at byte offset 400" in t for t in texts
    )
    assert (
        rep.errors[0].count == 1
        and "thread (100,0,0)" in rep.errors[0].where
        and "kernel.cu:1" in rep.errors[0].source
    )
    planted(
        K("int i = threadIdx.x; o[i] = x[i - 1];"),
        (x, empty(64), 100),
        kinds=["out-of-bounds"],
        arch=arch,
    )
    with pytest.raises(KernelError, match="out-of-bounds"):
        Module(VADD, arch=arch).get_function("vadd")(1, 128, (x, x, o, 128))
    planted(
        K("((float4*)o)[threadIdx.x] = make_float4(1, 2, 3, 4);"),
        (x, empty(102), 1),
        block=26,
        kinds=["out-of-bounds"],
        arch=arch,
    )


def test_bug_shared_out_of_bounds(arch):
    b = "__shared__ float s[64]; __shared__ float r[64]; int t = threadIdx.x; s[t + n] = x[t]; r[t] = 0.f; __syncthreads(); o[t] = s[t] + r[63 - t];"
    rep = planted(K(b), (randn(64), empty(64), 1), arch=arch)
    assert "out-of-bounds" in rep.kinds()
    b = "extern __shared__ float s[]; int t = threadIdx.x; s[t] = x[t]; __syncthreads(); o[t] = s[t + n];"
    rep = planted(
        K(b), (randn(64), empty(64), 1), arch=arch, kinds=["out-of-bounds"], shared_mem=256
    )
    assert rep.errors[0].count == 1


def test_bug_missing_syncthreads(arch):
    b = "__shared__ float s[64]; int t = threadIdx.x; s[t] = x[t]; SYNC o[t] = s[63 - t];"
    x, o = randn(64), empty(64)
    rep = planted(K(b.replace("SYNC", "")), (x, o, 0), arch=arch)
    assert "race" in rep.kinds()
    run(K(b.replace("SYNC", "__syncthreads();")), "k", 1, 64, (x, o, 0), arch)
    # __syncwarp is not enough across warps, but enough inside one
    rep = planted(K(b.replace("SYNC", "__syncwarp();")), (x, o, 0), arch=arch)
    assert "race" in rep.kinds()
    run(
        K(b.replace("SYNC", "__syncwarp();").replace("63", "31")),
        "k",
        1,
        32,
        (x, empty(32), 0),
        arch,
    )


def test_bug_missing_second_barrier_in_loop(arch):
    b = """__shared__ float s[64]; int t = threadIdx.x; float v = 0; for (int i = 0; i < n; i++) { s[t] = x[t] * i; __syncthreads(); v += s[(t + 33) & 63]; SYNC } o[t] = v;"""
    x, o = randn(64), empty(64)
    planted(K(b.replace("SYNC", "")), (x, o, 5), kinds=["race"], arch=arch)
    run(K(b.replace("SYNC", "__syncthreads();")), "k", 1, 64, (x, o, 5), arch)


def test_bug_warp_synchronous_without_sync(arch):
    b = "volatile __shared__ float s[64]; int t = threadIdx.x; s[t] = x[t]; __syncthreads(); if (t < 32) { s[t] += s[t + 32]; s[t] += s[t + 1]; o[t] = s[t]; }"
    # volatile hides it (no plain access is involved); with plain accesses it is a race
    planted(K(b.replace("volatile ", "")), (randn(64), empty(32), 0), kinds=["race"], arch=arch)


def test_bug_write_write_race(arch):
    rep = planted(
        K(
            "__shared__ float s[4]; s[threadIdx.x & 3] = x[threadIdx.x]; __syncthreads(); o[threadIdx.x] = s[threadIdx.x & 3];"
        ),
        (randn(64), empty(64), 0),
        kinds=["race"],
        arch=arch,
    )
    assert "write-write" in rep.errors[0].detail
    planted(
        K("o[threadIdx.x >> 1] = x[threadIdx.x];"),
        (randn(64), empty(32), 0),
        kinds=["race"],
        arch=arch,
    )
    # all threads store the same value: only a warning
    rep = run(
        K(
            "__shared__ int s[2]; int t = threadIdx.x; if (t < 2) s[t] = 0; __syncthreads(); s[n & 1] = 5; __syncthreads(); o[t] = s[t & 1];"
        ),
        "k",
        1,
        64,
        (randn(64), empty(64), 0),
        arch,
        clean=False,
    )
    assert rep.ok and [w.kind for w in rep.warnings] == ["race"]


def test_bug_races_in_global_memory(arch):
    planted(
        K("int t = threadIdx.x; o[t] = x[t]; o[64 + t] = o[(t + 1) & 63];"),
        (randn(64), np.zeros(128, "f4"), 0),
        kinds=["race"],
        arch=arch,
    )
    run(
        K("int t = threadIdx.x; o[t] = x[t]; __syncthreads(); o[64 + t] = o[(t + 1) & 63];"),
        "k",
        1,
        64,
        (randn(64), empty(128), 0),
        arch,
    )
    planted(
        K("o[threadIdx.x] = x[threadIdx.x] + blockIdx.x;"),
        (randn(64), empty(64), 0),
        grid=3,
        kinds=["inter-block-race"],
        arch=arch,
    )
    planted(
        K("o[threadIdx.x] += x[threadIdx.x];"),
        (randn(64), np.zeros(64, "f4"), 0),
        grid=40,
        kinds=["inter-block-race"],
        arch=arch,
    )
    # also when the blocks run in different chunks
    planted(
        K("o[threadIdx.x] += x[threadIdx.x];"),
        (randn(64), np.zeros(64, "f4"), 0),
        grid=3,
        kinds=["inter-block-race"],
        arch=arch,
        max_lanes=64,
    )


def test_bug_atomic_then_plain_read(arch):
    b = "__shared__ float s; int t = threadIdx.x; if (!t) s = 0.f; __syncthreads(); atomicAdd(&s, x[t]); SYNC o[t] = s;"
    planted(K(b.replace("SYNC", "")), (randn(64), empty(64), 0), kinds=["race"], arch=arch)
    run(K(b.replace("SYNC", "__syncthreads();")), "k", 1, 64, (randn(64), empty(64), 0), arch)


def test_bug_uninitialised_shared(arch):
    rep = planted(
        K(
            "__shared__ float s[64]; int t = threadIdx.x; if (t < 60) s[t] = x[t]; __syncthreads(); o[t] = s[t];"
        ),
        (randn(64), empty(64), 0),
        kinds=["uninitialised-read"],
        arch=arch,
    )
    assert rep.errors[0].count == 4 and "thread (60,0,0)" in rep.errors[0].where


def test_bug_poisoned_global(arch):
    ws = empty(64)
    src = K("int t = threadIdx.x; if (n == 0) { if (t != 7) o[t] = 1.f; } else o[t] = x[t];")
    run(src, "k", 1, 64, (randn(64), ws, 0), arch)
    rep = planted(src, (ws, empty(64), 1), kinds=["uninitialised-read"], arch=arch)
    assert rep.errors[0].count == 1 and "thread (7,0,0)" in rep.errors[0].where
    assert ptxemu.written(ws).sum() == 63


def test_bug_misaligned(arch):
    x = randn(257)
    planted(
        K("float4 v = ((const float4*)x)[threadIdx.x]; o[threadIdx.x] = v.x + v.w;"),
        (x[1:], empty(64), 0),
        kinds=["misaligned"],
        arch=arch,
    )
    planted(
        K("o[threadIdx.x] = *(const float*)((const char*)x + 2 * threadIdx.x);"),
        (x, empty(64), 0),
        kinds=["misaligned"],
        arch=arch,
    )
    planted(
        K(
            "__shared__ float s[68]; s[threadIdx.x] = x[threadIdx.x]; __syncthreads(); if (threadIdx.x < 8) { float2 v = *(float2*)&s[threadIdx.x * 2 + n]; o[threadIdx.x] = v.x + v.y; }"
        ),
        (x, empty(8), 1),
        kinds=["misaligned"],
        arch=arch,
    )


def test_bug_barrier_in_divergent_code(arch):
    rep = planted(
        K("int t = threadIdx.x; if (t < 40) { o[t] = x[t]; __syncthreads(); } else o[t] = 0.f;"),
        (randn(64), empty(64), 0),
        kinds=["barrier-divergence"],
        arch=arch,
    )
    assert "24 of 64 threads" in rep.errors[0].detail
    rep = planted(
        K(
            "int t = threadIdx.x; __shared__ float s[64]; s[t] = x[t]; if (t & 1) { __syncthreads(); o[t] = s[t ^ 1]; } else { __syncthreads(); o[t] = s[t ^ 1] + 1.f; }"
        ),
        (randn(64), empty(64), 0),
        arch=arch,
    )
    assert rep.kinds() in (
        [],
        ["barrier-divergence"],
    )  # the compiler may have merged the two barriers
    deadlock = K(
        """int t = threadIdx.x; if (t < 32) { asm volatile("bar.sync 1, 64;"); o[t] = 1.f; } else { asm volatile("bar.sync 2, 64;"); o[t] = x[t]; }"""
    )
    rep = planted(deadlock, (randn(64), empty(64), 0), kinds=["barrier-deadlock"], arch=arch)
    assert "can never proceed" in rep.errors[0].detail
    # threads that return early before a barrier
    rep = planted(
        K(
            "int t = threadIdx.x; if (t >= n) return; __shared__ float s[64]; s[t] = x[t]; __syncthreads(); o[t] = s[n - 1 - t];"
        ),
        (randn(64), empty(64), 50),
        kinds=["barrier-divergence"],
        arch=arch,
    )
    run(
        K(
            "int t = threadIdx.x; if (t >= n) return; __shared__ float s[64]; s[t] = x[t]; __syncthreads(); o[t] = s[n - 1 - t];"
        ),
        "k",
        1,
        64,
        (randn(64), empty(64), 50),
        arch,
        allow_exited_barrier=True,
    )


def test_bug_shuffles(arch):
    red = "float v = x[threadIdx.x]; for (int s = 16; s; s >>= 1) v += __shfl_xor_sync(0xffffffffu, v, s); o[threadIdx.x] = v;"
    run(K(red), "k", 1, 64, (randn(64), empty(64), 0), arch)
    planted(K(red), (randn(48), empty(48), 0), block=48, kinds=["shfl-inactive"], arch=arch)
    planted(
        K("if (threadIdx.x >= n) return; " + red),
        (randn(64), empty(64), 20),
        block=32,
        kinds=["shfl-inactive"],
        arch=arch,
    )
    # half of the warp waits for lanes that are stuck at a barrier
    rep = planted(
        K(
            "float v = x[threadIdx.x]; if (threadIdx.x & 1) { v += __shfl_xor_sync(0xffffffffu, v, 2); } else { __syncthreads(); } o[threadIdx.x] = v;"
        ),
        (randn(32), empty(32), 0),
        block=32,
        arch=arch,
    )
    assert rep.kinds() == ["barrier-deadlock"]
    rep = planted(
        K(
            "float v = x[threadIdx.x]; if (threadIdx.x < 16) v += __shfl_xor_sync(0x00ff00ffu, v, 1); o[threadIdx.x] = v;"
        ),
        (randn(32), empty(32), 0),
        block=32,
        arch=arch,
    )
    assert "warp-mask" in rep.kinds()


def test_bug_null_and_readonly_and_endless(arch):
    planted(
        K("o[threadIdx.x] = x ? 1.f : x[threadIdx.x];"),
        (None, empty(64), 0),
        kinds=["invalid-address"],
        arch=arch,
    )
    x = randn(64)
    x.flags.writeable = False
    planted(
        K("o[threadIdx.x] = x[threadIdx.x]; ((float*)x)[threadIdx.x] = 1.f;"),
        (x, empty(64), 0),
        kinds=["write-to-readonly"],
        arch=arch,
    )
    rep = planted(
        K("volatile float* p = o; while (p[0] == 0.f) ;"),
        (x, np.zeros(64, "f4"), 0),
        arch=arch,
        step_limit=5000,
    )
    assert rep.kinds() == ["step-limit"]
    rep = planted(
        "#define assert(c) if (!(c)) __trap();\n"
        + K("assert(x[threadIdx.x] < 1e6f); o[threadIdx.x] = x[threadIdx.x];"),
        (np.r_[randn(63), np.float32(1e7)].astype("f4"), empty(64), 0),
        arch=arch,
    )
    assert rep.kinds() == ["trap"]


def test_freed_buffer_is_not_reachable(arch):
    src = (
        'extern "C" __global__ void k(float** p, float* o) { o[threadIdx.x] = p[0][threadIdx.x]; }'
    )
    a, o = randn(32), empty(32)
    tab = np.array([ptxemu.address_of(a)], "u8")
    planted(src, (tab, o), block=32, kinds=["invalid-address"], arch=arch)
    run(src, "k", 1, 32, (tab, o), arch, keep=[a])
    assert (o == a).all()


def test_chunking_does_not_change_results():
    x = rng.integers(-50, 50, 30000).astype("f4")
    outs = []
    for lanes in (128, 1024, 1 << 20):
        o = empty(40)
        rep = run(REDUCE, "reduce", 40, 128, (x, o, x.size), max_lanes=lanes)
        outs.append(
            (o.copy(), rep.counters["lane_instructions_total"], rep.counters["global_load_sectors"])
        )
    assert all((a == outs[0][0]).all() and b == outs[0][1] and c == outs[0][2] for a, b, c in outs)


def test_tiled_masks_fast_path_and_races(arch):
    """16-lane groups with their own masks on full warps; ordering only inside a group"""
    src = K("""__shared__ float s[64]; int t = threadIdx.x; unsigned m = 0xffffu << (t & 16); float v = x[t];
      for (int k = 8; k; k >>= 1) v += __shfl_xor_sync(m, v, k);
      s[t] = v; __syncwarp(m); o[t] = s[(t & ~15) + ((t + 3) & 15)] + s[t ^ n]; """)
    x, o = rng.integers(-9, 9, 64).astype("f4"), empty(64)
    run(src, "k", 1, 64, (x, o, 1), arch)
    assert (o == 2 * np.repeat(x.reshape(4, 16).sum(1), 16)).all()
    planted(src, (x, o, 16), kinds=["race"], arch=arch)  # reaches into the other half-warp


def test_nc_load_of_written_memory(arch):
    src = 'extern "C" __global__ void k(const float* __restrict__ x, float* o) { int t = threadIdx.x; o[t] = 3.f; __syncthreads(); o[t + 64] = __ldg(&x[t]); }'
    o = np.zeros(128, "f4")
    planted(src, (o, o), kinds=["nc-stale-read"], arch=arch)
    run(src, "k", 1, 64, (randn(64), empty(128)), arch)


def test_struct_parameter_indexed_at_run_time(arch):
    src = """struct S { float w[12]; }; extern "C" __global__ void k(const S s, const int* ix, float* o) { o[threadIdx.x] = s.w[ix[threadIdx.x]]; }"""
    w, ix, o = randn(12), rng.integers(0, 12, 64).astype("i4"), empty(64)
    run(src, "k", 1, 64, (w.tobytes(), ix, o), arch)
    assert (o == w[ix]).all()


def test_shared_memory_limits():
    src = K(
        "extern __shared__ float s[]; s[threadIdx.x + n] = x[threadIdx.x]; __syncthreads(); o[threadIdx.x] = s[n + threadIdx.x];"
    )
    f = Module(src, arch="compute_80").get_function("k")
    x, o = randn(32), empty(32)
    rep = f(1, 32, (x, o, 20000), shared_mem=100000)
    assert [w.kind for w in rep.warnings] == ["smem-opt-in"] and (o == x).all()
    f.max_dynamic_shared_size_bytes = 100000
    assert not f(1, 32, (x, o, 20000), shared_mem=100000).warnings
    with pytest.raises(ValueError, match="shared memory"):
        f(1, 32, (x, o, 0), shared_mem=200000)


def test_down_shuffle_past_the_mask_is_a_warning(arch):
    src = K(
        "float v = x[threadIdx.x]; if (threadIdx.x < 8) { for (int s = 4; s; s >>= 1) v += __shfl_down_sync(0xffu, v, s); if (!threadIdx.x) o[0] = v; }"
    )
    x, o = rng.integers(-9, 9, 32).astype("f4"), empty(1)
    rep = run(src, "k", 1, 32, (x, o, 0), arch, clean=False)
    assert rep.ok and o[0] == x[:8].sum() and {w.kind for w in rep.warnings} == {"shfl-inactive"}
    rep = run(
        src.replace("if (!threadIdx.x) o[0] = v;", "if (threadIdx.x == 7) o[0] = v;"),
        "k",
        1,
        32,
        (x, o, 0),
        arch,
        clean=False,
    )
    assert np.isnan(o[0])  # the undefined value shows


def test_poison_views_and_empty_arrays():
    base = np.zeros((6, 8), "f4")
    ptxemu.poison(base[:, 2:5])
    assert (
        np.isnan(base[:, 2:5]).all()
        and (base[:, :2] == 0).all()
        and ptxemu.written(base).sum() == 30
    )
    src = K("if (threadIdx.x < n) o[threadIdx.x] = x[threadIdx.x];")
    planted(src, (base, empty(48), 48), kinds=["uninitialised-read"])
    ptxemu.mark_written(base[:, 2:5])
    run(src, "k", 1, 64, (base, empty(48), 48))
    run(src, "k", 1, 64, (np.empty(0, "f4"), empty(4), 0))
    planted(src, (np.empty(0, "f4"), empty(4), 1), kinds=["out-of-bounds"])


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_random_programs_against_gpp(seed):
    from . import fuzz

    assert fuzz.main(2, seed) == 0
