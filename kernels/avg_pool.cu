// Average pooling over 2-d windows, NHWC, forward and backward.    gpuconv/ops/avg_pool.py
//
//   y[n,p,q,c]  = sum_{r<R, s<S} x[n, p*SH-PT+r, q*SW-PL+s, c] / D[p,q]       0 outside x
//   gx[n,h,w,c] = sum_{(p,q) over (h,w)} gy[n,p,q,c] / D[p,q]
//   D[p,q]      = pixels of the window inside x or, with INCLUDE, inside x and its padding
//
// Launch   1-d, one thread per element of the output array, any grid, any block, no shared memory.
//          Neighbouring threads hold neighbouring channels.
// Traffic  forward   reads x <= N*H*W*C (overlaps hit L1/L2: asks <= N*P*Q*R*S*C), writes y
//                    N*P*Q*C.
//          backward  reads gy N*P*Q*C (likewise: asks <= N*P*Q*R*S*C), writes gx N*H*W*C, every one
//                    once: no memset before it.
//          Coalesced where C fills whole sectors, else at most 3 times the sectors.
// Order    both sum in a fixed order, without atomics: runs are bit-identical.
//
// Source: CS231n, Convolutional Networks, Pooling Layer (General pooling).

#include "common.cuh"

using T = CFG_T;                               // stored element of x, y, gy, gx
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int R = CFG_R, S = CFG_S;            // window, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;        // stride, pixels
constexpr int PT = CFG_PT, PB = CFG_PB;        // padding above and below x, pixels
constexpr int PL = CFG_PL, PR = CFG_PR;        // padding left and right of x, pixels
constexpr bool INCLUDE = CFG_INCLUDE;          // does padding count in the mean?
static_assert(CFG_DH == 1 && CFG_DW == 1, "a window without holes");
static_assert(2 * PT <= R && 2 * PB <= R && 2 * PL <= S && 2 * PR <= S, "a window without pixels");

// Pixels from start on that the mean counts, along one axis: n of image, then `far` of padding.
__device__ inline int counted(int start, int size, int n, int far) {
    return INCLUDE ? min(start + size, n + far) - start : min(start + size, n) - max(start, 0);
}

extern "C" __global__ void avg_pool_forward(
    const T* __restrict__ x,             // (N, H, W, C)
    T* __restrict__ y,                   // (N, P, Q, C)
    int N, int H, int W, int C, int P, int Q)
{
    for (I t : grid_stride<I>((long long)N * P * Q * C)) {
        const int c = t % C, q = t / C % Q, p = t / C / Q % P;
        const T* image = x + t / C / Q / P * H * W * C + c;

        const int top = p * SH - PT, left = q * SW - PL;
        const int r0 = max(0, -top), r1 = min(R, H - top);    // the part of the window inside x
        const int s0 = max(0, -left), s1 = min(S, W - left);

        A sum = 0;
        for (int r = r0; r < r1; ++r)
            for (int s = s0; s < s1; ++s) sum += (A)image[((I)(top + r) * W + left + s) * C];
        y[t] = (T)(sum / (A)(counted(top, R, H, PB) * counted(left, S, W, PR)));
    }
}

extern "C" __global__ void avg_pool_backward(
    const T* __restrict__ gy,            // (N, P, Q, C)
    T* __restrict__ gx,                  // (N, H, W, C)
    int N, int H, int W, int C, int P, int Q)
{
    for (I t : grid_stride<I>((long long)N * H * W * C)) {
        const int c = t % C, w = t / C % W, h = t / C / W % H;
        const I image = t / C / W / H * P * Q;

        // The windows over (h, w): those with 0 <= h + PT - p*SH < R, and the same for q.
        const int p0 = max(0, ceil_div(h + PT - R + 1, SH)), p1 = min(P - 1, (h + PT) / SH);
        const int q0 = max(0, ceil_div(w + PL - S + 1, SW)), q1 = min(Q - 1, (w + PL) / SW);

        A sum = 0;
        for (int p = p0; p <= p1; ++p) {
            const int rows = counted(p * SH - PT, R, H, PB);
            for (int q = q0; q <= q1; ++q) {
                const A g = (A)gy[(image + (I)p * Q + q) * C + c];
                sum += g / (A)(rows * counted(q * SW - PL, S, W, PR));
            }
        }
        gx[t] = (T)sum;
    }
}
