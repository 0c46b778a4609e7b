// Reductions in a fixed order: a tree over the threads of a block, or over the lanes of a warp.
//
// Which two values meet, and when, depends on the sizes alone: the same bits from run to run. What
// is merged may be a number or a plain struct; the merge must not mind which of the two is first.
#pragma once

struct Add {
    template <class V> __device__ V operator()(V a, V b) const { return a + b; }
};

struct Larger {
    template <class V> __device__ V operator()(V a, V b) const { return a > b ? a : b; }
};

// The total of the values v of all threads with this thread's threadIdx.x % lanes.
//
//     __shared__ V shared[BLOCK];
//     v = reduce_columns(shared, v, lanes, Add());     // lanes = 1: over the whole block
//
// blockDim.x and lanes are powers of two. Holds barriers: every thread of the block must call it.
template <class V, class Merge>
__device__ V reduce_columns(V* shared, V v, int lanes, Merge merge)
{
    const int t = threadIdx.x;
    shared[t] = v;
    __syncthreads();
    for (int half = blockDim.x / 2; half >= lanes; half /= 2) {
        if (t < half) shared[t] = merge(shared[t], shared[t + half]);
        __syncthreads();
    }
    const V total = shared[t & (lanes - 1)];
    __syncthreads();                                  // before shared is written again
    return total;
}

// The total of v over the 32 lanes of this warp, the same bits in each; all of them must call it.
template <class V, class Merge>
__device__ V reduce_warp(V v, Merge merge)
{
    for (int apart = 16; apart; apart /= 2) v = merge(v, __shfl_xor_sync(0xffffffffu, v, apart));
    return v;
}

// The total of v over the first WARPS warps of this block, or, for WARPS = 1, over this warp alone.
// shared has WARPS elements. For WARPS > 1 it holds barriers and blockDim.x is 32 * WARPS.
template <int WARPS, class V, class Merge>
__device__ V reduce_warps(V* shared, V v, Merge merge)
{
    v = reduce_warp(v, merge);
    if constexpr (WARPS > 1) {
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
        __syncthreads();
        v = shared[0];
        for (int w = 1; w < WARPS; ++w) v = merge(v, shared[w]);
        __syncthreads();                              // before shared is written again
    }
    return v;
}
