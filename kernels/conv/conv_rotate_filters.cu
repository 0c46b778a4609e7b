// Filters as the input gradient of a convolution reads them.       gpuconv/ops/conv/gpu_mma.py
//
//   rotated[c, i, j, k] = w[k, r, s, c]    for each class (a, b) of pixels of gx, a < RH, b < RW:
//       its taps are r = a, a + RH, a + 2*RH ..., i = 0 at the largest, and s, j in the same way
//       RH = SH / gcd(SH, DH): that many taps lie between two that lead to the same h % SH
//
// The classes lie one after the other, a first: a tap belongs to one class, so there are as many
// numbers as in w. Without a stride there is one class: w rotated by 180 degrees, k and c exchanged.
//
// Dtypes   float16, bfloat16, float32: those of conv_mma.cu
// Launch   1-d, blocks of 256 threads, each takes tiles of 32 x 32 (k, c) of one tap, any grid.
// Traffic  filters  reads w K*R*S*C, writes rotated K*R*S*C.
//          Coalesced where C fills whole sectors, else at most 4 times the sectors. No bank
//          conflicts.
// Order    moves only.

#include "common/common.cuh"

using T = CFG_T;                                 // stored element
using A = CFG_A;                                 // on the way: holds every T
constexpr int R = CFG_R, S = CFG_S;              // filter, pixels
constexpr int SH = CFG_SH, SW = CFG_SW;          // stride, pixels
constexpr int DH = CFG_DH, DW = CFG_DW;          // dilation, pixels
constexpr int EDGE = 32, ROWS = 8;               // of a tile; rows of it that are moved at once

constexpr int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }
constexpr int RH = SH / gcd(SH, DH), RW = SW / gcd(SW, DW);

// Of tap r on one axis: its place in its class, the taps of that class and of those before it.
struct Tap {
    int at, taps, before;
    __device__ Tap(int r, int count, int every) : before(0) {
        taps = (count - 1 - r % every) / every + 1;
        at = taps - 1 - r / every;
        for (int other = 0; other < r % every; ++other) before += (count - 1 - other) / every + 1;
    }
};

extern "C" __global__ void conv_rotate_filters(
    const T* __restrict__ w,                     // (K, R, S, C)
    T* __restrict__ rotated,                     // (classes, C, their taps, K)
    int K, int C)
{
    __shared__ A tile[EDGE][EDGE + 1];
    const int u = threadIdx.x % EDGE, v = threadIdx.x / EDGE;
    const int across = (C + EDGE - 1) / EDGE, down = (K + EDGE - 1) / EDGE;
    for (int b = blockIdx.x; b < R * S * down * across; b += gridDim.x) {
        const int c0 = b % across * EDGE, k0 = b / across % down * EDGE, rs = b / across / down;
        for (int i = v; i < EDGE; i += ROWS) {
            if (k0 + i < K && c0 + u < C) {
                tile[i][u] = (A)w[((long long)(k0 + i) * (R * S) + rs) * C + c0 + u];
            }
        }
        __syncthreads();
        const Tap r(rs / S, R, RH), s(rs % S, S, RW);
        T* const filters = rotated + (long long)(r.before * S + r.taps * s.before) * C * K;
        for (int i = v; i < EDGE; i += ROWS) {
            if (c0 + i < C && k0 + u < K) {
                const long long to = ((c0 + i) * (long long)r.taps + r.at) * s.taps + s.at;
                filters[to * K + k0 + u] = (T)tile[u][i];
            }
        }
        __syncthreads();                         // before the tile is written again
    }
}
