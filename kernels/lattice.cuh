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
#include "samples.cuh"
#include "topology.cuh"
#include "wide.cuh"

// A sample: its first cell in packed order, among those of its group, and its lengths.
struct Lattice {
    int64 first;
    int frames, positions;  // their sum is an int, too

    __device__ bool flipped() const { return positions > frames; }
    __device__ int rows() const { return flipped() ? positions : frames; }
    __device__ int columns() const { return flipped() ? frames : positions; }
    __device__ int diagonals() const { return frames + positions - 1; }

    // Whether there is such a cell; no number is below 0 as an unsigned one.
    __device__ bool has(int frame, int position) const {
        return static_cast<unsigned>(frame) < frames && static_cast<unsigned>(position) < positions;
    }
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
    __device__ int frame_of(int d, int c) const { return flipped() ? c : d - c; }

    // What a delay penalty adds to the log-prob of a label (k2).
    __device__ double delay(double penalty, int64 frame) const {
        return penalty ? penalty * ((frames - 1) / 2.0 - frame) : 0;
    }

    // Scores up to this magnitude keep all exponents of Wide below 2^23. A path has at most an arc a
    // diagonal, each of so many factors, 2^22 for all of them; and as much is left for the number of
    // paths, with up to 2^16 arcs from a cell. Without `factors`, a sample is to have logarithms.
    __device__ double largest_log(int factors) const {
        constexpr int kMostDiagonals = 1 << 18;
        if (factors <= 0) return -1;
        const double each = (1 << 22) * 0.69 / (static_cast<double>(diagonals()) * factors);
        return diagonals() > kMostDiagonals ? 0 : fmin(each, kLargestLog);
    }
};

// The lattice of a sample of a group whose first cell has the packed index `first`.
__device__ inline Lattice lattice_of(const Samples& samples, int64 sample, int64 first) {
    return {samples.at(kCell, sample) - first, static_cast<int>(samples.of(kFrame, sample)),
            static_cast<int>(samples.of(kPosition, sample))};
}
// The same if all samples of the table are the group.
__device__ inline Lattice lattice_of(const Samples& samples, int64 sample) {
    return lattice_of(samples, sample, samples.at(kCell, 0));
}

// The n-th of the ways to sweep that are in a launch; `ways` has a bit for each.
__device__ inline int way_of(int64 n, int ways) {
    int way = 0;
    for (; n || !(ways >> way & 1); ++way) n -= ways >> way & 1;
    return way;
}

// What is known of a sample besides its scores.
constexpr int kPoisoned = 1, kBeyondWide = 2;

// Whether the sums of a sample are logarithms. Those of a sample are that has more columns than a
// block has threads, or than fit into its shared memory: its last diagonals are in spare memory.
__device__ inline bool in_log(const Lattice& lattice, int flags, int most_columns) {
    return flags & kBeyondWide || lattice.columns() > most_columns;
}

// Words of 8 bytes in spare memory for each column.
template <typename T> constexpr int kSpareWords = 2 * (T::reach + 1);

// Where the K scores of cells are stored: as words, or as they are if `factors` is below 0. A NaN or
// +inf poisons the sample, and counts as -inf; where there is no label to emit, its score is not
// read. The delay penalty is added to scores of labels.
struct LatticeScores {
    int kinds, label, factors;
    double delay_penalty;
    int64 cells;
    double* words;
    bool* exact;
    int* flags;

    // Stores the scores of a cell, score_of(k). `number` is that of the sample in the group.
    template <typename ScoreOf>
    __device__ void write(int64 number, const Lattice& lattice, int frame, int position,
                          ScoreOf score_of) const {
        const int64 place = lattice.place_of(frame, position);
        const bool has_label = position + 1 < lattice.positions;
        bool good = true;
        for (int k = 0; k < kinds; ++k)
            if (k != label || has_label) good = good && score_of(k) < infinity();
        if (!good) atomicOr(flags + number, kPoisoned);
        const double delay = lattice.delay(delay_penalty, frame);
        const double most = lattice.largest_log(factors);
        for (int k = 0; k < kinds; ++k) {
            const bool absent = !good || (k == label && !has_label);
            double score = absent ? -infinity() : score_of(k);
            if (k == label) score = __dadd_rn(score, delay);  // not fused: NumPy has the same sum
            if (score > -infinity() && (fabs(score) > most || fabs(delay) > most))
                atomicOr(flags + number, kBeyondWide);
            words[k * cells + place] = factors < 0 ? score : word_of(score);
        }
        if (exact) exact[place] = true;
    }
};

// The words of K scores, (K, cells).
struct Words {
    const double* words;
    int64 cells;

    // Calls visit(word) with each word that an arc of a cell reads.
    template <typename A, typename Visit>
    __device__ void each(const Lattice& lattice, int d, int c, A arc, Visit visit) const {
        const int64 place = lattice.place(d, c);
        arc.each_score([&](int k) { visit(words[k * cells + place]); });
        if (arc.then < 0) return;
        const int64 aside = lattice.place(d + arc.labels, lattice.flipped() ? c : c + arc.labels);
        visit(words[arc.then * cells + aside]);
    }
    template <typename N, typename A>
    __device__ N weight(const Lattice& lattice, int d, int c, A arc, N weight) const {
        each(lattice, d, c, arc, [&](double word) { weight = weight * N::of_word(word); });
        return weight;
    }
};

