// Gradient of the costs with respect to rows of logits: softmax times occupancy, less the occupancy
// of blank and that of the label at their places (Graves, arXiv 1211.3711, through the softmax);
// bounded, then weighted. Softmax values below exp(least) are 0 exactly.
//
// Grid: `warps` warps a row. Moves V (sizeof(C) + sizeof(T)) + 40 bytes a row.

#include "grads.cuh"

template <typename C, typename T> struct LogitGradRow {
    const C *logits, *bias;
    C shift, factor, least;
    RowGrad<C> grad;
    T* out;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        auto x = load<n>(logits + j);
        if (bias) x += load<n>(bias + j);
        for (int k = 0; k < n; ++k) {
            x[k] -= shift;
            x[k] = x[k] <= least ? C(0) : exp(x[k]) * factor;
        }
        grad.finish(j, x);
        store<n>(out + j, x);
    }
};

// `out` may be `logits`.
template <typename C, typename T>
__global__ void __launch_bounds__(256, 4)
logits_grad(const C* logits, const C* __restrict__ bias, const double* __restrict__ lse,
            double least, const C* __restrict__ blank_occupancy,
            const C* __restrict__ label_occupancy, int64 blank, const int64* __restrict__ labels,
            double bound, const C* __restrict__ weights, int64 rows, int64 width, int64 warps,
            T* out) {
    constexpr int N = kPack<C>;
    for (int64 item = first_item(32); item < rows * warps; item += item_stride(32)) {
        Share share(item, warps);
        int64 i = share.row;
        RowGrad<C> grad(i, blank_occupancy, label_occupancy, blank, labels, bound, weights);
        // exp(x - lse) with lse split into what C holds and the rest: the difference is exact where
        // the softmax is large, whatever the offset of the row.
        C shift = lse[i], factor = exp(C(shift - lse[i])) * (grad.of_blank + grad.of_label);
        LogitGradRow<C, T> row = {logits + i * width, bias, shift,          factor,
                                  C(least),           grad, out + i * width};
        int64 first = head<N>(width, row.logits, bias, row.out);
        sweep<N>(width, first, share.thread, share.threads, row);
    }
}
