// The lattices of a group of samples, in float64: costs and occupancies (Graves 2012, arXiv
// 1211.3711, equations 16 to 20, for any arcs). How they lie in memory is said in lattice.cuh.

#include "lattice.cuh"

// Stores scores (K, n) of cells. A NaN or +inf poisons the sample, and counts as -inf; where there
// is no label to emit, its score is not read. The delay penalty is added to scores of labels.
//
// Grid: a thread a cell. Moves 24 + 8 K bytes a cell in, and 8 K out that lie apart.
__global__ void __launch_bounds__(256)
lattice_write(int64 count, const Lattice* lattices, const int64* sample, const int64* frame,
              const int64* position, const double* scores, int kinds, int label,
              double delay_penalty, int64 cells, double* stored, bool* exact, int* poisoned) {
    for (int64 i = first_item(1); i < count; i += item_stride(1)) {
        const Lattice lattice = lattices[sample[i]];
        const int64 place = lattice.place_of(frame[i], position[i]);
        const bool has_label = position[i] + 1 < lattice.positions;
        bool good = true;
        for (int k = 0; k < kinds; ++k)
            if (k != label || has_label) good = good && scores[k * count + i] < infinity();
        if (!good) atomicOr(poisoned + sample[i], 1);
        for (int k = 0; k < kinds; ++k) {
            const bool absent = !good || (k == label && !has_label);
            double score = absent ? -infinity() : scores[k * count + i];
            if (k == label && delay_penalty) score += lattice.delay(delay_penalty, frame[i]);
            stored[k * cells + place] = score;
        }
        if (exact) exact[place] = true;
    }
}

// Sweeps log alpha forward, which gives the costs, and log beta backward, both at the same time. If
// `exact` is not null, only cells inside C pass values on. A null `alpha` or `beta` is not kept.
//
// Grid: a block a sample and direction, first all that go forward. Moves 8 K bytes a cell and
// direction in, and 8 out if they are kept.
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
lattice_sweep(int64 sweeps, const Lattice* lattices, const double* stored, int64 cells, int room,
              int64 samples, const bool* exact, const int* poisoned, double* alpha, double* beta,
              double* costs) {
    extern __shared__ double shared[];
    const Scores scores{stored, cells};
    for (int64 i = first_item(THREADS); i < sweeps; i += item_stride(THREADS)) {
        const int64 sample = i < samples ? i : i - samples;
        const Lattice lattice = lattices[sample];
        double* all = i < samples ? alpha : beta;
        const auto keep = [&](int d, int c, double value) {
            if (exact && !is_inside<T>(lattice, exact, d, c)) value = -infinity();
            if (all) all[lattice.place(d, c)] = value;
            return value;
        };
        const Diagonals<T> kept{lattice, shared, all, room};
        __syncthreads();  // the sweep before has been read
        if (i < samples) {
            const double cost = -sweep_forward(kept, scores, keep);
            if (threadIdx.x == 0) costs[sample] = poisoned[sample] ? nan("") : cost;
        } else {
            sweep_backward(
                kept, scores, [](int, int) { return 0.0; },
                [&](int d, int c, double value, double) { return keep(d, c, value); });
        }
    }
}

// Marks, in packed order, the cells where alpha + beta + cost reaches `least` of the sample, a
// logarithm, and the cells that arcs of these cells read.
//
// Grid: a thread a cell. Moves 16 bytes a cell in that lie apart, and 1 out.
template <typename T>
__global__ void __launch_bounds__(256)
lattice_keep(int64 cells, int64 samples, const Lattice* lattices, const double* alpha,
             const double* beta, const double* costs, const double* least, bool* keeps) {
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const Lattice& found = entry_of(i, lattices, samples);
        const Lattice lattice = found;
        const int64 sample = &found - lattices, position = (i - lattice.first) % lattice.positions;
        const auto holds = [&](int64 cell) {
            const int64 place = lattice.place_of_packed(cell);
            return alpha[place] + beta[place] >= least[sample] - costs[sample];
        };
        keeps[i] = holds(i) || (T::aside && position >= T::aside && holds(i - T::aside));
    }
}

// Occupancies of the K scores of some cells, given by their numbers in packed order: sums over arcs
// of exp(alpha + weight + beta where it leads to + cost), those that emit a label taken `of_labels`
// times.
//
// Grid: a thread a cell. Moves some 16 (1 + arcs) + 16 K bytes a cell in, and 8 K out.
template <typename T>
__global__ void __launch_bounds__(256, 4)
lattice_occupancies(int64 count, const int64* packed, int64 samples, const Lattice* lattices,
                    const double* stored, int64 cells, const double* alpha, const double* beta,
                    const double* costs, int kinds, double of_labels, double* occupancies) {
    const Scores scores{stored, cells};
    for (int64 i = first_item(1); i < count; i += item_stride(1)) {
        const Lattice& found = entry_of(packed[i], lattices, samples);
        const Lattice lattice = found;
        const double cost = costs[&found - lattices];
        const int64 within = packed[i] - lattice.first;
        const int frame = within / lattice.positions, position = within % lattice.positions;
        for (int k = 0; k < kinds; ++k) occupancies[k * count + i] = 0;
        T::each([&](auto arc) {
            const auto taken = [&](int from) {
                const int d = frame + from, c = lattice.flipped() ? frame : from;
                const double before = alpha[lattice.place(d, c)] + cost;
                const double after = behind(lattice, d, c, arc, [&](int row, int column) {
                    return beta[lattice.place(row, column)];
                });
                if (after == -infinity()) return 0.0;
                const double weight = scores.weight(lattice, d, c, arc);
                return (arc.labels ? of_labels : 1) * exp(before + weight + after);
            };
            const double here = taken(position);
            for (int k = 0; k < kinds; ++k)
                if (arc.adds(k)) occupancies[k * count + i] += here;
            if (arc.then >= 0 && position >= arc.labels)
                occupancies[arc.then * count + i] += taken(position - arc.labels);
        });
    }
}
