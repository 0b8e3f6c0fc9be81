// Gradient of the costs with respect to rows of logits: of each head its softmax times the occupancy
// that is charged it, less the occupancies of scores at their columns (Graves, arXiv 1211.3711,
// through the softmax); bounded, then weighted. Softmax values below exp(least) are 0 exactly.
//
// Grid: a warp 32 N columns of 32 rows. Each lane prepares a row, then has N columns of all rows, and
// adds them up. Moves V (sizeof(C) + sizeof(T)) + 32 + sizeof(C) K bytes a row, those of the logits
// only where columns are under a head, and, with sums, V sizeof(C) / 16.

#include "coordinates.cuh"
#include "row.cuh"

// What columns under one head need of a row.
template <typename C> struct GradRow {
    C shift, factor, of_label, weight;
    int64 label, number;  // the column of the next label, and the number of the row in the logits
};

// 32 of them in shared memory, in pairs that are stored side by side.
template <typename C> struct PreparedRows {
    Pack<C, 2> softmaxes[32], factors[32];
    Pack<int64, 2> numbers[32];

    __device__ void set(int i, const GradRow<C>& row) {
        softmaxes[i] = {row.shift, row.factor};
        factors[i] = {row.of_label, row.weight};
        numbers[i] = {row.label, row.number};
    }
    __device__ GradRow<C> get(int i) {
        auto softmax = softmaxes[i], rest = factors[i];
        auto number = numbers[i];
        return {softmax[0], softmax[1], rest[0], rest[1], number[0], number[1]};
    }
};

// The rows; strides are those from head to head and from score to score. Row i of the logits is the
// one of number numbers[i], or i if there are no numbers.
template <typename C> struct GradRows {
    const int64* numbers;
    const double* lse;
    int64 lse_stride;
    const C* occupancies;
    int64 stride;
    const double* weights;

    __device__ GradRow<C> prepared(const RowTable& table, int g, int64 i, Coordinates at) const {
        GradRow<C> row = {0, 0, 0, C(weights[at.sample]), at.label, numbers ? numbers[i] : i};
        for (int k = 0; k < table.scores; ++k) {
            const C occupancy = occupancies[k * stride + i];
            if (g >= 0 && table.charged(k, g)) row.factor += occupancy;
            if (table.column(k, -1) < 0) row.of_label = occupancy;
        }
        // A head without mass may have a log-sum-exp that is not finite.
        if (row.factor == 0) return row;
        // exp(x - lse) with lse split into what C holds and the rest: the difference is exact where
        // the softmax is large, whatever the offset of the row.
        const double sum = lse[g * lse_stride + i];
        row.shift = sum;
        row.factor *= exp(C(row.shift - sum));
        return row;
    }
};

// A lane's N columns, from column j on; those in the range are x[from], ..., x[to - 1].
template <typename C, int N> struct GradColumns {
    int64 j;
    int from, to;
    Pack<C, N> bias, sum;

    __device__ bool has(int n) const { return from <= n && n < to; }
    __device__ bool all() const { return from == 0 && to == N; }

    __device__ Pack<C, N> read(const C* logits, int64 width, const GradRow<C>& row) const {
        const C* const place = logits + row.number * width + j;
        Pack<C, N> x = {};
        if (row.factor == 0) return x;
        if (all()) return load<N>(place);
        for (int n = 0; n < N; ++n)
            if (has(n)) x[n] = place[n];
        return x;
    }
    __device__ void softmax(Pack<C, N>& x, const GradRow<C>& row, C least) const {
        if (row.factor == 0) return;
        x += bias;
        for (int n = 0; n < N; ++n) {
            x[n] -= row.shift;
            x[n] = x[n] <= least ? C(0) : exp(x[n]) * row.factor;
        }
    }
    __device__ void subtract(Pack<C, N>& x, int64 column, C occupancy) const {
        for (int n = 0; n < N; ++n)
            if (column == j + n) x[n] -= occupancy;
    }
    template <typename T> __device__ void write(Pack<C, N> x, C bound, C weight, T* place) {
        for (int n = 0; n < N; ++n) {
            x[n] = x[n] < -bound ? -bound : x[n] > bound ? bound : x[n];
            x[n] *= weight;
            if (has(n)) sum[n] += x[n];
        }
        if (all()) return store<N>(place, x);
        for (int n = 0; n < N; ++n)
            if (has(n)) place[n] = static_cast<T>(x[n]);
    }
};

