#pragma once
// Probabilities of paths, which may be as small as exp(-100,000), in two forms that one sweep can be
// written for. `Wide` is a float64 mantissa with an exponent of its own: an arc costs a product and
// an aligned sum, and no exponential or logarithm is left in the recursion. `Log` is a logarithm in
// float64, for the samples that need more than the range of Wide.
//
// A score in memory is a *word*: its exponential, if that is between exp(-700) and exp(700), and 0
// for a score of -inf. Other scores are kept as negative words: the score itself if it is negative,
// else -score 2^-1024, which is above -1.

#include "log_space.cuh"

constexpr double kLargestLog = 700;  // of the scores that words hold the exponentials of

__device__ inline double word_of(double score) {
    if (fabs(score) <= kLargestLog) return exp(score);
    if (score == -infinity()) return 0;
    return score < 0 ? score : -(score * 0x1p-512 * 0x1p-512);
}

__device__ inline double score_of(double word) {
    if (word >= 0) return log(word);
    return word < -1 ? word : -word * 0x1p512 * 0x1p512;
}

// m 2^e, with m = 0 or 1 <= m < 2 unless it is a product.
struct Wide {
    static constexpr bool kOneColumn = true;  // of a thread
    // Exponents are below 2^23 in magnitude, see Lattice::largest_log. That of 0 is far below, and a
    // product of 15 zeros still has an int.
    static constexpr int kNothing = -(1 << 27);

    double m;
    int e;

    static __device__ Wide zero() { return {0, kNothing}; }
    static __device__ Wide one() { return {1, 0}; }
    static __device__ Wide normal(double m, int e) {
        const int high = __double2hiint(m);
        const bool is_zero = high == 0;  // no sum here is denormal
        return {__hiloint2double(is_zero ? 0 : (high & 0xfffff) | 0x3ff00000, __double2loint(m)),
                is_zero ? kNothing : e + (high >> 20) - 1023};
    }
    static __device__ Wide of_word(double word) { return normal(word, 0); }
    static __device__ Wide of_log(double x) {
        const double ln_2 = 0.6931471805599453, rest = 2.3190468138462996e-17;
        const double k = rint(x / ln_2);
        return normal(exp(fma(-k, rest, fma(-k, ln_2, x))), static_cast<int>(k));
    }
    // A factor or a term, whose mantissa may be 2 or more; and a number like all others.
    __device__ Wide operator*(Wide other) const { return {m * other.m, e + other.e}; }
    __device__ Wide times(Wide other) const { return normal(m * other.m, e + other.e); }

    // 2^e for e <= 1023; 0 if that is below the least normal number.
    static __device__ double power(int e) { return __hiloint2double(max(e + 1023, 0) << 20, 0); }

    // Scaling is exact. A term below 2^-1022 of the largest exponent counts as 0.
    template <int N> static __device__ Wide sum(const Wide (&terms)[N]) {
        int top = terms[0].e;
        for (int i = 1; i < N; ++i) top = max(top, terms[i].e);
        double m = 0;
        for (int i = 0; i < N; ++i) m = fma(terms[i].m, power(terms[i].e - top), m);
        return normal(m, top);
    }
    // Of normal numbers.
    __device__ bool operator<(Wide other) const { return e != other.e ? e < other.e : m < other.m; }

    __device__ bool is_zero() const { return m == 0; }
    // Of a product below 2^1000; 0 if it is below 2^-1020.
    __device__ double value() const { return m * power(e); }
    __device__ double log() const {
        return m == 0 ? -infinity() : fma(e, 0.6931471805599453, ::log(m));
    }

    // 64 bits, in the order of the numbers: 24 of the exponent, then 40 of the mantissa, rounded.
    __device__ long long packed() const {
        if (m == 0) return static_cast<long long>(1ull << 63);
        const long long fraction = __double_as_longlong(m) & ((1ll << 52) - 1);
        return static_cast<long long>(e) * (1ll << 40) + ((fraction + (1 << 11)) >> 12);
    }
    static __device__ Wide unpacked(long long word) {
        if (word == static_cast<long long>(1ull << 63)) return zero();
        const long long fraction = (word & ((1ll << 40) - 1)) << 12;
        return {__longlong_as_double(fraction | 0x3ffll << 52), static_cast<int>(word >> 40)};
    }

    __device__ void store(double* mantissas, int* exponents) const { *mantissas = m, *exponents = e; }
    static __device__ Wide load(const double* mantissas, const int* exponents) {
        return {*mantissas, *exponents};
    }
};

struct Log {
    static constexpr bool kOneColumn = false;

    double logarithm;

    static __device__ Log zero() { return {-infinity()}; }
    static __device__ Log one() { return {0}; }
    static __device__ Log of_word(double word) { return {score_of(word)}; }
    static __device__ Log of_log(double x) { return {x}; }
    __device__ Log operator*(Log other) const { return {logarithm + other.logarithm}; }
    __device__ Log times(Log other) const { return *this * other; }
    template <int N> static __device__ Log sum(const Log (&terms)[N]) {
        double sum = terms[0].logarithm;
        for (int i = 1; i < N; ++i) sum = logaddexp(sum, terms[i].logarithm);
        return {sum};
    }
    __device__ bool operator<(Log other) const { return logarithm < other.logarithm; }
    __device__ bool is_zero() const { return logarithm == -infinity(); }
    __device__ double log() const { return logarithm; }
    __device__ double value() const { return exp(logarithm); }
    __device__ long long packed() const { return __double_as_longlong(logarithm); }
    static __device__ Log unpacked(long long word) { return {__longlong_as_double(word)}; }
    __device__ void store(double* mantissas, int*) const { *mantissas = logarithm; }
    static __device__ Log load(const double* mantissas, const int*) { return {*mantissas}; }
};
