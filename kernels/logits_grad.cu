// Gradient of the costs with respect to rows of logits: of each head its softmax times the occupancy
// that is charged it, less the occupancies of scores at their columns (Graves, arXiv 1211.3711,
// through the softmax); bounded, then weighted. Softmax values below exp(least) are 0 exactly.
//
// Grid: `warps` warps a row. Moves V (sizeof(C) + sizeof(T)) + 8 (G + K) bytes a row, and those of
// the logits only where columns are under a head.

#include "row.cuh"

template <typename C, typename T> struct LogitGradRow {
    const C *logits, *bias;
    C shift, factor, least;
    RowGrad<C> grad;
    T* out;
    int64 first;  // column of the range
    bool under_head;

    template <int n> __device__ void operator()(int64 behind, Count<n>) const {
        const int64 j = first + behind;
        Pack<C, n> x = {};
        if (under_head) {
            x = load<n>(logits + j);
            if (bias) x += load<n>(bias + j);
            for (int k = 0; k < n; ++k) {
                x[k] -= shift;
                x[k] = x[k] <= least ? C(0) : exp(x[k]) * factor;
            }
        }
        grad.finish(j, x);
        store<n>(out + j, x);
    }
};

// `out` may be `logits`.
template <typename C, typename T>
__global__ void __launch_bounds__(256, 3)
logits_grad(const C* logits, const C* __restrict__ bias, const int64* words, int heads,
            int scores, int ranges, const double* __restrict__ lse, double least, const C* __restrict__ occupancies,
            const int64* __restrict__ labels, double bound, const C* __restrict__ weights,
            int64 rows, int64 width, int64 warps, T* out) {
    constexpr int N = kPack<C>;
    const RowTable table{words, heads, scores, ranges};
    for (int64 item = first_item(32); item < rows * warps; item += item_stride(32)) {
        Share share(item, warps);
        const int64 i = share.row;
        const RowGrad<C> grad{table, occupancies + i, rows, labels[i], C(bound),
                              weights ? weights[i] : C(1)};
        for (int r = 0; r < table.ranges; ++r) {
            const int64 start = table.start(r), count = table.stop(r) - start;
            const int g = table.head(r);
            // exp(x - lse) with lse split into what C holds and the rest: the difference is exact
            // where the softmax is large, whatever the offset of the row.
            C shift = 0, factor = 0;
            if (g >= 0) factor = grad.mass(g);
            // A head without mass may have a log-sum-exp that is not finite.
            const bool counts = factor != 0;
            if (counts) {
                const double sum = lse[g * rows + i];
                shift = sum;
                factor *= exp(C(shift - sum));
            }
            const LogitGradRow<C, T> row = {logits + i * width, bias, shift, factor, C(least), grad,
                                            out + i * width,    start, counts};
            const int64 aligned = head<N>(count, row.logits + start, bias ? bias + start : nullptr,
                                          row.out + start);
            sweep<N>(count, aligned, share.thread, share.threads, row);
        }
    }
}
