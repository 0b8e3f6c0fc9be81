// For each sample, what is added to the bounds of its scores, and whether it takes the logistic
// form; for formulas see the contract of `slack` in cupy_rnnt/ops/__init__.py.
//
// Grid: a block a sample. Reads all row sums and twice all biases, from a cache but for the first
// sample, and 2 H magnitudes.

#include "largest.cuh"
#include "log_space.cuh"
#include "row.cuh"
#include "samples.cuh"


// The largest of(j) of j from 0 to `count` - 1, or 0.
template <typename C, typename Of> __device__ double largest(int64 count, Of of) {
    Largest<C> most;
    most.value = 0;
    for (int64 j = threadIdx.x; j < count; j += 256) most.add(of(j));
    return total_for_all<256>(most).value;
}

// `magnitudes` are (2, samples, width), and a rate of 0 stands for no logistic activation.
template <typename C>
__global__ void __launch_bounds__(256, 3)
slack(const int64* of_samples, int64 count, const int64* labels, const C* magnitudes, int64 width,
      const C* row_sums, int64 vocabulary, const C* bias, const int64* words, int heads, int scores,
      int ranges, double rate, double per_size, double per_bias, double fixed, double per_hidden,
      double least, double masked, double largest_exponent, double* slack, bool* fits) {
    const RowTable table{words, heads, scores, ranges};
    const Samples samples{of_samples, count};
    for (int64 i = first_item(256); i < count; i += item_stride(256)) {
        const auto side = [&](int k) {
            return largest<C>(width, [&](int64 j) { return magnitudes[(k * count + i) * width + j]; });
        };
        const double e = side(0), p = side(1);
        const double weight = largest<C>(vocabulary, [&](int64 j) { return row_sums[j]; });
        const double hidden = rate ? 1 : e + p, size = weight * hidden;
        double of_bias = 0;
        if (bias) {
            Largest<C> top;
            for (int64 j = threadIdx.x; j < vocabulary; j += 256)
                if (isfinite(bias[j])) top.add(bias[j]);
            const double from = total_for_all<256>(top).value - (2 * size + masked);
            const int64 first = samples.at(kLabel, i), positions = samples.of(kPosition, i);
            const auto magnitude = [&](int64 v) { return isfinite(bias[v]) ? fabs(bias[v]) : C(0); };
            const double with_share = largest<C>(
                vocabulary, [&](int64 v) { return bias[v] >= from ? magnitude(v) : C(0); });
            const double of_labels = largest<C>(positions - 1, [&](int64 u) {
                return magnitude(labels[first + u]);
            });
            const double of_scores = largest<C>(scores, [&](int64 k) {
                const int64 column = table.column(k, -1);
                return column < 0 ? C(0) : magnitude(column);
            });
            of_bias = max(max(with_share, of_labels), of_scores);
        }
        if (threadIdx.x == 0) {
            const double off = larger(per_hidden * hidden, least);
            slack[i] = per_size * size + per_bias * of_bias + fixed + 2 * weight * off;
            fits[i] = rate && fabs(rate) * larger(e, p) <= largest_exponent;
        }
    }
}
