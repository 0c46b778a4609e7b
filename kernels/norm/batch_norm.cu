// Batch normalisation over the rows of (rows, C), forward and backward. gpuconv/ops/norm/batch_norm.py
//
//   mean[c] = 1/rows sum_r x[r,c]         var[c] = 1/rows sum_r (x[r,c] - mean[c])^2
//   xhat    = (x - mean) inv_std          inv_std = 1 / sqrt(var + eps)
//   z       = gamma xhat + beta           y = act(z + residual)
//   gz      = gy act'(z + residual)       which is the residual's gradient, too
//   gbeta   = sum_r gz        ggamma = sum_r gz xhat
//   gx      = gamma inv_std (gz - gbeta/rows - xhat ggamma/rows)     the last two not in inference
//
//   Where the ops one after another would round to T, so do these, with the same bits; backward
//   computes z again.
//
// Launch   1-d, blocks of BLOCK threads; a block takes a tile of channels over one of S slices of
//          the rows, `per` rows each, see rows.cuh. A thread keeps V channels, 16 bytes where C and
//          the addresses allow, and reads a few rows before it computes with them. The second pass
//          over an array takes the slices from the last to the first: the last is what L2 still
//          holds. merge, statistics, backward_totals: a thread keeps one channel.
//          Shared memory: 12 bytes a thread and channel (24 for double).
// Traffic  moments     reads x rows*C, writes mean/var S*C.
//          merge       reads slice_mean/slice_var slices*C, writes mean/var S*C.
//          statistics  reads slice_mean/slice_var S*C, running_mean/running_var C, batches 1, writes
//                      mean/inv_std/running_mean/running_var C, batches 1.
//          fixed       reads running_mean/running_var C, writes mean/inv_std C.
//          forward     reads x rows*C, residual rows*C, gamma/beta/mean/inv_std C (asks
//                      <= S*C*BLOCK/32, sectors <= 2), writes y rows*C.
//          backward_sums    reads gy/x rows*C, residual rows*C, gamma/beta/inv_std C if ACTIVATION
//                           (asks <= S*C*BLOCK/32, sectors <= 2), mean C (asks <= S*C*BLOCK/32,
//                           sectors <= 2), writes gz rows*C, sum_gz/sum_gzx S*C.
//          backward_totals  reads slice_gz/slice_gzx S*C, inv_std C, writes sum_gz/sum_gzxhat C,
//                           ggamma/gbeta C.
//          backward    reads gy rows*C, x rows*C, gamma/beta/mean/inv_std/sum_gz/sum_gzxhat C (asks
//                      <= S*C*BLOCK/32, sectors <= 2), writes gx rows*C.
//          So training reads x twice, and its backward x and gy twice: the second time from L2, as
//          far as that reaches. Coalesced where C fills whole sectors, else at most 1.8 times the
//          sectors. Banks: 1.4 passes at most, one where 32 divides lanes*V.
// Order    each slice's sums in a fixed order, then the slices' in a fixed order; no atomics. The
//          slices are cut by shape alone: the same bits from run to run.
// Source   Ioffe and Szegedy, ICML 2015; merging of moments: Chan, Golub, LeVeque, 1979.

#include "common/common.cuh"
#include "elementwise/functors.cuh"
#include "common/rows.cuh"

using T = CFG_T;                       // stored element of x, y, gamma, beta and their gradients
using A = CFG_A;                       // arithmetic and statistics: float, or double for double
constexpr int BLOCK = CFG_BLOCK;       // threads of a block
constexpr int V = CFG_V;               // channels of a thread: they are one access
using Activation = functor::CFG_ACTIVATION;
constexpr bool ACTIVATION = !is_none<Activation>;
constexpr bool HEAVY = !Activation::SIMPLE;  // needs registers of its own
constexpr int DEEP = HEAVY ? 2 : 4;    // rows that a thread reads at once, of one array,
constexpr int PAIRS = HEAVY ? 2 : 3;   // of two,
constexpr int WITH = 2;                // where there is a residual as well
constexpr int RUN = 48;                // rows that a thread adds up before it adds to their sum
using P = Pack<T, V>;

struct Moments {
    A n, mean, var;                    // how many values, their mean and variance: no sum of squares,
};                                     // which would overflow

