#pragma once
// The end of the gradient of a row, whatever it began with.

#include "common.cuh"

template <typename C> struct RowGrad {
    C of_blank, of_label, bound, weight;
    int64 blank, label;

    __device__ RowGrad(int64 i, const C* blank_occupancy, const C* label_occupancy, int64 blank,
                       const int64* labels, double bound, const C* weights)
        : of_blank(blank_occupancy[i]), of_label(label_occupancy[i]), bound(bound),
          weight(weights ? weights[i] : C(1)), blank(blank), label(labels[i]) {}

    // Takes the occupancies off elements j to j + N - 1, bounds these and applies the weight.
    template <int N> __device__ void finish(int64 j, Pack<C, N>& x) const {
        auto blank_at = static_cast<unsigned long long>(blank - j);
        auto label_at = static_cast<unsigned long long>(label - j);
        if (blank_at < N || label_at < N) {
            for (int k = 0; k < N; ++k) {
                if (k == blank_at) x[k] -= of_blank;
                if (k == label_at) x[k] -= of_label;
            }
        }
        for (int k = 0; k < N; ++k) {
            x[k] = x[k] < -bound ? -bound : x[k] > bound ? bound : x[k];
            x[k] *= weight;
        }
    }
};
