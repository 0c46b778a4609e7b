// Convolution on the ordinary cores: forward, and input gradient.   gpuconv/ops/conv/gpu_simt.py
//
//   y[n,p,q,k] = f(bias[k] + residual[n,p,q,k] + sum over r,s,c of  x[n,h,v,c] * w[k,r,s,c])
//                h = p*SH - PT + r*DH,  v = q*SW - PL + s*DW
//
// The input gradient, TURNED: x is the gradient of the output, y that of the input, and
//
//   y[n,p,q,k] = sum over r,s,c of  x[n,h,v,c] * w[c,r,s,k]
//                h = (p + PT - r*DH) / SH,  v = (q + PL - s*DW) / SW,  where both are whole
//
// Pixels with the same p % SH and q % SW, a class, meet the same taps: every RH-th row of w; the
// rows of x that those meet are EH apart. So a class is a convolution without stride, and no factor
// is zero for the sake of a stride. Pixels that no tap meets are in no class and are not written:
// the host fills y with zeros before. With groups all is within a group: c counts from 0, and x, w
// and y are those of the group.
//
// As a product of matrices, y (pixels x K) = x's patches (pixels x R*S*C) times w (R*S*C x K); the
// patches exist only tile by tile, in shared memory.
//
// Launch   1-d, a block of THREADS for each tile of BM pixels of a class and BN filters of a group;
//          tiles of the same pixels are neighbours, x then comes from L2. One grid covers all.
//          Shared memory: 2 BK (BM + BN) numbers of A: one step of BK is multiplied while the next
//          arrives in registers.
// Traffic  simt  reads x <= N*H*W*C (asks <= N*P*Q*R*S*C*-(-K//BN), overlaps hit L1/L2, sectors
//          <= 8), w <= K*R*S*C (asks <= K*R*S*C*(N*P*Q/BM+SH*SW), from L2, sectors <= 8), bias <= K
//          (asks <= K*(N*P*Q/4+8), sectors <= 8), residual N*P*Q*K (sectors <= 8), writes y N*P*Q*K
//          (sectors <= 8): 1 each where channels fill packs, and sectors. Coalesced. No bank
//          conflicts.
// Order    each sum from its first tap to its last, channel by channel: the tile changes no bit.

#include "common/common.cuh"
#include "elementwise/functors.cuh"
#include "conv/simt.cuh"

using T = CFG_T;                                 // stored element
using A = CFG_A;                                 // arithmetic: float, or double for double
using I = CFG_I;                                 // flat index: int, or long long for huge arrays
constexpr bool TURNED = CFG_TURNED;              // the input gradient
constexpr int R = CFG_R, S = CFG_S;              // filter, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;          // stride
constexpr int DH = CFG_DH, DW = CFG_DW;          // dilation
constexpr int PT = CFG_PT, PL = CFG_PL;          // padding at the top and left
using Activation = functor::CFG_ACTIVATION;      // of y
constexpr int BM = CFG_BM, BN = CFG_BN;          // tile of a block: pixels, filters
constexpr int TM = CFG_TM, TN = CFG_TN;          // of a thread
constexpr int BK = 8;                            // depth of a step
constexpr int LX = CFG_LX;                       // channels of x that are read at once
constexpr int LW = CFG_LW;                       // numbers of w, likewise
constexpr int LY = CFG_LY;                       // numbers of y, bias and residual

constexpr int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }
constexpr int RH = SH / gcd(SH, DH), RW = SW / gcd(SW, DW);  // taps from one that meets to the next
constexpr int EH = RH * DH / SH, EW = RW * DW / SW;          // and how far apart they read, pixels
constexpr int STEP_H = TURNED ? -EH : DH, STEP_W = TURNED ? -EW : DW;
constexpr int CLASSES_W = TURNED ? (S < RW ? S : RW) : 1;    // one for each column that begins one
constexpr int CLASSES = TURNED ? (R < RH ? R : RH) * CLASSES_W : 1;
constexpr int NOWHERE = -(1 << 30);              // a row that no tap leads back into an image

using Tile = SimtTile<A, BM, BN, BK, TM, TN>;
constexpr int THREADS = Tile::THREADS;

