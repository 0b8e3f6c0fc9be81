#pragma once
// The samples of a batch, or some of them: the table that all kernels read.

#include "bisection.cuh"

using int64 = long long;

// The words of a sample: how many cells, frames, positions, columns (see lattice.cuh) and tiles of
// cells (see bounds.cu) the samples before it have; where the next labels of its positions begin; and
// its number in the batch.
enum Total { kCell, kFrame, kPosition, kColumn, kTile, kLabel, kNumber, kTotals };

// Words of each sample, and of one behind the last. If samples between them are left out, kCell and
// kLabel are those of the batch.
struct Samples {
    const int64* words;
    int64 count;

    __device__ int64 at(Total total, int64 sample) const { return words[kTotals * sample + total]; }
    // What the samples before it have that are in the table.
    __device__ int64 before(Total total, int64 sample) const { return at(total, sample) - at(total, 0); }
    // What the sample itself has.
    __device__ int64 of(Total total, int64 sample) const {
        return at(total, sample + 1) - at(total, sample);
    }
    // The packed index of the first cell of a frame.
    __device__ int64 cell(int64 sample, int64 frame) const {
        return at(kCell, sample) + frame * of(kPosition, sample);
    }
    // The sample that has a cell, frame, position or tile, numbered like the words.
    __device__ int64 with(Total total, int64 number) const {
        return last_up_to<kTotals>(words + total, count, number);
    }
};

// Where a frame (side 0) or position (1) is, given by its number in the table.
struct Place {
    int64 sample, row;

    __device__ Place(const Samples& samples, int side, int64 number) {
        const Total total = side ? kPosition : kFrame;
        number += samples.at(total, 0);
        sample = samples.with(total, number);
        row = number - samples.at(total, sample);
    }
};
