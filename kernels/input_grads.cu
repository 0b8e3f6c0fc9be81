// Gradients of hidden vectors, (n, H), back through the activation and the sum that they are made
// of: added up over the cells of each frame, and over those of each position. The cells of a list
// are in packed order, so that the cells of a frame follow each other, and those of a position are
// found in each frame by bisection. A sum has a fixed order: that of frames and positions.

#include "activations.cuh"
#include "common.cuh"
#include "dropout.cuh"
#include "samples.cuh"

// Where the cells of each frame begin in a list, and behind the last frame how many cells there are.
//
// Grid: a thread a frame. Moves 8 bytes a frame and what bisection reads.
__global__ void __launch_bounds__(256, 4)
frame_starts(int64 frames, const int64* __restrict__ packed, int64 rows, const int64* table,
             int64 count, int64* __restrict__ starts) {
    const Samples samples{table, count};
    for (int64 f = first_item(1); f <= frames; f += item_stride(1)) {
        starts[f] = rows;
        if (f == frames) continue;
        const Place at(samples, 0, f);
        starts[f] = lower_bound(packed, 0, rows, samples.cell(at.sample, at.row));
    }
}

template <typename T, typename Activation, int N> struct Back {
    using C = Compute<T>;
    const C* d_hidden;
    int64 width, j;
    bool active;
    const Dropout& dropout;
    unsigned sample;
    Pack<C, N> sum;

    __device__ Pack<C, N> at(const T* row, int64 stride) const {
        return active ? load<N>(row + j * stride) : Pack<C, N>{};
    }
    __device__ void add(int64 row, Pack<C, N> pre, Pack<C, N> other, int64 position, int64 frame) {
        if (!active) return;
        auto d = load<N>(d_hidden + row * width + j);
        dropout.apply(d, j, position, frame, sample);
        pre += other;
        for (int k = 0; k < N; ++k) sum[k] += d[k] * Activation::derivative(pre[k]);
    }
    __device__ void finish(C* out) const {
        if (!active) return;
        auto total = load<N>(out + j);
        total += sum;
        store<N>(out + j, total);
    }
};

