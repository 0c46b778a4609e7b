// Convolution in groups of a few channels, depthwise above all.       gpuconv/ops/conv/gpu_simt.py
//
//   y[n,p,q,k]  = f(bias[k] + residual[n,p,q,k] + sum over r,s,c of  x[n,h,v,c] * w[k,r,s,c])
//   gx[n,h,v,c] = sum over r,s,k of  gy[n,p,q,k] * w[k,r,s,c]
//   gw[k,r,s,c] = sum over n,p,q of  gy[n,p,q,k] * x[n,h,v,c]
//                 h = p*SH - PT + r*DH,  v = q*SW - PL + s*DW,  c and k of one group
//
// Launch   forward, dgrad: 1-d, a thread per number, any grid and block, no shared memory.
//          wgrad: a block of BLOCK threads for LANES neighbouring pairs (k, c), a row r
//          of the filter and a run of the pixels; thread t takes t / LANES, + BLOCK/LANES, ... of
//          them, for S sums; shared memory: a number of A a thread. column_sums.cu adds up the runs.
// Traffic  All overlaps hit L1 and L2.
//          forward         reads x <= N*H*W*C (asks <= N*P*Q*R*S*C*K/groups), w <= K*R*S*C/groups
//                          (asks <= N*P*Q*R*S*K*C/groups, sectors <= 8), bias K (asks <= N*P*Q*K),
//                          residual N*P*Q*K, writes y N*P*Q*K.
//          dgrad           reads gy <= N*P*Q*K (asks <= N*H*W*R*S*C*K/groups), w <= K*R*S*C/groups
//                          (asks <= N*H*W*R*S*K*C/groups, sectors <= 8), writes gx N*H*W*C.
//          wgrad           reads x <= N*H*W*C (asks <= N*P*Q*R*S*K*C/groups), gy N*P*Q*K (asks <=
//                          N*P*Q*R*K*C/groups), writes sums splits*K*R*S*C/groups (sectors <= 8).
//          Coalesced where C/groups fills whole sectors, else at most 8 times the sectors. No bank
//          conflicts.
// Order    each thread's sum in the order of its loops, then a tree over the threads of a block.

#include "common/common.cuh"
#include "elementwise/functors.cuh"
#include "common/reduce.cuh"

using T = CFG_T;                                 // stored element
using A = CFG_A;                                 // arithmetic: float, or double for double
using I = CFG_I;                                 // flat index: int, or long long for huge arrays
constexpr int R = CFG_R, S = CFG_S;              // filter, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;          // stride
constexpr int DH = CFG_DH, DW = CFG_DW;          // dilation
constexpr int PT = CFG_PT, PL = CFG_PL;          // padding at the top and left
using Activation = functor::CFG_ACTIVATION;      // of y
constexpr int BLOCK = CFG_BLOCK;                 // threads of a block of the weight gradient
constexpr int LANES = 32;                        // of them beside each other

// Where a number of an array (., HEIGHT, WIDTH, channels) lies.
struct Place {
    I n;
    int h, w, c;
    __device__ Place(I t, int height, int width, int channels) {
        c = t % channels, t /= channels;
        w = t % width, t /= width;
        h = t % height, n = t / height;
    }
};

extern "C" __global__ void conv_depthwise_forward(
    const T* __restrict__ x,                     // (N, H, W, C)
    const T* __restrict__ w,                     // (K, R, S, C/groups)
    const T* __restrict__ bias,                  // (K,), or null
    const T* __restrict__ residual,              // (N, P, Q, K), or null
    T* __restrict__ y,                           // (N, P, Q, K)
    int N, int H, int W, int C, int P, int Q, int K, int groups)
{
    const int CG = C / groups, KG = K / groups;
    for (I t : grid_stride<I>((long long)N * P * Q * K)) {
        const Place at(t, P, Q, K);
        const T* const filter = w + (I)at.c * R * S * CG;
        A sum = 0;
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int h = at.h * SH - PT + r * DH;
            if (h < 0 || h >= H) continue;
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const int v = at.w * SW - PL + s * DW;
                if (v < 0 || v >= W) continue;
                const T* const pixel = x + (((at.n * H + h) * W + v) * C + at.c / KG * CG);
                for (int c = 0; c < CG; ++c) {
                    sum = fma((A)pixel[c], (A)filter[(r * S + s) * CG + c], sum);
                }
            }
        }
        if (bias) sum += (A)bias[at.c];
        if (residual) sum += (A)residual[t];
        y[t] = (T)Activation::value(sum);
    }
}

extern "C" __global__ void conv_depthwise_dgrad(
    const T* __restrict__ gy,                    // (N, P, Q, K)
    const T* __restrict__ w,                     // (K, R, S, C/groups)
    T* __restrict__ gx,                          // (N, H, W, C)
    int N, int H, int W, int C, int P, int Q, int K, int groups)
{
    const int CG = C / groups, KG = K / groups;
    for (I t : grid_stride<I>((long long)N * H * W * C)) {
        const Place at(t, H, W, C);
        const int k0 = at.c / CG * KG;
        const T* const filter = w + ((I)k0 * R * S * CG + at.c % CG);
        A sum = 0;
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int p = at.h + PT - r * DH;
            if (p < 0 || p % SH || p / SH >= P) continue;
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const int q = at.w + PL - s * DW;
                if (q < 0 || q % SW || q / SW >= Q) continue;
                const T* const pixel = gy + (((at.n * P + p / SH) * Q + q / SW) * K + k0);
                for (int k = 0; k < KG; ++k) {
                    sum = fma((A)pixel[k], (A)filter[((I)k * R * S + r * S + s) * CG], sum);
                }
            }
        }
        gx[t] = (T)sum;
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) conv_depthwise_wgrad(
    const T* __restrict__ x,                     // (N, H, W, C)
    const T* __restrict__ gy,                    // (N, P, Q, K)
    A* __restrict__ sums,                        // (splits, K, R, S, C/groups)
    int N, int H, int W, int C, int P, int Q, int K, int groups, int splits,
    I run)                                       // pixels of a split
{
    __shared__ A shared[BLOCK];
    const int CG = C / groups, KG = K / groups, split = blockIdx.x % splits;
    const int r = blockIdx.x / splits % R, lane = threadIdx.x % LANES;
    const I pair = (I)(blockIdx.x / splits / R) * LANES + lane;
    const int k = pair / CG, c = pair % CG;
    const bool mine = k < K;
    const I first = split * run, pixels = (I)N * P * Q, end = min(first + run, pixels);
    const T* const image = x + (k / KG * CG + c);

    A sum[S] = {};
    for (I pixel = first + threadIdx.x / LANES; pixel < end && mine; pixel += BLOCK / LANES) {
        const Place at(pixel, P, Q, 1);
        const int h = at.h * SH - PT + r * DH;
        if (h < 0 || h >= H) continue;
        const A g = (A)gy[pixel * K + k];
#pragma unroll
        for (int s = 0; s < S; ++s) {
            const int v = at.w * SW - PL + s * DW;
            if (v >= 0 && v < W) sum[s] = fma(g, (A)image[((at.n * H + h) * W + v) * C], sum[s]);
        }
    }
    A* const to = sums + (((I)split * K + k) * R + r) * S * CG + c;
#pragma unroll
    for (int s = 0; s < S; ++s) {
        const A all = reduce_columns(shared, sum[s], LANES, Add());
        if (threadIdx.x < LANES && mine) to[s * CG] = all;
    }
}
