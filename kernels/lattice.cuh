#pragma once
// The lattice of a sample in memory, and sweeps of a block over its anti-diagonals.
//
// Cell (t, u) lies on diagonal d = t + u. Let M be the longer and m the shorter of both sides, and
// column c the index of the cell along the shorter one. The cell is kept in row d mod M, column c
// of an (M, m) array: diagonals d and d + M share a row, as they have no column in common. So there
// are no gaps, a sample begins where it does in packed order, and threads, each of which has a
// column, touch neighbouring words.
//
// An arc leads some diagonals ahead, and as many columns to the right as it emits labels, if columns
// are positions, or takes frames.

#include "common.cuh"
#include "entries.cuh"
#include "log_space.cuh"
#include "topology.cuh"

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
    // How many columns an arc leads to the right, and the column of (T, U), which is no cell.
    template <typename A> __device__ int shift(A arc) const {
        return flipped() ? arc.frames : arc.labels;
    }
    __device__ int end_column() const { return flipped() ? frames : positions - 1; }

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
    __device__ int frame_of(int d, int c) const { return flipped() ? c : d - c; }

    // What a delay penalty adds to the log-prob of a label (k2).
    __device__ double delay(double penalty, int64 frame) const {
        return penalty * ((frames - 1) / 2.0 - frame);
    }
};

// The scores of a cell, K of them, and of the one beside it: of arcs that lead to a cell or the end.
struct Scores {
    const double* values;  // (K, cells)
    int64 cells;

    template <typename A>
    __device__ double weight(const Lattice& lattice, int d, int c, A arc) const {
        const int64 place = lattice.place(d, c);
        const double weight = arc.sum([&](int k) { return values[k * cells + place]; });
        if (arc.then < 0) return weight;
        const int64 aside = lattice.place(d + arc.labels, lattice.flipped() ? c : c + arc.labels);
        return weight + values[arc.then * cells + aside];
    }
};

// Whether all that the arcs of a cell read is among the `exact` ones.
template <typename T>
__device__ bool is_inside(const Lattice& lattice, const bool* exact, int d, int c) {
    if (!exact[lattice.place(d, c)]) return false;
    if (T::aside == 0 || d - lattice.frame_of(d, c) + T::aside >= lattice.positions) return true;
    return exact[lattice.place(d + T::aside, lattice.flipped() ? c : c + T::aside)];
}

// The values that a sweep passes on: the last few diagonals in shared memory, or all diagonals in
// an array if the lattice has more than `room` columns.
template <typename T> struct Diagonals {
    const Lattice& lattice;
    double *shared, *all;
    int room;

    __device__ double* operator[](int d) const {
        return lattice.columns() <= room ? shared + d % (T::reach + 1) * lattice.columns()
                                         : all + lattice.place(d, 0);
    }
};

// Sums over the paths from the first cell, in log space. `enter(d, c, value)` gets the sum over the
// paths to a cell and returns what the cell passes on. Returns the sum over all paths to the end.
template <typename T, typename Enter>
__device__ double sweep_forward(const Diagonals<T>& kept, const Scores& scores, Enter enter) {
    const Lattice lattice = kept.lattice;
    for (int d = 0; d < lattice.diagonals(); ++d) {
        double* here = kept[d];
        const int first = max(0, d + 1 - lattice.rows()), stop = min(d + 1, lattice.columns());
        for (int c = first + threadIdx.x; c < stop; c += blockDim.x) {
            const int frame = lattice.frame_of(d, c), position = d - frame;
            double value = d == 0 ? 0 : -infinity();
            T::each([&](auto arc) {
                if (frame < arc.frames || position < arc.labels) return;
                const int from = d - arc.ahead, column = c - lattice.shift(arc);
                value = logaddexp(
                    value, kept[from][column] + scores.weight(lattice, from, column, arc));
            });
            here[c] = enter(d, c, value);
        }
        __syncthreads();
    }
    double end = -infinity();
    T::each([&](auto arc) {
        if (!arc.ends || !arc.frames) return;
        if (lattice.frames < arc.frames || lattice.positions <= arc.labels) return;
        const int from = lattice.diagonals() - arc.ahead;
        const int column = lattice.end_column() - lattice.shift(arc);
        end = logaddexp(end, kept[from][column] + scores.weight(lattice, from, column, arc));
    });
    return end;
}

// The value behind an arc: of(d, c) of the cell that it leads to, 0 if it leads to the end and may
// end a path, else -inf.
template <typename A, typename Of>
__device__ double behind(const Lattice& lattice, int d, int c, A arc, Of of) {
    const int frame = lattice.frame_of(d, c) + arc.frames, position = d + arc.ahead - frame;
    if (frame == lattice.frames && position == lattice.positions - 1)
        return arc.ends ? 0 : -infinity();
    if (frame >= lattice.frames || position >= lattice.positions) return -infinity();
    return of(d + arc.ahead, c + lattice.shift(arc));
}

// Sums over the paths to the end, in log space. `most` in `enter(d, c, value, most)` is the largest
// of the values behind the arcs of the cell, with `delay(d, c)` added behind labels.
template <typename T, typename Delay, typename Enter>
__device__ void sweep_backward(const Diagonals<T>& kept, const Scores& scores, Delay delay,
                               Enter enter) {
    const Lattice lattice = kept.lattice;
    for (int d = lattice.diagonals() - 1; d >= 0; --d) {
        double* here = kept[d];
        const int first = max(0, d + 1 - lattice.rows()), stop = min(d + 1, lattice.columns());
        for (int c = first + threadIdx.x; c < stop; c += blockDim.x) {
            double value = -infinity(), most = -infinity();
            T::each([&](auto arc) {
                const double beta =
                    behind(lattice, d, c, arc, [&](int row, int column) { return kept[row][column]; });
                if (beta == -infinity()) return;
                value = logaddexp(value, beta + scores.weight(lattice, d, c, arc));
                most = fmax(most, arc.labels ? beta + delay(d, c) : beta);
            });
            here[c] = enter(d, c, value, most);
        }
        __syncthreads();
    }
}
