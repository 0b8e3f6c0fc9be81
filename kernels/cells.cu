// What is read off the sums that sweeps have left, cell by cell: which cells matter, how much the
// paths hold that leave C, and occupancies. Sums are packed numbers, see wide.cuh.

#include "lattice.cuh"

// The logarithm of the product of two sums of a sample.
__device__ inline double log_product(int64 a, int64 b, bool in_log) {
    if (in_log) return (Log::unpacked(a) * Log::unpacked(b)).log();
    return (Wide::unpacked(a) * Wide::unpacked(b)).log();
}

// Marks, in packed order, the cells where the logarithm of alpha beta reaches `least` plus `totals`
// of the sample, and the cells that arcs of these cells read; none of them if it is `exact`. Counts
// the marks of each sample.
//
// Grid: a thread a cell. Moves 17 bytes a cell in that lie apart, and 1 out.
template <typename T>
__global__ void __launch_bounds__(256, 4)
lattice_mark(int64 cells, const int64* table, int64 count, int most_columns, const int* flags,
             const int64* alpha, const int64* beta, const double* least, const double* totals,
             const bool* exact, bool* marks, int64* counts) {
    const Samples samples{table, count};
    const int64 first = samples.at(kCell, 0);
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const int64 sample = samples.with(kCell, i + first);
        const Lattice lattice = lattice_of(samples, sample, first);
        const int64 position = (i - lattice.first) % lattice.positions;
        const double threshold = least[sample] + totals[sample];
        const auto reaches = [&](int64 cell) {
            const int64 place = lattice.place_of_packed(cell);
            const bool logs = in_log(lattice, flags[sample], most_columns);
            return log_product(alpha[place], beta[place], logs) >= threshold;
        };
        const bool mark = !exact[lattice.place_of_packed(i)] &&
                          (reaches(i) || (T::aside && position >= T::aside && reaches(i - T::aside)));
        marks[i] = mark;
        if (mark) {  // the first of the warp's threads that mark cells of the sample counts for all
            const unsigned peers = __match_any_sync(__activemask(), sample);
            if (threadIdx.x % 32 == __ffs(peers) - 1)
                atomicAdd(reinterpret_cast<unsigned long long*>(counts + sample),
                          static_cast<unsigned long long>(__popc(peers)));
        }
    }
}

// Marks, in packed order, the cells of a frame but the least likely, which hold together less than
// `share` for each cell of the frame, and the cells that arcs of marked cells read; no cell that is
// `left_out`. Where the limit of a cell's posterior is, a warp finds by halving it, as NumPy does in
// cupy_rnnt/ops/numpy/sweeps.py. Returns how many cells are marked.
template <typename T, typename N>
__device__ int mark_frame(const Lattice& lattice, int frame, const int64* alpha, const int64* beta,
                          double share, double cost, const bool* left_out, bool* marks) {
    const int lane = threadIdx.x % 32, positions = lattice.positions;
    const bool finite = fabs(cost) < infinity();
    const N inverse = finite ? N::of_log(cost) : N::zero();  // of the sum over all paths
    const auto mass = [&](int position) {
        const int64 place = lattice.place_of(frame, position);
        return (N::unpacked(alpha[place]) * N::unpacked(beta[place]) * inverse).value();
    };
    const auto sum = [&](auto term) {
        Sum<double> part{0};
#pragma unroll 1  // several copies would take too many registers
        for (int position = lane; position < positions; position += 32) part.value += term(position);
        return total<32>(part).value;  // which all lanes have
    };
    const auto is_out = [&](int position) {
        return left_out && left_out[lattice.place_of(frame, position)];
    };
    const double cells = left_out ? sum([&](int p) { return is_out(p) ? 0.0 : 1.0; }) : positions;
    const double least = finite ? share : infinity(), most = least * cells;
    double limit = most;
    const auto smaller = [&](int position) {
        const double of_cell = mass(position);
        return of_cell < limit ? of_cell : 0.0;
    };
    while (limit > least && sum(smaller) >= most) limit = fmax(limit / 2, least);
    Sum<int> count{0};
#pragma unroll 1
    for (int position = lane; position < positions; position += 32) {
        bool mark = false;
#pragma unroll 1
        for (int back = 0; back <= min(position, T::aside); back += max(1, T::aside))
            mark = mark || mass(position - back) >= limit;
        mark = mark && !is_out(position);
        marks[lattice.first + static_cast<int64>(frame) * positions + position] = mark;
        count.value += mark;
    }
    return total<32>(count).value;
}

// The cells to keep, as above, and how many each sample has; none if its cost is not finite. No
// sample has more frames than `longest`.
//
// Grid: a warp a frame. Moves 16 bytes a cell in that lie apart, and 1 out. It asks for the 16 bytes
// twice, and once more for each time that it halves a limit.
template <typename T>
__global__ void __launch_bounds__(256, 4)
lattice_keep(int64 longest, const int64* table, int64 count, int most_columns, const int* flags,
             const int64* alpha, const int64* beta, const double* shares, const double* costs,
             const bool* left_out, bool* marks, int64* counts) {
    const Samples samples{table, count};
    for (int64 i = first_item(32); i < count * longest; i += item_stride(32)) {
        const int64 sample = i / longest;
        const int frame = i % longest;
        const Lattice lattice = lattice_of(samples, sample);
        if (frame >= lattice.frames) continue;
        const auto mark = [&](auto number) {
            return mark_frame<T, decltype(number)>(lattice, frame, alpha, beta, shares[sample],
                                                   costs[sample], left_out, marks);
        };
        const int marked = in_log(lattice, flags[sample], most_columns) ? mark(Log{}) : mark(Wide{});
        if (threadIdx.x % 32 == 0)
            atomicAdd(reinterpret_cast<unsigned long long*>(counts + sample),
                      static_cast<unsigned long long>(marked));
    }
}

