// The dot product of each row of a matrix with that of another.
//
// Grid: a warp a row. Moves 2 H sizeof(C) + 8 bytes a row.

#include "common.cuh"
#include "log_space.cuh"

template <typename C>
__global__ void __launch_bounds__(256, 4)
row_dots(const C* a, const C* b, int64 rows, int64 width, double* dots) {
    for (int64 i = first_item(32); i < rows; i += item_stride(32)) {
        Sum<C> sum{0};
        for (int64 j = threadIdx.x % 32; j < width; j += 32)
            sum.value += a[i * width + j] * b[i * width + j];
        sum = total<32>(sum);
        if (threadIdx.x % 32 == 0) dots[i] = sum.value;
    }
}
