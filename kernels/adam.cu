// Adam and AdamW, one flat buffer.                                     gpuconv/optim/adam.py
//
//   w    = keep * p[i]                     keep = 1 - lr * weight_decay for AdamW, else 1
//   d    = g[i] + decay * w                decay = weight_decay for Adam, else 0
//   m[i] = m[i] + (1 - beta1) * (d - m[i])
//   v[i] = beta2 * v[i] + (1 - beta2) * d * d
//   p[i] = w - lr * m[i] / (sqrt(v[i]) + eps)
//
//   lr and eps have the corrections for the t-th step in them, computed in double on the host:
//   lr r / (1 - beta1^t) and eps r, with r = sqrt(1 - beta2^t).
//
// Launch   1-d, one thread per 16 bytes of m, any grid, any block, no shared memory. All four
//          arrays start at multiples of 16 bytes, and n is a multiple of V: flat buffers see to both.
// Traffic  step  reads p/g/m/v n, writes p/m/v n. Coalesced. 28 bytes per float32 parameter, 22 per
//          float16, whose m and v are float32.
// Order    no sums across threads, no atomics: runs are bit-identical.
//
// Source   Kingma, Ba, ICLR 2015; Loshchilov, Hutter, ICLR 2019.

#include "common.cuh"
#include "pack.cuh"

using T = CFG_T;                               // stored element of p and g
using A = CFG_A;                               // arithmetic, m and v: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int V = Pack<A>::V;                  // elements of m that make 16 bytes

struct alignas(V * sizeof(T)) Few {            // as many of p: 16 bytes, or 8
    T v[V];
};

extern "C" __global__ void adam_step(
    T* __restrict__ p,                   // (n,)
    const T* __restrict__ g,             // (n,)
    A* __restrict__ m,                   // (n,)
    A* __restrict__ v,                   // (n,)
    A lr,
    A eps,
    A new1,                              // 1 - beta1
    A beta2,
    A new2,                              // 1 - beta2
    A decay,
    A keep,
    long long n)
{
    for (I t : grid_stride<I>(n / V)) {
        Few ps = reinterpret_cast<Few*>(p)[t];
        const Few gs = reinterpret_cast<const Few*>(g)[t];
        Pack<A> ms = reinterpret_cast<Pack<A>*>(m)[t], vs = reinterpret_cast<Pack<A>*>(v)[t];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const A w = keep * (A)ps.v[i];
            A d = (A)gs.v[i];
            if (decay != 0) d += decay * w;
            ms.v[i] += new1 * (d - ms.v[i]);
            vs.v[i] = beta2 * vs.v[i] + new2 * (d * d);
            ps.v[i] = (T)(w - lr * (ms.v[i] / (sqrt(vs.v[i]) + eps)));
        }
        reinterpret_cast<Few*>(p)[t] = ps;
        reinterpret_cast<Pack<A>*>(m)[t] = ms;
        reinterpret_cast<Pack<A>*>(v)[t] = vs;
    }
}
