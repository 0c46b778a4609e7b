// Softmax and cross-entropy, forward and backward.       gpuconv/ops/softmax_cross_entropy.py
//
//   logp[n,k] = z[n,k] - max - log sum_j exp(z[n,j] - max)
//   target    = (1 - s) onehot(label) + s/K
//   loss[n]   = -sum_k target logp            gz[n,k] = exp(logp) - target
//
// Launch   forward   1-d, blocks of BLOCK threads; WARPS warps share a row: 1, or all of the block
//                    for long rows. Neighbouring threads hold neighbouring classes.
//          sum       one block.      backward  one thread per logit.
//          Shared memory: one value a warp, in sum one a thread.
// Traffic  forward   reads logits N*K (twice more from cache, rows of up to some ten thousand
//                    classes: asks <= 3*N*K+N*WARPS+N), labels N (asks N*WARPS), writes loss N,
//                    gz N*K.
//          sum       reads loss N, writes y 1.
//          backward  reads gz N*K, gy N if each, gy 1 if not each (asks <= N*K/16), writes gx N*K.
//          Coalesced where K fills whole sectors, else at most 1.5 times the sectors. No bank
//          conflicts.
// Order    lanes stride over the row, warps and threads merge as fixed trees; no float atomics.
//          Only the report of a bad label is a race: any of several may be the one reported.

#include "common.cuh"
#include "reduce.cuh"

using T = CFG_T;                       // stored element of logits and their gradient
using A = CFG_A;                       // arithmetic and losses: float, or double for double
constexpr int BLOCK = CFG_BLOCK;       // threads of a block
constexpr int WARPS = CFG_WARPS;       // warps that share a row
static_assert(WARPS == 1 || WARPS * 32 == BLOCK, "a row belongs to a warp or to a block");

extern "C" __global__ void softmax_cross_entropy_forward(
    const T* __restrict__ logits,            // (N, K)
    const long long* __restrict__ labels,    // (N,)
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
            if (bad && atomicCAS(error, 0, 1) == 0) {
                error[1] = (int)max(-2147483648ll, min(2147483647ll, label));
                error[2] = K;
            }
            A value = bad ? nan : on * (log(total) - ((A)z[label] - top));
            if (smoothing > 0) value += off * (K * log(total) - all);  // not 0 * inf
            loss[n] = value;
        }
        if (gz) {
            for (int k = lane; k < K; k += LANES) {
                const A p = exp((A)z[k] - top) / total;
                gz[n * K + k] = bad ? nan : p - off - (k == label ? on : (A)0);
            }
        }
    }
}

extern "C" __global__ void softmax_cross_entropy_sum(
    const A* __restrict__ loss,              // (N,)
    A* __restrict__ y,                       // ()
    long long N,
    bool mean)
{
    __shared__ A shared[BLOCK];
    A sum = 0;
    for (long long n = threadIdx.x; n < N; n += BLOCK) sum += loss[n];
    sum = reduce_columns(shared, sum, 1, Add());
    if (threadIdx.x == 0) y[0] = mean ? sum / N : sum;
}

extern "C" __global__ void softmax_cross_entropy_backward(
    const A* __restrict__ gz,                // (N, K)
    const A* __restrict__ gy,                // (), or (N,) if each
    T* __restrict__ gx,                      // (N, K)
    long long N, int K,
    bool mean, bool each)
{
    for (long long t : grid_stride<long long>(N * K)) {
        const A g = each ? gy[t / K] : gy[0];
        gx[t] = (T)(gz[t] * (mean ? g / N : g));
    }
}
