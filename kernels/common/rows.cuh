// A block's part of an array (rows, C): a tile of neighbouring columns over a slice of the rows.
//
//   thread t     column t % lanes of the tile, each of V channels, rows t / lanes, + height, ...
//   tile         lanes columns; the last one may hold fewer
//   slice        per rows; the last one may hold fewer
//
// So a thread keeps its channels, and what belongs to them stays in registers; a warp reads
// neighbouring addresses, and no element costs a division. Threads beyond height * lanes idle:
// lanes need be no power of two.
#pragma once
#include "common/pack.cuh"

template <int V>
struct Part {
    int slice, first, width;       // the slice; the tile's first channel, and how many it has
    int height;                    // rows that the block reads at once
    int c, count;                  // this thread's first channel; its rows, 0 beyond the last channel
    long long row, at, step;       // its first row, where that begins, elements from one to the next

    __device__ Part(long long b, long long rows, int C, int per, int lanes) {
        const int columns = C / V, tiles = (columns + lanes - 1) / lanes;
        const int tile = b % tiles, column = tile * lanes + threadIdx.x % lanes;
        slice = b / tiles;
        first = tile * lanes * V;
        width = min(lanes, columns - tile * lanes) * V;
        height = blockDim.x / lanes;
        c = column * V;
        const int down = threadIdx.x / lanes;
        const long long top = (long long)slice * per;
        const int mine = min((long long)per, rows - top) - down;
        count = column < columns && down < height && mine > 0 ? (mine + height - 1) / height : 0;
        row = top + down;
        at = row * C + c;
        step = (long long)height * C;
    }
    // The block's number of that many.
    static __device__ long long all(long long rows, int C, int per, int lanes) {
        const int columns = C / V;
        return (columns + lanes - 1) / lanes * ((rows + per - 1) / per);
    }
};

// A thread's numbers of an array of channels, which may be null.
template <class A, int V, class T>
__device__ inline void get_channels(A (&to)[V], const T* from, int c, A otherwise = 0)
{
    Pack<T, V> some;
    if (from) some = *reinterpret_cast<const Pack<T, V>*>(from + c);
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = from ? (A)some.v[v] : otherwise;
}

// Up to N of the rows that are left for a thread, all of them on their way at once; zeros beyond.
template <int N, class T, int V>
__device__ inline void get_rows(Pack<T, V>* to, const T* from, long long step, int left)
{
#pragma unroll
    for (int i = 0; i < N; ++i) {
        to[i] = i < left ? *reinterpret_cast<const Pack<T, V>*>(from + i * step) : Pack<T, V>{};
    }
}

template <int N, class T, int V>
__device__ inline void put_rows(T* to, const Pack<T, V>* from, long long step, int left)
{
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (i < left) *reinterpret_cast<Pack<T, V>*>(to + i * step) = from[i];
    }
}

// What load(i) gives for the rows i of a thread, merged in their order, some of them on their way
// at once.
template <class S, class Load, class Merge>
__device__ inline S merge_rows(int count, Load load, Merge merge)
{
    constexpr int N = 8;
    S all = {};
#pragma unroll 1
    for (int r = 0; r < count; r += N) {
        S some[N];
#pragma unroll
        for (int i = 0; i < N; ++i) some[i] = r + i < count ? load(r + i) : S{};
#pragma unroll
        for (int i = 0; i < N; ++i) all = merge(all, some[i]);
    }
    return all;
}

// Where element i of an array in shared memory lies, so that threads that write V neighbours each,
// and those that read neighbours, meet in no bank: after every 128 bytes of accesses, one is left
// out. A struct is one access, if it is aligned to its size, else one for each number.
template <class S>
__device__ constexpr int spread(int i) { return i + i * (int)alignof(S) / 128; }

// Totals over the rows of threads of what each brings for its V channels, in a fixed order: in
// shared[spread<S>(k)], k = 0 .. the tile's width - 1. `shared` holds spread<S>(BLOCK * V) of them.
// Holds barriers: every thread of the block must call it, and then __syncthreads() before shared is
// written again.
template <int V, class S, class Merge>
__device__ void reduce_rows(S* shared, const S* mine, int height, int lanes, Merge merge)
{
    constexpr int FAN = 8;                               // rows that become one at a time
    if (threadIdx.x < height * lanes) {
#pragma unroll
        for (int v = 0; v < V; ++v) shared[spread<S>(threadIdx.x * V + v)] = mine[v];
    }
    __syncthreads();
    for (int rows = height, left; rows > 1; rows = left) {
        left = (rows + FAN - 1) / FAN;
        const int few = left * lanes * V, all = rows * lanes * V;
        for (int i = threadIdx.x; i < few; i += blockDim.x) {
            S sum = shared[spread<S>(i)];
            for (int k = i + few; k < all; k += few) sum = merge(sum, shared[spread<S>(k)]);
            shared[spread<S>(i)] = sum;                  // nobody else reads row i / (lanes * V)
        }
        __syncthreads();
    }
}
