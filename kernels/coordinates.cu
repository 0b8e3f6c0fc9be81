// Where cells are, from their packed indices: sample, frame, position, the label that leaves a cell
// (0 if none does), and whether there is one.
//
// Grid: a thread a cell. Moves 41 bytes a cell; the table of the batch stays in the caches.

#include "entries.cuh"
#include "items.cuh"

using int64 = long long;

struct Offset { int64 first; };

// The table has `samples` + 1 offsets, then U + 1 of each sample, then its `longest` labels.
__global__ void __launch_bounds__(256, 4)
coordinates(int64 count, const int64* __restrict__ packed, const int64* table, int64 samples,
            int64 longest, int64* __restrict__ results, bool* __restrict__ has_label) {
    const auto offsets = reinterpret_cast<const Offset*>(table);
    const int64 *positions = table + samples + 1, *labels = positions + samples;
    for (int64 i = first_item(1); i < count; i += item_stride(1)) {
        const int64 sample = &entry_of(packed[i], offsets, samples) - offsets;
        const int64 within = packed[i] - offsets[sample].first;
        const int64 frame = within / positions[sample], position = within % positions[sample];
        results[i] = sample;
        results[count + i] = frame;
        results[2 * count + i] = position;
        results[3 * count + i] = labels[sample * longest + position];
        has_label[i] = position + 1 < positions[sample];
    }
}

// Where values belong among ascending numbers: the place of the first that is not below them.
//
// Grid: a thread a value. Moves 16 bytes a value; the numbers stay in the caches.
__global__ void __launch_bounds__(256, 4)
places(int64 count, const int64* __restrict__ values, const int64* __restrict__ numbers,
       int64 size, int64* __restrict__ results) {
    for (int64 i = first_item(1); i < count; i += item_stride(1))
        results[i] = lower_bound(numbers, 0, size, values[i]);
}
