// out = act(pre), element by element.
//
// Grid: a thread a pack of 16 bytes. Moves 2 sizeof(T) bytes an element.

#include "activations.cuh"
#include "common.cuh"

template <typename T, typename Activation> struct Activated {
    const T* pre;
    T* out;

    template <int n> __device__ void operator()(int64 j, Count<n>) const {
        auto x = load<n>(pre + j);
        for (int k = 0; k < n; ++k) x[k] = Activation::apply(x[k]);
        store<n>(out + j, x);
    }
};

// `out` may be `pre`.
template <typename T, typename Activation>
__global__ void __launch_bounds__(256, 4) activate(const T* pre, int64 size, T* out) {
    sweep<kPack<T>>(size, head<kPack<T>>(size, pre, out), first_item(1), item_stride(1),
                    Activated<T, Activation>{pre, out});
}
