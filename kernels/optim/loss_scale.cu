// Scaling of the loss: are all gradients finite, and what follows.      gpuconv/optim/loss_scale.py
//
//   flags[s]   = is any g[i] of slice s infinite or NaN?
//   found      = is any flags[s]?
//   multiplier = 1 / scale,  skip = found                            both into control of each group
//   found:       scale = backoff * scale, counter = 0
//   else:        counter = counter + 1; at interval, scale = growth * scale and counter = 0
//                a scale that float32 cannot hold is not taken
//   nothing of this where skip is HALT
//
// Launch   find    1-d, blocks of BLOCK threads, one per slice; a thread looks at 16 bytes at a time.
//                  g starts at a multiple of 16 bytes and n is a multiple of V: flat buffers see to
//                  both.
//          update  one such block.      Shared memory of both: 4 bytes a thread.
// Traffic  find    reads g n, writes flags S.
//          update  reads flags S, scale 1, counter 1, control 1, writes scale <= 1, counter 1,
//                  control 2*G.
//          Coalesced. No bank conflicts. 4 bytes per float32 parameter, 2 per float16.
// Order    "any" does not mind an order; no atomics.
// Source   Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2.

#include "common/common.cuh"
#include "optim/optim.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

using T = CFG_T;                       // stored element of g
using A = CFG_A;                       // what it is tested in: float, or double for double
constexpr int BLOCK = CFG_BLOCK;       // threads of a block
constexpr int V = Pack<T>::V;          // elements of g that make 16 bytes
constexpr float LEAST = 0x1p-126f, MOST = 0x1p127f;    // powers of two that float32 holds in full

extern "C" __global__ void loss_scale_find(
    const T* __restrict__ g,             // (n,)
    int* __restrict__ flags,             // (S,)
    long long n,
    int S)
{
    __shared__ int shared[BLOCK];
    for (int s = blockIdx.x; s < S; s += gridDim.x) {
        const long long end = n / V * (s + 1) / S;
        int found = 0;
        for (long long t = n / V * s / S + threadIdx.x; t < end; t += BLOCK) {
            const Pack<T> gs = reinterpret_cast<const Pack<T>*>(g)[t];
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const A v = (A)gs.v[i];
                found |= !(v - v == 0);               // inf - inf is NaN
            }
        }
        found = reduce_columns(shared, found, 1, Larger());
        if (threadIdx.x == 0) flags[s] = found;
    }
}

extern "C" __global__ void loss_scale_update(
    const int* __restrict__ flags,       // (S,)
    float* __restrict__ scale,           // ()
    long long* __restrict__ counter,     // ()
    double* __restrict__ control,        // (G, 4)
    float growth,
    float backoff,
    long long interval,
    int S,
    int G)
{
    __shared__ int shared[BLOCK];
    int found = 0;
    for (int s = threadIdx.x; s < S; s += BLOCK) found |= flags[s];
    found = reduce_columns(shared, found, 1, Larger());
    if (threadIdx.x == 0 && control[SKIP] != HALT) {
        const long long clean = found ? 0 : counter[0] + 1;
        const bool grow = clean >= interval;
        const float now = scale[0], next = now * (found ? backoff : grow ? growth : 1);
        for (int g = 0; g < G; ++g) {
            control[4 * g + MULTIPLIER] = 1 / (double)now;
            control[4 * g + SKIP] = found;
        }
        if (next >= LEAST && next <= MOST) scale[0] = next;
        counter[0] = grow ? 0 : clean;
    }
}
