#pragma once
// Bisection: of tables with an entry for each sample, which says where the sample begins, and of
// ascending numbers.

// The entry that an item belongs to: the last one whose first item is this or one before.
template <typename Entry, long long Entry::*FIRST = &Entry::first>
__device__ const Entry& entry_of(long long item, const Entry* entries, long long count) {
    long long entry = 0, beyond = count;
    while (beyond - entry > 1) {
        const long long middle = (entry + beyond) / 2;
        (entries[middle].*FIRST <= item ? entry : beyond) = middle;
    }
    return entries[entry];
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
