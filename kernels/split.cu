// The factors a and b of a product of matrices of floats, as TF32: numbers with 10 bits behind the
// first. With x = low + high, both rounded to TF32,
//
//     a b = low(a) high(b) + high(a) low(b) + high(a) high(b)
//
// up to 3 2^-22 |a b|: a product of three parts of a and three of b, side by side. Small terms come
// first, as tensor cores cut off the sum of every 8 products: by the less, the smaller it is. What is
// not finite is in the last part alone, so that it meets what it meets in a product of floats.
//
// Grid: a warp a row of either matrix. Moves 16 bytes an element.

#include "common.cuh"

// To the nearest, but not to infinity.
__device__ float rounded(float x) {
    const unsigned bits = __float_as_uint(x), up = bits + 0x1000;
    return __uint_as_float((up & 0x7f800000) == 0x7f800000 ? bits & ~0x1fff : up & ~0x1fff);
}

// A row-major matrix and where its parts begin: `part` elements behind each other, with rows `step`
// elements behind each other.
struct Factor {
    const float* from;
    int64 stride, width;
    float* to;
    int64 part, step;
};

struct FactorRow {
    const float* from;
    float *first, *second, *last;
    bool is_right;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        const auto x = load<n>(from + j);
        Pack<float, n> low, high, whole;
        for (int k = 0; k < n; ++k) {
            const bool is_finite = isfinite(x.x[k]);
            high[k] = is_finite ? rounded(x.x[k]) : 0;
            low[k] = is_finite ? rounded(x.x[k] - high[k]) : 0;
            whole[k] = is_finite ? high[k] : x.x[k];
        }
        store<n>(first + j, is_right ? high : low);
        store<n>(second + j, is_right ? low : high);
        store<n>(last + j, whole);
    }
};

__global__ void __launch_bounds__(256, 4)
split(const float* a, int64 a_rows, int64 a_stride, int64 a_width, float* to_a, int64 a_part,
      int64 a_step, const float* b, int64 b_rows, int64 b_stride, int64 b_width, float* to_b,
      int64 b_part, int64 b_step) {
    for (int64 i = first_item(32); i < a_rows + b_rows; i += item_stride(32)) {
        const bool is_right = i >= a_rows;
        const Factor factor = is_right ? Factor{b, b_stride, b_width, to_b, b_part, b_step}
                                       : Factor{a, a_stride, a_width, to_a, a_part, a_step};
        const int64 row = is_right ? i - a_rows : i;
        float* const first = factor.to + row * factor.step;
        const FactorRow parts = {factor.from + row * factor.stride, first, first + factor.part,
                                 first + 2 * factor.part, is_right};
        const int64 aligned =
            head<4>(factor.width, parts.from, parts.first, parts.second, parts.last);
        sweep<4>(factor.width, aligned, threadIdx.x % 32, 32, parts);
    }
}
