// Exponential moving average of an array.                                  gpuconv/optim/ema.py
//
//   average[i] = average[i] + weight * (x[i] - average[i])
//
// Launch   1-d, one thread per element, any grid, any block, no shared memory.
// Traffic  update  reads average/x n, writes average n. Coalesced. 12 bytes per float32 parameter,
//          10 per float16.
// Order    no sums across threads, no atomics: runs are bit-identical.

#include "common.cuh"

using T = CFG_T;                               // stored element of x
using A = CFG_A;                               // average: float, or double for double

extern "C" __global__ void ema_update(
    A* __restrict__ average,             // (n,)
    const T* __restrict__ x,             // (n,)
    A weight,                            // of x
    long long n)
{
    for (long long t : grid_stride<long long>(n)) average[t] += weight * ((A)x[t] - average[t]);
}
