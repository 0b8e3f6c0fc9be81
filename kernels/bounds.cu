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
#include "dropout.cuh"
#include "log_space.cuh"
#include "row.cuh"
#include "samples.cuh"

constexpr int kFrames = 64, kPositions = 16, kThreads = 128;
constexpr int kAcross = 8, kDown = kThreads / kAcross;  // positions and frames of the threads
constexpr int kRight = kPositions / kAcross, kBelow = kFrames / kDown;  // and of each of them

// A tile of a sample: its first cell and rows, and how many rows are left from there. Frames before
// `start` and from `stop` on are left out.
struct Tile {
    int64 cell, frame, prefix;
    int frames, positions;

    __device__ Tile(const Samples& samples, int64 sample, int64 number, int64 start, int64 stop) {
        const int64 width = samples.of(kPosition, sample);
        const int64 across = (width + kPositions - 1) / kPositions;
        const int64 tile = number - samples.before(kTile, sample);
        const int64 first = samples.before(kFrame, sample);
        const int64 t = first + tile / across * kFrames, u = tile % across * kPositions;
        frame = max(t, start);
        frames = min(min(t + kFrames, first + samples.of(kFrame, sample)), stop) - frame;
        cell = samples.at(kCell, sample) + (frame - first) * width + u;
        prefix = samples.before(kPosition, sample) + u;
        positions = width - u;
    }
};

// A hidden value, from elements of the encoder and predictor rows.
template <typename Activation> struct Hidden {
    static constexpr bool kLogistic = false;  // whether samples may take another form, Quotient
    template <typename C> __device__ static C of(C e, C p) { return Activation::apply(e + p); }
};

template <> constexpr bool Hidden<Tanh>::kLogistic = true;
template <> constexpr bool Hidden<Sigmoid>::kLogistic = true;

struct Quotient;
template <> struct Hidden<Quotient> {
    // A Newton step corrects the reciprocal, which is off by a unit in the last place at most. A
    // division does the same, with branches besides for divisors that are denormal or huge.
    __device__ static float of(float e, float p) {
        float r;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(p + e));
        return p * fmaf(r, fmaf(-(p + e), r, 1.0f), r);
    }
    __device__ static double of(double e, double p) { return p * (1 / (p + e)); }
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

// The samples of a launch, its first tile and number of tiles, and the frames that it is about.
struct Work {
    Samples samples;
    int64 first, tiles, start, stop;
    const bool* fits;
};

// Inputs of frames and positions, tangents of frames, and `width` vectors of each position.
template <typename C> struct Rows {
    int64 size;
    const C *encoder, *slopes;
    const double* constants;
    const C *predictor, *vectors;
    const double* vector_constants;
    int width;
    Dropout dropout;
};

// A part of the rows of a tile. Only a fourth dot product takes a slope.
template <typename C, int DOTS> struct Parts {
    Part<C, kFrames> encoder;
    Part<C, DOTS == 4 ? kFrames : 1> slope;
    Part<C, kPositions> predictor, vector[3];
};

constexpr int kCells = kBelow * kRight;

// Where the first cell and hidden unit of a part are.
struct Corner { unsigned unit, position, frame, sample; };

// Adds the products of a part to the dot products of a thread's cells.
template <typename Form, bool DROPS, typename C, int DOTS>
__device__ void add_products(const Parts<C, DOTS>& parts, const Tile& tile, const Dropout& dropout,
                             Corner corner, C (&dots)[kCells][DOTS]) {
    const int x = threadIdx.x % kAcross, y = threadIdx.x / kAcross;
#pragma unroll 1
    for (int j = 0; j < parts.predictor.kWidth; j += kPack<C>) {
        Pack<C, kPack<C>> q[kRight], v[kRight][3];
        for (int b = 0; b < kRight; ++b) {
            q[b] = parts.predictor.at(x + b * kAcross, j);
            for (int k = 0; k < 3; ++k) v[b][k] = parts.vector[k].at(x + b * kAcross, j);
        }
        for (int a = 0; a < kBelow && a * kDown < tile.frames; ++a) {
            auto f = parts.encoder.at(y + a * kDown, j), g = f;
            if constexpr (DOTS == 4) g = parts.slope.at(y + a * kDown, j);
            for (int b = 0; b < kRight && b * kAcross < tile.positions; ++b) {
                Pack<C, kPack<C>> hidden;
                for (int n = 0; n < kPack<C>; ++n) hidden[n] = Hidden<Form>::of(f[n], q[b][n]);
                if constexpr (DROPS)
                    dropout.drop(hidden, corner.unit + j, corner.position + x + b * kAcross,
                                  corner.frame + y + a * kDown, corner.sample);
                for (int n = 0; n < kPack<C>; ++n) {
                    for (int k = 0; k < 3; ++k) dots[a * kRight + b][k] += v[b][k][n] * hidden[n];
                    if constexpr (DOTS == 4) dots[a * kRight + b][3] += g[n] * hidden[n];
                }
            }
        }
    }
}

