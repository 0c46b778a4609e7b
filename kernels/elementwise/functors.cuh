// Elementwise functions y = f(x) and their gradients: one functor for each entry of the table in
// gpuconv/ops/elementwise/activation.py, of the same name. `none` stands for no activation.
//
//   value(x)           f(x); NaN stays NaN
//   gradient(g, x, y)  g f'(x); it reads x or y: the one that the table's entry saves
//   SIMPLE             true: f is a selection. It costs no registers, and rounding its argument
//                      first gives the same bits as rounding its result.
//
// The constant ACTIVATION of a kernel is the name of a functor.
// Functions of CUDA are called as ::exp, ::tanh, because functors have these names, too.
#pragma once

// The distribution F and density f of the normal law, for GELU. In double F(x) = erfc(-x / sqrt(2)) / 2.
// In float it is the density's e^(-x*x/2) times Mills' ratio, with the constants of
// ops/elementwise/cpu_gelu.py multiplied out: off by 2e-7 of itself, 2e-6 at -9, beside the rounding
// of e^(-x*x/2), and a third of erfc's instructions.
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

namespace functor {

// y = x
struct none {
    static constexpr bool SIMPLE = true;
    template <class A> static __device__ A value(A x) { return x; }
    template <class A> static __device__ A gradient(A g, A, A) { return g; }
};

// y = max(x, 0)                  slope 1 where y > 0 or NaN, else 0
struct relu {
    static constexpr bool SIMPLE = true;
    template <class A> static __device__ A value(A x) { return x <= 0 ? (A)0 : x; }
    template <class A> static __device__ A gradient(A g, A, A y) { return y <= 0 ? (A)0 : g; }
};

// y = x F(x)                     slope F(x) + x f(x)
struct gelu {
    static constexpr bool SIMPLE = false;
    template <class A> static __device__ A value(A x) { return x * Normal<A>(x).below; }
    template <class A> static __device__ A gradient(A g, A x, A) {
        const Normal<A> normal(x);
        return g * fma(x * (A)0.39894228040143268, normal.bell, normal.below);
    }
};

// y = 1 / (1 + e^-x)             slope y (1 - y)
struct sigmoid {
    static constexpr bool SIMPLE = false;
    template <class A> static __device__ A value(A x) { return (A)1 / ((A)1 + ::exp(-x)); }
    template <class A> static __device__ A gradient(A g, A, A y) { return g * y * ((A)1 - y); }
};

// y = tanh(x)                    slope 1 - y*y
struct tanh {
    static constexpr bool SIMPLE = false;
    template <class A> static __device__ A value(A x) { return ::tanh(x); }
    template <class A> static __device__ A gradient(A g, A, A y) { return g * ((A)1 - y * y); }
};

// y = x s, s = 1 / (1 + e^-x)    slope s (1 + x (1 - s))
struct silu {
    static constexpr bool SIMPLE = false;
    template <class A> static __device__ A value(A x) { return x / ((A)1 + ::exp(-x)); }
    template <class A> static __device__ A gradient(A g, A x, A) {
        const A s = sigmoid::value(x);
        return g * (s * fma(x, (A)1 - s, (A)1));
    }
};

// y = e^x                        slope y
struct exp {
    static constexpr bool SIMPLE = false;
    template <class A> static __device__ A value(A x) { return ::exp(x); }
    template <class A> static __device__ A gradient(A g, A, A y) { return g * y; }
};

// y = ln(x)                      slope 1 / x
struct log {
    static constexpr bool SIMPLE = false;
    template <class A> static __device__ A value(A x) { return ::log(x); }
    template <class A> static __device__ A gradient(A g, A x, A) { return g / x; }
};

// y = -x                         slope -1
struct neg {
    static constexpr bool SIMPLE = true;
    template <class A> static __device__ A value(A x) { return -x; }
    template <class A> static __device__ A gradient(A g, A, A) { return -g; }
};

}  // namespace functor

template <class F> constexpr bool is_none = false;
template <> constexpr bool is_none<functor::none> = true;
