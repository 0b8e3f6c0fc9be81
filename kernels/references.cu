// References of tangents: their hidden vectors, and the vectors and constants that `bounds` reads.

#include "activations.cuh"
#include "log_space.cuh"
#include "row.cuh"
#include "samples.cuh"

// The hidden vector of a reference, rounded to T: act(x + mean), with the row x of a frame (side 0)
// and the mean of the positions of its sample, or of a position (1) and the mean of the frames.
//
// Grid: `warps` warps a reference. Moves H (sizeof(T) + sizeof(T)) bytes, and the mean from a cache.
template <typename T, typename Activation>
__global__ void __launch_bounds__(256, 3)
reference_hidden(const int64* table, int64 count, int side, int64 start, const T* array, int64 s0,
                 int64 s1, int64 s2, const Compute<T>* means, int64 rows, int64 width, int64 warps,
                 T* out) {
    const Samples samples{table, count};
    for (int64 item = first_item(32); item < rows * warps; item += item_stride(32)) {
        const Share share(item, warps);
        const Place place(samples, side, start + share.row);
        const T* x = array + samples.at(kNumber, place.sample) * s0 + place.row * s1;
        const Compute<T>* mean = means + ((1 - side) * count + place.sample) * width;
        for (int64 j = share.thread; j < width; j += share.threads) {
            const Compute<T> pre = static_cast<Compute<T>>(x[j * s2]) + mean[j];
            out[share.row * width + j] = Activation::apply(pre);
        }
    }
}

// Writes for each row, from number `start` on: its input, or exp(rate * input) in the logistic form;
// `vectors` vectors, and a constant for each of them. The last vector is the tangent, slopes / sums.
// Before it, a position has the weights of the scores that are no label's, and of the next label.
//
// Grid: a warp a vector, and one the input. Moves 2 H sizeof(C) + 24 bytes a vector.
template <typename T>
__global__ void __launch_bounds__(256, 3)
write_tangents(const int64* of_samples, int64 count, int side, int64 start, int64 rows,
               const int64* labels, const T* array, int64 s0, int64 s1, int64 s2, const T* weight,
               int64 w0, int64 w1, const Compute<T>* bias, const int64* words, int heads,
               int scores, int ranges, int label, const bool* fits, double rate, double scale,
               double shift, const Compute<T>* slopes, const double* of_slopes, const double* sums,
               int64 width, int vectors, Compute<T>* to_inputs, Compute<T>* to_vectors,
               double* to_constants) {
    using C = Compute<T>;
    const RowTable table{words, heads, scores, ranges};
    const Samples samples{of_samples, count};
    for (int64 item = first_item(32); item < rows * (vectors + 1); item += item_stride(32)) {
        const int64 i = item / (vectors + 1), number = start + i, lane = threadIdx.x % 32;
        const int k = item % (vectors + 1);
        const Place place(samples, side, number);
        const bool logistic = fits[place.sample];
        if (k == vectors) {
            const T* x = array + samples.at(kNumber, place.sample) * s0 + place.row * s1;
            for (int64 j = lane; j < width; j += 32) {
                const C input = static_cast<C>(x[j * s2]);
                to_inputs[number * width + j] = logistic ? exp(static_cast<C>(rate) * input) : input;
            }
            continue;
        }
        const bool is_slope = k == vectors - 1, is_label = k == vectors - 2;
        const int64 column = is_slope   ? 0
                             : is_label ? labels[samples.at(kLabel, place.sample) + place.row]
                                        : table.column(score_of(k, label), 0);
        const C inverse = is_slope ? 1 / sums[i] : 1, factor = logistic ? scale : 1;
        C* const to = to_vectors + (number * vectors + k) * width;
        Sum<double> sum{0};
        for (int64 j = lane; j < width; j += 32) {
            const C x = is_slope ? slopes[i * width + j] * inverse
                                 : static_cast<C>(weight[column * w0 + j * w1]);
            sum.value += x;
            to[j] = factor * x;
        }
        sum = total<32>(sum);
        if (lane) continue;
        double constant = is_slope ? of_slopes[i] : bias ? bias[column] : C(0);
        if (is_label && place.row == samples.of(kPosition, place.sample) - 1) constant = -infinity();
        to_constants[number * vectors + k] = constant + (logistic ? shift * sum.value : 0);
    }
}
