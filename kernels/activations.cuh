#pragma once
// Activations of the joint network and their derivatives.
// NaN stays NaN.

struct Tanh {
    template <typename C> __device__ static C apply(C x) { return tanh(x); }
    template <typename C> __device__ static C derivative(C x) {
        C h = apply(x);
        return 1 - h * h;
    }
};

struct Relu {
    template <typename C> __device__ static C apply(C x) { return x <= 0 ? 0 : x; }
    template <typename C> __device__ static C derivative(C x) { return x > 0; }
};

struct LeakyRelu {
    static constexpr double kLeak = 0.01;  // the slope below 0
    template <typename C> __device__ static C apply(C x) { return x > 0 ? x : C(kLeak) * x; }
    template <typename C> __device__ static C derivative(C x) { return x > 0 ? 1 : C(kLeak); }
};

struct Sigmoid {
    template <typename C> __device__ static C apply(C x) { return 1 / (1 + exp(-x)); }
    template <typename C> __device__ static C derivative(C x) {
        C h = apply(x);
        return (1 - h) * h;
    }
};

struct Gelu {
    static constexpr double kScale = 0.7978845608028654, kCubic = 0.044715;  // sqrt(2 / pi)
    // From here on the gate is 1 in float64, and the derivative its limit.
    static constexpr double kSaturated = 10;

    // tanh(sqrt(2 / pi) (x + 0.044715 x^3))
    template <typename C> __device__ static C gate(C x) {
        return tanh(C(kScale) * x * (1 + C(kCubic) * x * x));
    }
    template <typename C> __device__ static C apply(C x) { return x * ((gate(x) + 1) * C(0.5)); }
    template <typename C> __device__ static C derivative(C x) {
        // The slope overflows beyond 1e13, and times 1 - g * g = 0 it would be NaN.
        const C most = kSaturated;
        x = x < -most ? -most : x > most ? most : x;
        C g = gate(x), slope = C(kScale) * x * (1 + C(3 * kCubic) * x * x);
        return ((1 - g * g) * slope + g + 1) * C(0.5);
    }
};

struct Silu {
    template <typename C> __device__ static C apply(C x) { return x * Sigmoid::apply(x); }
    template <typename C> __device__ static C derivative(C x) {
        C s = Sigmoid::apply(x);
        return s + x * s * (1 - s);
    }
};

struct Softsign {
    template <typename C> __device__ static C apply(C x) { return x / (1 + fabs(x)); }
    template <typename C> __device__ static C derivative(C x) {
        C r = 1 / (1 + fabs(x));  // the square of a large number overflows
        return r * r;
    }
};

struct Identity {
    template <typename C> __device__ static C apply(C x) { return x; }
    template <typename C> __device__ static C derivative(C) { return 1; }
};
