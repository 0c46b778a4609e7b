// Copies arrays, up to 24 pairs in one launch, if a number says so.              gpuconv/undo.py
//
//   y[i] = x[i]      of each pair, if flag is null or flag[0] is not 0
//
// Launch   1-d, one thread per 16 bytes of any y, any grid, any block, no shared memory. A pair that
//          is not there has n = 0. Where x or y does not start at a multiple of 16 bytes, and for
//          the last few bytes, a thread copies bytes one by one.
// Traffic  arrays  reads x0 n0, x1 n1, x2 n2, x3 n3, x4 n4, x5 n5, x6 n6, x7 n7, x8 n8, x9 n9,
//                  x10 n10, x11 n11, x12 n12, x13 n13, x14 n14, x15 n15, x16 n16, x17 n17, x18 n18,
//                  x19 n19, x20 n20, x21 n21, x22 n22, x23 n23, flag 1 if flag (asks <= packs/30),
//                  writes y0 n0, y1 n1, y2 n2, y3 n3, y4 n4, y5 n5, y6 n6, y7 n7, y8 n8, y9 n9,
//                  y10 n10, y11 n11, y12 n12, y13 n13, y14 n14, y15 n15, y16 n16, y17 n17, y18 n18,
//                  y19 n19, y20 n20, y21 n21, y22 n22, y23 n23.
//          Coalesced.
// Order    no sums across threads, no atomics: runs are bit-identical.

#include "common/common.cuh"
#include "common/pack.cuh"

using Byte = unsigned char;
constexpr int V = Pack<Byte>::V;         // bytes of a thread

// Copy the t-th 16 bytes of a pair; where it has fewer, t counts on from its end.
__device__ inline bool copied(long long& t, Byte* y, const Byte* x, long long n)
{
    const long long packs = (n + V - 1) / V, first = t * V;
    if (t >= packs) {
        t -= packs;
        return false;
    }
    if (first + V <= n && is_aligned(y) && is_aligned(x)) {
        reinterpret_cast<Pack<Byte>*>(y)[t] = reinterpret_cast<const Pack<Byte>*>(x)[t];
    } else {
        for (long long i = first; i < min(first + V, n); ++i) y[i] = x[i];
    }
    return true;
}

extern "C" __global__ void copy_arrays(
    unsigned char* y0, const unsigned char* x0, long long n0,    // each (n,), bytes
    unsigned char* y1, const unsigned char* x1, long long n1,
    unsigned char* y2, const unsigned char* x2, long long n2,
    unsigned char* y3, const unsigned char* x3, long long n3,
    unsigned char* y4, const unsigned char* x4, long long n4,
    unsigned char* y5, const unsigned char* x5, long long n5,
    unsigned char* y6, const unsigned char* x6, long long n6,
    unsigned char* y7, const unsigned char* x7, long long n7,
    unsigned char* y8, const unsigned char* x8, long long n8,
    unsigned char* y9, const unsigned char* x9, long long n9,
    unsigned char* y10, const unsigned char* x10, long long n10,
    unsigned char* y11, const unsigned char* x11, long long n11,
    unsigned char* y12, const unsigned char* x12, long long n12,
    unsigned char* y13, const unsigned char* x13, long long n13,
    unsigned char* y14, const unsigned char* x14, long long n14,
    unsigned char* y15, const unsigned char* x15, long long n15,
    unsigned char* y16, const unsigned char* x16, long long n16,
    unsigned char* y17, const unsigned char* x17, long long n17,
    unsigned char* y18, const unsigned char* x18, long long n18,
    unsigned char* y19, const unsigned char* x19, long long n19,
    unsigned char* y20, const unsigned char* x20, long long n20,
    unsigned char* y21, const unsigned char* x21, long long n21,
    unsigned char* y22, const unsigned char* x22, long long n22,
    unsigned char* y23, const unsigned char* x23, long long n23,
    const double* flag,                  // ()           null: copy
    long long packs)                     // of all pairs
{
    if (flag && *flag == 0) return;
    for (long long t : grid_stride<long long>(packs)) {
        long long left = t;
        copied(left, y0, x0, n0) || copied(left, y1, x1, n1) || copied(left, y2, x2, n2)
            || copied(left, y3, x3, n3) || copied(left, y4, x4, n4) || copied(left, y5, x5, n5)
            || copied(left, y6, x6, n6) || copied(left, y7, x7, n7) || copied(left, y8, x8, n8)
            || copied(left, y9, x9, n9) || copied(left, y10, x10, n10) || copied(left, y11, x11, n11)
            || copied(left, y12, x12, n12) || copied(left, y13, x13, n13)
            || copied(left, y14, x14, n14) || copied(left, y15, x15, n15)
            || copied(left, y16, x16, n16) || copied(left, y17, x17, n17)
            || copied(left, y18, x18, n18) || copied(left, y19, x19, n19)
            || copied(left, y20, x20, n20) || copied(left, y21, x21, n21)
            || copied(left, y22, x22, n22) || copied(left, y23, x23, n23);
    }
}
