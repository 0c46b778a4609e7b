// Image patches as rows of a matrix, and back, NHWC.               gpuconv/ops/conv/im2col.py
//
//   col[n,p,q, (r*S + s)*C + c] = x[n, p*SH-PT+r*DH, q*SW-PL+s*DW, c]           0 outside x
//   x[n,h,w,c] = sum_{r,s} col[n,p,q, (r*S + s)*C + c]
//                with p*SH = h + PT - r*DH and q*SW = w + PL - s*DW, where such p, q exist
//
// Launch   1-d, any grid, any block, no shared memory: one thread per 16 bytes of the output array
//          where C and the addresses allow, else per element. Neighbouring threads hold
//          neighbouring channels.
// Traffic  im2col    reads x <= N*H*W*C (overlaps hit L1/L2: asks <= N*P*Q*R*S*C), writes col
//                    N*P*Q*R*S*C.
//          col2im    reads col <= N*P*Q*R*S*C (outside of it the nearest: asks <= N*H*W*C*R*S),
//                    writes x N*H*W*C, every one once: no memset.
//          Coalesced where C fills whole sectors, else at most 4.5 times the sectors (col2im).
// Order    col2im gathers in a fixed order, without atomics: runs are bit-identical.
//
// Source: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
// processing", 2006.

#include "common/common.cuh"
#include "common/pack.cuh"
#include "common/window.cuh"

using T = CFG_T;                               // stored element of x and col
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int R = CFG_R, S = CFG_S;            // window, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;        // stride, pixels
constexpr int DH = CFG_DH, DW = CFG_DW;        // distance of a window's pixels
constexpr int PT = CFG_PT, PL = CFG_PL;        // zeros above and left of x, pixels
constexpr int V = Pack<T>::V;                  // channels of 16 bytes

template <int V>
__device__ inline void unfold(
    const T* x, T* col, int N, int H, int W, int C, int P, int Q)
{
    const int packs = C / V;                              // of a pixel
    for (I t : grid_stride<I>((long long)N * P * Q * R * S * packs)) {
        const Place pixel = place(t, R, S, packs);        // n: n*P*Q + p*Q + q
        const Place at = place(pixel.n, P, Q, 1);

        const int h = at.h * SH - PT + pixel.h * DH, w = at.w * SW - PL + pixel.w * DW;
        Pack<T, V> v = {};
        if (0 <= h && h < H && 0 <= w && w < W)
            v = reinterpret_cast<const Pack<T, V>*>(x)[
                (((I)at.n * H + h) * W + w) * packs + pixel.c];
        reinterpret_cast<Pack<T, V>*>(col)[t] = v;
    }
}

template <int V>
__device__ inline void fold(
    const T* col, T* x, int N, int H, int W, int C, int P, int Q)
{
    const int packs = C / V;
    for (I t : grid_stride<I>((long long)N * H * W * packs)) {
        const Place at = place(t, H, W, packs);
        const Pack<T, V>* image = reinterpret_cast<const Pack<T, V>*>(col)
            + (I)at.n * P * Q * (R * S) * packs + at.c;

        A sum[V] = {};
        // rs of a window where (h, w) is none of its pixels is any number: keep it within the row
        each_window<R, S, SH, SW, DH, DW, PT, PL>(
            at.h, at.w, P, Q,
            [&](int p, int q) {
                const int r = (at.h + PT - p * SH) / DH, s = (at.w + PL - q * SW) / DW;
                const int rs = min(max(r, 0), R - 1) * S + min(max(s, 0), S - 1);
                return image[(((I)p * Q + q) * (R * S) + rs) * packs];
            },
            [&](Pack<T, V> v, int, int, int) {
                for (int i = 0; i < V; ++i) sum[i] += (A)v.v[i];
            });
        Pack<T, V> result;
        for (int i = 0; i < V; ++i) result.v[i] = (T)sum[i];
        reinterpret_cast<Pack<T, V>*>(x)[t] = result;
    }
}

extern "C" __global__ void im2col(
    const T* __restrict__ x,             // (N, H, W, C)
    T* __restrict__ col,                 // (N, P, Q, R*S*C)
    int N, int H, int W, int C, int P, int Q)
{
    if (C % V == 0 && is_aligned(x) && is_aligned(col))
        unfold<V>(x, col, N, H, W, C, P, Q);
    else
        unfold<1>(x, col, N, H, W, C, P, Q);
}

extern "C" __global__ void col2im(
    const T* __restrict__ col,           // (N, P, Q, R*S*C)
    T* __restrict__ x,                   // (N, H, W, C)
    int N, int H, int W, int C, int P, int Q)
{
    if (C % V == 0 && is_aligned(x) && is_aligned(col))
        fold<V>(col, x, N, H, W, C, P, Q);
    else
        fold<1>(col, x, N, H, W, C, P, Q);
}
