// Max pooling over 2-d windows, NHWC, forward and backward.        gpuconv/ops/max_pool.py
//
//   y[n,p,q,c]  = max_{r<R, s<S} x[n, p*SH-PT+r*DH, q*SW-PL+s*DW, c]          -inf outside x
//   gx[n,h,w,c] = sum_{p,q} gy[n,p,q,c] * [argmax[n,p,q,c] points at (h,w)]
//
// Launch   1-d, one thread per element of the output array, any grid, any block, no shared memory.
//          Neighbouring threads hold neighbouring channels.
// Traffic  forward   reads x <= N*H*W*C (overlaps hit L1/L2: asks <= N*P*Q*R*S*C), writes y
//                    N*P*Q*C, argmax N*P*Q*C: 1 byte each, 4 for windows over 256 pixels.
//          backward  reads argmax N*P*Q*C (overlaps: asks <= N*P*Q*R*S*C), gy N*P*Q*C (only where
//                    its pixel won: sectors <= 4), writes gx N*H*W*C, every one once: no memset.
//          Coalesced where C fills whole sectors, else at most 3 times the sectors.
// Order    backward gathers in a fixed order, without atomics: runs are bit-identical.
//
// Source: CS231n, Convolutional Networks, Pooling Layer.

#include "common.cuh"

using T = CFG_T;                               // stored element of x, y, gy, gx
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
using Mark = CFG_MARK;                         // argmax: unsigned char, or int for huge windows
constexpr bool SAVE = CFG_SAVE;                // write argmax? If not, it is null
constexpr int R = CFG_R, S = CFG_S;            // window, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;        // stride, pixels
constexpr int DH = CFG_DH, DW = CFG_DW;        // distance of a window's pixels
constexpr int PT = CFG_PT, PL = CFG_PL;        // padding above and left of x, pixels
static_assert(2 * PT <= R && 2 * PL <= S, "the padding is over half of the window");
static_assert(R * S <= 256 || sizeof(Mark) == 4, "r*S + s does not fit one byte");

extern "C" __global__ void max_pool_forward(
    const T* __restrict__ x,             // (N, H, W, C)
    T* __restrict__ y,                   // (N, P, Q, C)
    Mark* __restrict__ argmax,           // (N, P, Q, C)   r*S + s of the first NaN, or maximum
    int N, int H, int W, int C, int P, int Q)
{
    for (I t : grid_stride<I>((long long)N * P * Q * C)) {
        const int c = t % C, q = t / C % Q, p = t / C / Q % P;
        const T* image = x + t / C / Q / P * H * W * C + c;

        const int top = p * SH - PT, left = q * SW - PL;
        const int r0 = ceil_div(max(0, -top), DH), r1 = min(R, ceil_div(H - top, DH));   // inside x
        const int s0 = ceil_div(max(0, -left), DW), s1 = min(S, ceil_div(W - left, DW));

        int where = r0 * S + s0;         // all -inf: the first. Dilation may leave no pixel in x:
        A best = log((A)0);              // -inf, at a place outside x
        for (int r = r0; r < r1; ++r) {
            for (int s = s0; s < s1; ++s) {
                const A v = (A)image[((I)(top + r * DH) * W + left + s * DW) * C];
                if (v > best || (isnan(v) && !isnan(best))) { best = v; where = r * S + s; }
            }
        }
        y[t] = (T)best;
        if constexpr (SAVE) argmax[t] = (Mark)where;
    }
}

extern "C" __global__ void max_pool_backward(
    const T* __restrict__ gy,            // (N, P, Q, C)
    const Mark* __restrict__ argmax,     // (N, P, Q, C)
    T* __restrict__ gx,                  // (N, H, W, C)
    int N, int H, int W, int C, int P, int Q)
{
    constexpr int EH = DH * (R - 1) + 1, EW = DW * (S - 1) + 1;   // extent of a window, pixels
    for (I t : grid_stride<I>((long long)N * H * W * C)) {
        const int c = t % C, w = t / C % W, h = t / C / W % H;
        const I image = t / C / W / H * P * Q;

        // The windows over (h, w): those with 0 <= h + PT - p*SH < EH, and the same for q.
        const int p0 = max(0, ceil_div(h + PT - EH + 1, SH)), p1 = min(P - 1, (h + PT) / SH);
        const int q0 = max(0, ceil_div(w + PL - EW + 1, SW)), q1 = min(Q - 1, (w + PL) / SW);

        A sum = 0;
        for (int p = p0; p <= p1; ++p) {
            const int dh = h + PT - p * SH;
            if (dh % DH) continue;                                // between two of its pixels
            for (int q = q0; q <= q1; ++q) {
                const int dw = w + PL - q * SW;
                if (dw % DW) continue;
                const I o = (image + (I)p * Q + q) * C + c;
                if (argmax[o] == dh / DH * S + dw / DW) sum += (A)gy[o];
            }
        }
        gx[t] = (T)sum;
    }
}
