// Activations of what a kernel has just computed, before it is stored: as in activation.cu.
#pragma once

constexpr int NONE = 0, RELU = 1, GELU = 2;    // CFG_ACTIVATION

// The activation ACT of v, in the arithmetic of v; NaN stays NaN.
template <int ACT, class A>
__device__ inline A activate(A v)
{
    static_assert(ACT == NONE || ACT == RELU || ACT == GELU, "an activation");
    if constexpr (ACT == RELU) return v <= 0 ? (A)0 : v;
    else if constexpr (ACT == GELU) return v * ((A)0.5 * erfc(v * (A)-0.70710678118654752));
    else return v;
}
