#pragma once
// Where the cells of a batch are, from their packed indices.

#include "entries.cuh"

struct Offset { long long first; };

struct Coordinates {
    long long sample, frame, position, label;  // the label is 0 where none leaves the cell
    bool has_label;
};

// It has `samples` + 1 offsets, then U + 1 of each sample, then its `longest` labels.
struct BatchTable {
    const long long* words;
    long long samples, longest;

    __device__ Coordinates of(long long packed) const {
        const auto offsets = reinterpret_cast<const Offset*>(words);
        const long long *positions = words + samples + 1, *labels = positions + samples;
        const long long sample = &entry_of(packed, offsets, samples) - offsets;
        const long long within = packed - offsets[sample].first, width = positions[sample];
        const long long frame = within / width, position = within - frame * width;
        return {sample, frame, position, labels[sample * longest + position], position + 1 < width};
    }
};
