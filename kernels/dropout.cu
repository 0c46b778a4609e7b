// Dropout, forward; the backward pass is the same kernel applied to gy.    gpuconv/ops/dropout.py
//
//   y[i] = words(key, step)[i] >= threshold ? x[i] * scale : 0
//
// threshold = ceil(p * 2^32), scale = 1 / (1 - p).
//
// Launch   1-d, one thread per 4 elements, any grid, any block: one Philox gives four words.
// Traffic  dropout  reads x n, writes y n, 4 elements in one access where the arrays are aligned to
//          4 elements. Coalesced. The mask is drawn, never read or written.
// Order    elementwise: no order to keep.
// Source   Srivastava et al., JMLR 15, 2014.

#include "common.cuh"
#include "philox.cuh"

using T = CFG_T;                       // stored element of x, y
using A = CFG_A;                       // arithmetic: float, or double for double

struct alignas(4 * sizeof(T)) Four {
    T v[4];
};

extern "C" __global__ void dropout(
    const T* __restrict__ x,           // (n,)
    T* __restrict__ y,                 // (n,)
    long long n,
    unsigned seed,                     // the key
    unsigned stream,
    unsigned long long step,
    unsigned long long threshold,      // 0 .. 2^32; words below it are zeroed
    A scale)
{
    const bool aligned = ((size_t)x | (size_t)y) % sizeof(Four) == 0;  // not so: a[1:] of some a
    for (long long q : grid_stride<long long>((n + 3) / 4)) {
        const Words words = philox({{(unsigned)q, (unsigned)(q >> 32),
                                     (unsigned)step, (unsigned)(step >> 32)}}, seed, stream);
        const int count = (int)min(4ll, n - 4 * q);
        Four four;
        if (aligned && count == 4) {
            four = ((const Four*)x)[q];
        } else {
#pragma unroll  // an index that is no constant would put four into local memory
            for (int i = 0; i < 4; ++i) {
                if (i < count) four.v[i] = x[4 * q + i];
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            four.v[i] = words.w[i] >= threshold ? (T)((A)four.v[i] * scale) : (T)(A)0;
        }
        if (aligned && count == 4) {
            ((Four*)y)[q] = four;
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (i < count) y[4 * q + i] = four.v[i];
            }
        }
    }
}
