// Stochastic gradient descent with momentum, one flat buffer.           gpuconv/optim/sgd.py
//
//   w[i] = p[i], or what it stands for (MASTER)
//   d[i] = multiplier * g[i] + weight_decay * w[i]
//   m[i] = momentum * m[i] + d[i]                                  (MOMENTUM)
//   w[i] = w[i] - rate * d[i]   or  rate * m[i]  (MOMENTUM)  or  rate * (d[i] + momentum * m[i])  (NESTEROV)
//   p[i] = w[i], rounded; master[i] = w[i]  (MASTER)
//
//   rate = lr * factor. Factor and multiplier are in control; with its "skip" nothing changes.
//
// Launch   1-d, one thread per 16 bytes of m and master, or of p with neither, any grid, any block,
//          no shared memory. p, g, m and master start at multiples of 16 bytes, and n is a multiple
//          of V: flat buffers see to both.
// Traffic  step  reads p/g n, m n if MOMENTUM, master n if MASTER, control 3 (asks <= n/40), writes
//          p n, m n if MOMENTUM, master n if MASTER. Coalesced. m and master are wider than 16-bit
//          p: 20 bytes per float32 parameter (12 without momentum), 14 per float16, 22 with master.
// Order    no sums across threads, no atomics: runs are bit-identical.
//
// Source   Sutskever, Martens, Dahl, Hinton, ICML 2013, section 2; Micikevicius et al., ICLR 2018,
//          section 3.1 (master).

#include "common/common.cuh"
#include "optim/optim.cuh"
#include "common/pack.cuh"

using T = CFG_T;                               // stored element of p and g
using A = CFG_A;                               // arithmetic, m, master: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr bool MOMENTUM = CFG_MOMENTUM;        // is there an m? If not, it is null
constexpr bool NESTEROV = CFG_NESTEROV;        // look ahead along m?
constexpr bool MASTER = CFG_MASTER;            // is there a master? If not, it is null
constexpr int V = 16 / (MOMENTUM || MASTER ? sizeof(A) : sizeof(T));   // elements a thread takes
static_assert(MOMENTUM || !NESTEROV, "Nesterov's momentum is a momentum");

extern "C" __global__ void sgd_step(
    T* __restrict__ p,                   // (n,)
    const T* __restrict__ g,             // (n,)
    A* __restrict__ m,                   // (n,)
    A* __restrict__ master,              // (n,)
    const double* __restrict__ control,  // (4,)
    double lr,
    A momentum,
    A weight_decay,
    long long n)
{
    if (control[SKIP] != 0) return;
    const A rate = (A)(lr * control[FACTOR]), scale = (A)control[MULTIPLIER];
    for (I t : grid_stride<I>(n / V)) {
        Pack<T, V> ps = reinterpret_cast<Pack<T, V>*>(p)[t];
        const Pack<T, V> gs = reinterpret_cast<const Pack<T, V>*>(g)[t];
        Pack<A, V> ms, ws;
        if constexpr (MOMENTUM) ms = reinterpret_cast<Pack<A, V>*>(m)[t];
        if constexpr (MASTER) ws = reinterpret_cast<Pack<A, V>*>(master)[t];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            A w = (A)ps.v[i];
            if constexpr (MASTER) w = behind(ps.v[i], ws.v[i]);
            A d = scale * (A)gs.v[i];
            if (weight_decay != 0) d += weight_decay * w;
            if constexpr (MOMENTUM) {
                ms.v[i] = momentum * ms.v[i] + d;
                d = NESTEROV ? d + momentum * ms.v[i] : ms.v[i];
            }
            w -= rate * d;
            ps.v[i] = (T)w;
            if constexpr (MASTER) ws.v[i] = w;
        }
        reinterpret_cast<Pack<T, V>*>(p)[t] = ps;
        if constexpr (MOMENTUM) reinterpret_cast<Pack<A, V>*>(m)[t] = ms;
        if constexpr (MASTER) reinterpret_cast<Pack<A, V>*>(master)[t] = ws;
    }
}
