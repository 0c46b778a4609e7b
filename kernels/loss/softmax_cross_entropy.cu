// Softmax and cross-entropy, forward and backward.       gpuconv/ops/loss/softmax_cross_entropy.py
//
//   logp[n,k] = z[n,k] - max - log sum_j exp(z[n,j] - max)
//   target    = (1 - s) onehot(label) + s/K
//   loss[n]   = -sum_k target logp            gz[n,k] = exp(logp) - target
//   out       = how many n have z[n,label] > z[n,k] for k < label, and >= for k > label
//
// Launch   forward   1-d, blocks of BLOCK threads; WARPS warps share a row: 1, or all of the block
//                    for long rows. Neighbouring threads hold neighbouring classes.
//          small     one block of SMALL threads, a thread a row, for few bytes: losses and their sum
//                    in one launch. Rows pass through shared memory, TILE values at a time.
//          sum       one block.      backward  one thread per 4 logits, or per logit if each.
//          count     one block of SMALL threads; `lanes` of a warp share a row: 1 or 32.
//          Shared memory: one value a warp, in sum and count one a thread, in small 32 KB.
// Traffic  forward   reads logits N*K (twice more from cache, rows of up to some ten thousand
//                    classes: asks <= 3*N*K+N*WARPS+N), labels N (asks N*WARPS), writes loss N,
//                    gz N*K.
//          small     reads logits N*K, labels N, writes y 1 (sectors <= 1), gz N*K.
//          sum       reads loss N, writes y 1.
//          backward  reads gz N*K, gy N if each, gy 1 if not each (asks <= N*K/64), writes gx N*K.
//          count     reads logits <= N*K (a row a thread, from L1: asks <= 2*N*K; sectors <= 21),
//                    labels N, writes out 1.
//          Coalesced where K fills whole sectors, else at most 1.5 times the sectors. 2 passes.
// Order    lanes stride over the row, warps and threads merge as fixed trees; no float atomics.
//          Only the report of a bad label is a race: any of several may be the one reported.

#include "common/common.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

using T = CFG_T;                       // stored element of logits and their gradient
using A = CFG_A;                       // arithmetic and losses: float, or double for double
using Label = CFG_LABEL;               // int, or long long
constexpr int BLOCK = CFG_BLOCK;       // threads of a block
constexpr int WARPS = CFG_WARPS;       // warps that share a row
constexpr int SMALL = 1024;            // threads of the one block of small and count
constexpr int TILE = 32768 / sizeof(A);  // values of small's shared memory
static_assert(WARPS == 1 || WARPS * 32 == BLOCK, "a row belongs to a warp or to a block");

// Note a label outside 0 .. K-1.
__device__ inline void report(int* error, long long label, int K)
{
    if (atomicCAS(error, 0, 1) == 0) {
        error[1] = (int)max(-2147483648ll, min(2147483647ll, label));
        error[2] = K;
    }
}

// The loss of a row from the sums of exp(z - top) and z - top, and z[label] - top.
__device__ inline A row_loss(A total, A all, A mine, int K, A smoothing)
{
    A value = (1 - smoothing) * (log(total) - mine);
    if (smoothing > 0) value += smoothing / K * (K * log(total) - all);  // not 0 * inf
    return value;
}

extern "C" __global__ void softmax_cross_entropy_forward(
    const T* __restrict__ logits,            // (N, K)
    const Label* __restrict__ labels,        // (N,)
    A* __restrict__ loss,                    // (N,)
    A* __restrict__ gz,                      // (N, K)   null: no gradient is wanted
    int* __restrict__ error,                 // (3,)     [1, label, K] of a label outside 0..K-1
    long long N, int K,
    A smoothing)
{
    __shared__ A shared[WARPS];
    constexpr int LANES = 32 * WARPS, ROWS = BLOCK / LANES;  // threads per row, rows per block
    const int lane = threadIdx.x % LANES;
    for (long long n = (long long)blockIdx.x * ROWS + threadIdx.x / LANES; n < N;
         n += (long long)gridDim.x * ROWS) {
        const T* z = logits + n * K;
        const long long label = labels[n];
        const bool bad = label < 0 || label >= K;

        A top = (A)z[0];
        for (int k = lane; k < K; k += LANES) top = Larger()(top, (A)z[k]);
        top = reduce_warps<WARPS>(shared, top, Larger());

        A total = 0, all = 0;                // sums of exp(z - top), of z - top
        for (int k = lane; k < K; k += LANES) {
            const A d = (A)z[k] - top;
            total += exp(d);
            all += d;
        }
        total = reduce_warps<WARPS>(shared, total, Add());
        all = reduce_warps<WARPS>(shared, all, Add());

        const A on = 1 - smoothing, off = smoothing / K, nan = (A)0 / (A)0;
        if (lane == 0) {
            if (bad) report(error, label, K);
            loss[n] = bad ? nan : row_loss(total, all, (A)z[label] - top, K, smoothing);
        }
        if (gz) {
            for (int k = lane; k < K; k += LANES) {
                const A p = exp((A)z[k] - top) / total;
                gz[n * K + k] = bad ? nan : p - off - (k == label ? on : (A)0);
            }
        }
    }
}

