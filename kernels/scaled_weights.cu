// Cost weights times a power of two, and this power behind them. It takes the largest element of the
// gradient of the logits, `largest` times the largest finite weight, to at most 2^14 and above 2^13,
// so that the gradient neither overflows nor vanishes in float16. It is 1 if all weights are 0.
//
// Grid: a block. Moves 16 bytes a sample.

#include "common.cuh"

struct LargestPart {
    double value;
    __device__ void add(LargestPart other) { value = fmax(value, other.value); }
    __device__ LargestPart across(int distance) const {
        return {__shfl_xor_sync(~0u, value, distance)};
    }
};

__global__ void __launch_bounds__(256)
scaled_weights(const double* __restrict__ weights, int64 samples, double largest,
               double* __restrict__ out) {
    __shared__ int exponent;
    LargestPart part = {0};
    for (int64 b = threadIdx.x; b < samples; b += blockDim.x)
        if (isfinite(weights[b])) part.add({fabs(weights[b])});
    part = total<256>(part);
    if (threadIdx.x == 0) {
        const double most = part.value * largest;
        exponent = 0;
        if (most > 0 && isfinite(most)) {
            const int above = ilogb(most);  // its power is at most `most`
            exponent = 14 - above - (most > scalbn(1.0, above));
            exponent = min(exponent, 127);  // in float32
        }
        out[samples] = scalbn(1.0, exponent);
    }
    __syncthreads();
    for (int64 b = threadIdx.x; b < samples; b += blockDim.x)
        out[b] = scalbn(weights[b], exponent);
}
