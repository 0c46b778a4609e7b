// Weight gradient of a convolution on tensor cores.            gpuconv/ops/conv/gpu_mma_wgrad.py
//
//   gw[k,r,s,c] = sum_{n,p,q} gy[n,p,q,k] * x[n, p*SH-PT+r*DH, q*SW-PL+s*DW, c]     0 outside x
//
// As a product of matrices  GW (K x depth) = GY^T (K x pixels) * X (pixels x depth)  with depth =
// R*S*C and pixels = N*P*Q. Both factors lie in memory with the summed index as their rows: a stage
// holds BK of them, and 16-bit elements are transposed by ldmatrix on their way to the registers.
// What a thread copies belongs to one tap (r, s) and one channel, so nothing of the convolution's
// geometry need be known at compile time: one binary serves all layers of a dtype and tile.
//
// Launch   1-d, a block of THREADS for each BM x BN tile of GW and each of `splits` runs of `run`
//          pixels, a multiple of BK; tiles first, so that blocks that run together share their
//          pixels in L2. Dynamic shared
//          memory: STAGES * STAGE elements.
// Traffic  conv_mma_wgrad  reads x <= N*H*W*C (asks <= N*P*Q*R*S*C*((K+BM-1)//BM)), gy
//                                N*P*Q*K (asks N*P*Q*K*((R*S*C+BN-1)//BN), sectors <= 3), writes
//                                gw splits*K*R*S*C (sectors <= 5: 8 numbers of a row at a time,
//                                one by one where their rows are of odd length).
//          Coalesced where C fills whole sectors, else at most 4.5 times. No bank conflicts.
// Order    a run is summed from its first pixel to its last, inside one MMA as the hardware does;
//          the runs by column_sums.cu. No atomics, and the runs follow from shape, tile and device:
//          bit-identical from run to run.
// Dtypes   float16, bfloat16, float32: what tensor cores of this kind multiply
// Archs    sm_80 and newer: cp.async, products of bfloat16 and tf32
// Source   Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, section 3.

#include "conv/gemm.cuh"

using T = CFG_T;                                 // stored element; float is multiplied as tf32
using O = CFG_O;                                 // element of gw: float where there are splits
using I = CFG_I;                                 // offset into x or gy: int, or long long
constexpr int BM = CFG_BM, BN = CFG_BN;          // tile of a block: filters, depth
constexpr int WM = CFG_WM, WN = CFG_WN;          // tile of a warp
constexpr int BK = CFG_BK;                       // pixels of a stage
constexpr int STAGES = CFG_STAGES;
constexpr int X_UNIT = CFG_X_UNIT, GY_UNIT = CFG_GY_UNIT;          // bytes that one copy can take
constexpr bool PLAIN = CFG_PLAIN;                // 1x1, stride 1, no padding: x is (pixels, C)

constexpr bool HALF = sizeof(T) == 2;
constexpr int WARPS_N = BN / WN, THREADS = BM / WM * WARPS_N * WARP;
constexpr int TM = WM / MMA_M, TN = WN / MMA_N;  // MMA tiles of a warp

static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0, "tiles");
static_assert(BM % 32 == 0 && BN % 32 == 0, "a row fills all banks, or two rows do");
static_assert(BK % (2 * Mma<T>::K) == 0, "the two sets of fragments take turns");

// BK rows of WIDTH elements in shared memory, such that what a warp writes at once, or reads, falls
// on all banks. 16-bit: as ldmatrix wants it. float: a warp reads 8 neighbours of 4 rows, and the
// rows lie 8 banks apart.
template <int WIDTH> struct Rows {
    static constexpr int PITCH = HALF ? WIDTH : WIDTH + 8, SIZE = BK * PITCH;
    static constexpr int V = Pack<T>::V;

    __device__ static int at(int row, int column) {
        if constexpr (!HALF) return row * PITCH + column;
        return swizzle<T, WIDTH>(row, column / V) + column % V;
    }
    // What lies `rows` below the place `at`, whose own row has none of their bits.
    __device__ static int below(int at, int rows) {
        if constexpr (!HALF) return at + rows * PITCH;
        return (at ^ swizzle<T, WIDTH>(rows, 0) % WIDTH) + rows * WIDTH;
    }
};
using RowsGY = Rows<BM>;
using RowsX = Rows<BN>;
constexpr int STAGE = RowsGY::SIZE + RowsX::SIZE;                  // elements: gy, then x