// One axis of a class: how many pixels and taps it has, its first pixel and tap, and what those read.
struct Axis {
    int pixels, taps, tap, first, a;

    __device__ Axis(int kind, int size, int taps_in_all, int stride, int dilation, int pad,
                    int every) {
        pixels = size, taps = taps_in_all, tap = kind, first = -pad, a = 0;
        if (!TURNED) return;
        a = ((tap * dilation - pad) % stride + stride) % stride;
        pixels = size > a ? (size - a + stride - 1) / stride : 0;
        taps = (taps_in_all - 1 - tap) / every + 1;
        first = (a + pad - tap * dilation) / stride;
    }
};

// A place in the depth of the sums: tap (i, j) of the class, channel c.
struct Depth {
    int i = 0, j = 0, c;

    __device__ void carry(int channels, int taps_w) {
        while (c >= channels) {
            c -= channels;
            if (++j == taps_w) j = 0, ++i;
        }
    }
};

struct Block {                                   // what this block computes
    Axis rows, columns;
    int group, k0, C, K;                         // group, first filter; channels of a group
    I pixel0, pixels;                            // first pixel of the tile; pixels of the class

    __device__ Block(int at, int tiles, int kind, int N, int P, int Q, int C, int K, int groups)
        : rows(kind / CLASSES_W, P, R, SH, DH, PT, RH),
          columns(kind % CLASSES_W, Q, S, SW, DW, PL, RW),
          group(at / tiles % groups), k0(at % tiles * BN), C(C / groups), K(K / groups) {
        pixel0 = (I)(at / tiles / groups / CLASSES) * BM;
        pixels = (I)N * rows.pixels * columns.pixels;
    }
};

// This thread's pixels of x, step after step.
struct Source {
    Turned<T, A, BM, BK, LX, THREADS> tile;
    static constexpr int ROWS = decltype(tile)::ROWS;
    const T* at[ROWS];                           // the first tap of the class, channel 0
    int h[ROWS], v[ROWS];                        // its row and column
    Depth depth;

    __device__ Source(const Block& block, const T* x, int H, int W, int C) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const I pixel = block.pixel0 + tile.row(i), line = pixel / block.columns.pixels;
            const I n = line / block.rows.pixels;
            const int p = line % block.rows.pixels, q = pixel % block.columns.pixels;
            h[i] = block.rows.first + p * (TURNED ? 1 : SH);
            v[i] = block.columns.first + q * (TURNED ? 1 : SW);
            at[i] = x + (((n * H + h[i]) * W + v[i]) * C + block.group * block.C);
            if (pixel >= block.pixels) h[i] = NOWHERE;
        }
        depth.c = tile.d();
        depth.carry(block.C, block.columns.taps);
    }

    __device__ void load(const Block& block, int H, int W, int C) {
        const int down = depth.i * STEP_H, right = depth.j * STEP_W;
        const I to = ((I)down * W + right) * C + depth.c;
        const bool inside = depth.i < block.rows.taps;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const bool valid = inside && (unsigned)(h[i] + down) < (unsigned)H
                               && (unsigned)(v[i] + right) < (unsigned)W;
            tile.held[i] = pack_or_zero<LX>(at[i] + to, valid);
        }
        depth.c += BK;
        depth.carry(block.C, block.columns.taps);
    }
};

// This thread's share of the filters: they lie along the depth.
struct Filters {
    Turned<T, A, BN, BK, LW, THREADS> tile;
    const T* at;
    int d;

    __device__ Filters(const Block& block, const T* w) : d(tile.d()) {
        at = w + ((I)block.group * block.K + block.k0 + tile.row(0)) * (R * S * block.C) + d;
    }

    __device__ void load(const Block& block) {
        const int depth = R * S * block.C;
#pragma unroll
        for (int i = 0; i < decltype(tile)::ROWS; ++i) {
            const bool valid = d < depth && block.k0 + tile.row(i) < block.K;
            tile.held[i] = pack_or_zero<LW>(at + (I)i * decltype(tile)::PASS * depth, valid);
        }
        d += BK, at += BK;
    }
};

