// The end of a product on tensor cores: a block's part of the result, staged in shared memory.
//
// Sums lie in registers as the MMAs leave them: eight bytes here and there. Through shared memory
// they become rows, which leave in pieces of 16 bytes, are pooled, or summed up by columns.
#pragma once

#include "elementwise/functors.cuh"
#include "conv/gemm.cuh"

// A tile of BN columns, rounded to T, and what the THREADS of a block do with it. A thread owns V
// columns of every GROUPS-th row. WIDE: rows of the arrays in memory are multiples of 16 bytes;
// then these columns are neighbours, else they lie COLUMNS apart. k0: column 0 of the tile among
// the K of a row; pointers point at it.
template <class T, int BN, int THREADS, bool WIDE>
struct Staged {
    static constexpr int V = Pack<T>::V;             // elements of 16 bytes
    static constexpr int COLUMNS = BN / V;           // chunks of a row
    static constexpr int GROUPS = THREADS / COLUMNS; // rows that the block handles at once
    static_assert(BN % V == 0 && THREADS % COLUMNS == 0, "the threads come out even");

    T* const tile;
    const int k0, K;
    const int chunk, group;

    __device__ Staged(T* tile, int k0, int K)
        : tile(tile), k0(k0), K(K), chunk(threadIdx.x % COLUMNS), group(threadIdx.x / COLUMNS) {}

    __device__ int column(int e) const { return WIDE ? chunk * V + e : chunk + e * COLUMNS; }
    __device__ T* at(int row, int column) const {
        return tile + swizzle<T, BN>(row, column / V) + column % V;
    }

    // This thread's V elements of a row of the tile.
    __device__ Pack<T> read(int row) const {
        Pack<T> p;
        if constexpr (WIDE) {
            p = *reinterpret_cast<const Pack<T>*>(at(row, column(0)));
        } else {
#pragma unroll
            for (int e = 0; e < V; ++e) p.v[e] = *at(row, column(e));
        }
        return p;
    }
    __device__ void write(int row, const Pack<T>& p) const {
        if constexpr (WIDE) {
            *reinterpret_cast<Pack<T>*>(at(row, column(0))) = p;
        } else {
#pragma unroll
            for (int e = 0; e < V; ++e) *at(row, column(e)) = p.v[e];
        }
    }

    // Its V elements of a row in global memory.
    template <class E> __device__ void store(E* row, const E (&v)[V]) const {
        if constexpr (WIDE) {
            Pack<E, V> p;
#pragma unroll
            for (int e = 0; e < V; ++e) p.v[e] = v[e];
            if (k0 + column(0) < K) *reinterpret_cast<Pack<E, V>*>(row + column(0)) = p;
        } else {
#pragma unroll
            for (int e = 0; e < V; ++e) {
                if (k0 + column(e) < K) row[column(e)] = v[e];
            }
        }
    }

    // Rows of an array in global memory to the tile. With a barrier at its end.
    __device__ void fetch(const T* from, int rows) const {
        for (int row = group; row < rows; row += GROUPS) {
            const T* const its = from + (long long)row * K;
            if constexpr (WIDE) {
                cp_async<16>(at(row, column(0)), its + column(0), k0 + column(0) < K);
            } else {
                for (int e = 0; e < V; ++e) {
                    *at(row, column(e)) = k0 + column(e) < K ? its[column(e)] : (T)0.0f;
                }
            }
        }
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
    }