// Whether all that the arcs of a cell read is among the `exact` ones; all cells are if it is null.
template <typename T>
__device__ bool is_inside(const Lattice& lattice, const bool* exact, int d, int c) {
    if (!exact) return true;
    if (!exact[lattice.place(d, c)]) return false;
    if (T::aside == 0 || d - lattice.frame_of(d, c) + T::aside >= lattice.positions) return true;
    return exact[lattice.place(d + T::aside, lattice.flipped() ? c : c + T::aside)];
}

// The values of the last diagonals of a sweep, 0 at first.
template <typename T, typename N> struct Diagonals {
    static constexpr int kCount = T::reach + 1;
    double* mantissas;
    int columns;

    __device__ int* exponents() const { return reinterpret_cast<int*>(mantissas + kCount * columns); }
    // Of a cell, or of another one if there is no such column.
    __device__ N get(int d, int c) const {
        const int at = d % kCount * columns + min(max(c, 0), columns - 1);
        return N::load(mantissas + at, exponents() + at);
    }
    __device__ void set(int d, int c, N value) const {
        const int at = d % kCount * columns + c;
        value.store(mantissas + at, exponents() + at);
    }
    __device__ void clear() const {
        for (int i = threadIdx.x; i < kCount * columns; i += blockDim.x)
            N::zero().store(mantissas + i, exponents() + i);
        __syncthreads();
    }
};

// What a cell needs of memory: the words of all arcs that lead to it or from it, 0 of those that do
// not exist; whether there is such a cell, and whether it passes anything on.
template <typename T> struct Fetched {
    double words[T::reads];
    bool exists, passes;
};

// Reads a cell of a diagonal for a sweep. Nothing here branches on the cell: where there is none, or
// an arc does not exist, the first cell is read, and its word replaced by 0.
template <typename T> struct Fetch {
    Lattice lattice;
    Words words;
    const bool* exact;

    __device__ bool is_exact(bool exists, int d, int c) const {
        return exact[exists ? lattice.place(d, c) : lattice.first];
    }
    // `arc_exists(arc, frame, position)` says whether an arc of the cell does. Arcs that lead to the
    // cell, if `leads_here` is set, read other cells, where they come from.
    template <typename Exists>
    __device__ Fetched<T> operator()(int d, int c, bool leads_here, Exists arc_exists) const {
        Fetched<T> fetched;
        const int frame = lattice.frame_of(d, c), position = d - frame;
        fetched.exists = lattice.has(frame, position);
        fetched.passes = true;
        if (exact) {
            fetched.passes = is_exact(fetched.exists, d, c);
            if (T::aside) {
                const bool aside = fetched.exists && position + T::aside < lattice.positions;
                const int column = lattice.flipped() ? c : c + T::aside;
                const bool exact_aside = is_exact(aside, d + T::aside, column);
                fetched.passes = fetched.passes && (exact_aside || !aside);
            }
        }
        int i = 0;
        T::each([&](auto arc) {
            const bool exists = fetched.exists && arc_exists(arc, frame, position);
            const int from = leads_here ? d - arc.ahead : d;
            const int column = leads_here ? c - lattice.shift(arc) : c;
            const int64 place = exists ? lattice.place(from, column) : lattice.first;
            arc.each_score([&](int k) {
                const double word = words.words[k * words.cells + place];
                fetched.words[i++] = exists ? word : 0;
            });
            if (arc.then >= 0) {
                const int aside = lattice.flipped() ? column : column + arc.labels;
                const int64 there = exists ? lattice.place(from + arc.labels, aside) : lattice.first;
                const double word = words.words[arc.then * words.cells + there];
                fetched.words[i++] = exists ? word : 0;
            }
        });
        return fetched;
    }
};

// Calls step(n, c, fetch(n, c)) for every column of the n-th diagonal, n = 0, 1, ... If ONE is set,
// a thread has one column, whose words it fetches some diagonals ahead.
template <typename T, bool ONE, typename Fetch, typename Step>
__device__ void each_diagonal(const Lattice& lattice, Fetch fetch, Step step) {
    constexpr int kAhead = !ONE ? 1 : T::reads <= 3 ? 4 : T::reads <= 6 ? 2 : 1;
    const int diagonals = lattice.diagonals(), columns = lattice.columns(), own = threadIdx.x;
    Fetched<T> ahead[kAhead];
    if constexpr (ONE)
#pragma unroll
        for (int k = 0; k < kAhead; ++k) ahead[k] = fetch(k, own);
    for (int first = 0; first < diagonals; first += kAhead) {
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
            const int n = first + k;
            if (n >= diagonals) break;
            if constexpr (ONE) {
                const Fetched<T> fetched = ahead[k];
                ahead[k] = fetch(n + kAhead, own);
                if (own < columns) step(n, own, fetched);
            } else {
                for (int c = own; c < columns; c += blockDim.x) step(n, c, fetch(n, c));
            }
            __syncthreads();
        }
    }
}

