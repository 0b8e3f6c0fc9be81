// Where a mask is true, in order: a kernel counts the marks of each chunk of the mask, and another
// one writes their places. And where numbers are among others.

#include "bisection.cuh"
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
__global__ void __launch_bounds__(kThreads, 4)
count_marks(int64 chunks, const bool* __restrict__ mask, int64 entries, int64* counts) {
    for (int64 i = first_item(kThreads); i < chunks; i += item_stride(kThreads)) {
        int64 count = 0;
        for (int k = threadIdx.x; k < kChunk && i * kChunk + k < entries; k += kThreads)
            count += mask[i * kChunk + k];
        count = block_sum(count);
        if (threadIdx.x == 0) counts[i] = count;
    }
}

// Goes over a chunk of a mask: ``take(place, mark, rank)`` for each entry of it, where `rank` is the
// number of marks in the whole mask before the entry.
template <typename Take>
__device__ void with_ranks(int64 chunk, const bool* __restrict__ mask, int64 entries,
                           const int64* __restrict__ counts, const Take& take) {
    __shared__ int of_warps[kThreads / 32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64 before = 0;
    for (int64 k = threadIdx.x; k < chunk; k += kThreads) before += counts[k];
    before = block_sum(before);
    for (int k = 0; k < kChunk; k += kThreads) {
        const int64 place = chunk * kChunk + k + threadIdx.x;
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
        if (place < entries) take(place, mark, rank);
    }
}

// Writes `first` plus the place of each mark.
//
// Grid: a block a chunk. Moves a byte an entry and 8 a mark, and the counts of all chunks before.
__global__ void __launch_bounds__(kThreads, 4)
write_indices(int64 chunks, const bool* __restrict__ mask, int64 entries,
              const int64* __restrict__ counts, int64 first, int64* __restrict__ indices) {
    for (int64 i = first_item(kThreads); i < chunks; i += item_stride(kThreads))
        with_ranks(i, mask, entries, counts, [&](int64 place, bool mark, int64 rank) {
            if (mark) indices[rank] = first + place;
        });
}

// Writes the values and places of marked entries in front of those of others; `count` are marked.
//
// Grid: a block a chunk. Moves 33 bytes an entry, and the counts of all chunks before.
__global__ void __launch_bounds__(kThreads, 4)
write_marked_first(int64 chunks, const bool* __restrict__ mask, int64 entries,
                   const int64* __restrict__ counts, int64 count,
                   const int64* __restrict__ values, const int64* __restrict__ places,
                   int64* __restrict__ moved_values, int64* __restrict__ moved_places) {
    for (int64 i = first_item(kThreads); i < chunks; i += item_stride(kThreads))
        with_ranks(i, mask, entries, counts, [&](int64 place, bool mark, int64 rank) {
            const int64 to = mark ? rank : count + place - rank;
            moved_values[to] = values[place];
            moved_places[to] = places[place];
        });
}

// Where values belong among ascending numbers: the place of the first that is not below them; and,
// if `found` is not null, whether it is equal to them.
//
// Grid: a thread a value. Moves 17 bytes a value; the numbers stay in the caches.
__global__ void __launch_bounds__(256, 4)
places(int64 count, const int64* __restrict__ values, const int64* __restrict__ numbers,
       int64 size, int64* __restrict__ results, bool* __restrict__ found) {
    for (int64 i = first_item(1); i < count; i += item_stride(1)) {
        const int64 place = lower_bound(numbers, 0, size, values[i]);
        results[i] = place;
        if (found) found[i] = place < size && numbers[place] == values[i];
    }
}
