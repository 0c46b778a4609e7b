// Global average and max pooling, NHWC, forward and backward.      gpuconv/ops/pool/global_pool.py
//
//   average   y[n,c] = 1/size * sum_{i<size} x[n,i,c]        gx[n,i,c] = gy[n,c] / size
//   maximum   y[n,c] = max_{i<size} x[n,i,c]                 gx[n,i,c] = gy[n,c] * [argmax[n,c] == i]
//
//   i = h*W + w, size = H*W.
//
// Launch   1-d blocks of BLOCK threads, any grid. A thread has 16 bytes of channels where C and the
//          addresses allow, else one channel; `rows` threads of a block, a power of two, share them,
//          each with every rows-th pixel. Neighbouring threads hold neighbouring channels. Shared
//          memory: in forward, one value a thread (with its place, for the maximum).
// Traffic  avg_forward   reads x N*size*C, writes y N*C (sectors <= 2).
//          avg_backward  reads gy N*C (asks <= N*C*rows; sectors <= 2), writes gx N*size*C.
//          max_forward   reads x N*size*C, writes y/argmax N*C (sectors <= 4).
//          max_backward  reads gy/argmax N*C (asks <= N*C*rows; sectors <= 4), writes gx N*size*C.
//          Coalesced where C fills whole sectors, else at most 3 times the sectors. No bank conflicts.
// Order    a thread takes its pixels in order, sums of RUN of them in double; a tree joins the
//          threads; `rows` follows from the shape.
//          Ties, and NaNs, go to the first pixel. No atomics: runs are bit-identical.
//
// Source: Lin, Chen, Yan, "Network in network", 2013, section 3.2.

#include "common/common.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

using T = CFG_T;                               // stored element of x, y, gy, gx
using A = CFG_A;                               // arithmetic: float, or double for double
using I = CFG_I;                               // flat index: int, or long long for huge arrays
using Mark = CFG_MARK;                         // argmax: unsigned char, or int for over 256 pixels
constexpr bool SAVE = CFG_SAVE;                // write argmax? If not, it is null
constexpr int BLOCK = CFG_BLOCK;               // threads of a block
constexpr int V = Pack<T>::V;                  // channels of 16 bytes
constexpr int RUN = 32;                        // pixels of a sum in A; its sums are added in double

struct alignas(2 * sizeof(A)) Best {
    A v;
    int at;
};

// Is b in front of a? The larger, the first of equals; NaN is the largest.
__device__ inline bool beats(Best b, Best a)
{
    if (isnan(a.v) || isnan(b.v)) return isnan(b.v) && (!isnan(a.v) || b.at < a.at);
    return b.v > a.v || (b.v == a.v && b.at < a.at);
}

struct Front {
    __device__ Best operator()(Best a, Best b) const { return beats(b, a) ? b : a; }
};

// f(n, c, row, live) for each column of V channels; all threads of a block come, live or not.
template <int V, class F>
__device__ inline void each_column(int N, int C, int rows, F f)
{
    const int packs = C / V, lanes = BLOCK / rows;
    const long long columns = (long long)N * packs;
    for (long long first = (long long)blockIdx.x * lanes; first < columns;
         first += (long long)gridDim.x * lanes) {
        const I column = (I)(first + threadIdx.x % lanes);
        f((int)(column / packs), (int)(column % packs), (int)threadIdx.x / lanes, column < columns);
    }
}

template <int V>
__device__ inline void avg_forward(const T* x, T* y, A* shared, int N, int size, int C, int rows)
{
    const int packs = C / V;
    each_column<V>(N, C, rows, [&](int n, int c, int row, bool live) {
        A sum[V] = {};
        double total[V] = {};
        if (live) {
            const Pack<T, V>* image = reinterpret_cast<const Pack<T, V>*>(x) + (I)n * size * packs + c;
            for (long long first = row; first < size; first += (long long)RUN * rows) {
                const int end = min((long long)size, first + (long long)RUN * rows);
#pragma unroll 4
                for (int i = first; i < end; i += rows) {
                    const Pack<T, V> pixel = image[(I)i * packs];
                    for (int j = 0; j < V; ++j) sum[j] += (A)pixel.v[j];
                }
                for (int j = 0; j < V; ++j) total[j] += sum[j], sum[j] = 0;
            }
        }
        Pack<T, V> result;
        for (int j = 0; j < V; ++j) {
            sum[j] = (A)total[j];
            if (rows > 1) sum[j] = reduce_columns(shared, sum[j], BLOCK / rows, Add());
            result.v[j] = (T)(sum[j] / size);
        }
        if (live && row == 0) reinterpret_cast<Pack<T, V>*>(y)[(I)n * packs + c] = result;
    });
}

