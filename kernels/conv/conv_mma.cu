// Convolution on tensor cores, NHWC, and its input gradient.       gpuconv/ops/conv/gpu_mma.py
//
//   y[n,p,q,k]  = f(bias[k] + residual[n,p,q,k] + sum_{r,s,c} w[k,r,s,c] x[n,h,v,c])
//                 h = p*SH-PT+r*DH, v = q*SW-PL+s*DW; f: Activation
//   POOL        y is the maximum over windows of 2 x 2 of that, marks the first place 2*r + s of it
//   MOMENTS     mean and variance per channel, of the rows of y that a block wrote
//   GRADIENT    gx[n,h,v,c] = sum w[k,r,s,c] gy[n,p,q,k] over all p, q, r, s that lead to h, v.
//               Here x is gy, y is gx, k and c change places, w comes from conv_rotate_filters.cu
//
// As a product of matrices, the left one only ever in shared memory, tile by tile:
//
//   Y (pixels x K) = X (pixels x depth) * W^T (depth x K),   pixels = N*P*Q,  depth = R*S*C
//
// The pixels of gx fall into classes by (h % SH, v % SW). Each is a convolution of gy with taps of
// its own: nothing is multiplied by zeros between the rows of gy. Pixels that no tap leads to are in
// no class and are not written: the host fills gx with zeros before.
//
// Archs    sm_80 and newer: mma, ldmatrix and cp.async
// Dtypes   float16, bfloat16, float32: 16-bit products, tf32 products
// Launch   1-d, a block of THREADS per BM x BN tile of Y, every one; tiles of the same pixels are
//          neighbours, then those of the classes. Dynamic shared memory: STAGES tiles of BM x BK
//          and BN x BK, or one of BM x BN where that is more.
// Traffic  conv_mma reads x <= N*H*W*C (overlaps hit L1/L2: asks <= N*P*Q*R*S*C*(K+BN-1)/BN), w
//                   K*R*S*C (asks <= K*R*S*C*(N*P*Q+BM-1)/BM), bias K if bias (asks <=
//                   K*(N*P*Q+BM-1)/WM), residual N*P*Q*K if residual, writes y N*P*Q*K if not
//                   marks, y/marks <= N*P*Q*K/4 if marks, means/vars <= K*(N*P*Q+BM-1)/BM if means.
//          Coalesced where C fills whole sectors, else at most 6 times the sectors. 4 passes where
//          UNIT < 16; else 2 where a tile of 32 columns is pooled, and for moments; else no bank
//          conflicts.
// Order    a sum runs through the depth in steps of one MMA, a block's moments through its rows,
//          both in a fixed order: the same bits from run to run. The hardware adds inside an MMA.
// Source   Chetlur et al., cuDNN, arXiv 1410.0759; NVIDIA, CUTLASS, implicit_gemm_convolution.md.

#include "elementwise/functors.cuh"
#include "common/common.cuh"
#include "conv/epilogue.cuh"
#include "conv/gemm.cuh"

using T = CFG_T;                                 // stored element
using A = CFG_A;                                 // sums
constexpr bool GRADIENT = CFG_GRADIENT;          // of the input; then w is what conv_rotate_filters makes
constexpr int C = CFG_C;                         // channels of x
constexpr int R = CFG_R, S = CFG_S;              // filter, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;          // stride of the convolution, pixels
constexpr int DH = CFG_DH, DW = CFG_DW;          // dilation, pixels
constexpr int PT = CFG_PT, PL = CFG_PL;          // padding above and left of its images, pixels
constexpr int UNIT = CFG_UNIT;                   // bytes of x and w that can be copied at once
constexpr bool WIDE = CFG_WIDE;                  // may rows of y be stored 16 bytes at a time?
constexpr bool BIAS = CFG_BIAS, RESIDUAL = CFG_RESIDUAL, POOL = CFG_POOL, MOMENTS = CFG_MOMENTS;
using Activation = functor::CFG_ACTIVATION;      // of y

constexpr int BM = CFG_BM, BN = CFG_BN;          // tile of a block: pixels, channels k
constexpr int WM = CFG_WM, WN = CFG_WN;          // tile of a warp
constexpr int BK = CFG_BK;                       // depth of a stage, elements
constexpr int STAGES = CFG_STAGES;

