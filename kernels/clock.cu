// What changes from step to step of a captured training step, in device memory.  gpuconv/train/step.py
//
//   record[batch] = [loss, right, control[2], scale]      of the step that is on its way
//   control[0]    = factors[step]                         a schedule's, for its update
//   clock         = [epoch, batch + 1, step + 1]
//
// Launch   one thread, no shared memory.
// Traffic  tick  reads clock <= 3, loss 1, right 1, scale 1 if scale, factors 1, control 1, writes
//                record 4 (asks 4; sectors <= 4), control 1, clock 2 (asks 2; sectors <= 2).
//          Coalesced: one thread.
// Order    one thread; no atomics.

#include "common.cuh"

using T = CFG_T;                          // of the loss: float, or double for double

extern "C" __global__ void clock_tick(
    long long* __restrict__ clock,        // (3,)         epoch, batch, step
    const T* __restrict__ loss,           // ()
    const long long* __restrict__ right,  // ()           right answers
    const float* __restrict__ scale,      // ()           null: the loss is not scaled
    const double* __restrict__ factors,   // (total,)
    double* __restrict__ control,         // (4,)         of the optimiser: factor, ., skip, .
    double* __restrict__ record,          // (steps, 4)   of this epoch
    long long total,
    long long steps)
{
    if (blockIdx.x * blockDim.x + threadIdx.x) return;
    const long long batch = clock[1], step = clock[2];
    if (batch < steps) {
        double* mine = record + 4 * batch;
        mine[0] = (double)*loss;
        mine[1] = (double)*right;
        mine[2] = control[2];
        mine[3] = scale ? (double)*scale : 1.0;
    }
    if (step < total) control[0] = factors[step];
    clock[1] = batch + 1;
    clock[2] = step + 1;
}
