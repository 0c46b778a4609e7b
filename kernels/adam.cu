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
// Launch   1-d, one thread per 16 bytes of p, any grid, any block, no shared memory. All four
//          arrays start at multiples of 16 bytes, and n is a multiple of V: flat buffers see to both.
// Traffic  reads p, g, m and v, writes p, m and v: 28 bytes per float32 parameter, 22 per float16,
//          whose m and v are float32.
// Order    no sums across threads, no atomics: runs are bit-identical.
//
// Source   Kingma, Ba, ICLR 2015; Loshchilov, Hutter, ICLR 2019.

#include "common.cuh"
#include "pack.cuh"

using T = CFG_T;                               // stored element of p and g
using A = CFG_A;                               // arithmetic, m and v: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int V = Pack<T>::V;                  // elements of p that make 16 bytes
constexpr int W = Pack<A>::V;                  // elements of m that do: V, or half of it

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
        Pack<T> ps = reinterpret_cast<Pack<T>*>(p)[t];
        const Pack<T> gs = reinterpret_cast<const Pack<T>*>(g)[t];
#pragma unroll
        for (int k = 0; k < V / W; ++k) {
            Pack<A>& mp = reinterpret_cast<Pack<A>*>(m)[t * (V / W) + k];
            Pack<A>& vp = reinterpret_cast<Pack<A>*>(v)[t * (V / W) + k];
            Pack<A> ms = mp, vs = vp;
#pragma unroll
            for (int i = 0; i < W; ++i) {
                const A w = keep * (A)ps.v[k * W + i];
                A d = (A)gs.v[k * W + i];
                if (decay != 0) d += decay * w;
                ms.v[i] += new1 * (d - ms.v[i]);
                vs.v[i] = beta2 * vs.v[i] + new2 * (d * d);
                ps.v[k * W + i] = (T)(w - lr * (ms.v[i] / (sqrt(vs.v[i]) + eps)));
            }
            mp = ms;
            vp = vs;
        }
        reinterpret_cast<Pack<T>*>(p)[t] = ps;
    }
}