constexpr int V = Pack<T>::V;                    // elements of a chunk of 16 bytes
constexpr int WARPS_N = BN / WN, THREADS = BM / WM * WARPS_N * WARP;
constexpr int TM = WM / MMA_M, TN = WN / MMA_N;  // products of a warp
constexpr int CHUNKS = BK / V;                   // of a row of a stage
constexpr int PASS = THREADS / CHUNKS;           // rows of a stage that the block copies at once
constexpr int X_ROWS = BM / PASS, W_ROWS = (BN + PASS - 1) / PASS;   // that a thread copies
__device__ constexpr int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }
constexpr int RH = SH / gcd(SH, DH), RW = SW / gcd(SW, DW);  // taps from one of a class to the next
constexpr int CLASSES_H = GRADIENT ? (R < RH ? R : RH) : 1;
constexpr int CLASSES_W = GRADIENT ? (S < RW ? S : RW) : 1;  // one for each tap that begins one
constexpr int CLASSES = CLASSES_H * CLASSES_W;
constexpr bool STRIDED = GRADIENT && SH * SW > 1;
constexpr int EDGE = POOL ? 2 : 1;               // pixels of a pooling window, each way
constexpr int WINDOW = EDGE * EDGE;
constexpr int OUT = BM / WINDOW;                 // rows of y that a block writes
constexpr int SUMS = TM * TN * 4;                // of a thread
constexpr int HELD = UNIT < 16 ? 2 * SUMS : SUMS;        // units take registers as well
constexpr int REGISTERS = HELD > 64 ? 256 : HELD > 32 ? 168 : HELD > 16 ? 128 : 80;   // enough
constexpr int BLOCKS = 65536 / (THREADS * REGISTERS);    // of a multiprocessor

static_assert(sizeof(A) == 4, "sums are float");
static_assert(UNIT <= 16 && UNIT >= sizeof(T) && C * sizeof(T) % UNIT == 0, "of one pixel");
static_assert(R + S < 32, "the taps of a pixel inside x are R + S bits");
static_assert(BM % WM == 0 && BN % WN == 0 && WM % MMA_M == 0 && WN % (2 * MMA_N) == 0, "tiles");
static_assert(BM % PASS == 0 && PASS % 8 == 0, "the copies come out even");
static_assert(!(POOL && (GRADIENT || RESIDUAL)), "nobody asks for these together");
static_assert(!(MOMENTS && (GRADIENT || RESIDUAL || !is_none<Activation>)), "nor for these");
static_assert(8 * THREADS * V <= STAGES * (BM + BN) * BK * sizeof(T), "room for moments");

// The taps of one axis: output position p meets rows p*step + first + i*dilation, i < taps, of x.
struct Axis {
    int taps, step, first, dilation, rest;
};

// The number of taps of a class: tap `kind` and every RH-th, or RW-th, after it.
__device__ constexpr int taps_of(int kind, int taps, int every) {
    return (taps - 1 - kind) / every + 1;
}

// The axis of a convolution; or of a class of its input gradient, that of tap `kind`: its position i
// is row i*stride + rest of gx, and meets those rows of gy that r leads to, from the largest r down.
__device__ inline Axis axis(int taps, int stride, int dilation, int pad, int every, int kind) {
    if (!GRADIENT) return {taps, stride, -pad, dilation, 0};
    const int rest = ((kind * dilation - pad) % stride + stride) % stride;
    const int count = taps_of(kind, taps, every), last = kind + (count - 1) * every;
    return {count, 1, (rest + pad - last * dilation) / stride, every * dilation / stride, rest};
}

// What this block computes: rows row0 ... of the product, of one class of pixels.
struct Part {
    Axis v, h;                                   // vertical, horizontal
    unsigned P, Q;                               // positions of the class, or pooling windows
    unsigned row0, rows;                         // its first row, and all rows of the class
    long long w_at;                              // where the filters of the class begin

