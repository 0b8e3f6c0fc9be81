// The gradient behind an activation becomes that before it: d_hidden *= act'(pre).
//
// Grid: a thread a pack of 16 bytes. Moves 3 sizeof(T) bytes an element, 2 where the derivative is
// constant.

#include "activations.cuh"
#include "common.cuh"

template <typename T, typename Activation> struct GoneBack {
    const T* pre;
    T* d_hidden;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        auto x = load<n>(pre + j), d = load<n>(d_hidden + j);
        for (int k = 0; k < n; ++k) d[k] *= Activation::derivative(x[k]);
        store<n>(d_hidden + j, d);
    }
};

template <typename T, typename Activation>
__global__ void __launch_bounds__(256, 4)
hidden_grad(const T* __restrict__ pre, int64 size, T* __restrict__ d_hidden) {
    sweep<kPack<T>>(size, head<kPack<T>>(size, pre, d_hidden), first_item(1), item_stride(1),
                    GoneBack<T, Activation>{pre, d_hidden});
}
