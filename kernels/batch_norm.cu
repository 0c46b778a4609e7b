// Batch normalisation over the rows of (rows, C), forward and backward. gpuconv/ops/batch_norm.py
//
//   mean[c] = 1/rows sum_r x[r,c]         var[c] = 1/rows sum_r (x[r,c] - mean[c])^2
//   xhat    = (x - mean) inv_std          inv_std = 1 / sqrt(var + eps)
//   y       = gamma xhat + beta
//   gbeta   = sum_r gy        ggamma = sum_r gy xhat
//   gx      = gamma inv_std (gy - gbeta/rows - xhat ggamma/rows)     the last two not in inference
//
// Launch   1-d, blocks of BLOCK threads. A block takes a tile of `lanes` neighbouring channels
//          (a power of two, at most 32) over one of S slices of the rows; thread t holds channel
//          t % lanes, so that a warp reads neighbouring addresses and no element costs a division.
//          The finalising kernels: a block per tile, threads t / lanes share out the S slices.
//          Shared memory: 12 bytes a thread (24 for double).
// Traffic  moments     reads x rows*C, writes mean/m2 S*C.
//          statistics  reads slice_mean/slice_m2 S*C, running_mean/running_var C, writes
//                      mean/inv_std/running_mean/running_var C.
//          inv_std     reads var C, writes inv_std C.
//          forward     reads x rows*C, gamma/beta/mean/inv_std C (asks S*C*BLOCK/32), writes y
//                      rows*C.
//          backward_sums    reads gy/x rows*C, mean C (asks S*C*BLOCK/32), writes
//                           sum_gy/sum_gyx S*C.
//          backward_totals  reads slice_gy/slice_gyx S*C, inv_std C, writes sum_gy/sum_gyxhat C,
//                           ggamma/gbeta C.
//          backward    reads gy rows*C, x rows*C if x, gamma C (asks S*C*BLOCK/32), inv_std C (asks
//                      <= S*C*BLOCK/16), mean/sum_gy/sum_gyxhat C if x (asks S*C*BLOCK/32), writes
//                      gx rows*C.
//          So training reads x twice, and its backward x and gy twice: the second time from L2, as
//          far as that reaches. Coalesced where C fills whole sectors, else at most 1.5 times the
//          sectors. No bank conflicts.
// Order    each slice's sums in a fixed order, then the slices' in a fixed order; no atomics. The
//          slices are cut by shape alone: the same bits from run to run.
// Source   Ioffe and Szegedy, ICML 2015; merging of moments: Chan, Golub, LeVeque, 1979.

#include "common.cuh"
#include "reduce.cuh"

using T = CFG_T;                       // stored element of x, y, gamma, beta and their gradients
using A = CFG_A;                       // arithmetic and statistics: float, or double for double
constexpr int BLOCK = CFG_BLOCK;       // threads of a block
constexpr int ROWS = 8;                // rows that a thread reads before it computes with them
static_assert(BLOCK >= 32 && (BLOCK & (BLOCK - 1)) == 0, "the trees halve the block");

struct Moments {
    A n, mean, m2;                     // how many values, their mean, sum of squared deviations
};

struct MergeMoments {
    __device__ Moments operator()(Moments a, Moments b) const {
        const A n = a.n + b.n;
        if (n == 0) return a;
        const A delta = b.mean - a.mean, share = b.n / n;
        return {n, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.n * share};
    }
};

struct alignas(2 * sizeof(A)) Sums {   // one access, not two at every other word
    A gy, gyx;                         // sum of gy, of gy * (x - mean)
};

struct AddSums {
    __device__ Sums operator()(Sums a, Sums b) const { return {a.gy + b.gy, a.gyx + b.gyx}; }
};

// The part of block b: this thread's channel, and the rows top, top + height, ... < end.
struct Part {
    int slice, c, height;
    long long top, end;
    __device__ Part(long long b, long long rows, int C, int S, int lanes) {
        const int tiles = (C + lanes - 1) / lanes;
        slice = b / tiles;
        c = b % tiles * lanes + threadIdx.x % lanes;
        height = BLOCK / lanes;
        end = c < C ? rows * (slice + 1) / S : 0;     // a lane beyond the last channel has no rows
        top = rows * slice / S + threadIdx.x / lanes;
    }
};

