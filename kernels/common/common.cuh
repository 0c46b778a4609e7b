// What every kernel file may assume. NVRTC supplies no host headers: keep it so.
#pragma once
#include <cuda_fp16.h>
#include <cuda_bf16.h>

// This thread's share of the work 0 <= t < n, whatever the size of the grid:
//
//     for (I t : grid_stride<I>(n)) y[t] = ...;
//
// Neighbouring threads get neighbouring t. The threads of a block may make different numbers of
// turns: no barrier inside. Counts in 64 bits, so that the last step cannot overflow an int.
template <class I>
struct grid_stride {
    struct iterator {
        long long t, step;
        __device__ I operator*() const { return (I)t; }
        __device__ void operator++() { t += step; }
        __device__ bool operator!=(const iterator& end) const { return t < end.t; }
    };
    long long n;
    __device__ explicit grid_stride(long long n) : n(n) {}
    __device__ iterator begin() const {
        return {(long long)blockIdx.x * blockDim.x + threadIdx.x, (long long)gridDim.x * blockDim.x};
    }
    __device__ iterator end() const { return {n, 0}; }
};

// a/b rounded down, or up, for any a and b > 0 (C rounds towards zero).
__device__ inline int floor_div(int a, int b) { return a / b - (a % b < 0); }
__device__ inline int ceil_div(int a, int b) { return -floor_div(-a, b); }