struct MergeMoments {
    __device__ Moments operator()(Moments a, Moments b) const {
        const A n = a.n + b.n;
        if (b.n == 0) return a;
        if (a.n == 0) return b;
        const A delta = b.mean - a.mean, share = b.n / n, keep = a.n / n;
        return {n, fma(delta, share, a.mean),
                fma(keep, fma(delta * share, delta, a.var), share * b.var)};
    }
};

struct alignas(2 * sizeof(A)) Sums {   // one access, not two at every other word
    A gz, gzx;                         // sum of gz, of gz * (x - mean)
};

struct AddSums {
    __device__ Sums operator()(Sums a, Sums b) const { return {a.gz + b.gz, a.gzx + b.gzx}; }
};

__device__ inline A rounded(A v) { return (A)(T)v; }

// The gradient of the activation's argument z, which is rounded, as is its result.
__device__ inline A pull_back(A g, A z)
{
    return Activation::gradient(g, z, rounded(Activation::value(z)));
}

// What the channels of a thread do to x: the same bits in forward and in backward. The mean is
// subtracted first: where all x of a channel are equal, what is left is exactly the shift.
struct Normalise {
    A center[V], scale[V], shift[V];
    __device__ Normalise(const T* gamma, const T* beta, const A (&mean)[V], const A* inv, int c) {
        get_channels(scale, gamma, c, (A)1);
        get_channels(shift, beta, c);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            center[v] = mean[v];
            scale[v] *= inv[v];
        }
    }
    __device__ A operator()(A x, int v) const { return fma(x - center[v], scale[v], shift[v]); }
};

// ---- forward

extern "C" __global__ void __launch_bounds__(BLOCK, 3) batch_norm_moments(
    const T* __restrict__ x,              // (rows, C)
    A* __restrict__ mean,                 // (S, C)       of each slice
    A* __restrict__ var,                  // (S, C)
    long long rows, int C, int S, int per, int lanes)
{
    constexpr int N = 4;
    __shared__ Moments shared[spread<Moments>(BLOCK * V)];
    for (long long b = blockIdx.x; b < Part<V>::all(rows, C, per, lanes); b += gridDim.x) {
        const Part<V> p(b, rows, C, per, lanes);
        A count = 0, means[V] = {}, vars[V] = {};
        long long at = p.at;
#pragma unroll 1
        for (int left = p.count; left > 0; left -= N, at += N * p.step) {
            P some[N];
            const int n = min(N, left);
            get_rows<N>(some, x + at, p.step, left);
            const A inverse = (A)1 / n, share = n / (count + n), keep = count / (count + n);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const A first = (A)some[0].v[v];
                A here = first, square = 0;      // the mean of these rows, their squared deviations
#pragma unroll
                for (int i = 1; i < N; ++i) {
                    here = i < n ? fma((A)some[i].v[v] - first, inverse, here) : here;
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const A d = i < n ? (A)some[i].v[v] - here : (A)0;
                    square = fma(d, d, square);
                }
                const A mean = count == 0 ? here : means[v], delta = here - mean;
                means[v] = fma(delta, share, mean);
                vars[v] = fma(keep, fma(delta * share, delta, vars[v]), square * inverse * share);
            }
            count += n;
        }
        Moments all[V];
#pragma unroll
        for (int v = 0; v < V; ++v) all[v] = {count, means[v], vars[v]};
        reduce_rows<V>(shared, all, p.height, lanes, MergeMoments());
        for (int k = threadIdx.x; k < p.width; k += BLOCK) {
            mean[(long long)p.slice * C + p.first + k] = shared[spread<Moments>(k)].mean;
            var[(long long)p.slice * C + p.first + k] = shared[spread<Moments>(k)].var;
        }
        __syncthreads();                  // before shared is written again
    }
}

// The moments of the slices that are this thread's part of (slices, C), `each` rows in a slice.
__device__ inline Moments merged(const Part<1>& p, const A* mean, const A* var, long long rows,
                                 int each)
{
    return merge_rows<Moments>(p.count, [=](int i) -> Moments {
        const long long at = p.at + i * p.step, first = (p.row + (long long)i * p.height) * each;
        return {(A)min((long long)each, rows - first), mean[at], var[at]};
    }, MergeMoments());
}