// Marks all cells of some samples that are not `exact`, too.
//
// Grid: a thread a cell. Moves a byte a cell of all samples, and of the chosen ones one that lies
// apart.
__global__ void __launch_bounds__(256, 4)
lattice_complete(int64 cells, const int64* table, int64 count, const bool* chosen,
                 const bool* exact, bool* marks) {
    const Samples samples{table, count};
    const int64 first = samples.at(kCell, 0);
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        const int64 sample = samples.with(kCell, i + first);
        const Lattice lattice = lattice_of(samples, sample, first);
        if (chosen[sample]) marks[i] = !exact[lattice.place_of_packed(i)];
    }
}

// Bounds of what the paths hold that leave C, as shares of the upper bound of all paths: the sum over
// the cells where paths first step out of C of alpha times the upper bound of beta, in `parts` parts
// of a sample, each of a run of its cells.
//
// Grid: a block a part. Moves 9 bytes a cell in, and 8 more where a path may step out.
template <typename T>
__global__ void __launch_bounds__(256, 4)
lattice_leaving(int64 parts, const int64* table, int64 count, int most_columns, const int* flags,
                const bool* exact, const int64* alpha, const int64* upper_beta,
                const double* totals, double* shares) {
    const Samples samples{table, count};
    for (int64 i = first_item(256); i < count * parts; i += item_stride(256)) {
        const int64 sample = i / parts, part = i % parts;
        const Lattice lattice = lattice_of(samples, sample);
        const int64 cells = static_cast<int64>(lattice.frames) * lattice.positions;
        const double bound = totals[sample], base = bound > -infinity() ? bound : 0;
        const bool logs = in_log(lattice, flags[sample], most_columns);
        Sum<double> share{0};
        const int64 end = cells * (part + 1) / parts;
        for (int64 cell = cells * part / parts + threadIdx.x; cell < end; cell += 256) {
            const int frame = cell / lattice.positions, position = cell % lattice.positions;
            const int d = frame + position, c = lattice.flipped() ? frame : position;
            if (is_inside<T>(lattice, exact, d, c)) continue;
            const int64 place = lattice.place(d, c);
            share.value += exp(log_product(alpha[place], upper_beta[place], logs) - base);
        }
        share = total<256>(share);
        if (threadIdx.x == 0) shares[i] = share.value;
    }
}

// Log-sum-exps (G, n) and occupancies (K, n) of some cells, given by their numbers in the batch. An
// occupancy is the sum over arcs of alpha times their weight times beta where they lead to, divided
// by the sum over all paths; of arcs that emit a label `of_labels` times. Below `least` it counts as
// 0.
//
// Grid: a thread a cell. Moves some 16 (1 + arcs) + 16 K + 8 G bytes a cell in, and 8 G + K sizeof(C)
// out.
template <typename T, typename N, typename C>
__device__ void write_occupancies(const Lattice& lattice, int64 cell, const Words& words,
                                  const int64* alpha, const int64* beta, double cost,
                                  double of_labels, double least, int64 stride, C* occupancies) {
    const int frame = cell / lattice.positions, position = cell % lattice.positions;
    double sums[T::scores] = {};
    T::each([&](auto arc) {
        const auto taken = [&](int from) {
            const int d = frame + from, c = lattice.flipped() ? frame : from;
            const N after = behind<N>(lattice, d, c, arc, [&](int row, int column) {
                return N::unpacked(beta[lattice.place(row, column)]);
            });
            // Where an arc leads nowhere, there may be nothing to read beside it. Alpha is that of
            // paths that step into a cell outside C, too, but beta is 0 there.
            const int64 place = lattice.place(d, c);
            if (after.is_zero() || N::unpacked(beta[place]).is_zero()) return 0.0;
            const N before = N::unpacked(alpha[place]);
            const double share = words.weight(lattice, d, c, arc, before * after).log() + cost;
            return (arc.labels ? of_labels : 1) * exp(share);
        };
        const double here = taken(position);
        for (int k = 0; k < T::scores; ++k)
            if (arc.adds(k)) sums[k] += here;
        if (arc.then >= 0 && position >= arc.labels) sums[arc.then] += taken(position - arc.labels);
    });
    for (int k = 0; k < T::scores; ++k) occupancies[k * stride] = sums[k] < least ? 0 : sums[k];
}

template <typename T, typename C>
__global__ void __launch_bounds__(256, 2)
lattice_posteriors(int64 rows, const int64* packed, const int64* table, int64 count,
                   int most_columns, const int* flags, const double* words, int64 cells,
                   const int64* alpha, const int64* beta, const double* costs, double of_labels,
                   double least, const double* lses, int heads, double* lse, C* occupancies) {
    const Samples samples{table, count};
    const int64 first = samples.at(kCell, 0);
    for (int64 i = first_item(1); i < rows; i += item_stride(1)) {
        const int64 cell = packed[i] - first, sample = samples.with(kCell, packed[i]);
        const Lattice lattice = lattice_of(samples, sample, first);
        for (int g = 0; g < heads; ++g) lse[g * rows + i] = lses[g * cells + cell];
        const auto write = [&](auto number) {
            write_occupancies<T, decltype(number)>(lattice, cell - lattice.first, {words, cells},
                                                   alpha, beta, costs[sample], of_labels, least,
                                                   rows, occupancies + i);
        };
        if (in_log(lattice, flags[sample], most_columns)) write(Log{});
        else write(Wide{});
    }
}
