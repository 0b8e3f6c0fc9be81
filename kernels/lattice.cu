// The lattices of a group of samples: costs and occupancies (Graves 2012, arXiv 1211.3711, equations
// 16 to 20, for any arcs), and upper bounds of the same. How they lie in memory is said in
// lattice.cuh, and how numbers are kept in wide.cuh.

#include "lattice.cuh"

// Stores log-sum-exps (G, n) of cells, by their packed indices, and their scores (K, n).
//
// Grid: a thread a cell. Moves 8 + 8 (G + K) bytes a cell in, and 8 (G + K) out, K of which lie
// apart.
__global__ void __launch_bounds__(256, 4)
lattice_write(int64 rows, const int64* table, int64 count, const int64* packed,
              const double* lse, int heads, const double* scores, int kinds, int label, int factors,
              double delay_penalty, int64 cells, double* lses, double* words, bool* exact,
              int* flags) {
    const Samples samples{table, count};
    const int64 first = samples.at(kCell, 0);
    const LatticeScores to{kinds, label, factors, delay_penalty, cells, words, exact, flags};
    for (int64 i = first_item(1); i < rows; i += item_stride(1)) {
        const int64 cell = packed[i] - first, sample = samples.with(kCell, packed[i]);
        const Lattice lattice = lattice_of(samples, sample, first);
        for (int g = 0; g < heads; ++g) lses[g * cells + cell] = lse[g * rows + i];
        const int64 within = cell - lattice.first;
        to.write(sample, lattice, within / lattice.positions, within % lattice.positions,
                 [&](int k) { return scores[k * rows + i]; });
    }
}

// Stores the upper bounds of all scores, (K, cells), given in packed order, in the same form.
//
// Grid: a thread a cell. Moves 8 K bytes a cell in, and 8 K out that lie apart.
__global__ void __launch_bounds__(256, 4)
lattice_bound(int64 cells, const int64* table, int64 count, const double* bounds, int kinds,
              int label, int factors, double delay_penalty, double* words, int* flags) {
    const Samples samples{table, count};
    const int64 first = samples.at(kCell, 0);
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const int64 sample = samples.with(kCell, i + first);
        const Lattice lattice = lattice_of(samples, sample, first);
        const int64 place = lattice.place_of_packed(i);
        const double delay = lattice.delay(delay_penalty, (i - lattice.first) / lattice.positions);
        const double most = lattice.largest_log(factors);
        for (int k = 0; k < kinds; ++k) {
            const double bound = __dadd_rn(bounds[k * cells + i], k == label ? delay : 0);
            if (bound > -infinity() && (fabs(bound) > most || fabs(delay) > most))
                atomicOr(flags + sample, kBeyondWide);
            words[k * cells + place] = factors < 0 ? bound : word_of(bound);
        }
    }
}

// Leaves out the cells of each frame outside positions `begin` to `stop` - 1, (samples,
// `most_frames`) each: their words become 0, and they count as `exact`, unless that is null.
// `left_out` says of every cell whether it is one of them, by place.
//
// Grid: a thread a cell. Moves 16 bytes a frame in, and a byte a cell out that lies apart, and of the
// cells left out 8 K + 1 more.
__global__ void __launch_bounds__(256, 4)
lattice_leave_out(int64 cells, const int64* table, int64 count, const int64* begin,
                  const int64* stop, int64 most_frames, double* words, int64 kinds, bool* left_out,
                  bool* exact) {
    const Samples samples{table, count};
    const int64 first = samples.at(kCell, 0);
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const int64 sample = samples.with(kCell, i + first);
        const Lattice lattice = lattice_of(samples, sample, first);
        const int64 within = i - lattice.first, position = within % lattice.positions;
        const int64 frame = sample * most_frames + within / lattice.positions;
        const int64 place = lattice.place_of_packed(i);
        const bool out = position < begin[frame] || position >= stop[frame];
        left_out[place] = out;
        if (!out) continue;
        for (int64 k = 0; k < kinds; ++k) words[k * cells + place] = word_of(-infinity());
        if (exact) exact[place] = true;
    }
}

// What a sweep computes: sums over the paths to each cell or from each cell, inside C or of all
// paths. Where cells hold bounds, the latter are upper bounds.
enum Sweep { kBeta, kUpperAlpha, kAlpha, kUpperBeta };

// Returns the logarithm of the sum over all paths. The sums of cells go to `out` as packed numbers,
// by place, unless it is null. The probabilities of the arcs of a cell add up to at most `most_mass`,
// apart from the delay penalty: the largest beta behind an arc limits upper beta.
template <typename T, typename N>
__device__ double swept(Sweep sweep, const Fetch<T>& from, double* memory, double delay_penalty,
                        double most_mass, int64* out) {
    const Lattice lattice = from.lattice;
    const Diagonals<T, N> kept{memory, lattice.columns()};
    kept.clear();
    const auto keep = [&](int d, int c, N value) {
        if (out) out[lattice.place(d, c)] = value.packed();
    };
    if (sweep == kAlpha || sweep == kUpperAlpha) return sweep_forward(from, kept, keep).log();
    const bool upper = sweep == kUpperBeta;
    return sweep_backward(from, kept, upper, most_mass, delay_penalty, keep).log();
}

// Sweeps over the samples in up to four ways at once: those of `ways`, a bit each. `alpha` and so on
// get the sums of cells, unless they are null. The logarithm of the sum over all paths is written to
// `totals`, (4, samples); that of alpha gives `costs`, inf where `narrow` is set and a float cannot
// hold them. A sample that is poisoned costs NaN. The last diagonals of a sample are in shared
// memory, or in `spare`, `stride` words for each way.
//
// Grid: a block a sample and way. Moves 8 K bytes a cell and way in, and 8 out if they are kept.
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
lattice_sweep(int64 sweeps, int ways, const int64* table, int64 count, int most_columns,
              const double* words, int64 cells, const bool* exact, const int* flags,
              double delay_penalty, double most_mass, double* spare, int64 stride, int64* beta,
              int64* upper_alpha, int64* alpha, int64* upper_beta, double* totals, double* costs,
              bool narrow) {
    extern __shared__ double shared[];
    const Samples samples{table, count};
    for (int64 i = first_item(THREADS); i < sweeps; i += item_stride(THREADS)) {
        const int64 sample = i % count;
        const int way = way_of(i / count, ways);
        const Sweep sweep = Sweep(way);
        const bool upper = sweep == kUpperAlpha || sweep == kUpperBeta;
        const Lattice lattice = lattice_of(samples, sample);
        const Fetch<T> from{lattice, {words, cells}, upper ? nullptr : exact};
        int64* const out = way == kAlpha        ? alpha
                           : way == kBeta       ? beta
                           : way == kUpperAlpha ? upper_alpha
                                                : upper_beta;
        __syncthreads();  // the sweep before has been read
        double total;
        if (in_log(lattice, flags[sample], most_columns)) {
            double* memory = shared;
            if (lattice.columns() > most_columns)
                memory = spare + i / count * stride + samples.before(kColumn, sample) * kSpareWords<T>;
            total = swept<T, Log>(sweep, from, memory, delay_penalty, most_mass, out);
        } else {
            total = swept<T, Wide>(sweep, from, shared, delay_penalty, most_mass, out);
        }
        if (threadIdx.x) continue;
        totals[way * count + sample] = total;
        if (way != kAlpha) continue;
        const float reported = -total;
        const bool fits = !narrow || fabs(reported) < infinity();
        costs[sample] = flags[sample] & kPoisoned ? nan("") : fits ? -total : reported;
    }
}
