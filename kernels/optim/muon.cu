// Muon: what happens to a matrix before and after it is made orthogonal.   gpuconv/optim/muon.py
//
//   direction   g' = multiplier * g[i],  m[i] = momentum * m[i] + g'
//               d[i] = g' + momentum * m[i] (NESTEROV), else m[i]
//   update      w = p[i], or what it stands for (MASTER)
//               p[i] = scale * w - rate * u[i],   rate = lr * factor
//               scale = (1 - rate * weight_decay) * root / max(sqrt(squares), tiny); without squares
//               (null) the root and all behind it are 1
//
//   Factor and multiplier are in control; with its "skip" nothing changes, and d is 0.
//
// Launch   1-d, one thread per element, any grid, any block, no shared memory.
// Traffic  direction  reads g/m n, control 2 (asks <= n/16), writes m/d n.
//          update     reads p/u n, master n if MASTER, squares 1 if squares (asks <= n/32), control 2
//                     (asks <= n/16), writes p n, master n if MASTER. Coalesced.
// Order    no sums across threads, no atomics: runs are bit-identical.
//
// Source   Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024.

#include "common/common.cuh"
#include "optim/optim.cuh"

using T = CFG_T;                               // stored element of p, g and u
using A = CFG_A;                               // arithmetic, m, d, master: float, or double for double
constexpr bool NESTEROV = CFG_NESTEROV;        // look ahead along m?
constexpr bool MASTER = CFG_MASTER;            // is there a master? If not, it is null

extern "C" __global__ void muon_direction(
    const T* __restrict__ g,             // (n,)
    A* __restrict__ m,                   // (n,)
    A* __restrict__ d,                   // (n,)
    const double* __restrict__ control,  // (4,)
    A momentum,
    long long n)
{
    const bool skip = control[SKIP] != 0;
    const A scale = (A)control[MULTIPLIER];
    for (long long i : grid_stride<long long>(n)) {
        if (skip) {
            d[i] = 0;
            continue;
        }
        const A here = scale * (A)g[i], v = momentum * m[i] + here;
        m[i] = v;
        d[i] = NESTEROV ? here + momentum * v : v;
    }
}

extern "C" __global__ void muon_update(
    T* __restrict__ p,                   // (n,)
    const T* __restrict__ u,             // (n,)
    A* __restrict__ master,              // (n,)          null without MASTER
    const double* __restrict__ squares,  // ()            sum of the squares of p; null: not wanted
    const double* __restrict__ control,  // (4,)
    double lr,
    double weight_decay,
    double root,
    double tiny,
    long long n)
{
    if (control[SKIP] != 0) return;
    const double exact = lr * control[FACTOR];
    const A rate = (A)exact;
    double share = 1 - exact * weight_decay;
    if (squares) {
        const double norm = sqrt(*squares);
        share *= root / (norm > tiny ? norm : tiny);
    }
    const A scale = (A)share;
    for (long long i : grid_stride<long long>(n)) {
        A w = (A)p[i];
        if constexpr (MASTER) w = behind(p[i], master[i]);
        w = scale * w - rate * (A)u[i];
        p[i] = (T)w;
        if constexpr (MASTER) master[i] = w;
    }
}
