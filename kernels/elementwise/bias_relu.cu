// Bias over the last axis and ReLU in one pass, forward and backward.        gpuconv/ops/elementwise/bias_relu.py
//
//   y[m,c]  = max(x[m,c] + b[c], 0), NaN stays
//   gx[m,c] = gy[m,c] where y[m,c] > 0 or NaN, else 0
//   gb[c]   = sum over m of gx[m,c], in two stages:
//             partial[s,c] over a slice of the rows, then gb[c] = sum over s of partial[s,c]
//
// Launch   1-d, blocks of BLOCK threads; a block takes a tile of channels over one of S slices of
//          the rows, `per` rows each, see rows.cuh. A thread keeps V channels, 16 bytes where C and
//          the addresses allow, and reads DEEP rows before it computes with them. backward: three
//          blocks a multiprocessor, two with V = 8, whose sums need over 80 registers. sum: a thread
//          keeps one channel. Shared memory: 4 bytes a thread and channel (8 for double, and in sum).
// Traffic  forward   reads x rows*C, b C (asks <= S*C*BLOCK/32), writes y rows*C.
//          backward  reads y/gy rows*C, writes gx rows*C, partial S*C.
//          sum       reads partial S*C, writes gb C.
//          Coalesced where C fills whole sectors, else at most 1.8 times the sectors. Banks: 1.4
//          passes at most, one where 32 divides lanes*V.
// Order    each slice's sums in a fixed order, DEEP rows at a time, which are added in double; then
//          the slices' in a fixed order, in double; no atomics. The slices are cut by shape alone:
//          the same bits from run to run.

#include "common/common.cuh"
#include "elementwise/functors.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"

using T = CFG_T;                       // stored element
using A = CFG_A;                       // arithmetic and partial sums
constexpr int BLOCK = CFG_BLOCK;       // threads of a block
constexpr int V = CFG_V;               // channels of a thread: they are one access
constexpr int DEEP = 4;                // rows that a thread reads at once, of each array
using P = Pack<T, V>;

extern "C" __global__ void __launch_bounds__(BLOCK, 4) bias_relu_forward(
    const T* __restrict__ x,             // (rows, C)
    const T* __restrict__ b,             // (C)
    T* __restrict__ y,                   // (rows, C)
    long long rows, int C, int S, int per, int lanes)
{
    for (long long part = blockIdx.x; part < Part<V>::all(rows, C, per, lanes); part += gridDim.x) {
        const Part<V> p(part, rows, C, per, lanes);
        if (!p.count) continue;
        A bias[V];
        get_channels(bias, b, p.c);
        long long at = p.at;
#pragma unroll 1
        for (int left = p.count; left > 0; left -= DEEP, at += DEEP * p.step) {
            P some[DEEP];
            get_rows<DEEP>(some, x + at, p.step, left);
#pragma unroll
            for (int v = 0; v < V; ++v) {
#pragma unroll
                for (int i = 0; i < DEEP; ++i) {
                    some[i].v[v] = (T)functor::relu::value((A)some[i].v[v] + bias[v]);
                }
            }
            put_rows<DEEP>(y + at, some, p.step, left);
        }
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, V > 4 ? 2 : 3) bias_relu_backward(
    const T* __restrict__ gy,            // (rows, C)
    const T* __restrict__ y,             // (rows, C)
    T* __restrict__ gx,                  // (rows, C)    null: not wanted
    A* __restrict__ partial,             // (S, C)       null: not wanted
    long long rows, int C, int S, int per, int lanes)
{
    __shared__ A shared[spread<A>(BLOCK * V)];
    for (long long part = blockIdx.x; part < Part<V>::all(rows, C, per, lanes); part += gridDim.x) {
        const Part<V> p(part, rows, C, per, lanes);
        double totals[V] = {};
        long long at = p.at;
#pragma unroll 1
        for (int left = p.count; left > 0; left -= DEEP, at += DEEP * p.step) {
            P gs[DEEP], ys[DEEP];
            get_rows<DEEP>(gs, gy + at, p.step, left);
            get_rows<DEEP>(ys, y + at, p.step, left);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A few = 0;
#pragma unroll
                for (int i = 0; i < DEEP; ++i) {
                    const A here = (A)ys[i].v[v];
                    const A g = functor::relu::gradient((A)gs[i].v[v], here, here);  // 0 beyond the rows
                    gs[i].v[v] = (T)g;
                    few += g;
                }
                totals[v] += few;
            }
            if (gx) put_rows<DEEP>(gx + at, gs, p.step, left);
        }
        if (!partial) continue;
        A sums[V];
#pragma unroll
        for (int v = 0; v < V; ++v) sums[v] = (A)totals[v];
        reduce_rows<V>(shared, sums, p.height, lanes, Add());
        for (int k = threadIdx.x; k < p.width; k += BLOCK) {
            partial[(long long)p.slice * C + p.first + k] = shared[spread<A>(k)];
        }
        __syncthreads();                 // before shared is written again
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) bias_relu_sum(
    const A* __restrict__ partial,       // (S, C)
    T* __restrict__ gb,                  // (C)
    int C, int S, int lanes)
{
    __shared__ double shared[spread<double>(BLOCK)];
    for (long long part = blockIdx.x; part < Part<1>::all(S, C, S, lanes); part += gridDim.x) {
        const Part<1> p(part, S, C, S, lanes);
        const double sum = merge_rows<double>(
            p.count, [=](int i) -> double { return partial[p.at + i * p.step]; }, Add());
        reduce_rows<1>(shared, &sum, p.height, lanes, Add());
        for (int k = threadIdx.x; k < p.width; k += BLOCK) gb[p.first + k] = (T)(A)shared[spread<double>(k)];
        __syncthreads();                 // before shared is written again
    }
}
