// Max pooling over 2-d windows, NHWC, forward and backward.        gpuconv/ops/pool/max_pool.py
//
//   y[n,p,q,c]  = max_{r<R, s<S} x[n, p*SH-PT+r*DH, q*SW-PL+s*DW, c]          -inf outside x
//   gx[n,h,w,c] = sum_{p,q} gy[n,p,q,c] * [argmax[n,p,q,c] points at (h,w)]
//
// Launch   1-d, any grid, any block, no shared memory. A thread has 16 bytes of channels where C
//          and the addresses allow, else one channel: of a pixel of y in forward, of SH*SW pixels of
//          gx in backward, which lie in the same windows. Neighbouring threads hold neighbouring
//          channels.
// Traffic  forward   reads x <= N*H*W*C (overlaps hit L1/L2: asks <= N*P*Q*R*S*C), writes y
//                    N*P*Q*C, argmax N*P*Q*C: 1 byte each, 4 for windows over 256 pixels.
//          backward  reads argmax/gy <= N*P*Q*C (overlaps: asks <= N*P*Q*R*S*C), writes gx N*H*W*C,
//                    every one once: no memset.
//          Coalesced where C fills whole sectors, else at most 3 times the sectors.
// Order    backward gathers in a fixed order, without atomics: runs are bit-identical.
//
// Source: CS231n, Convolutional Networks, Pooling Layer.

#include "common/common.cuh"
#include "common/pack.cuh"
#include "common/window.cuh"

using T = CFG_T;                               // stored element of x, y, gy, gx
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
using Mark = CFG_MARK;                         // argmax: unsigned char, or int for huge windows
constexpr bool SAVE = CFG_SAVE;                // write argmax? If not, it is null
constexpr int R = CFG_R, S = CFG_S;            // window, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;        // stride, pixels
constexpr int DH = CFG_DH, DW = CFG_DW;        // distance of a window's pixels
constexpr int PT = CFG_PT, PL = CFG_PL;        // padding above and left of x, pixels
constexpr int V = Pack<T>::V;                  // channels of 16 bytes
static_assert(PT <= (R - 1) * DH && PL <= (S - 1) * DW, "a mark of a window is one of its pixels");
static_assert(R * S <= 256 || sizeof(Mark) == 4, "r*S + s does not fit one byte");

template <int V>
struct Marked {
    Pack<T, V> g;
    Pack<Mark, V> where;
};

// The first pixel of a window that lies in x, r*S + s. Dilation may leave none: a place outside x.
__device__ inline int first_inside(int top, int left)
{
    return ceil_div(max(0, -top), DH) * S + ceil_div(max(0, -left), DW);
}

template <int V>
__device__ inline void forward(
    const T* x, T* y, Mark* argmax, int N, int H, int W, int C, int P, int Q)
{
    const int packs = C / V;
    for (I t : grid_stride<I>((long long)N * P * Q * packs)) {
        const Place at = place(t, P, Q, packs);
        const int top = at.h * SH - PT, left = at.w * SW - PL;
        const Pack<T, V>* image = reinterpret_cast<const Pack<T, V>*>(x) + at.n * H * W * packs;

        A best[V];
        Pack<Mark, V> where;
        for (int i = 0; i < V; ++i) {
            best[i] = log((A)0);         // -inf
            where.v[i] = (Mark)first_inside(top, left);
        }
        const auto load = [&](int h, int w) { return image[((I)h * W + w) * packs + at.c]; };
        each_pixel<R, S, DH, DW>(top, left, H, W, load, [&](Pack<T, V> pixel, int, int, int rs) {
            for (int i = 0; i < V; ++i) {
                const A v = (A)pixel.v[i];
                if (!(v <= best[i]) && !isnan(best[i])) {  // larger, or the first NaN
                    best[i] = v;
                    where.v[i] = (Mark)rs;
                }
            }
        });
        Pack<T, V> result;
        for (int i = 0; i < V; ++i) result.v[i] = (T)best[i];
        reinterpret_cast<Pack<T, V>*>(y)[t] = result;
        if constexpr (SAVE) reinterpret_cast<Pack<Mark, V>*>(argmax)[t] = where;
    }
}

template <int V>
__device__ inline void backward(
    const T* gy, const Mark* argmax, T* gx, int N, int H, int W, int C, int P, int Q)
{
    const int packs = C / V, down = ceil_div(H + PT, SH), across = ceil_div(W + PL, SW);
    for (I t : grid_stride<I>((long long)N * down * across * packs)) {
        const Place at = place(t, down, across, packs);
        Pack<T, V>* image = reinterpret_cast<Pack<T, V>*>(gx) + at.n * H * W * packs + at.c;
        const auto load = [&](int p, int q) {
            const I o = ((at.n * P + p) * Q + q) * packs + at.c;
            return Marked<V>{reinterpret_cast<const Pack<T, V>*>(gy)[o],
                             reinterpret_cast<const Pack<Mark, V>*>(argmax)[o]};
        };
        const auto use = [](auto* sum, const Marked<V>& m, int rs) {
            for (int i = 0; i < V; ++i) sum[i] += m.where.v[i] == rs ? (A)m.g.v[i] : (A)0;
        };
        const auto store = [&](int h, int w, const auto* sum) {
            Pack<T, V> result;
            for (int i = 0; i < V; ++i) result.v[i] = (T)(A)sum[i];
            image[((I)h * W + w) * packs] = result;
        };
        each_tile_pixel<V, A, R, S, SH, SW, DH, DW, PT, PL>(at.h, at.w, H, W, P, Q, load, use, store);
    }
}

extern "C" __global__ void max_pool_forward(
    const T* __restrict__ x,             // (N, H, W, C)
    T* __restrict__ y,                   // (N, P, Q, C)
    Mark* __restrict__ argmax,           // (N, P, Q, C)   r*S + s of the first NaN, or maximum
    int N, int H, int W, int C, int P, int Q)
{
    if (C % V == 0 && is_aligned(x) && is_aligned(y) && is_aligned(argmax))
        forward<V>(x, y, argmax, N, H, W, C, P, Q);
    else
        forward<1>(x, y, argmax, N, H, W, C, P, Q);
}

extern "C" __global__ void max_pool_backward(
    const T* __restrict__ gy,            // (N, P, Q, C)
    const Mark* __restrict__ argmax,     // (N, P, Q, C)
    T* __restrict__ gx,                  // (N, H, W, C)
    int N, int H, int W, int C, int P, int Q)
{
    if (C % V == 0 && is_aligned(gy) && is_aligned(argmax) && is_aligned(gx))
        backward<V>(gy, argmax, gx, N, H, W, C, P, Q);
    else
        backward<1>(gy, argmax, gx, N, H, W, C, P, Q);
}
