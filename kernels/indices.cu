// Where a mask is true, in order: a kernel counts the marks of each chunk of the mask, and another
// one writes their places.

#include "items.cuh"

using int64 = long long;

constexpr int kChunk = 4096, kThreads = 256;

// The sum of a value over the block, for every thread.
__device__ int64 block_sum(int64 value) {
    __shared__ int64 parts[kThreads / 32];
    for (int distance = 16; distance; distance /= 2)
        value += __shfl_xor_sync(~0u, value, distance);
    __syncthreads();  // the sum before has been read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    int64 sum = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += parts[warp];
    return sum;
}

// Grid: a block a chunk. Moves a byte an entry.
__global__ void __launch_bounds__(kThreads)
count_marks(int64 chunks, const bool* __restrict__ mask, int64 entries, int64* counts) {
    for (int64 i = first_item(kThreads); i < chunks; i += item_stride(kThreads)) {
        int64 count = 0;
        for (int k = threadIdx.x; k < kChunk && i * kChunk + k < entries; k += kThreads)
            count += mask[i * kChunk + k];
        count = block_sum(count);
        if (threadIdx.x == 0) counts[i] = count;
    }
}

// Writes `first` plus the place of each mark.
//
// Grid: a block a chunk. Moves a byte an entry and 8 a mark, and the counts of all chunks before.
__global__ void __launch_bounds__(kThreads)
write_indices(int64 chunks, const bool* __restrict__ mask, int64 entries,
              const int64* __restrict__ counts, int64 first, int64* __restrict__ indices) {
    __shared__ int of_warps[kThreads / 32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int64 i = first_item(kThreads); i < chunks; i += item_stride(kThreads)) {
        int64 before = 0;
        for (int64 k = threadIdx.x; k < i; k += kThreads) before += counts[k];
        before = block_sum(before);
        for (int k = 0; k < kChunk; k += kThreads) {
            const int64 place = i * kChunk + k + threadIdx.x;
            const bool mark = place < entries && mask[place];
            const unsigned marks = __ballot_sync(~0u, mark);
            __syncthreads();  // the counts before have been read
            if (lane == 0) of_warps[warp] = __popc(marks);
            __syncthreads();
            int64 rank = before + __popc(marks & ((1u << lane) - 1));
            for (int other = 0; other < kThreads / 32; ++other) {
                if (other < warp) rank += of_warps[other];
                before += of_warps[other];
            }
            if (mark) indices[rank] = first + place;
        }
    }
}