// This thread's share of filling Rows: UNIT bytes of each PASS-th row. What is too small for
// cp.async waits in registers until the next stage is copied.
template <int WIDTH, int UNIT> struct Copies {
    static constexpr int E = UNIT / sizeof(T);   // elements
    static constexpr int COLUMNS = WIDTH / E, PASS = THREADS / COLUMNS, COUNT = BK / PASS;
    static constexpr bool HELD = UNIT < 4;
    static_assert(PASS >= 1 && THREADS % COLUMNS == 0 && BK % PASS == 0, "copies come out even");
    static_assert(!HELD || STAGES >= 3, "what waits arrives one stage later");
    T held[HELD ? COUNT : 1];
    T* kept = nullptr;                           // rows that `held` belongs to

    __device__ static int row() { return (int)threadIdx.x / COLUMNS; }
    __device__ static int column() { return (int)threadIdx.x % COLUMNS * E; }
    __device__ static int to(int i) {
        return Rows<WIDTH>::below(Rows<WIDTH>::at(row(), column()), i * PASS);
    }
    __device__ void begin(T* rows) {
        if constexpr (HELD) {
            if (kept) {
#pragma unroll
                for (int i = 0; i < COUNT; ++i) kept[to(i)] = held[i];
            }
            kept = rows;
        }
    }
    __device__ void copy(T* rows, int i, const T* from, bool valid) {
        if constexpr (HELD) held[i] = valid ? *from : (T)0.f;
        else cp_async<UNIT>(rows + to(i), from, valid);
    }
};
using CopyGY = Copies<BM, GY_UNIT>;
using CopyX = Copies<BN, X_UNIT>;

constexpr int HELD = CopyGY::HELD * CopyGY::COUNT + CopyX::HELD * CopyX::COUNT;
constexpr int REGISTERS = 4 * TM * TN + 8 * TM + 4 * TN + 48           // of a thread, about
                          + (HELD + 8) * (int)sizeof(I) / 4 + HELD;
constexpr int BLOCKS = 65536 / (THREADS * REGISTERS);  // that a multiprocessor has registers for

struct Sizes {
    int N, H, W, C, K, R, S, P, Q;
    int SH, SW;                                  // stride, pixels
    int PT, PL;                                  // padding above and left, pixels
    int DH, DW;                                  // dilation, pixels
    __device__ int depth() const { return R * S * C; }
    __device__ int pixels() const { return N * P * Q; }
};

// Copies stage after stage: BK rows of gy, BK rows of x.
struct Loader {
    const Sizes& z;
    const T* __restrict__ x;
    CopyGY copy_gy;
    CopyX copy_x;
    const T* __restrict__ gy;
    int left_gy, left_x;                         // pixels until the end of the run
    I at_gy, at;                                 // this thread's next element of gy and of x
    int h, w;                                    // row and column of the latter, maybe outside
    int end_h, end_w;                            // of it, behind the last row, the last column of y
    int pass_h, pass_w;                          // to the PASS-th pixel after it
    I pass;

    // The tile (k0, d0), `count` pixels from `first` on.
    __device__ Loader(const Sizes& z, const T* x, const T* gy, int k0, int d0, int first, int count)
        : z(z), x(x), gy(gy)
    {
        const int k = k0 + CopyGY::column(), d = d0 + CopyX::column();
        left_gy = k < z.K ? count - CopyGY::row() : 0;
        left_x = d < z.depth() ? count - CopyX::row() : 0;
        at_gy = (I)(first + CopyGY::row()) * z.K + k;

        const unsigned pixel = first + CopyX::row(), image = pixel / z.Q / z.P;
        const int top = d / z.C / z.S * z.DH - z.PT, side = d / z.C % z.S * z.DW - z.PL;
        h = pixel / z.Q % z.P * z.SH + top, w = pixel % z.Q * z.SW + side;
        end_h = z.P * z.SH + top, end_w = z.Q * z.SW + side;
        at = (((I)image * z.H + h) * z.W + w) * z.C + d % z.C;
        constexpr int PASS = CopyX::PASS;
        pass_h = PASS / z.Q % z.P * z.SH, pass_w = PASS % z.Q * z.SW;
        pass = PLAIN ? (I)PASS * z.C
                     : (((I)(PASS / z.Q / z.P) * z.H + pass_h) * z.W + pass_w) * z.C;
    }

    __device__ void copy(T* stage) {
        T* const stage_x = stage + RowsGY::SIZE;
        copy_gy.begin(stage);
        copy_x.begin(stage_x);
#pragma unroll
        for (int i = 0; i < CopyGY::COUNT; ++i) {
            copy_gy.copy(stage, i, gy + at_gy, left_gy > i * CopyGY::PASS);
            at_gy += CopyGY::PASS * z.K;
        }
#pragma unroll
        for (int i = 0; i < CopyX::COUNT; ++i) {
            copy_x.copy(stage_x, i, x + at, left_x > i * CopyX::PASS && (PLAIN || inside()));
            at += pass;
            if constexpr (!PLAIN) turn();
        }
        left_gy -= BK;
        left_x -= BK;
    }

    __device__ bool inside() const {
        return (unsigned)h < (unsigned)z.H && (unsigned)w < (unsigned)z.W;
    }

    // To the next row of y, and to the next image, where `pass` has gone past an end.
    __device__ void turn() {
        h += pass_h, w += pass_w;
        if (w >= end_w) {
            w -= z.Q * z.SW, h += z.SH;
            at += (z.SH * z.W - z.Q * z.SW) * z.C;
        }
        if (h >= end_h) {
            h -= z.P * z.SH;
            at += (z.H - z.P * z.SH) * z.W * z.C;
        }
    }
};

