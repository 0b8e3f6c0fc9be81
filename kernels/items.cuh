#pragma once
// The items of a launch (see cupy_rnnt/ops/cuda/launch.py): `threads` neighbours share one, and
// each strides over the grid:
//
//     for (long long row = first_item(32); row < rows; row += item_stride(32)) ...

__device__ inline long long first_item(int threads) {
    return (blockIdx.x * (long long)blockDim.x + threadIdx.x) / threads;
}

__device__ inline long long item_stride(int threads) {
    return gridDim.x * (long long)blockDim.x / threads;
}
