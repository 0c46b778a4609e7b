// The warp-wide instructions of kernels on tensor cores, one named function each: sm_80 and later.
//
// Nothing else in kernels/ contains PTX. On the CPU the tests' hc_mma.h has the same functions, so
// that a kernel written against this header runs unchanged on both.
//
// Fragments: how the 32 lanes of a warp share a matrix. g = lane / 4, t = lane % 4; a register of
// 32 bits holds two neighbouring 16-bit floats, the first in its low half, or one tf32.
//
//   16-bit    A  16 (m) x 16 (k)   a[0] = A[g  ][2t, 2t+1]     a[2] = A[g  ][2t+8, 2t+9]
//                                  a[1] = A[g+8][2t, 2t+1]     a[3] = A[g+8][2t+8, 2t+9]
//             B  16 (k) x  8 (n)   b[0] = B[2t, 2t+1][g]       b[1] = B[2t+8, 2t+9][g]
//   tf32      A  16 (m) x  8 (k)   a[0] = A[g  ][t]            a[2] = A[g  ][t+4]
//                                  a[1] = A[g+8][t]            a[3] = A[g+8][t+4]
//             B   8 (k) x  8 (n)   b[0] = B[t][g]              b[1] = B[t+4][g]
//   float     D  16 (m) x  8 (n)   d[0], d[1] = D[g  ][2t, 2t+1]
//                                  d[2], d[3] = D[g+8][2t, 2t+1]
//
// All 32 lanes of a warp must reach every function marked "warp" together.
//
// Source   PTX ISA 8.0, sections 9.7.13 (mma, ldmatrix) and 9.7.8.22 (cp.async).
#pragma once

#ifdef __HOSTCUDA__
#include <hc_mma.h>
#else

// name: the block's dynamic shared memory, an array of T at a multiple of 128 bytes. Its size is an
// argument of the launch.
#define GC_DYN_SHARED(T, name)                                       \
    extern __shared__ __align__(128) unsigned char gc_dyn_shared[]; \
    T* const name = reinterpret_cast<T*>(gc_dyn_shared)

__device__ inline unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

// ---- products

// warp: d += a * b, one of two types of 16-bit floats, products exact, sums in float.
__device__ inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// warp: d += a * b, operands as to_tf32 gives them.
__device__ inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The bits of v with 10 bits of fraction, to nearest, ties away from zero.
__device__ inline unsigned to_tf32(float v) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return bits;
}

// ---- from shared memory to fragments

// warp: X = 1, 2 or 4 matrices of 8 x 8 16-bit elements. Lane l gives the address in shared memory
// of row l % 8 of matrix l / 8: 8 elements, 16-byte aligned. Lanes from 8 X on give any address.
// out[i] of lane l = elements 2t, 2t+1 of row g of matrix i.
template <int X> __device__ inline void ldmatrix(unsigned (&out)[X], const void* row) {
    static_assert(X == 1 || X == 2 || X == 4, "one, two or four matrices");
    const unsigned at = shared_address(row);
    if constexpr (X == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
            : "=r"(out[0]) : "r"(at) : "memory");
    else if constexpr (X == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
            : "=r"(out[0]), "=r"(out[1]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
}

// warp: the same, each matrix transposed: out[i] of lane l = element g of rows 2t, 2t+1.
template <int X> __device__ inline void ldmatrix_transposed(unsigned (&out)[X], const void* row) {
    static_assert(X == 1 || X == 2 || X == 4, "one, two or four matrices");
    const unsigned at = shared_address(row);
    if constexpr (X == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
            : "=r"(out[0]) : "r"(at) : "memory");
    else if constexpr (X == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
            : "=r"(out[0]), "=r"(out[1]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
}

// ---- from global to shared memory, without waiting

// Start to copy BYTES = 4, 8 or 16 (these past L1) from global to shared memory; or to write as many
// zeros where `valid` is false: then nothing is read. Both addresses are multiples of BYTES.
template <int BYTES>
__device__ inline void cp_async(void* shared, const void* global, bool valid = true) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "4, 8 or 16 bytes");
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
            :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
            :: "r"(shared_address(shared)), "l"(global), "n"(BYTES), "r"(valid ? BYTES : 0)
            : "memory");
}

// Close the group of copies that this thread started since its last commit; it may be empty.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until all but the newest OPEN groups of this thread have landed; those of other threads, and
// for other threads, only with a __syncthreads() after it.
template <int OPEN> __device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(OPEN) : "memory");
}

#endif
