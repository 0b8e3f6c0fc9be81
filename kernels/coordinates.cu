// Where cells are, for operations beside our kernels, which find it themselves.
//
// Grid: a thread a cell. Moves 41 bytes a cell; the table of the batch stays in the caches.

#include "coordinates.cuh"
#include "items.cuh"

__global__ void __launch_bounds__(256, 4)
coordinates(int64 count, const int64* __restrict__ packed, const int64* of_batch, int64 samples,
            const int64* labels, int64* __restrict__ results, bool* __restrict__ has_label) {
    const Batch batch(of_batch, samples, labels);
    for (int64 i = first_item(1); i < count; i += item_stride(1)) {
        const Coordinates at = batch.of(packed[i]);
        results[i] = at.sample;
        results[count + i] = at.frame;
        results[2 * count + i] = at.position;
        results[3 * count + i] = at.label;
        has_label[i] = at.has_label;
    }
}
