// Average pooling over 2-d windows, NHWC, forward and backward.    gpuconv/ops/pool/avg_pool.py
//
//   y[n,p,q,c]  = sum_{r<R, s<S} x[n, p*SH-PT+r, q*SW-PL+s, c] / D[p,q]       0 outside x
//   gx[n,h,w,c] = sum_{(p,q) over (h,w)} gy[n,p,q,c] / D[p,q]
//   D[p,q]      = pixels of the window inside x or, with INCLUDE, inside x and its padding
//
// Launch   1-d, any grid, any block, no shared memory. A thread has 16 bytes of channels where C
//          and the addresses allow, else one channel: of a pixel of y in forward, of SH*SW pixels of
//          gx in backward, which lie in the same windows. Neighbouring threads hold neighbouring
//          channels.
// Traffic  forward   reads x <= N*H*W*C (overlaps hit L1/L2: asks <= N*P*Q*R*S*C), writes y
//                    N*P*Q*C.
//          backward  reads gy N*P*Q*C (likewise: asks <= N*P*Q*R*S*C), writes gx N*H*W*C, every one
//                    once: no memset before it.
//          Coalesced where C fills whole sectors, else at most 3 times the sectors.
// Order    both sum in a fixed order, without atomics: runs are bit-identical.
//
// Source: CS231n, Convolutional Networks, Pooling Layer (General pooling).

#include "common/common.cuh"
#include "common/pack.cuh"
#include "common/window.cuh"

using T = CFG_T;                               // stored element of x, y, gy, gx
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int R = CFG_R, S = CFG_S;            // window, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;        // stride, pixels
constexpr int PT = CFG_PT, PB = CFG_PB;        // padding above and below x, pixels
constexpr int PL = CFG_PL, PR = CFG_PR;        // padding left and right of x, pixels
constexpr int FULL_R = CFG_FULL_R, FULL_S = CFG_FULL_S;  // window that the mean counts: beside the
constexpr int CUT_R = CFG_CUT_R, CUT_S = CFG_CUT_S;      // R x S, and above and left of these, it
                                                         // has pixels that are never inside x
constexpr bool INCLUDE = CFG_INCLUDE;          // does padding count in the mean?
constexpr int V = Pack<T>::V;                  // channels of 16 bytes
static_assert(CFG_DH == 1 && CFG_DW == 1, "a window without holes");
static_assert(2 * (PT + CUT_R) <= FULL_R && 2 * PB <= FULL_R && 2 * (PL + CUT_S) <= FULL_S
              && 2 * PR <= FULL_S, "a window without pixels");

// Pixels from start on that the mean counts, along one axis: n of image, then `far` of padding.
__device__ inline int counted(int start, int size, int n, int far) {
    return INCLUDE ? min(start + size, n + far) - start : min(start + size, n) - max(start, 0);
}

// How many pixels the mean of window (p, q) is over.
__device__ inline A divisor(int p, int q, int H, int W) {
    return (A)counted(p * SH - PT - CUT_R, FULL_R, H, PB)
           * (A)counted(q * SW - PL - CUT_S, FULL_S, W, PR);
}

template <int V>
struct Share {
    Pack<T, V> g;
    A each;                                    // 1 / D
};

template <int V>
__device__ inline void forward(const T* x, T* y, int N, int H, int W, int C, int P, int Q)
{
    const int packs = C / V;
    for (I t : grid_stride<I>((long long)N * P * Q * packs)) {
        const Place at = place(t, P, Q, packs);
        const Pack<T, V>* image = reinterpret_cast<const Pack<T, V>*>(x) + at.n * H * W * packs;

        typename SumOf<(R * S > MANY), A>::Type sum[V] = {};
        const auto load = [&](int h, int w) { return image[((I)h * W + w) * packs + at.c]; };
        each_pixel<R, S, 1, 1>(
            at.h * SH - PT, at.w * SW - PL, H, W, load, [&](Pack<T, V> pixel, int, int, int) {
                for (int i = 0; i < V; ++i) sum[i] += (A)pixel.v[i];
            });
        const A D = divisor(at.h, at.w, H, W);
        Pack<T, V> result;
        for (int i = 0; i < V; ++i) result.v[i] = (T)((A)sum[i] / D);
        reinterpret_cast<Pack<T, V>*>(y)[t] = result;
    }
}

template <int V>
__device__ inline void backward(const T* gy, T* gx, int N, int H, int W, int C, int P, int Q)
{
    const int packs = C / V, down = ceil_div(H + PT, SH), across = ceil_div(W + PL, SW);
    for (I t : grid_stride<I>((long long)N * down * across * packs)) {
        const Place at = place(t, down, across, packs);
        Pack<T, V>* image = reinterpret_cast<Pack<T, V>*>(gx) + at.n * H * W * packs + at.c;
        const auto load = [&](int p, int q) {
            return Share<V>{reinterpret_cast<const Pack<T, V>*>(gy)[
                                ((at.n * P + p) * Q + q) * packs + at.c],
                            (A)1 / divisor(p, q, H, W)};
        };
        const auto use = [](auto* sum, const Share<V>& share, int) {
            for (int i = 0; i < V; ++i) sum[i] += (A)share.g.v[i] * share.each;
        };
        const auto store = [&](int h, int w, const auto* sum) {
            Pack<T, V> result;
            for (int i = 0; i < V; ++i) result.v[i] = (T)(A)sum[i];
            image[((I)h * W + w) * packs] = result;
        };
        each_tile_pixel<V, A, R, S, SH, SW, 1, 1, PT, PL>(at.h, at.w, H, W, P, Q, load, use, store);
    }
}

extern "C" __global__ void avg_pool_forward(
    const T* __restrict__ x,             // (N, H, W, C)
    T* __restrict__ y,                   // (N, P, Q, C)
    int N, int H, int W, int C, int P, int Q)
{
    if (C % V == 0 && is_aligned(x) && is_aligned(y))
        forward<V>(x, y, N, H, W, C, P, Q);
    else
        forward<1>(x, y, N, H, W, C, P, Q);
}

extern "C" __global__ void avg_pool_backward(
    const T* __restrict__ gy,            // (N, P, Q, C)
    T* __restrict__ gx,                  // (N, H, W, C)
    int N, int H, int W, int C, int P, int Q)
{
    if (C % V == 0 && is_aligned(gy) && is_aligned(gx))
        backward<V>(gy, gx, N, H, W, C, P, Q);
    else
        backward<1>(gy, gx, N, H, W, C, P, Q);
}