__device__ inline long long parts(int C, int S, int lanes) {
    return (long long)((C + lanes - 1) / lanes) * S;
}

extern "C" __global__ void batch_norm_moments(
    const T* __restrict__ x,              // (rows, C)
    A* __restrict__ mean,                 // (S, C)       of each slice
    A* __restrict__ m2,                   // (S, C)
    long long rows, int C, int S, int lanes)
{
    __shared__ Moments shared[BLOCK];
    for (long long b = blockIdx.x; b < parts(C, S, lanes); b += gridDim.x) {
        const Part p(b, rows, C, S, lanes);
        Moments all = {0, 0, 0};
        for (long long r = p.top; r < p.end; r += ROWS * p.height) {
            A v[ROWS];
            Moments some = {0, 0, 0};
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const long long row = r + i * p.height;
                v[i] = row < p.end ? (A)x[row * C + p.c] : (A)0;
                some.n += row < p.end;
                some.mean += v[i];
            }
            some.mean /= some.n;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const A d = i < some.n ? v[i] - some.mean : (A)0;
                some.m2 += d * d;
            }
            all = MergeMoments()(all, some);
        }
        all = reduce_columns(shared, all, lanes, MergeMoments());
        if (threadIdx.x < lanes && p.c < C) {
            mean[(long long)p.slice * C + p.c] = all.mean;
            m2[(long long)p.slice * C + p.c] = all.m2;
        }
    }
}

extern "C" __global__ void batch_norm_statistics(
    const A* __restrict__ slice_mean,     // (S, C)
    const A* __restrict__ slice_m2,       // (S, C)
    A* __restrict__ mean,                 // (C,)
    A* __restrict__ inv_std,              // (C,)
    A* __restrict__ running_mean,         // (C,)         updated; null: there is none
    A* __restrict__ running_var,          // (C,)
    long long rows, int C, int S, int lanes,
    A momentum,                           // weight of this batch in the running statistics
    A eps)
{
    __shared__ Moments shared[BLOCK];
    for (long long b = blockIdx.x; b < parts(C, 1, lanes); b += gridDim.x) {
        const Part p(b, S, C, 1, lanes);
        Moments all = {0, 0, 0};
        for (long long s = p.top; s < p.end; s += p.height) {
            const A n = rows * (s + 1) / S - rows * s / S;
            all = MergeMoments()(all, {n, slice_mean[s * C + p.c], slice_m2[s * C + p.c]});
        }
        all = reduce_columns(shared, all, lanes, MergeMoments());
        if (threadIdx.x < lanes && p.c < C) {
            mean[p.c] = all.mean;
            inv_std[p.c] = 1 / sqrt(all.m2 / rows + eps);
            if (running_mean) {
                const A keep = 1 - momentum;
                running_mean[p.c] = keep * running_mean[p.c] + momentum * all.mean;
                running_var[p.c] = keep * running_var[p.c] + momentum * (all.m2 / (rows - 1));
            }
        }
    }
}

extern "C" __global__ void batch_norm_inv_std(
    const A* __restrict__ var,            // (C,)
    A* __restrict__ inv_std,              // (C,)
    int C,
    A eps)
{
    for (int c : grid_stride<int>(C)) inv_std[c] = 1 / sqrt(var[c] + eps);
}

extern "C" __global__ void batch_norm_forward(
    const T* __restrict__ x,              // (rows, C)
    const T* __restrict__ gamma,          // (C,)         null: ones
    const T* __restrict__ beta,           // (C,)         null: zeros
    const A* __restrict__ mean,           // (C,)
    const A* __restrict__ inv_std,        // (C,)
    T* __restrict__ y,                    // (rows, C)
    long long rows, int C, int S, int lanes)
{
    for (long long b = blockIdx.x; b < parts(C, S, lanes); b += gridDim.x) {
        const Part p(b, rows, C, S, lanes);
        if (p.c >= C) continue;
        const A center = mean[p.c], shift = beta ? (A)beta[p.c] : (A)0;
        const A scale = gamma ? (A)gamma[p.c] * inv_std[p.c] : inv_std[p.c];
#pragma unroll 8
        for (long long r = p.top; r < p.end; r += p.height) {
            y[r * C + p.c] = (T)(((A)x[r * C + p.c] - center) * scale + shift);
        }
    }
}

