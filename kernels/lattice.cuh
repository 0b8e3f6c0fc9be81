#pragma once
// The lattice of a sample in memory, and sweeps of a block over its anti-diagonals.
//
// Cell (t, u) lies on diagonal d = t + u. Let M be the longer and m the shorter of both sides, and
// column c the index of the cell along the shorter one. The cell is kept in row d mod M, column c
// of an (M, m) array: diagonals d and d + M share a row, as they have no column in common. So there
// are no gaps, a sample begins where it does in packed order, and threads, each of which has a
// column, touch neighbouring words.
//
// A transition leads from diagonal d to d + 1. It either stays in its column or steps to the next:
// if columns are positions, blanks stay and labels step; if they are frames, the other way round.

#include "common.cuh"
#include "entries.cuh"
#include "log_space.cuh"

// A sample: its first cell in packed order, and its lengths.
struct Lattice {
    int64 first;
    int frames, positions;  // their sum is an int, too

    __device__ bool flipped() const { return positions > frames; }
    __device__ int rows() const { return flipped() ? positions : frames; }
    __device__ int columns() const { return flipped() ? frames : positions; }
    __device__ int diagonals() const { return frames + positions - 1; }

    __device__ int64 place(int d, int c) const {
        return first + static_cast<int64>(d < rows() ? d : d - rows()) * columns() + c;
    }
    __device__ int64 place_of(int frame, int position) const {
        return place(frame + position, flipped() ? frame : position);
    }
    __device__ int64 place_of_packed(int64 cell) const {
        return place_of((cell - first) / positions, (cell - first) % positions);
    }
    __device__ int64 packed(int d, int c) const {
        const int frame = flipped() ? c : d - c;
        return first + static_cast<int64>(frame) * positions + d - frame;
    }
    __device__ int64 last_place() const { return place_of(frames - 1, positions - 1); }
};

// The values that a sweep passes on: two diagonals of them in shared memory, or all of them in an
// array, where there is not `room` for so many columns.
struct Diagonals {
    const Lattice& lattice;
    double *shared, *all;
    int room;

    __device__ double* operator[](int d) const {
        return lattice.columns() <= room ? shared + (d & 1) * lattice.columns()
                                         : all + lattice.place(d, 0);
    }
};

// Sums over the paths from the first cell, in log space. `enter(d, c, value)` is given what leads
// into a cell and returns what is passed on. Returns that of the last cell.
template <typename Enter>
__device__ double sweep_forward(const Diagonals& kept, const double* blank, const double* label,
                                Enter enter) {
    const Lattice lattice = kept.lattice;
    const double* stay = lattice.flipped() ? label : blank;
    const double* step = lattice.flipped() ? blank : label;
    for (int d = 0; d < lattice.diagonals(); ++d) {
        const double* before = kept[d - 1];
        double* here = kept[d];
        const int first = max(0, d + 1 - lattice.rows()), stop = min(d + 1, lattice.columns());
        for (int c = first + threadIdx.x; c < stop; c += blockDim.x) {
            double value = d == 0 ? 0 : -infinity();
            if (c < d) value = before[c] + stay[lattice.place(d - 1, c)];
            if (c > 0) value = logaddexp(value, before[c - 1] + step[lattice.place(d - 1, c - 1)]);
            here[c] = enter(d, c, value);
        }
        __syncthreads();
    }
    return kept[lattice.diagonals() - 1][lattice.columns() - 1];
}

// Sums over the paths that leave by the blank of the last cell, in log space. `enter(d, c, value,
// most)` is also given the larger one of the values that the two transitions lead to.
template <typename Enter>
__device__ void sweep_backward(const Diagonals& kept, const double* blank, const double* label,
                               Enter enter) {
    const Lattice lattice = kept.lattice;
    const double* stay = lattice.flipped() ? label : blank;
    const double* step = lattice.flipped() ? blank : label;
    for (int d = lattice.diagonals() - 1; d >= 0; --d) {
        const bool last = d == lattice.diagonals() - 1;
        const double* behind = kept[d + 1];
        double* here = kept[d];
        const int first = max(0, d + 1 - lattice.rows()), stop = min(d + 1, lattice.columns());
        for (int c = first + threadIdx.x; c < stop; c += blockDim.x) {
            const int64 place = lattice.place(d, c);
            double value = last ? blank[place] : -infinity(), most = last ? 0 : -infinity();
            if (d + 1 - c < lattice.rows()) {
                value = behind[c] + stay[place];
                most = behind[c];
            }
            if (c + 1 < lattice.columns()) {
                value = logaddexp(value, behind[c + 1] + step[place]);
                most = fmax(most, behind[c + 1]);
            }
            here[c] = enter(d, c, value, most);
        }
        __syncthreads();
    }
}
