// Overwrites each row of logits by a softmax of logits + bias over the labels, q times a sum, rounded
// to type T, with 0 in the columns of no label, which are `count` ranges in `others`. Writes the
// constant q . bias + entropy(q) of each row, and the sums. Both are added up in float64.
//
// Elements of a half type take the first half of the memory of their row: element j lies in that of
// logit j / 2, which other threads must have read before.
//
// Grid: a warp or a block a row. Reads a row and the bias twice, the second time from a cache if
// that is large enough, and writes it once: moves V (sizeof(C) + sizeof(T)) + 16 bytes a row. A
// sample has T + S rows.

#include "largest.cuh"
#include "log_space.cuh"

template <typename T, int THREADS>
__global__ void __launch_bounds__(256, 4)
label_softmax(Compute<T>* logits, const Compute<T>* bias, const int64* others, int64 count,
              int64 rows, int64 width, double* constants, double* sums) {
    using C = Compute<T>;
    for (int64 i = first_item(THREADS); i < rows; i += item_stride(THREADS)) {
        const int64 first = threadIdx.x % THREADS;
        C* const row = logits + i * width;
        T* const out = reinterpret_cast<T*>(row);
        const auto of_label = [&](int64 j) {
            for (int64 r = 0; r < count; ++r)
                if (others[2 * r] <= j && j < others[2 * r + 1]) return false;
            return j < width;
        };
        const auto bias_of = [&](int64 j) { return bias ? bias[j] : C(0); };
        Largest<C> largest;
        for (int64 j = first; j < width; j += THREADS)
            if (of_label(j)) largest.add(row[j] + bias_of(j));
        const C top = total_for_all<THREADS>(largest).value;
        Sum<double> sum{0}, weighted{0};
        for (int64 begin = 0; begin < width; begin += THREADS) {
            const int64 j = begin + first;
            const bool has_share = of_label(j);
            const C b = has_share ? bias_of(j) : C(0);
            const T rounded = has_share ? exp(row[j] + b - top) : C(0);
            if (sizeof(T) < sizeof(C)) THREADS == 32 ? __syncwarp() : __syncthreads();
            if (j < width) out[j] = rounded;
            const C q = rounded;
            if (q == 0) continue;
            sum.value += q;
            weighted.value += static_cast<double>(q) * (b - log(q));
        }
        const double whole = total<THREADS>(sum).value, part = total<THREADS>(weighted).value;
        if (first == 0) {
            constants[i] = part / whole + log(whole);
            sums[i] = whole;
        }
    }
}
