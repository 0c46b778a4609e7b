// Bias over the last axis and ReLU in one pass, forward and backward.        gpuconv/ops/bias_relu.py
//
//   y[m,c]  = max(x[m,c] + b[c], 0), NaN stays
//   gx[m,c] = gy[m,c] where y[m,c] > 0 or NaN, else 0
//   gb[c]   = sum over m of gx[m,c], in two stages:
//             partial[g,c] over a run of rows, then gb[c] = sum over g of partial[g,c]
//
// Launch   forward   one thread per 16 bytes of y where C and the addresses allow, else per element.
//          backward  blocks of 256: 8 rows by 32 columns at a time; one block per run and tile of 32
//                    columns, 1 KB (double: 2 KB) of shared memory.
//          sum       the same blocks, one per tile of 32 columns.
// Traffic  forward   reads x M*C, b C (stays in L1: asks <= M*C), writes y M*C.
//          backward  reads y M*C, gy <= M*C (only where y > 0: sectors <= 2), writes gx M*C,
//                    partial runs*C: 1 row in 64 at most.
//          sum       reads partial runs*C, writes gb C.
//          Coalesced where C fills whole sectors, else at most 1.5 times the sectors. No bank
//          conflicts.
// Order    a thread adds its rows in rising order, a block its 8 threads of a column in order, the
//          sum its runs likewise. The runs follow from (M, C) alone: deterministic.

#include "common.cuh"
#include "pack.cuh"

using T = CFG_T;                               // stored element
using A = CFG_A;                               // arithmetic and partial sums
using I = CFG_I;                               // flat index: int, or long long for huge arrays
constexpr int V = Pack<T>::V;                  // elements per thread and turn, forward
constexpr int WIDE = 32, HIGH = 8;             // columns and rows that a block handles at a time

__device__ inline A relu(A v) { return v <= 0 ? (A)0 : v; }

// Sum over the 8 threads of this column, in order; valid in the first row of threads.
__device__ inline A column_sum(A mine)
{
    __shared__ A sums[HIGH][WIDE];
    sums[threadIdx.x / WIDE][threadIdx.x % WIDE] = mine;
    __syncthreads();
    A sum = 0;
    if (threadIdx.x < WIDE)
        for (int i = 0; i < HIGH; ++i) sum += sums[i][threadIdx.x];
    __syncthreads();  // the next tile may overwrite sums
    return sum;
}

extern "C" __global__ void bias_relu_forward(
    const T* __restrict__ x,             // (M, C)
    const T* __restrict__ b,             // (C)
    T* __restrict__ y,                   // (M, C)
    I M, int C)
{
    const I n = M * C;
    if (C % V == 0 && is_aligned(x) && is_aligned(b) && is_aligned(y)) {
        for (I t : grid_stride<I>(n / V)) {
            Pack<T> p = reinterpret_cast<const Pack<T>*>(x)[t];
            const Pack<T> q = reinterpret_cast<const Pack<T>*>(b)[t % (C / V)];
            for (int i = 0; i < V; ++i) p.v[i] = (T)relu((A)p.v[i] + (A)q.v[i]);
            reinterpret_cast<Pack<T>*>(y)[t] = p;
        }
        return;
    }
    for (I t : grid_stride<I>(n)) y[t] = (T)relu((A)x[t] + (A)b[t % C]);
}

extern "C" __global__ void bias_relu_backward(
    const T* __restrict__ gy,            // (M, C)
    const T* __restrict__ y,             // (M, C)
    T* __restrict__ gx,                  // (M, C)
    A* __restrict__ partial,             // (runs, C)
    I M, int C, int runs)
{
    const int tiles = (C + WIDE - 1) / WIDE, row = threadIdx.x / WIDE;
    for (int unit = blockIdx.x; unit < runs * tiles; unit += gridDim.x) {
        const int run = unit / tiles, c = unit % tiles * WIDE + threadIdx.x % WIDE;
        const I first = (long long)M * run / runs, end = (long long)M * (run + 1) / runs;
        A sum = 0;
        if (c < C) {
            for (I m = first + row; m < end; m += HIGH) {
                const T g = (A)y[m * C + c] <= 0 ? (T)(A)0 : gy[m * C + c];
                gx[m * C + c] = g;
                sum += (A)g;
            }
        }
        sum = column_sum(sum);
        if (row == 0 && c < C) partial[(I)run * C + c] = sum;
    }
}

extern "C" __global__ void bias_relu_sum(
    const A* __restrict__ partial,       // (runs, C)
    T* __restrict__ gb,                  // (C)
    int C, int runs)
{
    const int tiles = (C + WIDE - 1) / WIDE, row = threadIdx.x / WIDE;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int c = tile * WIDE + threadIdx.x % WIDE;
        A sum = 0;
        if (c < C)
            for (int run = row; run < runs; run += HIGH) sum += partial[(I)run * C + c];
        sum = column_sum(sum);
        if (row == 0 && c < C) gb[c] = (T)sum;
    }
}
