// out[target of row] += row, for the rows of a tile, given sorted by their targets. `add_rows` sums
// the runs of rows with one target in chunks of 32, `add_long_runs` those that go on in the next
// chunk. The order of the sums is that of the sorted rows, whatever the grid.
//
// Grid: a block a chunk. `add_rows` moves H sizeof(T) + 16 bytes a row and at most 2 H sizeof(T) a
// run, `add_long_runs` H sizeof(T) a chunk and 2 H sizeof(T) a run of those that leave their chunk.

#include "common.cuh"

constexpr int kChunk = 32;

template <typename T> struct Run {
    T* to;
    int stop;
    bool whole;
};

// Adds the runs of a chunk: of `count` rows, `sources` of the tile, each run at its first row.
template <typename T> struct ChunkSum {
    const T* tile;
    int64 width;
    int count;
    const int64* sources;
    const Run<T>* runs;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        for (int i = 0; i < count;) {
            Run<T> run = runs[i];
            Pack<T, n> sum = {};
#pragma unroll 4
            for (; i < run.stop; ++i) sum += load<n>(tile + sources[i] * width + j);
            if (run.whole) sum += load<n>(run.to + j);
            store<n>(run.to + j, sum);
        }
    }
};

// Row order[i] of the tile has targets[i]. Sums of runs that are not whole go to `sums`, (rows,
// width), in the place i of their first row.
template <typename T>
__global__ void __launch_bounds__(128, 8)
add_rows(const T* __restrict__ tile, const int64* __restrict__ order,
         const int64* __restrict__ targets, int64 rows, int64 width, T* out, T* sums) {
    __shared__ int64 sources[kChunk];
    __shared__ Run<T> runs[kChunk];
    int64 first = width % kPack<T> ? width : head<kPack<T>>(width, tile, out, sums);
    for (int64 start = first_item(128) * kChunk; start < rows; start += item_stride(128) * kChunk) {
        int64 i = start + threadIdx.x;
        if (threadIdx.x < kChunk) {
            int64 target = i < rows ? targets[i] : -1;
            if (i < rows) sources[threadIdx.x] = order[i];
            unsigned run = __match_any_sync(~0u, target);
            if (i < rows && threadIdx.x + 1 == __ffs(run)) {
                int stop = 32 - __clz(run);
                bool whole = (i == 0 || targets[i - 1] != target) &&
                             (start + stop == rows || targets[start + stop] != target);
                runs[threadIdx.x] = {whole ? out + target * width : sums + i * width, stop, whole};
            }
        }
        __syncthreads();
        int count = min(rows - start, int64(kChunk));
        sweep<kPack<T>>(width, first, threadIdx.x, 128,
                        ChunkSum<T>{tile, width, count, sources, runs});
        __syncthreads();
    }
}

// Adds the sums of a run: over the chunk where it begins, and over each of some more.
template <typename T> struct LongRunSum {
    const T *begin, *next;
    int64 chunks, width;
    T* to;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        Pack<T, n> sum = load<n>(begin + j);
        const T* last = next + chunks * kChunk * width;
#pragma unroll 4
        for (const T* row = next; row < last; row += kChunk * width) sum += load<n>(row + j);
        sum += load<n>(to + j);
        store<n>(to + j, sum);
    }
};

template <typename T>
__global__ void __launch_bounds__(128, 8)
add_long_runs(const T* __restrict__ sums, const int64* __restrict__ targets, int64 rows,
              int64 width, T* __restrict__ out) {
    int64 first = width % kPack<T> ? width : head<kPack<T>>(width, sums, out);
    for (int64 start = first_item(128) * kChunk; start < rows; start += item_stride(128) * kChunk) {
        int64 stop = start + kChunk;
        if (stop >= rows || targets[stop] != targets[stop - 1]) continue;
        int64 target = targets[stop];
        int64 begin = stop - __syncthreads_count(threadIdx.x < kChunk &&
                                                 targets[stop - 1 - threadIdx.x] == target);
        if (begin > 0 && targets[begin - 1] == target) continue;  // it began before this chunk
        int64 chunks = 0;
        for (int more = 128; more == 128; chunks += more) {
            int64 i = stop + (chunks + threadIdx.x) * kChunk;
            more = __syncthreads_count(i < rows && targets[i] == target);
        }
        sweep<kPack<T>>(width, first, threadIdx.x, 128,
                        LongRunSum<T>{sums + begin * width, sums + stop * width, chunks, width,
                                      out + target * width});
    }
}
