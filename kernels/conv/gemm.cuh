// Matrix products on tensor cores: what the convolutions share. D (m x n) += A (m x k) * B (k x n).
//
// A block multiplies tiles of A and B that circulate through shared memory in STAGES stages: one is
// multiplied while the others are on their way (cp.async). Rows of a tile are cut into chunks of 16
// bytes, which cp.async writes and ldmatrix reads; `swizzle` says where a chunk lies, so that
// neither meets a bank twice. Counted in bytes, 16-bit floats and tf32 are alike: an MMA is 32
// bytes deep, its fragments come from ldmatrix in the same registers.
//
// Whoever uses it supplies a Loader (copies the next stage from global memory) and a Reader (loads
// fragments from a stage): see `multiply_stages`.
//
// Source   NVIDIA, CUTLASS, "Efficient GEMM in CUDA"; PTX ISA 8.0, section 9.7.13.
#pragma once

#include "common/common.cuh"
#include "common/mma.cuh"
#include "common/pack.cuh"

constexpr int WARP = 32;                       // lanes
constexpr int MMA_M = 16, MMA_N = 8;

// MMA<T>: how deep a product is, and the instruction.
template <class T> struct Mma {
    static constexpr int K = 32 / sizeof(T);
};
__device__ inline void mma(const __half*, float (&d)[4], const unsigned (&a)[4],
                           const unsigned (&b)[2]) { mma_f16(d, a, b); }
__device__ inline void mma(const __nv_bfloat16*, float (&d)[4], const unsigned (&a)[4],
                           const unsigned (&b)[2]) { mma_bf16(d, a, b); }
__device__ inline void mma(const float*, float (&d)[4], const unsigned (&a)[4],
                           const unsigned (&b)[2]) { mma_tf32(d, a, b); }

// What an MMA takes of a register as ldmatrix gives it: float32 is rounded to tf32.
template <class T> __device__ inline unsigned operand(unsigned bits) { return bits; }
template <> __device__ inline unsigned operand<float>(unsigned bits) {
    return to_tf32(__uint_as_float(bits));
}

// Where chunk `chunk` of row `row` lies in a tile with rows of WIDTH elements, in elements. Eight
// rows at the same chunk (what ldmatrix reads at once), and eight neighbouring chunks, lie in 8
// different columns of 16 bytes of the banks. An XOR of `chunk` by a constant is one of the place;
// rows in steps of 8 lie WIDTH apart each.
template <class T, int WIDTH>
__device__ inline int swizzle(int row, int chunk) {
    constexpr int V = Pack<T>::V, CHUNKS = WIDTH / V;
    static_assert(CHUNKS >= 2 && (CHUNKS & (CHUNKS - 1)) == 0, "a power of two");
    constexpr int FOLD = CHUNKS < 8 ? CHUNKS : 8;
    const int at = row / (8 / FOLD) % FOLD;
    const int rotated = at * 2 % FOLD | at / (FOLD / 2);   // even rows keep pairs of chunks apart
    return row * WIDTH + (chunk ^ rotated) * V;
}

// Copy one chunk to shared memory in units of UNIT bytes: unit u from at(u), or zeros where not
// inside(u): then nothing is read. Units of 2 bytes go through registers, at once; all others
// arrive some time before cp_async_wait.
template <int UNIT, class T, class At, class Inside>
__device__ inline void copy_chunk(T* to, At at, Inside inside) {
    constexpr int UNITS = 16 / UNIT, E = UNIT / sizeof(T);
    if constexpr (UNIT >= 4) {
#pragma unroll
        for (int u = 0; u < UNITS; ++u) cp_async<UNIT>(to + u * E, at(u), inside(u));
    } else {
        Pack<T> p;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) p.v[u] = inside(u) ? *at(u) : (T)0.0f;
        *reinterpret_cast<Pack<T>*>(to) = p;
    }
}

