// Log-sum-exps of each row of logits + bias, one for each head, and its scores. A row is read once:
// the largest exponent so far is taken out of the running sum (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", arXiv 1805.02867).
//
// Grid: a warp or a block a row. Moves V sizeof(T) + 8 (1 + G + K) bytes a row; the bias stays in the
// cache.

#include "coordinates.cuh"
#include "lattice.cuh"
#include "row.cuh"

// exp(top) * sum. The top is finite from the start, which keeps rows of -inf free of NaN; +inf and
// NaN give NaN.
template <typename C> struct Exponentials {
    C top, sum;

    template <int N> __device__ void include(Pack<C, N> x) {
        C largest = x[0];
        for (int k = 1; k < N; ++k) largest = fmax(largest, x[k]);
        if (largest > top) {
            sum *= exp(top - largest);
            top = largest;
        }
        for (int k = 0; k < N; ++k) sum += exp(x[k] - top);
    }
    __device__ void add(Exponentials other) {
        C largest = fmax(top, other.top);
        sum = sum * exp(top - largest) + other.sum * exp(other.top - largest);
        top = largest;
    }
    __device__ Exponentials across(int distance) const {
        return {__shfl_xor_sync(~0u, top, distance), __shfl_xor_sync(~0u, sum, distance)};
    }
};

template <typename T> struct LogitRow {
    const T* logits;
    const Compute<T>* bias;
    int64 first;  // column of a range
    Exponentials<Compute<T>> part;

    template <int n> __device__ Pack<Compute<T>, n> at(int64 j) const {
        auto x = load<n>(logits + j);
        if (bias) x += load<n>(bias + j);
        return x;
    }
    template <int n> __device__ void operator()(int64 j, Count<n>) {
        part.include(at<n>(first + j));
    }
};

// Log-sum-exps of rows go to `lse`, (G, `stride`), and scores to `results`, (K, `stride`). Without
// `results`, both go to lattices, of samples from number `start` on: log-sum-exps by packed indices,
// which count from `first` on, and scores as in lattice.cuh. Only the last part of the work asks
// where a cell is: registers that held it during the sweep over a row would cost a quarter of the
// warps.
template <typename T, int THREADS>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 3 : 4)
row_scores(const T* __restrict__ logits, const Compute<T>* __restrict__ bias, const int64* words,
           int heads, int scores, int ranges, const int64* __restrict__ packed,
           const int64* of_batch, int64 samples, const int64* labels, int64 rows, int64 width,
           double* lse, int64 stride, double* results, int64 first, int64 start, int label,
           int factors, double delay_penalty, double* of_lattices, bool* exact, int* flags) {
    constexpr int N = kPack<T>;
    const RowTable table{words, heads, scores, ranges};
    const Batch batch(of_batch, samples, labels);
    const LatticeScores to{scores, label, factors, delay_penalty, stride, of_lattices, exact, flags};
    const int thread = threadIdx.x % THREADS;
    for (int64 i = first_item(THREADS); i < rows; i += item_stride(THREADS)) {
        double* const sums = lse + (results ? i : packed[i] - first);
        int r = 0;
        for (int g = 0; g < table.heads; ++g) {
            Exponentials<Compute<T>> part = {ComputeOf<T>::lowest, 0};
            if (table.zero(g) && thread == 0) part.include(Pack<Compute<T>, 1>{});
            for (; r < table.ranges && table.head(r) == g; ++r) {
                const int64 start = table.start(r), count = table.stop(r) - start;
                LogitRow<T> row = {logits + i * width, bias, start, part};
                const int64 aligned =
                    head<N>(count, row.logits + start, bias ? bias + start : nullptr);
                sweep<N>(count, aligned, thread, THREADS, row);
                part = row.part;
            }
            const auto whole = total<THREADS>(part);
            if (thread == 0)
                sums[g * stride] = log(static_cast<double>(whole.sum)) + whole.top;
        }
        if (thread) continue;
        const Coordinates at = batch.of(packed[i]);
        const auto score_of = [&](int k) {
            const LogitRow<T> row = {logits + i * width, bias, 0, {}};
            double score = row.template at<1>(table.column(k, at.label))[0];
            for (int g = 0; g < table.heads; ++g)
                if (table.charged(k, g)) score -= sums[g * stride];
            return score - table.shift(k);
        };
        if (results)
            for (int k = 0; k < table.scores; ++k) results[k * stride + i] = score_of(k);
        else
            to.write(at.sample - start, lattice_of(batch.samples, at.sample, first), at.frame,
                     at.position, score_of);
    }
}
