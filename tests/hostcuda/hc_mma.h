// hc_mma.h - the functions of kernels/common/mma.cuh on the CPU; their contracts are written there.
// hc_mma.cpp does the work, compiled once.
#pragma once

#pragma GCC visibility push(hidden)
extern "C" {
void hc_mma(int kind, float* d, const unsigned* a, const unsigned* b);
void hc_ldmatrix(unsigned* out, const void* row, int matrices, bool transposed);
void hc_cp_async(void* shared, const void* global, int bytes, bool valid);
void hc_cp_async_commit();
void hc_cp_async_wait(int open);
}
#pragma GCC visibility pop

inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    hc_mma(0, d, a, b);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    hc_mma(1, d, a, b);
}
inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    hc_mma(2, d, a, b);
}
inline unsigned to_tf32(float v) {
    return isnan(v) ? 0x7FFFE000 : (__float_as_uint(v) + 0x1000) & 0xFFFFE000;
}
template <int X> inline void ldmatrix(unsigned (&out)[X], const void* row) {
    static_assert(X == 1 || X == 2 || X == 4, "one, two or four matrices");
    hc_ldmatrix(out, row, X, false);
}
template <int X> inline void ldmatrix_transposed(unsigned (&out)[X], const void* row) {
    static_assert(X == 1 || X == 2 || X == 4, "one, two or four matrices");
    hc_ldmatrix(out, row, X, true);
}
template <int BYTES> inline void cp_async(void* shared, const void* global, bool valid = true) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "4, 8 or 16 bytes");
    hc_cp_async(shared, global, BYTES, valid);
}
inline void cp_async_commit() { hc_cp_async_commit(); }
template <int OPEN> inline void cp_async_wait() { hc_cp_async_wait(OPEN); }