// `out` may be `logits` if there are no numbers. Where N is more than 1, all rows are aligned to
// packs of N. The sums of 32 rows are added to a row of `sums`.
template <typename C, typename T, int N>
__global__ void __launch_bounds__(256, 4)
logits_grad(const C* logits, const int64* __restrict__ numbers, const C* __restrict__ bias,
            const int64* words, int heads, int scores, int ranges, const double* __restrict__ lse,
            int64 lse_stride, double least, const C* __restrict__ occupancies, int64 stride,
            double bound, const int64* __restrict__ packed, const int64* of_batch, int64 samples,
            const int64* labels, const double* __restrict__ weights, int64 rows, int64 width,
            C* __restrict__ sums, T* out) {
    __shared__ PreparedRows<C> of_warps[8];
    const RowTable table{words, heads, scores, ranges};
    const Batch batch(of_batch, samples, labels);
    const GradRows<C> source{numbers, lse, lse_stride, occupancies, stride, weights};
    const int lane = threadIdx.x % 32;
    PreparedRows<C>& prepared = of_warps[threadIdx.x / 32];
    const int64 strips = (width + 32 * N - 1) / (32 * N), chunks = (rows + 31) / 32;
    for (int64 item = first_item(32); item < strips * chunks; item += item_stride(32)) {
        const int64 chunk = item / strips, strip = item % strips * 32 * N;
        const int64 first = chunk * 32, j = strip + lane * N;
        const int count = rows - first < 32 ? rows - first : 32;
        GradColumns<C, N> columns = {j};
        if (bias && j < width) columns.bias = load<N>(bias + j);
        Coordinates cell = {};
        if (lane < count) cell = batch.of(packed[first + lane]);
        unsigned long long at = 0;  // the scores whose columns the lane has, a bit each
        for (int k = 0; k < scores; ++k)
            if (static_cast<unsigned long long>(table.column(k, -1) - j) < N) at |= 1ull << k;
        for (int r = 0; r < ranges; ++r) {
            const int64 start = table.start(r), stop = table.stop(r);
            if (stop <= strip || start >= strip + 32 * N) continue;
            columns.from = start > j ? min(start - j, int64(N)) : 0;
            columns.to = stop > j ? min(stop - j, int64(N)) : 0;
            __syncwarp();  // the rows of the range before have been read
            if (lane < count)
                prepared.set(lane, source.prepared(table, table.head(r), first + lane, cell));
            __syncwarp();
            if (columns.from >= columns.to) continue;
            Pack<C, N> next = columns.read(logits, width, prepared.get(0));
            for (int i = 0; i < count; ++i) {
                const GradRow<C> row = prepared.get(i);
                Pack<C, N> x = next;
                if (i + 1 < count) next = columns.read(logits, width, prepared.get(i + 1));
                columns.softmax(x, row, C(least));
                columns.subtract(x, row.label, row.of_label);
                for (auto left = at; left; left &= left - 1) {
                    const int k = __ffsll(left) - 1;
                    columns.subtract(x, table.column(k, -1), occupancies[k * stride + first + i]);
                }
                columns.write(x, C(bound), row.weight, out + (first + i) * width + j);
            }
        }
        if (sums && j < width) {
            const auto place = sums + chunk * width + j;
            columns.sum += load<N>(place);
            store<N>(place, columns.sum);
        }
    }
}