// The tile has `rows` cells of the list, from number `first` on, whose gradients are in `d_hidden`.
// The strides e and p are in elements. Where N is more than 1, all rows are aligned to packs of N, and
// the last strides are 1.
//
// Grid: `strips` blocks a frame, then as many a position. Moves 2 (sizeof(C) + sizeof(T)) H bytes a
// cell, and what bisection reads: a frame and a position for each thread.
template <typename T, typename Activation, int N>
__global__ void __launch_bounds__(256, 2)
input_grads(const Compute<T>* __restrict__ d_hidden, const T* __restrict__ encoder, int64 e0,
            int64 e1, int64 e2, const T* __restrict__ predictor, int64 p0, int64 p1, int64 p2,
            const int64* __restrict__ packed, int64 first, int64 rows,
            const int64* __restrict__ starts, const int64* table, int64 count,
            int64 frames, int64 positions, int64 width, int64 strips, int64 threshold,
            int64 seed, double scale, Compute<T>* of_frames, Compute<T>* of_positions) {
    const Samples samples{table, count};
    __shared__ int64 cell_of_frame[256];  // its number in the list, or -1
    const Dropout dropout{static_cast<unsigned>(threshold), seed, scale};
    const int thread = threadIdx.x;
    const auto begin_of = [&](int64 frame) { return max(starts[frame], first); };
    const auto end_of = [&](int64 frame) { return min(starts[frame + 1], first + rows); };
    for (int64 item = first_item(256); item < (frames + positions) * strips;
         item += item_stride(256)) {
        const int64 target = item / strips, j = (item % strips * 256 + thread) * N;
        Back<T, Activation, N> back = {d_hidden - first * width, width, j, j < width,
                                       dropout, 0, {}};
        if (target < frames) {
            const int64 begin = begin_of(target), end = end_of(target);
            if (begin >= end) continue;
            const Place at(samples, 0, target);
            const int64 frame = at.row, sample = samples.at(kNumber, at.sample);
            const int64 cell = samples.cell(at.sample, frame);
            back.sample = sample;
            const auto of_frame = back.at(encoder + sample * e0 + frame * e1, e2);
            const T* const others = predictor + sample * p0;
#pragma unroll 1
            for (int64 i = begin; i < end; ++i) {
                const int64 position = packed[i] - cell;
                back.add(i, of_frame, back.at(others + position * p1, p2), position, frame);
            }
            back.finish(of_frames + target * width);
            continue;
        }
        const int64 behind = target - frames;
        const Place at(samples, 1, behind);
        const int64 position = at.row, sample = samples.at(kNumber, at.sample);
        const int64 first_frame = samples.before(kFrame, at.sample);
        const int64 frames_of_sample = samples.of(kFrame, at.sample);
        back.sample = sample;
        const auto of_position = back.at(predictor + sample * p0 + position * p1, p2);
        const T* const others = encoder + sample * e0;
        bool empty = true;
#pragma unroll 1
        for (int64 chunk = 0; chunk < frames_of_sample; chunk += 256) {
            __syncthreads();  // the frames before have been read
            const int64 frame = chunk + thread;
            cell_of_frame[thread] = -1;
            if (frame < frames_of_sample) {
                const int64 end = end_of(first_frame + frame);
                const int64 cell = samples.cell(at.sample, frame) + position;
                const int64 i = lower_bound(packed, begin_of(first_frame + frame), end, cell);
                if (i < end && packed[i] == cell) cell_of_frame[thread] = i;
            }
            __syncthreads();
#pragma unroll 1
            for (int k = 0; k < 256 && chunk + k < frames_of_sample; ++k) {
                const int64 i = cell_of_frame[k];
                if (i < 0) continue;
                const int64 from = chunk + k;
                back.add(i, of_position, back.at(others + from * e1, e2), position, from);
                empty = false;
            }
        }
        if (!empty) back.finish(of_positions + behind * width);
    }
}

// Writes the sums of a group to where its samples are in the gradients, less the factor `scale`,
// which may be null, and 0 to the frames and positions that a sample does not have. Strides e and p
// are those of the gradients, in elements.
//
// Grid: a warp a row of the gradients. Moves (sizeof(C) + sizeof(T)) H bytes a frame or position,
// and sizeof(T) H where there is none.
template <typename T>
__global__ void __launch_bounds__(256, 4)
write_input_grads(const Compute<T>* __restrict__ of_frames,
                  const Compute<T>* __restrict__ of_positions, const double* scale,
                  const int64* table, int64 count, int64 width, int64 frames,
                  T* __restrict__ encoder, int64 e0, int64 e1, int64 e2, int64 positions,
                  T* __restrict__ predictor, int64 p0, int64 p1, int64 p2) {
    const Compute<T> factor = scale ? static_cast<Compute<T>>(*scale) : Compute<T>(1);
    const Samples samples{table, count};
    for (int64 item = first_item(32); item < count * (frames + positions);
         item += item_stride(32)) {
        const bool is_frame = item < count * frames;
        const int64 behind = is_frame ? item : item - count * frames;
        const int64 rows = is_frame ? frames : positions, b = behind / rows, row = behind % rows;
        const Total total = is_frame ? kFrame : kPosition;
        const bool exists = row < samples.of(total, b);
        const Compute<T>* const from = (is_frame ? of_frames : of_positions)
                                       + (samples.before(total, b) + row) * width;
        const int64 sample = samples.at(kNumber, b);
        T* const to = is_frame ? encoder + sample * e0 + row * e1
                               : predictor + sample * p0 + row * p1;
        const int64 stride = is_frame ? e2 : p2;
        for (int64 j = threadIdx.x % 32; j < width; j += 32)
            to[j * stride] = static_cast<T>(exists ? from[j] / factor : Compute<T>(0));
    }
}
