// What the functions of kernels/common/mma.cuh do, laid bare for tests/test_mma.py.
//
// Every lane picks its elements by the formulas of the PTX manual, one by one, and not as kernels
// do; on the CPU and on a GPU alike.
//
// Launch   one block of one warp.

#include "common/common.cuh"
#include "common/mma.cuh"

using T = CFG_T;                                       // __half, __nv_bfloat16; float: tf32
constexpr int X = CFG_X;                               // matrices of an ldmatrix
constexpr int BYTES = CFG_BYTES;                       // of a cp_async
constexpr int K = sizeof(T) == 4 ? 8 : 16;             // depth of the product

__device__ inline unsigned bits(float v) { return to_tf32(v); }
template <class E> __device__ inline unsigned bits(E v) { return *(const unsigned short*)&v; }

__device__ inline void multiply(float (&d)[4], unsigned (&a)[4], unsigned (&b)[2], __half) {
    mma_f16(d, a, b);
}
__device__ inline void multiply(float (&d)[4], unsigned (&a)[4], unsigned (&b)[2], __nv_bfloat16) {
    mma_bf16(d, a, b);
}
__device__ inline void multiply(float (&d)[4], unsigned (&a)[4], unsigned (&b)[2], float) {
    mma_tf32(d, a, b);
}

extern "C" __global__ void probe_mma(
    const T* a,                        // (16, K)
    const T* b,                        // (K, 8)
    float* d)                          // (16, 8)    += a b
{
    const int group = threadIdx.x / 4, member = threadIdx.x % 4;
    constexpr int EACH = 4 / sizeof(T);                // elements of a register
    unsigned ra[4] = {}, rb[2] = {};
    for (int i = 0; i < 4 * EACH; ++i) {
        const int r = i / EACH, shift = i % EACH * 16;
        const int row = r % 2 ? group + 8 : group;
        const int column = member * EACH + i % EACH + (r >= 2 ? K / 2 : 0);
        ra[r] |= bits(a[row * K + column]) << shift;
    }
    for (int i = 0; i < 2 * EACH; ++i) {
        const int r = i / EACH, shift = i % EACH * 16;
        const int row = member * EACH + i % EACH + (r ? K / 2 : 0);
        rb[r] |= bits(b[row * 8 + group]) << shift;
    }
    float rd[4];
    for (int i = 0; i < 4; ++i) rd[i] = d[(i < 2 ? group : group + 8) * 8 + member * 2 + i % 2];
    multiply(rd, ra, rb, T());
    for (int i = 0; i < 4; ++i) d[(i < 2 ? group : group + 8) * 8 + member * 2 + i % 2] = rd[i];
}

extern "C" __global__ void probe_tf32(
    const float* x,                    // (n)
    unsigned* y,                       // (n)        bits
    int n)
{
    for (int i = threadIdx.x; i < n; i += 32) y[i] = to_tf32(x[i]);
}

extern "C" __global__ void probe_ldmatrix(
    const unsigned* in,                // (32, 4)    rows of eight 16-bit elements
    const int* order,                  // (8 X)      lane l gives row order[l]
    unsigned* out,                     // (32, X)
    unsigned* transposed)              // (32, X)
{
    __shared__ __align__(16) unsigned rows[32][4];
    const int lane = threadIdx.x;
    for (int i = 0; i < 4; ++i) rows[lane][i] = in[lane * 4 + i];
    __syncthreads();
    const void* row = lane < 8 * X ? rows[order[lane]] : nullptr;
    unsigned r[X];
    ldmatrix(r, row);
    for (int i = 0; i < X; ++i) out[lane * X + i] = r[i];
    ldmatrix_transposed(r, row);
    for (int i = 0; i < X; ++i) transposed[lane * X + i] = r[i];
}

extern "C" __global__ void probe_cp_async(
    const unsigned char* in,           // (3, 32, BYTES)
    const int* keep,                   // (3, 32)    else zeros
    unsigned char* out)                // (3, 32, BYTES)
{
    __shared__ __align__(16) unsigned char stage[3][32][BYTES];
    const int lane = threadIdx.x, other = 31 - lane;
    for (int s = 0; s < 3; ++s) {
        const int from = s * 32 + lane;
        cp_async<BYTES>(stage[s][lane], keep[from] ? in + from * BYTES : nullptr, keep[from]);
        cp_async_commit();
    }
    auto copy = [&](int s) {           // what another thread fetched
        __syncthreads();
        for (int i = 0; i < BYTES; ++i) out[(s * 32 + other) * BYTES + i] = stage[s][other][i];
    };
    cp_async_wait<2>();
    copy(0);
    cp_async_wait<1>();
    copy(1);
    cp_async_wait<0>();
    copy(2);
}
