// Image patches as rows of a matrix, and back, NHWC.               gpuconv/ops/im2col.py
//
//   col[g, (n*P + p)*Q + q, (r*S + s)*CG + c] = x[n, p*SH-PT+r*DH, q*SW-PL+s*DW, g*CG + c]
//                                               0 outside x; CG = C/G channels in each of G groups
//   x[n,h,w,g*CG+c] = sum_{r,s} col[g, (n*P + p)*Q + q, (r*S + s)*CG + c]
//                     with p*SH = h + PT - r*DH and q*SW = w + PL - s*DW, where such p, q exist
//
// Launch   1-d, one thread per element of the output array, any grid, any block, no shared memory.
//          Neighbouring threads hold neighbouring channels.
// Traffic  im2col    reads x <= N*H*W*C (overlaps hit L1/L2: asks <= N*P*Q*R*S*C), writes col
//                    N*P*Q*R*S*C.
//          col2im    reads col <= N*P*Q*R*S*C, writes x N*H*W*C, every one once: no memset.
//          Coalesced where C/G fills whole sectors, else at most 4.5 times the sectors (col2im).
// Order    col2im gathers in a fixed order, without atomics: runs are bit-identical.
//
// Source: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
// processing", 2006.

#include "common.cuh"

using T = CFG_T;                               // stored element of x and col
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int R = CFG_R, S = CFG_S;            // window, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;        // stride, pixels
constexpr int DH = CFG_DH, DW = CFG_DW;        // distance of a window's pixels
constexpr int PT = CFG_PT, PL = CFG_PL;        // zeros above and left of x, pixels

extern "C" __global__ void im2col(
    const T* __restrict__ x,             // (N, H, W, C)
    T* __restrict__ col,                 // (G, N*P*Q, R*S*CG)
    int N, int H, int W, int C, int P, int Q, int G)
{
    const int CG = C / G;
    for (I t : grid_stride<I>((long long)N * P * Q * R * S * C)) {
        const int c = t % CG, s = t / CG % S, r = t / CG / S % R;
        const I row = t / CG / S / R;                         // (g*N + n)*P*Q + p*Q + q
        const int q = row % Q, p = row / Q % P;
        const I n = row / Q / P % N, g = row / Q / P / N;

        const int h = p * SH - PT + r * DH, w = q * SW - PL + s * DW;
        const bool inside = 0 <= h && h < H && 0 <= w && w < W;
        col[t] = inside ? x[((n * H + h) * W + w) * C + g * CG + c] : (T)0.f;
    }
}

extern "C" __global__ void col2im(
    const T* __restrict__ col,           // (G, N*P*Q, R*S*CG)
    T* __restrict__ x,                   // (N, H, W, C)
    int N, int H, int W, int C, int P, int Q, int G)
{
    const int CG = C / G;
    for (I t : grid_stride<I>((long long)N * H * W * C)) {
        const int c = t % C % CG, g = t % C / CG, w = t / C % W, h = t / C / W % H;
        const I image = (g * (I)N + t / C / W / H) * P * Q;

        A sum = 0;
        for (int r = 0; r < R; ++r) {
            const int ph = h + PT - r * DH;                   // p * SH
            if (ph < 0 || ph % SH || ph / SH >= P) continue;
            for (int s = 0; s < S; ++s) {
                const int qw = w + PL - s * DW;               // q * SW
                if (qw < 0 || qw % SW || qw / SW >= Q) continue;
                const I row = image + (I)(ph / SH) * Q + qw / SW;
                sum += (A)col[(row * (R * S) + r * S + s) * CG + c];
            }
        }
        x[t] = (T)sum;
    }
}
