// Sums of the columns of a matrix, in two launches: chunks of rows first, then their sums; each in
// the order of the rows, whatever the grid.
//
// Grid: a warp 32 columns of a chunk. Moves V sizeof(T) bytes a row and V sizeof(compute) a chunk,
// twice.

#include "common.cuh"

// out[i] = the sum of rows i chunk, ..., (i + 1) chunk - 1, plus out[i] if `add` is set.
template <typename T>
__global__ void __launch_bounds__(256, 4)
column_sum(const T* __restrict__ matrix, int64 rows, int64 width, int64 chunk, bool add,
           Compute<T>* __restrict__ out) {
    int64 strips = (width + 31) / 32, chunks = (rows + chunk - 1) / chunk;
    for (int64 item = first_item(32); item < chunks * strips; item += item_stride(32)) {
        int64 i = item / strips, j = item % strips * 32 + threadIdx.x % 32;
        if (j >= width) continue;
        int64 end = min((i + 1) * chunk, rows);
        Compute<T> sum = 0;
#pragma unroll 8
        for (int64 row = i * chunk; row < end; ++row)
            sum += static_cast<Compute<T>>(matrix[row * width + j]);
        out[i * width + j] = add ? out[i * width + j] + sum : sum;
    }
}
