// Weight gradient of the convolution on the ordinary cores.           gpuconv/ops/conv/gpu_simt.py
//
//   gw[k,r,s,c] = sum over n,p,q of  gy[n,p,q,k] * x[n,h,v,c]
//                 h = p*SH - PT + r*DH,  v = q*SW - PL + s*DW,  c within the group of k
//
// As a product of matrices, gw (K x R*S*C) = gy^T (K x pixels) times x's patches (pixels x R*S*C).
// The pixels are cut into `splits` runs, each of which gives a sum of its own: column_sums.cu adds
// them up.
//
// Launch   1-d, a block of THREADS for each tile of BM filters and BN taps of a group, and each run
//          of the pixels; runs of the same tile are neighbours. One grid covers all.
//          Shared memory: 2 BK (BM + BN) numbers of A, two steps of BK pixels.
// Traffic  wgrad  reads x <= N*H*W*C (asks <= N*P*Q*R*S*C*-(-K//BM), overlaps hit L1/L2, sectors
//          <= 8), gy N*P*Q*K (asks <= N*P*Q*K*-(-R*S*C//BN)*groups, from L2, sectors <= 4), writes
//          sums splits*K*R*S*C/groups (sectors <= 8): 1 each where channels fill sectors.
//          Coalesced. No bank conflicts.
// Order    each sum from the first pixel of its run to the last: the same bits from run to run.

#include "common/common.cuh"
#include "conv/simt.cuh"

using T = CFG_T;                                 // stored element
using A = CFG_A;                                 // arithmetic: float, or double for double
using I = CFG_I;                                 // flat index: int, or long long for huge arrays
constexpr int R = CFG_R, S = CFG_S;              // filter, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;          // stride
constexpr int DH = CFG_DH, DW = CFG_DW;          // dilation
constexpr int PT = CFG_PT, PL = CFG_PL;          // padding at the top and left
constexpr int BM = CFG_BM, BN = CFG_BN;          // tile of a block: filters, numbers of a filter
constexpr int TM = CFG_TM, TN = CFG_TN;          // of a thread
constexpr int BK = 8;                            // pixels of a step
constexpr int LX = CFG_LX;                       // channels of x that are read at once
constexpr int LY = CFG_LY;                       // numbers of gy, likewise

using Tile = SimtTile<A, BM, BN, BK, TM, TN>;
constexpr int THREADS = Tile::THREADS;

struct Block {                                   // what this block computes
    int group, k0, d0, C, K;                     // group, first filter and number; of a group
    I first, end;                                // pixels of the run
};

// This thread's share of gy: some neighbouring filters, step after step of pixels.
struct Gradient {
    Straight<T, A, BM, BK, LY, THREADS> tile;
    const T* at;
    I pixel;
    int K;

    __device__ Gradient(const Block& block, const T* gy, int K) : K(K) {
        const int k = block.k0 + tile.m();
        pixel = k < block.K ? block.first + tile.line(0) : block.end;
        at = gy + ((block.first + tile.line(0)) * K + block.group * block.K + k);
    }

    __device__ void load(const Block& block) {
#pragma unroll
        for (int i = 0; i < decltype(tile)::LINES; ++i) {
            constexpr int PASS = decltype(tile)::PASS;
            const bool valid = pixel + i * PASS < block.end && tile.line(i) < BK;
            tile.held[i] = pack_or_zero<LY>(at + (I)i * PASS * K, valid);
        }
        pixel += BK, at += (I)BK * K;
    }
};

// This thread's share of x: some neighbouring channels of one tap.
struct Source {
    Straight<T, A, BN, BK, LX, THREADS> tile;
    static constexpr int LINES = decltype(tile)::LINES;
    const T* at;
    int top, left;                               // what the tap adds to a pixel
    int n[LINES], p[LINES], q[LINES];            // the pixels of this step

    __device__ Source(const Block& block, const T* x, int P, int Q) {
        const int d = block.d0 + tile.m(), tap = d / block.C;
        top = tap < R * S ? tap / S * DH - PT : -(1 << 30), left = tap % S * DW - PL;
        at = x + (block.group * block.C + d % block.C);
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            const I pixel = block.first + tile.line(i), line = pixel / Q;
            n[i] = line / P, p[i] = line % P, q[i] = pixel % Q;
        }
    }

    __device__ void load(I left_over, int H, int W, int C, int P, int Q) {
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            const int h = p[i] * SH + top, v = q[i] * SW + left;
            const bool valid = (unsigned)h < (unsigned)H && (unsigned)v < (unsigned)W
                               && tile.line(i) < left_over && tile.line(i) < BK;
            tile.held[i] = pack_or_zero<LX>(at + (((I)n[i] * H + h) * W + v) * C, valid);
            q[i] += BK;
            while (q[i] >= Q) {
                q[i] -= Q;
                if (++p[i] == P) p[i] = 0, ++n[i];
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS) conv_simt_wgrad(
    const T* __restrict__ x,                     // (N, H, W, C)
    const T* __restrict__ gy,                    // (N, P, Q, K)
    A* __restrict__ sums,                        // (splits, K, R, S, C/groups)
    int N, int H, int W, int C, int P, int Q, int K, int groups, int splits,
    I run)                                       // pixels of a split
{
    alignas(16) __shared__ A gys[2][BK * BM], xs[2][BK * BN];
    const int depth = R * S * (C / groups), tiles_n = (depth + BN - 1) / BN;
    const int tiles_m = (K / groups + BM - 1) / BM, split = blockIdx.x % splits;
    const int at = blockIdx.x / splits;
    const I pixels = (I)N * P * Q, first = split * run;
    const Block block = {at / tiles_n / tiles_m, at / tiles_n % tiles_m * BM, at % tiles_n * BN,
                         C / groups, K / groups, first, min(first + run, pixels)};

    Gradient gradient(block, gy, K);
    Source source(block, x, P, Q);
    Tile tile;
    I left_over = block.end - block.first;       // pixels that are not yet in registers
    const I steps = (left_over + BK - 1) / BK;
    gradient.load(block), source.load(left_over, H, W, C, P, Q);
    gradient.tile.put(gys[0]), source.tile.put(xs[0]);
    __syncthreads();
#pragma unroll 1
    for (I step = 0; step < steps; ++step) {
        const int now = step % 2, next = 1 - now;
        left_over -= BK;
        gradient.load(block), source.load(left_over, H, W, C, P, Q);  // past the end: zeros
        tile.template multiply<0, 0>(gys[now], xs[now]);
        gradient.tile.put(gys[next]), source.tile.put(xs[next]);
        __syncthreads();
    }

    A* const to = sums + ((I)split * K + block.group * block.K) * depth;
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        const int k = block.k0 + tile.row(i);
#pragma unroll
        for (int j = 0; j < TN; j += LX) {       // packs of x are packs of gw
            const int d = block.d0 + tile.column(j);
            if (k >= block.K || d >= depth) continue;
            Pack<A, LX> out;
#pragma unroll
            for (int e = 0; e < LX; ++e) out.v[e] = tile.sum[i][j + e];
            *reinterpret_cast<Pack<A, LX>*>(to + ((I)k * depth + d)) = out;
        }
    }
}