extern "C" __global__ void __launch_bounds__(BLOCK) batch_norm_merge(
    const A* __restrict__ slice_mean,     // (slices, C)  of `each` rows
    const A* __restrict__ slice_var,      // (slices, C)
    A* __restrict__ mean,                 // (S, C)       of `per` slices
    A* __restrict__ var,                  // (S, C)
    long long rows, int slices, int each, int C, int S, int per, int lanes)
{
    __shared__ Moments shared[spread<Moments>(BLOCK)];
    for (long long b = blockIdx.x; b < Part<1>::all(slices, C, per, lanes); b += gridDim.x) {
        const Part<1> p(b, slices, C, per, lanes);
        const Moments mine = merged(p, slice_mean, slice_var, rows, each);
        reduce_rows<1>(shared, &mine, p.height, lanes, MergeMoments());
        for (int k = threadIdx.x; k < p.width; k += BLOCK) {
            mean[(long long)p.slice * C + p.first + k] = shared[spread<Moments>(k)].mean;
            var[(long long)p.slice * C + p.first + k] = shared[spread<Moments>(k)].var;
        }
        __syncthreads();                  // before shared is written again
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) batch_norm_statistics(
    const A* __restrict__ slice_mean,     // (S, C)       of `each` rows
    const A* __restrict__ slice_var,      // (S, C)
    A* __restrict__ mean,                 // (C,)
    A* __restrict__ inv_std,              // (C,)
    A* __restrict__ running_mean,         // (C,)         updated; null: there is none
    A* __restrict__ running_var,          // (C,)
    long long* __restrict__ batches,      // ()           counted; null: not
    long long rows, int each, int C, int S, int lanes,
    A momentum,                           // weight of this batch in the running statistics
    A eps,
    A largest)                            // variance: what is larger counts as infinite
{
    __shared__ Moments shared[spread<Moments>(BLOCK)];
    if (batches && blockIdx.x == 0 && threadIdx.x == 0) batches[0] += 1;
    for (long long b = blockIdx.x; b < Part<1>::all(S, C, S, lanes); b += gridDim.x) {
        const Part<1> p(b, S, C, S, lanes);
        const Moments mine = merged(p, slice_mean, slice_var, rows, each);
        reduce_rows<1>(shared, &mine, p.height, lanes, MergeMoments());
        for (int k = threadIdx.x; k < p.width; k += BLOCK) {
            const Moments all = shared[spread<Moments>(k)];
            const int c = p.first + k;
            mean[c] = all.mean;
            const A var = all.var > largest ? -log((A)0) : all.var;
            inv_std[c] = 1 / sqrt(var + eps);
            if (running_mean) {
                const A keep = 1 - momentum;
                running_mean[c] = keep * running_mean[c] + momentum * all.mean;
                running_var[c] = keep * running_var[c] + momentum * (var * ((A)rows / (rows - 1)));
            }
        }
        __syncthreads();                  // before shared is written again
    }
}

extern "C" __global__ void batch_norm_fixed(
    const A* __restrict__ running_mean,   // (C,)
    const A* __restrict__ running_var,    // (C,)
    A* __restrict__ mean,                 // (C,)         what backward keeps
    A* __restrict__ inv_std,              // (C,)
    int C,
    A eps)
{
    for (int c : grid_stride<int>(C)) {
        mean[c] = running_mean[c];
        inv_std[c] = 1 / sqrt(running_var[c] + eps);
    }
}

// y of this thread's rows of x, and of the residual if there is one.
template <bool ADD>
__device__ inline void normalise_rows(const Part<V>& p, const Normalise& normalise, const T* x,
                                      const T* residual, T* y)
{
    constexpr int N = ADD ? WITH : DEEP;
    long long at = p.at;
#pragma unroll 1
    for (int left = p.count; left > 0; left -= N, at += N * p.step) {
        P some[N], more[N];
        get_rows<N>(some, x + at, p.step, left);
        if (ADD) get_rows<N>(more, residual + at, p.step, left);
#pragma unroll
        for (int v = 0; v < V; ++v) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                A z = normalise((A)some[i].v[v], v);
                if (ADD) z = rounded(z) + (A)more[i].v[v];
                if (!Activation::SIMPLE) z = rounded(z);
                some[i].v[v] = (T)Activation::value(z);
            }
        }
        put_rows<N>(y + at, some, p.step, left);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 3) batch_norm_forward(
    const T* __restrict__ x,              // (rows, C)
    const T* __restrict__ gamma,          // (C,)         null: ones
    const T* __restrict__ beta,           // (C,)         null: zeros
    const A* __restrict__ mean,           // (C,)
    const A* __restrict__ inv_std,        // (C,)
    const T* __restrict__ residual,       // (rows, C)    null: zeros
    T* __restrict__ y,                    // (rows, C)
    long long rows, int C, int S, int per, int lanes)
{
    const long long parts = Part<V>::all(rows, C, per, lanes);
    for (long long b = blockIdx.x; b < parts; b += gridDim.x) {
        const Part<V> p(parts - 1 - b, rows, C, per, lanes);
        if (!p.count) continue;
        A center[V], inv[V];
        get_channels(center, mean, p.c);
        get_channels(inv, inv_std, p.c);
        const Normalise normalise(gamma, beta, center, inv, p.c);
        if (residual) normalise_rows<true>(p, normalise, x, residual, y);
        else normalise_rows<false>(p, normalise, x, residual, y);
    }
}