    __device__ Part(unsigned block, int N, int height, int width, int K) {
        const int down = block % CLASSES / CLASSES_W, across = block % CLASSES_W;
        v = axis(R, SH, DH, PT, RH, down), h = axis(S, SW, DW, PL, RW, across);
        row0 = block / CLASSES * BM;
        P = height / EDGE, Q = width / EDGE;
        w_at = 0;
        if (STRIDED) {
            P = (height - v.rest + SH - 1) / SH, Q = (width - h.rest + SW - 1) / SW;
            int taps = 0;                        // of the classes before this one
            for (int a = 0; a < down; ++a) taps += taps_of(a, R, RH) * S;
            for (int b = 0; b < across; ++b) taps += taps_of(b, S, RW) * v.taps;
            w_at = (long long)taps * C * K;
        }
        rows = N * P * Q * WINDOW;
    }
    __device__ int depth() const { return v.taps * h.taps * C; }

    // Image n and output position (p, q) of a row. The pixels of a pooling window are neighbours.
    __device__ void place(unsigned row, unsigned& n, unsigned& p, unsigned& q) const {
        const unsigned window = row / WINDOW, rest = window / Q;   // no 64-bit division
        n = rest / P;
        p = rest % P * EDGE + (POOL ? row / 2 % 2 : 0);
        q = window % Q * EDGE + (POOL ? row % 2 : 0);
    }
    // Which row of gx, N images of P x Q pixels, a row of the class is.
    __device__ long long row_of_gx(unsigned row, int P, int Q) const {
        unsigned n, i, j;
        place(row, n, i, j);
        return ((long long)n * P + i * SH + v.rest) * Q + j * SW + h.rest;
    }
};

// The first row of x that a window meets, or would; and a bit for each of its taps inside x.
__device__ inline int window(const Axis& axis, int at, int size, unsigned& bits) {
    bits = 0;
    const int first = at * axis.step + axis.first;
    for (int i = 0; i < axis.taps; ++i) {
        const int here = first + i * axis.dilation;
        if (here >= 0 && here < size) bits |= 1u << i;
    }
    return first;
}

// Copies this thread's share of the tiles of x and w, stage after stage.
struct Loader {
    const Axis v, h;
    const int W, depth, to;                      // to: its place in a tile
    const T* x_row[X_ROWS];                      // the tap (0, 0) of each of its pixels
    unsigned inside[X_ROWS];                     // bits 0..R-1: rows inside x; R..R+S-1: columns
    const T* w_at;                               // its next chunk of its first filter
    int filters;                                 // from that filter to the end of w
    int d, r, s, c;                              // its next chunk in depth: d = (r*S + s)*C + c
    int tap;                                     // that chunk of x, from tap (0, 0)
    unsigned need;                               // the bits of tap (r, s)

    __device__ Loader(const T* x, const T* w, const Part& part, int k0, int H, int W, int K)
        : v(part.v), h(part.h), W(W), depth(part.depth()),
          to(swizzle<T, BK>(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS)) {
        const int row = threadIdx.x / CHUNKS;
        d = c = threadIdx.x % CHUNKS * V, r = s = 0;
        filters = K - k0 - row;
        w_at = w + part.w_at + (long long)(k0 + row) * depth + d;
#pragma unroll
        for (int i = 0; i < X_ROWS; ++i) {
            unsigned n, p, q, rows, columns;
            const unsigned at = part.row0 + row + i * PASS;
            part.place(at, n, p, q);
            const int top = window(v, p, H, rows), left = window(h, q, W, columns);
            x_row[i] = x + (((long long)n * H + top) * W + left) * C;
            inside[i] = at < part.rows ? rows | columns << R : 0;
        }
        find_tap();
    }

    __device__ int offset(int r, int s, int c) const {
        return (r * v.dilation * W + s * h.dilation) * C + c;
    }
    __device__ unsigned bits(int r, int s) const {
        return r < v.taps ? 1u << r | 1u << (R + s) : ~0u;   // past the end of depth: none
    }

    __device__ void find_tap() {
        constexpr int CARRIES = (BK - V) / C + 1;            // taps that a step of BK can pass
#pragma unroll
        for (int i = 0; i < CARRIES; ++i) {
            if (c >= C) {
                c -= C;
                if (++s == h.taps) { s = 0; ++r; }
            }
        }
        tap = offset(r, s, c);
        need = bits(r, s);
    }

