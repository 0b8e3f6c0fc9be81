// Lattices that hold exact log-probs in some cells, the set C, and upper bounds in the others: how
// much may lead out of C, and which of the cells outside can matter. The method is that of
// cupy_rnnt/ops/bounded.py; how lattices lie in memory is said in lattice.cuh.

#include "lattice.cuh"

// Stores the bounds of all log-probs, given in packed order.
//
// Grid: a thread a cell. Moves 16 bytes a cell in, and 16 out that lie apart.
__global__ void __launch_bounds__(256)
bounded_wrap(int64 cells, int64 samples, const Lattice* lattices, const double* packed_blank,
             const double* packed_label, double* blank, double* label) {
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const Lattice lattice = entry_of(i, lattices, samples);
        const int64 place = lattice.place_of_packed(i);
        blank[place] = packed_blank[i];
        label[place] = packed_label[i];
    }
}

// Sweeps upper bounds of log beta backward. As exp(blank) + exp(label) <= 1, none is above both of
// those that it is made from.
//
// Grid: a block a sample. Moves 16 bytes a cell in and 8 out.
template <int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
bounded_beta(int64 samples, const Lattice* lattices, const double* blank, const double* label,
             int room, double* upper_beta) {
    extern __shared__ double shared[];
    for (int64 i = first_item(THREADS); i < samples; i += item_stride(THREADS)) {
        const Lattice lattice = lattices[i];
        const Diagonals kept{lattice, shared, upper_beta, room};
        __syncthreads();  // the sweep before has been read
        sweep_backward(kept, blank, label, [&](int d, int c, double value, double most) {
            return upper_beta[lattice.place(d, c)] = fmin(value, most);
        });
    }
}

// The log-probability of the paths inside C, and a bound of that of the others: where a path first
// steps out of C, its alpha times the bound of beta. These are added up as shares of the bound of
// all paths, of which none is above 1; the least number for every cell makes up for those that
// vanish.
//
// Grid: a block a sample. Moves 25 bytes a cell in.
template <int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
bounded_leaving(int64 samples, const Lattice* lattices, const double* blank, const double* label,
                int room, const bool* exact, const double* upper_beta, double* alpha,
                double* inside, double* leaving) {
    constexpr double least = 2.2250738585072014e-308;
    extern __shared__ double shared[];
    for (int64 i = first_item(THREADS); i < samples; i += item_stride(THREADS)) {
        const Lattice lattice = lattices[i];
        const Diagonals kept{lattice, shared, alpha, room};
        const double bound = upper_beta[lattice.first], base = bound > -infinity() ? bound : 0;
        Sum<double> mass{0};
        __syncthreads();  // the sweep before has been read
        const double last = sweep_forward(kept, blank, label, [&](int d, int c, double value) {
            const int64 place = lattice.place(d, c);
            if (exact[place]) return value;
            mass.value += exp(value + upper_beta[place] - base);
            return -infinity();
        });
        mass = total<THREADS>(mass);
        if (threadIdx.x == 0) {
            const double cells = static_cast<double>(lattice.frames) * lattice.positions;
            inside[i] = last + blank[lattice.last_place()];
            leaving[i] = log(mass.value + cells * least) + base;
        }
    }
}

// Marks, in packed order, the cells outside C where bounds of alpha and beta reach a threshold.
//
// Grid: a block a sample. Moves 25 bytes a cell in, and 1 out that lies apart.
template <int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
bounded_likely(int64 samples, const Lattice* lattices, const double* blank, const double* label,
               int room, const bool* exact, const double* upper_beta, const double* thresholds,
               double* alpha, bool* likely) {
    extern __shared__ double shared[];
    for (int64 i = first_item(THREADS); i < samples; i += item_stride(THREADS)) {
        const Lattice lattice = lattices[i];
        const Diagonals kept{lattice, shared, alpha, room};
        const double threshold = thresholds[i];
        __syncthreads();  // the sweep before has been read
        sweep_forward(kept, blank, label, [&](int d, int c, double value) {
            const int64 place = lattice.place(d, c);
            const double through = value + upper_beta[place];
            likely[lattice.packed(d, c)] = !exact[place] && through >= threshold;
            return value;
        });
    }
}
