// Gradient of the costs with respect to rows of log-probs: the occupancies of blank and label at
// their places, negative, bounded, weighted; 0 elsewhere.
//
// Grid: `warps` warps a row. Moves V sizeof(T) + 32 bytes a row.

#include "grads.cuh"

template <typename C, typename T> struct LogProbGradRow {
    RowGrad<C> grad;
    T* out;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        Pack<C, n> x = {};
        grad.finish(j, x);
        store<n>(out + j, x);
    }
};

template <typename C, typename T>
__global__ void __launch_bounds__(256, 4)
log_probs_grad(const C* __restrict__ blank_occupancy, const C* __restrict__ label_occupancy,
               int64 blank, const int64* __restrict__ labels, double bound,
               const C* __restrict__ weights, int64 rows, int64 width, int64 warps,
               T* __restrict__ out) {
    constexpr int N = kPack<T>;
    for (int64 item = first_item(32); item < rows * warps; item += item_stride(32)) {
        Share share(item, warps);
        int64 i = share.row;
        LogProbGradRow<C, T> row = {
            {i, blank_occupancy, label_occupancy, blank, labels, bound, weights}, out + i * width};
        sweep<N>(width, head<N>(width, row.out), share.thread, share.threads, row);
    }
}
