#pragma once
// A topology as a template argument, which cupy_rnnt/transducer.py prints: the arcs that leave each
// cell (t, u). Scores are numbered from 0 to K - 1.

// Leads to (t + FRAMES, u + LABELS), which is the end of a path only if the arc ENDS paths, and adds
// up SCORES of (t, u) and, unless that is -1, the score THEN of (t, u + LABELS).
template <int FRAMES, int LABELS, bool ENDS, int THEN, int... SCORES> struct Arc {
    static constexpr int frames = FRAMES, labels = LABELS, ahead = FRAMES + LABELS, then = THEN;
    static constexpr bool ends = ENDS;

    // of(score), added up.
    template <typename Of> static __device__ double sum(Of of) { return (... + of(SCORES)); }
    static __device__ bool adds(int score) { return ((score == SCORES) || ...); }
};

template <typename... Arcs> struct Topology {
    static constexpr int most(int count, const int* values) {
        int largest = 0;
        for (int i = 0; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
        return largest;
    }
    static constexpr int aheads[] = {Arcs::ahead...}, asides[] = {(Arcs::then < 0 ? 0 : Arcs::labels)...};
    static constexpr int reach = most(sizeof...(Arcs), aheads);  // diagonals that an arc crosses
    static constexpr int aside = most(sizeof...(Arcs), asides);  // positions to a score that is read

    template <typename Visit> static __device__ void each(Visit visit) { (visit(Arcs()), ...); }
};
