// Activations, element by element, forward and backward.        gpuconv/ops/activation.py
//
//   relu     y = max(x, 0), NaN stays      gx = gy where y > 0 or NaN, else 0
//   gelu     y = x * F(x)                  gx = gy * (F(x) + x * f(x))
//   sigmoid  y = 1 / (1 + e^-x)            gx = gy * y * (1 - y)
//   tanh     y = tanh(x)                   gx = gy * (1 - y*y)
//
//   F and f: distribution and density of the normal law, F(x) = erfc(-x / sqrt(2)) / 2.
//
// Launch   1-d, one thread per 16 bytes of y, any grid, any block, no shared memory. Arrays that do
//          not start at a multiple of 16 bytes, and the last few elements, go one by one.
// Traffic  forward        reads x n, writes y n.
//          backward       reads gy n, y n, writes gx n.
//          gelu_backward  reads gy n, x n, writes gx n.
//          Coalesced.
// Order    every element on its own: deterministic.

#include "common.cuh"
#include "pack.cuh"

using T = CFG_T;                               // stored element
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int V = Pack<T>::V;                  // elements per thread and turn

__device__ inline A normal(A x) { return (A)0.5 * erfc(x * (A)-0.70710678118654752); }
__device__ inline A density(A x) { return (A)0.39894228040143268 * exp((A)-0.5 * x * x); }

// y[i] = f(a[i])
template <class F>
__device__ inline void map(const T* a, T* y, I n, F f)
{
    const I packs = is_aligned(a) && is_aligned(y) ? n / V : 0;
    for (I t : grid_stride<I>(packs)) {
        Pack<T> p = reinterpret_cast<const Pack<T>*>(a)[t];
        for (int i = 0; i < V; ++i) p.v[i] = (T)f((A)p.v[i]);
        reinterpret_cast<Pack<T>*>(y)[t] = p;
    }
    const I done = packs * V;
    for (I t : grid_stride<I>(n - done)) y[done + t] = (T)f((A)a[done + t]);
}

// y[i] = f(a[i], b[i])
template <class F>
__device__ inline void map(const T* a, const T* b, T* y, I n, F f)
{
    const I packs = is_aligned(a) && is_aligned(b) && is_aligned(y) ? n / V : 0;
    for (I t : grid_stride<I>(packs)) {
        Pack<T> p = reinterpret_cast<const Pack<T>*>(a)[t];
        const Pack<T> q = reinterpret_cast<const Pack<T>*>(b)[t];
        for (int i = 0; i < V; ++i) p.v[i] = (T)f((A)p.v[i], (A)q.v[i]);
        reinterpret_cast<Pack<T>*>(y)[t] = p;
    }
    const I done = packs * V;
    for (I t : grid_stride<I>(n - done)) y[done + t] = (T)f((A)a[done + t], (A)b[done + t]);
}

extern "C" __global__ void relu_forward(
    const T* __restrict__ x,             // (n)
    T* __restrict__ y,                   // (n)
    I n)
{
    map(x, y, n, [](A v) { return v <= 0 ? (A)0 : v; });
}

extern "C" __global__ void relu_backward(
    const T* __restrict__ gy,            // (n)
    const T* __restrict__ y,             // (n)
    T* __restrict__ gx,                  // (n)
    I n)
{
    map(gy, y, gx, n, [](A g, A v) { return v <= 0 ? (A)0 : g; });
}

extern "C" __global__ void gelu_forward(
    const T* __restrict__ x,             // (n)
    T* __restrict__ y,                   // (n)
    I n)
{
    map(x, y, n, [](A v) { return v * normal(v); });
}

extern "C" __global__ void gelu_backward(
    const T* __restrict__ gy,            // (n)
    const T* __restrict__ x,             // (n)
    T* __restrict__ gx,                  // (n)
    I n)
{
    map(gy, x, gx, n, [](A g, A v) { return g * (normal(v) + v * density(v)); });
}

extern "C" __global__ void sigmoid_forward(
    const T* __restrict__ x,             // (n)
    T* __restrict__ y,                   // (n)
    I n)
{
    map(x, y, n, [](A v) { return (A)1 / ((A)1 + (A)exp(-v)); });
}

extern "C" __global__ void sigmoid_backward(
    const T* __restrict__ gy,            // (n)
    const T* __restrict__ y,             // (n)
    T* __restrict__ gx,                  // (n)
    I n)
{
    map(gy, y, gx, n, [](A g, A v) { return g * v * ((A)1 - v); });
}

extern "C" __global__ void tanh_forward(
    const T* __restrict__ x,             // (n)
    T* __restrict__ y,                   // (n)
    I n)
{
    map(x, y, n, [](A v) { return (A)tanh(v); });
}

extern "C" __global__ void tanh_backward(
    const T* __restrict__ gy,            // (n)
    const T* __restrict__ y,             // (n)
    T* __restrict__ gx,                  // (n)
    I n)
{
    map(gy, y, gx, n, [](A g, A v) { return g * ((A)1 - v * v); });
}
