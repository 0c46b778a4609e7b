// Activations in the arithmetic of what a kernel has just computed, and their slopes.
//
//   ReLU  max(v, 0)    GELU  v F(v), slope F(v) + v f(v)     NaN stays NaN
//
// F and f: distribution and density of the normal law. In double F(v) = erfc(-v / sqrt(2)) / 2. In
// float it is the density's e^(-v*v/2) times Mills' ratio, with the constants of ops/elementwise/cpu_gelu.py
// multiplied out: off by 2e-7 of itself, 2e-6 at -9, beside the rounding of e^(-v*v/2), and a third
// of erfc's instructions.
#pragma once

constexpr int NONE = 0, RELU = 1, GELU = 2;    // which of them

template <class A>
struct Normal {
    A bell, below;                             // e^(-v*v/2), F(v)
    __device__ explicit Normal(A v) {
        if constexpr (sizeof(A) == 8) {
            bell = exp((A)-0.5 * v * v);
            below = (A)0.5 * erfc(v * (A)-0.70710678118654752);
        } else {
            const A t = fabs(v) < 16 ? fabs(v) : (A)16;  // further out the tail is 0
            bell = exp2(t * t * (A)-0.72134752);
            const A p = fma(fma(t + (A)7.28368573, t, (A)22.5891476), t, (A)32.1972715);
            const A q = fma(fma(fma(t + (A)7.27444771, t, (A)23.6987349), t, (A)38.5125207), t,
                            (A)25.6842390);
            const A tail = __fdividef(p * (A)0.398857319, q) * bell;
            below = v > 0 ? 1 - tail : tail;
        }
    }
};

// The activation ACT of v.
template <int ACT, class A>
__device__ inline A activate(A v)
{
    static_assert(ACT == NONE || ACT == RELU || ACT == GELU, "an activation");
    if constexpr (ACT == RELU) return v <= 0 ? (A)0 : v;
    else if constexpr (ACT == GELU) return v * Normal<A>(v).below;
    else return v;
}

// g times its slope at v. ReLU's is 0 at 0, and 1 at NaN.
template <int ACT, class A>
__device__ inline A pull_back(A g, A v)
{
    if constexpr (ACT == RELU) return v <= 0 ? (A)0 : g;
    else if constexpr (ACT == GELU) {
        const Normal<A> normal(v);
        return g * fma(v * (A)0.39894228040143268, normal.bell, normal.below);
    } else return g;
}
