#pragma once
// Tables with an entry for each sample, which says where the sample begins.

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