// Calls finish(sample, cell, logits) for every cell: the logits of three vectors of its position,
// from number `first` on, and with DOTS = 4 the value of the tangent of its frame. The logit of a
// vector that does not exist is 0.
template <typename Activation, int DOTS, typename C, typename Finish>
__device__ void each_cell(const Work& work, const Rows<C>& from, int first, Finish finish) {
    __shared__ Parts<C, DOTS> parts;
    const int x = threadIdx.x % kAcross, y = threadIdx.x / kAcross;
    const Samples& samples = work.samples;
    const int64 size = from.size;
    const auto is_there = [&](int number) { return 0 <= number && number < from.width; };
    for (int64 i = first_item(kThreads); i < work.tiles; i += item_stride(kThreads)) {
        const int64 number = work.first + i;
        const int sample = samples.with(kTile, number + samples.at(kTile, 0));
        const bool logistic = Hidden<Activation>::kLogistic && work.fits[sample];
        const Tile tile(samples, sample, number, work.start, work.stop);
        C dots[kCells][DOTS] = {};
        for (int64 h = 0; h < size; h += parts.predictor.kWidth) {
            __syncthreads();  // the part before has been read
            const int64 frame = tile.frame * size + h, prefix = tile.prefix * size + h;
            parts.encoder.fill(from.encoder + frame, tile.frames, size, size - h, 1);
            if (DOTS == 4) parts.slope.fill(from.slopes + frame, tile.frames, size, size - h, 0);
            parts.predictor.fill(from.predictor + prefix, tile.positions, size, size - h, 1);
            for (int k = 0; k < 3; ++k) {
                const C* const rows = from.vectors + (from.width * tile.prefix + first + k) * size;
                parts.vector[k].fill(rows + h, is_there(first + k) ? tile.positions : 0,
                                     from.width * size, size - h, 0);
            }
            __syncthreads();
            if (logistic) {
                add_products<Quotient, false>(parts, tile, from.dropout, {}, dots);
            } else if (from.dropout.threshold) {
                const Corner corner{
                    static_cast<unsigned>(h),
                    static_cast<unsigned>(tile.prefix - samples.before(kPosition, sample)),
                    static_cast<unsigned>(tile.frame - samples.before(kFrame, sample)),
                    static_cast<unsigned>(samples.at(kNumber, sample))};
                add_products<Activation, true>(parts, tile, from.dropout, corner, dots);
            } else {
                add_products<Activation, false>(parts, tile, from.dropout, {}, dots);
            }
        }
#pragma unroll 1
        for (int n = 0; n < kCells; ++n) {
            const int t = y + n / kRight * kDown, u = x + n % kRight * kAcross;
            if (t < tile.frames && u < tile.positions) {
                const double* plus = from.vector_constants + from.width * (tile.prefix + u) + first;
                // Dropout multiplies hidden values by its scale, which is 1 without it.
                const C scale = from.dropout.scale;
                double logits[DOTS];
                for (int k = 0; k < 3; ++k)
                    logits[k] = scale * dots[0][k] + (is_there(first + k) ? plus[k] : 0);
                if constexpr (DOTS == 4)
                    logits[3] = scale * dots[0][3] + from.constants[tile.frame + t];
                finish(sample, tile.cell + t * samples.of(kPosition, sample) + u, logits);
            }
            for (int other = 1; other < kCells; ++other)  // no index varies: dots stay in registers
                for (int k = 0; k < DOTS; ++k) dots[other - 1][k] = dots[other][k];
        }
    }
}

// Logits of up to three scores, from vector `vector` on. `out` has a row of `cells` for each score,
// and begins with the cell of packed index `base`.
template <typename Activation, typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 2 : 3)
exact_logits(const int64* table, int64 count, int64 first, int64 tiles, int64 start, int64 stop,
             const bool* fits, int64 size, const C* encoder, const C* predictor, const C* vectors,
             const double* vector_constants, int width, int64 threshold, int64 seed, double scale,
             int vector, int logits, int label,
             int64 base, int64 cells, double* out) {
    out -= base;
    const Rows<C> from{size,      encoder, nullptr,          nullptr,
                       predictor, vectors, vector_constants, width, {static_cast<unsigned>(threshold), seed, scale}};
    each_cell<Activation, 3>({{table, count}, first, tiles, start, stop, fits}, from, vector,
                             [&](int, int64 cell, const double* found) {
                                 for (int k = 0; k < 3; ++k)
                                     if (k < logits)
                                         out[score_of(vector + k, label) * cells + cell] =
                                             found[k];
                             });
}

template <typename Activation, typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 2 : 3)
bounds(const int64* of_samples, int64 count, int64 first, int64 tiles, int64 start, int64 stop,
       const bool* fits, const double* slack, int64 size, const C* encoder, const C* slopes,
       const double* constants, const C* predictor, const C* vectors,
       const double* vector_constants, int width, int64 threshold, int64 seed, double scale,
       const int64* __restrict__ words, int heads, int scores, int ranges, int label, int64 base, int64 cells, double* out) {
    constexpr int kHeads = 3;  // at most: each of three kinds of scores is under one of them
    const RowTable table{words, heads, scores, ranges};
    out -= base;
    const Rows<C> from{size,      encoder, slopes,           constants,
                       predictor, vectors, vector_constants, width, {static_cast<unsigned>(threshold), seed, scale}};
    const int own = score_of(width - 3, label);
    const auto finish = [&](int sample, int64 cell, const double* logits) {
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
            bound += max(table.charges(k), 1) * slack[sample];
            out[k * cells + cell] = (bound < 0 ? bound : 0) - table.shift(k);  // NaN gives 0
        }
    };
    each_cell<Activation, 4>({{of_samples, count}, first, tiles, start, stop, fits}, from, width - 3,
                             finish);
}
