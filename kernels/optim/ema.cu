// Exponential moving averages of arrays.                                   gpuconv/optim/ema.py
//
//   prepare  weight = 1 - d,  d = min(decay, (1 + t) / (10 + t)) with a warm-up, else decay
//            t = t + 1; weight = 0 instead, and t stays, in a step that is left out
//   update   average[i] = average[i] + weight * (w - average[i])     where weight < 1/2
//            average[i] = w - (1 - weight) * (w - average[i])        otherwise
//            w = x[i], or what it stands for (MASTER)
//   copy     y[i] = x[i] where weight is not 0
//
// Launch   prepare  one thread.
//          update   1-d, one thread per 16 bytes of average, any grid, any block. Arrays that do not
//                   start at a multiple of 16 bytes, and the last few elements, go one by one.
//          copy     1-d, one thread per element, any grid, any block.
//          No shared memory.
// Traffic  prepare  reads updates 1, control 1, writes updates 1, weight 1.
//          update   reads average/x n, master n if MASTER, weight 1 (asks <= n/120), writes
//                   average n.
//          copy     reads x n, weight 1 (asks <= n), writes y n.
//          Coalesced. 12 bytes per float32 parameter, 10 per float16, 14 with master.
// Order    no sums across threads, no atomics: runs are bit-identical.

#include "common/common.cuh"
#include "optim/optim.cuh"
#include "common/pack.cuh"

using T = CFG_T;                               // stored element of x
using A = CFG_A;                               // average, master: float, or double for double
using W = CFG_W;                               // stored element of what is copied: whole numbers
constexpr bool MASTER = CFG_MASTER;            // is there a master? If not, it is null
constexpr int V = Pack<A>::V;                  // elements of average that make 16 bytes

extern "C" __global__ void ema_prepare(
    long long* __restrict__ updates,     // ()
    double* __restrict__ weight,         // ()
    const double* __restrict__ control,  // (4,), an optimiser's, or null
    double decay,
    bool warmup)
{
    if (threadIdx.x != 0) return;
    const double t = (double)updates[0], early = (1 + t) / (10 + t);
    const bool skip = control && control[SKIP] != 0;
    weight[0] = skip ? 0 : 1 - (warmup && early < decay ? early : decay);
    if (!skip) updates[0] += 1;
}

__device__ inline A moved(A average, T x, A master, A weight, A rest)
{
    const A w = MASTER ? behind(x, master) : (A)x;
    return weight < (A)0.5 ? average + weight * (w - average) : w - rest * (w - average);
}

extern "C" __global__ void ema_update(
    A* __restrict__ average,             // (n,)
    const T* __restrict__ x,             // (n,)
    const A* __restrict__ master,        // (n,)
    const double* __restrict__ weight,   // ()
    long long n)
{
    const double exact = weight[0];
    const A share = (A)exact, rest = (A)(1 - exact);
    if (share == 0) return;
    const bool aligned = is_aligned(average) && is_aligned(x) && is_aligned(master);
    const long long packs = aligned ? n / V : 0, done = packs * V;
    for (long long t : grid_stride<long long>(packs)) {
        Pack<A> as = reinterpret_cast<Pack<A>*>(average)[t];
        const Pack<T, V> xs = reinterpret_cast<const Pack<T, V>*>(x)[t];
        Pack<A> ws = as;
        if constexpr (MASTER) ws = reinterpret_cast<const Pack<A>*>(master)[t];
#pragma unroll
        for (int i = 0; i < V; ++i) as.v[i] = moved(as.v[i], xs.v[i], ws.v[i], share,
                                                        rest);
        reinterpret_cast<Pack<A>*>(average)[t] = as;
    }
    for (long long t : grid_stride<long long>(n - done))
        average[done + t] = moved(average[done + t], x[done + t], MASTER ? master[done + t] : 0,
                                  share, rest);
}

extern "C" __global__ void ema_copy(
    W* __restrict__ y,                   // (n,)
    const W* __restrict__ x,             // (n,)
    const double* __restrict__ weight,   // ()
    long long n)
{
    if (weight[0] == 0) return;
    for (long long t : grid_stride<long long>(n)) y[t] = x[t];
}
