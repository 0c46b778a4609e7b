// What changes from step to step of a captured training step, in device memory.  gpuconv/train/step_state.py
//
//   record[batch] = [loss, right, control[0][2], scale]   of the step that is on its way
//   control[g][0] = factors[step][g]                      a schedule's, for its update of group g
//   clock         = [epoch, batch + 1, step + 1]
//   control[g][2] = 2      in either kernel, if the loss is not finite, unless the loss scale is
//                          dynamic and has left the step out: no update until somebody reads the loss
//
// Dtypes   float32, float64: what losses are
// Launch   one thread, no shared memory.
// Traffic  advance  reads clock <= 3, loss 1, right 1, scale 1 if scale, factors G, control 1, writes
//                   record 4 (asks 4; sectors <= 4), control G, clock 2 (asks 2; sectors <= 2).
//          halt  reads loss 1, control 1 if dynamic, writes control G.
//          Coalesced: one thread.
// Order    one thread; no atomics.

#include "common/common.cuh"
#include "optim/optim.cuh"

using T = CFG_T;                          // of the loss: float, or double for double

__device__ inline void halt(T loss, double* control, int G, bool dynamic)
{
    if (loss - loss == 0 || (dynamic && control[SKIP] != 0)) return;    // inf - inf is NaN
    for (int g = 0; g < G; ++g) control[4 * g + SKIP] = HALT;
}

extern "C" __global__ void step_state_advance(
    long long* __restrict__ clock,        // (3,)         epoch, batch, step
    const T* __restrict__ loss,           // ()
    const long long* __restrict__ right,  // ()           right answers
    const float* __restrict__ scale,      // ()           null: the loss is not scaled
    const double* __restrict__ factors,   // (total, G)
    double* __restrict__ control,         // (G, 4)       of the optimiser: factor, ., skip, .
    double* __restrict__ record,          // (steps, 4)   of this epoch
    long long total,
    long long steps,
    int G,
    bool dynamic)
{
    if (blockIdx.x * blockDim.x + threadIdx.x) return;
    const long long batch = clock[1], step = clock[2];
    const T got = *loss;
    if (batch < steps) {
        double* mine = record + 4 * batch;
        mine[0] = (double)got;
        mine[1] = (double)*right;
        mine[2] = control[SKIP];
        mine[3] = scale ? (double)*scale : 1.0;
    }
    if (step < total)
        for (int g = 0; g < G; ++g) control[4 * g] = factors[step * G + g];
    halt(got, control, G, dynamic);
    clock[1] = batch + 1;
    clock[2] = step + 1;
}

extern "C" __global__ void step_state_halt(
    const T* __restrict__ loss,           // ()
    double* __restrict__ control,         // (G, 4)
    int G,
    bool dynamic)
{
    if (blockIdx.x * blockDim.x + threadIdx.x) return;
    halt(*loss, control, G, dynamic);
}
