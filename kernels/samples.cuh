#pragma once
// Some samples, whose frames, positions and tiles of cells (see bounds.cu) are each numbered sample
// by sample.

#include "common.cuh"
#include "entries.cuh"

// Its first frame, position and tile, the packed index of its first cell, its number in the batch.
struct Sample {
    int64 frame, position, tile, cell, number, frames, positions;

    __device__ int64 first(int side) const { return side ? position : frame; }
    __device__ int64 count(int side) const { return side ? positions : frames; }
};

// Encoder outputs (side 0) or predictor outputs (1), with the strides of their axes in elements.
template <typename T> struct Inputs {
    const T* array;
    int64 of_sample, of_row, of_element;
};

// Where a frame (side 0) or position (1) is.
struct Place {
    const Sample* of;
    int64 sample, row;

    __device__ Place(const Sample* samples, int64 count, int side, int64 number)
        : of(side ? &entry_of<Sample, &Sample::position>(number, samples, count)
                  : &entry_of<Sample, &Sample::frame>(number, samples, count)),
          sample(of - samples),
          row(number - of->first(side)) {}
    template <typename T> __device__ const T* in(Inputs<T> inputs) const {
        return inputs.array + of->number * inputs.of_sample + row * inputs.of_row;
    }
};

// The number of the score of a vector of a position, which has one for each score but the label's, in
// order. `label` is the number of the label's score, or larger than all.
__device__ inline int score_of(int vector, int label) { return vector < label ? vector : vector + 1; }