template <int V>
__device__ inline void avg_backward(const T* gy, T* gx, int N, int size, int C, int rows)
{
    const int packs = C / V;
    each_column<V>(N, C, rows, [&](int n, int c, int row, bool live) {
        if (!live) return;
        Pack<T, V> share = reinterpret_cast<const Pack<T, V>*>(gy)[(I)n * packs + c];
        for (int j = 0; j < V; ++j) share.v[j] = (T)((A)share.v[j] / size);
        Pack<T, V>* image = reinterpret_cast<Pack<T, V>*>(gx) + (I)n * size * packs + c;
        for (int i = row; i < size; i += rows) image[(I)i * packs] = share;
    });
}

template <int V>
__device__ inline void max_forward(
    const T* x, T* y, Mark* argmax, Best* shared, int N, int size, int C, int rows)
{
    const int packs = C / V;
    each_column<V>(N, C, rows, [&](int n, int c, int row, bool live) {
        Best best[V];
        for (int j = 0; j < V; ++j) best[j] = {log((A)0), row};       // -inf
        if (live) {
            const Pack<T, V>* image = reinterpret_cast<const Pack<T, V>*>(x) + (I)n * size * packs + c;
#pragma unroll 4
            for (int i = row; i < size; i += rows) {
                const Pack<T, V> pixel = image[(I)i * packs];
                for (int j = 0; j < V; ++j) {
                    const A v = (A)pixel.v[j];
                    if (!(v <= best[j].v) && !isnan(best[j].v)) best[j] = {v, i};
                }
            }
        }
        Pack<T, V> result;
        Pack<Mark, V> where;
        for (int j = 0; j < V; ++j) {
            if (rows > 1) best[j] = reduce_columns(shared, best[j], BLOCK / rows, Front());
            result.v[j] = (T)best[j].v;
            where.v[j] = (Mark)best[j].at;
        }
        if (live && row == 0) {
            const I o = (I)n * packs + c;
            reinterpret_cast<Pack<T, V>*>(y)[o] = result;
            if constexpr (SAVE) reinterpret_cast<Pack<Mark, V>*>(argmax)[o] = where;
        }
    });
}

template <int V>
__device__ inline void max_backward(
    const T* gy, const Mark* argmax, T* gx, int N, int size, int C, int rows)
{
    const int packs = C / V;
    each_column<V>(N, C, rows, [&](int n, int c, int row, bool live) {
        if (!live) return;
        const I o = (I)n * packs + c;
        const Pack<T, V> g = reinterpret_cast<const Pack<T, V>*>(gy)[o];
        const Pack<Mark, V> where = reinterpret_cast<const Pack<Mark, V>*>(argmax)[o];
        Pack<T, V>* image = reinterpret_cast<Pack<T, V>*>(gx) + (I)n * size * packs + c;
        for (int i = row; i < size; i += rows) {
            Pack<T, V> result;
            for (int j = 0; j < V; ++j) result.v[j] = where.v[j] == i ? g.v[j] : (T)(A)0;
            image[(I)i * packs] = result;
        }
    });
}

extern "C" __global__ void global_pool_avg_forward(
    const T* __restrict__ x,             // (N, size, C)
    T* __restrict__ y,                   // (N, C)
    int N, int size, int C, int rows)
{
    __shared__ A shared[BLOCK];
    if (C % V == 0 && is_aligned(x) && is_aligned(y))
        avg_forward<V>(x, y, shared, N, size, C, rows);
    else
        avg_forward<1>(x, y, shared, N, size, C, rows);
}

extern "C" __global__ void global_pool_avg_backward(
    const T* __restrict__ gy,            // (N, C)
    T* __restrict__ gx,                  // (N, size, C)
    int N, int size, int C, int rows)
{
    if (C % V == 0 && is_aligned(gy) && is_aligned(gx))
        avg_backward<V>(gy, gx, N, size, C, rows);
    else
        avg_backward<1>(gy, gx, N, size, C, rows);
}

extern "C" __global__ void global_pool_max_forward(
    const T* __restrict__ x,             // (N, size, C)
    T* __restrict__ y,                   // (N, C)
    Mark* __restrict__ argmax,           // (N, C)   h*W + w of the first NaN, or maximum
    int N, int size, int C, int rows)
{
    __shared__ Best shared[BLOCK];
    if (C % V == 0 && is_aligned(x) && is_aligned(y) && is_aligned(argmax))
        max_forward<V>(x, y, argmax, shared, N, size, C, rows);
    else
        max_forward<1>(x, y, argmax, shared, N, size, C, rows);
}

extern "C" __global__ void global_pool_max_backward(
    const T* __restrict__ gy,            // (N, C)
    const Mark* __restrict__ argmax,     // (N, C)
    T* __restrict__ gx,                  // (N, size, C)
    int N, int size, int C, int rows)
{
    if (C % V == 0 && is_aligned(gy) && is_aligned(argmax) && is_aligned(gx))
        max_backward<V>(gy, argmax, gx, N, size, C, rows);
    else
        max_backward<1>(gy, argmax, gx, N, size, C, rows);
}
