// What the kernels of optimisers share: the numbers of a step, and 16-bit numbers with more behind them.
//
// What changes from step to step lies in device memory, so that a captured step reads it anew:
//
//     control (4,)   a schedule's factor of the learning rate, what gradients are multiplied by,
//                    whether this step is left out (0 or 1; HALT: all later ones, too), unused:
//                    of each group its own
#pragma once

enum Control { FACTOR, MULTIPLIER, SKIP };
enum Skip { HALT = 2 };

// What a 16-bit number p stands for: its master copy; p itself where somebody has written it since
// the two were last equal.
template <class A, class T>
__device__ inline A behind(T p, A master) { return (A)(T)master == (A)p ? master : (A)p; }
