#pragma once
// Bisection of ascending numbers.

// The place of the last one of `count` numbers that is not above a limit, or 0. Numbers are STRIDE
// words apart.
template <int STRIDE>
__device__ long long last_up_to(const long long* numbers, long long count, long long limit) {
    long long place = 0, beyond = count;
    while (beyond - place > 1) {
        const long long middle = (place + beyond) / 2;
        (numbers[STRIDE * middle] <= limit ? place : beyond) = middle;
    }
    return place;
}

// The first of the numbers from `begin` to `end` that is not below a limit, or `end`.
__device__ inline long long lower_bound(const long long* numbers, long long begin, long long end,
                                        long long limit) {
    while (begin < end) {
        const long long middle = (begin + end) / 2;
        if (numbers[middle] < limit) begin = middle + 1;
        else end = middle;
    }
    return begin;
}