// Reads the fragments of the warp at (m, n) of the tile.
struct Reader {
    int gy, x;                                   // this lane's place in a stage, for step 0

    __device__ Reader(int m, int n) {            // matrices in the order a[0..3]; b0, b1 of two MMAs
        const int lane = threadIdx.x % WARP;
        if constexpr (HALF) {
            gy = RowsGY::at(lane / 16 * 8 + lane % 8, m + lane / 8 % 2 * 8);
            x = RowsX::at(lane % 16, n + lane / 16 * 8);
        } else {
            gy = RowsGY::at(lane % 4, m + lane / 4);
            x = RowsX::at(lane % 4, n + lane / 4);
        }
        x += RowsGY::SIZE;
    }

    __device__ void load(Fragments<T, TM, TN>& to, const T* stage, int step) const {
        const T* const rows_gy = stage + step * Mma<T>::K * RowsGY::PITCH;
        const T* const rows_x = stage + step * Mma<T>::K * RowsX::PITCH;
        if constexpr (HALF) {                    // i and j exchange pairs of chunks
#pragma unroll
            for (int i = 0; i < TM; ++i) ldmatrix_transposed(to.a[i], rows_gy + (gy ^ i * MMA_M));
#pragma unroll
            for (int j = 0; j < TN; j += 2) {
                unsigned both[4];
                ldmatrix_transposed(both, rows_x + (x ^ j * MMA_N));
                to.b[j][0] = both[0], to.b[j][1] = both[1];
                to.b[j + 1][0] = both[2], to.b[j + 1][1] = both[3];
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4 * TM; ++i) {
                const int low = i % 4 / 2 * 4, right = i / 4 * MMA_M + i % 2 * 8;
                to.a[i / 4][i % 4] = __float_as_uint(rows_gy[gy + low * RowsGY::PITCH + right]);
            }
#pragma unroll
            for (int j = 0; j < 2 * TN; ++j) {
                const int low = j % 2 * 4, right = j / 2 * MMA_N;
                to.b[j / 2][j % 2] = __float_as_uint(rows_x[x + low * RowsX::PITCH + right]);
            }
        }
    }
};

// The sums of the warp at (k, d) into gw (K, depth).
__device__ inline void store(O* gw, const float (&sum)[TM][TN][4], int k, int d, int K, int depth) {
    k += threadIdx.x % WARP / 4, d += threadIdx.x % 4 * 2;       // this lane's first two
    O* to = gw + (long long)k * depth + d;
    const bool pairs = (depth | (unsigned long long)gw / sizeof(O)) % 2 == 0;
#pragma unroll
    for (int i = 0; i < 2 * TM; ++i) {
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            const O a = (O)sum[i / 2][j][i % 2 * 2], b = (O)sum[i / 2][j][i % 2 * 2 + 1];
            if (pairs && k + i * 8 < K && d + j * MMA_N < depth) {
                const Pack<O, 2> both = {a, b};
                *reinterpret_cast<Pack<O, 2>*>(to + j * MMA_N) = both;
            } else if (k + i * 8 < K) {
                if (d + j * MMA_N < depth) to[j * MMA_N] = a;
                if (d + j * MMA_N + 1 < depth) to[j * MMA_N + 1] = b;
            }
        }
        to += 8 * depth;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_mma_wgrad(
    const T* __restrict__ x,             // (N, H, W, C)
    const T* __restrict__ gy,            // (N, P, Q, K)
    O* __restrict__ gw,                  // (splits, K, R, S, C)
    int N, int H, int W, int C, int K, int R, int S, int P, int Q,
    int SH, int SW,                      // stride, pixels
    int PT, int PL,                      // padding above and left, pixels
    int DH, int DW,                      // dilation, pixels
    int splits,
    int run)                             // pixels of a split
{
    GC_DYN_SHARED(T, shared);
    const Sizes z = {N, H, W, C, K, R, S, P, Q, SH, SW, PT, PL, DH, DW};
    const int tiles_n = (z.depth() + BN - 1) / BN, tiles = tiles_n * ((K + BM - 1) / BM);
    const int split = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const int k0 = tile / tiles_n * BM, d0 = tile % tiles_n * BN;
    const int first = min((long long)split * run, (long long)z.pixels());
    const int count = min(run, z.pixels() - first);
    const int warp = threadIdx.x / WARP, m = warp / WARPS_N * WM, n = warp % WARPS_N * WN;

    Loader loader(z, x, gy, k0, d0, first, count);
    const Reader reader(m, n);
    float sum[TM][TN][4] = {};
    multiply_stages<STAGES, STAGE, BK / Mma<T>::K>(shared, (count + BK - 1) / BK, loader, reader,
                                                   sum);
    cp_async_wait<0>();
    store(gw + (long long)split * K * z.depth(), sum, k0 + m, d0 + n, K, z.depth());
}