// The product of a value and the words of an arc.
template <typename N, typename A>
__device__ N passed_on(N value, const double* words, A arc) {
    for (int k = 0; k < arc.reads; ++k) value = value * N::of_word(words[k]);
    return value;
}

// Sums over the paths from the first cell. `keep(d, c, value)` gets the sum over the paths to each
// cell, which passes it on if it is inside C. Returns the sum over all paths to the end.
template <typename T, typename N, typename Keep>
__device__ N sweep_forward(const Fetch<T>& from, const Diagonals<T, N>& kept, Keep keep) {
    const Lattice lattice = from.lattice;
    const auto fetch = [&](int d, int c) {
        return from(d, c, true, [](auto arc, int frame, int position) {
            return frame >= arc.frames && position >= arc.labels;
        });
    };
    each_diagonal<T, N::kOneColumn>(lattice, fetch, [&](int d, int c, const Fetched<T>& fetched) {
        N terms[T::arcs];
        int i = 0, j = 0;
        T::each([&](auto arc) {
            const N value = kept.get(d + kept.kCount - arc.ahead, c - lattice.shift(arc));
            terms[i++] = passed_on(value, fetched.words + j, arc);
            j += arc.reads;
        });
        const N value = d + c == 0 ? N::one() : N::sum(terms);
        if (fetched.exists) keep(d, c, value);
        kept.set(d, c, fetched.passes ? value : N::zero());
    });
    N ends[T::arcs];
    int i = 0;
    T::each([&](auto arc) {
        ends[i] = N::zero();
        if (arc.ends && arc.frames && lattice.frames >= arc.frames && lattice.positions > arc.labels) {
            const int d = lattice.diagonals() - arc.ahead;
            const int c = lattice.end_column() - lattice.shift(arc);
            ends[i] = from.words.weight(lattice, d, c, arc, kept.get(d, c));
        }
        ++i;
    });
    return N::sum(ends);
}

// The value behind an arc: of(d, c) of the cell that it leads to, 1 if it leads to the end and may
// end a path, else 0.
template <typename N, typename A, typename Of>
__device__ N behind(const Lattice& lattice, int d, int c, A arc, Of of) {
    const int frame = lattice.frame_of(d, c) + arc.frames, position = d + arc.ahead - frame;
    if (frame == lattice.frames && position == lattice.positions - 1)
        return arc.ends ? N::one() : N::zero();
    if (frame >= lattice.frames || position >= lattice.positions) return N::zero();
    return of(d + arc.ahead, c + lattice.shift(arc));
}

// Sums over the paths to the end. With `upper`, the sum over the paths from a cell is at most
// `most_mass` times the largest of the values behind its arcs, with what `penalty` adds to labels.
// `keep(d, c, value)` gets the value of each cell, which is 0 outside C. Returns that of the first
// cell.
template <typename T, typename N, typename Keep>
__device__ N sweep_backward(const Fetch<T>& from, const Diagonals<T, N>& kept, bool upper,
                            double most_mass, double penalty, Keep keep) {
    const Lattice lattice = from.lattice;
    const int diagonals = lattice.diagonals();
    const auto fetch = [&](int n, int c) {
        return from(diagonals - 1 - n, c, false, [&](auto arc, int frame, int position) {
            const int later = frame + arc.frames, next = position + arc.labels;
            const bool ends = later == lattice.frames && next == lattice.positions - 1;
            return ends ? arc.ends : lattice.has(later, next);
        });
    };
    each_diagonal<T, N::kOneColumn>(lattice, fetch, [&](int n, int c, const Fetched<T>& fetched) {
        const int d = diagonals - 1 - n;
        N terms[T::arcs];
        int i = 0, j = 0;
        T::each([&](auto arc) {
            // An arc whose word is not 0 leads to a cell, or behind the last diagonal to the end.
            N value = kept.get(d + arc.ahead, c + lattice.shift(arc));
            if (d + arc.ahead >= diagonals) value = N::one();
            terms[i++] = passed_on(value, fetched.words + j, arc);
            j += arc.reads;
        });
        N value = N::sum(terms);
        if (upper && fetched.exists) {
            N most = N::zero();
            T::each([&](auto arc) {
                N late = behind<N>(lattice, d, c, arc, [&](int row, int column) {
                    return kept.get(row, column);
                });
                if (penalty && arc.labels)
                    late = late.times(N::of_log(lattice.delay(penalty, lattice.frame_of(d, c))));
                if (most < late) most = late;
            });
            most = most.times(N::of_word(most_mass));
            if (most < value) value = most;
        }
        if (!fetched.passes) value = N::zero();
        if (fetched.exists) keep(d, c, value);
        kept.set(d, c, value);
    });
    return kept.get(0, 0);
}
