#pragma once
// Shared by kernels over rows: the compute type, packs of neighbouring elements that one load or
// store moves, the sweep of some threads over a row, and the sum over these threads.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "items.cuh"

using int64 = long long;

// The type that elements of type T are computed in, and its least finite number.
template <typename T> struct ComputeOf {
    using type = float;
    static constexpr float lowest = -3.402823466e+38f;
};
template <> struct ComputeOf<double> {
    using type = double;
    static constexpr double lowest = -1.7976931348623157e+308;
};
template <typename T> using Compute = typename ComputeOf<T>::type;

// Elements in 16 bytes.
template <typename T> constexpr int kPack = 16 / sizeof(T);

template <int N> struct Count { static constexpr int value = N; };

template <typename T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T x[N];
    __device__ T& operator[](int k) { return x[k]; }
    __device__ void operator+=(Pack other) {
        for (int k = 0; k < N; ++k) x[k] += other[k];
    }
};

// N elements of 16 or 8 bytes in all, or one element; aligned to that size.
template <int N, typename T> __device__ Pack<Compute<T>, N> load(const T* from) {
    Pack<T, N> elements = *reinterpret_cast<const Pack<T, N>*>(from);
    Pack<Compute<T>, N> values;
    for (int k = 0; k < N; ++k) values[k] = static_cast<Compute<T>>(elements[k]);
    return values;
}

// Without asm the compiler splits many of these stores. The asm has no memory clobber, so loads of
// other elements may move ahead of it: a thread must not read an element that it has stored.
template <int N, typename T> __device__ void store(T* to, Pack<Compute<T>, N> values) {
    Pack<T, N> elements;
    for (int k = 0; k < N; ++k) elements[k] = static_cast<T>(values[k]);
    if constexpr (N == 1) {
        *to = elements[0];
    } else if constexpr (sizeof(elements) == 8) {
        uint2 w = reinterpret_cast<uint2&>(elements);
        asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(w.x), "r"(w.y));
    } else {
        uint4 w = reinterpret_cast<uint4&>(elements);
        asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.x), "r"(w.y),
                     "r"(w.z), "r"(w.w));
    }
}

// How many elements a row begins behind an aligned pack. A null row agrees with all other rows.
template <int N, typename T> __device__ int offset(const T* row, int of_others) {
    auto address = reinterpret_cast<unsigned long long>(row);
    return row ? static_cast<int>(address / sizeof(T) % N) : of_others;
}

// How many elements come before the first pack that is aligned in all of the rows; `width` if no
// pack is aligned in all of them.
template <int N, typename T, typename... Others>
__device__ int64 head(int64 width, const T* row, const Others*... others) {
    int first = offset<N>(row, 0);
    bool agree = ((offset<N>(others, first) == first) && ...);
    return agree ? min(width, static_cast<int64>((N - first) % N)) : width;
}

// One thread's part of a row: calls body(j, Count<N>()) for packs, j their first element, and
// body(j, Count<1>()) for the elements before and behind the packs.
template <int N, typename Body>
__device__ void sweep(int64 width, int64 head, int64 thread, int64 threads, Body&& body) {
    int64 tail = head + (width - head) / N * N, left = head + width - tail;
    for (int64 i = thread; i < left; i += threads) body(i < head ? i : i - head + tail, Count<1>());
    for (int64 j = head + thread * N; j < tail; j += threads * N) body(j, Count<N>());
}

// The row that an item of a warp belongs to, and the thread's place among those that share the row.
struct Share {
    int64 row, thread, threads;
    __device__ Share(int64 item, int64 warps)
        : row(item / warps), thread(item % warps * 32 + threadIdx.x % 32), threads(warps * 32) {}
};

// Adds up the parts of THREADS threads, a warp or a block, in a fixed order, for thread 0.
template <int THREADS, typename Part> __device__ Part total(Part part) {
    for (int distance = 16; distance; distance /= 2) part.add(part.across(distance));
    if (THREADS > 32) {
        __shared__ Part parts[THREADS / 32];
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = part;
        __syncthreads();
        if (threadIdx.x == 0)
            for (int warp = 1; warp < THREADS / 32; ++warp) part.add(parts[warp]);
        __syncthreads();
    }
    return part;
}
