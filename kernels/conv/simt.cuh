// A tile of a product of matrices on the ordinary cores, summed from shared memory.
//
//   sum[m][n] += sum over d of  a[d][m] * b[d][n]        m < BM, n < BN, a step of BK at a time
//
// Lanes: 8 along m, 4 along n. A thread has TM x TN sums, in packs of V neighbours (16 bytes) that
// lie BM/TM packs apart, so that eight lanes read 128 bytes in a row, or all the same 16.
//
// An operand that lies in memory along d is turned on its way into the tile: element (d, m) then
// stands at m ^ (d / L * apart), L neighbours in d having been read at once, so that what a warp
// writes falls on all banks. An operand that lies along m goes in as it is: apart = 0.
#pragma once

#include "common/pack.cuh"

template <class A, int BM, int BN, int BK, int TM, int TN>
struct SimtTile {
    static constexpr int V = Pack<A>::V;
    static constexpr int THREADS = (BM / TM) * (BN / TN);
    static constexpr int ROWS = BM / TM, COLUMNS = BN / TN;  // of threads
    static_assert(ROWS % 8 == 0 && COLUMNS % 4 == 0 && THREADS <= 1024, "whole warps");
    static_assert(TM % V == 0 && TN % V == 0 && BM % 32 == 0 && BN % 32 == 0, "whole packs");

    A sum[TM][TN] = {};
    int m, n;                                    // of this thread's first pack

    __device__ SimtTile() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        m = (warp % (ROWS / 8) * 8 + lane % 8) * V;
        n = (warp / (ROWS / 8) * 4 + lane / 8) * V;
    }

    __device__ int row(int i) const { return m + i / V * (ROWS * V) + i % V; }
    __device__ int column(int j) const { return n + j / V * (COLUMNS * V) + j % V; }

    // How far apart the packs of L elements lie that are turned on their way into a tile.
    static constexpr int apart(int L) { return 128 / (int)sizeof(A) / (BK / L); }

    // a: BK x BM, b: BK x BN; each either turned, from packs of LA or LB, or 0: as it lies.
    template <int LA, int LB> __device__ void multiply(const A* a, const A* b) {
#pragma unroll
        for (int d = 0; d < BK; ++d) {
            A u[TM], v[TN];
            const int ma = LA ? m ^ (d / (LA ? LA : 1) * apart(LA ? LA : 1)) : m;
            const int nb = LB ? n ^ (d / (LB ? LB : 1) * apart(LB ? LB : 1)) : n;
#pragma unroll
            for (int i = 0; i < TM / V; ++i) get(u + i * V, a + d * BM + ma + i * ROWS * V);
#pragma unroll
            for (int j = 0; j < TN / V; ++j) get(v + j * V, b + d * BN + nb + j * COLUMNS * V);
#pragma unroll
            for (int i = 0; i < TM; ++i) {
#pragma unroll
                for (int j = 0; j < TN; ++j) sum[i][j] = fma(u[i], v[j], sum[i][j]);
            }
        }
    }

    __device__ static void get(A* to, const A* from) {
        const Pack<A> p = *reinterpret_cast<const Pack<A>*>(from);
#pragma unroll
        for (int i = 0; i < V; ++i) to[i] = p.v[i];
    }
};

// L neighbours at p, or zeros.
template <int L, class T> __device__ inline Pack<T, L> pack_or_zero(const T* p, bool valid) {
    Pack<T, L> v;
    if (valid) return *reinterpret_cast<const Pack<T, L>*>(p);
#pragma unroll
    for (int i = 0; i < L; ++i) v.v[i] = (T)0.f;
    return v;
}

// This thread's share of a tile that is turned: L neighbours in d of each of its rows.
template <class T, class A, int BM, int BK, int L, int THREADS>
struct Turned {
    static constexpr int CHUNKS = BK / L, PASS = THREADS / CHUNKS, ROWS = (BM + PASS - 1) / PASS;
    static constexpr int APART = 128 / (int)sizeof(A) / CHUNKS;
    static_assert(APART >= Pack<A>::V || CHUNKS == 1, "what is read as a pack stays together");
    Pack<T, L> held[ROWS];

    __device__ static int row(int i) { return (int)threadIdx.x / CHUNKS + i * PASS; }
    __device__ static int d() { return (int)threadIdx.x % CHUNKS * L; }

    __device__ void put(A* tile) const {
        const int chunk = threadIdx.x % CHUNKS;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            if (BM % PASS && row(i) >= BM) break;
            A* const to = tile + chunk * L * BM + (row(i) ^ chunk * APART);
#pragma unroll
            for (int e = 0; e < L; ++e) to[e * BM] = (A)held[i].v[e];
        }
    }
};

// This thread's share of a tile that goes in as it lies: L neighbours in m of some of its lines d.
template <class T, class A, int BM, int BK, int L, int THREADS>
struct Straight {
    static constexpr int CHUNKS = BM / L, PASS = THREADS / CHUNKS, LINES = (BK + PASS - 1) / PASS;
    static_assert(THREADS % CHUNKS == 0 && L <= Pack<A>::V, "a line in whole packs");
    Pack<T, L> held[LINES];

    __device__ static int line(int i) { return (int)threadIdx.x / CHUNKS + i * PASS; }
    __device__ static int m() { return (int)threadIdx.x % CHUNKS * L; }

    __device__ void put(A* tile) const {
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            if (BK % PASS && line(i) >= BK) break;
            Pack<A, L> p;
#pragma unroll
            for (int e = 0; e < L; ++e) p.v[e] = (A)held[i].v[e];
            *reinterpret_cast<Pack<A, L>*>(tile + line(i) * BM + m()) = p;
        }
    }
};
