#pragma once
// A topology as a template argument, which cupy_rnnt/transducer.py prints: the arcs that leave each
// cell (t, u). Scores are numbered from 0 to K - 1.

// Leads to (t + FRAMES, u + LABELS), which is the end of a path only if the arc ENDS paths, and adds
// up SCORES of (t, u) and, unless that is -1, the score THEN of (t, u + LABELS).
template <int FRAMES, int LABELS, bool ENDS, int THEN, int... SCORES> struct Arc {
    static constexpr int frames = FRAMES, labels = LABELS, ahead = FRAMES + LABELS, then = THEN;
    static constexpr bool ends = ENDS;

    static constexpr int numbers[] = {SCORES..., THEN}, reads = sizeof...(SCORES) + (THEN >= 0);

    template <typename Visit> static __device__ void each_score(Visit visit) { (visit(SCORES), ...); }
    static __device__ bool adds(int score) { return ((score == SCORES) || ...); }
};

constexpr int most(int count, const int* values) {
    int largest = 0;
    for (int i = 0; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
    return largest;
}

template <typename... Arcs> struct Topology {
    static constexpr int aheads[] = {Arcs::ahead...}, asides[] = {(Arcs::then < 0 ? 0 : Arcs::labels)...};
    static constexpr int arcs = sizeof...(Arcs), reads = (0 + ... + Arcs::reads);
    static constexpr int each_reads[] = {Arcs::reads...}, factors = most(arcs, each_reads);  // of an arc
    static constexpr int last[] = {most(sizeof(Arcs::numbers) / sizeof(int), Arcs::numbers)...};
    static constexpr int scores = 1 + most(arcs, last);
    static constexpr int reach = most(arcs, aheads);  // diagonals that an arc crosses
    static constexpr int aside = most(arcs, asides);  // positions to a score that is read

    template <typename Visit> static __device__ void each(Visit visit) { (visit(Arcs()), ...); }
};
