// Lattices that hold exact log-probs in some cells, the set C, and upper bounds in the others: a
// bound of the paths that leave C, and the cells outside C that can matter. For the method see
// cupy_rnnt/ops/numpy/bounded.py, for the place of cells in memory lattice.cuh.

#include "lattice.cuh"

// Stores the bounds of all scores, (K, cells), given in packed order.
//
// Grid: a thread a cell. Moves 8 K bytes a cell in, and 8 K out that lie apart.
__global__ void __launch_bounds__(256, 4)
bounded_wrap(int64 cells, int64 samples, const Lattice* lattices, const double* bounds, int kinds,
             int label, double delay_penalty, double* stored) {
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const Lattice lattice = entry_of(i, lattices, samples);
        const int64 place = lattice.place_of_packed(i);
        for (int k = 0; k < kinds; ++k) {
            double bound = bounds[k * cells + i];
            if (k == label && delay_penalty)
                bound += lattice.delay(delay_penalty, (i - lattice.first) / lattice.positions);
            stored[k * cells + place] = bound;
        }
    }
}

// Sweeps upper bounds of log beta backward. The probabilities of the arcs of a cell add up to at most
// exp(most_mass), apart from the delay penalty: the largest beta behind an arc caps the sum.
//
// Grid: a block a sample. Moves 8 K bytes a cell in and 8 out.
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
bounded_beta(int64 samples, const Lattice* lattices, const double* stored, int64 cells, int room,
             double delay_penalty, double most_mass, double* upper_beta) {
    extern __shared__ double shared[];
    const Scores scores{stored, cells};
    for (int64 i = first_item(THREADS); i < samples; i += item_stride(THREADS)) {
        const Lattice lattice = lattices[i];
        const Diagonals<T> kept{lattice, shared, upper_beta, room};
        const auto delay = [&](int d, int c) {
            return delay_penalty ? lattice.delay(delay_penalty, lattice.frame_of(d, c)) : 0;
        };
        __syncthreads();  // the sweep before has been read
        sweep_backward(kept, scores, delay, [&](int d, int c, double value, double most) {
            return upper_beta[lattice.place(d, c)] = fmin(value, most + most_mass);
        });
    }
}

// The log-probability of the paths inside C, and a bound of that of the paths that leave C: the sum
// over the cells where paths first step out of C of alpha times the upper bound of beta. Its terms
// are shares of the upper bound of all paths, so none is above 1; the least double for every cell
// makes up for terms that underflow.
//
// Grid: a block a sample. Moves 8 K + 9 bytes a cell in.
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
bounded_leaving(int64 samples, const Lattice* lattices, const double* stored, int64 cells, int room,
                const bool* exact, const double* upper_beta, double* alpha, double* inside,
                double* leaving) {
    constexpr double least = 2.2250738585072014e-308;
    extern __shared__ double shared[];
    const Scores scores{stored, cells};
    for (int64 i = first_item(THREADS); i < samples; i += item_stride(THREADS)) {
        const Lattice lattice = lattices[i];
        const Diagonals<T> kept{lattice, shared, alpha, room};
        const double bound = upper_beta[lattice.first], base = bound > -infinity() ? bound : 0;
        Sum<double> mass{0};
        __syncthreads();  // the sweep before has been read
        const double log_prob = sweep_forward(kept, scores, [&](int d, int c, double value) {
            if (is_inside<T>(lattice, exact, d, c)) return value;
            mass.value += exp(value + upper_beta[lattice.place(d, c)] - base);
            return -infinity();
        });
        mass = total<THREADS>(mass);
        if (threadIdx.x == 0) {
            const double all = static_cast<double>(lattice.frames) * lattice.positions;
            inside[i] = log_prob;
            leaving[i] = log(mass.value + all * least) + base;
        }
    }
}

// Marks, in packed order, the cells outside C where the upper bound of alpha + beta reaches the
// threshold of the sample, and the cells outside C that arcs of such cells read.
//
// Grid: a block a sample. Moves 8 K + 9 bytes a cell in, and 1 out that lies apart.
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
bounded_likely(int64 samples, const Lattice* lattices, const double* stored, int64 cells, int room,
               const bool* exact, const double* upper_beta, const double* thresholds, double* alpha,
               bool* likely) {
    extern __shared__ double shared[];
    const Scores scores{stored, cells};
    for (int64 i = first_item(THREADS); i < samples; i += item_stride(THREADS)) {
        const Lattice lattice = lattices[i];
        const Diagonals<T> kept{lattice, shared, alpha, room};
        const double threshold = thresholds[i];
        __syncthreads();  // the sweep before has been read
        sweep_forward(kept, scores, [&](int d, int c, double value) {
            const int64 place = lattice.place(d, c);
            bool reaches = value + upper_beta[place] >= threshold;
            if (T::aside && d - lattice.frame_of(d, c) >= T::aside) {
                const int before = d - T::aside, column = lattice.flipped() ? c : c - T::aside;
                const double through = kept[before][column] + upper_beta[lattice.place(before, column)];
                reaches = reaches || through >= threshold;
            }
            likely[lattice.packed(d, c)] = reaches && !exact[place];
            return value;
        });
    }
}
