// Adam and AdamW, one flat buffer.                                     gpuconv/optim/adam.py
//
//   prepare, once per parameter: t = t + 1,  r = sqrt(1 - beta2^t),  and its four numbers
//
//     rate = lr * factor * r / (1 - beta1^t)      keep  = 1 - lr * factor * weight_decay
//     eps  = eps * r                              scale = multiplier of the gradients
//
//   step, with the numbers of parameters that have made equally many steps:
//
//     w    = keep * p[i], or what p[i] stands for (MASTER)
//     d    = scale * g[i] + decay * w             decay = weight_decay for Adam; keep is 1 then
//     m[i] = beta1 * m[i] + new1 * d              new1 = 1 - beta1
//     v[i] = beta2 * v[i] + new2 * d * d          new2 = 1 - beta2
//     w    = w - rate * m[i] / (sqrt(v[i]) + eps)
//     p[i] = w, rounded; master[i] = w (MASTER)
//
//   Factor and multiplier are in control; with its "skip" nothing changes, nor is a step counted.
//
// Launch   prepare  1-d, one thread per parameter (an array of weights), any grid, any block.
//          step     1-d, one thread per 16 bytes of m, any grid, any block. All arrays start at
//                   multiples of 16 bytes, and n is a multiple of V: flat buffers see to both.
//          No shared memory.
// Traffic  prepare  reads positions n, steps n (sectors <= 2), control 3 (asks <= 3*n), writes
//                   steps n (sectors <= 2), numbers 4*n.
//          step     reads p/g/m/v n, master n if MASTER, numbers 4 (asks <= n/30), control 1
//                   (asks <= n/120), writes p/m/v n, master n if MASTER.
//          Coalesced. 28 bytes per float32 parameter, 22 per float16, whose m and v are float32, 30
//          with master.
// Order    no sums across threads, no atomics: runs are bit-identical.
//
// Source   Kingma, Ba, ICLR 2015; Loshchilov, Hutter, ICLR 2019; Micikevicius et al., ICLR 2018,
//          section 3.1 (master).

#include "common/common.cuh"
#include "optim/optim.cuh"
#include "common/pack.cuh"

using T = CFG_T;                               // stored element of p and g
using A = CFG_A;                               // arithmetic, the rest: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr bool MASTER = CFG_MASTER;            // is there a master? If not, it is null
constexpr int V = Pack<A>::V;                  // elements of m that make 16 bytes
constexpr int RATE = 0, EPS = 1, KEEP = 2, SCALE = 3;    // of the four numbers

extern "C" __global__ void adam_prepare(
    const int* __restrict__ positions,   // (n,)
    long long* __restrict__ steps,       // (P,): of all parameters, by position
    const double* __restrict__ control,  // (4,)
    A* __restrict__ numbers,             // (n, 4)
    double lr,
    double beta1,
    double beta2,
    double eps,
    double weight_decay,                 // AdamW's
    int n)
{
    if (control[SKIP] != 0) return;
    const double rate = lr * control[FACTOR];
    for (int i : grid_stride<int>(n)) {
        const double t = (double)++steps[positions[i]], r = sqrt(1 - pow(beta2, t));
        Pack<A, 4> its;
        its.v[RATE] = (A)(rate * r / (1 - pow(beta1, t)));
        its.v[EPS] = (A)(eps * r);
        its.v[KEEP] = (A)(1 - rate * weight_decay);
        its.v[SCALE] = (A)control[MULTIPLIER];
        reinterpret_cast<Pack<A, 4>*>(numbers)[i] = its;
    }
}

extern "C" __global__ void adam_step(
    T* __restrict__ p,                   // (n,)
    const T* __restrict__ g,             // (n,)
    A* __restrict__ m,                   // (n,)
    A* __restrict__ v,                   // (n,)
    A* __restrict__ master,              // (n,)
    const A* __restrict__ numbers,       // (4,)
    const double* __restrict__ control,  // (4,)
    A beta1,
    A new1,                              // 1 - beta1
    A beta2,
    A new2,                              // 1 - beta2
    A decay,                             // Adam's
    long long n)
{
    if (control[SKIP] != 0) return;
    const A rate = numbers[RATE], eps = numbers[EPS], keep = numbers[KEEP], scale = numbers[SCALE];
    for (I t : grid_stride<I>(n / V)) {
        Pack<T, V> ps = reinterpret_cast<Pack<T, V>*>(p)[t];
        const Pack<T, V> gs = reinterpret_cast<const Pack<T, V>*>(g)[t];
        Pack<A> ms = reinterpret_cast<Pack<A>*>(m)[t], vs = reinterpret_cast<Pack<A>*>(v)[t], ws;
        if constexpr (MASTER) ws = reinterpret_cast<Pack<A>*>(master)[t];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            A w = (A)ps.v[i];
            if constexpr (MASTER) w = behind(ps.v[i], ws.v[i]);
            w *= keep;
            A d = scale * (A)gs.v[i];
            if (decay != 0) d += decay * w;
            ms.v[i] = beta1 * ms.v[i] + new1 * d;
            vs.v[i] = beta2 * vs.v[i] + new2 * (d * d);
            w -= rate * (ms.v[i] / (sqrt(vs.v[i]) + eps));
            ps.v[i] = (T)w;
            if constexpr (MASTER) ws.v[i] = w;
        }
        reinterpret_cast<Pack<T, V>*>(p)[t] = ps;
        reinterpret_cast<Pack<A>*>(m)[t] = ms;
        reinterpret_cast<Pack<A>*>(v)[t] = vs;
        if constexpr (MASTER) reinterpret_cast<Pack<A>*>(master)[t] = ws;
    }
}
