// Newton-Schulz iterations: what stands between their products of matrices.   gpuconv/optim/muon.py
//
//   unit    x[i] = d[i] / (sqrt(squares) + tiny)
//   mix     q = a I + b p + c q            (M, M)
//
// Launch   1-d, one thread per element, any grid, any block, no shared memory.
// Traffic  unit   reads d n, squares 1 (asks <= n/32), writes x n.
//          mix    reads p/q n, writes q n. Coalesced.
// Order    no sums across threads, no atomics: runs are bit-identical.
//
// Source   Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024.

#include "common/common.cuh"

using T = CFG_T;                         // stored element
using A = CFG_A;                         // arithmetic, d: float, or double for double

extern "C" __global__ void newton_schulz_unit(
    const A* __restrict__ d,             // (n,)
    const double* __restrict__ squares,  // ()            sum of the squares of d
    T* __restrict__ x,                   // (n,)
    double tiny,
    long long n)
{
    const A norm = (A)(sqrt(*squares) + tiny);
    for (long long i : grid_stride<long long>(n))
        x[i] = (T)(d[i] / norm);
}

extern "C" __global__ void newton_schulz_mix(
    const T* __restrict__ p,             // (M, M)
    T* __restrict__ q,                   // (M, M)
    A a,
    A b,
    A c,
    int M,
    long long n)                         // M * M
{
    for (long long i : grid_stride<long long>(n)) {
        const A here = b * (A)p[i] + c * (A)q[i];
        q[i] = (T)(i % (M + 1LL) == 0 ? a + here : here);
    }
}
