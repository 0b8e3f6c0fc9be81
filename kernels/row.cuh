#pragma once
// Which columns of a row of logits are under which softmax (a head), which columns hold the scores,
// and which heads they are charged: a cupy_rnnt.transducer.Row in words, from ops/cuda/rows.py.

#include "common.cuh"

struct RowTable {
    const int64* words;
    int heads, scores, ranges;

    // A range of columns, and the head that it is under, or -1. Ranges are in the order of heads.
    __device__ int64 start(int r) const { return words[3 * r]; }
    __device__ int64 stop(int r) const { return words[3 * r + 1]; }
    __device__ int head(int r) const { return words[3 * r + 2]; }

    // Whether the sum of a head holds the column of score k, which is no label's; all labels if k is
    // `scores`; a logit of 0 that no column has if k is `scores + 1`.
    __device__ bool holds(int g, int k) const { return words[3 * ranges + g] >> k & 1; }
    __device__ bool zero(int g) const { return holds(g, scores + 1); }

    // The column of a score, and the heads that it is charged, a bit each.
    __device__ int64 column(int k, int64 label) const {
        const int64 column = of_score(k)[0];
        return column < 0 ? label : column;
    }
    __device__ bool charged(int k, int g) const { return of_score(k)[1] >> g & 1; }
    __device__ int charges(int k) const { return __popcll(of_score(k)[1]); }
    __device__ double shift(int k) const { return __longlong_as_double(of_score(k)[2]); }

    __device__ const int64* of_score(int k) const { return words + 3 * ranges + heads + 3 * k; }
};

// The number of the score of a vector of a position, which has one for each score but the label's, in
// order. `label` is the number of the label's score, or larger than all.
__device__ inline int score_of(int vector, int label) { return vector < label ? vector : vector + 1; }
