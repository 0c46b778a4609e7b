// Dropout, forward; the backward pass is the same kernel applied to gy.    gpuconv/ops/elementwise/dropout.py
//
//   y[i] = words(key, step + counter[0])[i] >= threshold ? x[i] * scale : 0
//
// threshold = ceil(p * 2^32), scale = 1 / (1 - p).
//
// Launch   1-d, one thread per 16 bytes and at least 4 elements, any grid, any block, no shared
//          memory: one Philox gives four words.
// Traffic  dropout  reads x n, counter 1 (asks <= n/32), writes y n, 16 bytes in one access where
//          the arrays are aligned to that. Coalesced. The mask is drawn, never read or written.
// Order    elementwise: no order to keep.
//
// Source: Srivastava et al., JMLR 15, 2014.

#include "common/common.cuh"
#include "common/pack.cuh"
#include "common/philox.cuh"

using T = CFG_T;                       // stored element of x, y
using A = CFG_A;                       // arithmetic: float, or double for double
constexpr int V = Pack<T>::V < 4 ? 4 : Pack<T>::V;  // elements of a thread and turn: whole fours

extern "C" __global__ void dropout(
    const T* __restrict__ x,           // (n,)
    T* __restrict__ y,                 // (n,)
    const long long* __restrict__ counter,  // (1,)   null: 0
    long long n,
    unsigned seed,                     // the key
    unsigned stream,
    unsigned long long step,
    unsigned long long threshold,      // 0 .. 2^32; words below it are zeroed
    A scale)
{
    constexpr int BYTES = sizeof(Pack<T, V>);
    const bool aligned = is_aligned<BYTES>(x) && is_aligned<BYTES>(y);   // not so: a[1:] of some a
    if (counter) step += (unsigned long long)counter[0];
    for (long long t : grid_stride<long long>((n + V - 1) / V)) {
        const int count = (int)min((long long)V, n - V * t);
        Pack<T, V> pack;
        if (aligned && count == V) {
            pack = reinterpret_cast<const Pack<T, V>*>(x)[t];
        } else {
#pragma unroll  // an index that is no constant would put pack into local memory
            for (int i = 0; i < V; ++i) {
                if (i < count) pack.v[i] = x[V * t + i];
            }
        }
#pragma unroll
        for (int four = 0; four < V; four += 4) {
            const unsigned long long at = (V * t + four) / 4;
            const Words words = philox({{(unsigned)at, (unsigned)(at >> 32),
                                         (unsigned)step, (unsigned)(step >> 32)}}, seed, stream);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                T& v = pack.v[four + i];
                v = words.w[i] >= threshold ? (T)((A)v * scale) : (T)(A)0;
            }
        }
        if (aligned && count == V) {
            reinterpret_cast<Pack<T, V>*>(y)[t] = pack;
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                if (i < count) y[V * t + i] = pack.v[i];
            }
        }
    }
}
