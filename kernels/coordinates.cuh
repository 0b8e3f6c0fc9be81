#pragma once
// Where the cells of a batch are, from their packed indices.

#include "samples.cuh"

struct Coordinates {
    int64 sample, frame, position, label;  // the label is 0 where none leaves the cell
    bool has_label;
};

struct Batch {
    Samples samples;
    const int64* labels;  // the next label at each position

    __device__ Batch(const int64* words, int64 count, const int64* labels)
        : samples{words, count}, labels(labels) {}

    __device__ Coordinates of(int64 packed) const {
        const int64 sample = samples.with(kCell, packed), within = packed - samples.at(kCell, sample);
        const int64 first = samples.at(kPosition, sample), width = samples.of(kPosition, sample);
        const int64 frame = within / width, position = within - frame * width;
        return {sample, frame, position, labels[first + position], position + 1 < width};
    }
};
