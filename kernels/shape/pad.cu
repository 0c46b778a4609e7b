// Pixels around an image, NHWC, forward and backward.                   gpuconv/ops/shape/pad.py
//
//   y[n,h,w,c]  = x[n, source(h - top), source(w - left), c]          0 where there is no source
//   gx[n,h,w,c] = sum of gy[n,i,j,c] over the (i, j) whose source is (h, w)
//
//   source(p), of a line of n: MODE 0 zeros      p inside, else none
//                              MODE 1 reflect    -p, p, 2*(n-1) - p
//                              MODE 2 replicate  the nearest
//                              MODE 3 circular   p + n, p, p - n
//
// Launch   1-d, any grid, any block, no shared memory: one thread per 16 bytes of the output array
//          where C and the addresses allow, else per element. Neighbouring threads hold neighbouring
//          channels.
// Traffic  forward   reads x <= N*H*W*C (the border from cache: asks <= N*HY*WY*C), writes y
//                    N*HY*WY*C.
//          backward  reads gy <= N*HY*WY*C, writes gx N*H*W*C.
//          Coalesced where C fills whole sectors, else at most 3 times the sectors.
// Order    backward adds in the order of rows, then columns, that a pixel was copied to: fixed.
//
// Source: NumPy's pad, modes "constant", "reflect", "edge" and "wrap".

#include "common/common.cuh"
#include "common/pack.cuh"
#include "common/window.cuh"

using T = CFG_T;                               // stored element of x, y, gy, gx
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int MODE = CFG_MODE;                 // zeros, reflect, replicate, circular
constexpr int V = Pack<T>::V;                  // channels of 16 bytes

// Where position p of a padded line comes from; outside of 0 .. n-1: from nowhere.
__device__ inline int source(int p, int n)
{
    if (MODE == 1) return p < 0 ? -p : p < n ? p : 2 * (n - 1) - p;
    if (MODE == 2) return min(max(p, 0), n - 1);
    if (MODE == 3) return p < 0 ? p + n : p < n ? p : p - n;
    return p;
}

// The places of a padded line of `all` that pixel h of n may have been copied to: how many, and the
// k-th, -1 if it was not. `near` pixels stand before the line.
__device__ inline int places(int h, int near, int n, int all)
{
    if (MODE == 2) return 1 + (h == 0 ? near : 0) + (h == n - 1 ? all - near - n : 0);
    return MODE == 0 ? 1 : 3;
}
__device__ inline int place_of(int k, int h, int near, int n, int all)
{
    int i = near + h;
    if (MODE == 1 && k == 0) i = h > 0 ? near - h : -1;
    if (MODE == 1 && k == 2) i = h < n - 1 ? near + 2 * (n - 1) - h : -1;
    if (MODE == 2) i = k + (h == 0 ? 0 : near + h);
    if (MODE == 3) i += (k - 1) * n;
    return 0 <= i && i < all ? i : -1;
}

template <int V>
__device__ inline void forward(
    const T* x, T* y, int N, int H, int W, int C, int HY, int WY, int top, int left)
{
    const int packs = C / V;
    for (I t : grid_stride<I>((long long)N * HY * WY * packs)) {
        const Place at = place(t, HY, WY, packs);
        const int h = source(at.h - top, H), w = source(at.w - left, W);
        Pack<T, V> v = {};
        if (0 <= h && h < H && 0 <= w && w < W)
            v = reinterpret_cast<const Pack<T, V>*>(x)[((at.n * H + h) * W + w) * packs + at.c];
        reinterpret_cast<Pack<T, V>*>(y)[t] = v;
    }
}

template <int V>
__device__ inline void backward(
    const T* gy, T* gx, int N, int H, int W, int C, int HY, int WY, int top, int left)
{
    const int packs = C / V;
    for (I t : grid_stride<I>((long long)N * H * W * packs)) {
        const Place at = place(t, H, W, packs);
        const int rows = places(at.h, top, H, HY), columns = places(at.w, left, W, WY);
        A sum[V] = {};
        for (int k = 0; k < rows; ++k) {
            const int i = place_of(k, at.h, top, H, HY);
            for (int l = 0; i >= 0 && l < columns; ++l) {
                const int j = place_of(l, at.w, left, W, WY);
                if (j < 0) continue;
                const Pack<T, V> g = reinterpret_cast<const Pack<T, V>*>(gy)[
                    ((at.n * HY + i) * WY + j) * packs + at.c];
                for (int c = 0; c < V; ++c) sum[c] += (A)g.v[c];
            }
        }
        Pack<T, V> result;
        for (int c = 0; c < V; ++c) result.v[c] = (T)sum[c];
        reinterpret_cast<Pack<T, V>*>(gx)[t] = result;
    }
}

extern "C" __global__ void pad_forward(
    const T* __restrict__ x,             // (N, H, W, C)
    T* __restrict__ y,                   // (N, HY, WY, C)
    int N, int H, int W, int C, int HY, int WY, int top, int left)
{
    if (C % V == 0 && is_aligned(x) && is_aligned(y))
        forward<V>(x, y, N, H, W, C, HY, WY, top, left);
    else
        forward<1>(x, y, N, H, W, C, HY, WY, top, left);
}

extern "C" __global__ void pad_backward(
    const T* __restrict__ gy,            // (N, HY, WY, C)
    T* __restrict__ gx,                  // (N, H, W, C)
    int N, int H, int W, int C, int HY, int WY, int top, int left)
{
    if (C % V == 0 && is_aligned(gy) && is_aligned(gx))
        backward<V>(gy, gx, N, H, W, C, HY, WY, top, left);
    else
        backward<1>(gy, gx, N, H, W, C, HY, WY, top, left);
}