    // The sums of a warp, whose part begins at (m, n): f(sum + bias + what the tile holds if ADD).
    template <class Activation, bool BIAS, bool ADD, int TM, int TN>
    __device__ void stage(const float (&sum)[TM][TN][4], const T* bias, int m, int n) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            const int to = n + j * MMA_N + lane % 4 * 2;
            const float low = BIAS && k0 + to < K ? (float)bias[to] : 0.0f;
            const float high = BIAS && k0 + to + 1 < K ? (float)bias[to + 1] : 0.0f;
#pragma unroll
            for (int i = 0; i < 2 * TM; ++i) {
                Pack<T, 2>& pair = *reinterpret_cast<Pack<T, 2>*>(at(m + i * 8 + lane / 4, to));
                float u = sum[i / 2][j][i % 2 * 2] + low, v = sum[i / 2][j][i % 2 * 2 + 1] + high;
                if constexpr (ADD) {
                    const Pack<T, 2> before = pair;
                    u += (float)before.v[0], v += (float)before.v[1];
                }
                Pack<T, 2> both;                     // one store
                both.v[0] = (T)Activation::value(u), both.v[1] = (T)Activation::value(v);
                pair = both;
            }
        }
    }

    // The maxima of four rows from `row` on, and which: NaN wins, else the first that is largest.
    __device__ Pack<T> largest(int row, unsigned char (&marks)[V]) const {
        Pack<T> best = read(row);
#pragma unroll
        for (int e = 0; e < V; ++e) marks[e] = 0;
#pragma unroll
        for (int i = 1; i < 4; ++i) {
            const Pack<T> other = read(row + i);
#pragma unroll
            for (int e = 0; e < V; ++e) {
                const float v = (float)other.v[e], most = (float)best.v[e];
                if (v > most || (isnan(v) && !isnan(most))) best.v[e] = other.v[e], marks[e] = i;
            }
        }
        return best;
    }

    // Mean and variance of each column, over rows 0, APART, ... of the tile, `rows` of them. sums:
    // those of this thread's rows, in their order. The tile is free afterwards; it must have room
    // for 2 * GROUPS * BN floats. What a mean lost by rounding is found by the second pass: where
    // all rows are equal, it is their very value, and the variance 0.
    template <int APART>
    __device__ void moments(const float (&sums)[V], float* means, float* vars, int rows) const {
        float mean[V], off[V] = {}, var[V] = {};
        const float count = its_rows(group, rows);
#pragma unroll
        for (int e = 0; e < V; ++e) mean[e] = sums[e] / count;
        for (int row = group; row < rows; row += GROUPS) {
            const Pack<T> p = read(row * APART);
#pragma unroll
            for (int e = 0; e < V; ++e) {
                const float apart = (float)p.v[e] - mean[e];
                off[e] += apart;
                var[e] = fma(apart, apart, var[e]);
            }
        }
#pragma unroll
        for (int e = 0; e < V; ++e) {
            const float more = off[e] / count;
            var[e] = fma(-off[e], more, var[e]) / count;
            var[e] = var[e] < 0 ? 0 : var[e];        // NaN stays
            mean[e] += more;
        }
        __syncthreads();                             // the tile has been read
        float* const part_mean = reinterpret_cast<float*>(tile);     // (GROUPS, BN)
        float* const part_var = part_mean + GROUPS * BN;
        constexpr int AT_ONCE = WIDE ? 4 : 1;
#pragma unroll
        for (int e = 0; e < V; e += AT_ONCE) {
            Pack<float, AT_ONCE> a, b;
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) a.v[i] = mean[e + i], b.v[i] = var[e + i];
            const int to = group * BN + column(e);
            *reinterpret_cast<Pack<float, AT_ONCE>*>(part_mean + to) = a;
            *reinterpret_cast<Pack<float, AT_ONCE>*>(part_var + to) = b;
        }
        __syncthreads();
        for (int k = threadIdx.x; k < BN && k0 + k < K; k += THREADS) {
            float n = its_rows(0, rows), all = part_mean[k], all_var = part_var[k];
            for (int g = 1; g < GROUPS && g < rows; ++g) {           // Chan, Golub, LeVeque, 1979
                const float some = its_rows(g, rows), delta = part_mean[g * BN + k] - all;
                const float share = some / (n + some), keep = n / (n + some);
                all_var = fma(keep, fma(delta * share, delta, all_var), share * part_var[g * BN + k]);
                n += some;
                all = fma(delta, share, all);
            }
            means[k] = all, vars[k] = all_var;
        }
    }
    __device__ static int its_rows(int group, int rows) {
        return (rows - group + GROUPS - 1) / GROUPS;
    }
};
