// Rows out of an array with up to three axes of rows, and back into one, cast on the way:
// out[i] = source[a[i], b[i], c[i]], and target[a[i], b[i], c[i]] = tile[i].
//
// Grid: `warps` warps a row. Moves V (sizeof(T) + sizeof(compute)) + 24 bytes a row.

#include "common.cuh"

template <typename From, typename To> struct Moved {
    const From* from;
    int64 from_stride;
    To* to;
    int64 to_stride;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        Pack<Compute<From>, n> x = load<n>(from + j * from_stride);
        store<n>(to + j * to_stride, x);
    }
    __device__ void move(int64 width, Share share) const {
        constexpr int N = kPack<Compute<From>>;
        bool dense = from_stride == 1 && to_stride == 1;
        int64 first = dense ? head<N>(width, from, to) : width;
        sweep<N>(width, first, share.thread, share.threads, *this);
    }
};

// The strides s of the four axes of the source are in elements.
template <typename T>
__global__ void __launch_bounds__(256, 4)
gather(const T* __restrict__ source, int64 s0, int64 s1, int64 s2, int64 s3,
       const int64* __restrict__ a, const int64* __restrict__ b, const int64* __restrict__ c,
       int64 rows, int64 width, int64 warps, Compute<T>* __restrict__ out) {
    for (int64 item = first_item(32); item < rows * warps; item += item_stride(32)) {
        Share share(item, warps);
        int64 i = share.row, at = a[i] * s0 + b[i] * s1 + c[i] * s2;
        Moved<T, Compute<T>>{source + at, s3, out + i * width, 1}.move(width, share);
    }
}

// No row of the target may come up twice.
template <typename T>
__global__ void __launch_bounds__(256, 4)
scatter(const Compute<T>* __restrict__ tile, const int64* __restrict__ a,
        const int64* __restrict__ b, const int64* __restrict__ c, int64 rows, int64 width,
        int64 warps, T* __restrict__ target, int64 s0, int64 s1, int64 s2, int64 s3) {
    for (int64 item = first_item(32); item < rows * warps; item += item_stride(32)) {
        Share share(item, warps);
        int64 i = share.row, at = a[i] * s0 + b[i] * s1 + c[i] * s2;
        Moved<Compute<T>, T>{tile + i * width, 1, target + at, s3}.move(width, share);
    }
}
