// The lattices of a group of samples, in float64: costs and occupancies (Graves 2012, arXiv
// 1211.3711, equations 16 to 20). How they lie in memory is said in lattice.cuh.

#include "lattice.cuh"

// Stores log-probs of cells. A NaN or +inf poisons the sample, and counts as -inf.
//
// Grid: a thread a cell. Moves 40 bytes a cell in, and 16 out that lie apart.
__global__ void __launch_bounds__(256)
lattice_write(int64 cells, const Lattice* lattices, const int64* sample, const int64* frame,
              const int64* position, const double* of_blank, const double* of_label,
              double* blank, double* label, bool* exact, int* poisoned) {
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const Lattice lattice = lattices[sample[i]];
        const int64 place = lattice.place_of(frame[i], position[i]);
        const bool has_label = position[i] + 1 < lattice.positions;
        const double b = of_blank[i], l = has_label ? of_label[i] : -infinity();
        const bool good = b < infinity() && l < infinity();
        if (!good) atomicOr(poisoned + sample[i], 1);
        blank[place] = good ? b : -infinity();
        label[place] = good ? l : -infinity();
        if (exact) exact[place] = true;
    }
}

// Sweeps log alpha forward, which gives the costs, and log beta backward, both at the same time. If
// there is `exact`, only the cells that it marks are there. Diagonals that are null are not kept.
//
// Grid: a block a sample and direction, first all that go forward. Moves 16 bytes a cell and
// direction in, and 8 out if they are kept.
template <int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
lattice_sweep(int64 sweeps, const Lattice* lattices, const double* blank, const double* label,
              int room, int64 samples, const bool* exact, const int* poisoned, double* alpha,
              double* beta, double* costs) {
    extern __shared__ double shared[];
    for (int64 i = first_item(THREADS); i < sweeps; i += item_stride(THREADS)) {
        const int64 sample = i < samples ? i : i - samples;
        const Lattice lattice = lattices[sample];
        double* all = i < samples ? alpha : beta;
        const auto keep = [&](int d, int c, double value) {
            const int64 place = lattice.place(d, c);
            if (exact && !exact[place]) value = -infinity();
            if (all) all[place] = value;
            return value;
        };
        const Diagonals kept{lattice, shared, all, room};
        __syncthreads();  // the sweep before has been read
        if (i < samples) {
            const double last = sweep_forward(kept, blank, label, keep);
            const double cost = -(last + blank[lattice.last_place()]);
            if (threadIdx.x == 0) costs[sample] = poisoned[sample] ? nan("") : cost;
        } else {
            sweep_backward(kept, blank, label, [&](int d, int c, double value, double) {
                return keep(d, c, value);
            });
        }
    }
}

// Overwrites log-probs by occupancies: exp(alpha + log-prob + beta where it leads to + cost), or 0
// if the cost is not finite.
//
// Grid: a thread a cell. Moves 32 bytes a cell in and 16 out.
__global__ void __launch_bounds__(256)
lattice_occupancies(int64 cells, int64 samples, const Lattice* lattices, const double* alpha,
                    const double* beta, const double* costs, double* blank, double* label) {
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const Lattice& found = entry_of(i, lattices, samples);
        const Lattice lattice = found;
        const int row = (i - lattice.first) / lattice.columns();
        const int c = (i - lattice.first) % lattice.columns();
        const int d = row < c ? row + lattice.rows() : row;
        const bool stays = d + 1 - c < lattice.rows(), steps = c + 1 < lattice.columns();
        const double stay = stays ? beta[lattice.place(d + 1, c)] : -infinity();
        const double step = steps ? beta[lattice.place(d + 1, c + 1)] : -infinity();
        const double behind_blank = stays || steps ? lattice.flipped() ? step : stay : 0;
        const double behind_label = lattice.flipped() ? stay : step;
        const double cost = costs[&found - lattices];
        const double before = isfinite(cost) ? alpha[i] + cost : -infinity();
        blank[i] = exp(before + blank[i] + behind_blank);
        label[i] = exp(before + label[i] + behind_label);
    }
}

// Puts occupancies in packed order.
//
// Grid: a thread a cell. Moves 16 bytes a cell in that lie apart, and 16 out.
__global__ void __launch_bounds__(256)
lattice_unwrap(int64 cells, int64 samples, const Lattice* lattices, const double* blank,
               const double* label, double* packed_blank, double* packed_label) {
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const Lattice lattice = entry_of(i, lattices, samples);
        const int64 place = lattice.place_of_packed(i);
        packed_blank[i] = blank[place];
        packed_label[i] = label[place];
    }
}