    __device__ void copy(T* stage) {
        constexpr int E = UNIT / sizeof(T), UNITS = 16 / UNIT;
        int taps[UNITS];
        unsigned needs[UNITS];
        if constexpr (UNITS == 1) {
            taps[0] = tap, needs[0] = need;
        } else {
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                const int rs = (d + u * E) / C;
                taps[u] = offset(rs / h.taps, rs % h.taps, (d + u * E) % C);
                needs[u] = bits(rs / h.taps, rs % h.taps);
            }
        }
#pragma unroll
        for (int i = 0; i < X_ROWS; ++i) {
            copy_chunk<UNIT>(stage + to + i * PASS * BK,
                             [&](int u) { return x_row[i] + taps[u]; },
                             [&](int u) { return (inside[i] & needs[u]) == needs[u]; });
        }
#pragma unroll
        for (int i = 0; i < W_ROWS; ++i) {
            if (BN % PASS && (int)threadIdx.x / CHUNKS + i * PASS >= BN) break;
            copy_chunk<UNIT>(stage + to + (BM + i * PASS) * BK,
                             [&](int u) { return w_at + (long long)i * PASS * depth + u * E; },
                             [&](int u) { return i * PASS < filters && d + u * E < depth; });
        }
        w_at += BK, d += BK;
        if constexpr (UNITS == 1) {
            c += BK, tap += BK;
            if (c >= C) find_tap();
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_mma(
    const T* __restrict__ x,                     // (N, H, W, C)
    const T* __restrict__ w,                     // (K, R, S, C)
    const T* __restrict__ bias,                  // (K,)            null without BIAS
    const T* __restrict__ residual,              // (N, P, Q, K)    null without RESIDUAL
    T* __restrict__ y,                           // (N, P, Q, K)    with POOL (N, P/2, Q/2, K)
    unsigned char* __restrict__ marks,           // like y          null without POOL
    A* __restrict__ means,                       // (blocks, K)     null without MOMENTS
    A* __restrict__ vars,                        // (blocks, K)
    int N, int H, int W, int P, int Q, int K)
{
    GC_DYN_SHARED(T, shared);
    const int tiles = (K + BN - 1) / BN, k0 = blockIdx.x % tiles * BN;
    const Part part(blockIdx.x / tiles, N, P, Q, K);
    if (part.row0 >= part.rows) return;          // classes differ by a few rows
    const int warp = threadIdx.x / WARP, m = warp / WARPS_N * WM, n = warp % WARPS_N * WN;

    A sum[TM][TN][4] = {};
    {
        Loader loader(x, w, part, k0, H, W, K);
        const RowReader<T, BM, BK, TM, TN> reader(m, n);
        multiply_stages<STAGES, (BM + BN) * BK, BK / Mma<T>::K>(
            shared, (part.depth() + BK - 1) / BK, loader, reader, sum);
        cp_async_wait<0>();
        __syncthreads();                         // nobody reads the stages any more
    }

    const unsigned left = (part.rows - part.row0) / WINDOW;
    const int rows = left < OUT ? left : OUT;
    const long long first = part.row0 / WINDOW;      // row of y
    const Staged<T, BN, THREADS, WIDE> staged(shared, k0, K);
    if constexpr (RESIDUAL) staged.fetch(residual + first * K + k0, rows);
    staged.stage<Activation, BIAS, RESIDUAL>(sum, bias + k0, m, n);
    __syncthreads();

    A sums[V] = {};
    for (int row = staged.group; row < rows; row += staged.GROUPS) {
        const long long its = STRIDED ? part.row_of_gx(part.row0 + row, P, Q) : first + row;
        const long long to = its * K + k0;
        Pack<T> p;
        if constexpr (POOL) {
            unsigned char where[V];
            p = staged.largest(row * WINDOW, where);
            staged.store(marks + to, where);
            if constexpr (MOMENTS) staged.write(row * WINDOW, p);    // nobody else reads there
        } else {
            p = staged.read(row);
        }
        staged.store(y + to, p.v);
#pragma unroll
        for (int e = 0; e < V; ++e) sums[e] += (A)p.v[e];
    }
    if constexpr (MOMENTS) {
        const long long slice = part.row0 / BM * (long long)K + k0;
        staged.moments<WINDOW>(sums, means + slice, vars + slice, rows);
    }
}
