// Upper bounds of the scores in all cells of some samples, from dot products with the hidden vector
// of a cell, which is not stored. For the idea see cupy_rnnt/engine/tangents.py, for formulas the
// contract of `upper_bounds` in cupy_rnnt/ops/__init__.py.
//
// The vectors of a position are one for each score but the label's, in order, then the label's and
// the tangent's. `bounds` multiplies the last three of them and the tangent of the frame, which is
// enough for a blank and a label. `exact_logits` has written the logits of further scores before,
// into the rows of `out` that `bounds` overwrites.
//
// Grid: a block a tile of 64 frames and 16 positions. The rows of a tile go through shared memory
// in parts of 128 bytes; a thread has 8 cells, 4 frames by 2 positions. `bounds` moves (2 / 16 + 4 /
// 64) H elements a cell in and 8 K bytes out, `exact_logits` (1 / 16 + 4 / 64) H and 8 a logit. An
// element of a cell takes 4 operations and a reciprocal for the hidden value in float32, and 4
// multiply-adds or 3.

#include "activations.cuh"
#include "entries.cuh"
#include "log_space.cuh"
#include "row.cuh"

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

    // An element outside `count` rows of `width` is `beyond`.
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

// Encoder and predictor rows, what tangents of frames have, and `width` vectors of each position.
template <typename C> struct Inputs {
    int64 size;
    const C *encoder, *slopes;
    const double* constants;
    const C *predictor, *vectors;
    const double* vector_constants;
    int width;
};

// Calls finish(run, cell, logits) for every cell: the logits of three vectors of its position, from
// number `first` on, and with TANGENT the value of the tangent of its frame. The logit of a vector
// that does not exist is 0.
template <typename Form, bool TANGENT, typename C, typename Finish>
__device__ void each_cell(int64 tiles, int64 samples, const Run* runs, const Inputs<C>& from,
                          int first, Finish finish) {
    constexpr int kDots = TANGENT ? 4 : 3, kCells = kBelow * kRight;
    __shared__ Part<C, kFrames> e, slope;
    __shared__ Part<C, kPositions> p, vector[3];
    const int x = threadIdx.x % kAcross, y = threadIdx.x / kAcross;
    const int64 size = from.size;
    const auto is_there = [&](int number) { return 0 <= number && number < from.width; };
    for (int64 i = first_item(kThreads); i < tiles; i += item_stride(kThreads)) {
        const Run run = entry_of(i, runs, samples);
        const Tile tile(run, i - run.first);
        C dots[kCells][kDots] = {};
        for (int64 h = 0; h < size; h += p.kWidth) {
            __syncthreads();  // the part before has been read
            e.fill(from.encoder + tile.frame * size + h, tile.frames, size, size - h, 1);
            if (TANGENT)
                slope.fill(from.slopes + tile.frame * size + h, tile.frames, size, size - h, 0);
            p.fill(from.predictor + tile.prefix * size + h, tile.positions, size, size - h, 1);
            for (int k = 0; k < 3; ++k) {
                const C* const rows = from.vectors + (from.width * tile.prefix + first + k) * size;
                vector[k].fill(rows + h, is_there(first + k) ? tile.positions : 0,
                               from.width * size, size - h, 0);
            }
            __syncthreads();
#pragma unroll 1
            for (int j = 0; j < p.kWidth; j += kPack<C>) {
                Pack<C, kPack<C>> q[kRight], v[kRight][3];
                for (int b = 0; b < kRight; ++b) {
                    q[b] = p.at(x + b * kAcross, j);
                    for (int k = 0; k < 3; ++k) v[b][k] = vector[k].at(x + b * kAcross, j);
                }
                for (int a = 0; a < kBelow && a * kDown < tile.frames; ++a) {
                    auto f = e.at(y + a * kDown, j), g = f;
                    if (TANGENT) g = slope.at(y + a * kDown, j);
                    for (int b = 0; b < kRight && b * kAcross < tile.positions; ++b)
                        for (int n = 0; n < kPack<C>; ++n) {
                            const C hidden = Hidden<Form>::of(f[n], q[b][n]);
                            for (int k = 0; k < 3; ++k) dots[a * kRight + b][k] += v[b][k][n] * hidden;
                            if constexpr (TANGENT) dots[a * kRight + b][3] += g[n] * hidden;
                        }
                }
            }
        }
#pragma unroll 1
        for (int n = 0; n < kCells; ++n) {
            const int t = y + n / kRight * kDown, u = x + n % kRight * kAcross;
            if (t < tile.frames && u < tile.positions) {
                const double* plus = from.vector_constants + from.width * (tile.prefix + u) + first;
                double logits[kDots];
                for (int k = 0; k < 3; ++k)
                    logits[k] = dots[0][k] + (is_there(first + k) ? plus[k] : 0);
                if constexpr (TANGENT) logits[3] = dots[0][3] + from.constants[tile.frame + t];
                finish(run, tile.cell + static_cast<int64>(t) * run.positions + u, logits);
            }
            for (int other = 1; other < kCells; ++other)  // no index varies: dots stay in registers
                for (int k = 0; k < kDots; ++k) dots[other - 1][k] = dots[other][k];
        }
    }
}

