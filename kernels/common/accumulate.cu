// Adds arrays to others, up to eight pairs in one launch.                gpuconv/accumulate.py
//
//   y[i] = y[i] + x[i]      of each pair, rounded once
//
// Launch   1-d, one thread per 16 bytes of any y, any grid, any block, no shared memory. A pair that
//          is not there has n = 0. Where x or y does not start at a multiple of 16 bytes, and for
//          the last few elements, a thread takes its elements one by one.
// Traffic  accumulate  reads x0/y0 n0, x1/y1 n1, x2/y2 n2, x3/y3 n3, x4/y4 n4, x5/y5 n5, x6/y6 n6,
//                      x7/y7 n7, writes y0 n0, y1 n1, y2 n2, y3 n3, y4 n4, y5 n5, y6 n6, y7 n7.
//          Coalesced.
// Order    no sums across threads, no atomics: runs are bit-identical.

#include "common/common.cuh"
#include "common/pack.cuh"

using T = CFG_T;                         // stored element of x and y
using A = CFG_A;                         // arithmetic: float, or double for double
constexpr int V = Pack<T>::V;            // elements of a thread

__device__ inline T sum(T y, T x) { return (T)((A)y + (A)x); }

// The t-th 16 bytes of a pair; where it has fewer, t counts on from its end.
__device__ inline bool added(long long& t, T* y, const T* x, long long n)
{
    const long long packs = (n + V - 1) / V, first = t * V;
    if (t >= packs) {
        t -= packs;
        return false;
    }
    if (first + V <= n && is_aligned(y) && is_aligned(x)) {
        Pack<T> ys = reinterpret_cast<Pack<T>*>(y)[t];
        const Pack<T> xs = reinterpret_cast<const Pack<T>*>(x)[t];
#pragma unroll
        for (int i = 0; i < V; ++i) ys.v[i] = sum(ys.v[i], xs.v[i]);
        reinterpret_cast<Pack<T>*>(y)[t] = ys;
    } else {
        for (long long i = first; i < min(first + V, n); ++i) y[i] = sum(y[i], x[i]);
    }
    return true;
}

extern "C" __global__ void accumulate(
    T* y0, const T* x0, long long n0,    // each (n,); x and y may be the same array
    T* y1, const T* x1, long long n1,
    T* y2, const T* x2, long long n2,
    T* y3, const T* x3, long long n3,
    T* y4, const T* x4, long long n4,
    T* y5, const T* x5, long long n5,
    T* y6, const T* x6, long long n6,
    T* y7, const T* x7, long long n7,
    long long packs)                     // of all pairs
{
    for (long long t : grid_stride<long long>(packs)) {
        long long left = t;
        added(left, y0, x0, n0) || added(left, y1, x1, n1) || added(left, y2, x2, n2)
            || added(left, y3, x3, n3) || added(left, y4, x4, n4) || added(left, y5, x5, n5)
            || added(left, y6, x6, n6) || added(left, y7, x7, n7);
    }
}
