// Overwrites each row of logits by the softmax of logits + bias over the labels, with 0 in the
// columns of no label, which are `count` ranges in `others`; and writes the log-sum-exp. The
// exponentials are added up in float64.
//
// Grid: a warp or a block a row. Reads a row three times, twice from a cache if that is large
// enough, and writes it once: moves 2 V sizeof(C) + 8 bytes a row. A sample has T + S rows.

#include "common.cuh"
#include "log_space.cuh"

template <typename C> struct Largest {
    C value;
    __device__ void add(Largest other) { value = fmax(value, other.value); }
    __device__ Largest across(int distance) const {
        return {__shfl_xor_sync(~0u, value, distance)};
    }
};

// The total of THREADS threads, for each of them.
template <int THREADS, typename Part> __device__ Part total_for_all(Part part) {
    part = total<THREADS>(part);
    if (THREADS > 32) {
        __shared__ Part whole;
        if (threadIdx.x == 0) whole = part;
        __syncthreads();
        part = whole;
    }
    return part;
}

template <typename C, int THREADS>
__global__ void __launch_bounds__(256, 3)
label_softmax(C* logits, const C* bias, const int64* others, int64 count, int64 rows, int64 width,
              double* lse) {
    for (int64 i = first_item(THREADS); i < rows; i += item_stride(THREADS)) {
        C* const row = logits + i * width;
        const int64 first = threadIdx.x % THREADS;
        // The columns that are this thread's, as many steps for each, so that threads stay together;
        // and the logits of those of labels, which are between the others.
        const auto each = [&](int64 start, int64 stop, auto body) {
#pragma unroll 4
            for (int64 step = start / THREADS; step * THREADS < stop; ++step) {
                const int64 j = step * THREADS + first;
                if (start <= j && j < stop) body(j);
            }
        };
        const auto each_label = [&](auto body) {
            for (int64 r = 0; r <= count; ++r)
                each(r ? others[2 * r - 1] : 0, r < count ? others[2 * r] : width, [&](int64 j) {
                    body(j, bias ? row[j] + bias[j] : row[j]);
                });
        };
        Largest<C> largest{static_cast<C>(-infinity())};
        each_label([&](int64, C x) { largest.add({x}); });
        const C top = total_for_all<THREADS>(largest).value;
        Sum<double> sum{0};
        each_label([&](int64, C x) { sum.value += exp(x - top); });
        const double whole = total_for_all<THREADS>(sum).value;
        const C scale = 1 / whole;
        each_label([&](int64 j, C x) { row[j] = exp(x - top) * scale; });
        for (int64 r = 0; r < count; ++r)
            each(others[2 * r], others[2 * r + 1], [&](int64 j) { row[j] = 0; });
        if (first == 0) lse[i] = log(whole) + top;
    }
}