extern "C" __global__ void softmax_cross_entropy_small(
    const T* __restrict__ logits,            // (N, K)
    const Label* __restrict__ labels,        // (N,)
    A* __restrict__ y,                       // ()
    A* __restrict__ gz,                      // (N, K)   null: no gradient is wanted
    int* __restrict__ error,                 // (3,)
    int N, int K,                            // K <= TILE / 2
    A smoothing,
    bool mean)
{
    __shared__ A tile[TILE];
    const int t = threadIdx.x, pitch = K | 1;               // odd: rows begin in different banks
    const int rows = min(TILE / pitch, SMALL);
    const A on = 1 - smoothing, off = smoothing / K, nan = (A)0 / (A)0;
    A sum = 0;
    for (int first = 0; first < N; first += rows) {
        const int here = min(rows, N - first), n = here * K;
        for (int i = t; i < n; i += SMALL) tile[i / K * pitch + i % K] = (A)logits[first * K + i];
        __syncthreads();
        if (t < here) {
            A* z = tile + t * pitch;
            const long long label = labels[first + t];
            const bool bad = label < 0 || label >= K;
            A top = z[0], total = 0, all = 0;
            for (int k = 1; k < K; ++k) top = Larger()(top, z[k]);
            A mine = 0;
            for (int k = 0; k < K; ++k) {
                const A d = z[k] - top;
                if (k == label) mine = d;
                z[k] = exp(d);
                total += z[k];
                all += d;
            }
            if (bad) report(error, label, K);
            sum += bad ? nan : row_loss(total, all, mine, K, smoothing);
            for (int k = 0; k < K; ++k)
                z[k] = bad ? nan : z[k] / total - off - (k == label ? on : (A)0);
        }
        __syncthreads();
        if (gz) {
            for (int i = t; i < n; i += SMALL) gz[first * K + i] = tile[i / K * pitch + i % K];
        }
        __syncthreads();                                    // before tile is written again
    }
    sum = reduce_columns(tile, sum, 1, Add());
    if (t == 0) y[0] = mean ? sum / N : sum;
}

extern "C" __global__ void softmax_cross_entropy_sum(
    const A* __restrict__ loss,              // (N,)
    A* __restrict__ y,                       // ()
    long long N,
    bool mean)
{
    __shared__ double shared[BLOCK];
    double sum = 0;
    for (long long n = threadIdx.x; n < N; n += BLOCK) sum += loss[n];
    sum = reduce_columns(shared, sum, 1, Add());
    if (threadIdx.x == 0) y[0] = (A)(mean ? sum / N : sum);
}

extern "C" __global__ void softmax_cross_entropy_backward(
    const A* __restrict__ gz,                // (N, K)
    const A* __restrict__ gy,                // (), or (N,) if each
    T* __restrict__ gx,                      // (N, K)
    long long N, int K,
    bool mean, bool each)
{
    const bool aligned = is_aligned<4 * sizeof(A)>(gz) && is_aligned<4 * sizeof(T)>(gx);
    const long long n = N * K, packs = each || !aligned ? 0 : n / 4;
    for (long long t : grid_stride<long long>(packs)) {
        const A scale = mean ? gy[0] / N : gy[0];
        const Pack<A, 4> g = reinterpret_cast<const Pack<A, 4>*>(gz)[t];
        Pack<T, 4> result;
        for (int i = 0; i < 4; ++i) result.v[i] = (T)(g.v[i] * scale);
        reinterpret_cast<Pack<T, 4>*>(gx)[t] = result;
    }
    for (long long t : grid_stride<long long>(n - packs * 4)) {
        const long long i = packs * 4 + t;
        const A g = each ? gy[i / K] : gy[0];
        gx[i] = (T)(gz[i] * (mean ? g / N : g));
    }
}

// A tie goes to the first class, as in argmax; a row with a NaN is never right.
extern "C" __global__ void softmax_cross_entropy_count(
    const T* __restrict__ logits,            // (N, K)
    const Label* __restrict__ labels,        // (N,)
    long long* __restrict__ out,             // (1,)
    long long N, int K,
    int lanes)
{
    __shared__ int shared[SMALL];
    const int lane = threadIdx.x % lanes, rows = SMALL / lanes;
    int count = 0;
    for (long long n = threadIdx.x / lanes; n < N; n += rows) {
        const T* z = logits + n * K;
        const long long label = labels[n];
        bool right = 0 <= label && label < K;
        if (right) {
            const A mine = (A)z[label];
            for (int k = lane; k < K; k += lanes)
                right = right && (k < label ? mine > (A)z[k] : mine >= (A)z[k]);
        }
        if (lanes == 32) right = reduce_warp((int)right, [](int a, int b) { return a & b; });
        count += lane == 0 && right;
    }
    count = reduce_columns(shared, count, 1, Add());
    if (threadIdx.x == 0) out[0] = count;
}
