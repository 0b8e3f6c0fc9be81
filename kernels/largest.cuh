#pragma once
// The largest of several numbers, and totals that each thread needs.

#include "common.cuh"

// A part of a maximum, for total() of common.cuh. Less than every number at first; NaN if any is.
template <typename C> struct Largest {
    C value = -static_cast<C>(__longlong_as_double(0x7ff0000000000000));
    __device__ void add(C x) { value = value > x || value != value ? value : x; }
    __device__ void add(Largest other) { add(other.value); }
    __device__ Largest across(int distance) const {
        Largest other;
        other.value = __shfl_xor_sync(~0u, value, distance);
        return other;
    }
};

// The total of THREADS threads, for each of them.
template <int THREADS, typename Part> __device__ Part total_for_all(Part part) {
    part = total<THREADS>(part);
    if (THREADS > 32) {
        __shared__ Part whole;
        if (threadIdx.x == 0) whole = part;
        __syncthreads();
        part = whole;
    }
    return part;
}
