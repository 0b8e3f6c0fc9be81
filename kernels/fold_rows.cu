// The rows of some samples folded into one row each, their mean and their largest magnitudes, and
// the sums of the magnitudes of the rows of a matrix; always in the same order.
//
// Grid: a block 32 columns of a sample, of encoder or predictor outputs, whose warps take turns with
// the rows; a warp a row of a matrix. Moves sizeof(T) bytes an element.

#include "largest.cuh"
#include "log_space.cuh"
#include "samples.cuh"

// `means` and `magnitudes` are (2, samples, width).
template <typename T>
__global__ void __launch_bounds__(256, 4)
fold_rows(const T* __restrict__ encoder, int64 e0, int64 e1, int64 e2,
          const T* __restrict__ predictor, int64 p0, int64 p1, int64 p2, const int64* table,
          int64 count, int64 width, Compute<T>* __restrict__ means,
          Compute<T>* __restrict__ magnitudes) {
    using C = Compute<T>;
    const Samples samples{table, count};
    __shared__ C sums[8][32];
    __shared__ Largest<C> tops[8][32];
    __shared__ int64 number, rows;  // of the sample, and of its rows: read once for the block
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64 strips = (width + 31) / 32;
    for (int64 item = first_item(256); item < 2 * count * strips; item += item_stride(256)) {
        const int64 i = item / strips, j = item % strips * 32 + lane;
        const bool is_predictor = i >= count;
        if (threadIdx.x == 0) {
            const int64 sample = is_predictor ? i - count : i;
            number = samples.at(kNumber, sample);
            rows = samples.of(is_predictor ? kPosition : kFrame, sample);
        }
        __syncthreads();
        const int64 stride = is_predictor ? p1 : e1;
        const T* const column = is_predictor ? predictor + number * p0 + j * p2
                                             : encoder + number * e0 + j * e2;
        C sum = 0;
        Largest<C> top;
        if (j < width)
            for (int64 row = warp; row < rows; row += 8) {
                const C x = static_cast<C>(column[row * stride]);
                sum += x;
                top.add(fabs(x));
            }
        sums[warp][lane] = sum;
        tops[warp][lane] = top;
        __syncthreads();
        if (warp == 0 && j < width) {
            for (int k = 1; k < 8; ++k) {
                sum += sums[k][lane];
                top.add(tops[k][lane]);
            }
            means[i * width + j] = sum / rows;
            magnitudes[i * width + j] = top.value;
        }
        __syncthreads();
    }
}

// The strides of the matrix are in elements.
template <typename T>
__global__ void __launch_bounds__(256, 4)
row_sums(const T* __restrict__ matrix, int64 of_row, int64 of_element, int64 rows, int64 width,
         Compute<T>* __restrict__ out) {
    for (int64 i = first_item(32); i < rows; i += item_stride(32)) {
        Sum<Compute<T>> sum{0};
        for (int64 j = threadIdx.x % 32; j < width; j += 32)
            sum.value += fabs(static_cast<Compute<T>>(matrix[i * of_row + j * of_element]));
        sum = total<32>(sum);
        if (threadIdx.x % 32 == 0) out[i] = sum.value;
    }
}
