// Which cells hold the occupancy that their sample asks for: blank + label >= least.
//
// Grid: a thread a cell. Moves 17 bytes a cell; those of the samples stay in the cache.

#include "common.cuh"
#include "entries.cuh"

struct Sample {
    int64 first;  // cell
};

__global__ void __launch_bounds__(256, 4)
keep(const double* __restrict__ blank_occupancy, const double* __restrict__ label_occupancy,
     const Sample* __restrict__ samples, const double* __restrict__ least, int64 count, int64 cells,
     bool* __restrict__ keeps) {
    for (int64 i = first_item(1); i < cells; i += item_stride(1)) {
        int64 sample = &entry_of(i, samples, count) - samples;
        keeps[i] = blank_occupancy[i] + label_occupancy[i] >= least[sample];
    }
}