// The same where they lie across it: the sums run over the filters of the convolution.
struct TurnedFilters {
    Straight<T, A, BN, BK, LW, THREADS> tile;
    static constexpr int LINES = decltype(tile)::LINES;
    const T* at;                                 // of tap (0, 0), channel 0
    Depth depth[LINES];

    __device__ TurnedFilters(const Block& block, const T* w) {
        at = w + ((I)block.group * block.C * R * S * block.K + block.k0 + tile.m());
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            depth[i].c = tile.line(i);
            depth[i].carry(block.C, block.columns.taps);
        }
    }

    __device__ void load(const Block& block) {
        const bool inside = block.k0 + tile.m() < block.K;
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            Depth& d = depth[i];
            const int r = block.rows.tap + d.i * RH, s = block.columns.tap + d.j * RW;
            const bool valid = inside && d.i < block.rows.taps && tile.line(i) < BK;
            tile.held[i] = pack_or_zero<LW>(at + (((I)d.c * R + r) * S + s) * block.K, valid);
            d.c += BK;
            d.carry(block.C, block.columns.taps);
        }
    }
};

template <bool turned> struct Choose { using Weights = Filters; };
template <> struct Choose<true> { using Weights = TurnedFilters; };
using Weights = Choose<TURNED>::Weights;

// y, from the sums of this thread.
__device__ void store(const Tile& tile, const Block& block, const T* bias, const T* residual, T* y,
                      int P, int Q, int K)
{
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        I pixel = block.pixel0 + tile.row(i);
        if (pixel >= block.pixels) continue;
        if (TURNED && SH * SW > 1) {
            const I line = pixel / block.columns.pixels, n = line / block.rows.pixels;
            const int p = line % block.rows.pixels, q = pixel % block.columns.pixels;
            pixel = (n * P + p * SH + block.rows.a) * Q + q * SW + block.columns.a;
        }
        const I row = pixel * K + block.group * block.K;
#pragma unroll
        for (int j = 0; j < TN; j += LY) {
            const int k = block.k0 + tile.column(j);
            if (k >= block.K) continue;
            Pack<T, LY> out, add, on;
            if (bias) on = *reinterpret_cast<const Pack<T, LY>*>(bias + block.group * block.K + k);
            if (residual) add = *reinterpret_cast<const Pack<T, LY>*>(residual + row + k);
#pragma unroll
            for (int e = 0; e < LY; ++e) {
                A v = tile.sum[i][j + e];
                if (bias) v += (A)on.v[e];
                if (residual) v += (A)add.v[e];
                out.v[e] = (T)Activation::value(v);
            }
            *reinterpret_cast<Pack<T, LY>*>(y + row + k) = out;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS) conv_simt(
    const T* __restrict__ x,                     // (N, H, W, C)
    const T* __restrict__ w,                     // (K, R, S, C/groups); TURNED (C, R, S, K/groups)
    const T* __restrict__ bias,                  // (K,), or null
    const T* __restrict__ residual,              // (N, P, Q, K), or null
    T* __restrict__ y,                           // (N, P, Q, K)
    int N, int H, int W, int C, int P, int Q, int K, int groups)
{
    alignas(16) __shared__ A xs[2][BK * BM], ws[2][BK * BN];
    const int tiles = (K / groups + BN - 1) / BN, kind = blockIdx.x / (tiles * groups) % CLASSES;
    const Block block(blockIdx.x, tiles, kind, N, P, Q, C, K, groups);
    if (block.pixel0 >= block.pixels) return;

    Source source(block, x, H, W, C);
    Weights weights(block, w);
    Tile tile;
    const int steps = (block.rows.taps * block.columns.taps * block.C + BK - 1) / BK;
    source.load(block, H, W, C), weights.load(block);
    source.tile.put(xs[0]), weights.tile.put(ws[0]);
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const int now = step % 2, next = 1 - now;
        source.load(block, H, W, C), weights.load(block);  // past the end: zeros
        tile.template multiply<LX, TURNED ? 0 : LW>(xs[now], ws[now]);
        source.tile.put(xs[next]), weights.tile.put(ws[next]);
        __syncthreads();
    }
    store(tile, block, bias, residual, y, P, Q, K);
}
