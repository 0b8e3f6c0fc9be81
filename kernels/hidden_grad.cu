// What goes back through an activation: d_hidden *= act'(pre), where hidden = act(pre).
//
// Grid: a thread a pack of 16 bytes. Moves 3 sizeof(T) bytes an element, 4 where the derivative
// takes both `pre` and `hidden`, 2 where it takes none.

#include "activations.cuh"
#include "common.cuh"

template <typename T, typename Activation> struct GoneBack {
    const T *pre, *hidden;
    T* d_hidden;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        auto x = load<n>(pre + j), h = load<n>(hidden + j), d = load<n>(d_hidden + j);
        for (int k = 0; k < n; ++k) d[k] *= Activation::derivative(x[k], h[k]);
        store<n>(d_hidden + j, d);
    }
};

template <typename T, typename Activation>
__global__ void __launch_bounds__(256, 4)
hidden_grad(const T* __restrict__ pre, const T* __restrict__ hidden, int64 size,
            T* __restrict__ d_hidden) {
    sweep<kPack<T>>(size, head<kPack<T>>(size, pre, hidden, d_hidden), first_item(1),
                    item_stride(1), GoneBack<T, Activation>{pre, hidden, d_hidden});
}
