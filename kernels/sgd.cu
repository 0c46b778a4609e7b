// Stochastic gradient descent with momentum, one flat buffer.           gpuconv/optim/sgd.py
//
//   d[i] = g[i] + weight_decay * p[i]
//   m[i] = momentum * m[i] + d[i]                                  (MOMENTUM)
//   p[i] = p[i] - lr * d[i]   or  lr * m[i]  (MOMENTUM)  or  lr * (d[i] + momentum * m[i])  (NESTEROV)
//
// Launch   1-d, one thread per 16 bytes of m, or of p without momentum, any grid, any block, no
//          shared memory. p, g and m start at multiples of 16 bytes, and n is a multiple of V: flat
//          buffers see to both.
// Traffic  step  reads p/g n, m n if MOMENTUM, writes p n, m n if MOMENTUM. Coalesced. m is wider
//          than 16-bit p: 20 bytes per float32 parameter (12 without momentum), 14 per float16.
// Order    no sums across threads, no atomics: runs are bit-identical.
//
// Source   Sutskever, Martens, Dahl, Hinton, ICML 2013, section 2.

#include "common.cuh"

using T = CFG_T;                               // stored element of p and g
using A = CFG_A;                               // arithmetic, and m: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr bool MOMENTUM = CFG_MOMENTUM;        // is there an m? If not, it is null
constexpr bool NESTEROV = CFG_NESTEROV;        // look ahead along m?
constexpr int V = 16 / (MOMENTUM ? sizeof(A) : sizeof(T));   // elements of the widest: 16 bytes
static_assert(MOMENTUM || !NESTEROV, "Nesterov's momentum is a momentum");

template <class E>
struct alignas(V * sizeof(E)) Vector {
    E v[V];
};

extern "C" __global__ void sgd_step(
    T* __restrict__ p,                   // (n,)
    const T* __restrict__ g,             // (n,)
    A* __restrict__ m,                   // (n,)
    A lr,
    A momentum,
    A weight_decay,
    long long n)
{
    for (I t : grid_stride<I>(n / V)) {
        Vector<T> ps = reinterpret_cast<Vector<T>*>(p)[t];
        const Vector<T> gs = reinterpret_cast<const Vector<T>*>(g)[t];
        Vector<A> ms;
        if constexpr (MOMENTUM) ms = reinterpret_cast<Vector<A>*>(m)[t];
        for (int i = 0; i < V; ++i) {
            const A w = (A)ps.v[i];
            A d = (A)gs.v[i];
            if (weight_decay != 0) d += weight_decay * w;
            if constexpr (MOMENTUM) {
                ms.v[i] = momentum * ms.v[i] + d;
                d = NESTEROV ? d + momentum * ms.v[i] : ms.v[i];
            }
            ps.v[i] = (T)(w - lr * d);
        }
        reinterpret_cast<Vector<T>*>(p)[t] = ps;
        if constexpr (MOMENTUM) reinterpret_cast<Vector<A>*>(m)[t] = ms;
    }
}