// The number of a vector's score. `label` is the number of the label's score, or larger than all.
__device__ inline int score_of(int vector, int label) { return vector < label ? vector : vector + 1; }

// Logits of up to three scores, from vector `first` on.
template <typename Form, typename C>
__global__ void __launch_bounds__(kThreads, 3)
exact_logits(int64 tiles, int64 samples, const Run* runs, int64 size, const C* encoder,
             const C* predictor, const C* vectors, const double* vector_constants, int width,
             int first, int count, int label, int64 cells, double* out) {
    const Inputs<C> from{size,      encoder, nullptr,          nullptr,
                         predictor, vectors, vector_constants, width};
    each_cell<Form, false>(tiles, samples, runs, from, first,
                           [&](const Run&, int64 cell, const double* logits) {
                               for (int k = 0; k < 3; ++k)
                                   if (k < count)
                                       out[score_of(first + k, label) * cells + cell] = logits[k];
                           });
}

// `out` has a row of `cells` for each score.
template <typename Form, typename C>
__global__ void __launch_bounds__(kThreads)
bounds(int64 tiles, int64 samples, const Run* runs, int64 size, const C* encoder, const C* slopes,
       const double* constants, const C* predictor, const C* vectors,
       const double* vector_constants, int width, const int64* __restrict__ words, int heads,
       int scores, int ranges, int label, int64 cells, double* out) {
    constexpr int kHeads = 3;  // at most: each of three kinds of scores is under one of them
    const RowTable table{words, heads, scores, ranges};
    const Inputs<C> from{size,      encoder, slopes,           constants,
                         predictor, vectors, vector_constants, width};
    const int own = score_of(width - 3, label);
    each_cell<Form, true>(tiles, samples, runs, from, width - 3, [&](const Run& run, int64 cell,
                                                                     const double* logits) {
        const double of_own = logits[0], of_label = logits[1];
        const double labels = larger(larger(logits[2], logits[3]), of_label);
        const auto logit = [&](int k) {
            return k == own ? of_own : k == label ? of_label : out[k * cells + cell];
        };
        double lower[kHeads] = {};  // bounds of log-sum-exps
#pragma unroll 1
        for (int g = 0; g < table.heads; ++g) {
            double sum = -infinity();
#pragma unroll 1
            for (int k = 0; k < table.scores + 2; ++k)
                if (table.holds(g, k))
                    sum = logaddexp(sum, k < table.scores ? logit(k) : k == table.scores ? labels : 0);
#pragma unroll
            for (int other = 0; other < kHeads; ++other)  // no index varies: they stay in registers
                if (other == g) lower[other] = sum;
        }
#pragma unroll 1
        for (int k = 0; k < table.scores; ++k) {
            double bound = logit(k);
#pragma unroll
            for (int g = 0; g < kHeads; ++g)
                if (table.charged(k, g)) bound -= lower[g];
            bound += max(table.charges(k), 1) * run.slack;
            out[k * cells + cell] = (bound < 0 ? bound : 0) - table.shift(k);  // NaN gives 0
        }
    });
}
