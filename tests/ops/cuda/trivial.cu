// Kernels of the tests of launching and emulation: one of each geometry.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "items.cuh"

// A thread an item: out = factor * x.
template <typename T>
__global__ void __launch_bounds__(256) scaled(const T* x, T* out, long long n, double factor) {
    for (long long i = first_item(1); i < n; i += item_stride(1))
        out[i] = static_cast<T>(static_cast<float>(x[i]) * static_cast<float>(factor));
}

// A warp an item: the sums of rows.
template <typename T>
__global__ void __launch_bounds__(64)
row_sums(const T* x, float* out, long long rows, long long width) {
    for (long long row = first_item(32); row < rows; row += item_stride(32)) {
        float sum = 0;
        for (long long j = threadIdx.x % 32; j < width; j += 32)
            sum += static_cast<float>(x[row * width + j]);
        for (int distance = 16; distance; distance /= 2)
            sum += __shfl_xor_sync(~0u, sum, distance);
        if (threadIdx.x % 32 == 0) out[row] = sum;
    }
}

// A block an item: rows reversed, through dynamic shared memory.
__global__ void __launch_bounds__(32)
reversed(const int* x, int* out, long long rows, int width, bool twice) {
    extern __shared__ int row[];
    for (long long i = blockIdx.x; i < rows; i += gridDim.x) {
        for (int j = threadIdx.x; j < width; j += blockDim.x) row[j] = x[i * width + j];
        __syncthreads();
        for (int j = threadIdx.x; j < width; j += blockDim.x)
            out[i * width + j] = row[twice ? j : width - 1 - j];
        __syncthreads();
    }
}