extern "C" __global__ void batch_norm_backward_sums(
    const T* __restrict__ gy,             // (rows, C)
    const T* __restrict__ x,              // (rows, C)
    const A* __restrict__ mean,           // (C,)
    A* __restrict__ sum_gy,               // (S, C)       of each slice
    A* __restrict__ sum_gyx,              // (S, C)       of gy * (x - mean)
    long long rows, int C, int S, int lanes)
{
    __shared__ Sums shared[BLOCK];
    for (long long b = blockIdx.x; b < parts(C, S, lanes); b += gridDim.x) {
        const Part p(b, rows, C, S, lanes);
        const A center = p.c < C ? mean[p.c] : (A)0;
        Sums all = {0, 0};
#pragma unroll 8
        for (long long r = p.top; r < p.end; r += p.height) {
            const A g = (A)gy[r * C + p.c];
            all.gy += g;
            all.gyx += g * ((A)x[r * C + p.c] - center);
        }
        all = reduce_columns(shared, all, lanes, AddSums());
        if (threadIdx.x < lanes && p.c < C) {
            sum_gy[(long long)p.slice * C + p.c] = all.gy;
            sum_gyx[(long long)p.slice * C + p.c] = all.gyx;
        }
    }
}

extern "C" __global__ void batch_norm_backward_totals(
    const A* __restrict__ slice_gy,       // (S, C)
    const A* __restrict__ slice_gyx,      // (S, C)
    const A* __restrict__ inv_std,        // (C,)
    A* __restrict__ sum_gy,               // (C,)
    A* __restrict__ sum_gyxhat,           // (C,)
    T* __restrict__ ggamma,               // (C,)         the same two, as stored
    T* __restrict__ gbeta,                // (C,)
    int C, int S, int lanes)
{
    __shared__ Sums shared[BLOCK];
    for (long long b = blockIdx.x; b < parts(C, 1, lanes); b += gridDim.x) {
        const Part p(b, S, C, 1, lanes);
        Sums all = {0, 0};
        for (long long s = p.top; s < p.end; s += p.height) {
            all = AddSums()(all, {slice_gy[s * C + p.c], slice_gyx[s * C + p.c]});
        }
        all = reduce_columns(shared, all, lanes, AddSums());
        if (threadIdx.x < lanes && p.c < C) {
            const A gyxhat = all.gyx * inv_std[p.c];
            sum_gy[p.c] = all.gy;
            sum_gyxhat[p.c] = gyxhat;
            gbeta[p.c] = (T)all.gy;
            ggamma[p.c] = (T)gyxhat;
        }
    }
}

extern "C" __global__ void batch_norm_backward(
    const T* __restrict__ gy,             // (rows, C)
    const T* __restrict__ x,              // (rows, C)    null in inference, like mean and the sums
    const T* __restrict__ gamma,          // (C,)         null: ones
    const A* __restrict__ mean,           // (C,)
    const A* __restrict__ inv_std,        // (C,)
    const A* __restrict__ sum_gy,         // (C,)
    const A* __restrict__ sum_gyxhat,     // (C,)
    T* __restrict__ gx,                   // (rows, C)
    long long rows, int C, int S, int lanes)
{
    for (long long b = blockIdx.x; b < parts(C, S, lanes); b += gridDim.x) {
        const Part p(b, rows, C, S, lanes);
        if (p.c >= C) continue;
        const A scale = gamma ? (A)gamma[p.c] * inv_std[p.c] : inv_std[p.c];
        if (!x) {
#pragma unroll 8
            for (long long r = p.top; r < p.end; r += p.height) {
                gx[r * C + p.c] = (T)((A)gy[r * C + p.c] * scale);
            }
            continue;
        }
        const A center = mean[p.c], level = sum_gy[p.c] / rows;
        const A slope = sum_gyxhat[p.c] / rows * inv_std[p.c];
#pragma unroll 8
        for (long long r = p.top; r < p.end; r += p.height) {
            const A along = ((A)x[r * C + p.c] - center) * slope;
            gx[r * C + p.c] = (T)(((A)gy[r * C + p.c] - level - along) * scale);
        }
    }
}
