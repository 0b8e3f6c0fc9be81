// The rows of some samples folded into one row each: their mean, their largest magnitudes, or the
// sums of their magnitudes; always in the same order.
//
// Grid: a block 32 columns of a sample; warps take turns with its rows. Moves sizeof(T) bytes an
// element.

#include "common.cuh"
#include "log_space.cuh"

template <typename C> struct Mean {
    C value = 0;
    __device__ void add(C x) { value += x; }
    __device__ C of(int64 count) const { return value / count; }
};

// NaN if any element is.
template <typename C> struct Largest {
    C value = 0;
    __device__ void add(C x) { value = larger(value, fabs(x)); }
    __device__ C of(int64) const { return value; }
};

template <typename C> struct AbsoluteSum {
    C value = 0;
    __device__ void add(C x) { value += fabs(x); }
    __device__ C of(int64) const { return value; }
};

// The strides s of the three axes are in elements.
template <typename T, template <typename> class Fold>
__global__ void __launch_bounds__(256, 4)
fold_rows(const T* __restrict__ array, int64 s0, int64 s1, int64 s2,
          const int64* __restrict__ samples, const int64* __restrict__ counts, int64 size,
          int64 width, Compute<T>* __restrict__ out) {
    __shared__ Compute<T> parts[8][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64 strips = (width + 31) / 32;
    for (int64 item = first_item(256); item < size * strips; item += item_stride(256)) {
        const int64 i = item / strips, j = item % strips * 32 + lane, count = counts[i];
        const T* column = array + samples[i] * s0 + j * s2;
        Fold<Compute<T>> fold;
        if (j < width)
            for (int64 row = warp; row < count; row += 8)
                fold.add(static_cast<Compute<T>>(column[row * s1]));
        parts[warp][lane] = fold.value;
        __syncthreads();
        if (warp == 0 && j < width) {
            for (int k = 1; k < 8; ++k) fold.add(parts[k][lane]);
            out[i * width + j] = fold.of(count);
        }
        __syncthreads();
    }
}
