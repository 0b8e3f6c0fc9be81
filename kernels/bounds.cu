// Upper bounds of the log-probs of blank and label in all cells of some samples, from four dot
// products with the hidden vector of a cell, which is nowhere stored. The idea and the formulas are
// those of cupy_rnnt/tangents.py and of the contract of `bounds` in cupy_rnnt/ops/__init__.py.
//
// Grid: a block a tile of 64 frames and 16 positions. The rows of a tile go through shared memory
// in parts of 128 bytes; a thread has 8 cells, 4 frames by 2 positions. Moves (2 / 16 + 4 / 64) H
// elements a cell in and 16 bytes out. An element of a cell takes 4 operations and a reciprocal for
// the hidden value in float32, and 4 multiply-adds.

#include "activations.cuh"
#include "common.cuh"
#include "entries.cuh"
#include "log_space.cuh"

constexpr int kFrames = 64, kPositions = 16, kThreads = 128;
constexpr int kAcross = 8, kDown = kThreads / kAcross;  // positions and frames of the threads
constexpr int kRight = kPositions / kAcross, kBelow = kFrames / kDown;  // and of each of them

// A sample: where its tiles, cells and rows begin.
struct Run {
    int64 first, cell, frame, prefix;
    int frames, positions;
    double slack;
};

// A tile of a sample: its first cell and rows, and how many rows are left from there.
struct Tile {
    int64 cell, frame, prefix;
    int frames, positions;

    __device__ Tile(const Run& run, int64 tile) {
        const int across = (run.positions + kPositions - 1) / kPositions;
        const int t = tile / across * kFrames, u = tile % across * kPositions;
        cell = run.cell + static_cast<int64>(t) * run.positions + u;
        frame = run.frame + t;
        prefix = run.prefix + u;
        frames = run.frames - t;
        positions = run.positions - u;
    }
};

// A hidden value, from elements of the encoder and predictor rows.
template <typename Activation> struct Hidden {
    template <typename C> __device__ static C of(C e, C p) { return Activation::apply(e + p); }
};

struct Quotient;
template <> struct Hidden<Quotient> {
    // A Newton step corrects the reciprocal, which is off by a unit in the last place at most. A
    // division does the same, with branches besides for divisors that are denormal or huge.
    __device__ static float of(float e, float p) {
        float r;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(p + e));
        return p * fmaf(r, fmaf(-(p + e), r, 1.0f), r);
    }
    __device__ static double of(double e, double p) { return p / (p + e); }
};

// A part of some rows in shared memory. The pad puts 8 rows into different banks.
template <typename C, int ROWS> struct Part {
    static constexpr int kWidth = 128 / sizeof(C);
    alignas(16) C rows[ROWS][kWidth + kPack<C>];

    // What is not among `count` rows of some `width` is `beyond`.
    __device__ void fill(const C* from, int count, int64 stride, int64 width, C beyond) {
        constexpr int N = kPack<C>;
        const bool aligned = offset<N>(from, 0) == 0 && stride % N == 0;
        for (int i = threadIdx.x * N; i < ROWS * kWidth; i += kThreads * N) {
            const int row = i / kWidth, j = i % kWidth;
            const C* x = from + row * stride + j;
            Pack<C, N> values;
            if (aligned && row < count && j + N <= width)
                values = load<N>(x);
            else
                for (int k = 0; k < N; ++k)
                    values[k] = row < count && j + k < width ? x[k] : beyond;
            reinterpret_cast<Pack<C, N>&>(rows[row][j]) = values;
        }
    }
    __device__ Pack<C, kPack<C>> at(int row, int j) const { return load<kPack<C>>(&rows[row][j]); }
};

// Four blocks of floats, which take 128 registers, fit a multiprocessor. Not told so, NVRTC 13.5 gives
// them no more on sm_100 and spills. Doubles need more: 0 leaves their blocks to the compiler.
template <typename Form, typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 4 ? 4 : 0)
bounds(int64 tiles, int64 samples, const Run* runs, int64 size, const C* encoder, const C* slopes,
       const double* constants, const C* predictor, const C* vectors,
       const double* vector_constants, double* blank, double* label) {
    __shared__ Part<C, kFrames> e, slope;
    __shared__ Part<C, kPositions> p, vector[3];
    const int x = threadIdx.x % kAcross, y = threadIdx.x / kAcross;
    for (int64 i = first_item(kThreads); i < tiles; i += item_stride(kThreads)) {
        const Run run = entry_of(i, runs, samples);
        const Tile tile(run, i - run.first);
        C dots[kBelow][kRight][4] = {};
        for (int64 h = 0; h < size; h += p.kWidth) {
            __syncthreads();  // the part before has been read
            e.fill(encoder + tile.frame * size + h, tile.frames, size, size - h, 1);
            slope.fill(slopes + tile.frame * size + h, tile.frames, size, size - h, 0);
            p.fill(predictor + tile.prefix * size + h, tile.positions, size, size - h, 1);
            for (int k = 0; k < 3; ++k)
                vector[k].fill(vectors + (3 * tile.prefix + k) * size + h, tile.positions, 3 * size,
                               size - h, 0);
            __syncthreads();
#pragma unroll 1
            for (int j = 0; j < p.kWidth; j += kPack<C>) {
                Pack<C, kPack<C>> q[kRight], v[kRight][3];
                for (int b = 0; b < kRight; ++b) {
                    q[b] = p.at(x + b * kAcross, j);
                    for (int k = 0; k < 3; ++k) v[b][k] = vector[k].at(x + b * kAcross, j);
                }
                for (int a = 0; a < kBelow && a * kDown < tile.frames; ++a) {
                    auto f = e.at(y + a * kDown, j), g = slope.at(y + a * kDown, j);
                    for (int b = 0; b < kRight && b * kAcross < tile.positions; ++b)
                        for (int n = 0; n < kPack<C>; ++n) {
                            const C hidden = Hidden<Form>::of(f[n], q[b][n]);
                            for (int k = 0; k < 3; ++k) dots[a][b][k] += v[b][k][n] * hidden;
                            dots[a][b][3] += g[n] * hidden;
                        }
                }
            }
        }
#pragma unroll 1
        for (int t = y; t < min(tile.frames, kFrames); t += kDown) {
            for (int b = 0; b < kRight; ++b) {
                const int u = x + b * kAcross;
                if (u >= tile.positions) continue;
                const double* plus = vector_constants + 3 * (tile.prefix + u);
                const double of_blank = dots[0][b][0] + plus[0];
                const double of_label = dots[0][b][1] + plus[1];
                const double tangent =
                    larger(dots[0][b][2] + plus[2], dots[0][b][3] + constants[tile.frame + t]);
                const double whole = logaddexp(of_blank, larger(tangent, of_label));
                const int64 cell = tile.cell + static_cast<int64>(t) * run.positions + u;
                const double below_blank = whole - of_blank - run.slack;
                const double below_label = whole - of_label - run.slack;
                blank[cell] = below_blank > 0 ? -below_blank : 0;  // 0, too, if that is NaN
                label[cell] = below_label > 0 ? -below_label : 0;
            }
            for (int a = 1; a < kBelow; ++a)  // no index varies, so that dots stay in registers
                for (int b = 0; b < kRight; ++b)
                    for (int k = 0; k < 4; ++k) dots[a - 1][b][k] = dots[a][b][k];
        }
    }
}
