// Sums of the columns of a matrix.                               gpuconv/ops/engine/column_sums.py
//
//   sums[i, c] = sum of rows[r, c] over the rows r of slice i
//
// Rows of K elements that fill no pack of V are read in lines: `line` = lcm(K, V) elements, several
// rows side by side. Then a slice's sums are as many rows as a line has, for a second pass.
//
// Launch   1-d, a block of BLOCK threads for each tile of `lanes` packs of a line and each of
//          `slices` slices of the lines; thread t takes pack t % lanes of each (BLOCK / lanes)-th
//          line. Static shared memory: V numbers a thread.
// Traffic  column_sums  reads rows n*K (sectors <= 5: small matrices are cut into few lanes), writes
//                       sums slices*line (sectors <= 4).
//          Coalesced where many rows are read. No bank conflicts.
// Order    a thread adds LINES lines from first to last, and these sums in double; then the block in
//          a tree: the error does not grow with n. Slices and lanes are cut by shape alone, and a view
//          that begins anywhere is added in the same order: the same bits from run to run.

#include "common/common.cuh"
#include "common/pack.cuh"

using T = CFG_T;                       // element of rows
using A = CFG_A;                       // arithmetic
using O = CFG_O;                       // element of sums
constexpr int V = CFG_V;               // elements of a pack: 16 bytes, or one element
constexpr int BLOCK = CFG_BLOCK;       // threads of a block
constexpr int LINES = 8;               // that a thread reads before it adds them
constexpr int PITCH = BLOCK + 128 / (int)sizeof(A) / V;            // V neighbours, V banks

// Neighbours from rows[at] on, zeros from rows[end] on.
__device__ inline Pack<T, V> load(const T* rows, long long at, long long end, bool aligned)
{
    if (aligned && at + V <= end) return *reinterpret_cast<const Pack<T, V>*>(rows + at);
    Pack<T, V> p;
#pragma unroll
    for (int e = 0; e < V; ++e) p.v[e] = at + e < end ? rows[at + e] : (T)0.f;
    return p;
}

extern "C" __global__ void __launch_bounds__(BLOCK) column_sums(
    const T* __restrict__ rows,          // (n, K)
    O* __restrict__ sums,                // (slices, line)
    long long n, int K, int line, int lanes, int slices)
{
    __shared__ A shared[V * PITCH];
    const int tiles = (line / V + lanes - 1) / lanes, height = BLOCK / lanes;
    const int tile = blockIdx.x % tiles, slice = blockIdx.x / tiles;
    const int t = threadIdx.x, row = t / lanes, column = (tile * lanes + t % lanes) * V;
    const bool aligned = is_aligned(rows);
    const long long size = n * K, lines = (size + line - 1) / line;
    const long long first = lines * slice / slices;
    const long long end = row < height && column < line ? lines * (slice + 1) / slices : 0;

    double sum[V] = {};
    for (long long l = first + row; l < end; l += LINES * height) {
        Pack<T, V> p[LINES];
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            const long long here = l + i * height;
            p[i] = load(rows, here * line + column, here < end ? size : 0, aligned);
        }
#pragma unroll
        for (int e = 0; e < V; ++e) {
            A few = 0;
#pragma unroll
            for (int i = 0; i < LINES; ++i) few += (A)p[i].v[e];
            sum[e] += few;
        }
    }
#pragma unroll
    for (int e = 0; e < V; ++e) shared[e * PITCH + t] = (A)sum[e];
    __syncthreads();
    for (int high = height; high > 1;) {
        const int half = (high + 1) / 2;
        if (row + half < high) {
#pragma unroll
            for (int e = 0; e < V; ++e) shared[e * PITCH + t] += shared[e * PITCH + t + half * lanes];
        }
        high = half;
        __syncthreads();
    }
    const int c = tile * lanes * V + t;
    if (t < lanes * V && c < line) {
        sums[(long long)slice * line + c] = (O)shared[t % V * PITCH + t / V];
    }
}
