// Gradients of weight and bias from the sums of all tiles, less the factor `scale`, which may be
// null. Those of the bias are the sums of `parts` rows, in an order that depends on nothing else.
//
// Grid: a block 8 rows of the weights, a warp each; then, unless `bias` is null, a block 32 entries
// of the bias, whose warps take turns with the parts. Moves (sizeof(C) + sizeof(T)) H bytes a row of
// the weights, and parts V sizeof(C).

#include "common.cuh"

// Strides, and the `step` from one part to the next, are in elements.
template <typename T>
__global__ void __launch_bounds__(256, 4)
write_output_grads(const Compute<T>* __restrict__ weight_sums,
                   const Compute<T>* __restrict__ bias_sums, const double* scale, int64 rows,
                   int64 width, int64 parts, int64 step, T* __restrict__ weight, int64 w0, int64 w1,
                   T* __restrict__ bias, int64 b0) {
    using C = Compute<T>;
    __shared__ C sums[8][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const C factor = scale ? static_cast<C>(*scale) : C(1);
    const int64 of_weight = (rows + 7) / 8, of_bias = bias ? (rows + 31) / 32 : 0;
    for (int64 item = first_item(256); item < of_weight + of_bias; item += item_stride(256)) {
        const int64 i = item * 8 + warp, j = (item - of_weight) * 32 + lane;
        if (item < of_weight) {
            if (i >= rows) continue;
            for (int64 k = lane; k < width; k += 32)
                weight[i * w0 + k * w1] = static_cast<T>(weight_sums[i * width + k] / factor);
            continue;
        }
        C sum = 0;
#pragma unroll 8
        for (int64 part = warp; part < parts; part += 8)
            if (j < rows) sum += bias_sums[part * step + j];
        sums[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && j < rows) {
            for (int k = 1; k < 8; ++k) sum += sums[k][lane];
            bias[j * b0] = static_cast<T>(sum / factor);
        }
        __syncthreads();
    }
}
