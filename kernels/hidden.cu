// Hidden vectors of some cells: h = act(pre) after dropout, with pre = encoder[sample, frame] +
// predictor[sample, position], the joint network of Graves, Mohamed and Hinton (arXiv 1303.5778) up
// to its output layer. If T is a half type, h becomes two vectors of it, one behind the other: h
// rounded, and the rounding error. Tensor cores multiply both by weights of type T, with the
// accuracy of a float h.
//
// Grid: `warps` warps a cell. Moves 8 H + 8 bytes a cell for half types, 12 H + 8 for float.

#include "activations.cuh"
#include "common.cuh"
#include "coordinates.cuh"
#include "dropout.cuh"

template <typename T> constexpr bool kSplit = sizeof(T) == 2;

template <typename T, typename Activation> struct HiddenRow {
    const T *of_frame, *of_prefix;
    int64 e2, p2;
    T *out, *rest;
    const Dropout& dropout;
    unsigned position, frame, sample;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        auto x = load<n>(of_frame + j * e2);
        x += load<n>(of_prefix + j * p2);
        for (int k = 0; k < n; ++k) x[k] = Activation::apply(x[k]);
        dropout.apply(x, j, position, frame, sample);
        store<n>(out + j, x);
        if constexpr (kSplit<T>) {
            for (int k = 0; k < n; ++k) x[k] -= static_cast<float>(static_cast<T>(x[k]));
            store<n>(rest + j, x);
        }
    }
};

// The strides e and p of the axes of encoder and predictor are in elements. Of doubles, three blocks
// have the 70 registers of a thread that dropout takes.
template <typename T, typename Activation>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 3 : 4)
hidden(const T* __restrict__ encoder, int64 e0, int64 e1, int64 e2,
       const T* __restrict__ predictor, int64 p0, int64 p1, int64 p2,
       const int64* __restrict__ packed, const int64* of_batch, int64 samples,
       const int64* labels, int64 cells, int64 width, int64 warps, int64 threshold, int64 seed,
       double scale, T* __restrict__ out) {
    constexpr int N = kPack<Compute<T>>;
    const Dropout dropout{static_cast<unsigned>(threshold), seed, scale};
    const Batch batch(of_batch, samples, labels);
    for (int64 item = first_item(32); item < cells * warps; item += item_stride(32)) {
        Share share(item, warps);
        const int64 i = share.row;
        const Coordinates at = batch.of(packed[i]);
        HiddenRow<T, Activation> row = {encoder + at.sample * e0 + at.frame * e1,
                                        predictor + at.sample * p0 + at.position * p1, e2, p2,
                                        out, nullptr, dropout,
                                        static_cast<unsigned>(at.position),
                                        static_cast<unsigned>(at.frame),
                                        static_cast<unsigned>(at.sample)};
        row.out += i * width * (kSplit<T> ? 2 : 1);
        if (kSplit<T>) row.rest = row.out + width;
        bool dense = e2 == 1 && p2 == 1;
        int64 first = width;
        if (dense) first = head<N>(width, row.of_frame, row.of_prefix, row.out, row.rest);
        sweep<N>(width, first, share.thread, share.threads, row);
    }
}
