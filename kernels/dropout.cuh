#pragma once
// Dropout of hidden values: unit j of a cell is dropped if its random number is below a threshold,
// and multiplied by a scale if not. The numbers are those of Philox4x32 with 7 rounds (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011), by counters: a counter makes the numbers
// of four units, so that a pack of four takes some 60 instructions.

#include "common.cuh"

struct Dropout {
    unsigned threshold;  // 0 drops nothing
    int64 seed;
    double scale;

    // The numbers of units 4 block to 4 block + 3.
    __device__ uint4 numbers(unsigned block, unsigned position, unsigned frame,
                             unsigned sample) const {
        uint4 c = {block, position, frame, sample};
        unsigned x = seed, y = seed >> 32;
#pragma unroll
        for (int round = 0; round < 7; ++round) {
            const unsigned low = 0xD2511F53u * c.x, high = 0xCD9E8D57u * c.z;
            c = {__umulhi(0xCD9E8D57u, c.z) ^ c.y ^ x, high,
                 __umulhi(0xD2511F53u, c.x) ^ c.w ^ y, low};
            x += 0x9E3779B9u;
            y += 0xBB67AE85u;
        }
        return c;
    }

    // Multiplies the values of those of units j to j + N - 1 of a cell by 0 that are dropped: a NaN
    // stays one. 32 bits of coordinates count, and take fewer registers.
    template <typename C, int N>
    __device__ void drop(Pack<C, N>& values, unsigned j, unsigned position, unsigned frame,
                         unsigned sample) const {
        uint4 four;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const unsigned unit = (j + k) % 4;
            if (k == 0 || unit == 0) four = numbers((j + k) / 4, position, frame, sample);
            const unsigned number = unit < 2 ? (unit ? four.y : four.x)
                                             : (unit == 2 ? four.z : four.w);
            if (number < threshold) values[k] *= C(0);
        }
    }

    // And multiplies the others by the scale.
    template <typename C, int N>
    __device__ void apply(Pack<C, N>& values, unsigned j, unsigned position, unsigned frame,
                          unsigned sample) const {
        if (!threshold) return;
        drop(values, j, position, frame, sample);
        for (int k = 0; k < N; ++k) values[k] *= C(scale);
    }
};
