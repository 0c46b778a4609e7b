// An elementwise function y = f(x), forward and backward.        gpuconv/ops/elementwise/function.py
//
//   y = f(x)       gx = gy f'(x)
//
//   f is the functor ACTIVATION of functors.cuh: the name of an entry of the table in activation.py.
//
// Launch   1-d, one thread per 64 bytes that it reads, any grid, any block, no shared memory. Arrays
//          that do not start at a multiple of 16 bytes, and the last few elements, go one by one.
// Traffic  forward   reads x n, writes y n.
//          backward  reads gy n, saved n, writes gx n.
//          Coalesced.
// Order    every element on its own: deterministic.

#include "common/common.cuh"
#include "elementwise/functors.cuh"
#include "common/pack.cuh"

using T = CFG_T;                               // stored element
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
using Activation = functor::CFG_ACTIVATION;    // f
constexpr int V = Pack<T>::V;                  // elements of an access
constexpr int DEEP = 4;                        // accesses that a thread has on their way at once

// Up to N packs of x, `step` apart, that begin before the end.
template <int N>
__device__ inline void get(Pack<T>* to, const T* x, long long at, int step, I end)
{
#pragma unroll
    for (int k = 0; k < N; ++k) {
        if (at + k * step < end) to[k] = reinterpret_cast<const Pack<T>*>(x)[at + k * step];
    }
}

// y[i] = f(a[i], b[i]); where b is null, f(a[i], 0).
template <int N, class F>
__device__ inline void map(const T* a, const T* b, T* y, I n, F f)
{
    const I packs = is_aligned(a) && is_aligned(b) && is_aligned(y) ? n / V : 0;
    const long long block = (long long)blockDim.x * N;
    for (long long at = blockIdx.x * block + threadIdx.x; at < packs; at += gridDim.x * block) {
        Pack<T> p[N], q[N];
        get<N>(p, a, at, blockDim.x, packs);
        if (b) get<N>(q, b, at, blockDim.x, packs);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            if (at + k * blockDim.x >= packs) break;
#pragma unroll
            for (int i = 0; i < V; ++i) p[k].v[i] = (T)f((A)p[k].v[i], b ? (A)q[k].v[i] : (A)0);
            reinterpret_cast<Pack<T>*>(y)[at + k * blockDim.x] = p[k];
        }
    }
    const I done = packs * V;
    for (I t : grid_stride<I>(n - done)) {
        y[done + t] = (T)f((A)a[done + t], b ? (A)b[done + t] : (A)0);
    }
}

template <class F>
__device__ inline void map(const T* a, T* y, I n, F f)
{
    map<DEEP>(a, nullptr, y, n, [=](A v, A) { return f(v); });
}

template <class F>
__device__ inline void map(const T* a, const T* b, T* y, I n, F f)
{
    map<DEEP / 2>(a, b, y, n, f);
}

extern "C" __global__ void activation_forward(
    const T* __restrict__ x,             // (n)
    T* __restrict__ y,                   // (n)
    I n)
{
    map(x, y, n, [](A v) { return Activation::value(v); });
}

extern "C" __global__ void activation_backward(
    const T* __restrict__ gy,            // (n)
    const T* __restrict__ saved,         // (n)    x or y; null where the gradient reads neither
    T* __restrict__ gx,                  // (n)
    I n)
{
    map(gy, saved, gx, n, [](A g, A v) { return Activation::gradient(g, v, v); });
}
