// The likeliest path of each sample: sweeps with the maximum in the place of the sum over paths, and
// the path itself. Scores are kept as they are (see lattice_write), so that sums are those of NumPy,
// bit for bit.

#include "lattice.cuh"

// A log-prob, as the number type of words and arcs; a word is a score.
struct Score {
    double value;
    static __device__ Score zero() { return {-infinity()}; }
    static __device__ Score one() { return {0}; }
    static __device__ Score of_word(double word) { return {word}; }
    __device__ Score operator*(Score other) const { return {value + other.value}; }
};

// The log-prob of an arc of a cell plus the log beta where it leads to; -inf of an arc that leads
// nowhere, whose scores may not exist.
template <typename A>
__device__ double onward(const Lattice& lattice, const Words& scores, const double* beta, int d,
                         int c, A arc) {
    const Score after = behind<Score>(lattice, d, c, arc, [&](int row, int column) {
        return Score{beta[lattice.place(row, column)]};
    });
    if (after.value == -infinity()) return after.value;
    return (scores.weight(lattice, d, c, arc, Score::one()) * after).value;
}

// The log-prob of the likeliest path that leads to a cell.
template <typename T>
__device__ double best_before(const Lattice& lattice, const Words& scores, const double* alpha, int d,
                              int c) {
    const int frame = lattice.frame_of(d, c), position = d - frame;
    double best = d == 0 ? 0 : -infinity();
    T::each([&](auto arc) {
        if (frame < arc.frames || position < arc.labels) return;
        const int from = d - arc.ahead, column = c - lattice.shift(arc);
        const Score before{alpha[lattice.place(from, column)]};
        const double sum = (scores.weight(lattice, from, column, arc, Score::one()) * before).value;
        best = sum > best ? sum : best;
    });
    return best;
}

// The log-probs of the likeliest paths that lead to each cell (way 1), and from each cell to the end:
// inside C (way 0) and of all (way 3), in the ways of which `ways` has a bit each, to arrays by
// place. `totals`, (4, samples), gets those of the whole samples of the last two.
//
// Grid: a block a sample and way, a thread a column or several. Moves 8 (K + arcs) bytes a cell and
// way in, and 8 out.
template <typename T>
__global__ void __launch_bounds__(256, 1)
best_sweep(int64 sweeps, int ways, const int64* table, int64 count,
           const double* words, int64 cells, const bool* exact, double* inside, double* alpha,
           double* beta, double* totals) {
    const Samples samples{table, count};
    for (int64 i = first_item(256); i < sweeps; i += item_stride(256)) {
        const int64 sample = i % count;
        const int way = way_of(i / count, ways);
        const Lattice lattice = lattice_of(samples, sample);
        const Words scores{words, cells};
        double* const out = way == 0 ? inside : way == 1 ? alpha : beta;
        const int diagonals = lattice.diagonals();
        for (int n = 0; n < diagonals; ++n) {
            const int d = way == 1 ? n : diagonals - 1 - n;
            for (int c = threadIdx.x; c < lattice.columns(); c += 256) {
                if (!lattice.has(lattice.frame_of(d, c), d - lattice.frame_of(d, c))) continue;
                double best = -infinity();
                if (way == 1) {
                    best = best_before<T>(lattice, scores, out, d, c);
                } else if (way == 3 || is_inside<T>(lattice, exact, d, c)) {
                    T::each([&](auto arc) {
                        const double sum = onward(lattice, scores, out, d, c, arc);
                        best = sum > best ? sum : best;
                    });
                }
                out[lattice.place(d, c)] = best;
                if (way != 1 && d == 0) totals[way * count + sample] = best;
            }
            __syncthreads();
        }
    }
}

// Follows the likeliest path of each sample, by the log beta of all paths: at each cell the first of
// the arcs with the largest sum. Writes the frame of each label, and the frames of its arc, to rows
// of `labels`, -1 behind the last label; whether all cells of the path are inside C; and minus its
// log-prob, inf where `narrow` is set and a float cannot hold it. A sample that has no path or is
// poisoned has no labels and is proven, and costs inf or NaN.
//
// Grid: a thread a sample. Moves 8 (K + arcs) bytes in that lie apart for each arc of the path, and
// 16 out for each label.
template <typename T>
__global__ void __launch_bounds__(256, 4)
best_path(const int64* table, int64 count, const int* flags, const double* words,
          int64 cells, const bool* exact, const double* beta, const double* totals, int64 labels,
          int64* frames, int64* durations, bool* proven, double* costs, bool narrow) {
    const Samples samples{table, count};
    for (int64 sample = first_item(1); sample < count; sample += item_stride(1)) {
        const Lattice lattice = lattice_of(samples, sample);
        const double cost = -totals[3 * count + sample];
        const float reported = cost;
        const bool fits = !narrow || fabs(reported) < infinity(), bad = flags[sample] & kPoisoned;
        costs[sample] = bad ? nan("") : fits ? cost : reported;
        bool inside = true, ends = bad || cost == infinity();
        for (int64 u = 0; u < labels; ++u)
            frames[sample * labels + u] = durations[sample * labels + u] = -1;
        for (int frame = 0, position = 0; !ends && frame < lattice.frames;) {
            const int d = frame + position, c = lattice.flipped() ? frame : position;
            inside = inside && is_inside<T>(lattice, exact, d, c);
            double best = -infinity();
            int later = 0, emitted = 0;
            T::each([&](auto arc) {
                const double sum = onward(lattice, Words{words, cells}, beta, d, c, arc);
                if (!(sum > best)) return;
                best = sum;
                later = arc.frames;
                emitted = arc.labels;
            });
            if (emitted) {
                frames[sample * labels + position] = frame;
                durations[sample * labels + position] = later;
            }
            ends = best == -infinity();  // never: beta says that there is a path
            frame += later;
            position += emitted;
        }
        proven[sample] = inside;
    }
}