// ---- backward

// This thread's rows of gz, stored if it is wanted, and their sums.
template <bool ADD>
__device__ inline void pull_rows(const Part<V>& p, const Normalise& normalise, const A* center,
                                 const T* gy, const T* x, const T* residual, T* gz, Sums* all)
{
    constexpr int N = ADD ? WITH : PAIRS;
    static_assert(RUN % N == 0, "the same runs, whatever follows");
    Sums few[V] = {};
    long long at = p.at;
#pragma unroll 1
    for (int left = p.count; left > 0; left -= N, at += N * p.step) {
        P gs[N], xs[N], more[N];
        get_rows<N>(gs, gy + at, p.step, left);
        get_rows<N>(xs, x + at, p.step, left);
        if (ADD) get_rows<N>(more, residual + at, p.step, left);
#pragma unroll
        for (int v = 0; v < V; ++v) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const A here = (A)xs[i].v[v];
                A z = rounded(normalise(here, v));
                if (ADD) z = rounded(z + (A)more[i].v[v]);
                const T g = (T)pull_back((A)gs[i].v[v], z);
                gs[i].v[v] = g;
                if (i < left) {
                    few[v].gz += (A)g;
                    few[v].gzx = fma((A)g, here - center[v], few[v].gzx);
                }
            }
        }
        if ((p.count - left + N) % RUN == 0 || left <= N) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
                all[v].gz += few[v].gz, all[v].gzx += few[v].gzx;
                few[v] = {};
            }
        }
        if (gz) put_rows<N>(gz + at, gs, p.step, left);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 2) batch_norm_backward_sums(
    const T* __restrict__ gy,             // (rows, C)
    const T* __restrict__ x,              // (rows, C)
    const T* __restrict__ gamma,          // (C,)         null: ones
    const T* __restrict__ beta,           // (C,)         null: zeros
    const A* __restrict__ mean,           // (C,)
    const A* __restrict__ inv_std,        // (C,)
    const T* __restrict__ residual,       // (rows, C)    null: zeros
    T* __restrict__ gz,                   // (rows, C)    null: not wanted
    A* __restrict__ sum_gz,               // (S, C)       of each slice
    A* __restrict__ sum_gzx,              // (S, C)       of gz * (x - mean)
    long long rows, int C, int S, int per, int lanes)
{
    __shared__ Sums shared[spread<Sums>(BLOCK * V)];
    for (long long b = blockIdx.x; b < Part<V>::all(rows, C, per, lanes); b += gridDim.x) {
        const Part<V> p(b, rows, C, per, lanes);
        Sums all[V] = {};
        if (p.count) {
            A center[V], inv[V] = {};
            get_channels(center, mean, p.c);
            if (ACTIVATION) get_channels(inv, inv_std, p.c);
            const Normalise normalise(ACTIVATION ? gamma : nullptr,
                                      ACTIVATION ? beta : nullptr, center, inv, p.c);
            if (residual) pull_rows<true>(p, normalise, center, gy, x, residual, gz, all);
            else pull_rows<false>(p, normalise, center, gy, x, residual, gz, all);
        }
        reduce_rows<V>(shared, all, p.height, lanes, AddSums());
        for (int k = threadIdx.x; k < p.width; k += BLOCK) {
            const Sums total = shared[spread<Sums>(k)];
            sum_gz[(long long)p.slice * C + p.first + k] = total.gz;
            sum_gzx[(long long)p.slice * C + p.first + k] = total.gzx;
        }
        __syncthreads();                  // before shared is written again
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) batch_norm_backward_totals(
    const A* __restrict__ slice_gz,       // (S, C)
    const A* __restrict__ slice_gzx,      // (S, C)
    const A* __restrict__ inv_std,        // (C,)
    A* __restrict__ sum_gz,               // (C,)
    A* __restrict__ sum_gzxhat,           // (C,)
    T* __restrict__ ggamma,               // (C,)         the same two, as stored
    T* __restrict__ gbeta,                // (C,)
    int C, int S, int lanes)
{
    __shared__ Sums shared[spread<Sums>(BLOCK)];
    for (long long b = blockIdx.x; b < Part<1>::all(S, C, S, lanes); b += gridDim.x) {
        const Part<1> p(b, S, C, S, lanes);
        const Sums all = merge_rows<Sums>(p.count, [=](int i) -> Sums {
            return {slice_gz[p.at + i * p.step], slice_gzx[p.at + i * p.step]};
        }, AddSums());
        reduce_rows<1>(shared, &all, p.height, lanes, AddSums());
        for (int k = threadIdx.x; k < p.width; k += BLOCK) {
            const Sums total = shared[spread<Sums>(k)];
            const int c = p.first + k;
            const A gzxhat = total.gzx * inv_std[c];
            sum_gz[c] = total.gz;
            sum_gzxhat[c] = gzxhat;
            gbeta[c] = (T)total.gz;
            ggamma[c] = (T)gzxhat;
        }
        __syncthreads();                  // before shared is written again
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 2) batch_norm_backward(
    const T* __restrict__ gy,             // (rows, C)
    const T* __restrict__ x,              // (rows, C)    null in inference without an activation
    const T* __restrict__ gamma,          // (C,)         null: ones
    const T* __restrict__ beta,           // (C,)         null: zeros
    const A* __restrict__ mean,           // (C,)
    const A* __restrict__ inv_std,        // (C,)
    const A* __restrict__ sum_gz,         // (C,)         null in inference
    const A* __restrict__ sum_gzxhat,     // (C,)
    T* __restrict__ gx,                   // (rows, C)
    long long rows, int C, int S, int per, int lanes)
{
    constexpr int N = PAIRS;
    const long long parts = Part<V>::all(rows, C, per, lanes);
    for (long long b = blockIdx.x; b < parts; b += gridDim.x) {
        const Part<V> p(parts - 1 - b, rows, C, per, lanes);
        if (!p.count) continue;
        A center[V], inv[V], slope[V], level[V];
        get_channels(center, mean, p.c);
        get_channels(inv, inv_std, p.c);
        const Normalise normalise(gamma, beta, center, inv, p.c);
        if (sum_gz) {                     // slope and level of the line that is taken off
            get_channels(level, sum_gz, p.c);
            get_channels(slope, sum_gzxhat, p.c);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                slope[v] *= inv[v] / rows;
                level[v] /= rows;
            }
        }
        long long at = p.at;
#pragma unroll 1
        for (int left = p.count; left > 0; left -= N, at += N * p.step) {
            P gs[N], xs[N];
            get_rows<N>(gs, gy + at, p.step, left);
            if (x) get_rows<N>(xs, x + at, p.step, left);
#pragma unroll
            for (int v = 0; v < V; ++v) {
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    A g = (A)gs[i].v[v];
                    if (ACTIVATION) {
                        g = rounded(pull_back(g, rounded(normalise((A)xs[i].v[v], v))));
                    }
                    if (sum_gz) g = fma(center[v] - (A)xs[i].v[v], slope[v], g - level[v]);
                    gs[i].v[v] = (T)(g * normalise.scale[v]);
                }
            }
            put_rows<N>(gx + at, gs, p.step, left);
        }
    }
}