// The operands of one warp for Mma<T>::K of depth: TM x TN products.
template <class T, int TM, int TN>
struct Fragments {
    unsigned a[TM][4];
    unsigned b[TN][2];

    __device__ void multiply(float (&sum)[TM][TN][4]) {
#pragma unroll
        for (int i = 0; i < TM; ++i) {
#pragma unroll
            for (int r = 0; r < 4; ++r) a[i][r] = operand<T>(a[i][r]);
        }
#pragma unroll
        for (int j = 0; j < TN; ++j) {
#pragma unroll
            for (int r = 0; r < 2; ++r) b[j][r] = operand<T>(b[j][r]);
        }
#pragma unroll
        for (int i = 0; i < TM; ++i) {
#pragma unroll
            for (int j = 0; j < TN; ++j) mma((const T*)nullptr, sum[i][j], a[i], b[j]);
        }
    }
};

// Reads fragments of tiles whose rows run along the depth: BM rows of A, then BN columns of B, BK
// elements each. m, n: where this warp's part begins.
template <class T, int BM, int BK, int TM, int TN>
struct RowReader {
    int a_at, b_at;                            // this lane's chunk in a stage, for step 0

    __device__ RowReader(int m, int n) {       // matrices in the order a[0..3]; b0, b1 of two MMAs
        const int lane = threadIdx.x % WARP;
        a_at = swizzle<T, BK>(m + lane % 16, lane / 16);
        b_at = BM * BK + swizzle<T, BK>(n + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }

    __device__ void load(Fragments<T, TM, TN>& to, const T* stage, int step) const {
        static_assert(TN % 2 == 0, "ldmatrix reads two of them");
        const T* const a = stage + (a_at ^ step * Mma<T>::K);
        const T* const b = stage + (b_at ^ step * Mma<T>::K);
#pragma unroll
        for (int i = 0; i < TM; ++i) ldmatrix(to.a[i], a + i * MMA_M * BK);
#pragma unroll
        for (int j = 0; j < TN; j += 2) {
            unsigned both[4];
            ldmatrix(both, b + j * MMA_N * BK);
            to.b[j][0] = both[0], to.b[j][1] = both[1];
            to.b[j + 1][0] = both[2], to.b[j + 1][1] = both[3];
        }
    }
};

// sum += the products of `steps` stages. shared: STAGES stages of STAGE elements.
//
//     loader.copy(stage)                     starts to copy the next stage; zeros behind the last
//     reader.load(fragments, stage, step)    step < STEPS, of Mma<T>::K each
//
// One barrier a stage. When it returns, copies may still be on their way, and other warps may still
// read: cp_async_wait<0>() and a barrier come before `shared` is used again.
template <int STAGES, int STAGE, int STEPS, class T, class Loader, class Reader, int TM, int TN>
__device__ inline void multiply_stages(T* shared, int steps, Loader& loader, const Reader& reader,
                                       float (&sum)[TM][TN][4]) {
    static_assert(STAGES >= 2 && STEPS % 2 == 0, "the two sets of fragments take turns");
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
        loader.copy(shared + i * STAGE);
        cp_async_commit();
    }
    cp_async_wait<STAGES - 2>();
    __syncthreads();

    Fragments<T, TM, TN> fragments[2];         // one is multiplied while the other is loaded
    int read = 0, write = (STAGES - 1) * STAGE;
    reader.load(fragments[0], shared, 0);
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            if (step == 0) {
                loader.copy(shared + write);
                cp_async_commit();
                write = write == (STAGES - 1) * STAGE ? 0 : write + STAGE;
            }
            const int next = (step + 1) % STEPS;
            if (next == 0) {
                read = read == (STAGES - 1) * STAGE ? 0 : read + STAGE;
                cp_async_wait<STAGES - 2>();   // stage `read` has landed, this thread's part
                __syncthreads();               // everybody's; and nobody reads stage `write` now
            }
            reader.load(fragments[(step + 1) % 2], shared + read, next);
            fragments[step % 2].multiply(sum);
        }
    }
}
