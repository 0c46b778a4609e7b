// Products of matrices on the ordinary cores, one or a batch.         gpuconv/ops/matmul/gemm.py
//
//   y[z,n,k] = f(bias[k] + sum over c of  a[z,n,c] * b[z,c,k])
//
// Each operand lies in memory as it is written here, or transposed: a[z,c,n], b[z,k,c]. One matrix
// may serve all z. A block adds `depth` terms from c = from + split * depth on. With several
// splits, out[split] are partial sums, which column_sums.cu adds up. With one, `before` holds the
// sums of the terms before `from`, or is null.
//
// Launch   1-d, a block of THREADS for each tile of BM rows and BN columns, each slice and each z;
//          tiles of the same rows are neighbours: a then comes from L2. One grid covers all.
//          Shared memory: 2 BK (BM + BN) numbers of A: one step of BK is multiplied while the next
//          arrives in registers.
// Traffic  gemm  reads a <= Z*N*C (asks <= Z*N*C*-(-K//BN), from L2, sectors <= 2), b <= Z*C*K
//                (asks <= Z*C*K*-(-N//BM), from L2, sectors <= 2), bias K (asks <= K*Z*N, sectors
//                <= 2), before Z*N*K (sectors <= 6), writes out splits*Z*N*K (sectors <= 6): 1 each
//                where rows fill packs, and sectors.
//          Coalesced. No bank conflicts.
// Order    each sum from its first term to its last, then `before`, then the bias, in A: tile,
//          layout and batch change no bit. How the terms are cut follows from the sizes.

#include "common/common.cuh"
#include "conv/simt.cuh"
#include "elementwise/functors.cuh"

using T = CFG_T;                                 // stored element
using A = CFG_A;                                 // arithmetic: float, or double for double
using O = CFG_O;                                 // element of out: T, or A for partial sums
constexpr bool A_TRANSPOSED = CFG_A_TRANSPOSED;  // does a lie as (C, N)?
constexpr bool B_TRANSPOSED = CFG_B_TRANSPOSED;  // does b lie as (K, C)?
using Activation = functor::CFG_ACTIVATION;      // f
constexpr int BM = CFG_BM, BN = CFG_BN;          // tile of a block: rows, columns
constexpr int TM = CFG_TM, TN = CFG_TN;          // of a thread
constexpr int BK = 8;                            // terms of a step
constexpr int LA = CFG_LA, LB = CFG_LB;          // neighbours of a and b that are read at once
constexpr int LY = CFG_LY;                       // neighbours of out, before and bias

using Tile = SimtTile<A, BM, BN, BK, TM, TN>;
constexpr int THREADS = Tile::THREADS;

// This thread's part of an operand (size, C): its rows lie along the sums. One load for each step.
template <int WIDTH, int L>
struct Along {
    static constexpr int TURNED = L;             // for SimtTile::multiply
    Turned<T, A, WIDTH, BK, L, THREADS> tile;
    const T* at;
    int rows, C, c, end;

    __device__ Along(const T* m, int row, int size, int C, int c, int end)
        : rows(min(WIDTH, size - row)), C(C), c(c + tile.d()), end(end) {
        at = m + (long long)(row + tile.row(0)) * C + this->c;
    }

    __device__ void load() {
        constexpr int PASS = decltype(tile)::PASS;
#pragma unroll
        for (int i = 0; i < decltype(tile)::ROWS; ++i) {
            const bool valid = c < end && tile.row(i) < rows;
            tile.held[i] = pack_or_zero<L>(at + (long long)i * PASS * C, valid);
        }
        c += BK, at += BK;
    }
};

// This thread's part of an operand (C, size): its rows lie across the sums.
template <int WIDTH, int L>
struct Across {
    static constexpr int TURNED = 0;
    Straight<T, A, WIDTH, BK, L, THREADS> tile;
    const T* at;
    bool inside;
    int size, c, end;

    __device__ Across(const T* m, int row, int size, int, int c, int end)
        : inside(row + tile.m() < size), size(size), c(c + tile.line(0)), end(end) {
        at = m + (long long)this->c * size + row + tile.m();
    }

    __device__ void load() {
        constexpr int PASS = decltype(tile)::PASS;
#pragma unroll
        for (int i = 0; i < decltype(tile)::LINES; ++i) {
            const bool valid = inside && c + i * PASS < end && tile.line(i) < BK;
            tile.held[i] = pack_or_zero<L>(at + (long long)i * PASS * size, valid);
        }
        c += BK, at += (long long)BK * size;
    }
};

template <bool along, int WIDTH, int L> struct Choose { using Operand = Along<WIDTH, L>; };
template <int WIDTH, int L> struct Choose<false, WIDTH, L> { using Operand = Across<WIDTH, L>; };
using Left = Choose<!A_TRANSPOSED, BM, LA>::Operand;
using Right = Choose<B_TRANSPOSED, BN, LB>::Operand;

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS) gemm(
    const T* __restrict__ a,                     // (Z, N, C), or (1, N, C); transposed (.., C, N)
    const T* __restrict__ b,                     // (Z, C, K), or (1, C, K); transposed (.., K, C)
    const T* __restrict__ bias,                  // (K,), or null: for the first split
    const A* before,                             // (Z, N, K), or null; it may be out
    O* out,                                      // (splits, Z, N, K)
    int splits, int Z, int N, int C, int K,
    long long a_next, long long b_next,          // elements to the next matrix: 0 if one serves all
    int from, int depth)                         // first term, terms of a split
{
    alignas(16) __shared__ A as[2][BK * BM], bs[2][BK * BN];
    const int columns = (K + BN - 1) / BN, rows = (N + BM - 1) / BM;
    const int k0 = blockIdx.x % columns * BN, n0 = blockIdx.x / columns % rows * BM;
    const int part = blockIdx.x / columns / rows, split = part % splits, z = part / splits;
    const int first = from + split * depth, end = first + min(depth, C - first);

    Left left(a + z * a_next, n0, N, C, first, end);
    Right right(b + z * b_next, k0, K, C, first, end);
    Tile tile;
    left.load(), right.load();
    left.tile.put(as[0]), right.tile.put(bs[0]);
    __syncthreads();
    const int steps = (end - first + BK - 1) / BK;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const int now = step % 2, next = 1 - now;
        left.load(), right.load();               // past the end: zeros
        tile.template multiply<Left::TURNED, Right::TURNED>(as[now], bs[now]);
        left.tile.put(as[next]), right.tile.put(bs[next]);
        __syncthreads();
    }

    out += ((long long)split * Z + z) * N * K;
    if (before) before += (long long)z * N * K;
    if (split) bias = nullptr;
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        const int n = n0 + tile.row(i);
        if (n >= N) continue;
#pragma unroll
        for (int j = 0; j < TN; j += LY) {
            const int k = k0 + tile.column(j);
            if (k >= K) continue;
            const long long at = (long long)n * K + k;
            Pack<A, LY> sum;
            Pack<T, LY> on;
            Pack<O, LY> y;
            if (before) sum = *reinterpret_cast<const Pack<A, LY>*>(before + at);
            if (bias) on = *reinterpret_cast<const Pack<T, LY>*>(bias + k);
#pragma unroll
            for (int e = 0; e < LY; ++e) {
                A v = tile.sum[i][j + e];
                if (before) v += sum.v[e];
                if (bias) v += (A)on.v[e];
                y.v[e] = (O)Activation::value(v);
            }
            *reinterpret_cast<Pack<O, LY>*>(out + at) = y;
        }
    }
}
