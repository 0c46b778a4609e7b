// Norm of all gradients, and gradients scaled to at most a given norm.        gpuconv/optim/clip.py
//
//   sums[s] = sum of g[i]^2 over slice s
//   norm    = |multiplier| sqrt(sum_s sums[s])       multiplier and skip: an optimiser's control
//   factor  = min(1, max_norm / (norm + small)), NaN where it is; 1 if this step is left out
//   g[i]    = factor * g[i]            0 stays 0, whatever the factor
//
// Launch   squares  1-d, blocks of BLOCK threads, one per slice; a thread adds 16 bytes at a time.
//          norm     one such block.      Shared memory of both: 8 bytes a thread.
//          scale    one thread per 16 bytes, any grid, any block; writes nothing if factor is 1.
//          g starts at a multiple of 16 bytes and n is a multiple of V: flat buffers see to both.
// Traffic  squares  reads g n, writes sums S.
//          norm     reads sums S, control 2, writes norm 1, factor 1.
//          scale    reads factor 1 (asks <= n/64), g <= n, writes g <= n: none if factor is 1.
//          Coalesced. No bank conflicts.
// Order    each slice's squares in a fixed order, then the slices' in a fixed order, in double; no
//          atomics. The slices are cut by size alone: the same bits from run to run.
// Source   Pascanu, Mikolov, Bengio, ICML 2013, section 3.2.

#include "common/common.cuh"
#include "optim/optim.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

using T = CFG_T;                       // stored element of g; of the norm too
using A = CFG_A;                       // arithmetic of scale: float, or double for double
constexpr int BLOCK = CFG_BLOCK;       // threads of a block
constexpr int V = Pack<T>::V;          // elements of g that make 16 bytes

extern "C" __global__ void clip_squares(
    const T* __restrict__ g,             // (n,)
    double* __restrict__ sums,           // (S,)
    long long n,
    int S)
{
    __shared__ double shared[BLOCK];
    for (int s = blockIdx.x; s < S; s += gridDim.x) {
        const long long end = n / V * (s + 1) / S;
        double sum = 0;
        for (long long t = n / V * s / S + threadIdx.x; t < end; t += BLOCK) {
            const Pack<T> gs = reinterpret_cast<const Pack<T>*>(g)[t];
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const double v = (A)gs.v[i];
                sum = fma(v, v, sum);
            }
        }
        sum = reduce_columns(shared, sum, 1, Add());
        if (threadIdx.x == 0) sums[s] = sum;
    }
}

extern "C" __global__ void clip_norm(
    const double* __restrict__ sums,     // (S,)
    const double* __restrict__ control,  // (4,)
    T* __restrict__ norm,                // ()
    double* __restrict__ factor,         // ()
    int S,
    double max_norm,
    double small)
{
    __shared__ double shared[BLOCK];
    double sum = 0;
    for (int s = threadIdx.x; s < S; s += BLOCK) sum += sums[s];
    sum = reduce_columns(shared, sum, 1, Add());
    if (threadIdx.x == 0) {
        const double length = fabs(control[MULTIPLIER]) * sqrt(sum);
        const double share = max_norm / (length + small);
        norm[0] = (T)length;
        factor[0] = control[SKIP] != 0 || share > 1 ? 1 : share;        // NaN stays
    }
}

extern "C" __global__ void clip_scale(
    T* __restrict__ g,                   // (n,)
    const double* __restrict__ factor,   // ()
    long long n)
{
    if (factor[0] == 1) return;
    const A scale = (A)factor[0];
    for (long long t : grid_stride<long long>(n / V)) {
        Pack<T> gs = reinterpret_cast<Pack<T>*>(g)[t];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const A v = (A)gs.v[i];
            if (v != 0) gs.v[i] = (T)(scale * v);
        }
        reinterpret_cast<Pack<T>*>(g)[t] = gs;
    }
}
