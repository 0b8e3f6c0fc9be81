// Log-sum-exp of each row of logits + bias, and the log-probs of its blank and its label, with the
// largest exponent so far taken out of the sum as the row goes by, so that it is read once (Milakov
// and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867).
//
// Grid: a warp or a block a row. Moves V sizeof(T) + 32 bytes a row; the bias stays in the cache.

#include "common.cuh"

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
    Exponentials<Compute<T>> part;

    template <int n> __device__ Pack<Compute<T>, n> at(int64 j) const {
        auto x = load<n>(logits + j);
        if (bias) x += load<n>(bias + j);
        return x;
    }
    template <int n> __device__ void operator()(int64 j, Count<n>) { part.include(at<n>(j)); }
};

template <typename T, int THREADS>
__global__ void __launch_bounds__(256, 4)
row_log_probs(const T* __restrict__ logits, const Compute<T>* __restrict__ bias, int64 blank,
              const int64* __restrict__ labels, int64 rows, int64 width, double* __restrict__ lse,
              double* __restrict__ of_blank, double* __restrict__ of_label) {
    constexpr int N = kPack<T>;
    int thread = threadIdx.x % THREADS;
    for (int64 i = first_item(THREADS); i < rows; i += item_stride(THREADS)) {
        LogitRow<T> row = {logits + i * width, bias, {ComputeOf<T>::lowest, 0}};
        Compute<T> at_blank = 0, at_label = 0;
        if (thread == 0) {
            at_blank = row.template at<1>(blank)[0];
            at_label = row.template at<1>(labels[i])[0];
        }
        sweep<N>(width, head<N>(width, row.logits, bias), thread, THREADS, row);
        auto whole = total<THREADS>(row.part);
        if (thread == 0) {
            double log_sum = log(static_cast<double>(whole.sum)) + whole.top;
            lse[i] = log_sum;
            of_blank[i] = at_blank - log_sum;
            of_label[i] = at_label - log_sum;
        }
    }
}
