#pragma once
// Sums and maxima of logarithms, in float64; a sum that several threads have a part of.

// NVRTC knows no INFINITY.
__device__ inline double infinity() { return __longlong_as_double(0x7ff0000000000000); }

// Unlike fmax, NaN if one of both is.
__device__ inline double larger(double a, double b) { return a > b || isnan(a) ? a : b; }

// log(exp(a) + exp(b)). What is below a part in 2e17 of the larger adds nothing.
__device__ inline double logaddexp(double a, double b) {
    const double most = larger(a, b), less = -fabs(a - b);
    return less > -40 ? most + log1p(exp(less)) : most;  // less is NaN of two infinities
}

// Parts of a sum, for total() of common.cuh.
template <typename C> struct Sum {
    C value;
    __device__ void add(Sum other) { value += other.value; }
    __device__ Sum across(int distance) const { return {__shfl_xor_sync(~0u, value, distance)}; }
};
